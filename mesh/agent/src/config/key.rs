//! The keys of the configuration: one table for the file, the environment, the flags and the help.

use std::net::Ipv4Addr;

/// Where the admin API listens unless told otherwise.
pub const DEFAULT_SOCKET: &str = "/run/portolan/portolan.sock";

/// Where a Docker engine listens unless told otherwise.
pub const DEFAULT_DOCKER: &str = "/var/run/docker.sock";

/// Where names are asked for unless told otherwise: a link-local address (RFC 3927) that nothing else takes by
/// custom, as 169.254.169.254 is taken.
pub(super) const DEFAULT_DNS_ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 77, 53);

/// A key of the configuration. In the file it is [`Key::name`], in the environment [`Key::variable`], and
/// on the command line [`Key::flag`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// The node's name.
    Name,
    /// Its address for other nodes.
    Advertise,
    /// The port of gossip.
    GossipPort,
    /// Members to join by.
    Join,
    /// The gossip keys.
    KeyFile,
    /// Gossip without a key.
    Insecure,
    /// The cluster's name.
    Cluster,
    /// What survives a restart.
    StateDir,
    /// The admin API.
    Socket,
    /// Metrics, health and the status page.
    Http,
    /// The port of the overlay.
    DataPathPort,
    /// Stack files applied at the start.
    Stack,
    /// The Docker engine.
    Docker,
    /// The plane asked for.
    Plane,
    /// Where the fast path is pinned.
    BpfDir,
    /// The limit of the fast path.
    FastPathFlows,
    /// Resolvers for other names.
    DnsUpstream,
    /// The port of DNS.
    DnsPort,
    /// Where a node's containers ask for names.
    DnsAddress,
    /// How log lines look.
    LogFormat,
    /// Which log lines are written.
    Log,
    /// The limit of the relay.
    MaxConnections,
}

/// What a key takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    /// A string.
    Text,
    /// A whole number.
    Number,
    /// `true` or `false`; as a flag without a value, `true`.
    Switch,
    /// `true`, `false` or a string; as a flag without a value, `true`.
    TextOrSwitch,
    /// Strings; from the environment and in one flag, separated by commas.
    List,
}

impl Key {
    /// Every key, in the order of the help.
    pub const ALL: [Self; 22] = [
        Self::Name,
        Self::Advertise,
        Self::GossipPort,
        Self::Join,
        Self::KeyFile,
        Self::Insecure,
        Self::Cluster,
        Self::StateDir,
        Self::Socket,
        Self::Http,
        Self::DataPathPort,
        Self::Stack,
        Self::Docker,
        Self::Plane,
        Self::BpfDir,
        Self::FastPathFlows,
        Self::DnsUpstream,
        Self::DnsPort,
        Self::DnsAddress,
        Self::LogFormat,
        Self::Log,
        Self::MaxConnections,
    ];

