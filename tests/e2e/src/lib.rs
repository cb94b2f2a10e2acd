//! A cluster of real agents on one machine, for the end-to-end tests: each agent is the built binary, in a
//! namespace of its own, told what to do by its own command line.
//!
//! [`Cluster`] is the machines, [`answers`] asks who answers at a published port, [`stream`] holds single
//! connections and watches them. What holds for both planes is written once, and made into two tests by
//! [`on_both_planes!`].

#![expect(
    clippy::indexing_slicing,
    reason = "a test that names a node which is not there has to fail"
)]

pub mod answers;
mod cluster;
mod kernel;
mod plane;
pub mod stream;

pub use cluster::{Cluster, HTTP_PORT, Machines, Options, PATIENCE, Task};
pub use kernel::{Bpf, kernel};
pub use plane::Plane;
