//! What should be in the kernel: a pure function of the snapshot.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
};

use ipnetwork::Ipv4Network;
use portolan_model::{
    EndpointMode, INGRESS_NETWORK, MacAddress, NetworkName, NetworkView, NodeId, Snapshot, claims,
};

use crate::AttachEndpoint;

/// Everything that the overlay of one node consists of.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Desired {
    /// The networks that this node is on, by VNI.
    pub(crate) networks: BTreeMap<u32, DesiredNetwork>,
    /// The underlay addresses of the other members, and of those that were members not long ago.
    pub(crate) members: BTreeSet<IpAddr>,
}

/// One network on this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DesiredNetwork {
    pub(crate) name: NetworkName,
    pub(crate) subnet: Ipv4Network,
    /// Where the nodes' own addresses are, if not in the subnet.
    pub(crate) own_range: Option<Ipv4Network>,
    /// This node's address on it; the MAC addresses of its links are made of it.
    pub(crate) gateway: Ipv4Addr,
    /// The node's further addresses on it: VIPs, and on ingress those that it connects from.
    pub(crate) extra: BTreeSet<Ipv4Addr>,
    /// The gateways of other nodes.
    pub(crate) neighbours: BTreeMap<Ipv4Addr, MacAddress>,
    /// Where the subnet's parts are. What is in none of them is unreachable.
    pub(crate) places: BTreeMap<Ipv4Network, Place>,
}

/// Where a part of a subnet is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// On this node's bridge.
    Here,
    /// On another node.
    There {
        /// That node's gateway on the network.
        gateway: Ipv4Addr,
        /// Its underlay address.
        underlay: IpAddr,
    },
}

impl Desired {
    pub(crate) fn new(snapshot: &Snapshot) -> Self {
        let networks = snapshot
            .own_networks()
            // One with problems has the VNI or addresses of an older one: on a node there is room for
            // one of the two.
            .filter(|(view, _)| view.problems.is_empty())
            .map(|(view, gateway)| {
                (
                    view.network.vni,
                    DesiredNetwork::new(snapshot, view, gateway),
                )
            })
            .collect();
        let members = snapshot
            .nodes
            .iter()
            .chain(&snapshot.away)
            .filter(|(id, _)| **id != snapshot.me)
            .map(|(_, node)| node.underlay)
            .collect();
        Self { networks, members }
    }

    /// As much of some networks as a task needs that comes before its network: a gateway, and no way out.
    pub(crate) fn bare<'a>(endpoints: impl Iterator<Item = &'a AttachEndpoint>) -> Self {
        let networks = endpoints.map(|endpoint| {
            let network = DesiredNetwork {
                name: endpoint.network.clone(),
                subnet: endpoint.subnet,
                own_range: endpoint.own_range,
                gateway: endpoint.gateway,
                extra: BTreeSet::new(),
                neighbours: BTreeMap::new(),
                places: BTreeMap::new(),
            };
            (endpoint.vni, network)
        });
        Self {
            networks: networks.collect(),
            members: BTreeSet::new(),
        }
    }

    /// Takes out the networks that hold an address which the node has elsewhere, and gives them with it and
    /// the range that it is in: to route and filter such a range would cut that address off.
    pub(crate) fn split_off_conflicts(
        &mut self,
        elsewhere: &[Ipv4Addr],
    ) -> Vec<(DesiredNetwork, (Ipv4Network, Ipv4Addr))> {
        let conflict = |network: &DesiredNetwork| {
            network.ranges().find_map(|range| {
                let mut addresses = elsewhere.iter().copied();
                let address = addresses.find(|address| range.contains(*address))?;
                Some((range, address))
            })
        };
        self.networks
            .extract_if(.., |_, network| conflict(network).is_some())
            .filter_map(|(_, network)| conflict(&network).map(|address| (network, address)))
            .collect()
    }
}

impl DesiredNetwork {
    fn new(snapshot: &Snapshot, view: &NetworkView, gateway: Ipv4Addr) -> Self {
        let name = &view.network.name;
        let mut network = Self {
            name: name.clone(),
            subnet: view.network.subnet,
            own_range: view.network.own_range,
            gateway,
            extra: vips(snapshot, name).collect(),
            neighbours: BTreeMap::new(),
            places: BTreeMap::new(),
        };
        if name.as_str() == INGRESS_NETWORK {
            let first = view.slices.get(&snapshot.me).and_then(|s| s.first());
            network
                .extra
                .extend(first.into_iter().flat_map(claims::source_addresses));
        }
        network.extra.remove(&gateway);
        for (node, slices) in &view.slices {
            let Some(place) = place(snapshot, view, node) else {
                continue;
            };
            if let Place::There { gateway, .. } = place {
                let mac = MacAddress::of_address(gateway);
                network.neighbours.insert(gateway, mac);
            }
            let slices = slices.iter().map(|slice| (slice.prefix, place));
            network.places.extend(slices);
        }
        network
            .places
            .extend(strays(snapshot, view).map(|(ip, place)| (Ipv4Network::from(ip), place)));
        network
    }

    /// All that is the network's.
    pub(crate) fn ranges(&self) -> impl Iterator<Item = Ipv4Network> + use<> {
        [self.subnet].into_iter().chain(self.own_range)
    }

    /// The MAC address of the node's own links on the network, as the other nodes have it too.
    pub(crate) fn mac(&self) -> MacAddress {
        MacAddress::of_address(self.gateway)
    }

    /// All addresses of the node on the network.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = Ipv4Addr> {
        std::iter::once(self.gateway).chain(self.extra.iter().copied())
    }
}

/// The virtual addresses of a network's services.
fn vips(snapshot: &Snapshot, network: &NetworkName) -> impl Iterator<Item = Ipv4Addr> {
    snapshot
        .services
        .values()
        .map(|view| &view.service)
        .filter(|service| service.endpoint_mode == EndpointMode::Vip)
        .flat_map(|service| &service.networks)
        .filter(move |on| on.name == *network)
        .filter_map(|on| on.vip)
}

/// Where a node's part of a network is; `None` while the node or its slice is not known.
fn place(snapshot: &Snapshot, view: &NetworkView, node: &NodeId) -> Option<Place> {
    if *node == snapshot.me {
        return Some(Place::Here);
    }
    Some(Place::There {
        gateway: view.gateway(node)?,
        underlay: snapshot.underlay(node)?,
    })
}

/// Tasks of which the address was given from outside their node's slices, by Docker's IPAM say.
fn strays(snapshot: &Snapshot, view: &NetworkView) -> impl Iterator<Item = (Ipv4Addr, Place)> {
    snapshot.tasks.values().filter_map(move |task| {
        let endpoint = task.endpoint(view.network.name.as_str())?;
        // Without a MAC address it is a process of the node itself, at an address of the node.
        endpoint.mac?;
        let IpAddr::V4(ip) = endpoint.ip else {
            return None;
        };
        let stray = view.network.subnet.contains(ip) && view.slice_owner(ip) != Some(task.node);
        stray.then_some((ip, place(snapshot, view, &task.node)?))
    })
}

#[cfg(test)]
mod tests;
