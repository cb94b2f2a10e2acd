//! What is around the node, written into the maps.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use aya::maps::MapError;
use portolan_model::{NetworkName, ipv6_of, ipv6_prefix};
use portolan_plane::{Backend, Frontend, FrontendAddress, OpError};

use super::{EbpfPlane, Place};
use crate::{
    EbpfError, Surroundings, TaskLink,
    error::Doing,
    flow_table::Slice,
    layout::{Address, FLOW_DELIVER, NetworkValue, ROUTED, TaskValue, address, host_order},
    links,
    maps::fill,
};

/// `MAX_NETWORKS` of `bpf/layout.h`.
const MAX_NETWORKS: u32 = 1024;

impl EbpfPlane {
    /// Whether backends may now be elsewhere.
    pub(super) fn write_surroundings(&mut self) -> Result<bool, EbpfError> {
        let around = self.surroundings.clone();
        let mut errors = Vec::new();
        let mut moved = self.write_networks(&around, &mut errors)?;
        let gateways = around.networks.values();
        let gateways: BTreeSet<_> = gateways.map(|mesh| IpAddr::V4(mesh.gateway)).collect();
        let own = around.own.iter();
        let own = own.map(|ip| (address(*ip), if gateways.contains(ip) { 2 } else { 1 }));
        let own = own.collect();
        fill(&mut self.maps.own, &own, "own addresses")?;
        let peers = around.peers.values();
        let peers = peers.map(|ip| (host_order(*ip), 1)).collect();
        moved |= fill(&mut self.maps.peers, &peers, "members")?;

        let mut links = BTreeMap::new();
        for mesh in around.networks.values() {
            if let (Ok(link), Some(place)) = (links::index(&mesh.link), self.places.get(&mesh.vni))
            {
                links.insert(link, *place);
            }
        }
        let mut tasks = BTreeMap::new();
        for (ip, task) in &around.tasks {
            match self.task(task) {
                Ok(value) => {
                    links.insert(value.ifindex, value.network);
                    tasks.insert(address(*ip), value);
                    if let Some(vni) = self.vni(&task.network) {
                        tasks.insert(address(ipv6_of(vni, *ip)), value);
                    }
                }
                Err(error) => errors.push(error),
            }
        }
        fill(&mut self.maps.links, &links, "links")?;
        if fill(&mut self.maps.tasks, &tasks, "tasks")? {
            self.forget_deliveries(&tasks)?;
            moved = true;
        }
        errors.pop().map_or(Ok(moved), Err)
    }

    /// Gives each network its place, the one that it has if there is one.
    fn write_networks(
        &mut self,
        around: &Surroundings,
        errors: &mut Vec<EbpfError>,
    ) -> Result<bool, OpError> {
        let mut moved = false;
        let gone = self.places.clone().into_iter();
        for (vni, place) in gone.filter(|(vni, _)| around.networks.values().all(|m| m.vni != *vni))
        {
            self.write_network(place, NetworkValue::default())?;
            self.places.remove(&vni);
            moved = true;
        }
        for mesh in around.networks.values() {
            let ifindex = match links::index(&mesh.link) {
                Ok(ifindex) => ifindex,
                Err(error) => {
                    errors.push(error);
                    continue;
                }
            };
            let value = NetworkValue {
                ifindex,
                vni: mesh.vni,
                subnet: (host_order(mesh.subnet) & mesh.mask()).to_be_bytes(),
                mask: mesh.mask().to_be_bytes(),
                underlay: host_order(mesh.underlay),
                mtu: mesh.mtu,
                gateway: mesh.gateway.octets(),
                prefix: prefix(mesh.vni),
            };
            let free = || (1..MAX_NETWORKS).find(|n| self.places.values().all(|place| place != n));
            let place = self.places.get(&mesh.vni).copied().or_else(free);
            let place = place.ok_or_else(|| super::served::full("networks"))?;
            moved |= self.write_network(place, value)?;
            self.places.insert(mesh.vni, place);
        }
        Ok(moved)
    }

    fn write_network(&mut self, place: u32, value: NetworkValue) -> Result<bool, OpError> {
        let networks = &mut self.maps.networks;
        let before = networks.get(&place, 0).doing(|| "read a network".into())?;
        if before != value {
            networks
                .set(place, value, 0)
                .doing(|| format!("write network {}", value.vni))?;
        }
        Ok(before != value)
    }

