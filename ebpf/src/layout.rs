//! What is in the maps, as `bpf/layout.h` says it in C; a test compares the two. Addresses and ports are bytes in
//! network order, and so need no conversion; times are nanoseconds of the monotonic clock.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use portolan_model::Protocol;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `MAX_SOURCES` of `bpf/sockets.h`.
pub(crate) const MAX_SOURCES: usize = 16;

/// Declares a layout. Whatever has padding or a value that not all bytes are good for does not compile.
macro_rules! layouts {
    ($($(#[$doc:meta])* $name:ident = $c:literal { $($field:ident: $type:ty,)* })*) => {
        $(
            $(#[$doc])*
            #[repr(C)]
            #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, FromBytes, IntoBytes, Immutable, KnownLayout)]
            pub(crate) struct $name { $(pub(crate) $field: $type,)* }

            impl Default for $name {
                fn default() -> Self {
                    <Self as zerocopy::FromZeros>::new_zeroed()
                }
            }

            // SAFETY: the derives above show that it is plain bytes without padding.
            #[expect(unsafe_code, reason = "aya's marker for what may go into a map")]
            unsafe impl aya::Pod for $name {}
        )*

        /// Name in C, size, and the fields with their offsets and sizes.
        #[cfg(test)]
        pub(crate) fn all() -> Vec<(&'static str, usize, Vec<(&'static str, usize, usize)>)> {
            vec![$((
                $c,
                size_of::<$name>(),
                vec![$((stringify!($field), std::mem::offset_of!($name, $field), size_of::<$type>()),)*],
            ),)*]
        }
    };
}

/// `struct address`: IPv6, or IPv4 mapped into it; all zero is none.
pub(crate) type Address = [u8; 16];

layouts! {
    /// A packet's way.
    Tuple = "tuple" {
        saddr: Address,
        daddr: Address,
        sport: [u8; 2],
        dport: [u8; 2],
        proto: u8,
        pad: [u8; 3],
    }
    /// What a packet of a flow is to become.
    Flow = "flow" {
        created: u64,
        seen: u64,
        packets: u64,
        bytes: u64,
        ip: Address,
        port: [u8; 2],
        kind: u8,
        closing: u8,
        ip_delta: u32,
        port_delta: u32,
        node: u32,
        network: u32,
        ifindex: u32,
        backend: u32,
        generation: u32,
        macs: [u8; 12],
        frontend: u32,
        idle_ms: u32,
        ack: u32,
        answered: u8,
        again: u8,
        sent_back: u8,
        pad: [u8; 5],
    }
    /// A frontend's address; none is every address of the node.
    FrontendKey = "frontend_key" {
        ip: Address,
        port: [u8; 2],
        proto: u8,
        pad: u8,
    }
    /// Where the slots of a frontend are.
    FrontendValue = "frontend" {
        id: u32,
        generation: u32,
        slots: u32,
        network: u32,
        flags: u32,
        idle_ms: u32,
        table: u32,
        members: u32,
    }
    /// A client or a prefix of clients on a frontend's list.
    Listed = "listed" {
        frontend: u32,
        ip: Address,
    }
    /// Where a piece of a frontend's table or of its members is.
    ChunkKey = "chunk_key" {
        frontend: u32,
        generation: u32,
        number: u32,
    }
    /// A piece of a list of backends.
    Chunk = "chunk" {
        backends: [u32; 64],
    }
    /// One turn of round robin.
    SlotKey = "slot_key" {
        frontend: u32,
        generation: u32,
        slot: u32,
    }
    /// A backend of one frontend.
    BackendValue = "backend" {
        passed_over: u64,
        answered: u64,
        ip: Address,
        ip6: Address,
        port: [u8; 2],
        draining: u16,
        node: u32,
        ifindex: u32,
        macs: [u8; 12],
        generation: u32,
        network: u32,
        weight: u32,
        others: u32,
    }
    /// What a backend's flows have moved.
    BackendCounters = "backend_counters" {
        flows: u64,
        bytes_in: u64,
        bytes_out: u64,
        failures: u64,
    }
    /// A task of this node.
    TaskValue = "task" {
        ifindex: u32,
        macs: [u8; 12],
        network: u32,
    }
    /// What the agent has to know of a backend.
    BackendLabel = "backend_label" {
        node: [u8; 16],
        task: [u8; 64],
        name: [u8; 128],
        frontend: u32,
        weight: u16,
        local: u8,
        draining: u8,
    }
    /// What the agent has to know of a frontend.
    FrontendLabel = "frontend_label" {
        service: [u8; 64],
        name: [u8; 128],
        network: [u8; 64],
        tcp_idle_ms: u32,
        udp_idle_ms: u32,
        local_first: u32,
    }
    /// The node's addresses for connections of its processes to tasks of a network.
    Sources = "sources" {
        count: u32,
        ip: [[u8; 4]; MAX_SOURCES],
    }
    /// The agent's network namespace.
    HostValue = "host" {
        netns: u64,
    }
    /// A network of this node.
    NetworkValue = "network" {
        ifindex: u32,
        vni: u32,
        subnet: [u8; 4],
        mask: [u8; 4],
        underlay: u32,
        mtu: u32,
        gateway: [u8; 4],
        prefix: [u8; 12],
    }
    /// Whose packets are told.
    Traced = "traced" {
        until: u64,
        client: Address,
        frontend: Address,
        client_port: [u8; 2],
        frontend_port: [u8; 2],
        proto: u8,
        pad: [u8; 3],
    }
    /// One packet met by one program.
    Event = "event" {
        time: u64,
        before: Tuple,
        after: Tuple,
        cpu: u32,
        ifindex: u32,
        length: u32,
        node: u32,
        backend: u32,
        frontend: u32,
        program: u8,
        action: u8,
        reason: u8,
        kind: u8,
        what: u8,
        tcp: u8,
        first: u8,
        pad: u8,
    }
}

/// `FRONTEND_LISTED`: it has a list of clients that may begin flows.
pub(crate) const LISTED: u32 = 1;
/// `FRONTEND_LEAST`: a new flow goes to the backend with the fewest.
pub(crate) const LEAST: u32 = 2;
/// `FRONTEND_SOURCE`: the client's address decides.
pub(crate) const SOURCE: u32 = 4;

/// `FRONTEND_IPV6`: all backends that take flows have IPv6 addresses.
pub(crate) const IPV6: u32 = 8;

/// Client to frontend, at the node that the client came to.
pub(crate) const FLOW_FORWARD: u8 = 1;
/// Task to client, at the node that the client came to.
pub(crate) const FLOW_RETURN: u8 = 2;
/// Client to task, at the task's node.
pub(crate) const FLOW_DELIVER: u8 = 3;
/// Task to client, at the task's node.
pub(crate) const FLOW_BACK: u8 = 4;
/// Client to frontend: the relay has it.
pub(crate) const FLOW_RELAY: u8 = 5;

/// A protocol's number in the IP header.
pub(crate) const fn number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
    }
}

