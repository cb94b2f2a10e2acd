//! Snapshots for tests and fuzz targets, made of records as nodes publish them.

#![expect(
    clippy::unwrap_used,
    reason = "all input is written in tests and fuzz targets"
)]

use std::net::{IpAddr, Ipv4Addr};

use hickory_server::{
    net::xfer,
    proto::{op::Message, serialize::binary::BinEncoder},
    server::Request,
};
use ipnetwork::Ipv4Network;
use portolan_model::{
    Catalog, Endpoint, EndpointMode, Network, NetworkAttach, NetworkName, Node, NodeId, Protocol,
    PublishedPort, Record, Service, ServiceNetwork, Slice, Snapshot, Task, TaskState,
};

use crate::reply::{self, Reply};

/// What one node publishes, and is.
#[derive(Debug, Clone, Default)]
pub(crate) struct World {
    records: Vec<Record>,
    unsynced: bool,
}

impl World {
    /// Three services on `prod`, 10.96.0.0/24, and more that tests ask for.
    ///
    /// - `web`: VIP 10.96.0.100, alias `www` and `w.alias`, 8080:80/tcp, slots 1 and 2 healthy, 3 starting
    /// - `db`: dnsrr, no ports, slots 1 (healthy) and 2 (draining)
    /// - `dead`: dnsrr, alias `www`, one unhealthy task
    pub(crate) fn usual() -> Self {
        let mut world = Self::default();
        world.node().network("prod", "10.96.0.0/24", false);
        let web = Service {
            ports: vec![PublishedPort::new(8080, 80, Protocol::Tcp)],
            ..service(
                "web",
                &[("prod", Some([10, 96, 0, 100]), &["www", "w.alias"])],
            )
        };
        let db = dnsrr(service("db", &[("prod", None, &[])]));
        let dead = dnsrr(service("dead", &[("prod", None, &["www"])]));
        world.service(web).service(db).service(dead);
        world
            .task("web", 1, TaskState::Healthy, &[("prod", "10.96.0.11")])
            .task("web", 2, TaskState::Healthy, &[("prod", "10.96.0.12")])
            .task("web", 3, TaskState::Starting, &[("prod", "10.96.0.13")])
            .task("db", 1, TaskState::Healthy, &[("prod", "10.96.0.21")])
            .task("db", 2, TaskState::Draining, &[("prod", "10.96.0.22")])
            .task("dead", 1, TaskState::Unhealthy, &[("prod", "10.96.0.31")]);
        world
    }

    /// The node itself, 192.0.2.1.
    pub(crate) fn node(&mut self) -> &mut Self {
        self.records.push(Record::Node(Node {
            name: "n1".into(),
            underlay: Ipv4Addr::new(192, 0, 2, 1).into(),
            state: portolan_model::NodeState::Up,
            version: String::new(),
            fast_path: false,
            ipv6: false,
        }));
        self
    }

    /// A network on which the node's slice is the whole subnet, its gateway the first address.
    pub(crate) fn network(&mut self, name: &str, subnet: &str, internal: bool) -> &mut Self {
        let subnet: Ipv4Network = subnet.parse().unwrap();
        let gateway = Ipv4Addr::from_bits(subnet.network().to_bits() + 1);
        let prefix = Ipv4Network::new(gateway, subnet.prefix()).unwrap();
        self.records.push(Record::Network(Network {
            name: network_name(name),
            vni: 4097,
            subnet,
            internal,
            encrypted: false,
            spec_version: 1,
            created_ms: 1,
            removed: false,
            stack: None,
            own_range: None,
        }));
        self.records.push(Record::NetworkAttach(NetworkAttach {
            network: network_name(name),
            slices: vec![Slice {
                prefix,
                claimed_ms: 1,
            }],
        }));
        self
    }

    pub(crate) fn service(&mut self, service: Service) -> &mut Self {
        self.records.push(Record::Service(service));
        self
    }

    /// A task `<service>-<slot>` of weight 1.
    pub(crate) fn task(
        &mut self,
        service: &str,
        slot: u32,
        state: TaskState,
        endpoints: &[(&str, &str)],
    ) -> &mut Self {
        self.task_named(
            &format!("{service}-{slot}"),
            service,
            slot,
            1,
            state,
            endpoints,
        )
    }

    pub(crate) fn task_named(
        &mut self,
        id: &str,
        service: &str,
        slot: u32,
        weight: u16,
        state: TaskState,
        endpoints: &[(&str, &str)],
    ) -> &mut Self {
        let endpoint = |(network, ip): &(&str, &str)| Endpoint {
            network: network_name(network),
            ip: ip.parse::<IpAddr>().unwrap(),
            mac: None,
        };
        self.records.push(Record::Task(Task {
            id: id.parse().unwrap(),
            service: Some(service.parse().unwrap()),
            slot,
            endpoints: endpoints.iter().map(endpoint).collect(),
            state,
            weight,
        }));
        self
    }

    pub(crate) fn unsynced(&mut self) -> &mut Self {
        self.unsynced = true;
        self
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        let me = NodeId::of_name("n1");
        let mut catalog = Catalog::new(me);
        catalog.set_owner(me, true, self.records.iter().cloned());
        catalog.snapshot(!self.unsynced)
    }
}

pub(crate) fn network_name(name: &str) -> NetworkName {
    name.parse().unwrap()
}

/// Network, VIP, aliases.
pub(crate) type Place<'a> = (&'a str, Option<[u8; 4]>, &'a [&'a str]);

/// A service and where it is.
pub(crate) fn service(name: &str, places: &[Place<'_>]) -> Service {
    let place = |(network, vip, aliases): &Place<'_>| ServiceNetwork {
        name: network_name(network),
        aliases: aliases.iter().map(ToString::to_string).collect(),
        vip: vip.map(Ipv4Addr::from),
    };
    Service {
        networks: places.iter().map(place).collect(),
        ..Service::new(name.parse().unwrap())
    }
}

pub(crate) fn dnsrr(service: Service) -> Service {
    Service {
        endpoint_mode: EndpointMode::Dnsrr,
        ..service
    }
}

/// The bytes of a reply, encoded within the limit to which hickory's server encodes it.
pub(crate) fn encoded(request: &Request, reply: Reply) -> Option<Vec<u8>> {
    let reply = reply.fitted(request).ok()?;
    let edns = reply::opt(request);
    let mut bytes = Vec::new();
    let mut encoder = BinEncoder::new(&mut bytes);
    encoder.set_max_size(match (request.protocol(), &edns) {
        (xfer::Protocol::Udp, Some(edns)) => edns.max_payload(),
        (xfer::Protocol::Udp, None) => 512,
        _ => u16::MAX,
    });
    let response = reply.response(request, edns.as_ref());
    response.destructive_emit(&mut encoder).unwrap();
    let message = Message::from_vec(&bytes).unwrap();
    assert_eq!(message.edns.is_some(), request.edns.is_some(), "{message}");
    Some(bytes)
}
