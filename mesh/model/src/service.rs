//! A service: what a set of equal tasks offers, and how it is to be served.

use std::net::Ipv4Addr;

use ipnetwork::IpNetwork;
use minicbor::{Decode, Encode};
use serde::{Deserialize, Serialize};

use crate::{NetworkName, PublishedPort, ServiceId};

/// How the name of a service resolves.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Encode, Decode, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
#[cbor(index_only)]
pub enum EndpointMode {
    /// To one virtual address per network, balanced by each node.
    #[default]
    #[n(0)]
    Vip,
    /// To the addresses of its tasks, rotated.
    #[n(1)]
    Dnsrr,
}

/// How a frontend chooses the backend of a new flow.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Encode, Decode, Serialize, Deserialize,
)]
#[serde(rename_all = "kebab-case")]
#[cbor(index_only)]
pub enum Balancing {
    /// In turn, in proportion to the weights.
    #[default]
    #[n(0)]
    RoundRobin,
    /// The one with the fewest flows from this node.
    #[n(1)]
    LeastConnections,
    /// By the client's address: the same client reaches the same task.
    #[n(2)]
    SourceHash,
}

/// The PROXY protocol (HAProxy's specification) spoken to the backends of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Encode, Decode, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cbor(index_only)]
pub enum ProxyProtocol {
    /// The text form.
    #[n(1)]
    V1,
    /// The binary form, for TCP and UDP.
    #[n(2)]
    V2,
}

/// Which plane is to serve a service.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Encode, Decode, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
#[cbor(index_only)]
pub enum PlaneChoice {
    /// The fastest one that can.
    #[default]
    #[n(0)]
    Auto,
    /// The eBPF fast path.
    #[n(1)]
    Ebpf,
    /// The userspace relay.
    #[n(2)]
    Relay,
}

/// What a health check asks a task.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Encode, Decode, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "type")]
pub enum HealthProbe {
    /// Accept a TCP connection.
    #[n(0)]
    Tcp {
        /// The port; 0 is the target port of the first published TCP port.
        #[n(0)]
        port: u16,
    },
    /// Answer `GET path` with the expected status.
    #[n(1)]
    Http {
        /// The port; 0 is the target port of the first published TCP port.
        #[n(0)]
        port: u16,
        /// The path, with its leading slash.
        #[n(1)]
        path: String,
        /// The status that means healthy; 0 is any of 200-399.
        #[n(2)]
        status: u16,
    },
}

/// How the health of a service's tasks is found out, by the node that they run on.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Encode, Decode, Serialize, Deserialize)]
pub struct HealthCheck {
    /// What is asked.
    #[n(0)]
    pub probe: HealthProbe,
    /// Milliseconds from one probe to the next.
    #[n(1)]
    pub interval_ms: u32,
    /// Milliseconds until a probe without an answer has failed.
    #[n(2)]
    pub timeout_ms: u32,
    /// Successes in a row that make a task healthy.
    #[n(3)]
    pub rise: u8,
    /// Failures in a row that make it unhealthy.
    #[n(4)]
    pub fall: u8,
}

/// A service's place on one network.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Encode, Decode, Serialize, Deserialize)]
pub struct ServiceNetwork {
    /// The network.
    #[n(0)]
    pub name: NetworkName,
    /// Further names of the service there, each one DNS label or dotted.
    #[n(1)]
    #[cbor(default)]
    pub aliases: Vec<String>,
    /// Its virtual address there; `None` with [`EndpointMode::Dnsrr`] or before one is claimed.
    #[n(2)]
    pub vip: Option<Ipv4Addr>,
}

