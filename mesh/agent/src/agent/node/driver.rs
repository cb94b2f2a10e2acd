//! What Docker has asked of its network driver on this node: networks, and endpoints that containers are
//! joined to. Docker tells no names of networks: which one of ours is meant follows from the VNI that the
//! Swarm's manager was given for it, or from the subnet, which no other network of the cluster has.

use std::{collections::BTreeSet, net::Ipv4Addr, path::PathBuf};

use ipnetwork::Ipv4Network;
use portolan_model::{
    Endpoint, MacAddress, NetworkName, NetworkView, Problem, Snapshot, Task, TaskId, TaskState,
    claims,
};

use super::Node;
use crate::agent::state::{DriverEndpoint, DriverNetwork, DriverPlace};

/// For how long an endpoint is kept that no container was joined to.
const KEEP_UNUSED_MS: u64 = 10 * 60 * 1000;

/// What Docker asks to be noted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum DriverChange {
    /// A network is there on this node.
    AddNetwork(String, DriverNetwork),
    /// It is not any more.
    RemoveNetwork(String),
    /// An address on a network, for a container to come.
    AddEndpoint {
        id: TaskId,
        network: String,
        address: Ipv4Addr,
        mac: MacAddress,
    },
    /// The container is off the network.
    Leave(TaskId),
    /// The address is free.
    RemoveEndpoint(TaskId),
}

/// An endpoint on its network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Joined {
    pub network: NetworkName,
    pub address: Ipv4Addr,
    pub mac: MacAddress,
}

/// Why Docker cannot have what it asks for. Nothing changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DriverError {
    #[error(
        "the agent of this node was not told of network {0}; remove the network from Docker and create it again"
    )]
    NoNetwork(String),
    #[error(
        "no node has declared a network with subnet {subnet}; let the agent follow this engine (--docker), and in a Swarm those of its managers"
    )]
    NotDeclared { subnet: Ipv4Network },
    #[error("network {network} cannot be used: {problem}")]
    Contested {
        network: NetworkName,
        problem: Problem,
    },
    #[error("there is no endpoint {0}; start the container again")]
    NoEndpoint(TaskId),
    #[error(
        "address {address} is not in {subnet}, the network's subnet; start the container again"
    )]
    Outside {
        address: Ipv4Addr,
        subnet: Ipv4Network,
    },
    #[error(
        "subnet {subnet} overlaps {taken} of network {other}; create the network with another --subnet"
    )]
    SubnetTaken {
        subnet: Ipv4Network,
        taken: Ipv4Network,
        other: NetworkName,
    },
    #[error(
        "subnet {subnet} holds {address}, at which node {node} is reached; create the network with another --subnet"
    )]
    SubnetOfNodes {
        subnet: Ipv4Network,
        address: std::net::IpAddr,
        node: String,
    },
    #[error(
        "vni {vni} is that of network {other}; create the network with another portolan.vni, or without one"
    )]
    VniTaken { vni: u32, other: NetworkName },
}

impl Node {
    /// Notes what Docker asks for. What is there, or gone, already is fine: Docker asks again after a failure.
    pub(crate) fn driver(&mut self, change: DriverChange, now_ms: u64) -> Result<(), DriverError> {
        let driver = &mut self.state.driver;
        match change {
            DriverChange::AddNetwork(id, network) => {
                check(&self.snapshot, &network)?;
                self.state.driver.networks.insert(id, network);
            }
            DriverChange::RemoveNetwork(id) => drop(driver.networks.remove(&id)),
            DriverChange::AddEndpoint {
                id,
                network,
                address,
                mac,
            } => {
                let Some(there) = driver.networks.get(&network) else {
                    return Err(DriverError::NoNetwork(network));
                };
                let subnet = there.subnet;
                if !subnet.contains(address) {
                    return Err(DriverError::Outside { address, subnet });
                }
                let endpoint = DriverEndpoint {
                    network,
                    address,
                    mac,
                    since_ms: now_ms,
                    place: None,
                };
                driver.endpoints.insert(id, endpoint);
            }
            DriverChange::Leave(id) => {
                if let Some(endpoint) = driver.endpoints.get_mut(&id) {
                    endpoint.place = None;
                }
            }
            DriverChange::RemoveEndpoint(id) => drop(driver.endpoints.remove(&id)),
        }
        Ok(())
    }

