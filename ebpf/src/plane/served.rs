//! One frontend in the maps.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use portolan_model::{Balancing, PlaneChoice, Protocol, TaskId};
use portolan_plane::{
    Backend, BackendState, Frontend, FrontendAddress, FrontendSpec, OpError, Policy,
};

use super::{EbpfPlane, Place, key_address};
use crate::{
    error::Doing,
    layout::{
        BackendLabel, BackendValue, FrontendKey, FrontendLabel, FrontendValue, LISTED, SlotKey,
        number, text,
    },
};

/// `MAX_FRONTENDS` and `MAX_BACKENDS` of `bpf/layout.h`.
const MAX_FRONTENDS: u32 = 65_536;
const MAX_BACKENDS: u32 = 131_072;
/// The most turns that one round has; weights are made smaller where they need more.
const MAX_SLOTS: u32 = 4096;

/// A frontend as it stands in the maps.
#[derive(Debug, Clone)]
pub(super) struct Served {
    pub(super) spec: Arc<FrontendSpec>,
    pub(super) id: u32,
    pub(super) generation: u32,
    /// The place of each backend in the array.
    pub(super) indexes: BTreeMap<TaskId, u32>,
    /// The backends of one round, by their places; empty leaves new flows to the relay.
    pub(super) slots: Vec<u32>,
}

pub(super) fn takes_flows(backend: &Backend) -> bool {
    backend.state == BackendState::Active && backend.weight > 0
}

impl EbpfPlane {
    /// Serves a frontend just so: backends first, then the round that leads to them, then the frontend itself.
    pub(super) fn upsert(&mut self, spec: &Arc<FrontendSpec>) -> Result<(), OpError> {
        let key = carried(spec)?;
        if let Some(old) = self.served.get(&spec.frontend).cloned() {
            return self.write(spec, key, &old);
        }
        let id = self
            .free_frontends
            .take(MAX_FRONTENDS)
            .ok_or_else(|| full("frontends"))?;
        // What was learned of its last owner.
        self.maps
            .answers
            .set(id, 0, 0)
            .doing(|| format!("begin {}", spec.frontend))?;
        let new = Served {
            spec: Arc::new(FrontendSpec {
                backends: Vec::new(),
                policy: Policy {
                    allow: Vec::new(),
                    ..spec.policy.clone()
                },
                ..(**spec).clone()
            }),
            id,
            generation: 0,
            indexes: BTreeMap::new(),
            slots: Vec::new(),
        };
        self.served.insert(spec.frontend.clone(), new.clone());
        self.write(spec, key, &new).inspect_err(|_| {
            // Not served, as the contract has it; the failure that is told is the first.
            let _ = self.remove(&spec.frontend);
        })
    }

