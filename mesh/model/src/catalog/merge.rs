//! Merging all records into one snapshot.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use imbl::OrdMap;

use super::{Held, Owner};
use crate::{
    Network, NetworkName, NetworkView, Node, NodeId, NodeState, Problem, Service, ServiceId,
    ServiceView, Slice, Snapshot, Task, TaskState, TaskView, claims,
};

/// Merges everything. What is as in the last snapshot is shared with it.
pub(super) fn merge(owners: &BTreeMap<NodeId, Owner>, last: &Snapshot) -> Snapshot {
    let mut snapshot = Snapshot::empty(last.me);
    let mut services: BTreeMap<ServiceId, Declared<Service>> = BTreeMap::new();
    let mut networks: BTreeMap<NetworkName, Declared<Network>> = BTreeMap::new();
    let mut tasks: Vec<(NodeId, &Arc<Task>)> = Vec::new();
    for (&node, owner) in owners {
        for record in owner.records.values() {
            match record {
                Held::NetworkAttach(attach) => snapshot
                    .claimed
                    .entry(attach.network.clone())
                    .or_default()
                    .extend(attach.slices.iter().map(|slice| (node, *slice))),
                Held::Node(record) if !owner.visible => {
                    if record.state != NodeState::Leaving {
                        snapshot.away.insert(node, Arc::clone(record));
                    }
                }
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
                Held::Task(task) => tasks.push((node, task)),
            }
        }
    }
    // Of two nodes that have a task of one id, the first counts.
    tasks.sort_by(|(_, a), (_, b)| a.id.cmp(&b.id));
    tasks.dedup_by(|(_, later), (_, first)| later.id == first.id);
    merge_networks(owners, networks, &mut snapshot);
    let (services, removed) = merge_services(services, tasks_by_service(&tasks), &snapshot);
    let views = tasks.iter().map(|(node, task)| {
        let view = task_view(*node, task, &snapshot.nodes);
        (task.id.clone(), view)
    });
    snapshot.tasks = renewed(&last.tasks, views);
    snapshot.services = renewed(&last.services, services);
    snapshot.removed_services = renewed(&last.removed_services, removed);
    snapshot
}

/// A task of a node, with the node's state taken in.
pub(super) fn task_view(
    node: NodeId,
    task: &Arc<Task>,
    nodes: &BTreeMap<NodeId, Arc<Node>>,
) -> TaskView {
    let node_up = nodes.get(&node).is_none_or(|n| n.state == NodeState::Up);
    let drains = !node_up && task.state == TaskState::Healthy && task.service.is_some();
    TaskView {
        task: Arc::clone(task),
        node,
        state: if drains {
            TaskState::Draining
        } else {
            task.state
        },
    }
}

/// A map of these entries, which are in order, made of the last one: what stays is shared.
fn renewed<K: Ord + Clone, V: PartialEq + Clone>(
    last: &OrdMap<K, V>,
    entries: impl IntoIterator<Item = (K, V)>,
) -> OrdMap<K, V> {
    let mut map = last.clone();
    let mut before = last.iter().peekable();
    for (key, value) in entries {
        while let Some((gone, _)) = before.next_if(|(old, _)| **old < key) {
            map.remove(gone);
        }
        let known = before.next_if(|(old, _)| **old == key);
        if known.is_none_or(|(_, old)| *old != value) {
            map.insert(key, value);
        }
    }
    for (gone, _) in before {
        map.remove(gone);
    }
    map
}

/// The tasks of each service, in the order given.
fn tasks_by_service<'a>(
    tasks: &[(NodeId, &'a Arc<Task>)],
) -> HashMap<&'a ServiceId, Vec<&'a Task>> {
    let mut all: HashMap<&ServiceId, Vec<&Task>> = HashMap::new();
    for (_, task) in tasks {
        if let Some(service) = &task.service {
            all.entry(service).or_default().push(task);
        }
    }
    all
}

fn merge_networks(
    owners: &BTreeMap<NodeId, Owner>,
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
            .filter(|(node, _)| owners.get(node).is_some_and(|o| o.visible))
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

/// The services, and those removed of which the declaration is still carried.
fn merge_services(
    declared: BTreeMap<ServiceId, Declared<Service>>,
    mut tasks: HashMap<&ServiceId, Vec<&Task>>,
    snapshot: &Snapshot,
) -> (
    BTreeMap<ServiceId, ServiceView>,
    BTreeMap<ServiceId, Arc<Service>>,
) {
    let (mut services, mut removed) = (BTreeMap::new(), BTreeMap::new());
    let mut by_age: Vec<_> = declared.into_iter().collect();
    by_age.sort_by_key(|(id, d)| (d.winner.created_ms, id.clone()));
    let mut taken = PortsTaken::default();
    for (id, declared) in by_age {
        let service = declared.winner;
        if service.removed {
            removed.insert(id, service);
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
        // Those of one slot stay in the order of their ids.
        own.sort_by_key(|task| task.slot);
        services.insert(
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
    (services, removed)
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
