//! The admin API: what the agent answers on its unix socket, and what the commands of the CLI print as JSON.
//!
//! | method and path | body | answer |
//! |---|---|---|
//! | GET `/v1/status` | | [`Status`] |
//! | GET `/v1/nodes`, `/v1/networks`, `/v1/services`, `/v1/tasks` | | a list of rows |
//! | POST `/v1/apply` | [`Apply`] | [`Applied`] |
//! | POST `/v1/rm` | [`Remove`] | [`Removed`] |
//! | POST `/v1/tasks` | [`AddTask`] | [`TaskRow`] |
//! | POST `/v1/tasks/{id}/drain`, DELETE `/v1/tasks/{id}` | | [`TaskRow`] |
//! | POST `/v1/attach` | [`Attach`] | [`TaskRow`] |
//! | POST `/v1/node/drain`, `/v1/node/activate` | | [`NodeRow`] |
//! | POST `/v1/leave` | [`Leave`] | `{}`, when done |
//! | GET `/v1/keys`, POST `/v1/keys/install`, `/v1/keys/use`, `/v1/keys/remove` | [`Key`] | [`Keys`] |
//! | GET `/v1/flows?limit=N&service=S` | | a list of [`portolan_plane::FlowView`], each with its `service` |
//! | GET `/v1/trace?client=C&frontend=F` | | a [`TraceLine`] a line, and empty ones, until one side ends it; see [`TraceClient`], [`TraceFrontend`] |
//! | GET `/v1/join` | | [`Joining`] |
//! | GET `/v1/version` | | `{"version": "..."}` |
//!
//! Every error is a status of 400 and above with an [`ErrorBody`].

mod trace;

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
};

use serde::{Deserialize, Serialize};

pub use trace::{
    TraceClient, TraceFrontend, TraceHop, TraceLine, TraceSide, TraceStart, TraceSyntax,
    TraceVerdict, TracedFrontend,
};

/// What went wrong, for people; all problems at once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// One line each: what is wrong, where, and the remedy.
    pub errors: Vec<String>,
}

/// The whole of a node on one screen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The node's name.
    pub node: String,
    /// Its address for other nodes.
    pub advertise: IpAddr,
    /// The version of its agent.
    pub version: String,
    /// `up`, `draining` or `leaving`.
    pub state: String,
    /// Seconds since the agent started.
    pub uptime_s: u64,
    /// What the node still waits for before it is ready; empty when it is.
    pub waiting_for: Vec<String>,
    /// Members by state: `alive`, `suspect`, `down`, `left`.
    pub members: Vec<(String, usize)>,
    /// Whether gossip is encrypted, and with which key.
    pub encryption: String,
    /// The hash of all records, hexadecimal: equal on all nodes that know the same.
    pub table_hash: String,
    /// The planes of this node.
    pub planes: Vec<PlaneRow>,
    /// What of the fast path is pinned, by name below `bpf_dir`; it goes on without an agent.
    pub pins: Vec<String>,
    /// The Docker engine that is followed; `None` if none is.
    pub docker: Option<DockerRow>,
    /// The MTU of the overlay.
    pub overlay_mtu: u32,
    /// Frontends served here.
    pub ports: Vec<PortRow>,
    /// How many networks, services and tasks the cluster has.
    pub counts: Counts,
    /// Everything that is not as it should be, on this node or on an object of the cluster.
    pub problems: Vec<String>,
}

/// The Docker engine of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DockerRow {
    /// Its socket.
    pub socket: PathBuf,
    /// `connecting`, `up`, `troubled`, `down`, or `absent`: there is none, and none was asked for.
    pub state: String,
    /// Why it is not up; empty if it is.
    pub reason: String,
    /// Its version; empty before it is known.
    pub version: String,
    /// Its part in a Swarm: `manager`, `worker`, or empty outside of one.
    pub swarm: String,
}

/// How many objects the cluster has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Nodes that are members.
    pub nodes: usize,
    /// Networks, the built-in one included.
    pub networks: usize,
    /// Services.
    pub services: usize,
    /// Tasks.
    pub tasks: usize,
}

/// One plane of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlaneRow {
    /// `relay` or `ebpf`.
    pub plane: String,
    /// Whether it serves.
    pub serving: bool,
    /// Why, or why not.
    pub reason: String,
    /// How many frontends it serves; the relay listens for those of the fast path too.
    pub frontends: usize,
}

/// One frontend of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortRow {
    /// `*:8080/tcp`.
    pub frontend: String,
    /// The service behind it.
    pub service: String,
    /// Backends that take new flows.
    pub active: usize,
    /// Backends that keep their flows only.
    pub draining: usize,
    /// The plane that new flows take: `relay` or `ebpf`, or `docker` where Swarm's own mesh has the port and the fast
    /// path does not precede it.
    pub plane: String,
    /// Why it is not the fast path although that serves here, or what else there is to say of it.
    pub plane_reason: Option<String>,
    /// The plane that new flows of IPv6 clients take; `None` if the port takes none.
    pub ipv6: Option<String>,
    /// Why that is the relay although the fast path has the port and the service wants IPv6.
    pub ipv6_reason: Option<String>,
    /// Why it is not served; `None` if it is.
    pub problem: Option<String>,
}

