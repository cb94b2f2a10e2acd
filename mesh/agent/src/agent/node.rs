//! A node's own part in the cluster, as a state machine without clock, disk or socket: what it declares,
//! which tasks it runs, what it claims, and which records follow from that.
//!
//! [`Node::refresh`] brings everything in line with what has become known: it is called after every
//! change, and does nothing when nothing is to be done.

mod claim;
mod declare;
mod docker;
mod driver;
mod follow;
mod tasks;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use portolan_model::{
    Catalog, HealthCheck, NetworkAttach, NetworkName, NodeId, NodeState, Record, Snapshot, Task,
    TaskId, TaskState,
};

pub(super) use docker::Finding;
pub(super) use driver::{DriverChange, Joined, check as check_driver_network};
pub(super) use tasks::{AttachState, Wanted};

use super::state::{LocalState, LocalTask};

/// How long a node of before may take to tell what it has.
const MISSED_MS: u64 = 5_000;

/// Who the node is.
#[derive(Debug, Clone)]
pub(super) struct Identity {
    pub id: NodeId,
    pub name: String,
    pub underlay: IpAddr,
    pub version: String,
}

/// See the module.
#[derive(Debug)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "facts of which each may be so or not"
)]
pub(super) struct Node {
    identity: Identity,
    catalog: Catalog,
    state: LocalState,
    /// Whether the node is about to go.
    leaving: bool,
    /// Whether others may send this node packets with clients' own addresses.
    fast_path: bool,
    /// Whether tasks here can have IPv6 addresses.
    ipv6: bool,
    /// When gossip had its first exchange, Unix milliseconds.
    synced_ms: Option<u64>,
    /// Whether absence in the catalog means anything yet.
    settled: bool,
    /// How far each task's namespace is attached.
    attach: BTreeMap<TaskId, AttachState>,
    /// The address given last on each network: one that was just given up is not given again at once,
    /// as others may not have heard of it yet.
    given: BTreeMap<NetworkName, Ipv4Addr>,
    /// What the Docker engine said last, and what of it this node cannot do.
    docker: Option<Arc<portolan_docker::Known>>,
    docker_refusals: Vec<Finding>,
    snapshot: Arc<Snapshot>,
    /// The revision of the catalog that the snapshot is made of.
    revision: Option<u64>,
    /// When [`Self::refresh`] was called last.
    refreshed_ms: u64,
}

impl Node {
    /// A node that remembers `state`, and knows of no other yet.
    pub(super) fn new(identity: Identity, state: LocalState) -> Self {
        let id = identity.id;
        // The kernel has what an earlier agent attached. To call such a task starting until it is attached
        // anew would end its connections on every node.
        let remembered = state
            .tasks
            .values()
            .filter(|task| !task.endpoints.is_empty());
        let attach = remembered
            .map(|task| (task.id.clone(), AttachState::Attached))
            .collect();
        Self {
            identity,
            catalog: Catalog::new(id),
            state,
            leaving: false,
            fast_path: false,
            ipv6: false,
            synced_ms: None,
            settled: false,
            attach,
            given: BTreeMap::new(),
            docker: None,
            docker_refusals: Vec::new(),
            snapshot: Arc::new(Snapshot::empty(id)),
            revision: None,
            refreshed_ms: 0,
        }
    }

    /// The state of the world as this node now sees it.
    pub(super) fn snapshot(&self) -> &Arc<Snapshot> {
        &self.snapshot
    }

    /// What has to be remembered.
    pub(super) fn state(&self) -> &LocalState {
        &self.state
    }

    /// Goes back to an earlier state, after a change that was refused or could not be saved.
    pub(super) fn restore(&mut self, state: LocalState) {
        self.state = state;
    }

    /// Where the records of the others go.
    pub(super) fn catalog(&mut self) -> &mut Catalog {
        &mut self.catalog
    }

    /// Says that gossip has had its first exchange.
    pub(super) fn set_synced(&mut self, now_ms: u64) {
        self.synced_ms.get_or_insert(now_ms);
    }

    /// Whether gossip has had its first exchange: what others hold of this node may be replaced.
    pub(super) fn is_synced(&self) -> bool {
        self.synced_ms.is_some()
    }

    /// Announces that the node is about to go.
    pub(super) fn set_leaving(&mut self) {
        self.leaving = true;
    }

    /// Says whether others may rely on this node's fast path.
    pub(super) fn set_fast_path(&mut self, fast_path: bool) {
        self.fast_path = fast_path;
    }

    /// Says whether the tasks of this node can be given IPv6 addresses.
    pub(super) fn set_ipv6(&mut self, ipv6: bool) {
        self.ipv6 = ipv6;
    }

    /// Starts or ends the node's drain.
    pub(super) fn set_draining(&mut self, draining: bool, now_ms: u64) {
        let since = self.state.draining_since_ms;
        self.state.draining_since_ms = draining.then(|| since.unwrap_or(now_ms));
    }

    /// Remembers that a stack file was applied.
    pub(super) fn note_stack_file(&mut self, path: String, hash: String) {
        self.state.stack_files.insert(path, hash);
    }

    /// Takes what a health check found. Returns whether that is news.
    pub(super) fn set_health(&mut self, task: &TaskId, healthy: bool) -> bool {
        let task = self.state.tasks.get_mut(task);
        task.is_some_and(|task| task.healthy.replace(healthy) != Some(healthy))
    }

