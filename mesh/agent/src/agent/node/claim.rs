//! Claiming slices, addresses and VIPs, and giving way where an older claim is met.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use portolan_docker::is_of_swarm;
use portolan_model::{
    Endpoint, EndpointMode, MacAddress, NetworkName, Service, ServiceId, Snapshot, TaskId, claims,
};

use super::Node;
use crate::{agent::state::LocalTask, api::Place};

impl Node {
    /// Claims what is missing. Before the cluster is known nothing is: what is remembered has to do.
    pub(super) fn claim(&mut self, now_ms: u64) {
        if !self.settled {
            return;
        }
        let snapshot = Arc::clone(&self.snapshot);
        self.give_way(&snapshot);
        self.ensure_slice(&NetworkName::ingress(), now_ms);
        for network in self.driver_networks() {
            if snapshot.networks.contains_key(&network) {
                self.ensure_slice(&network, now_ms);
            }
        }
        let tasks: Vec<TaskId> = self.state.tasks.keys().cloned().collect();
        for id in tasks {
            self.claim_addresses(&snapshot, &id, now_ms);
        }
        self.claim_vips(&snapshot);
    }

    /// Drops the slices that an older claim has taken.
    fn give_way(&mut self, snapshot: &Snapshot) {
        let me = self.identity.id;
        for (network, held) in &mut self.state.slices {
            let Some(view) = snapshot.networks.get(network) else {
                continue;
            };
            let kept = view.slices.get(&me).map_or(&[][..], Vec::as_slice);
            let range = view.network.own_addresses();
            held.slices.retain(|slice| {
                let inside =
                    range.contains(slice.prefix.ip()) && slice.prefix.prefix() >= range.prefix();
                inside && kept.contains(slice)
            });
        }
        self.state.slices.retain(|_, held| !held.slices.is_empty());
    }

    fn ensure_slice(&mut self, network: &NetworkName, now_ms: u64) {
        if !self.state.slices.contains_key(network) {
            self.claim_slice(network, now_ms);
        }
    }

    /// Claims one more slice of a network. The snapshot follows at once, so that the next claim keeps off it.
    fn claim_slice(&mut self, network: &NetworkName, now_ms: u64) -> Option<()> {
        let slice = claims::slice(&self.snapshot, self.identity.id, network, now_ms).ok()?;
        let held = self.state.slices.entry(network.clone()).or_default();
        held.slices.push(slice);
        self.rebuild(now_ms);
        Some(())
    }

    /// Gives a task an address on each of its networks.
    fn claim_addresses(&mut self, snapshot: &Snapshot, id: &TaskId, now_ms: u64) {
        let Some(task) = self.state.tasks.get(id).cloned() else {
            return;
        };
        let service = task
            .service
            .as_ref()
            .and_then(|id| snapshot.services.get(id));
        let networks = match service {
            Some(view) => view.service.task_networks().collect(),
            None => task.networks.clone(),
        };
        let mut endpoints = Vec::with_capacity(networks.len());
        for network in &networks {
            if let Place::Address(ip) = task.place {
                endpoints.push(Endpoint {
                    network: network.clone(),
                    ip,
                    mac: None,
                });
                continue;
            }
            if !snapshot.networks.contains_key(network) {
                continue;
            }
            self.ensure_slice(network, now_ms);
            endpoints.extend(self.endpoint(&task, network, now_ms));
        }
        if let Some(task) = self.state.tasks.get_mut(id) {
            task.networks = networks;
            task.endpoints = endpoints;
        }
    }

