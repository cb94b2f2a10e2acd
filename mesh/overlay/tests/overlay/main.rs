//! The overlay in real network namespaces. Needs root, iproute2, nftables, ping and iperf3.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test that fails may panic"
)]

mod around;
mod attach;
mod cluster;
mod guard;
mod ipv6;
mod lifecycle;
mod node_address;
mod outside;
mod plug;
mod reach;
mod transfer;
mod underlay;
