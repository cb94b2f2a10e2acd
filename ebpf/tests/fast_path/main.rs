//! The fast path in real network namespaces. Needs root, clang at build, iproute2, nftables, nginx and iperf3.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test that fails may panic"
)]

mod callers;
mod cluster;
mod contract;
mod flows;
mod fragments;
mod ipv6;
mod life;
mod policies;
mod reach;
mod strays;
mod traffic;
mod transfer;
