//! The overlay in real network namespaces. Needs root.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test that fails may panic"
)]

mod cluster;
mod reach;