    /// Finds the places that an earlier agent gave.
    pub(super) fn adopt_networks(&mut self) -> Result<(), OpError> {
        for (place, network) in (0..).zip(self.maps.networks.iter()) {
            let network = network.doing(|| "read the networks".into())?;
            if network.vni != 0 {
                self.places.insert(network.vni, place);
            }
        }
        Ok(())
    }

    fn vni(&self, network: &NetworkName) -> Option<u32> {
        Some(self.surroundings.networks.get(network)?.vni)
    }

    fn task(&self, task: &TaskLink) -> Result<TaskValue, EbpfError> {
        let ifindex = links::index(&task.link)?;
        let network = self.vni(&task.network);
        let network = network.and_then(|vni| self.places.get(&vni)).copied();
        Ok(TaskValue {
            ifindex,
            macs: macs(task),
            network: network.ok_or_else(|| EbpfError::NoNetwork {
                link: task.link.clone(),
                network: task.network.to_string(),
            })?,
        })
    }

    /// Forgets the way to tasks that are gone, so that the next packet for a new one of the same address finds it.
    fn forget_deliveries(&mut self, tasks: &BTreeMap<Address, TaskValue>) -> Result<(), OpError> {
        let (mut stale, mut from) = (Vec::new(), None);
        // In slices: entry by entry, the kernel begins anew with each entry that vanishes meanwhile.
        loop {
            let Slice { entries, next } =
                self.table.slice(from).map_err(|source| OpError::Kernel {
                    operation: "read the flows".into(),
                    source,
                })?;
            let gone = entries.into_iter().filter(|(tuple, flow)| {
                let task = tasks.get(&tuple.daddr);
                flow.kind == FLOW_DELIVER && task.is_none_or(|task| task.ifindex != flow.ifindex)
            });
            stale.extend(gone.map(|(tuple, _)| tuple));
            from = next;
            if from.is_none() {
                break;
            }
        }
        for tuple in stale {
            match self.maps.flows.remove(&tuple) {
                Err(MapError::KeyNotFound) => {}
                done => done.doing(|| "forget a flow to a task that is gone".into())?,
            }
        }
        Ok(())
    }

    /// Where a backend is, if the fast path reaches it.
    pub(super) fn place(&self, frontend: &Frontend, backend: &Backend) -> Option<Place> {
        let IpAddr::V4(ip) = backend.ip else {
            return None;
        };
        let place = if backend.local {
            let task = self.task(self.surroundings.tasks.get(&ip)?).ok()?;
            Place {
                node: 0,
                network: task.network,
                ifindex: task.ifindex,
                macs: task.macs,
            }
        } else {
            let (_, mesh) = self.surroundings.network_of(ip)?;
            // Who calls a virtual address is on its network, and so the kernel knows the way.
            let node = match frontend.address {
                FrontendAddress::Vip(..) => ROUTED,
                _ => host_order(*self.surroundings.peers.get(&backend.node)?),
            };
            Place {
                node,
                network: *self.places.get(&mesh.vni)?,
                ifindex: 0,
                macs: [0; 12],
            }
        };
        let only = self.network(frontend)?;
        (only == 0 || only == place.network).then_some(place)
    }

    /// The place of the network that alone reaches a frontend; 0 if all do, and `None` if this node is not on it.
    pub(super) fn network(&self, frontend: &Frontend) -> Option<u32> {
        let FrontendAddress::Vip(name, _) = &frontend.address else {
            return Some(0);
        };
        let mesh = self.surroundings.networks.get(name)?;
        self.places.get(&mesh.vni).copied()
    }
}

/// The part that all IPv6 addresses of a network share.
fn prefix(vni: u32) -> [u8; 12] {
    let (prefix, _) = ipv6_prefix(vni);
    let [shared @ .., _, _, _, _] = prefix.octets();
    shared
}

fn macs(task: &TaskLink) -> [u8; 12] {
    let mut macs = [0; 12];
    let both = task.mac.0.iter().chain(&task.gateway_mac.0);
    for (to, byte) in macs.iter_mut().zip(both) {
        *to = *byte;
    }
    macs
}
