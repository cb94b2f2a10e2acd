//! What an agent is told at its start: a TOML file, `PORTOLAN_*` in the environment, and flags, the later
//! over the earlier. The three are read into [`Layer`]s of one shape, so that a key is parsed, checked and
//! named in messages in one place, whatever it came from; [`resolve`] then makes a [`Config`] of them, or
//! the list of everything that is wrong.

mod flags;
mod key;
mod layer;
mod machine;
mod resolve;
mod toml;
mod value;

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
};

use portolan_model::PlaneChoice;

pub use flags::Flags;
pub use key::{DEFAULT_DOCKER, DEFAULT_SOCKET, Key};
pub use layer::{Layer, parse_env};
pub(crate) use machine::reason;
pub use machine::{Machine, ThisMachine};
pub use resolve::resolve;
pub use toml::parse_toml;
pub use value::Seed;

/// How an agent runs. Every value is checked; see `docs/portolan.toml` for the keys and their defaults.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The node's name, unique in the cluster; its identity is derived from it. A DNS label, and the
    /// machine's host name if left out.
    pub name: String,
    /// The address at which other nodes reach this one, for gossip and for the overlay. A unicast
    /// address of this machine.
    pub advertise: IpAddr,
    /// The UDP and TCP port of gossip, the same on every node unless `join` says otherwise.
    pub gossip_port: u16,
    /// Other members to join by; those that do not answer, and names that do not resolve, are tried
    /// again. Empty for the first node.
    pub join: Vec<Seed>,
    /// The file with the gossip keys, one to a line, the first of them used for sending. Readable, and
    /// closed to other users. `None` only on a loopback address or with `insecure`.
    pub key_file: Option<PathBuf>,
    /// Whether gossip may run without a key on an address that others reach.
    pub insecure: bool,
    /// The cluster's name. Nodes of another one are refused even if they have the key.
    pub cluster: String,
    /// Where records, claims and the boot number are kept.
    pub state_dir: PathBuf,
    /// The unix socket of the admin API.
    pub socket: PathBuf,
    /// Where `/metrics`, `/healthz`, `/readyz` and the status page are served. Port 0 is any free one.
    pub http: SocketAddr,
    /// The UDP port of the overlay (VXLAN), the same on every node.
    pub data_path_port: u16,
    /// Stack files that are applied at the start, in order.
    pub stacks: Vec<PathBuf>,
    /// Whether a Docker engine is followed, and which.
    pub docker: DockerChoice,
    /// Which plane is to forward. The relay serves whatever is chosen; with `Ebpf` it is a problem if the fast path
    /// cannot.
    pub plane: PlaneChoice,
    /// Where the fast path's maps and links are pinned; a BPF file system is mounted where none is. One agent to a
    /// directory.
    pub bpf_dir: PathBuf,
    /// How many flows the fast path knows at once, each of two directions; the kernel forgets those longest unused.
    pub fast_path_flows: u32,
    /// Where names that are not ours are asked for; empty: those of `/etc/resolv.conf`,
    /// which is read again when it changes.
    pub dns_upstream: Vec<SocketAddr>,
    /// The UDP and TCP port of DNS on the gateway addresses, and at `dns_address`.
    pub dns_port: u16,
    /// An address that the agent gives the node, the same on every node, where its containers and its own
    /// processes ask for names. `None`: only tasks can ask, at gateway addresses.
    pub dns_address: Option<Ipv4Addr>,
    /// How log lines look.
    pub log_format: LogFormat,
    /// Which log lines are written: a level, or directives as `tracing_subscriber::EnvFilter` reads them.
    pub log: String,
    /// How many connections and UDP flows the relay carries at once; more are refused, and counted.
    pub max_connections: usize,
}

/// Which Docker engine is followed: what it and its Swarm run is served.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum DockerChoice {
    /// The one at [`DEFAULT_DOCKER`], if there is one.
    #[default]
    Auto,
    /// None.
    Off,
    /// The one at this unix socket; it is a problem if it does not answer.
    At(PathBuf),
}

impl DockerChoice {
    /// The socket of the engine that is followed.
    pub fn socket(&self) -> Option<&Path> {
        match self {
            Self::Auto => Some(Path::new(DEFAULT_DOCKER)),
            Self::Off => None,
            Self::At(socket) => Some(socket),
        }
    }
}

/// How log lines look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object to a line.
    Json,
}

/// One thing that is wrong with what the agent was told.
///
/// Displayed as `/etc/portolan.toml:3: data_path_port: what is wrong; what to do about it`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct ConfigProblem {
    /// Where it came from: `/etc/portolan.toml:3: data_path_port`, `PORTOLAN_HTTP`, `--http`, or the key
    /// alone if it was given nowhere.
    pub place: String,
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    pub remedy: String,
}

impl fmt::Display for ConfigProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}; {}", self.place, self.message, self.remedy)
    }
}

#[cfg(test)]
mod tests;
