//! From the snapshot to the zones.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
};

use hickory_server::proto::rr::Name;
use portolan_model::{
    EndpointMode, NetworkName, NetworkView, ServiceNetwork, ServiceView, Snapshot, TaskState,
    TaskView,
};

use super::{Entry, Offer, Target, Ttls, Zone, Zones};

impl Zones {
    /// The names as the snapshot has them.
    pub(crate) fn new(snapshot: &Snapshot, ttls: Ttls) -> Self {
        let mut building: BTreeMap<NetworkName, Builder> = snapshot
            .networks
            .iter()
            .map(|(name, view)| (name.clone(), Builder::new(snapshot, view, ttls)))
            .collect();
        for view in snapshot.services.values() {
            for place in &view.service.networks {
                if let Some(builder) = building.get_mut(&place.name) {
                    builder.service(snapshot, view, place);
                }
            }
        }
        for task in snapshot.tasks.values() {
            for endpoint in &task.task.endpoints {
                if let Some(builder) = building.get_mut(&endpoint.network) {
                    builder.client(task, &endpoint.network, endpoint.ip);
                }
            }
        }
        let gateways = snapshot.own_networks().map(|(_, ip)| IpAddr::V4(ip));
        Self {
            synced: snapshot.synced,
            subnets: building.values().map(|b| b.zone.subnet).collect(),
            own: gateways.chain(snapshot.underlay(&snapshot.me)).collect(),
            networks: building
                .into_iter()
                .map(|(name, builder)| (name, builder.finish()))
                .collect(),
            ttls,
        }
    }
}

/// A zone in the making. Names that users chose go before those that follow from a service's name, so
/// a service may be called `web.1`.
struct Builder {
    zone: Zone,
    derived: BTreeMap<Name, Entry>,
    ttls: Ttls,
}

/// A task of a service on the network at hand.
#[derive(Clone, Copy)]
struct Member<'a> {
    task: &'a TaskView,
    ip: IpAddr,
}

impl Member<'_> {
    fn slot(&self) -> u32 {
        self.task.task.slot
    }
}

impl Builder {
    fn new(snapshot: &Snapshot, view: &NetworkView, ttls: Ttls) -> Self {
        Self {
            zone: Zone {
                name: view.network.name.clone(),
                origin: name(view.network.name.as_str()).unwrap_or_else(Name::root),
                subnet: view.network.subnet,
                internal: view.network.internal,
                gateway: view.gateway(&snapshot.me),
                names: HashMap::new(),
                tops: HashSet::new(),
                pointers: HashMap::new(),
                also_on: HashMap::new(),
            },
            derived: BTreeMap::new(),
            ttls,
        }
    }

    fn service(&mut self, snapshot: &Snapshot, view: &ServiceView, place: &ServiceNetwork) {
        let service = &view.service;
        let Some(own) = name(&service.name) else {
            return;
        };
        let members: Vec<Member<'_>> = snapshot
            .tasks_of(&service.id)
            .filter_map(|task| {
                let ip = task.endpoint(place.name.as_str())?.ip;
                Some(Member { task, ip })
            })
            .collect();
        let serving = serving(&members);
        let (found, ttl) = match (service.endpoint_mode, place.vip) {
            (EndpointMode::Vip, Some(vip)) => ([vip.into()].into(), self.ttls.vip),
            // A VIP that is not claimed yet must not keep clients waiting.
            (EndpointMode::Vip, None) | (EndpointMode::Dnsrr, _) => {
                (addresses(&weighted(&serving)), self.ttls.task)
            }
        };
        let offer = Arc::new(Offer {
            service: Arc::clone(service),
            targets: self.targets(&own, &members, &serving),
        });
        let aliases = place.aliases.iter().filter_map(|alias| name(alias));
        let names: BTreeSet<Name> = aliases.chain([own.clone()]).collect();
        for key in names {
            self.derive(key.prepend_label("tasks").ok(), &addresses(&serving));
            let entry = self.zone.names.entry(key).or_default();
            entry.add(&found, ttl);
            entry.services.push(Arc::clone(&offer));
        }
        self.slots(&own, &members);
        self.pointers(&own, &members, place);
    }

