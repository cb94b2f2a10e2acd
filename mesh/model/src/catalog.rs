//! The catalog: the records of all nodes as they came, and how they are merged into a [`Snapshot`].

mod merge;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use crate::{
    Network, NetworkAttach, NetworkName, Node, NodeId, Record, RecordKey, Service, ServiceId,
    Snapshot, Task, TaskId, TaskView,
};

/// With more tasks changed at once it is quicker to merge everything than to look each of them up at every node.
const FEW_TASKS: usize = 256;

/// The records of one node.
#[derive(Debug, Clone, Default)]
struct Owner {
    /// Whether the node is a member now. The records of one that is away are kept, and count only
    /// where forgetting them would do harm: its slices stay claimed.
    visible: bool,
    records: BTreeMap<RecordKey, Held>,
}

/// A record as it is held: what has not changed is the same in every snapshot, and found so by its address alone.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Held {
    Node(Arc<Node>),
    Network(Arc<Network>),
    NetworkAttach(NetworkAttach),
    Service(Arc<Service>),
    Task(Arc<Task>),
}

impl From<Record> for Held {
    fn from(record: Record) -> Self {
        match record {
            Record::Node(node) => Self::Node(Arc::new(node)),
            Record::Network(network) => Self::Network(Arc::new(network)),
            Record::NetworkAttach(attach) => Self::NetworkAttach(attach),
            Record::Service(service) => Self::Service(Arc::new(service)),
            Record::Task(task) => Self::Task(Arc::new(task)),
        }
    }
}

/// All records of all nodes. One task writes it; readers get a [`Snapshot`].
#[derive(Debug, Clone)]
pub struct Catalog {
    owners: BTreeMap<NodeId, Owner>,
    revision: u64,
    /// What was merged last. Changes of tasks alone are followed in there.
    merged: Snapshot,
    /// Whether more has changed since.
    stale: bool,
}

impl Catalog {
    /// An empty catalog of this node.
    pub fn new(me: NodeId) -> Self {
        Self {
            owners: BTreeMap::new(),
            revision: 0,
            merged: Snapshot::empty(me),
            stale: true,
        }
    }

    /// Rises with every change: what was made of the same revision is still right.
    pub const fn revision(&self) -> u64 {
        self.revision
    }

    /// Sets all that one node publishes. Returns whether anything changed.
    pub fn set_owner(
        &mut self,
        owner: NodeId,
        visible: bool,
        records: impl IntoIterator<Item = Record>,
    ) -> bool {
        let records = records.into_iter().map(|record| (record.key(), record));
        let new: BTreeMap<RecordKey, Record> = records.collect();
        let known = self.owners.get(&owner).into_iter();
        let gone = known.flat_map(|known| known.records.keys());
        let gone = gone.filter(|key| !new.contains_key(key)).cloned();
        let gone: Vec<RecordKey> = gone.collect();
        let gone = gone.into_iter().map(|key| (key, None));
        let new = new.into_iter().map(|(key, record)| (key, Some(record)));
        self.change_owner(owner, visible, gone.chain(new))
    }

    /// Changes some of what one node publishes: `None` is a record that is gone. Returns whether that was news.
    pub fn change_owner(
        &mut self,
        owner: NodeId,
        visible: bool,
        changes: impl IntoIterator<Item = (RecordKey, Option<Record>)>,
    ) -> bool {
        let mut all = self.owners.get(&owner).is_none_or(|o| o.visible != visible);
        let entry = self.owners.entry(owner).or_default();
        entry.visible = visible;
        let mut tasks = BTreeSet::new();
        for (key, record) in changes {
            let new = record.map(Held::from);
            if entry.records.get(&key) == new.as_ref() {
                continue;
            }
            match &key {
                RecordKey::Task(id) => drop(tasks.insert(id.clone())),
                _ => all = true,
            }
            match new {
                Some(new) => drop(entry.records.insert(key, new)),
                None => drop(entry.records.remove(&key)),
            }
        }
        if !all && tasks.is_empty() {
            return false;
        }
        self.revision += 1;
        self.stale |= all || tasks.len() > FEW_TASKS;
        for id in tasks {
            if self.stale {
                break;
            }
            self.follow_task(&id);
        }
        true
    }

    /// Forgets a node. Returns whether it was known.
    pub fn remove_owner(&mut self, owner: &NodeId) -> bool {
        let known = self.owners.remove(owner).is_some();
        self.revision += u64::from(known);
        self.stale |= known;
        known
    }

    /// The nodes of which records are held, those away included.
    pub fn owners(&self) -> impl Iterator<Item = &NodeId> {
        self.owners.keys()
    }

    /// Whether a node that is not `except` still publishes a declaration of the service older than `version`.
    pub fn repeats_older_service(&self, except: NodeId, id: &ServiceId, version: u64) -> bool {
        self.others(except, &RecordKey::Service(id.clone()))
            .any(|record| matches!(record, Held::Service(s) if s.spec_version < version))
    }

    /// The same of a network.
    pub fn repeats_older_network(&self, except: NodeId, name: &NetworkName, version: u64) -> bool {
        self.others(except, &RecordKey::Network(name.clone()))
            .any(|record| matches!(record, Held::Network(n) if n.spec_version < version))
    }

    fn others(&self, except: NodeId, key: &RecordKey) -> impl Iterator<Item = &Held> {
        self.owners
            .iter()
            .filter(move |(node, _)| **node != except)
            .filter_map(move |(_, owner)| owner.records.get(key))
    }

    /// Everything merged. `synced` says whether all sources have reported.
    pub fn snapshot(&mut self, synced: bool) -> Snapshot {
        if std::mem::take(&mut self.stale) {
            self.merged = merge::merge(&self.owners, &self.merged);
        }
        Snapshot {
            synced,
            ..self.merged.clone()
        }
    }

    /// Takes one task into what is merged as its records are now.
    fn follow_task(&mut self, id: &TaskId) {
        let key = RecordKey::Task(id.clone());
        let visible = self.owners.iter().filter(|(_, owner)| owner.visible);
        let mut found = visible.filter_map(|(node, owner)| match owner.records.get(&key) {
            Some(Held::Task(task)) => Some(merge::task_view(*node, task, &self.merged.nodes)),
            _ => None,
        });
        let new = found.next();
        let old = self.merged.tasks.get(id).cloned();
        if old == new {
            return;
        }
        // Taken out before it is put in elsewhere, as its place among others depends on what it was.
        let place = |view: &TaskView| (view.task.service.clone(), view.task.slot);
        let moved = old.as_ref().map(place) != new.as_ref().map(place);
        if let Some(old) = old.filter(|_| moved)
            && let Some(service) = &old.task.service
            && let Some(view) = self.merged.services.get_mut(service)
        {
            view.tasks.retain(|task| task != id);
        }
        let Some(new) = new else {
            self.merged.tasks.remove(id);
            return;
        };
        if moved
            && let Some(service) = &new.task.service
            && let Some(view) = self.merged.services.get_mut(service)
        {
            let slot = |task: &TaskId| self.merged.tasks.get(task).map(|view| view.task.slot);
            let at = (Some(new.task.slot), id);
            let before = |task: &TaskId| (slot(task), task) < at;
            let place = view.tasks.partition_point(before);
            view.tasks.insert(place, id.clone());
        }
        self.merged.tasks.insert(id.clone(), new);
    }
}
