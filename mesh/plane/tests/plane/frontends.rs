//! What a node serves.

use std::net::{IpAddr, Ipv4Addr};

use portolan_model::{
    EndpointMode, MacAddress, NodeState, Protocol, PublishMode, PublishedPort, Record, TaskState,
    ipv6_of,
};
use portolan_plane::{Actual, BackendState, FrontendAddress, FrontendSpec, frontends};

use super::world::{OLD, World, attach, network, place, service, task};

fn web(port: PublishedPort) -> Record {
    Record::Service(service("web", &[port]))
}

fn on_ingress(id: &str, state: TaskState, ip: [u8; 4]) -> Record {
    Record::Task(task(id, "web", state, &[("ingress", ip)]))
}

fn tcp(published: u16) -> PublishedPort {
    PublishedPort::new(published, 80, Protocol::Tcp)
}

fn served(world: &World) -> Actual {
    frontends(&world.snapshot(true))
}

fn names(served: &Actual) -> Vec<String> {
    served.keys().map(ToString::to_string).collect()
}

fn only(served: &Actual) -> &FrontendSpec {
    assert_eq!(served.len(), 1, "{:?}", names(served));
    served.values().next().unwrap()
}

fn backends(spec: &FrontendSpec) -> Vec<(&str, String, BackendState)> {
    let backend = spec.backends.iter();
    backend
        .map(|b| (b.task.as_str(), format!("{}:{}", b.ip, b.port), b.state))
        .collect()
}

/// A task on each of two nodes, the first of them this one.
fn two_nodes(port: PublishedPort) -> World {
    World::of(&["n1", "n2"])
        .with("n2", web(port))
        .with("n1", on_ingress("b", TaskState::Healthy, [10, 208, 1, 2]))
        .with("n2", on_ingress("a", TaskState::Healthy, [10, 208, 2, 2]))
}

#[test]
fn an_ingress_port_leads_to_all_tasks_wherever_they_are() {
    let served = served(&two_nodes(tcp(8080)));
    let spec = only(&served);
    assert_eq!(spec.frontend.to_string(), "*:8080/tcp");
    assert_eq!(
        backends(spec),
        [
            ("a", "10.208.2.2:80".to_owned(), BackendState::Active),
            ("b", "10.208.1.2:80".to_owned(), BackendState::Active)
        ]
    );
    let local: Vec<bool> = spec.backends.iter().map(|b| b.local).collect();
    assert_eq!(local, [false, true]);
}

#[test]
fn an_ingress_port_without_a_task_is_served_all_the_same() {
    let world = World::of(&["n1"]).with("n1", web(tcp(8080)));
    assert!(only(&served(&world)).backends.is_empty());
}

#[test]
fn a_port_in_host_mode_is_served_where_a_task_is_with_those_tasks() {
    let host = PublishedPort {
        mode: PublishMode::Host,
        ..tcp(8080)
    };
    let here = served(&two_nodes(host));
    assert_eq!(backends(only(&here)).len(), 1);
    assert!(only(&here).backends[0].local);
    let elsewhere = World::of(&["n1", "n2"])
        .with("n2", web(host))
        .with("n2", on_ingress("a", TaskState::Healthy, [10, 208, 2, 2]));
    assert!(served(&elsewhere).is_empty());
}

#[test]
fn a_range_is_as_many_frontends_and_an_address_its_own() {
    let range = PublishedPort {
        count: 3,
        address: "192.0.2.7".parse().ok(),
        ..tcp(8000)
    };
    let served = served(&two_nodes(range));
    assert_eq!(
        names(&served),
        [
            "192.0.2.7:8000/tcp",
            "192.0.2.7:8001/tcp",
            "192.0.2.7:8002/tcp"
        ]
    );
    let targets: Vec<u16> = served.values().map(|s| s.backends[0].port).collect();
    assert_eq!(targets, [80, 81, 82]);
}

fn states_of_backends(port: PublishedPort) -> Vec<(String, BackendState)> {
    let world = World::of(&["n1"])
        .node("n2", NodeState::Draining)
        .with("n1", web(port))
        .with(
            "n1",
            on_ingress("starting", TaskState::Starting, [10, 208, 1, 2]),
        )
        .with(
            "n1",
            on_ingress("sick", TaskState::Unhealthy, [10, 208, 1, 3]),
        )
        .with(
            "n1",
            on_ingress("old", TaskState::Draining, [10, 208, 1, 4]),
        )
        .with(
            "n1",
            on_ingress("well", TaskState::Healthy, [10, 208, 1, 5]),
        )
        .with(
            "n2",
            on_ingress("leaving", TaskState::Healthy, [10, 208, 2, 2]),
        )
        .with(
            "n2",
            on_ingress("sick2", TaskState::Unhealthy, [10, 208, 2, 3]),
        );
    let served = served(&world);
    backends(only(&served))
        .into_iter()
        .map(|(task, _, state)| (task.to_owned(), state))
        .collect()
}

#[test]
fn tasks_that_may_not_get_flows_keep_their_connections_at_most() {
    use BackendState::{Active, Draining};
    let own = |states: &[(&str, BackendState)]| -> Vec<(String, BackendState)> {
        states
            .iter()
            .map(|(task, state)| ((*task).to_owned(), *state))
            .collect()
    };
    let tcp_states = states_of_backends(tcp(8080));
    assert_eq!(
        tcp_states,
        own(&[
            ("leaving", Draining),
            ("old", Draining),
            ("sick", Draining),
            ("sick2", Draining),
            ("well", Active)
        ])
    );
    // Datagrams have no connection to keep: they move to a task that answers.
    let udp = PublishedPort {
        protocol: Protocol::Udp,
        ..tcp(8080)
    };
    let udp_states = states_of_backends(udp);
    assert_eq!(
        udp_states,
        own(&[("leaving", Draining), ("old", Draining), ("well", Active)])
    );
}

