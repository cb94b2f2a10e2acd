//! What a Docker engine runs, as this node's declarations and tasks: they follow what it says last.

use std::{net::IpAddr, sync::Arc};

use portolan_docker::{
    NetworkWanted, Origin, Place as ContainerPlace, ServiceWanted, TaskWanted, Wanted,
    is_same_state,
};
use portolan_model::{
    EndpointMode, Network, NetworkName, Protocol, Record, Service, ServiceId, TaskId, TaskState,
    claims,
};

use super::{
    AttachState, Node,
    claim::swarm_gives_vip,
    declare::{DeclareError, ports, vip},
};
use crate::{
    agent::state::{DockerTask, LocalTask},
    api::Place,
};

/// At most so many ports of a task are tried for whether it listens yet.
const TRIED: usize = 16;

/// What is wrong with something that Docker asks for, in the words of a user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Finding {
    /// The service that it concerns; `None` is the engine, or an object without a service.
    pub service: Option<ServiceId>,
    pub text: String,
}

impl Node {
    /// Takes what the engine of this node says. Everything follows at the next refresh, and again whenever
    /// something else changes: a worker may know a container before it knows its service.
    pub(crate) fn set_docker(&mut self, known: Arc<portolan_docker::Known>) {
        self.docker = Some(known);
    }

