//! A cluster of real agents on one machine, for the end-to-end tests: each agent is the built binary, in a
//! namespace of its own, told what to do by its own command line.

mod cluster;

pub use cluster::{Cluster, HTTP_PORT, Options, PATIENCE, Task};
