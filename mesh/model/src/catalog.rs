//! The catalog: the records of all nodes as they came, and how they are merged into a [`Snapshot`].

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use crate::{
    Network, NetworkAttach, NetworkName, NetworkView, Node, NodeId, NodeState, Problem, Record,
    RecordKey, Service, ServiceId, ServiceView, Slice, Snapshot, Task, TaskState, TaskView, claims,
};

/// The records of one node.
#[derive(Debug, Clone, PartialEq, Eq)]
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
    me: NodeId,
    owners: BTreeMap<NodeId, Owner>,
    revision: u64,
}

impl Catalog {
    /// An empty catalog of this node.
    pub const fn new(me: NodeId) -> Self {
        Self {
            me,
            owners: BTreeMap::new(),
            revision: 0,
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
        let old = self.owners.get(&owner);
        let held = records.into_iter().map(|record| {
            let (key, new) = (record.key(), Held::from(record));
            let known = old.and_then(|old| old.records.get(&key));
            let held = known.filter(|known| **known == new).cloned();
            (key, held.unwrap_or(new))
        });
        let new = Owner {
            visible,
            records: held.collect(),
        };
        if old == Some(&new) {
            return false;
        }
        self.owners.insert(owner, new);
        self.revision += 1;
        true
    }

    /// Forgets a node. Returns whether it was known.
    pub fn remove_owner(&mut self, owner: &NodeId) -> bool {
        let known = self.owners.remove(owner).is_some();
        self.revision += u64::from(known);
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

    /// Merges everything. `synced` says whether all sources have reported.
    pub fn snapshot(&self, synced: bool) -> Snapshot {
        let mut snapshot = Snapshot::empty(self.me);
        snapshot.synced = synced;
        let mut services: BTreeMap<ServiceId, Declared<Service>> = BTreeMap::new();
        let mut networks: BTreeMap<NetworkName, Declared<Network>> = BTreeMap::new();
        for (&node, owner) in &self.owners {
            for record in owner.records.values() {
                match record {
                    Held::NetworkAttach(attach) => snapshot
                        .claimed
                        .entry(attach.network.clone())
                        .or_default()
                        .extend(attach.slices.iter().map(|slice| (node, *slice))),
                    _ if !owner.visible => {}
                    Held::Node(record) => {
                        snapshot.nodes.insert(node, Arc::clone(record));
                    }
                    Held::Network(network) => {
                        Declared::add(&mut networks, network.name.clone(), node, network);
                    }
                    Held::Service(service) => {
                        Declared::add(&mut services, service.id.clone(), node, service);
                    }
                    Held::Task(task) => {
                        snapshot
                            .tasks
                            .entry(task.id.clone())
                            .or_insert_with(|| TaskView {
                                task: Arc::clone(task),
                                node,
                                state: task.state,
                            });
                    }
                }
            }
        }
        for task in snapshot.tasks.values_mut() {
            let node_up = snapshot
                .nodes
                .get(&task.node)
                .is_none_or(|n| n.state == NodeState::Up);
            if !node_up && task.state == TaskState::Healthy && task.task.service.is_some() {
                task.state = TaskState::Draining;
            }
        }
        self.merge_networks(networks, &mut snapshot);
        merge_services(services, &mut snapshot);
        snapshot
    }

    fn merge_networks(
        &self,
        declared: BTreeMap<NetworkName, Declared<Network>>,
        snapshot: &mut Snapshot,
    ) {
        let mut declared = declared;
        let ingress = claims::ingress_network();
        declared
            .entry(ingress.name.clone())
            .or_insert_with(|| Declared {
                winner: Arc::new(ingress),
                by: BTreeSet::new(),
            });
        let mut kept: Vec<Arc<Network>> = Vec::new();
        let mut by_age: Vec<_> = declared.into_iter().collect();
        by_age.sort_by_key(|(name, d)| (d.winner.created_ms, name.clone()));
        for (name, declared) in by_age {
            let network = declared.winner;
            if network.removed {
                snapshot.removed_networks.insert(name, network);
                continue;
            }
            let mut problems = Vec::new();
            for older in &kept {
                if older.vni == network.vni {
                    problems.push(Problem(format!(
                        "vni {} is already used by network {}",
                        network.vni, older.name
                    )));
                }
                if older.overlaps(&network) {
                    problems.push(Problem(format!(
                        "subnet {} overlaps {} of network {}",
                        network.subnet, older.subnet, older.name
                    )));
                }
            }
            let claims = snapshot.claimed.get(&name).map_or(&[][..], Vec::as_slice);
            let slices = uncontested(claims)
                .filter(|(node, _)| self.owners.get(node).is_some_and(|o| o.visible))
                .fold(
                    BTreeMap::<NodeId, Vec<Slice>>::new(),
                    |mut all, (node, slice)| {
                        all.entry(node).or_default().push(slice);
                        all
                    },
                );
            if problems.is_empty() {
                kept.push(Arc::clone(&network));
            }
            snapshot.networks.insert(
                name,
                NetworkView {
                    network,
                    declared_by: declared.by,
                    slices,
                    problems,
                },
            );
        }
    }
}

/// The slices that stand: where two overlap, the older claim, then that of the smaller node id.
fn uncontested(claims: &[(NodeId, Slice)]) -> impl Iterator<Item = (NodeId, Slice)> {
    claims
        .iter()
        .filter(|(node, slice)| {
            !claims.iter().any(|(other, theirs)| {
                other != node
                    && theirs.prefix.overlaps(slice.prefix)
                    && (theirs.claimed_ms, other) < (slice.claimed_ms, node)
            })
        })
        .copied()
}

fn merge_services(declared: BTreeMap<ServiceId, Declared<Service>>, snapshot: &mut Snapshot) {
    let mut tasks: BTreeMap<ServiceId, Vec<Arc<Task>>> = BTreeMap::new();
    for view in snapshot.tasks.values() {
        if let Some(service) = &view.task.service {
            tasks
                .entry(service.clone())
                .or_default()
                .push(Arc::clone(&view.task));
        }
    }
    let mut by_age: Vec<_> = declared.into_iter().collect();
    by_age.sort_by_key(|(id, d)| (d.winner.created_ms, id.clone()));
    let mut taken = PortsTaken::default();
    for (id, declared) in by_age {
        let service = declared.winner;
        if service.removed {
            snapshot.removed_services.insert(id, service);
            continue;
        }
        let mut problems = Vec::new();
        let ports = service
            .ports
            .iter()
            .filter(|port| match taken.holder(port) {
                Some(holder) => {
                    problems.push(Problem(format!(
                        "port {}/{} is already published by service {holder}; publish another one, or remove {holder}",
                        port.published, port.protocol
                    )));
                    false
                }
                None => true,
            })
            .copied()
            .collect::<Vec<_>>();
        taken.add(&service.name, &ports);
        for place in &service.networks {
            if !snapshot.networks.contains_key(&place.name) {
                problems.push(Problem(format!("network {} is not declared", place.name)));
            }
        }
        let mut own = tasks.remove(&id).unwrap_or_default();
        own.sort_by(|a, b| (a.slot, &a.id).cmp(&(b.slot, &b.id)));
        snapshot.services.insert(
            id,
            ServiceView {
                service,
                declared_by: declared.by,
                ports,
                tasks: own.into_iter().map(|task| task.id.clone()).collect(),
                problems,
            },
        );
    }
}

/// Who has which port so far, found by protocol and outside port.
#[derive(Default)]
struct PortsTaken(BTreeMap<(crate::Protocol, u16), Vec<(crate::PublishedPort, String)>>);

impl PortsTaken {
    fn holder(&self, port: &crate::PublishedPort) -> Option<&str> {
        port.pairs()
            .filter_map(|(published, _)| self.0.get(&(port.protocol, published)))
            .flatten()
            .find(|(other, _)| port.conflicts(other))
            .map(|(_, holder)| holder.as_str())
    }

    fn add(&mut self, service: &str, ports: &[crate::PublishedPort]) {
        for port in ports {
            for (published, _) in port.pairs() {
                self.0
                    .entry((port.protocol, published))
                    .or_default()
                    .push((*port, service.to_owned()));
            }
        }
    }
}

/// The declarations of one object: the one that counts, and who publishes it.
struct Declared<T> {
    winner: Arc<T>,
    by: BTreeSet<NodeId>,
}

/// What of a declaration decides between it and another.
trait Versioned: Eq {
    fn version(&self) -> u64;
}

impl Versioned for Service {
    fn version(&self) -> u64 {
        self.spec_version
    }
}

impl Versioned for Network {
    fn version(&self) -> u64 {
        self.spec_version
    }
}

impl<T: Versioned> Declared<T> {
    /// Nodes are added in the order of their ids, so that of two declarations of one version the first counts.
    fn add<K: Ord>(all: &mut BTreeMap<K, Self>, key: K, node: NodeId, declaration: &Arc<T>) {
        let new = || Self {
            winner: Arc::clone(declaration),
            by: BTreeSet::from([node]),
        };
        let declared = all.entry(key).or_insert_with(new);
        if declaration.version() > declared.winner.version() {
            *declared = new();
        } else if *declaration == declared.winner {
            declared.by.insert(node);
        }
    }
}
