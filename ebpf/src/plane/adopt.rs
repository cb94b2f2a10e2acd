//! What an earlier agent left in the maps, read back.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ipnetwork::IpNetwork;
use portolan_model::{Balancing, NodeId, PlaneChoice, Protocol, TaskId};
use portolan_plane::{
    Backend, BackendState, Frontend, FrontendAddress, FrontendSpec, OpError, Policy,
};

use super::{EbpfPlane, served::Served};
use crate::{
    error::Doing,
    layout::{
        Address, BackendLabel, FrontendKey, FrontendLabel, FrontendValue, LEAST, SOURCE, protocol,
        read_address, read_text,
    },
    maps::read,
};

impl EbpfPlane {
    /// Takes over the frontends in the maps. What the programs do not need of a frontend is
    /// not there: then the reconciler writes it again, with all flows kept.
    pub(super) fn adopt(&mut self) -> Result<(), OpError> {
        self.adopt_networks()?;
        let labels = read(&self.maps.backend_labels, "the backends' labels")?;
        let mut owned: BTreeMap<u32, Vec<(u32, &BackendLabel)>> = BTreeMap::new();
        for (index, label) in &labels {
            owned
                .entry(label.frontend)
                .or_default()
                .push((*index, label));
        }
        let mut lists = self.lists()?;
        for (key, value) in read(&self.maps.frontends, "the frontends")? {
            let allow = lists.remove(&value.id).unwrap_or_default();
            let Some(served) = self.read_frontend(
                key,
                value,
                owned.remove(&value.id).unwrap_or_default(),
                allow,
            )?
            else {
                // Without a name it was only half written.
                self.maps
                    .frontends
                    .remove(&key)
                    .doing(|| "remove a frontend without a name".into())?;
                continue;
            };
            self.free_frontends.mark(served.id);
            for index in served.indexes.values() {
                self.free_backends.mark(*index);
            }
            self.stands(served);
        }
        self.drop_strays()?;
        for (id, list) in lists {
            self.unlist(id, &list, &[])?;
        }
        for index in labels
            .keys()
            .filter(|index| !self.free_backends.taken.contains(index))
            .copied()
            .collect::<Vec<_>>()
        {
            self.retire(index)?;
        }
        Ok(())
    }

    /// Removes choices that no frontend leads to: an earlier agent may have ended between writing one and removing
    /// another.
    fn drop_strays(&mut self) -> Result<(), OpError> {
        let served = self.served.values();
        let current: BTreeSet<_> = served
            .map(|served| (served.id, served.generation))
            .collect();
        let is_stray = |frontend, generation| !current.contains(&(frontend, generation));
        let slots = self.maps.slots.keys().collect::<Result<Vec<_>, _>>();
        let slots = slots.doing(|| "read the slots".into())?;
        for slot in slots
            .iter()
            .filter(|slot| is_stray(slot.frontend, slot.generation))
        {
            let removed = self.maps.slots.remove(slot);
            removed.doing(|| format!("remove a slot of frontend {}", slot.frontend))?;
        }
        let chunks = self.maps.chunks.keys().collect::<Result<Vec<_>, _>>();
        let chunks = chunks.doing(|| "read the tables".into())?;
        for chunk in chunks
            .iter()
            .filter(|chunk| is_stray(chunk.frontend, chunk.generation))
        {
            let removed = self.maps.chunks.remove(chunk);
            removed.doing(|| format!("remove a table of frontend {}", chunk.frontend))?;
        }
        Ok(())
    }

    fn read_frontend(
        &self,
        key: FrontendKey,
        value: FrontendValue,
        labels: Vec<(u32, &BackendLabel)>,
        allow: Vec<IpNetwork>,
    ) -> Result<Option<Served>, OpError> {
        let Ok(label) = self.maps.frontend_labels.get(&value.id, 0) else {
            return Ok(None);
        };
        let Ok(service) = read_text(&label.service).parse() else {
            return Ok(None);
        };
        let mut backends = Vec::new();
        let mut indexes = BTreeMap::new();
        for (index, label) in labels {
            let Ok(task) = read_text(&label.task).parse::<TaskId>() else {
                continue;
            };
            let at = self
                .maps
                .backends
                .get(&index, 0)
                .doing(|| "read a backend".into())?;
            indexes.insert(task.clone(), index);
            backends.push(Backend {
                task,
                name: read_text(&label.name),
                node: NodeId::from_bytes(label.node),
                local: label.local != 0,
                ip: read_address(at.ip),
                ipv6: (at.ip6 != Address::default()).then(|| at.ip6.into()),
                port: u16::from_be_bytes(at.port),
                state: if label.draining == 0 {
                    BackendState::Active
                } else {
                    BackendState::Draining
                },
                weight: label.weight,
            });
        }
        backends.sort();
        let choice = self.read_choice(&value);
        let spec = FrontendSpec {
            frontend: frontend(key, &label),
            service,
            service_name: read_text(&label.name),
            backends,
            policy: Policy {
                balancing: balancing(value.flags),
                local_first: label.local_first != 0,
                tcp_idle_ms: (label.tcp_idle_ms > 0).then_some(label.tcp_idle_ms),
                udp_idle_ms: label.udp_idle_ms,
                proxy_protocol: None,
                allow,
                plane: PlaneChoice::Auto,
            },
            sources: None,
        };
        Ok(Some(Served {
            spec: Arc::new(spec),
            id: value.id,
            generation: value.generation,
            indexes,
            choice,
        }))
    }
}

fn balancing(flags: u32) -> Balancing {
    match flags {
        flags if flags & LEAST != 0 => Balancing::LeastConnections,
        flags if flags & SOURCE != 0 => Balancing::SourceHash,
        _ => Balancing::RoundRobin,
    }
}

fn frontend(key: FrontendKey, label: &FrontendLabel) -> Frontend {
    let ip = read_address(key.ip);
    let network = read_text(&label.network).parse();
    Frontend {
        address: match network {
            Ok(network) => FrontendAddress::Vip(network, ip),
            Err(_) if ip.is_unspecified() => FrontendAddress::Node,
            Err(_) => FrontendAddress::Ip(ip),
        },
        port: u16::from_be_bytes(key.port),
        protocol: protocol(key.proto).unwrap_or(Protocol::Tcp),
    }
}
