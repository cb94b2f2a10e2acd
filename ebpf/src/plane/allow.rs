//! Lists of clients that may begin flows: a frontend's own prefixes in one trie of the kernel. Who is on none is left to
//! the relay, which refuses and counts. A list is asked when a flow begins, so a change leaves open ones alone.

use std::collections::{BTreeMap, BTreeSet};

use aya::maps::lpm_trie::Key;
use ipnetwork::{IpNetwork, Ipv4Network};
use portolan_plane::OpError;

use super::EbpfPlane;
use crate::{
    error::Doing,
    layout::{Listed, address, read_address},
};

/// Bits of a key before the client's address, and of that before an IPv4 address in it.
const FRONTEND: u32 = 32;
const MAPPED: u32 = 96;

impl EbpfPlane {
    /// Adds to a frontend's list what it is to hold and does not yet.
    pub(super) fn list(
        &mut self,
        id: u32,
        old: &[IpNetwork],
        new: &[IpNetwork],
    ) -> Result<(), OpError> {
        for network in v4(new).difference(&v4(old)) {
            self.maps
                .allowed
                .insert(&key(id, *network), 1, 0)
                .doing(|| format!("allow {network}"))?;
        }
        Ok(())
    }

    /// Takes off a frontend's list what it is no longer to hold.
    pub(super) fn unlist(
        &mut self,
        id: u32,
        old: &[IpNetwork],
        new: &[IpNetwork],
    ) -> Result<(), OpError> {
        for network in v4(old).difference(&v4(new)) {
            match self.maps.allowed.remove(&key(id, *network)) {
                Err(aya::maps::MapError::KeyNotFound) => {}
                done => done.doing(|| format!("no longer allow {network}"))?,
            }
        }
        Ok(())
    }

    /// The lists in the kernel, by frontend.
    pub(super) fn lists(&self) -> Result<BTreeMap<u32, Vec<IpNetwork>>, OpError> {
        let mut lists: BTreeMap<u32, Vec<IpNetwork>> = BTreeMap::new();
        for key in self.maps.allowed.keys() {
            let key = key.doing(|| "read the lists of clients".into())?;
            let Listed { frontend, ip } = key.data();
            let prefix = key.prefix_len().saturating_sub(FRONTEND + MAPPED);
            let prefix = u8::try_from(prefix).unwrap_or(32);
            let network = IpNetwork::new(read_address(ip), prefix).ok();
            lists.entry(frontend).or_default().extend(network);
        }
        Ok(lists)
    }
}

/// The IPv4 part; IPv6 clients are the relay's.
fn v4(list: &[IpNetwork]) -> BTreeSet<Ipv4Network> {
    list.iter()
        .filter_map(|network| match network {
            IpNetwork::V4(network) => Ipv4Network::new(network.network(), network.prefix()).ok(),
            IpNetwork::V6(_) => None,
        })
        .collect()
}

fn key(id: u32, network: Ipv4Network) -> Key<Listed> {
    let client = Listed {
        frontend: id,
        ip: address(network.network()),
    };
    Key::new(FRONTEND + MAPPED + u32::from(network.prefix()), client)
}
