//! The tasks of this node: added, drained, removed, and how they are to be attached.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use ipnetwork::Ipv4Network;
use portolan_model::{
    Endpoint, MacAddress, NetworkName, Service, ServiceId, TaskId, TaskState, claims,
};

use portolan_overlay::PortRange;
use portolan_provider::{StaticTask, TaskPlace};
use sha2::{Digest, Sha256};

use super::Node;
use crate::{agent::state::LocalTask, api::Place};

/// How far a task's namespace is attached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum AttachState {
    /// It is not, for this reason; it is tried again.
    Pending(String),
    /// It is, or needs not be.
    Attached,
}

/// How a task's namespace is to be attached to one network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub network: NetworkName,
    pub vni: u32,
    pub subnet: Ipv4Network,
    pub own_range: Option<Ipv4Network>,
    pub address: Ipv4Addr,
    pub mac: MacAddress,
    pub gateway: Ipv4Addr,
    pub ipv6: BTreeSet<PortRange>,
}

/// Why a task cannot be what was asked. Nothing changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TaskError {
    #[error(
        "there is no service '{0}'; `portolan services` lists them, `portolan apply` declares one"
    )]
    NoService(String),
    #[error(
        "there is no network '{0}'; `portolan networks` lists them, `portolan apply` declares one"
    )]
    NoNetwork(String),
    #[error("there is no task '{0}' on this node; `portolan tasks` shows where each one runs")]
    NoTask(String),
    #[error("'{0}' is the start of several tasks' ids; give more of it")]
    Ambiguous(String),
    #[error("task {task} already is in {place}")]
    PlaceTaken { task: TaskId, place: String },
    #[error(
        "slot {slot} of service {service} is taken by task {task} on {node}; remove that one first or leave --slot out"
    )]
    SlotTaken {
        slot: u32,
        service: String,
        task: TaskId,
        node: String,
    },
    #[error("slots are counted from 1")]
    SlotZero,
    #[error(
        "{0} is an address of the overlay, which Portolan gives to tasks itself; give the task's namespace with --netns or --pid"
    )]
    OverlayAddress(IpAddr),
    #[error(
        "{0} is an address of this machine alone; give one that every node can reach, such as the node's own"
    )]
    Loopback(IpAddr),
    #[error("{0} is no address of a task")]
    NoAddress(IpAddr),
    #[error("a service's task can be drained, {0} is only attached; `portolan detach` removes it")]
    NotDrainable(TaskId),
    #[error("this node drains, and its tasks get no flows; `portolan node activate` ends that")]
    NodeDrains,
    #[error("an attachment needs a network namespace: --netns PATH or --pid N")]
    AttachAddress,
    #[error(
        "task {task} is container {container}, which Docker runs; end it by Docker (`docker service scale`, `docker stop`), or take it out of rotation by `portolan task drain`"
    )]
    Container { task: TaskId, container: String },
}

impl Node {
    /// Adds a task to a service. `id` is new. Its addresses are there after the next refresh.
    pub(crate) fn add_task(
        &mut self,
        id: TaskId,
        service: &str,
        place: Place,
        slot: Option<u32>,
        weight: Option<u16>,
        file: Option<String>,
    ) -> Result<(), TaskError> {
        let view = self
            .snapshot
            .find_service(service)
            .ok_or_else(|| TaskError::NoService(service.to_owned()))?;
        let service = std::sync::Arc::clone(&view.service);
        if file.is_none() && self.state.draining_since_ms.is_some() {
            return Err(TaskError::NodeDrains);
        }
        self.check_place(&service.id, &place)?;
        let slot = match slot {
            Some(0) => return Err(TaskError::SlotZero),
            Some(slot) => {
                if let Some((task, node)) = self.slot_holder(&service.id, slot) {
                    let service = service.name.clone();
                    return Err(TaskError::SlotTaken {
                        slot,
                        service,
                        task,
                        node,
                    });
                }
                slot
            }
            None => self.free_slot(&service.id),
        };
        self.state.tasks.insert(
            id.clone(),
            LocalTask {
                id,
                slot,
                weight: weight.unwrap_or(1),
                place,
                networks: service.task_networks().collect(),
                service: Some(service.id.clone()),
                endpoints: Vec::new(),
                file,
                docker: None,
                pid_started: None,
                healthy: None,
                drain_until_ms: None,
            },
        );
        Ok(())
    }