    /// As it stands in the file: `data_path_port`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Name => "name",
            Self::Advertise => "advertise",
            Self::GossipPort => "gossip_port",
            Self::Join => "join",
            Self::KeyFile => "key_file",
            Self::Insecure => "insecure",
            Self::Cluster => "cluster",
            Self::StateDir => "state_dir",
            Self::Socket => "socket",
            Self::Http => "http",
            Self::DataPathPort => "data_path_port",
            Self::Stack => "stack",
            Self::Docker => "docker",
            Self::Plane => "plane",
            Self::BpfDir => "bpf_dir",
            Self::FastPathFlows => "fast_path_flows",
            Self::DnsUpstream => "dns_upstream",
            Self::DnsPort => "dns_port",
            Self::DnsAddress => "dns_address",
            Self::LogFormat => "log_format",
            Self::Log => "log",
            Self::MaxConnections => "max_connections",
        }
    }

    /// As it stands in the environment: `PORTOLAN_DATA_PATH_PORT`.
    pub fn variable(self) -> String {
        format!("PORTOLAN_{}", self.name().to_ascii_uppercase())
    }

    /// As a flag: `--data-path-port`.
    pub fn flag(self) -> String {
        format!("--{}", self.name().replace('_', "-"))
    }

    /// What it takes.
    pub(crate) const fn shape(self) -> Shape {
        match self {
            Self::GossipPort
            | Self::DataPathPort
            | Self::FastPathFlows
            | Self::DnsPort
            | Self::MaxConnections => Shape::Number,
            Self::Insecure => Shape::Switch,
            Self::Docker => Shape::TextOrSwitch,
            Self::Join | Self::Stack | Self::DnsUpstream => Shape::List,
            Self::Name
            | Self::Advertise
            | Self::KeyFile
            | Self::Cluster
            | Self::StateDir
            | Self::Socket
            | Self::Http
            | Self::Plane
            | Self::BpfDir
            | Self::DnsAddress
            | Self::LogFormat
            | Self::Log => Shape::Text,
        }
    }

    /// What it is called in the help: `PORT`.
    pub(crate) const fn placeholder(self) -> &'static str {
        match self {
            Self::Name | Self::Cluster => "NAME",
            Self::Advertise => "IP",
            Self::GossipPort | Self::DataPathPort | Self::DnsPort => "PORT",
            Self::Join => "HOST[:PORT],...",
            Self::KeyFile | Self::Stack => "FILE",
            Self::Insecure => "BOOL",
            Self::StateDir | Self::BpfDir => "DIR",
            Self::Socket | Self::Docker => "PATH",
            Self::Http => "IP:PORT",
            Self::Plane => "PLANE",
            Self::DnsUpstream => "IP[:PORT],...",
            Self::DnsAddress => "IP|none",
            Self::LogFormat => "FORMAT",
            Self::Log => "FILTER",
            Self::FastPathFlows | Self::MaxConnections => "N",
        }
    }

    /// One line of help, with the default.
    pub(crate) const fn help(self) -> &'static str {
        match self {
            Self::Name => "The node's name, unique in the cluster [default: the host name]",
            Self::Advertise => {
                "This machine's address for other nodes [default: its only global one, of IPv4 if it has any]"
            }
            Self::GossipPort => "UDP and TCP port of gossip [default: 7946; beside Docker 7948]",
            Self::Join => "Other members, by address or name; none for the first node",
            Self::KeyFile => {
                "The gossip keys, one to a line, closed to others (see `portolan keygen`)"
            }
            Self::Insecure => "Gossip without a key: whoever reaches the port can take part",
            Self::Cluster => "The cluster's name; nodes of another are refused [default: portolan]",
            Self::StateDir => "What survives a restart [default: /var/lib/portolan]",
            Self::Socket => "The agent's admin socket [default: /run/portolan/portolan.sock]",
            Self::Http => "Metrics, health and the status page [default: 127.0.0.1:7947]",
            Self::DataPathPort => {
                "UDP port of the overlay, the same on all nodes [default: 4789; beside Docker 4799]"
            }
            Self::Stack => "Stack file to apply at the start; may be given again",
            Self::Docker => {
                "Follow the Docker engine at this socket [default: /var/run/docker.sock, if it is there]"
            }
            Self::Plane => "What forwards: auto, ebpf or relay [default: auto]",
            Self::BpfDir => "Where the fast path is pinned [default: /sys/fs/bpf/portolan]",
            Self::FastPathFlows => "Flows that the fast path knows at once [default: 524288]",
            Self::DnsUpstream => "Resolvers for other names [default: those of /etc/resolv.conf]",
            Self::DnsPort => "Port of DNS on the gateway addresses [default: 53]",
            Self::DnsAddress => {
                "Where containers of this node ask for names, by --dns [default: 169.254.77.53]"
            }
            Self::LogFormat => "text or json [default: text]",
            Self::Log => {
                "A level, or directives such as info,portolan_gossip=debug [default: info]"
            }
            Self::MaxConnections => {
                "Connections and UDP flows carried at once; more are refused [default: 100000]"
            }
        }
    }
}