#[test]
fn weights_are_the_tasks_own() {
    let mut heavy = task(
        "heavy",
        "web",
        TaskState::Healthy,
        &[("ingress", [10, 208, 1, 3])],
    );
    heavy.weight = 5;
    let world = two_nodes(tcp(8080)).with("n1", Record::Task(heavy));
    let served = served(&world);
    let weights: Vec<u16> = only(&served).backends.iter().map(|b| b.weight).collect();
    assert_eq!(weights, [1, 1, 5]);
}

#[test]
fn this_node_connects_from_the_end_of_its_slice() {
    let served = served(&two_nodes(tcp(8080)));
    let sources = only(&served).sources.as_ref().unwrap();
    assert_eq!(sources.within.to_string(), "10.208.0.0/12");
    assert_eq!(sources.addresses.len(), 16);
    assert_eq!(sources.addresses[0], Ipv4Addr::new(10, 208, 1, 254));
}

/// A service on a network with a VIP, and tasks of it there.
fn east_west(mode: EndpointMode, here: bool) -> World {
    let web = portolan_model::Service {
        networks: vec![place("app", Some([10, 1, 2, 200]))],
        endpoint_mode: mode,
        allow: vec!["198.51.100.0/24".parse().unwrap()],
        ..service("web", &[tcp(8080)])
    };
    let at = [("ingress", [10, 208, 2, 2]), ("app", [10, 1, 2, 34])];
    let world = World::of(&["n1", "n2"])
        .with("n2", network("app", 5000, "10.1.2.0/24"))
        .with("n2", attach("app", "10.1.2.32/28"))
        .with("n2", Record::Service(web))
        .with(
            "n2",
            Record::Task(task("a", "web", TaskState::Healthy, &at)),
        );
    if here {
        world.with("n1", attach("app", "10.1.2.16/28"))
    } else {
        world
    }
}

#[test]
fn a_vip_is_every_port_of_both_protocols_to_the_addresses_of_its_network() {
    let served = served(&east_west(EndpointMode::Vip, true));
    assert_eq!(
        names(&served),
        ["*:8080/tcp", "10.1.2.200:*/tcp", "10.1.2.200:*/udp"]
    );
    for (frontend, spec) in &served {
        let vip = matches!(frontend.address, FrontendAddress::Vip(..));
        let to = if vip { "10.1.2.34:0" } else { "10.208.2.2:80" };
        assert_eq!(backends(spec)[0].1, to);
        // The list of clients is about the outside.
        assert_eq!(spec.policy.allow.is_empty(), vip);
        // A block of 16 has no addresses to spare.
        assert_eq!(spec.sources.is_some(), !vip);
    }
}

#[test]
fn tasks_of_a_service_that_wants_ipv6_have_an_ipv6_address_if_they_have_a_link_there() {
    let addresses = |wanted: bool| {
        let web = portolan_model::Service {
            ipv6: wanted,
            networks: vec![place("app", Some([10, 1, 2, 200]))],
            ..service("web", &[tcp(8080)])
        };
        let linked = |id, at: &[(&str, [u8; 4])]| {
            let mut task = task(id, "web", TaskState::Healthy, at);
            for endpoint in &mut task.endpoints {
                let IpAddr::V4(ip) = endpoint.ip else {
                    unreachable!()
                };
                endpoint.mac = Some(MacAddress::of_address(ip));
            }
            Record::Task(task)
        };
        let both = [("ingress", [10, 208, 2, 2]), ("app", [10, 1, 2, 34])];
        let world = World::of(&["n1", "n2", OLD])
            .with("n1", network("app", 5000, "10.1.2.0/24"))
            .with("n1", attach("app", "10.1.2.16/28"))
            .with("n2", Record::Service(web))
            .with("n2", linked("a-linked", &both))
            .with(
                "n2",
                on_ingress("b-node", TaskState::Healthy, [10, 208, 2, 0]),
            )
            .with("n2", linked("c-outside", &[("ingress", [192, 0, 2, 9])]))
            .with(OLD, linked("d-old", &[("ingress", [10, 208, 3, 2])]));
        let served = served(&world);
        let backends = served.values().flat_map(|spec| &spec.backends);
        let found = backends.filter_map(|b| Some((b.task.to_string(), b.ipv6?)));
        found.collect::<Vec<_>>()
    };
    // Once, by the published port: virtual addresses are IPv4 and so are their clients.
    let derived = ipv6_of(4096, Ipv4Addr::new(10, 208, 2, 2));
    assert_eq!(addresses(true), [("a-linked".to_owned(), derived)]);
    assert_eq!(addresses(false), []);
}

#[test]
fn a_vip_is_only_where_its_network_is_and_not_with_dnsrr() {
    let published = ["*:8080/tcp"];
    assert_eq!(
        names(&served(&east_west(EndpointMode::Vip, false))),
        published
    );
    assert_eq!(
        names(&served(&east_west(EndpointMode::Dnsrr, true))),
        published
    );
}

#[test]
fn a_task_without_an_address_on_the_network_is_no_backend_there() {
    let lonely = task(
        "b",
        "web",
        TaskState::Healthy,
        &[("ingress", [10, 208, 2, 3])],
    );
    let world = east_west(EndpointMode::Vip, true).with("n2", Record::Task(lonely));
    for (frontend, spec) in &served(&world) {
        let vip = matches!(frontend.address, FrontendAddress::Vip(..));
        assert_eq!(spec.backends.len(), if vip { 1 } else { 2 });
    }
}