    /// Puts a namespace on a network without making it a task.
    pub(crate) fn attach(
        &mut self,
        id: TaskId,
        network: &str,
        place: Place,
    ) -> Result<(), TaskError> {
        let name = self
            .snapshot
            .networks
            .keys()
            .find(|name| name.as_str() == network)
            .ok_or_else(|| TaskError::NoNetwork(network.to_owned()))?
            .clone();
        if matches!(place, Place::Address(_)) {
            return Err(TaskError::AttachAddress);
        }
        let there = self
            .state
            .tasks
            .values()
            .find(|t| t.service.is_none() && t.place == place && t.networks.contains(&name));
        if let Some(task) = there {
            return Err(TaskError::PlaceTaken {
                task: task.id.clone(),
                place: describe(&place),
            });
        }
        let task = LocalTask {
            id: id.clone(),
            service: None,
            slot: 0,
            weight: 0,
            place,
            networks: vec![name],
            endpoints: Vec::new(),
            file: None,
            docker: None,
            pid_started: None,
            healthy: None,
            drain_until_ms: None,
        };
        self.state.tasks.insert(id, task);
        Ok(())
    }

    /// Makes the tasks of a stack file for this node what the file says: new ones are added, those that
    /// are no longer in it drain.
    pub(crate) fn set_static_tasks(
        &mut self,
        file: &str,
        wanted: &[StaticTask],
        now_ms: u64,
    ) -> Result<(), Vec<TaskError>> {
        let mut kept = BTreeSet::new();
        let mut errors = Vec::new();
        let me = self.identity.name.clone();
        for task in wanted.iter().filter(|task| task.node == me) {
            let place = match &task.place {
                TaskPlace::Netns(path) => Place::Netns(path.clone()),
                TaskPlace::Pid(pid) => Place::Pid(*pid),
                TaskPlace::Address(ip) => Place::Address(*ip),
            };
            let id = static_id(&me, file, &task.service, &place);
            kept.insert(id.clone());
            if let Some(present) = self.state.tasks.get_mut(&id) {
                present.slot = task.slot.unwrap_or(present.slot);
                present.weight = task.weight.unwrap_or(1);
                present.drain_until_ms = None;
            } else if let Err(error) = self.add_task(
                id,
                task.service.as_str(),
                place,
                task.slot,
                task.weight,
                Some(file.to_owned()),
            ) {
                errors.push(error);
            }
        }
        let over = self
            .state
            .tasks
            .values()
            .filter(|t| t.file.as_deref() == Some(file));
        let over: Vec<TaskId> = over
            .map(|t| t.id.clone())
            .filter(|id| !kept.contains(id))
            .collect();
        for id in over {
            if let Err(error) = self.drain_task(&id, now_ms) {
                errors.push(error);
            }
        }
        if errors.is_empty() {
            Ok(())
        } else {
            Err(errors)
        }
    }

    /// Why a task lacks an address, in the words of a user.
    fn why_no_address(&self, task: &LocalTask) -> String {
        let missing = task
            .networks
            .iter()
            .find(|n| task.endpoints.iter().all(|e| e.network != **n));
        let network = missing.and_then(|name| self.snapshot.networks.get(name));
        if let Some(view) = network.filter(|view| view.network.own_range.is_some()) {
            let name = &view.network.name;
            return format!(
                "Docker gives the addresses of network {name}; connect the container with `docker network connect {name} CONTAINER`"
            );
        }
        match missing {
            Some(network) => match claims::slice(&self.snapshot, self.identity.id, network, 0) {
                Err(error) => error.to_string(),
                Ok(_) => format!("network {network} has no free address on this node"),
            },
            None if task.networks.is_empty() => {
                "the service is on no network and publishes no port; there is nothing to attach to"
                    .to_owned()
            }
            None => "this node has no place on the network yet; try again".to_owned(),
        }
    }

