//! A cluster of real agents on one machine, for the end-to-end tests: each agent is the built binary, in a
//! namespace of its own, told what to do by its own command line.
//!
//! [`Cluster`] is the machines, [`answers`] asks who answers at a published port, [`stream`] holds single
//! connections and watches them.

#![expect(
    clippy::indexing_slicing,
    reason = "a test that names a node which is not there has to fail"
)]

pub mod answers;
mod cluster;
pub mod stream;

pub use cluster::{Cluster, HTTP_PORT, Options, PATIENCE, Plane, Task};
