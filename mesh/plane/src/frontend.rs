//! What a plane is told to serve.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use imbl::OrdMap;
use ipnetwork::{IpNetwork, Ipv4Network};
use portolan_model::{
    Balancing, NetworkName, NodeId, PlaneChoice, Protocol, ProxyProtocol, ServiceId, TaskId,
};
use serde::Serialize;

/// The address part of a frontend.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FrontendAddress {
    /// Every address of the node, IPv4 and IPv6, loopback included.
    Node,
    /// One address, which may come to the node later.
    Ip(IpAddr),
    /// A service's virtual address on a network that this node is on; only that network's tasks, and
    /// processes of the node itself, reach it.
    Vip(NetworkName, IpAddr),
}

/// Address, port and protocol that traffic is addressed to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Frontend {
    /// The address.
    pub address: FrontendAddress,
    /// The port; 0 is every port, as VIPs have it.
    pub port: u16,
    /// TCP or UDP.
    pub protocol: Protocol,
}

impl fmt::Display for Frontend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.address {
            FrontendAddress::Node => f.write_str("*")?,
            FrontendAddress::Ip(IpAddr::V6(ip)) | FrontendAddress::Vip(_, IpAddr::V6(ip)) => {
                write!(f, "[{ip}]")?;
            }
            FrontendAddress::Ip(ip) | FrontendAddress::Vip(_, ip) => write!(f, "{ip}")?,
        }
        match self.port {
            0 => write!(f, ":*/{}", self.protocol),
            port => write!(f, ":{port}/{}", self.protocol),
        }
    }
}

/// Whether a backend takes new flows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum BackendState {
    /// It takes new flows.
    Active,
    /// It keeps the flows that it has.
    Draining,
}

/// Where a frontend's new flows may go.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Backend {
    /// The task; with the frontend it identifies the backend through changes of its state or weight.
    pub task: TaskId,
    /// The task's name for metrics and display: `web.1`.
    pub name: String,
    /// The node that it runs on.
    pub node: NodeId,
    /// Whether that is this node.
    pub local: bool,
    /// Its address.
    pub ip: IpAddr,
    /// Its IPv6 address, at which it serves IPv6 clients from outside. `None`: they are served at
    /// [`Backend::ip`], by a plane that connects by itself.
    pub ipv6: Option<Ipv6Addr>,
    /// Its port; 0 is the one that the client dialled.
    pub port: u16,
    /// Whether it takes new flows.
    pub state: BackendState,
    /// Its share of new flows, relative to the others; 0 is none.
    pub weight: u16,
}

/// How a frontend treats its flows. All times are milliseconds.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub struct Policy {
    /// The choice of a backend.
    pub balancing: Balancing,
    /// Backends of this node first, while there are any.
    pub local_first: bool,
    /// After this long without a byte a TCP connection is ended by RST to both sides; `None` is never.
    pub tcp_idle_ms: Option<u32>,
    /// After this long without a packet a UDP flow is forgotten.
    pub udp_idle_ms: u32,
    /// PROXY protocol towards the backends.
    pub proxy_protocol: Option<ProxyProtocol>,
    /// Clients that may connect; empty is everyone.
    pub allow: Vec<IpNetwork>,
    /// The plane asked for.
    pub plane: PlaneChoice,
}

/// A frontend with all that a plane has to know of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub struct FrontendSpec {
    /// Its key.
    pub frontend: Frontend,
    /// The service behind it.
    pub service: ServiceId,
    /// The service's name for metrics and display.
    pub service_name: String,
    /// Its backends, ordered by task id; those that are neither active nor draining are not among them.
    pub backends: Vec<Backend>,
    /// How its flows are treated.
    pub policy: Policy,
    /// From where a plane that connects by itself may do so.
    pub sources: Option<Sources>,
}

/// Addresses of this node for connections to backends: one source address runs out of ports at some
/// 28,000 connections to one backend.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub struct Sources {
    /// The backends that may be reached from them; to all others the kernel chooses.
    pub within: Ipv4Network,
    /// The addresses. One that is not configured yet is passed over.
    pub addresses: Vec<Ipv4Addr>,
}

/// What a plane serves, by frontend: the wanted state as [`crate::frontends`] computes it, or the
/// present one as a plane reports it. Persistent, so that what was made of another costs only what it does not share.
pub type Actual = OrdMap<Frontend, Arc<FrontendSpec>>;