    fn write(
        &mut self,
        spec: &Arc<FrontendSpec>,
        key: FrontendKey,
        old: &Served,
    ) -> Result<(), OpError> {
        let id = old.id;
        let label = FrontendLabel {
            service: text(spec.service.as_str()),
            name: text(&spec.service_name),
            network: match &spec.frontend.address {
                FrontendAddress::Vip(network, _) => text(network.as_str()),
                _ => text(""),
            },
            tcp_idle_ms: spec.policy.tcp_idle_ms.unwrap_or(0),
            udp_idle_ms: spec.policy.udp_idle_ms,
        };
        self.maps
            .frontend_labels
            .insert(id, label, 0)
            .doing(|| format!("name {}", spec.frontend))?;
        let mut places = BTreeMap::new();
        for backend in &spec.backends {
            let place = self.place(&spec.frontend, backend);
            let index = self.write_backend(
                spec,
                id,
                backend,
                place,
                old.indexes.get(&backend.task).copied(),
            )?;
            places.insert(backend.task.clone(), (index, place));
        }
        let active: Vec<_> = spec
            .backends
            .iter()
            .filter(|backend| takes_flows(backend))
            .collect();
        // Only some of them would not be round robin: then the relay has all.
        let reached = active.iter().all(|b| {
            places
                .get(&b.task)
                .is_some_and(|(_, place)| place.is_some())
        });
        let slots = if reached {
            round(&active, &places)
        } else {
            Vec::new()
        };
        let listed = old.spec.policy.allow.as_slice();
        self.list(id, listed, &spec.policy.allow)?;
        let mut generation = old.generation;
        // Generation 0 was never written.
        if generation == 0 || slots != old.slots {
            generation = generation.wrapping_add(1).max(1);
            for (slot, index) in (0..).zip(&slots) {
                let at = SlotKey {
                    frontend: id,
                    generation,
                    slot,
                };
                self.maps
                    .slots
                    .insert(at, index, 0)
                    .doing(|| format!("write a slot of {}", spec.frontend))?;
            }
        }
        let (flags, idle_ms) = policy(spec);
        let value = FrontendValue {
            id,
            generation,
            slots: slots.len() as u32,
            network: self.network(&spec.frontend).unwrap_or(0),
            flags,
            idle_ms,
        };
        if self.maps.frontends.get(&key, 0).ok() != Some(value) {
            self.maps
                .frontends
                .insert(key, value, 0)
                .doing(|| format!("write {}", spec.frontend))?;
        }
        if generation != old.generation {
            for slot in 0..old.slots.len() as u32 {
                // One that is not there is what is wanted.
                let _ = self.maps.slots.remove(&SlotKey {
                    frontend: id,
                    generation: old.generation,
                    slot,
                });
            }
        }
        self.unlist(id, listed, &spec.policy.allow)?;
        let indexes: BTreeMap<_, _> = places
            .into_iter()
            .map(|(task, (index, _))| (task, index))
            .collect();
        let stay: BTreeSet<u32> = indexes.values().copied().collect();
        for (task, index) in old
            .indexes
            .iter()
            .filter(|(_, index)| !stay.contains(index))
        {
            let mut before = old.spec.backends.iter();
            let name = before.find(|backend| backend.task == *task);
            let name = name.map_or(task.as_str(), |backend| &backend.name);
            let counted = self.backend_stats(*index);
            self.books.leave(&spec.frontend, task, name, &counted);
            self.retire(*index)?;
        }
        self.served.insert(
            spec.frontend.clone(),
            Served {
                spec: Arc::clone(spec),
                id,
                generation,
                indexes,
                slots,
            },
        );
        Ok(())
    }

    /// Writes a backend, in its old place if it is the same one still.
    fn write_backend(
        &mut self,
        spec: &FrontendSpec,
        id: u32,
        backend: &Backend,
        place: Option<Place>,
        old: Option<u32>,
    ) -> Result<u32, OpError> {
        let IpAddr::V4(ip) = backend.ip else {
            return Err(OpError::Unsupported(format!(
                "{}: the fast path carries IPv4 only",
                spec.frontend
            )));
        };
        let what = || format!("write backend {} of {}", backend.name, spec.frontend);
        let same = |value: &BackendValue| {
            (value.ip, value.port) == (ip.octets(), backend.port.to_be_bytes())
        };
        let old = match old {
            Some(index) => Some((index, self.maps.backends.get(&index, 0).doing(what)?)),
            None => None,
        };
        let (index, mut before, was) =
            if let Some((index, value)) = old.filter(|(_, value)| same(value)) {
                (index, value, Some(Place::of(&value)))
            } else {
                let index = self
                    .free_backends
                    .take(MAX_BACKENDS)
                    .ok_or_else(|| full("backends"))?;
                // The place may be in use for the first time, or flows of its last owner may be left.
                let mut value = self.maps.backends.get(&index, 0).doing(what)?;
                value.generation = value.generation.wrapping_add(1);
                value.passed_over = 0;
                self.reset_stats(index)?;
                (index, value, None)
            };
        // One that is out of reach for now keeps its place, and its flows.
        let place = place.or(was).unwrap_or_default();
        if was.is_some_and(|was| was != place && was != Place::default()) {
            // Flows know the old place: they end, as the task there has.
            before.generation = before.generation.wrapping_add(1);
        }
        let value = BackendValue {
            ip: ip.octets(),
            port: backend.port.to_be_bytes(),
            draining: (!takes_flows(backend)).into(),
            node: place.node,
            network: place.network,
            ifindex: place.ifindex,
            macs: place.macs,
            ..before
        };
        self.maps.backends.set(index, value, 0).doing(what)?;
        let label = BackendLabel {
            node: *backend.node.as_bytes(),
            task: text(backend.task.as_str()),
            name: text(&backend.name),
            frontend: id,
            weight: backend.weight,
            local: backend.local.into(),
            draining: (backend.state == BackendState::Draining).into(),
        };
        self.maps
            .backend_labels
            .insert(index, label, 0)
            .doing(what)?;
        Ok(index)
    }