/// A service as declared. Of several declarations the one with the greatest `spec_version` counts.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Encode, Decode, Serialize, Deserialize)]
pub struct Service {
    /// The identity under which declarations meet.
    #[n(0)]
    pub id: ServiceId,
    /// The name that users and DNS see: `web`, `shop_web`.
    #[n(1)]
    pub name: String,
    /// The networks that its tasks are on, the ingress network not among them.
    #[n(2)]
    #[cbor(default)]
    pub networks: Vec<ServiceNetwork>,
    /// The ports published.
    #[n(3)]
    #[cbor(default)]
    pub ports: Vec<PublishedPort>,
    /// VIP or DNS round robin.
    #[n(4)]
    #[cbor(default)]
    pub endpoint_mode: EndpointMode,
    /// The choice of a backend.
    #[n(5)]
    #[cbor(default)]
    pub balancing: Balancing,
    /// Prefer tasks of the node that the flow entered, while it has any.
    #[n(6)]
    #[cbor(default)]
    pub local_first: bool,
    /// Milliseconds that a draining task keeps its flows.
    #[n(7)]
    pub drain_ms: u32,
    /// Milliseconds after which an idle TCP connection is ended by RST; `None` is never.
    #[n(8)]
    pub tcp_idle_ms: Option<u32>,
    /// Milliseconds after which an idle UDP flow is forgotten.
    #[n(9)]
    pub udp_idle_ms: u32,
    /// How tasks are checked; `None`: a registered task is healthy.
    #[n(10)]
    pub health: Option<HealthCheck>,
    /// PROXY protocol towards the tasks.
    #[n(11)]
    pub proxy_protocol: Option<ProxyProtocol>,
    /// The plane asked for.
    #[n(12)]
    #[cbor(default)]
    pub plane: PlaneChoice,
    /// The clients that may connect to the published ports; empty is everyone.
    #[n(13)]
    #[cbor(default, with = "crate::record::cbor_networks")]
    pub allow: Vec<IpNetwork>,
    /// Rises with every change of the declaration.
    #[n(14)]
    pub spec_version: u64,
    /// When the service was first declared, Unix milliseconds; the older of two keeps a contested port or VIP.
    #[n(15)]
    pub created_ms: u64,
    /// A declaration that the service is gone.
    #[n(16)]
    #[cbor(default)]
    pub removed: bool,
    /// The stack it belongs to, if any.
    #[n(17)]
    pub stack: Option<String>,
    /// Its tasks listen on IPv6 too: IPv6 clients are to reach them at their own IPv6 addresses
    /// ([`crate::ipv6_of`]). Without it they are served over IPv4, by the relay.
    #[n(18)]
    #[cbor(default)]
    #[serde(default)]
    pub ipv6: bool,
}

impl Service {
    /// How long a draining task keeps its flows unless the service says otherwise.
    pub const DEFAULT_DRAIN_MS: u32 = 10_000;
    /// How long a UDP flow without packets is remembered unless the service says otherwise.
    pub const DEFAULT_UDP_IDLE_MS: u32 = 30_000;

    /// A service with nothing but defaults, on no network and with no port.
    pub fn new(id: ServiceId) -> Self {
        Self {
            name: id.as_str().to_owned(),
            id,
            networks: Vec::new(),
            ports: Vec::new(),
            endpoint_mode: EndpointMode::default(),
            balancing: Balancing::default(),
            local_first: false,
            drain_ms: Self::DEFAULT_DRAIN_MS,
            tcp_idle_ms: None,
            udp_idle_ms: Self::DEFAULT_UDP_IDLE_MS,
            health: None,
            proxy_protocol: None,
            plane: PlaneChoice::default(),
            allow: Vec::new(),
            spec_version: 0,
            created_ms: 0,
            removed: false,
            stack: None,
            ipv6: false,
        }
    }

    /// Whether its tasks need an endpoint on the ingress network.
    pub fn on_ingress(&self) -> bool {
        !self.ports.is_empty()
    }

    /// The networks that a task of the service is attached to, the ingress network first if it is one.
    pub fn task_networks(&self) -> impl Iterator<Item = NetworkName> + '_ {
        self.on_ingress()
            .then(NetworkName::ingress)
            .into_iter()
            .chain(self.networks.iter().map(|n| n.name.clone()))
    }
}