/// A node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRow {
    /// Its identity, hexadecimal.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Its address for other nodes.
    pub address: String,
    /// As gossip sees it: `alive`, `suspect`, `down`, `left`.
    pub membership: String,
    /// `up`, `draining` or `leaving`; empty while its record is not known.
    pub state: String,
    /// How many tasks it runs.
    pub tasks: usize,
    /// The version of its agent.
    pub version: String,
    /// Whether it is the node asked.
    pub me: bool,
}

/// A network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkRow {
    /// Its name.
    pub name: String,
    /// Its VNI.
    pub vni: u32,
    /// Its subnet.
    pub subnet: String,
    /// Whether it is closed to the outside.
    pub internal: bool,
    /// The nodes that are on it, with their slices.
    pub slices: Vec<(String, Vec<String>)>,
    /// How many endpoints it has.
    pub endpoints: usize,
    /// What is wrong with it.
    pub problems: Vec<String>,
}

/// A service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceRow {
    /// Its identity.
    pub id: String,
    /// Its name.
    pub name: String,
    /// The stack it belongs to.
    pub stack: Option<String>,
    /// `vip` or `dnsrr`.
    pub endpoint_mode: String,
    /// Its VIPs: network and address.
    pub vips: Vec<(String, Ipv4Addr)>,
    /// Its published ports, as `8080:80/tcp`; those in host mode end in ` (host)`, those that Docker itself serves in
    /// ` (host, by Docker)`, which managers of the Swarm know.
    pub ports: Vec<String>,
    /// Whether IPv6 clients are to be served at its tasks' own IPv6 addresses.
    pub ipv6: bool,
    /// Tasks that take new flows.
    pub healthy: usize,
    /// All its tasks.
    pub tasks: usize,
    /// The version of its declaration.
    pub spec_version: u64,
    /// What is wrong with it.
    pub problems: Vec<String>,
}

/// A task, or an attachment without a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskRow {
    /// Its identity.
    pub id: String,
    /// Its name: `web.1`.
    pub name: String,
    /// The service's name; empty for an attachment.
    pub service: String,
    /// Its number within the service.
    pub slot: u32,
    /// The node that it runs on.
    pub node: String,
    /// `starting`, `healthy`, `unhealthy` or `draining`.
    pub state: String,
    /// Why it is not in rotation; empty when it is.
    pub reason: String,
    /// Its share of new flows.
    pub weight: u16,
    /// Network and address of each endpoint.
    pub endpoints: Vec<(String, IpAddr)>,
    /// Where it may ask for names: its node's gateway on its first network besides the ingress network.
    pub resolver: Option<Ipv4Addr>,
}

/// A stack file to be applied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Apply {
    /// The text of the file.
    pub text: String,
    /// Its name in messages.
    pub source: String,
    /// The name of the stack, over the one in the file.
    pub name: Option<String>,
    /// Also remove the services and networks of the stack that the file no longer has.
    #[serde(default)]
    pub prune: bool,
}

/// What applying a stack file did. Names, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applied {
    /// Networks and services that are new.
    pub created: Vec<String>,
    /// Those that changed.
    pub updated: Vec<String>,
    /// Those that are as they were.
    pub unchanged: Vec<String>,
    /// Services and networks of the stack that are no longer in the file, with `prune`.
    pub removed: Vec<String>,
    /// Static tasks that now run on this node.
    pub tasks: Vec<String>,
    /// Compose keys that do not concern the network.
    pub ignored: Vec<String>,
    /// Published ports that were chosen: `web: 30123:80/tcp`.
    pub chosen_ports: Vec<String>,
    /// What is wrong with the objects as they now stand.
    pub problems: Vec<String>,
}

/// A service, or a whole stack, to be removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Remove {
    /// The name of a stack or a service.
    pub name: String,
}

/// What was removed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Removed {
    /// Names of services.
    pub services: Vec<String>,
    /// Names of networks.
    pub networks: Vec<String>,
}

/// Where a task is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Place {
    /// In the network namespace at this path.
    Netns(PathBuf),
    /// In the network namespace of this process.
    Pid(u32),
    /// Anywhere; it answers at this address, which every node can reach.
    Address(IpAddr),
}

/// A task to be added to a service, on this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AddTask {
    /// The service's name or id.
    pub service: String,
    /// Where it is.
    pub place: Place,
    /// Its number; the first free one if left out.
    pub slot: Option<u32>,
    /// Its share of new flows; 1 if left out.
    pub weight: Option<u16>,
}

/// A network namespace to be put on a network without being a task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attach {
    /// The network's name.
    pub network: String,
    /// The namespace.
    pub place: Place,
}

/// To leave the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Leave {
    /// Also remove everything from the kernel and the state directory.
    pub clean: bool,
}

/// What the next node has to be told to be a member too.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Joining {
    /// The address and port of this node.
    pub join: SocketAddr,
    /// The file with this node's keys; `None` without keys.
    pub key_file: Option<PathBuf>,
    /// The id of the key that packets are sent with; `None` without keys.
    pub key: Option<String>,
    /// The cluster's name.
    pub cluster: String,
    /// The UDP port of the overlay.
    pub data_path_port: u16,
    /// Whether this node is one of a Swarm, whose nodes' agents find each other.
    pub swarm: bool,
}

/// A gossip key to be installed, or the id of one to be used or removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Key {
    /// The key as `portolan keygen` prints it, or its id as `portolan keys` does.
    pub key: String,
}

/// The gossip keys of the node asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Keys {
    /// Ids, the one in use first; never the keys themselves.
    pub ids: Vec<String>,
}
