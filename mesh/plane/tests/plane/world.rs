//! Snapshots by hand: a few nodes with an ingress slice each, services and their tasks.

use std::net::{IpAddr, Ipv4Addr};

use portolan_model::{
    Catalog, Endpoint, Network, NetworkAttach, NetworkName, Node, NodeId, NodeState, PublishedPort,
    Record, Service, ServiceNetwork, Slice, Snapshot, Task, TaskState,
};

/// The node whose snapshot it is.
pub(crate) const ME: &str = "n1";

/// A node that gives its tasks no IPv6 addresses.
pub(crate) const OLD: &str = "old";

/// Everything that the nodes publish, by node.
#[derive(Debug, Clone, Default)]
pub(crate) struct World {
    nodes: Vec<(String, Vec<Record>)>,
}

impl World {
    /// Nodes that are up, the first of them [`ME`], with a slice of the ingress network each.
    pub(crate) fn of(names: &[&str]) -> Self {
        names.iter().fold(Self::default(), |world, name| {
            world.node(name, NodeState::Up)
        })
    }

    /// One more node in this state.
    pub(crate) fn node(mut self, name: &str, state: NodeState) -> Self {
        let at = self.nodes.len() as u8 + 1;
        let node = Record::Node(Node {
            name: name.to_owned(),
            underlay: Ipv4Addr::new(192, 0, 2, at).into(),
            state,
            version: "test".to_owned(),
            fast_path: false,
            ipv6: name != OLD,
        });
        let slice = attach("ingress", &format!("10.208.{at}.0/24"));
        self.nodes.push((name.to_owned(), vec![node, slice]));
        self
    }

    /// A record of a node.
    pub(crate) fn with(mut self, node: &str, record: Record) -> Self {
        let owner = self.nodes.iter_mut().find(|(name, _)| name == node);
        owner.unwrap().1.push(record);
        self
    }

    /// What [`ME`] knows.
    pub(crate) fn snapshot(&self, synced: bool) -> Snapshot {
        let mut catalog = Catalog::new(NodeId::of_name(ME));
        for (name, records) in &self.nodes {
            catalog.set_owner(NodeId::of_name(name), true, records.clone());
        }
        catalog.snapshot(synced)
    }
}

/// A node's slice of a network.
pub(crate) fn attach(network: &str, prefix: &str) -> Record {
    Record::NetworkAttach(NetworkAttach {
        network: network.parse().unwrap(),
        slices: vec![Slice {
            prefix: prefix.parse().unwrap(),
            claimed_ms: 1,
        }],
    })
}

/// A network.
pub(crate) fn network(name: &str, vni: u32, subnet: &str) -> Record {
    Record::Network(Network {
        name: name.parse().unwrap(),
        vni,
        subnet: subnet.parse().unwrap(),
        internal: false,
        encrypted: false,
        spec_version: 1,
        created_ms: 1,
        removed: false,
        stack: None,
        own_range: None,
    })
}

/// A service with these ports.
pub(crate) fn service(id: &str, ports: &[PublishedPort]) -> Service {
    Service {
        ports: ports.to_vec(),
        spec_version: 1,
        created_ms: 1,
        ..Service::new(id.parse().unwrap())
    }
}

/// A service's place on a network.
pub(crate) fn place(network: &str, vip: Option<[u8; 4]>) -> ServiceNetwork {
    ServiceNetwork {
        name: network.parse().unwrap(),
        aliases: Vec::new(),
        vip: vip.map(Ipv4Addr::from),
    }
}

/// A task with an address on each of these networks.
pub(crate) fn task(id: &str, service: &str, state: TaskState, at: &[(&str, [u8; 4])]) -> Task {
    let endpoint = |(network, ip): &(&str, [u8; 4])| Endpoint {
        network: network.parse::<NetworkName>().unwrap(),
        ip: IpAddr::from(*ip),
        mac: None,
    };
    Task {
        id: id.parse().unwrap(),
        service: Some(service.parse().unwrap()),
        slot: 1,
        endpoints: at.iter().map(endpoint).collect(),
        state,
        weight: 1,
    }
}
