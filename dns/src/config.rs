//! What the server is told, and what can go wrong with it.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use ipnetwork::IpNetwork;

/// Where names that are not ours are asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Upstreams {
    /// These resolvers, in this order. None: such queries get SERVFAIL.
    Explicit(Vec<SocketAddr>),
    /// The `nameserver` lines of a file in the format of resolv.conf(5), port 53. It is read again
    /// within two seconds of a change.
    ResolvConf(PathBuf),
}

impl Default for Upstreams {
    fn default() -> Self {
        Self::ResolvConf(PathBuf::from("/etc/resolv.conf"))
    }
}

/// How names are served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DnsConfig {
    /// The port on each gateway address, UDP and TCP.
    pub port: u16,
    /// An address of this node at which all its containers can ask, and its own processes; see
    /// [`crate::Askers`] for who gets which names there. `None`: no such address.
    pub node_address: Option<Ipv4Addr>,
    /// Where names that are not ours are asked for. This server's own listeners among them are left
    /// out, or it would ask itself.
    pub upstreams: Upstreams,
    /// How long clients may keep task addresses, and the absence of names. Whole seconds.
    pub task_ttl: Duration,
    /// How long clients may keep VIPs. Whole seconds.
    pub vip_ttl: Duration,
    /// How long upstreams are asked for an answer; one attempt takes a third of it at most. Stub
    /// resolvers give up after 5 s (resolv.conf(5)), so it is better less.
    pub forward_timeout: Duration,
    /// How many forwarded queries may be under way at once; more get SERVFAIL.
    pub max_forwards: usize,
    /// How many upstream answers are kept for their TTL; 0 keeps none.
    pub cache_entries: usize,
    /// Clients that are answered on every network, besides the network's own subnet and this node.
    pub allow: Vec<IpNetwork>,
}

impl Default for DnsConfig {
    fn default() -> Self {
        Self {
            port: 53,
            node_address: None,
            upstreams: Upstreams::default(),
            task_ttl: Duration::from_secs(5),
            vip_ttl: Duration::from_mins(1),
            forward_timeout: Duration::from_millis(4500),
            max_forwards: 512,
            cache_entries: 4096,
            allow: Vec::new(),
        }
    }
}

/// Why the server does not run. In no case has anything been bound that stays so.
#[derive(Debug, thiserror::Error)]
pub enum DnsError {
    /// A setting that cannot work.
    #[error("dns.{key}: {reason}")]
    Config {
        /// The field of [`DnsConfig`].
        key: &'static str,
        /// What is wrong and what to do.
        reason: &'static str,
    },
    /// A part of the server panicked.
    #[error("a task of the DNS server died")]
    Task(#[source] io::Error),
}
