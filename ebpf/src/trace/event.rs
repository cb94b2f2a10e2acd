//! Events as they are read.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use portolan_model::Protocol;
use rustix::net::{AddressFamily, SocketType, netdevice::index_to_name};

use crate::{
    COUNTERS, Counter,
    layout::{
        BackendLabel, Event, FLOW_BACK, FLOW_DELIVER, FLOW_FORWARD, FLOW_RELAY, FLOW_RETURN,
        FrontendLabel, ROUTED, Tuple, protocol, read_end, read_text,
    },
    maps::Hash,
};

const TCX_DROP: u8 = 2;
const TCX_REDIRECT: u8 = 7;
/// `enum what` of `bpf/packet.h`.
const ICMP_ERROR: u8 = 2;

/// What one program did with one packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceEvent {
    /// When, by the monotonic clock.
    pub at: Duration,
    /// On which processor.
    pub cpu: u32,
    /// Which program.
    pub program: Program,
    /// The link that the packet came by; its number, where it is not there any more.
    pub link: String,
    /// `None` is one that the fast path does not know.
    pub protocol: Option<Protocol>,
    /// The packet as it came.
    pub before: Ends,
    /// The packet as it went on.
    pub after: Ends,
    /// Its length from the IP header on, in bytes. Several packets may travel as one.
    pub length: u32,
    /// TCP's flags (RFC 9293, section 3.1).
    pub tcp_flags: u8,
    /// Whether it is an ICMP error: the ends are then those of a packet that goes the error's own way.
    pub icmp_error: bool,
    /// Whether it is the first of its flow in this direction.
    pub first: bool,
    /// What became of it.
    pub verdict: Verdict,
}

/// A program of the fast path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    /// On links by which clients come.
    FromOutside,
    /// On the VXLAN links.
    FromMesh,
    /// On the tasks' links.
    FromTask,
}

/// Where a packet is from, and where to. A port that is not in the packet is 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ends {
    /// Source.
    pub from: SocketAddr,
    /// Destination.
    pub to: SocketAddr,
}

/// What became of a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// A client's packet went to a task.
    Forwarded {
        /// The task.
        target: Target,
        /// Where that is.
        way: Way,
    },
    /// Another node's client's packet was handed to a task of this node.
    Delivered {
        /// The underlay address of the node that the client came to.
        node: Ipv4Addr,
    },
    /// A task's packet went by the tunnel to the node that its client came to.
    SentBack {
        /// The underlay address of that node.
        node: Ipv4Addr,
    },
    /// A task's packet was given to its client.
    GivenBack {
        /// The task.
        target: Target,
        /// Where that is.
        way: Way,
    },
    /// The relay has the flow.
    Relayed,
    /// It was left to the kernel; without a reason it is not addressed to a frontend of the fast path.
    Left(Option<Counter>),
    /// It was dropped; without a reason by the kernel itself.
    Dropped(Option<Counter>),
    /// It was redirected, by a flow that was gone when it was looked for.
    Redirected,
}

/// Where the task of a flow is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// On this node.
    Here,
    /// Through the tunnel to the node with this underlay address, which has the fast path.
    Tunnel(Ipv4Addr),
    /// On another node, as the kernel routes between two tasks of one network.
    Routed,
}

/// The backend of a flow. What is not known any more is empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The service's name.
    pub service: String,
    /// The task's id.
    pub task: String,
    /// The task's name.
    pub name: String,
}

impl TraceEvent {
    pub(super) fn read(
        event: &Event,
        backends: &Hash<u32, BackendLabel>,
        frontends: &Hash<u32, FrontendLabel>,
    ) -> Self {
        let label = backends.get(&event.backend, 0).unwrap_or_default();
        let frontend = frontends.get(&event.frontend, 0).unwrap_or_default();
        let target = || Target {
            service: read_text(&frontend.name),
            task: read_text(&label.task),
            name: read_text(&label.name),
        };
        let node = Ipv4Addr::from(event.node);
        let way = match event.node {
            0 => Way::Here,
            ROUTED => Way::Routed,
            _ => Way::Tunnel(node),
        };
        let reason = || {
            COUNTERS
                .get(usize::from(event.reason).checked_sub(1)?)
                .copied()
        };
        let verdict = match (event.action, event.kind) {
            (TCX_DROP, _) => Verdict::Dropped(reason()),
            (TCX_REDIRECT, FLOW_FORWARD) => Verdict::Forwarded {
                target: target(),
                way,
            },
            (TCX_REDIRECT, FLOW_RETURN) => Verdict::GivenBack {
                target: target(),
                way,
            },
            (TCX_REDIRECT, FLOW_DELIVER) => Verdict::Delivered { node },
            (TCX_REDIRECT, FLOW_BACK) => Verdict::SentBack { node },
            (TCX_REDIRECT, _) => Verdict::Redirected,
            (_, FLOW_RELAY) if event.reason == 0 => Verdict::Relayed,
            _ => Verdict::Left(reason()),
        };
        Self {
            at: Duration::from_nanos(event.time),
            cpu: event.cpu,
            program: match event.program {
                1 => Program::FromOutside,
                2 => Program::FromMesh,
                _ => Program::FromTask,
            },
            link: link_name(event.ifindex),
            protocol: protocol(event.before.proto),
            before: ends(&event.before),
            after: ends(&event.after),
            length: event.length,
            tcp_flags: event.tcp,
            icmp_error: event.what == ICMP_ERROR,
            first: event.first != 0,
            verdict,
        }
    }
}

fn ends(tuple: &Tuple) -> Ends {
    Ends {
        from: read_end(tuple.saddr, tuple.sport),
        to: read_end(tuple.daddr, tuple.dport),
    }
}

fn link_name(index: u32) -> String {
    let find = || {
        let socket = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None)?;
        index_to_name(socket, index)
    };
    find().unwrap_or_else(|_| index.to_string())
}
