use std::sync::Arc;

use portolan_model::{
    Endpoint, Network, Node, NodeState, Problem, Service, ServiceNetwork, ServiceView, Slice, Task,
    TaskState, TaskView,
};

use super::*;

fn id(n: u8) -> NodeId {
    NodeId::of_name(&format!("n{n}"))
}

fn net(text: &str) -> Ipv4Network {
    text.parse().unwrap()
}

fn ip(text: &str) -> Ipv4Addr {
    text.parse().unwrap()
}

fn underlay(n: u8) -> IpAddr {
    Ipv4Addr::new(10, 77, 0, 10 + n).into()
}

/// Three nodes on `ingress`, the first of which looks; node 3 has two slices.
fn world() -> Snapshot {
    let mut world = Snapshot::empty(id(1));
    for n in 1..=3 {
        let node = Node {
            name: format!("n{n}"),
            underlay: underlay(n),
            state: NodeState::Up,
            version: String::new(),
            fast_path: false,
            ipv6: false,
        };
        world.nodes.insert(id(n), Arc::new(node));
    }
    add_network(&mut world, claims::ingress_network());
    for (n, prefix) in [
        (1, "10.208.1.0/24"),
        (2, "10.208.2.0/24"),
        (3, "10.208.3.0/24"),
        (3, "10.208.33.0/24"),
    ] {
        slice(&mut world, INGRESS_NETWORK, n, prefix);
    }
    world
}

fn add_network(world: &mut Snapshot, network: Network) {
    let view = NetworkView {
        network: Arc::new(network.clone()),
        declared_by: BTreeSet::new(),
        slices: BTreeMap::new(),
        problems: Vec::new(),
    };
    world.networks.insert(network.name, view);
}

fn slice(world: &mut Snapshot, network: &str, n: u8, prefix: &str) {
    let network = world.networks.get_mut(&network.parse().unwrap()).unwrap();
    network.slices.entry(id(n)).or_default().push(Slice {
        prefix: net(prefix),
        claimed_ms: 1,
    });
}

fn task(world: &mut Snapshot, n: u8, address: &str, mac: bool) {
    let ip: Ipv4Addr = ip(address);
    let task = Task {
        id: format!("t{}", address.replace('.', "-")).parse().unwrap(),
        service: None,
        slot: 0,
        endpoints: vec![Endpoint {
            network: NetworkName::ingress(),
            ip: ip.into(),
            mac: mac.then(|| MacAddress::of_address(ip)),
        }],
        state: TaskState::Healthy,
        weight: 1,
    };
    let view = TaskView {
        node: id(n),
        state: task.state,
        task: Arc::new(task),
    };
    world.tasks.insert(view.task.id.clone(), view);
}

fn there(n: u8, gateway: &str) -> Place {
    Place::There {
        gateway: ip(gateway),
        underlay: underlay(n),
    }
}

fn ingress(world: &Snapshot) -> DesiredNetwork {
    Desired::new(world).networks[&4096].clone()
}

#[test]
fn every_slice_is_where_its_node_is() {
    let network = ingress(&world());
    let expected = BTreeMap::from([
        (net("10.208.1.0/24"), Place::Here),
        (net("10.208.2.0/24"), there(2, "10.208.2.0")),
        (net("10.208.3.0/24"), there(3, "10.208.3.0")),
        (net("10.208.33.0/24"), there(3, "10.208.3.0")),
    ]);
    assert_eq!(network.places, expected);
    let neighbours: Vec<_> = network.neighbours.keys().copied().collect();
    assert_eq!(neighbours, [ip("10.208.2.0"), ip("10.208.3.0")]);
}

#[test]
fn a_node_knows_the_others_links_as_they_make_them() {
    let here = ingress(&world());
    let there = ingress(&Snapshot {
        me: id(2),
        ..world()
    });
    assert_eq!(here.neighbours[&there.gateway], there.mac());
    assert_eq!(there.neighbours[&here.gateway], here.mac());
    // The kernel drops a VXLAN packet that carries the receiver's own address as its source.
    assert_ne!(here.mac(), there.mac());
}

#[test]
fn members_are_all_nodes_but_this() {
    let members = Desired::new(&world()).members;
    assert_eq!(members, BTreeSet::from([underlay(2), underlay(3)]));
}

