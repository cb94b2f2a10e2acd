//! Choosing what must be unique in the cluster: VNIs, subnets, slices, VIPs and published ports.
//!
//! Each function looks at a snapshot and gives a free one, beginning where a hash of the asker's name
//! points: two nodes that choose at the same moment for the same object choose alike, and for different
//! objects they seldom meet. Where they do, [`crate::Catalog`] lets the older claim stand and the other
//! side claims again.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use ipnetwork::Ipv4Network;
use sha2::{Digest, Sha256};

use crate::{
    INGRESS_NETWORK, INGRESS_VNI, MacAddress, Network, NetworkName, Node, NodeId, PublishedPort,
    ServiceId, Slice, Snapshot,
};

/// Where subnets come from that no one chose: /20 each.
pub const SUBNET_POOL: (Ipv4Addr, u8) = (Ipv4Addr::new(10, 224, 0, 0), 12);
const POOL_SUBNET_PREFIX: u8 = 20;
/// The subnet of the built-in network.
pub const INGRESS_SUBNET: (Ipv4Addr, u8) = (Ipv4Addr::new(10, 208, 0, 0), 12);
/// Published ports that no one chose (Docker's range).
pub const PORT_RANGE: std::ops::RangeInclusive<u16> = 30000..=32767;

/// Nothing is left to choose from.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Exhausted {
    /// Every part of a network's subnet is claimed.
    #[error("network {network}: every slice of {subnet} is claimed; give it a larger subnet")]
    Slices {
        /// The network.
        network: NetworkName,
        /// Its subnet.
        subnet: Ipv4Network,
    },
    /// Every address of the part kept for VIPs is used.
    #[error("network {network}: no virtual address is left in {subnet}; give it a larger subnet")]
    Vips {
        /// The network.
        network: NetworkName,
        /// Its subnet.
        subnet: Ipv4Network,
    },
    /// The pool of subnets is used up.
    #[error(
        "no subnet is left in 10.224.0.0/12; give the network one of its own (ipam.config.subnet)"
    )]
    Subnets,
    /// The range of published ports is used up.
    #[error("no published port is left in 30000-32767; give the port a number")]
    Ports,
    /// An object that is not there cannot be chosen for.
    #[error("network {0} is not declared")]
    NoNetwork(NetworkName),
}

/// The built-in network, the same on every node without being declared by any.
pub fn ingress_network() -> Network {
    Network {
        name: NetworkName::ingress(),
        vni: INGRESS_VNI,
        subnet: network(INGRESS_SUBNET.0, INGRESS_SUBNET.1),
        internal: false,
        encrypted: false,
        spec_version: 0,
        created_ms: 0,
        removed: false,
        stack: None,
        own_range: None,
    }
}

/// The length of the slices of a subnet: a /24 of a large one, of a /24 a block of 16 addresses.
pub fn slice_prefix(subnet: Ipv4Network) -> u8 {
    (subnet.prefix() + 6).clamp(24, 28)
}

/// Where in a subnet the VIPs are: its last quarter, kept free of slices.
pub fn vip_range(subnet: Ipv4Network) -> Ipv4Network {
    let prefix = (subnet.prefix() + 2).min(32);
    let quarter = 1_u32.checked_shl(u32::from(32 - prefix)).unwrap_or(0);
    let start = subnet
        .network()
        .to_bits()
        .saturating_add(quarter.saturating_mul(3));
    network(Ipv4Addr::from_bits(start), prefix)
}

/// A VNI for a new network, 4097 to 2^24 - 1.
pub fn vni(snapshot: &Snapshot, name: &NetworkName) -> u32 {
    const FIRST: u32 = INGRESS_VNI + 1;
    const COUNT: u32 = (1 << 24) - FIRST;
    let start = hash(&["vni", name.as_str()]);
    probe(start, COUNT)
        .map(|i| FIRST + i)
        .find(|vni| {
            snapshot
                .networks
                .values()
                .all(|v| v.network.vni != *vni || v.network.name == *name)
        })
        .unwrap_or(FIRST)
}

/// A subnet for a new network that asked for none.
///
/// # Errors
/// The pool is used up.
pub fn subnet(snapshot: &Snapshot, name: &NetworkName) -> Result<Ipv4Network, Exhausted> {
    let pool = network(SUBNET_POOL.0, SUBNET_POOL.1);
    blocks(pool, POOL_SUBNET_PREFIX, hash(&["subnet", name.as_str()]))
        .find(|subnet| is_free(snapshot, name, *subnet))
        .ok_or(Exhausted::Subnets)
}

