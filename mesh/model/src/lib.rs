//! Portolan's vocabulary: identifiers, the records that nodes publish, the [`Catalog`] in which the
//! records of all nodes are merged, and the [`Snapshot`] that every other part of the agent reads.
//!
//! Nothing here does I/O, reads a clock or starts a thread: time comes in as milliseconds since the
//! Unix epoch, randomness not at all. Addresses, VNIs and ports are *chosen* here ([`claims`]), by
//! functions that give the same answer on every node that sees the same snapshot.

mod catalog;
pub mod claims;
mod id;
mod ipv6;
mod port;
mod record;
mod service;
mod snapshot;

pub use catalog::Catalog;
pub use id::{NameError, NetworkName, NodeId, ServiceId, TaskId};
pub use ipv6::{ipv6_of, ipv6_prefix};
pub use port::{Protocol, PublishMode, PublishedPort};
pub use record::{
    DecodeError, EncodeError, Endpoint, MAX_RECORD_BYTES, MacAddress, Network, NetworkAttach, Node,
    NodeState, Record, RecordKey, Slice, Task, TaskState,
};
pub use service::{
    Balancing, EndpointMode, HealthCheck, HealthProbe, PlaneChoice, ProxyProtocol, Service,
    ServiceNetwork,
};
pub use snapshot::{NetworkView, Problem, ServiceView, Snapshot, TaskView};

/// The built-in network on which every node reaches the tasks of published ports.
pub const INGRESS_NETWORK: &str = "ingress";
/// The VNI of the built-in network.
pub const INGRESS_VNI: u32 = 4096;
