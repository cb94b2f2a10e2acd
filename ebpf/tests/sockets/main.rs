//! Processes of a node reach tasks past the relay, with both planes on the node as the agent has them. Needs root,
//! clang at build, cgroup2, iproute2, nftables, nginx, curl and dig.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test that fails may panic"
)]

#[path = "../fast_path/cluster.rs"]
#[allow(dead_code, reason = "the tests of packets need all of it")]
mod cluster;
mod life;
mod measure;
mod processes;
mod reach;
