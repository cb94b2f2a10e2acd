//! What real engines said (Docker 20.10, a Swarm of three nodes without IPVS), and what is made of it.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "what a test calls fails the test, as the test itself would"
)]

mod hostile;
mod networks;
mod plain;
mod recording;
mod services;
mod tasks;
