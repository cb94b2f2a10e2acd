//! The zones: what names mean on each network, as a pure function of the snapshot.

mod build;
mod lookup;
mod scope;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::{IpAddr, Ipv4Addr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use hickory_server::proto::rr::{Name, Record};
use ipnetwork::Ipv4Network;
use portolan_model::{NetworkName, Service};

pub(crate) use scope::{Door, Others, Scope};

/// Seconds that clients may keep answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ttls {
    pub(crate) task: u32,
    pub(crate) vip: u32,
}

/// The names of every network.
#[derive(Debug)]
pub(crate) struct Zones {
    /// Whether a name that is not here does not exist.
    synced: bool,
    networks: BTreeMap<NetworkName, Zone>,
    /// Where addresses are ours, and nobody else's to name.
    subnets: Vec<Ipv4Network>,
    /// Addresses of this node.
    own: BTreeSet<IpAddr>,
    ttls: Ttls,
}

/// The names of one network. Keys compare without case.
#[derive(Debug)]
pub(crate) struct Zone {
    name: NetworkName,
    /// `<network>.`, which every name may have behind it.
    origin: Name,
    subnet: Ipv4Network,
    internal: bool,
    /// This node's address there.
    gateway: Option<Ipv4Addr>,
    names: HashMap<Name, Entry>,
    /// Last labels of longer names: they exist, with nothing at them (RFC 8020).
    tops: HashSet<Name>,
    pointers: HashMap<IpAddr, BTreeSet<Name>>,
    /// The further networks of clients here.
    also_on: HashMap<IpAddr, Vec<NetworkName>>,
}

/// What is at a name.
#[derive(Debug, Default)]
struct Entry {
    addresses: BTreeSet<IpAddr>,
    ttl: u32,
    /// The services of that name: none for the name of a task.
    services: Vec<Arc<Offer>>,
}

/// What SRV records of a service are made of.
#[derive(Debug)]
struct Offer {
    service: Arc<Service>,
    targets: Vec<Target>,
}

/// A task that takes flows.
#[derive(Debug)]
struct Target {
    name: Name,
    ip: IpAddr,
    weight: u16,
}

/// What a question comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Found {
    /// The name is ours; without answers it has nothing of the asked type.
    Records {
        answers: Vec<Record>,
        additionals: Vec<Record>,
    },
    /// It would be ours, and does not exist.
    NoName,
    /// It would be ours, and might exist: not all sources have reported.
    NotKnownYet,
    /// It is not ours.
    Foreign,
}

impl Found {
    /// The name exists, with nothing of the asked type.
    const fn nothing() -> Self {
        Self::Records {
            answers: Vec::new(),
            additionals: Vec::new(),
        }
    }
}

/// Whose turn it is to stand first in an answer, by name. It outlives zones, so that a cluster in which
/// something always changes rotates too; names that share a counter only skip turns.
#[derive(Debug)]
pub(crate) struct Rotation([AtomicUsize; 256]);

impl Default for Rotation {
    fn default() -> Self {
        Self([const { AtomicUsize::new(0) }; 256])
    }
}

impl Rotation {
    fn next(&self, name: &Name) -> usize {
        // FNV-1a, folded.
        let hash = name.iter().flatten().fold(0x811c_9dc5_u32, |hash, byte| {
            (hash ^ u32::from(byte.to_ascii_lowercase())).wrapping_mul(0x0100_0193)
        });
        self.0
            .get((hash ^ (hash >> 16)) as usize % self.0.len())
            .map_or(0, |counter| counter.fetch_add(1, Ordering::Relaxed))
    }
}

impl Zones {
    /// The networks that this node serves, with the address to serve them at.
    pub(crate) fn served(&self) -> impl Iterator<Item = (&NetworkName, Ipv4Addr)> {
        self.networks
            .iter()
            .filter_map(|(name, zone)| Some((name, zone.gateway?)))
    }
}