    /// Ends all flows of a backend and frees its place.
    pub(super) fn retire(&mut self, index: u32) -> Result<(), OpError> {
        let what = || format!("retire backend {index}");
        let mut value = self.maps.backends.get(&index, 0).doing(what)?;
        value.generation = value.generation.wrapping_add(1);
        self.maps.backends.set(index, value, 0).doing(what)?;
        // One that is not there is what is wanted.
        let _ = self.maps.backend_labels.remove(&index);
        self.free_backends.release(index);
        Ok(())
    }

    /// Stops serving a frontend and ends its flows. One that is not served is fine.
    pub(super) fn remove(&mut self, frontend: &Frontend) -> Result<(), OpError> {
        let Some(served) = self.served.get(frontend) else {
            return Ok(());
        };
        let (id, generation, slots) = (served.id, served.generation, served.slots.len() as u32);
        let indexes: Vec<u32> = served.indexes.values().copied().collect();
        let allow = served.spec.policy.allow.clone();
        let key = key(frontend).ok_or_else(|| OpError::Unsupported(frontend.to_string()))?;
        if self.maps.frontends.get(&key, 0).is_ok() {
            self.maps
                .frontends
                .remove(&key)
                .doing(|| format!("remove {frontend}"))?;
        }
        for slot in 0..slots {
            let _ = self.maps.slots.remove(&SlotKey {
                frontend: id,
                generation,
                slot,
            });
        }
        self.unlist(id, &allow, &[])?;
        for index in indexes {
            self.retire(index)?;
        }
        let _ = self.maps.frontend_labels.remove(&id);
        self.free_frontends.release(id);
        self.served.remove(frontend);
        self.books.close(frontend);
        Ok(())
    }
}

/// The key of a frontend that the fast path carries.
fn carried(spec: &FrontendSpec) -> Result<FrontendKey, OpError> {
    let policy = &spec.policy;
    let why = match () {
        () if policy.plane == PlaneChoice::Relay => "is for the relay, as its service says",
        () if policy.proxy_protocol.is_some() => "has the PROXY protocol",
        () if policy.balancing != Balancing::RoundRobin || policy.local_first => {
            "is not plain round robin"
        }
        () if spec.backends.iter().any(|backend| backend.ip.is_ipv6()) => "has an IPv6 backend",
        () => match key(&spec.frontend) {
            Some(key) => return Ok(key),
            None => "is IPv6",
        },
    };
    Err(OpError::Unsupported(format!(
        "{} {why}, which the fast path does not carry",
        spec.frontend
    )))
}

/// What the programs have to know of the policy: flags, and the idle timeout of the frontend's protocol.
fn policy(spec: &FrontendSpec) -> (u32, u32) {
    let policy = &spec.policy;
    let flags = if policy.allow.is_empty() { 0 } else { LISTED };
    let idle_ms = match spec.frontend.protocol {
        Protocol::Tcp => policy.tcp_idle_ms.unwrap_or(0),
        Protocol::Udp => policy.udp_idle_ms,
    };
    (flags, idle_ms)
}

pub(super) fn key(frontend: &Frontend) -> Option<FrontendKey> {
    Some(FrontendKey {
        ip: key_address(frontend)?.octets(),
        port: frontend.port.to_be_bytes(),
        proto: number(frontend.protocol),
        pad: 0,
    })
}

/// One round: every active backend as often as its weight says, the turns of each far apart.
fn round(active: &[&Backend], places: &BTreeMap<TaskId, (u32, Option<Place>)>) -> Vec<u32> {
    let gcd = active
        .iter()
        .fold(0, |gcd, backend| common(gcd, backend.weight))
        .max(1);
    let total: u32 = active
        .iter()
        .map(|backend| u32::from(backend.weight / gcd))
        .sum();
    let shrink = total.div_ceil(MAX_SLOTS).max(1);
    let mut turns: Vec<(u32, u32, u32)> = Vec::new();
    for backend in active {
        let Some((index, _)) = places.get(&backend.task) else {
            continue;
        };
        let weight = (u32::from(backend.weight / gcd) / shrink).max(1);
        // In the middle of each of its shares of the round, in units that no weight divides.
        turns.extend((0..weight).map(|turn| {
            (
                (2 * turn + 1) * (u32::MAX / (2 * weight + 1)) / 2,
                *index,
                turn,
            )
        }));
    }
    turns.sort_unstable();
    turns.into_iter().map(|(_, index, _)| index).collect()
}

fn common(a: u16, b: u16) -> u16 {
    if b == 0 { a } else { common(b, a % b) }
}

pub(super) fn full(what: &str) -> OpError {
    OpError::Unsupported(format!("the fast path's table of {what} is full"))
}