    /// Removes a task at once; its flows end.
    pub(crate) fn remove_task(&mut self, id: &TaskId) -> Option<LocalTask> {
        self.state.tasks.remove(id)
    }

    /// Removes a task because a user says so.
    pub(crate) fn end_task(&mut self, id: &TaskId) -> Result<(), TaskError> {
        let docker = self.state.tasks.get(id).and_then(|t| t.docker.as_ref());
        if let Some(docker) = docker {
            return Err(TaskError::Container {
                task: id.clone(),
                container: docker.name.clone(),
            });
        }
        self.remove_task(id);
        Ok(())
    }

    /// Begins a task's drain; at its end the task is removed.
    pub(crate) fn drain_task(&mut self, id: &TaskId, now_ms: u64) -> Result<(), TaskError> {
        let drain_ms = match self.state.tasks.get(id) {
            Some(task) if task.service.is_none() => {
                return Err(TaskError::NotDrainable(id.clone()));
            }
            Some(task) => self.drain_ms(task),
            None => return Err(TaskError::NoTask(id.to_string())),
        };
        if let Some(task) = self.state.tasks.get_mut(id) {
            task.drain_until_ms
                .get_or_insert(now_ms + u64::from(drain_ms));
        }
        Ok(())
    }

    /// The task of this node that a user means: by id, by the start of it, or by name.
    pub(crate) fn find_task(&self, name: &str) -> Result<TaskId, TaskError> {
        let tasks = &self.state.tasks;
        if let Some(task) = tasks.values().find(|t| t.id.as_str() == name) {
            return Ok(task.id.clone());
        }
        let named = |task: &&LocalTask| {
            let view = self.snapshot.tasks.get(&task.id);
            view.is_some_and(|v| self.snapshot.task_name(&v.task) == name)
                || (!name.is_empty() && task.id.as_str().starts_with(name))
        };
        let mut found = tasks.values().filter(named);
        match (found.next(), found.next()) {
            (Some(task), None) => Ok(task.id.clone()),
            (Some(_), Some(_)) => Err(TaskError::Ambiguous(name.to_owned())),
            (None, _) => Err(TaskError::NoTask(name.to_owned())),
        }
    }

    /// Why a task of this node lacks an address on one of its networks; `None` if it does not.
    pub(crate) fn lacks_address(&self, task: &LocalTask) -> Option<String> {
        let there = |network: &NetworkName| task.endpoints.iter().any(|e| e.network == *network);
        // A container whose ports Docker itself serves needs none.
        let some = !task.endpoints.is_empty() || task.docker.is_some() && task.networks.is_empty();
        let complete = some && task.networks.iter().all(there);
        (!complete).then(|| self.why_no_address(task))
    }

    /// How each task's namespace is to be attached. Where a network cannot be had the task still is on the
    /// others: what serves is not given up for what is missing.
    pub(crate) fn wanted_attachments(&self) -> BTreeMap<TaskId, (Place, Vec<Wanted>)> {
        let tasks = self.state.tasks.values();
        let attachable = tasks.filter(|task| !matches!(task.place, Place::Address(_)));
        attachable
            .filter_map(|task| {
                let endpoints = task.endpoints.iter().filter(|e| !is_given(task, e));
                let ipv6 = self.serves_ipv6(task);
                let wanted: Vec<Wanted> = endpoints.filter_map(|e| self.wanted(e, &ipv6)).collect();
                let somewhere = !wanted.is_empty();
                somewhere.then(|| (task.id.clone(), (task.place.clone(), wanted)))
            })
            .collect()
    }

    /// The ports at which a task serves IPv6 clients at its own address; none if its service does not want
    /// that, or this node cannot.
    fn serves_ipv6(&self, task: &LocalTask) -> BTreeSet<PortRange> {
        let service = task.service.as_ref();
        let view = service.and_then(|id| self.snapshot.services.get(id));
        let wants = view.filter(|view| self.ipv6 && view.service.ipv6);
        let ports = wants.into_iter().flat_map(|view| &view.service.ports);
        ports
            .map(|port| PortRange {
                protocol: port.protocol,
                first: port.target,
                last: port.target.saturating_add(port.count.saturating_sub(1)),
            })
            .collect()
    }