    /// What is wrong with what Docker asks for: its own words, and what keeps this node from doing it.
    pub(crate) fn docker_findings(&self) -> impl Iterator<Item = Finding> + '_ {
        let known = self.docker.iter();
        let said = known.flat_map(|known| &known.wanted.diagnostics);
        let said = said.map(|finding| Finding {
            service: finding.service.clone(),
            text: finding.diagnostic.to_string(),
        });
        said.chain(self.docker_refusals.iter().cloned())
    }

    /// Makes declarations and tasks what the engine says. Before it has said anything, and before the cluster is
    /// known, what is remembered stays.
    pub(super) fn follow_docker(&mut self, now_ms: u64) {
        let Some(known) = self.docker.clone().filter(|_| self.settled) else {
            return;
        };
        let wanted = &known.wanted;
        let swarm = known.observed.engine.swarm.as_ref();
        let swarm = swarm.map(|swarm| swarm.node_id.as_str());
        self.docker_refusals.clear();
        for network in &wanted.networks {
            let declared = self.declare_network(network, now_ms);
            self.note(declared, None);
            let by = declarer(network.origin, swarm);
            let marks = &mut self.state.docker.networks;
            marks.insert(network.name.clone(), by);
        }
        for service in &wanted.services {
            let declared = self.declare_service(service);
            self.note(declared, Some(&service.service.id));
            let by = declarer(service.origin, swarm);
            let marks = &mut self.state.docker.services;
            marks.insert(service.service.id.clone(), by);
        }
        self.withdraw_services(wanted, swarm, now_ms);
        self.withdraw_networks(wanted, swarm, now_ms);
        self.rebuild(now_ms);
        self.follow_containers(wanted);
    }

    fn note(&mut self, declared: Result<(), DeclareError>, service: Option<&ServiceId>) {
        if let Err(error) = declared {
            self.docker_refusals.push(Finding {
                service: service.cloned(),
                text: crate::agent::with_causes(&error),
            });
        }
    }

    fn declare_service(&mut self, wanted: &ServiceWanted) -> Result<(), DeclareError> {
        let snapshot = Arc::clone(&self.snapshot);
        let (id, asked) = (&wanted.service.id, wanted.service.spec_version);
        let present = snapshot.services.get(id).map(|view| &view.service);
        let removed = snapshot.removed_services.get(id);
        let Some(version) = version(
            asked,
            present.map(|service| service.spec_version),
            removed.map(|service| service.spec_version),
            wanted.origin,
        ) else {
            return Ok(());
        };
        let mut service = Service {
            created_ms: present.map_or(wanted.service.created_ms, |present| {
                present.created_ms.min(wanted.service.created_ms)
            }),
            spec_version: version,
            ports: ports(&snapshot, present.map(AsRef::as_ref), &wanted.service)?,
            ..wanted.service.clone()
        };
        for place in &mut service.networks {
            let swarms = swarm_gives_vip(&snapshot, &wanted.service, &place.name);
            if place.vip.is_none() && !swarms && service.endpoint_mode == EndpointMode::Vip {
                let before = present.or(removed).map(AsRef::as_ref);
                // One that is not declared yet is given an address once it is.
                place.vip = vip(&snapshot, before, &wanted.service, place).unwrap_or(None);
            }
        }
        if let Some(present) = present
            && **present != service
            && present.spec_version == version
        {
            service.spec_version += 1;
        }
        Record::Service(service.clone()).encode()?;
        self.state.removals.remove(&format!("service {id}"));
        self.state.services.insert(id.clone(), service);
        Ok(())
    }

    fn declare_network(&mut self, wanted: &NetworkWanted, now_ms: u64) -> Result<(), DeclareError> {
        let snapshot = Arc::clone(&self.snapshot);
        let name = &wanted.name;
        let present = snapshot.networks.get(name).map(|view| &view.network);
        let present = present.filter(|network| network.spec_version > 0);
        let removed = snapshot.removed_networks.get(name);
        let Some(version) = version(
            wanted.spec_version,
            present.map(|network| network.spec_version),
            removed.map(|network| network.spec_version),
            wanted.origin,
        ) else {
            return Ok(());
        };
        let same = present.filter(|present| is_same_state(present.spec_version, version));
        let subnet = match (wanted.subnet, same) {
            (Some(subnet), _) => subnet,
            (None, Some(present)) => present.subnet,
            (None, None) => claims::subnet(&snapshot, name)?,
        };
        self.check_subnet(name, subnet, same.is_none())?;
        let mut network = Network {
            name: name.clone(),
            vni: wanted.vni.unwrap_or_else(|| {
                same.map_or_else(|| claims::vni(&snapshot, name), |present| present.vni)
            }),
            subnet,
            internal: wanted.internal,
            encrypted: wanted.encrypted,
            spec_version: version,
            created_ms: same.map_or(wanted.created_ms, |present| {
                present.created_ms.min(wanted.created_ms)
            }),
            removed: false,
            stack: None,
            own_range: Some(match same.and_then(|present| present.own_range) {
                Some(range) => range,
                None => claims::own_range(&snapshot, name, subnet)?,
            }),
        };
        if let Some(present) = present
            && **present != network
            && present.spec_version == version
        {
            network.spec_version += 1;
        }
        self.state.removals.remove(&format!("network {name}"));
        self.state.networks.insert(name.clone(), network);
        // What comes next is to keep off its subnet.
        self.rebuild(now_ms);
        Ok(())
    }

    /// Removes the services that this engine declared and does not any more. What its Swarm has dropped goes at once;
    /// what stands by labels, or was declared for a Swarm that the node has left, when nobody runs a task of it.
    fn withdraw_services(&mut self, wanted: &Wanted, swarm: Option<&str>, now_ms: u64) {
        let snapshot = Arc::clone(&self.snapshot);
        for (id, by) in self.state.docker.services.clone() {
            if wanted.services.iter().any(|w| w.service.id == id) {
                continue;
            }
            let Some(view) = snapshot.services.get(&id) else {
                self.state.docker.services.remove(&id);
                continue;
            };
            let alone = view
                .declared_by
                .iter()
                .all(|node| *node == self.identity.id);
            let idle = view.tasks.is_empty();
            let over = match &by {
                Some(by) if Some(by.as_str()) == swarm => wanted.knows_swarm,
                Some(_) if is_nameless(swarm) => false,
                Some(_) => idle && alone,
                None => idle,
            };
            if over {
                self.state.docker.services.remove(&id);
                self.remove_service(&view.service, now_ms);
            }
        }
    }

    /// As [`Self::withdraw_services`]; a network that a service is on stays.
    fn withdraw_networks(&mut self, wanted: &Wanted, swarm: Option<&str>, now_ms: u64) {
        let snapshot = Arc::clone(&self.snapshot);
        for (name, by) in self.state.docker.networks.clone() {
            if wanted.networks.iter().any(|w| w.name == name) {
                continue;
            }
            let Some(view) = snapshot.networks.get(&name) else {
                self.state.docker.networks.remove(&name);
                continue;
            };
            let used = self.uses_network(&name);
            let alone = view
                .declared_by
                .iter()
                .all(|node| *node == self.identity.id);
            let over = match &by {
                Some(by) if Some(by.as_str()) == swarm => wanted.knows_swarm,
                Some(_) if is_nameless(swarm) => false,
                Some(_) => alone,
                None => true,
            };
            if over && !used {
                self.state.docker.networks.remove(&name);
                self.remove_network(&view.network, now_ms);
            }
        }
    }

    fn uses_network(&self, name: &NetworkName) -> bool {
        let mut services = self.snapshot.services.values();
        let mut tasks = self.snapshot.tasks.values();
        services.any(|view| view.service.networks.iter().any(|n| n.name == *name))
            || tasks.any(|view| view.endpoint(name.as_str()).is_some())
    }

    /// Makes this node's containers tasks.
    fn follow_containers(&mut self, wanted: &Wanted) {
        let snapshot = Arc::clone(&self.snapshot);
        let gateway = snapshot
            .networks
            .get(&NetworkName::ingress())
            .and_then(|view| view.gateway(&self.identity.id));
        let mut here = std::collections::BTreeSet::new();
        for task in &wanted.tasks {
            let service = task.service.as_ref();
            let networks: Vec<NetworkName> = match service.map(|id| snapshot.services.get(id)) {
                // None of ours, or not known yet.
                Some(None) => continue,
                Some(Some(view)) => view.service.task_networks().collect(),
                None => task.endpoints.iter().map(|e| e.network.clone()).collect(),
            };
            let place = match (&task.place, gateway) {
                (ContainerPlace::Netns(path), _) => Place::Netns(path.clone()),
                (ContainerPlace::Pid(pid), _) => Place::Pid(*pid),
                (ContainerPlace::Node, Some(gateway)) => Place::Address(IpAddr::V4(gateway)),
                (ContainerPlace::Node, None) => continue,
            };
            here.insert(task.id.clone());
            self.follow_container(task, place, networks);
        }
        let tasks = &mut self.state.tasks;
        tasks.retain(|id, task| task.docker.is_none() || here.contains(id));
    }

    fn follow_container(&mut self, task: &TaskWanted, place: Place, networks: Vec<NetworkName>) {
        let docker = DockerTask {
            name: task.name.clone(),
            started_ms: task.started_ms,
            given: task.endpoints.clone(),
            state: task.state,
            checked: task.checked,
            reason: task.reason.clone(),
        };
        let slot = self.slot_of(task);
        if let Some(present) = self.state.tasks.get_mut(&task.id) {
            let before = present.docker.as_ref().map(|docker| docker.started_ms);
            let again = present.place != place || before != Some(task.started_ms);
            if again {
                present.healthy = None;
                let reason = "its container was started again".to_owned();
                let pending = AttachState::Pending(reason);
                self.attach.insert(task.id.clone(), pending);
            }
            present.place = place;
            present.service.clone_from(&task.service);
            present.slot = slot;
            present.weight = task.weight.unwrap_or(1);
            present.docker = Some(docker);
            return;
        }
        // Nobody has connections to it.
        if task.state == TaskState::Draining {
            return;
        }
        let new = LocalTask {
            id: task.id.clone(),
            service: task.service.clone(),
            slot,
            weight: task.weight.unwrap_or(1),
            place,
            pid_started: None,
            networks,
            endpoints: Vec::new(),
            file: None,
            docker: Some(docker),
            healthy: None,
            drain_until_ms: None,
        };
        self.state.tasks.insert(task.id.clone(), new);
    }

    /// The number of a task. Docker gives none to those of global services: two nodes may have chosen the same at once,
    /// and then the greater identity chooses again.
    fn slot_of(&self, task: &TaskWanted) -> u32 {
        let (Some(service), None) = (&task.service, task.slot) else {
            return task.slot.unwrap_or_default();
        };
        let present = self.state.tasks.get(&task.id).map(|present| present.slot);
        let taken = |slot: u32| {
            let mut others = self.snapshot.tasks_of(service).map(|view| &view.task);
            others.any(|other| other.slot == slot && other.id < task.id)
        };
        match present {
            Some(slot) if !taken(slot) => slot,
            _ => self.free_slot(service),
        }
    }

    /// The TCP ports of a task of which one has to accept before it gets flows: for one whose container has no
    /// HEALTHCHECK, and whose service no check either, nobody else says when it is ready. Empty if that is known,
    /// or cannot be.
    pub(crate) fn awaited_ports(&self, task: &LocalTask) -> Vec<u16> {
        let unchecked = task.docker.as_ref().is_some_and(|docker| !docker.checked);
        let service = task.service.as_ref();
        let view = service.and_then(|id| self.snapshot.services.get(id));
        let Some(view) = view.filter(|_| unchecked && task.healthy != Some(true)) else {
            return Vec::new();
        };
        if view.service.health.is_some() {
            return Vec::new();
        }
        let ports = view.service.ports.iter();
        let tcp = ports.filter(|port| port.protocol == Protocol::Tcp);
        let targets = tcp.flat_map(|port| port.pairs().map(|(_, target)| target));
        targets.take(TRIED).collect()
    }

    /// Why a task that Docker runs here is not in rotation, as far as Docker or the task itself keeps it out.
    pub(crate) fn why_waiting(&self, id: &TaskId) -> Option<String> {
        let task = self.state.tasks.get(id)?;
        let docker = task.docker.as_ref()?;
        if let Some(reason) = &docker.reason {
            return Some(reason.clone());
        }
        let ports = self.awaited_ports(task);
        let first = ports.first()?;
        Some(match ports.len() {
            1 => format!("nothing accepts connections at its port {first} yet"),
            _ => format!("nothing accepts connections at its port {first}, or its others, yet"),
        })
    }
}

/// Who stands behind a declaration: this node's identity in the Swarm, or `None` for the engine alone.
fn declarer(origin: Origin, swarm: Option<&str>) -> Option<String> {
    match origin {
        Origin::Swarm => swarm.map(str::to_owned),
        Origin::Engine => None,
    }
}

/// Whether the engine is in a Swarm and does not say as whom, as before it is unlocked: it may well be the same as before.
fn is_nameless(swarm: Option<&str>) -> bool {
    swarm.is_some_and(str::is_empty)
}

/// The version under which something is to be declared that is asked for in version `asked`. `None`: what is known
/// is later, or a removal that stands.
fn version(asked: u64, present: Option<u64>, removed: Option<u64>, origin: Origin) -> Option<u64> {
    match (present, removed) {
        (Some(present), _) if is_same_state(present, asked) => Some(present),
        (Some(present), _) => (present < asked).then_some(asked),
        (None, Some(removed)) if removed < asked => Some(asked),
        // A Swarm's objects have another version before they come back, and all managers speak of the same. A node
        // that was away may have been taken for gone, with all that its containers ask for.
        (None, Some(removed)) => (origin == Origin::Engine).then_some(removed + 1),
        (None, None) => Some(asked),
    }
}