    /// `web.1` and `1.tasks.web`, the latter by id too where tasks share a slot.
    fn slots(&mut self, own: &Name, members: &[Member<'_>]) {
        let mut slots: BTreeMap<u32, Vec<Member<'_>>> = BTreeMap::new();
        for member in members {
            slots.entry(member.slot()).or_default().push(*member);
        }
        for (slot, members) in slots {
            let best = match serving(&members) {
                none if none.is_empty() => addresses(&members),
                serving => addresses(&serving),
            };
            self.derive(slot_name(own, slot), &best);
            self.derive(target_name(own, &slot.to_string()), &best);
            for member in members.iter().filter(|_| members.len() > 1) {
                let by_id = target_name(own, member.task.task.id.as_str());
                self.derive(by_id, &[member.ip].into());
            }
        }
    }

    fn derive(&mut self, key: Option<Name>, addresses: &BTreeSet<IpAddr>) {
        if let Some(key) = key {
            let ttl = self.ttls.task;
            self.derived.entry(key).or_default().add(addresses, ttl);
        }
    }

    fn pointers(&mut self, own: &Name, members: &[Member<'_>], place: &ServiceNetwork) {
        let tasks = members
            .iter()
            .filter_map(|member| Some((member.ip, slot_name(own, member.slot())?)));
        let vip = place.vip.map(|vip| (IpAddr::V4(vip), own.clone()));
        for (ip, relative) in tasks.chain(vip) {
            if let Ok(full) = relative.append_domain(&self.zone.origin) {
                self.zone.pointers.entry(ip).or_default().insert(full);
            }
        }
    }

    fn targets(&self, own: &Name, members: &[Member<'_>], serving: &[Member<'_>]) -> Vec<Target> {
        let mut sharing: HashMap<u32, usize> = HashMap::new();
        for member in members {
            *sharing.entry(member.slot()).or_default() += 1;
        }
        serving
            .iter()
            .filter_map(|member| {
                let task = &member.task.task;
                let relative = match sharing.get(&task.slot) {
                    Some(1) => target_name(own, &task.slot.to_string()),
                    _ => target_name(own, task.id.as_str()),
                };
                Some(Target {
                    name: relative?.append_domain(&self.zone.origin).ok()?,
                    ip: member.ip,
                    weight: task.weight,
                })
            })
            .collect()
    }

    fn client(&mut self, task: &TaskView, here: &NetworkName, ip: IpAddr) {
        let others = task.task.endpoints.iter().map(|e| &e.network);
        let others: Vec<_> = others.filter(|n| *n != here).cloned().collect();
        if !others.is_empty() {
            self.zone.also_on.insert(ip, others);
        }
    }

    fn finish(self) -> Zone {
        let mut zone = self.zone;
        for (key, entry) in self.derived {
            zone.names.entry(key).or_insert(entry);
        }
        let longer = zone.names.keys().filter(|name| name.iter().len() > 1);
        zone.tops = longer.map(|name| name.trim_to(1)).collect();
        zone
    }
}

impl Entry {
    fn add(&mut self, addresses: &BTreeSet<IpAddr>, ttl: u32) {
        // One RRset has one TTL (RFC 2181, section 5.2): the shortest of those that meet.
        self.ttl = if self.addresses.is_empty() {
            ttl
        } else {
            self.ttl.min(ttl)
        };
        self.addresses.extend(addresses);
    }
}

/// The healthy ones; the draining ones if there is no other.
fn serving<'a>(members: &[Member<'a>]) -> Vec<Member<'a>> {
    let of = |state| {
        let of_state = members.iter().filter(move |m| m.task.state == state);
        of_state.copied().collect::<Vec<_>>()
    };
    match of(TaskState::Healthy) {
        none if none.is_empty() => of(TaskState::Draining),
        healthy => healthy,
    }
}

/// Those that may get new flows by their weight; all if none may.
fn weighted<'a>(members: &[Member<'a>]) -> Vec<Member<'a>> {
    let some = members.iter().filter(|m| m.task.task.weight > 0);
    match some.copied().collect::<Vec<_>>() {
        none if none.is_empty() => members.to_vec(),
        some => some,
    }
}

fn addresses(members: &[Member<'_>]) -> BTreeSet<IpAddr> {
    members.iter().map(|m| m.ip).collect()
}

/// `web.1.`
fn slot_name(service: &Name, slot: u32) -> Option<Name> {
    service
        .clone()
        .append_label(slot.to_string().as_bytes())
        .ok()
}

/// `<label>.tasks.web.`; a task's id may be several labels.
fn target_name(service: &Name, label: &str) -> Option<Name> {
    let tasks = service.prepend_label("tasks").ok()?;
    name(label)?.append_domain(&tasks).ok()
}

/// A name of dotted text, taken byte by byte: `_` is welcome, and nothing is translated. `None` if it
/// cannot be asked for.
fn name(text: &str) -> Option<Name> {
    let text = text.strip_suffix('.').unwrap_or(text);
    Name::from_labels(text.split('.').map(str::as_bytes)).ok()
}