    fn wanted(&self, endpoint: &Endpoint, ipv6: &BTreeSet<PortRange>) -> Option<Wanted> {
        let view = self.snapshot.networks.get(&endpoint.network)?;
        let IpAddr::V4(address) = endpoint.ip else {
            return None;
        };
        Some(Wanted {
            network: endpoint.network.clone(),
            vni: view.network.vni,
            subnet: view.network.subnet,
            own_range: view.network.own_range,
            address,
            mac: endpoint.mac?,
            gateway: view.gateway(&self.identity.id)?,
            // Clients outside come by that network alone.
            ipv6: Some(ipv6)
                .filter(|_| endpoint.network == NetworkName::ingress())
                .cloned()
                .unwrap_or_default(),
        })
    }

    /// Notes how far a task is attached. Returns whether that is news.
    pub(crate) fn set_attached(&mut self, id: &TaskId, state: AttachState) -> bool {
        self.attach.insert(id.clone(), state.clone()) != Some(state)
    }

    /// Whether a task is attached to what it has to be.
    pub(crate) fn is_attached(&self, id: &TaskId) -> bool {
        self.attach.get(id) == Some(&AttachState::Attached)
    }

    /// How far each task is attached.
    pub(crate) fn attach_states(&self) -> &BTreeMap<TaskId, AttachState> {
        &self.attach
    }

    /// Forgets how tasks that are gone were attached, and takes for attached what needs not be: tasks without a
    /// namespace, and containers that are on no network but Docker's.
    pub(crate) fn settle_attachments(&mut self) {
        let tasks = &self.state.tasks;
        self.attach.retain(|id, _| tasks.contains_key(id));
        for task in tasks.values() {
            let of_docker = task.docker.is_some()
                && task.networks.len() == task.endpoints.len()
                && task.endpoints.iter().all(|e| is_given(task, e));
            if matches!(task.place, Place::Address(_)) || of_docker {
                self.attach.insert(task.id.clone(), AttachState::Attached);
            }
        }
    }

    /// Remembers when the process of a task started.
    pub(crate) fn set_pid_started(&mut self, id: &TaskId, started: Option<u64>) {
        if let Some(task) = self.state.tasks.get_mut(id) {
            task.pid_started = started;
        }
    }

    /// Takes note that a task's namespace is gone: a task of a stack file waits for it to come again, and
    /// one of Docker's for Docker's word; any other goes with it.
    pub(crate) fn namespace_gone(&mut self, id: &TaskId) {
        self.state.driver.endpoints.remove(id);
        let waits = self
            .state
            .tasks
            .get(id)
            .is_some_and(|task| task.file.is_some() || task.docker.is_some());
        if waits {
            let reason = "its network namespace is gone".to_owned();
            self.attach.insert(id.clone(), AttachState::Pending(reason));
        } else {
            self.state.tasks.remove(id);
        }
    }

    /// How long a task keeps its flows while it drains.
    pub(super) fn drain_ms(&self, task: &LocalTask) -> u32 {
        let view = task
            .service
            .as_ref()
            .and_then(|id| self.snapshot.services.get(id));
        view.map_or(Service::DEFAULT_DRAIN_MS, |view| view.service.drain_ms)
    }

    /// The longest drain of all tasks of this node, and 0 if it has none.
    pub(crate) fn longest_drain_ms(&self) -> u32 {
        let tasks = self
            .state
            .tasks
            .values()
            .filter(|task| task.service.is_some());
        tasks.map(|task| self.drain_ms(task)).max().unwrap_or(0)
    }