fn is_free(snapshot: &Snapshot, name: &NetworkName, wanted: Ipv4Network) -> bool {
    let mut others = snapshot
        .networks
        .values()
        .filter(|v| v.network.name != *name)
        .flat_map(|v| v.network.ranges());
    !others.any(|taken| taken.overlaps(wanted)) && node_within(snapshot, wanted).is_none()
}

/// A range for Portolan's own addresses on a network of which somebody else hands out the subnet.
///
/// # Errors
/// The pool is used up.
pub fn own_range(
    snapshot: &Snapshot,
    name: &NetworkName,
    subnet: Ipv4Network,
) -> Result<Ipv4Network, Exhausted> {
    let pool = network(SUBNET_POOL.0, SUBNET_POOL.1);
    blocks(pool, POOL_SUBNET_PREFIX, hash(&["subnet", name.as_str()]))
        .find(|range| !range.overlaps(subnet) && is_free(snapshot, name, *range))
        .ok_or(Exhausted::Subnets)
}

/// A node whose underlay address is within a subnet: a network with it would cut that node off.
pub fn node_within(snapshot: &Snapshot, subnet: Ipv4Network) -> Option<&Node> {
    let mut nodes = snapshot.nodes.values().map(AsRef::as_ref);
    nodes.find(|node| matches!(node.underlay, IpAddr::V4(ip) if subnet.contains(ip)))
}

/// A slice of a network for a node, free of everyone's claims.
///
/// # Errors
/// The network is not declared, or all of it is claimed.
pub fn slice(
    snapshot: &Snapshot,
    node: NodeId,
    name: &NetworkName,
    now_ms: u64,
) -> Result<Slice, Exhausted> {
    let declared = declared(snapshot, name)?;
    let range = declared.own_addresses();
    let vips = vip_range(range);
    let claims = snapshot.claimed.get(name).map_or(&[][..], Vec::as_slice);
    let (prefix, start) = match declared.own_range {
        // Tasks get their addresses elsewhere, and the node needs but one.
        Some(_) => (32, place_on_ingress(snapshot, node)),
        None => (
            slice_prefix(range),
            hash(&["slice", &node.to_string(), name.as_str()]),
        ),
    };
    blocks(range, prefix, start)
        .find(|block| {
            // The first address of all is no host's in the eyes of other software.
            block.network() != range.network()
                && !block.overlaps(vips)
                && !claims
                    .iter()
                    .any(|(_, claimed)| claimed.prefix.overlaps(*block))
        })
        .map(|prefix| Slice {
            prefix,
            claimed_ms: now_ms,
        })
        .ok_or(Exhausted::Slices {
            network: name.clone(),
            subnet: range,
        })
}

/// The number of a node's first slice of the ingress network. No other node has the same, so that nodes which
/// claim an address by it at the same moment do not meet.
fn place_on_ingress(snapshot: &Snapshot, node: NodeId) -> u64 {
    let claims = snapshot
        .claimed
        .get(&NetworkName::ingress())
        .into_iter()
        .flatten();
    let mut own = claims.filter(|(owner, _)| *owner == node);
    let first = own.next().map(|(_, slice)| slice.prefix.network());
    let distance = first.map_or(0, |ip| {
        ip.to_bits().saturating_sub(INGRESS_SUBNET.0.to_bits())
    });
    u64::from(distance >> (32 - slice_prefix(ingress_network().subnet)))
}

/// A virtual address for a service on a network.
///
/// # Errors
/// The network is not declared, or it has no free one.
pub fn vip(
    snapshot: &Snapshot,
    service: &ServiceId,
    name: &NetworkName,
) -> Result<Ipv4Addr, Exhausted> {
    let own = declared(snapshot, name)?.own_addresses();
    let range = vip_range(own);
    let broadcast = own.broadcast();
    let taken = |vip: Ipv4Addr| {
        snapshot.services.values().any(|view| {
            view.service.id != *service
                && view
                    .service
                    .networks
                    .iter()
                    .any(|n| n.name == *name && n.vip == Some(vip))
        })
    };
    blocks(range, 32, hash(&["vip", service.as_str(), name.as_str()]))
        .map(Ipv4Network::ip)
        .find(|vip| *vip != broadcast && !taken(*vip))
        .ok_or(Exhausted::Vips {
            network: name.clone(),
            subnet: own,
        })
}

