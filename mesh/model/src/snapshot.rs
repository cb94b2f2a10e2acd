//! The snapshot: all records, merged and judged, as every other part of the agent reads them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use imbl::OrdMap;
use serde::Serialize;

use crate::{
    Endpoint, Network, NetworkName, Node, NodeId, NodeState, PublishedPort, Service, ServiceId,
    Slice, Task, TaskId, TaskState,
};

/// Something that keeps an object from being served as declared, worded for its user.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Problem(pub String);

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A network and who is on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkView {
    /// The declaration that counts.
    pub network: Arc<Network>,
    /// Who published that declaration; the first of them answers for it.
    pub declared_by: BTreeSet<NodeId>,
    /// The slices of each node, contested ones only with the node that keeps them.
    pub slices: BTreeMap<NodeId, Vec<Slice>>,
    /// What is wrong with it.
    pub problems: Vec<Problem>,
}

impl NetworkView {
    /// A node's gateway address on the network: the first address of its first slice.
    pub fn gateway(&self, node: &NodeId) -> Option<Ipv4Addr> {
        self.slices
            .get(node)?
            .first()
            .map(|slice| slice.prefix.ip())
    }

    /// The node in whose slice an address lies.
    pub fn slice_owner(&self, address: Ipv4Addr) -> Option<NodeId> {
        self.slices
            .iter()
            .find(|(_, slices)| slices.iter().any(|s| s.prefix.contains(address)))
            .map(|(node, _)| *node)
    }
}

/// A service and how it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceView {
    /// The declaration that counts.
    pub service: Arc<Service>,
    /// Who published that declaration; the first of them answers for it.
    pub declared_by: BTreeSet<NodeId>,
    /// The ports that are really published: those of the declaration less the contested ones.
    pub ports: Vec<PublishedPort>,
    /// Its tasks, ordered by slot and id.
    pub tasks: Vec<TaskId>,
    /// What is wrong with it.
    pub problems: Vec<Problem>,
}

/// A task and how it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskView {
    /// The record.
    pub task: Arc<Task>,
    /// The node that it runs on.
    pub node: NodeId,
    /// Its state, with that of its node taken in: on a node that drains, every task drains.
    pub state: TaskState,
}

impl TaskView {
    /// Its endpoint on a network.
    pub fn endpoint(&self, network: &str) -> Option<&Endpoint> {
        self.task.endpoint(network)
    }
}

/// The state of the world as this node knows it. Cheap to share, never changed.
///
/// The large maps are persistent: a snapshot shares with the one before what did not change, and two that share are
/// compared by what they do not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// This node.
    pub me: NodeId,
    /// Whether every source has reported: until then absence means nothing, and nothing is removed.
    pub synced: bool,
    /// The nodes that are members now.
    pub nodes: BTreeMap<NodeId, Arc<Node>>,
    /// Those that are down and were members not long ago: their kernels may well be at work without an agent.
    pub away: BTreeMap<NodeId, Arc<Node>>,
    /// Networks by name.
    pub networks: BTreeMap<NetworkName, NetworkView>,
    /// Services by id.
    pub services: OrdMap<ServiceId, ServiceView>,
    /// Tasks by id.
    pub tasks: OrdMap<TaskId, TaskView>,
    /// Removed services of which the declaration is still carried: id to spec version.
    pub removed_services: OrdMap<ServiceId, Arc<Service>>,
    /// Removed networks of which the declaration is still carried.
    pub removed_networks: BTreeMap<NetworkName, Arc<Network>>,
    /// Every slice claimed by anyone, nodes that are away included: new claims keep off all of them.
    pub claimed: BTreeMap<NetworkName, Vec<(NodeId, Slice)>>,
}

impl Snapshot {
    /// Nothing known yet.
    pub fn empty(me: NodeId) -> Self {
        Self {
            me,
            synced: false,
            nodes: BTreeMap::new(),
            away: BTreeMap::new(),
            networks: BTreeMap::new(),
            services: OrdMap::new(),
            tasks: OrdMap::new(),
            removed_services: OrdMap::new(),
            removed_networks: BTreeMap::new(),
            claimed: BTreeMap::new(),
        }
    }

    /// A node's name for display; the start of its id if the node is not known.
    pub fn node_name(&self, node: &NodeId) -> String {
        self.nodes.get(node).map_or_else(
            || node.to_string().chars().take(12).collect(),
            |n| n.name.clone(),
        )
    }

    /// A task's name for display: `web.1`, or its id when it has no service.
    pub fn task_name(&self, task: &Task) -> String {
        match &task.service {
            Some(id) => {
                let name = self
                    .services
                    .get(id)
                    .map_or(id.as_str(), |view| view.service.name.as_str());
                format!("{name}.{}", task.slot)
            }
            None => task.id.to_string(),
        }
    }

    /// The service of a name, an id or, if it is the only one that starts so, the start of an id.
    pub fn find_service(&self, name: &str) -> Option<&ServiceView> {
        let exact = self
            .services
            .values()
            .find(|v| v.service.name == name || v.service.id.as_str() == name);
        exact.or_else(|| {
            let mut starting = self
                .services
                .values()
                .filter(|v| !name.is_empty() && v.service.id.as_str().starts_with(name));
            starting.next().filter(|_| starting.next().is_none())
        })
    }

    /// The tasks of a service.
    pub fn tasks_of(&self, service: &ServiceId) -> impl Iterator<Item = &TaskView> {
        self.services
            .get(service)
            .into_iter()
            .flat_map(|view| &view.tasks)
            .filter_map(|id| self.tasks.get(id))
    }

    /// The networks that this node is on, with its gateway address there.
    pub fn own_networks(&self) -> impl Iterator<Item = (&NetworkView, Ipv4Addr)> {
        self.networks
            .values()
            .filter_map(|view| Some((view, view.gateway(&self.me)?)))
    }

    /// Whether a node takes new flows.
    pub fn is_up(&self, node: &NodeId) -> bool {
        self.nodes
            .get(node)
            .is_some_and(|n| n.state == NodeState::Up)
    }

    /// The underlay address of a node.
    pub fn underlay(&self, node: &NodeId) -> Option<IpAddr> {
        self.nodes.get(node).map(|n| n.underlay)
    }
}
