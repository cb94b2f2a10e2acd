//! What the engine says, in as many of its words as are needed here.
//!
//! Each object is read for itself, and unknown fields, missing ones and nulls are borne with: what cannot be
//! read at all is told as [`Unreadable`], and the others are there.

mod read;
mod time;
mod wire;

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
};

use ipnetwork::Ipv4Network;
use portolan_model::MacAddress;

pub(crate) use read::Listed;
pub use read::{Readable, read, read_list};

/// Everything that is known of one engine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observed {
    /// The engine and its part in a Swarm.
    pub engine: Engine,
    /// The Swarm's services; none on a worker.
    pub services: Vec<SwarmService>,
    /// The Swarm's tasks on all nodes; none on a worker.
    pub tasks: Vec<SwarmTask>,
    /// The Swarm's nodes; none on a worker.
    pub nodes: Vec<SwarmNode>,
    /// The networks that the engine knows.
    pub networks: Vec<DockerNetwork>,
    /// The engine's own containers that run or are paused, as far as they may concern Portolan.
    pub containers: Vec<Container>,
    /// What could not be read.
    pub unreadable: Vec<Unreadable>,
}

/// The engine itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Engine {
    /// The name of its machine.
    pub name: String,
    /// Its version, such as `20.10.24`.
    pub version: String,
    /// Its part in a Swarm; `None` outside of one.
    pub swarm: Option<Swarm>,
}

/// An engine's part in a Swarm.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Swarm {
    /// The node's identity; empty while the engine does not know it, as before a locked Swarm is unlocked.
    pub node_id: String,
    /// Whether it is a manager, and so knows services and nodes.
    pub manager: bool,
    /// `active`, or why it takes no part now: `pending`, `locked`, `error`.
    pub state: String,
    /// What keeps it from being active, in the engine's words.
    pub error: String,
    /// Its address in the Swarm.
    pub address: Option<IpAddr>,
    /// The addresses of the managers that it knows.
    pub managers: Vec<IpAddr>,
}

/// A service of the Swarm.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SwarmService {
    /// Its identity, never given again.
    pub id: String,
    /// Its name, with that of its stack.
    pub name: String,
    /// Rises with every change of it, the same on every manager: the index of the change in the Swarm's log.
    pub version: u64,
    /// When it was created, Unix milliseconds.
    pub created_ms: u64,
    /// The labels of the service.
    pub labels: BTreeMap<String, String>,
    /// The labels that each of its containers gets.
    pub container_labels: BTreeMap<String, String>,
    /// Whether its name resolves to its tasks' addresses, and not to a virtual one.
    pub dnsrr: bool,
    /// The ports as asked for: 0 leaves the published one to the Swarm.
    pub ports: Vec<SwarmPort>,
    /// The ports as the Swarm has assigned them. They follow a change of `ports` after some milliseconds.
    pub assigned: Vec<SwarmPort>,
    /// The networks of its tasks: the network's id and the service's aliases there.
    pub networks: Vec<(String, Vec<String>)>,
    /// The virtual addresses that the Swarm has assigned, by the network's id.
    pub vips: BTreeMap<String, Ipv4Addr>,
}

/// A published port of a Swarm's service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SwarmPort {
    /// The outside port.
    pub published: u16,
    /// The port in the task.
    pub target: u16,
    /// `tcp`, `udp` or `sctp`.
    pub protocol: String,
    /// On the task's own node only, by Docker's means.
    pub host: bool,
}

/// A task of the Swarm.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SwarmTask {
    /// Its identity.
    pub id: String,
    /// The service's identity.
    pub service: String,
    /// The identity of its node; empty before it has one.
    pub node: String,
    /// Its number within the service; `None` for global services.
    pub slot: Option<u32>,
    /// What it is doing.
    pub state: Progress,
    /// What it shall be doing.
    pub desired: Progress,
}

/// How far a task is on its way, in the Swarm's words: it only ever goes forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Progress {
    /// Not running yet: `new`, `pending`, `assigned`, `accepted`, `preparing`, `ready`, `starting`.
    Before,
    /// `running`.
    Running,
    /// Not running any more: `complete`, `shutdown`, `failed`, `rejected`, `orphaned`, `remove`.
    After,
}

/// A node of the Swarm.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SwarmNode {
    /// Its identity.
    pub id: String,
    /// The name of its machine.
    pub name: String,
    /// Its address.
    pub address: Option<IpAddr>,
}

/// A network of the engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DockerNetwork {
    /// Its identity.
    pub id: String,
    /// Its name.
    pub name: String,
    /// The driver: `overlay`, `bridge`, the name of a plugin.
    pub driver: String,
    /// Whether it is one of the whole Swarm.
    pub swarm: bool,
    /// Nothing is forwarded out of it.
    pub internal: bool,
    /// The first of its subnets that is IPv4.
    pub subnet: Option<Ipv4Network>,
    /// What the driver was given, and what it has answered.
    pub options: BTreeMap<String, String>,
    /// When it was created, Unix milliseconds; on a worker, when it got the first task there.
    pub created_ms: u64,
}

/// A container of this engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    /// Its identity.
    pub id: String,
    /// Its name, without the slash.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// When it was created, Unix milliseconds.
    pub created_ms: u64,
    /// When it was started last, Unix milliseconds.
    pub started_ms: u64,
    /// Whether it has ended before and was started again.
    pub restarted: bool,
    /// Its main process, 0 if it has none.
    pub pid: u32,
    /// What it is doing.
    pub state: ContainerState,
    /// What its HEALTHCHECK says; `None` without one.
    pub health: Option<Health>,
    /// The path of its network namespace.
    pub sandbox: Option<PathBuf>,
    /// Whether its network is that of the node.
    pub on_host_network: bool,
    /// The signal that asks it to end, as configured: a name or a number; empty is SIGTERM.
    pub stop_signal: String,
    /// Seconds from the stop signal to SIGKILL, as configured.
    pub stop_timeout_s: Option<u32>,
    /// The networks that it is on.
    pub networks: Vec<ContainerNetwork>,
    /// It was sent its stop signal and has not ended yet. Not the engine's word: who follows the events
    /// knows it.
    pub stopping: bool,
}

/// What a container is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContainerState {
    /// It runs.
    Running,
    /// It is frozen.
    Paused,
    /// It is between two runs.
    Restarting,
    /// It does not run.
    Ended,
}

/// What a HEALTHCHECK says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// It has not passed yet.
    Starting,
    /// It passes.
    Healthy,
    /// It fails, with what it printed last.
    Unhealthy(String),
}

/// A container's endpoint on a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerNetwork {
    /// The network's name.
    pub name: String,
    /// The network's identity.
    pub id: String,
    /// The address there.
    pub address: Option<Ipv4Addr>,
    /// The Ethernet address there.
    pub mac: Option<MacAddress>,
}

/// What an object is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// The engine.
    Engine,
    /// A service of the Swarm.
    Service,
    /// A task of the Swarm.
    Task,
    /// A node of the Swarm.
    Node,
    /// A network.
    Network,
    /// A container.
    Container,
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Engine => "engine",
            Self::Service => "service",
            Self::Task => "task",
            Self::Node => "node",
            Self::Network => "network",
            Self::Container => "container",
        })
    }
}

/// An object of which the engine's words make no sense.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unreadable {
    /// What it is.
    pub kind: Kind,
    /// Its identity, as far as that could be read.
    pub id: String,
    /// Its name, as far as that could be read.
    pub name: String,
    /// What was wrong, with its place: `Spec.EndpointSpec.Ports[0].TargetPort: invalid value ...`.
    pub reason: String,
}