    /// The task's endpoint on a network: the one that it has, or a new one.
    fn endpoint(
        &mut self,
        task: &LocalTask,
        network: &NetworkName,
        now_ms: u64,
    ) -> Option<Endpoint> {
        let given = task.docker.iter().flat_map(|docker| &docker.given);
        if let Some(given) = given.into_iter().find(|e| e.network == *network) {
            return Some(given.clone());
        }
        // Where somebody else hands out the subnet, nobody gets an address by another way.
        let declared = &self.snapshot.networks.get(network)?.network;
        if declared.own_range.is_some() {
            return None;
        }
        let held = &self.state.slices.get(network)?.slices;
        let present = task.endpoints.iter().find(|e| e.network == *network);
        if let Some(present) = present
            && let IpAddr::V4(ip) = present.ip
            && held.iter().any(|slice| slice.prefix.contains(ip))
        {
            return Some(present.clone());
        }
        let (ip, mac) = self.free_address(network).or_else(|| {
            self.claim_slice(network, now_ms)?;
            self.free_address(network)
        })?;
        self.given.insert(network.clone(), ip);
        Some(Endpoint {
            network: network.clone(),
            ip: ip.into(),
            mac: Some(mac),
        })
    }

    fn free_address(&self, network: &NetworkName) -> Option<(Ipv4Addr, MacAddress)> {
        let held = &self.state.slices.get(network)?.slices;
        let tasks = self.state.tasks.values().flat_map(|task| &task.endpoints);
        let mut used: BTreeSet<IpAddr> = tasks
            .filter(|e| e.network == *network)
            .map(|e| e.ip)
            .collect();
        let sources = held.first().into_iter().flat_map(claims::source_addresses);
        used.extend(sources.map(IpAddr::V4));
        let large = held.iter().filter(|slice| slice.prefix.prefix() <= 24);
        used.extend(large.map(|slice| IpAddr::V4(slice.prefix.broadcast())));
        let taken = |ip: Ipv4Addr| used.contains(&ip.into());
        let last = self.given.get(network).copied();
        claims::task_address(held, &|ip| taken(ip) || Some(ip) <= last)
            .or_else(|| claims::task_address(held, &taken))
    }

    /// Gives VIPs to the services for which this node answers, and new ones where an older service has
    /// the same.
    fn claim_vips(&mut self, snapshot: &Snapshot) {
        let mine: Vec<ServiceId> = snapshot
            .services
            .values()
            .filter(|view| view.declared_by.first() == Some(&self.identity.id))
            .map(|view| view.service.id.clone())
            .collect();
        for id in mine {
            let Some(service) = self.state.services.get(&id) else {
                continue;
            };
            let mut changed = service.clone();
            for place in &mut changed.networks {
                if swarm_gives_vip(snapshot, service, &place.name) {
                    continue;
                }
                let wanted = service.endpoint_mode == EndpointMode::Vip;
                let vip = if !wanted {
                    None
                } else if place
                    .vip
                    .is_some_and(|vip| keeps_vip(snapshot, &id, &place.name, vip))
                {
                    place.vip
                } else {
                    claims::vip(snapshot, &id, &place.name).ok()
                };
                place.vip = vip;
            }
            if changed != *service {
                changed.spec_version += 1;
                self.state.services.insert(id, changed);
            }
        }
    }
}

/// Whether a Swarm gives a service its VIP on a network: on those of which it hands out the addresses.
pub(super) fn swarm_gives_vip(snapshot: &Snapshot, service: &Service, name: &NetworkName) -> bool {
    let network = snapshot.networks.get(name);
    is_of_swarm(service.spec_version)
        && network.is_some_and(|view| view.network.own_range.is_some())
}

/// Whether a VIP lies in its network and no older service has it.
fn keeps_vip(snapshot: &Snapshot, id: &ServiceId, network: &NetworkName, vip: Ipv4Addr) -> bool {
    let Some(view) = snapshot.networks.get(network) else {
        // Not declared yet; it may come, and the address with it be right.
        return true;
    };
    let Some(own) = snapshot.services.get(id) else {
        return true;
    };
    let older =
        |other: &Service| (other.created_ms, &other.id) < (own.service.created_ms, &own.service.id);
    let declared = &view.network;
    // Who hands out the subnet hands out virtual addresses of it too.
    let given = declared.own_range.is_some() && declared.subnet.contains(vip);
    (given || claims::vip_range(declared.own_addresses()).contains(vip))
        && !snapshot.services.values().any(|other| {
            other.service.id != *id
                && older(&other.service)
                && other
                    .service
                    .networks
                    .iter()
                    .any(|n| n.name == *network && n.vip == Some(vip))
        })
}