#[test]
fn a_node_that_is_away_has_no_place() {
    let mut world = world();
    let away = world.nodes.remove(&id(3)).unwrap();
    world.away.insert(id(3), away);
    let network = ingress(&world);
    assert!(
        network
            .places
            .keys()
            .all(|prefix| !prefix.contains(ip("10.208.3.9")))
    );
    assert!(!network.neighbours.contains_key(&ip("10.208.3.0")));
    // Its kernel may be at work without an agent.
    assert!(Desired::new(&world).members.contains(&underlay(3)));
    world.away.clear();
    assert!(!Desired::new(&world).members.contains(&underlay(3)));
}

#[test]
fn a_task_has_a_route_of_its_own_only_outside_its_nodes_slices() {
    let mut world = world();
    task(&mut world, 2, "10.208.2.9", true);
    task(&mut world, 2, "10.208.1.9", true);
    task(&mut world, 1, "10.208.99.9", true);
    // A process of the node, and an address that is none of the network's.
    task(&mut world, 2, "10.208.1.8", false);
    task(&mut world, 2, "192.0.2.1", true);
    let hosts: BTreeMap<_, _> = ingress(&world)
        .places
        .into_iter()
        .filter(|(prefix, _)| prefix.prefix() == 32)
        .collect();
    let expected = BTreeMap::from([
        (net("10.208.1.9/32"), there(2, "10.208.2.0")),
        (net("10.208.99.9/32"), Place::Here),
    ]);
    assert_eq!(hosts, expected);
}

#[test]
fn the_node_has_vips_and_the_addresses_it_connects_from() {
    let mut world = world();
    let red = Network {
        name: "red".parse().unwrap(),
        vni: 5001,
        subnet: net("10.224.1.0/24"),
        ..claims::ingress_network()
    };
    add_network(&mut world, red);
    slice(&mut world, "red", 1, "10.224.1.16/28");
    for (name, mode, vip) in [
        ("web", EndpointMode::Vip, Some(ip("10.224.1.200"))),
        ("new", EndpointMode::Vip, None),
        ("rr", EndpointMode::Dnsrr, Some(ip("10.224.1.201"))),
    ] {
        let mut service = Service::new(name.parse().unwrap());
        service.endpoint_mode = mode;
        service.networks.push(ServiceNetwork {
            name: "red".parse().unwrap(),
            aliases: Vec::new(),
            vip,
        });
        let view = ServiceView {
            service: Arc::new(service),
            declared_by: BTreeSet::new(),
            ports: Vec::new(),
            tasks: Vec::new(),
            problems: Vec::new(),
        };
        world.services.insert(view.service.id.clone(), view);
    }
    let desired = Desired::new(&world);
    let red: Vec<_> = desired.networks[&5001].addresses().collect();
    assert_eq!(red, [ip("10.224.1.16"), ip("10.224.1.200")]);
    let ingress: Vec<_> = desired.networks[&4096].addresses().collect();
    assert_eq!(ingress.len(), 17);
    assert_eq!(ingress.first(), Some(&ip("10.208.1.0")));
    assert_eq!(ingress.last(), Some(&ip("10.208.1.254")));
}

#[test]
fn a_network_that_the_node_is_not_on_or_that_has_problems_is_left_out() {
    let mut world = world();
    let name = NetworkName::ingress();
    let view = world.networks.get_mut(&name).unwrap();
    view.problems.push(Problem("its vni is taken".into()));
    assert!(Desired::new(&world).networks.is_empty());
    let view = world.networks.get_mut(&name).unwrap();
    view.problems.clear();
    view.slices.remove(&id(1));
    assert!(Desired::new(&world).networks.is_empty());
}

#[test]
fn a_subnet_with_an_address_of_the_node_is_split_off() {
    let mut desired = Desired::new(&world());
    assert!(
        desired
            .split_off_conflicts(&[ip("10.77.0.11"), ip("10.240.0.1")])
            .is_empty()
    );
    assert_eq!(desired.networks.len(), 1);
    let conflicts = desired.split_off_conflicts(&[ip("10.77.0.11"), ip("10.209.0.1")]);
    let [(network, taken)] = conflicts.as_slice() else {
        panic!("{conflicts:?}");
    };
    assert_eq!(network.name.as_str(), INGRESS_NETWORK);
    assert_eq!(*taken, (net("10.208.0.0/12"), ip("10.209.0.1")));
    assert!(desired.networks.is_empty());
}