    /// Whether the node's drain has ended for a task, or the one that a user began of a task which Docker runs on:
    /// its record is withheld until the node is active again, or Docker ends the task.
    pub(super) fn drained(&self, task: &LocalTask, now_ms: u64) -> bool {
        let since = self.state.draining_since_ms;
        let with_node = since.map(|since| since + u64::from(self.drain_ms(task)));
        let own = task.drain_until_ms.filter(|_| task.docker.is_some());
        let until = [with_node, own].into_iter().flatten().min();
        task.service.is_some() && until.is_some_and(|until| until <= now_ms)
    }

    fn check_place(&self, service: &ServiceId, place: &Place) -> Result<(), TaskError> {
        if let Place::Address(ip) = place {
            if ip.is_loopback() {
                return Err(TaskError::Loopback(*ip));
            }
            if ip.is_unspecified() || ip.is_multicast() {
                return Err(TaskError::NoAddress(*ip));
            }
            if self.is_foreign_overlay_address(*ip) {
                return Err(TaskError::OverlayAddress(*ip));
            }
        }
        let there = self.state.tasks.values().find(|t| {
            t.place == *place && t.service.as_ref() == Some(service) && t.drain_until_ms.is_none()
        });
        match there {
            Some(task) => Err(TaskError::PlaceTaken {
                task: task.id.clone(),
                place: describe(place),
            }),
            None => Ok(()),
        }
    }

    /// Whether an address is of a network's subnet, and not this node's own gateway there, at which a
    /// process of the node itself may well be.
    fn is_foreign_overlay_address(&self, ip: IpAddr) -> bool {
        let IpAddr::V4(ip) = ip else { return false };
        let networks = self.snapshot.networks.values();
        networks
            .filter(|view| view.network.ranges().any(|range| range.contains(ip)))
            .any(|view| view.gateway(&self.identity.id) != Some(ip))
    }

    /// The task of a service that has a slot and does not drain, here or elsewhere, and its node.
    fn slot_holder(&self, service: &ServiceId, slot: u32) -> Option<(TaskId, String)> {
        let here = self.state.tasks.values().find(|task| {
            task.service.as_ref() == Some(service)
                && task.slot == slot
                && task.drain_until_ms.is_none()
        });
        if let Some(task) = here {
            return Some((task.id.clone(), self.identity.name.clone()));
        }
        let elsewhere = self.snapshot.tasks_of(service).find(|view| {
            view.node != self.identity.id
                && view.task.slot == slot
                && view.state != TaskState::Draining
        })?;
        let node = self.snapshot.node_name(&elsewhere.node);
        Some((elsewhere.task.id.clone(), node))
    }

    pub(super) fn free_slot(&self, service: &ServiceId) -> u32 {
        let elsewhere = self.snapshot.tasks_of(service).map(|view| view.task.slot);
        let here = self
            .state
            .tasks
            .values()
            .filter(|t| t.service.as_ref() == Some(service));
        let taken: BTreeSet<u32> = elsewhere.chain(here.map(|t| t.slot)).collect();
        (1..u32::MAX)
            .find(|slot| !taken.contains(slot))
            .unwrap_or(u32::MAX)
    }
}

/// Whether an endpoint has its address and its interface from Docker.
fn is_given(task: &LocalTask, endpoint: &Endpoint) -> bool {
    let given = task.docker.iter().flat_map(|docker| &docker.given);
    given
        .into_iter()
        .any(|given| given.network == endpoint.network)
}

/// A place in the words of a user.
pub(crate) fn describe(place: &Place) -> String {
    match place {
        Place::Netns(path) => path.display().to_string(),
        Place::Pid(pid) => format!("the namespace of process {pid}"),
        Place::Address(ip) => ip.to_string(),
    }
}

/// The identity of a task of a stack file: the same at every start, and another on every node, as one file
/// may name the same place on several.
fn static_id(node: &str, file: &str, service: &ServiceId, place: &Place) -> TaskId {
    let text = format!("{node}\0{file}\0{service}\0{}", describe(place));
    let digest = Sha256::digest(text);
    let hex: String = digest
        .iter()
        .take(6)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    #[expect(clippy::expect_used, reason = "twelve hexadecimal digits are a name")]
    hex.parse().expect("a name")
}