    /// Notes where the container of an endpoint will be.
    pub(crate) fn join_driver_endpoint(
        &mut self,
        id: &TaskId,
        netns: PathBuf,
    ) -> Result<Joined, DriverError> {
        let driver = &mut self.state.driver;
        let endpoint = driver.endpoints.get_mut(id);
        let endpoint = endpoint.ok_or_else(|| DriverError::NoEndpoint(id.clone()))?;
        let wanted = driver.networks.get(&endpoint.network);
        let wanted = wanted.ok_or_else(|| DriverError::NoNetwork(endpoint.network.clone()))?;
        let view = find(&self.snapshot, wanted).ok_or(DriverError::NotDeclared {
            subnet: wanted.subnet,
        })?;
        let network = view.network.name.clone();
        if let Some(problem) = view.problems.first() {
            return Err(DriverError::Contested {
                network,
                problem: problem.clone(),
            });
        }
        endpoint.place = Some(DriverPlace {
            network: network.clone(),
            netns,
        });
        Ok(Joined {
            network,
            address: endpoint.address,
            mac: endpoint.mac,
        })
    }

    /// Forgets the endpoints that are not any more: those of which the links went while no agent ran, and those
    /// that were never used. `attached` are the attachments that the kernel has.
    pub(crate) fn forget_driver_endpoints(&mut self, attached: &BTreeSet<TaskId>, now_ms: u64) {
        let endpoints = &mut self.state.driver.endpoints;
        endpoints.retain(|id, endpoint| match endpoint.place {
            Some(_) => attached.contains(id),
            None => now_ms < endpoint.since_ms + KEEP_UNUSED_MS,
        });
    }

    /// Whether something is an endpoint of Docker's, with a link that Docker has or will have.
    pub(crate) fn is_driver_endpoint(&self, id: &TaskId) -> bool {
        let endpoint = self.state.driver.endpoints.get(id);
        endpoint.is_some_and(|endpoint| endpoint.place.is_some())
    }

    /// The networks that Docker's containers are joined to.
    pub(super) fn driver_networks(&self) -> BTreeSet<NetworkName> {
        let places = self.state.driver.endpoints.values();
        let places = places.filter_map(|endpoint| endpoint.place.as_ref());
        places.map(|place| place.network.clone()).collect()
    }

    /// The records of containers on Docker's networks, but for the addresses that are in records of tasks.
    pub(super) fn driver_records(&self, tasks: &[Task]) -> Vec<Task> {
        let told: BTreeSet<_> = tasks
            .iter()
            .flat_map(|task| &task.endpoints)
            .map(|endpoint| (&endpoint.network, endpoint.ip))
            .collect();
        let endpoints = self.state.driver.endpoints.iter();
        let joined = endpoints.filter_map(|(id, endpoint)| {
            let place = endpoint.place.as_ref()?;
            let ip = endpoint.address.into();
            (!told.contains(&(&place.network, ip))).then(|| Task {
                id: id.clone(),
                service: None,
                slot: 0,
                endpoints: vec![Endpoint {
                    network: place.network.clone(),
                    ip,
                    mac: Some(endpoint.mac),
                }],
                state: TaskState::Healthy,
                weight: 0,
            })
        });
        joined.collect()
    }
}

/// The network of ours that Docker means.
fn find<'a>(snapshot: &'a Snapshot, wanted: &DriverNetwork) -> Option<&'a NetworkView> {
    let mut networks = snapshot.networks.values();
    match wanted.vni {
        Some(vni) => networks.find(|view| view.network.vni == vni),
        None => networks.find(|view| view.network.subnet == wanted.subnet),
    }
}

/// Whether a network of Docker's can stand beside the others. One that is known already can.
pub(crate) fn check(snapshot: &Snapshot, network: &DriverNetwork) -> Result<(), DriverError> {
    let subnet = network.subnet;
    for view in snapshot.networks.values() {
        let there = &view.network;
        let other = || there.name.clone();
        if there.subnet == subnet && network.vni.is_none_or(|vni| vni == there.vni) {
            continue;
        }
        if let Some(vni) = network.vni.filter(|vni| *vni == there.vni) {
            return Err(DriverError::VniTaken {
                vni,
                other: other(),
            });
        }
        if let Some(taken) = there.ranges().find(|range| range.overlaps(subnet)) {
            return Err(DriverError::SubnetTaken {
                subnet,
                taken,
                other: other(),
            });
        }
    }
    match claims::node_within(snapshot, subnet) {
        Some(node) => Err(DriverError::SubnetOfNodes {
            subnet,
            address: node.underlay,
            node: node.name.clone(),
        }),
        None => Ok(()),
    }
}
