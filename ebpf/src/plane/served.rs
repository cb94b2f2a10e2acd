//! One frontend in the maps.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use portolan_model::{Balancing, PlaneChoice, Protocol, TaskId};
use portolan_plane::{Frontend, FrontendAddress, FrontendSpec, OpError, Policy};

use super::{
    EbpfPlane,
    choice::{Choice, takes_flows},
    key_address,
};
use crate::{
    error::Doing,
    layout::{
        BackendLabel, BackendValue, FrontendKey, FrontendLabel, FrontendValue, IPV6, LEAST, LISTED,
        SOURCE, number, text,
    },
};

/// `MAX_FRONTENDS` and `MAX_BACKENDS` of `bpf/layout.h`.
const MAX_FRONTENDS: u32 = 65_536;
pub(super) const MAX_BACKENDS: u32 = 131_072;
/// No network's place: what is on none that this node is on is reached from none.
const NOWHERE: u32 = u32::MAX;

/// A frontend as it stands in the maps.
#[derive(Debug, Clone)]
pub(super) struct Served {
    pub(super) spec: Arc<FrontendSpec>,
    pub(super) id: u32,
    pub(super) generation: u32,
    /// The place of each backend in the array.
    pub(super) indexes: BTreeMap<TaskId, u32>,
    /// How new flows are given backends; without any they are left to the relay.
    pub(super) choice: Choice,
}