    /// Makes everything follow from what is known now.
    pub(super) fn refresh(&mut self, now_ms: u64) {
        self.refreshed_ms = now_ms;
        self.mind_the_clock(now_ms);
        // A claim changes the snapshot from which the next one is made: a few rounds settle that, and
        // two nodes that keep contesting each other go on at the next call.
        for _ in 0..8 {
            self.rebuild(now_ms);
            self.settle(now_ms);
            let before = self.state.clone();
            self.follow_docker(now_ms);
            self.follow_declarations(now_ms);
            self.trust_unchecked();
            self.expire(now_ms);
            self.claim(now_ms);
            if self.state == before {
                break;
            }
        }
        self.rebuild(now_ms);
        self.remember_nodes();
    }

    /// When [`Self::refresh`] has something to do even if nothing happens, Unix milliseconds. What was due
    /// by the last refresh is done, or waits for something else than time.
    pub(super) fn next_deadline_ms(&self) -> Option<u64> {
        self.deadlines().filter(|at| *at > self.refreshed_ms).min()
    }

    /// Every record that this node publishes.
    pub(super) fn records(&self, now_ms: u64) -> Vec<Record> {
        let state = match (self.leaving, self.state.draining_since_ms) {
            (true, _) => NodeState::Leaving,
            (false, Some(_)) => NodeState::Draining,
            (false, None) => NodeState::Up,
        };
        let node = Record::Node(portolan_model::Node {
            name: self.identity.name.clone(),
            underlay: self.identity.underlay,
            state,
            version: self.identity.version.clone(),
            fast_path: self.fast_path,
            ipv6: self.ipv6,
        });
        let attaches = self.state.slices.iter().map(|(network, held)| {
            Record::NetworkAttach(NetworkAttach {
                network: network.clone(),
                slices: held.slices.clone(),
            })
        });
        let networks = self.state.networks.values().cloned().map(Record::Network);
        let services = self.state.services.values().cloned().map(Record::Service);
        let tasks = self
            .state
            .tasks
            .values()
            .filter(|task| !self.drained(task, now_ms));
        let tasks: Vec<Task> = tasks.map(|task| self.task_record(task)).collect();
        let joined = self.driver_records(&tasks);
        let tasks = tasks.into_iter().chain(joined).map(Record::Task);
        [node]
            .into_iter()
            .chain(attaches)
            .chain(networks)
            .chain(services)
            .chain(tasks)
            .collect()
    }

    /// Absence means something once every node of before has told what it has. All agents may have been
    /// restarted at once, and the first exchange been one with somebody who knew nothing yet.
    fn settle(&mut self, now_ms: u64) {
        let Some(synced_ms) = self.synced_ms.filter(|_| !self.settled) else {
            return;
        };
        let here = |name: &String| self.snapshot.nodes.contains_key(&NodeId::of_name(name));
        let all = self.state.nodes.iter().all(here);
        if all || now_ms.saturating_sub(synced_ms) >= MISSED_MS {
            self.settled = true;
            self.revision = None;
            self.rebuild(now_ms);
        }
    }

    fn remember_nodes(&mut self) {
        let names = self.snapshot.nodes.values().map(|node| &node.name);
        let names: BTreeSet<String> = names.cloned().collect();
        if self.settled && self.state.nodes != names {
            self.state.nodes = names;
        }
    }

    fn rebuild(&mut self, now_ms: u64) {
        let records = self.records(now_ms);
        self.catalog.set_owner(self.identity.id, true, records);
        let revision = Some(self.catalog.revision());
        if self.revision == revision {
            return;
        }
        self.revision = revision;
        let snapshot = self.catalog.snapshot(self.settled);
        if *self.snapshot != snapshot {
            self.snapshot = Arc::new(snapshot);
        }
    }

    fn task_record(&self, task: &LocalTask) -> Task {
        Task {
            id: task.id.clone(),
            service: task.service.clone(),
            slot: task.slot,
            endpoints: task.endpoints.clone(),
            state: self.task_state(task),
            weight: task.weight,
        }
    }

    fn task_state(&self, task: &LocalTask) -> TaskState {
        let docker = task.docker.as_ref().map(|docker| docker.state);
        if task.drain_until_ms.is_some() || docker == Some(TaskState::Draining) {
            return TaskState::Draining;
        }
        if self.attach.get(&task.id) != Some(&AttachState::Attached) {
            return TaskState::Starting;
        }
        if let Some(state @ (TaskState::Starting | TaskState::Unhealthy)) = docker {
            return state;
        }
        if !self.awaited_ports(task).is_empty() {
            return TaskState::Starting;
        }
        match (self.health_check(task), task.healthy) {
            (None, _) | (_, Some(true)) => TaskState::Healthy,
            (_, Some(false)) => TaskState::Unhealthy,
            (_, None) => TaskState::Starting,
        }
    }

    /// How a task is to be checked.
    pub(super) fn health_check(&self, task: &LocalTask) -> Option<&HealthCheck> {
        let service = self.snapshot.services.get(task.service.as_ref()?)?;
        service.service.health.as_ref()
    }
}

#[cfg(test)]
mod tests;