/// The protocol of a number; `None` is one that the fast path does not carry.
pub(crate) const fn protocol(number: u8) -> Option<Protocol> {
    match number {
        6 => Some(Protocol::Tcp),
        17 => Some(Protocol::Udp),
        _ => None,
    }
}

/// `ROUTED`: by the way that the kernel knows.
pub(crate) const ROUTED: u32 = u32::MAX;

/// An address as the tunnel's helpers want it: a number in host order.
pub(crate) const fn host_order(ip: Ipv4Addr) -> u32 {
    u32::from_be_bytes(ip.octets())
}

/// An address as the maps have it.
pub(crate) fn address(ip: impl Into<IpAddr>) -> Address {
    match ip.into() {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
        IpAddr::V6(ip) => ip.octets(),
    }
}

/// What [`address`] made so.
pub(crate) fn read_address(address: Address) -> IpAddr {
    Ipv6Addr::from(address).to_canonical()
}

/// An address with its port.
pub(crate) fn read_end(ip: Address, port: [u8; 2]) -> SocketAddr {
    (read_address(ip), u16::from_be_bytes(port)).into()
}

/// Text in a fixed place, cut where it does not fit.
pub(crate) fn text<const N: usize>(from: &str) -> [u8; N] {
    let mut place = [0; N];
    // The last byte stays zero.
    let mut end = from.len().min(N.saturating_sub(1));
    while !from.is_char_boundary(end) {
        end -= 1;
    }
    for (to, byte) in place.iter_mut().zip(from.as_bytes().iter().take(end)) {
        *to = *byte;
    }
    place
}

/// What [`text`] has put there.
pub(crate) fn read_text(place: &[u8]) -> String {
    let bytes = place.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod tests;
