//! What a Docker engine and its Swarm run, in the words of [`portolan_model`].
//!
//! Three layers, each of which can be used for itself:
//! - [`observed`]: what the engine says, as small structs that are read object by object;
//! - [`translate()`]: a pure function from that to the services, networks and tasks [`Wanted`];
//! - [`watch()`]: the loop that follows an engine's events, and tells both whenever they change.
//!
//! Nothing here writes: containers are attached, and records published, by the agent.
//!
//! The engine's API is read by a client of a few lines and not by bollard, whose generated models take
//! a list of objects as a whole: one word in one service that they do not know makes all services unreadable.

mod engine;
pub mod observed;
mod translate;
mod watch;

pub use engine::{EngineError, swarm_address};
pub use observed::Observed;
pub use translate::{
    Finding, NetworkWanted, Origin, Place, ServiceWanted, TaskWanted, Wanted, is_of_swarm,
    is_same_state, translate,
};
pub use watch::{Known, Link, Seen, Watcher, watch};

/// What the labels of the Swarm start with.
const SWARM_PREFIX: &str = "com.docker.swarm.";

/// Whether a label makes its container one to look at.
fn concerns_us(label: &str) -> bool {
    label.starts_with(SWARM_PREFIX) || label.starts_with(portolan_provider::LABEL_PREFIX)
}