/// The first outside port of a free range for a port that left it open. `others` are ports of the same
/// declaration that are chosen already.
///
/// # Errors
/// No such range is left.
pub fn published_port(
    snapshot: &Snapshot,
    service: &ServiceId,
    port: &PublishedPort,
    others: &[PublishedPort],
) -> Result<u16, Exhausted> {
    let (first, last) = (*PORT_RANGE.start(), *PORT_RANGE.end());
    let start = hash(&[
        "port",
        service.as_str(),
        &port.target.to_string(),
        &port.protocol.to_string(),
    ]);
    let free = |candidate: &PublishedPort| {
        let elsewhere = snapshot
            .services
            .values()
            .filter(|view| view.service.id != *service)
            .flat_map(|view| &view.service.ports);
        !elsewhere
            .chain(others)
            .any(|other| other.conflicts(candidate))
    };
    probe(start, u32::from(last - first) + 1)
        .filter_map(|i| u16::try_from(u32::from(first) + i).ok())
        .filter(|p| u32::from(*p) + u32::from(port.count.max(1)) - 1 <= u32::from(last))
        .find(|published| {
            free(&PublishedPort {
                published: *published,
                ..*port
            })
        })
        .ok_or(Exhausted::Ports)
}

/// A free address for a task in one of this node's slices: not in `used`, and not the first of a slice,
/// which is the gateway or may become it when an earlier slice is lost.
pub fn task_address(
    slices: &[Slice],
    used: &dyn Fn(Ipv4Addr) -> bool,
) -> Option<(Ipv4Addr, MacAddress)> {
    slices
        .iter()
        .flat_map(|slice| slice.prefix.iter().skip(1))
        .find(|address| !used(*address))
        .map(|address| (address, MacAddress::of_address(address)))
}

/// How many source addresses of its ingress slice a node keeps for its own connections to tasks: each
/// gives some 28,000 connections to one backend at a time.
pub const SOURCE_ADDRESSES: u32 = 16;

/// The addresses of a slice from which a node's relay connects: its last [`SOURCE_ADDRESSES`], less the
/// very last. A slice too small to spare them has none.
pub fn source_addresses(slice: &Slice) -> impl Iterator<Item = Ipv4Addr> + use<> {
    let last = slice.prefix.broadcast().to_bits();
    let count = if slice.prefix.prefix() <= 24 {
        SOURCE_ADDRESSES
    } else {
        0
    };
    (1..=count).map(move |i| Ipv4Addr::from_bits(last - i))
}

fn declared(snapshot: &Snapshot, name: &NetworkName) -> Result<Arc<Network>, Exhausted> {
    match snapshot.networks.get(name) {
        Some(view) => Ok(Arc::clone(&view.network)),
        None if name.as_str() == INGRESS_NETWORK => Ok(Arc::new(ingress_network())),
        None => Err(Exhausted::NoNetwork(name.clone())),
    }
}

#[expect(
    clippy::expect_used,
    reason = "every caller gives a length of at most 32"
)]
fn network(address: Ipv4Addr, prefix: u8) -> Ipv4Network {
    Ipv4Network::new(address, prefix).expect("a prefix length")
}

/// The blocks of a length in a network, each once, beginning at a hashed place.
fn blocks(of: Ipv4Network, prefix: u8, start: u64) -> impl Iterator<Item = Ipv4Network> {
    let count = 1_u32 << u32::from(prefix.saturating_sub(of.prefix())).min(31);
    let base = of.network().to_bits();
    probe(start, count).map(move |i| {
        let offset = i.checked_shl(u32::from(32 - prefix)).unwrap_or(0);
        network(Ipv4Addr::from_bits(base + offset), prefix)
    })
}

fn probe(start: u64, count: u32) -> impl Iterator<Item = u32> {
    let first = u32::try_from(start % u64::from(count.max(1))).unwrap_or(0);
    (0..count).map(move |i| (first + i) % count)
}

fn hash(parts: &[&str]) -> u64 {
    let mut digest = Sha256::new();
    for part in parts {
        digest.update(part.as_bytes());
        digest.update([0]);
    }
    let bytes: [u8; 32] = digest.finalize().into();
    u64::from_be_bytes(*bytes.first_chunk::<8>().unwrap_or(&[0; 8]))
}

#[cfg(test)]
mod tests;
