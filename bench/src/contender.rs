//! Those that are compared.

use std::net::SocketAddr;

use anyhow::Result;

use crate::{
    layout::{DIRECT_TASK, Layout},
    measure::{Measure, Traffic},
    peers,
};

/// A way from the client to a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Contender {
    /// The client has a route to the task, through the entry node: nothing is rewritten.
    Direct,
    /// Portolan's eBPF plane, the task on another node.
    FastRemote,
    /// The same, the task on the entry node: no tunnel.
    FastLocal,
    /// Portolan's userspace plane, the task on another node.
    RelayRemote,
    /// The same, the task on the entry node: no tunnel.
    RelayLocal,
    /// nftables: DNAT in turns, and SNAT.
    Nft,
    /// HAProxy in TCP mode.
    HaProxy,
    /// nginx with its stream module.
    Nginx,
}

impl Contender {
    /// All, in the order in which they take turns.
    pub(crate) const ALL: [Self; 8] = [
        Self::Direct,
        Self::FastRemote,
        Self::FastLocal,
        Self::RelayRemote,
        Self::RelayLocal,
        Self::Nft,
        Self::HaProxy,
        Self::Nginx,
    ];

    /// Its name in the results.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct routing",
            Self::FastRemote => "portolan fast path, remote task",
            Self::FastLocal => "portolan fast path, local task",
            Self::RelayRemote => "portolan relay, remote task",
            Self::RelayLocal => "portolan relay, local task",
            Self::Nft => "nft DNAT + SNAT",
            Self::HaProxy => "HAProxy TCP, 2 threads, splice",
            Self::Nginx => "nginx stream, 2 workers",
        }
    }

    /// Whether it can be measured so: HAProxy carries no datagrams.
    pub(crate) fn carries(self, measure: Measure) -> bool {
        self != Self::HaProxy || measure.traffic() != Traffic::Datagrams
    }

    /// Its port on the entry node; direct routing has none and asks the task itself.
    pub(crate) fn port(self, traffic: Traffic) -> u16 {
        let number = match self {
            Self::Direct => return traffic.task_port(),
            Self::RelayRemote => 1,
            Self::RelayLocal => 2,
            Self::Nft => 3,
            Self::HaProxy => 4,
            Self::Nginx => 5,
            Self::FastRemote => 6,
            Self::FastLocal => 7,
        };
        traffic.first_port() + number
    }

    /// Where the client addresses this traffic.
    pub(crate) fn frontend(self, layout: &Layout, traffic: Traffic) -> SocketAddr {
        match self {
            Self::Direct => (DIRECT_TASK, traffic.task_port()).into(),
            _ => layout.entry().at(self.port(traffic)),
        }
    }

    /// Brings up what must be there in its own turn only: a NAT makes the kernel track the connections
    /// of everyone.
    pub(crate) fn begin(self, layout: &Layout) -> Result<()> {
        match self {
            Self::Nft => peers::nft_up(layout.entry(), layout.server(self).address, layout.gateway),
            _ => Ok(()),
        }
    }

    /// Takes that down.
    pub(crate) fn end(self, layout: &Layout) -> Result<()> {
        match self {
            Self::Nft => peers::nft_down(layout.entry()),
            _ => Ok(()),
        }
    }
}
