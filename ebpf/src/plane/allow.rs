//! Lists of clients that may begin flows: a frontend's own prefixes in one trie of the kernel. Who is on none is left to
//! the relay, which refuses and counts. A list is asked when a flow begins, so a change leaves open ones alone.

use std::collections::{BTreeMap, BTreeSet};

use aya::maps::lpm_trie::Key;
use ipnetwork::IpNetwork;
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
        for network in listed(new).difference(&listed(old)) {
            let version = if network.is_ipv4() { 4 } else { 6 };
            self.maps
                .allowed
                .insert(&key(id, *network), version, 0)
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
        for network in listed(old).difference(&listed(new)) {
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
            let ip = read_address(ip);
            let before = FRONTEND + if ip.is_ipv4() { MAPPED } else { 0 };
            let prefix = u8::try_from(key.prefix_len().saturating_sub(before));
            let network = prefix
                .ok()
                .and_then(|prefix| IpNetwork::new(ip, prefix).ok());
            lists.entry(frontend).or_default().extend(network);
        }
        Ok(lists)
    }
}

/// The prefixes as the map has them. Clients of IPv4 are in none of IPv6, and no others have mapped addresses.
fn listed(list: &[IpNetwork]) -> BTreeSet<IpNetwork> {
    list.iter()
        .filter_map(|network| IpNetwork::new(network.network(), network.prefix()).ok())
        .filter(|network| network.is_ipv4() || network.ip().to_canonical().is_ipv6())
        .collect()
}

fn key(id: u32, network: IpNetwork) -> Key<Listed> {
    let before = FRONTEND + if network.is_ipv4() { MAPPED } else { 0 };
    let client = Listed {
        frontend: id,
        ip: address(network.ip()),
    };
    Key::new(before + u32::from(network.prefix()), client)
}