/// What is to be taken back if a later step fails.
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// Places given to new backends.
    pub(super) taken: Vec<u32>,
    /// Backends in their old places, as they were.
    pub(super) backends: Vec<(u32, BackendValue, Option<BackendLabel>)>,
    /// The choice written, and its generation.
    choice: Option<(u32, Choice)>,
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
            choice: Choice::default(),
        };
        self.write(spec, key, &new).inspect_err(|_| {
            // One that is not there is what is wanted.
            let _ = self.maps.frontend_labels.remove(&id);
            self.free_frontends.release(id);
        })
    }

    /// Notes how a frontend stands in the maps.
    pub(super) fn stands(&mut self, served: Served) {
        let spec = Arc::clone(&served.spec);
        self.served.insert(spec.frontend.clone(), served);
        self.specs.insert(spec.frontend.clone(), spec);
    }

    /// Writes a frontend where an old one is, or none of it. If that fails, the old one stays.
    fn write(
        &mut self,
        spec: &Arc<FrontendSpec>,
        key: FrontendKey,
        old: &Served,
    ) -> Result<(), OpError> {
        let mut changes = Changes::default();
        match self.write_new(spec, key, old, &mut changes) {
            Ok(new) => {
                self.stands(new.clone());
                self.drop_old(old, &new)
            }
            Err(error) => {
                self.take_back(spec, old, changes);
                Err(error)
            }
        }
    }

    /// Writes all that is new, the frontend last.
    fn write_new(
        &mut self,
        spec: &Arc<FrontendSpec>,
        key: FrontendKey,
        old: &Served,
        changes: &mut Changes,
    ) -> Result<Served, OpError> {
        let id = old.id;
        let mut places = BTreeMap::new();
        for backend in &spec.backends {
            let place = self.place(&spec.frontend, backend);
            let known = old.indexes.get(&backend.task).copied();
            let index = self.write_backend(spec, id, backend, place, known, changes)?;
            places.insert(backend.task.clone(), (index, place));
        }
        let choice = Choice::of(spec, &places);
        self.list(id, &old.spec.policy.allow, &spec.policy.allow)?;
        let mut generation = old.generation;
        // Generation 0 was never written.
        if generation == 0 || choice != old.choice {
            generation = generation.wrapping_add(1).max(1);
            changes.choice = Some((generation, choice.clone()));
            self.write_choice(spec, id, generation, &choice)?;
        }
        self.write_label(id, spec)?;
        let value = FrontendValue {
            id,
            generation,
            slots: choice.slots.len() as u32,
            network: self.network(&spec.frontend).unwrap_or(NOWHERE),
            flags: flags(spec),
            idle_ms: idle_ms(spec),
            table: choice.table.len() as u32,
            members: choice.members.len() as u32,
        };
        if self.maps.frontends.get(&key, 0).ok() != Some(value) {
            self.maps
                .frontends
                .insert(key, value, 0)
                .doing(|| format!("write {}", spec.frontend))?;
        }
        Ok(Served {
            spec: Arc::clone(spec),
            id,
            generation,
            indexes: places
                .into_iter()
                .map(|(task, (index, _))| (task, index))
                .collect(),
            choice,
        })
    }

    fn write_label(&mut self, id: u32, spec: &FrontendSpec) -> Result<(), OpError> {
        let policy = &spec.policy;
        let label = FrontendLabel {
            service: text(spec.service.as_str()),
            name: text(&spec.service_name),
            network: match &spec.frontend.address {
                FrontendAddress::Vip(network, _) => text(network.as_str()),
                _ => text(""),
            },
            tcp_idle_ms: policy.tcp_idle_ms.unwrap_or(0),
            udp_idle_ms: policy.udp_idle_ms,
            local_first: policy.local_first.into(),
        };
        self.maps
            .frontend_labels
            .insert(id, label, 0)
            .doing(|| format!("name {}", spec.frontend))
    }

    /// Removes what the old frontend had and the new one does not.
    fn drop_old(&mut self, old: &Served, new: &Served) -> Result<(), OpError> {
        let frontend = &new.spec.frontend;
        if new.generation != old.generation {
            self.outdated
                .push((old.id, old.generation, old.choice.clone()));
        }
        let listed = &new.spec.policy.allow;
        let mut done = self.unlist(old.id, &old.spec.policy.allow, listed);
        let stay: BTreeSet<u32> = new.indexes.values().copied().collect();
        for (task, index) in old
            .indexes
            .iter()
            .filter(|(_, index)| !stay.contains(index))
        {
            let mut before = old.spec.backends.iter();
            let name = before.find(|backend| backend.task == *task);
            let name = name.map_or(task.as_str(), |backend| &backend.name);
            let counted = self.backend_stats(*index);
            self.books.leave(frontend, task, name, &counted);
            done = done.and(self.retire(*index));
        }
        done
    }

    /// Undoes what was done before something failed, as far as the kernel lets it: the failure that is told is the
    /// first.
    fn take_back(&mut self, spec: &FrontendSpec, old: &Served, changes: Changes) {
        if let Some((generation, choice)) = changes.choice {
            self.drop_choice(old.id, generation, &choice);
        }
        let _ = self.unlist(old.id, &spec.policy.allow, &old.spec.policy.allow);
        for (index, value, label) in changes.backends {
            let _ = self.maps.backends.set(index, value, 0);
            let _ = label.map(|label| self.maps.backend_labels.insert(index, label, 0));
        }
        for index in changes.taken {
            let _ = self.retire(index);
        }
        if old.generation != 0 {
            let _ = self.write_label(old.id, &old.spec);
        }
    }

    /// Stops serving a frontend and ends its flows. One that is not served is fine.
    pub(super) fn remove(&mut self, frontend: &Frontend) -> Result<(), OpError> {
        let Some(served) = self.served.get(frontend) else {
            return Ok(());
        };
        let (id, generation, choice) = (served.id, served.generation, served.choice.clone());
        let indexes: Vec<u32> = served.indexes.values().copied().collect();
        let allow = served.spec.policy.allow.clone();
        let key = key(frontend).ok_or_else(|| OpError::Unsupported(frontend.to_string()))?;
        if self.maps.frontends.get(&key, 0).is_ok() {
            self.maps
                .frontends
                .remove(&key)
                .doing(|| format!("remove {frontend}"))?;
        }
        self.drop_choice(id, generation, &choice);
        // The next owner of its place begins with the generations that it had.
        let outdated = std::mem::take(&mut self.outdated).into_iter();
        let (own, others): (Vec<_>, _) = outdated.partition(|(of, ..)| *of == id);
        self.outdated = others;
        for (id, generation, choice) in own {
            self.drop_choice(id, generation, &choice);
        }
        self.unlist(id, &allow, &[])?;
        for index in indexes {
            self.retire(index)?;
        }
        let _ = self.maps.frontend_labels.remove(&id);
        self.free_frontends.release(id);
        self.served.remove(frontend);
        self.specs.remove(frontend);
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
        () if spec.backends.iter().any(|backend| backend.ip.is_ipv6()) => "has an IPv6 backend",
        () if is_ipv6(&spec.frontend) && !have_ipv6(spec) => {
            "is IPv6 and its tasks do not all have IPv6 addresses"
        }
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

fn is_ipv6(frontend: &Frontend) -> bool {
    matches!(frontend.address, FrontendAddress::Ip(IpAddr::V6(_)))
}

/// Whether IPv6 clients can be given any backend that takes flows.
fn have_ipv6(spec: &FrontendSpec) -> bool {
    let mut active = spec.backends.iter().filter(|backend| takes_flows(backend));
    active.all(|backend| backend.ipv6.is_some())
}

/// What the programs have to know of the policy, and of all backends.
fn flags(spec: &FrontendSpec) -> u32 {
    let ipv6 = if have_ipv6(spec) { IPV6 } else { 0 };
    let listed = if spec.policy.allow.is_empty() {
        0
    } else {
        LISTED
    };
    listed
        | ipv6
        | match spec.policy.balancing {
            Balancing::RoundRobin => 0,
            Balancing::LeastConnections => LEAST,
            Balancing::SourceHash => SOURCE,
        }
}

/// The idle timeout of the frontend's protocol.
fn idle_ms(spec: &FrontendSpec) -> u32 {
    match spec.frontend.protocol {
        Protocol::Tcp => spec.policy.tcp_idle_ms.unwrap_or(0),
        Protocol::Udp => spec.policy.udp_idle_ms,
    }
}

pub(super) fn key(frontend: &Frontend) -> Option<FrontendKey> {
    Some(FrontendKey {
        ip: key_address(frontend)?,
        port: frontend.port.to_be_bytes(),
        proto: number(frontend.protocol),
        pad: 0,
    })
}

pub(super) fn full(what: &str) -> OpError {
    OpError::Unsupported(format!("the fast path's table of {what} is full"))
}
