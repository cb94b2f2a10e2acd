use std::net::Ipv4Addr;

use portolan_gossip::Key;
use portolan_model::{
    Catalog, MacAddress, PlaneChoice, Record, Service, ServiceNetwork, Task, TaskId, TaskState,
    claims,
};

use super::{
    testing::{self, facts, node, task, web},
    *,
};

/// The facts with some of the own node's records changed.
fn facts_with(service: Service, own_task: Task) -> Facts {
    let facts = facts();
    let me = facts.snapshot.me;
    let mut catalog = Catalog::new(me);
    let records = [
        node("n1", NodeState::Up),
        Record::Service(service),
        Record::Task(own_task),
    ];
    catalog.set_owner(me, true, records);
    Facts {
        snapshot: Arc::new(catalog.snapshot(true)),
        ..facts
    }
}

#[test]
fn a_well_node_has_a_member_down_and_nothing_else_to_say() {
    let status = facts().status();
    assert_eq!(
        (status.node.as_str(), status.state.as_str(), status.uptime_s),
        ("n1", "up", 61)
    );
    assert_eq!(
        status.members,
        [("alive".to_owned(), 2), ("down".to_owned(), 1)]
    );
    assert_eq!(status.encryption, "off");
    assert_eq!(status.table_hash, "0000000000000abc");
    assert_eq!(status.overlay_mtu, 1450);
    assert_eq!(
        status.counts,
        Counts {
            nodes: 2,
            networks: 1,
            services: 1,
            tasks: 3
        }
    );
    assert_eq!(
        status.problems,
        ["member n3 (10.77.0.3) has been down for 5 min"]
    );
    let ports: Vec<_> = status
        .ports
        .iter()
        .map(|p| (p.frontend.as_str(), p.active, p.draining))
        .collect();
    assert_eq!(ports, [("*:8080/tcp", 1, 1), ("*:9090/udp", 1, 0)]);
    assert!(
        status
            .ports
            .iter()
            .all(|port| port.problem.is_none() && port.service == "web")
    );
    let planes: Vec<_> = status
        .planes
        .iter()
        .map(|p| (p.plane.as_str(), p.serving, p.frontends))
        .collect();
    assert_eq!(planes, [("relay", true, 2), ("ebpf", false, 0)]);
}

#[test]
fn the_key_in_use_is_named() {
    let key = Key::generate().unwrap().id();
    let status = Facts {
        key: Some(key),
        ..facts()
    }
    .status();
    assert_eq!(status.encryption, format!("on, key {key}"));
}

#[test]
fn a_network_that_asks_for_encryption_has_a_problem() {
    let mut facts = facts();
    let snapshot = Arc::make_mut(&mut facts.snapshot);
    let view = snapshot.networks.values_mut().next().unwrap();
    let mut asking = (*view.network).clone();
    asking.encrypted = true;
    view.network = asking.into();
    let told = facts.status().problems.join("\n");
    assert!(told.contains("its packets travel in the clear"), "{told}");
}

#[test]
fn problems_stand_on_the_node_and_on_the_object() {
    let mut facts = facts();
    let frontend = portolan_plane::frontends(&facts.snapshot)
        .keys()
        .next()
        .cloned()
        .unwrap();
    let planes = facts.planes.as_mut().unwrap();
    planes
        .relay
        .failures
        .insert(frontend, "port 8080/tcp is held".to_owned());
    facts.overlay.problems = vec!["overlay: ingress: add route: EPERM".to_owned()];
    facts.dns_problems = vec!["network ingress: cannot listen".to_owned()];
    facts.reasons.problems = vec!["write /state: disk full".to_owned()];
    facts
        .reasons
        .tasks
        .insert("t1".parse().unwrap(), "no such process".to_owned());
    assert_eq!(
        facts.status().problems,
        [
            "write /state: disk full",
            "overlay: ingress: add route: EPERM",
            "service web: *:8080/tcp: port 8080/tcp is held",
            "network ingress: cannot listen",
            "task web.1: no such process",
            "member n3 (10.77.0.3) has been down for 5 min",
        ]
    );
    assert_eq!(
        facts.ports()[0].problem.as_deref(),
        Some("port 8080/tcp is held")
    );
    assert_eq!(
        facts.services()[0].problems,
        ["*:8080/tcp on this node: port 8080/tcp is held"]
    );
    assert_eq!(
        facts.networks()[0].problems,
        ["add route: EPERM", "cannot listen"]
    );
}

#[test]
fn a_plane_that_cannot_be_read_serves_nothing() {
    let mut facts = facts();
    facts.planes.as_mut().unwrap().relay.unreadable = Some("no access".to_owned());
    let status = facts.status();
    assert_eq!(
        (status.planes[0].serving, status.planes[0].reason.as_str()),
        (false, "no access")
    );
    assert!(
        status
            .problems
            .contains(&"plane relay: no access".to_owned())
    );
    assert!(status.ports.iter().all(|port| port.problem.is_some()));
    facts.planes = None;
    assert!(!facts.status().planes[0].serving);
    assert!(facts.ports().iter().all(|port| port.problem.is_some()));
}

#[test]
fn a_fast_path_that_serves_has_its_frontends_and_tells_which_it_has_not() {
    let mut facts = facts();
    let frontends: Vec<_> = portolan_plane::frontends(&facts.snapshot)
        .keys()
        .cloned()
        .collect();
    let fast = &mut facts.planes.as_mut().unwrap().fast;
    fast.serves = true;
    fast.standing.served = 2;
    fast.pins = vec!["v1/flows".to_owned()];
    fast.left.insert(
        frontends[1].clone(),
        "the fast path does not reach web.2".to_owned(),
    );
    let status = facts.status();
    let planes: Vec<_> = status
        .planes
        .iter()
        .map(|p| (p.plane.as_str(), p.serving, p.frontends))
        .collect();
    assert_eq!(planes, [("relay", true, 2), ("ebpf", true, 1)]);
    assert_eq!(status.pins, ["v1/flows"]);
    let ports: Vec<_> = status
        .ports
        .iter()
        .map(|p| (p.plane.as_str(), p.plane_reason.as_deref()))
        .collect();
    assert_eq!(
        ports,
        [
            ("ebpf", None),
            ("relay", Some("the fast path does not reach web.2"))
        ]
    );
    assert_eq!(status.problems.len(), 1, "{:?}", status.problems);
}

#[test]
fn a_port_that_docker_has_too_is_said_and_whether_that_is_a_guess() {
    let mut facts = facts();
    let frontends = portolan_plane::frontends(&facts.snapshot);
    facts.planes.as_mut().unwrap().shared = frontends.keys().take(1).cloned().collect();
    let said = |facts: &Facts| {
        let first = facts.status().ports.swap_remove(0);
        (first.plane, first.plane_reason.unwrap_or_default())
    };
    let known = "Swarm's own mesh has the port";
    assert_eq!(said(&facts), ("docker".to_owned(), known.to_owned()));
    facts.planes.as_mut().unwrap().guessed = true;
    let (_, guess) = said(&facts);
    assert!(
        guess.starts_with(known) && guess.contains("hides"),
        "{guess}"
    );
}

#[test]
fn ipv6_clients_are_the_fast_paths_once_every_task_has_an_address_for_them() {
    // What the port says, with the service's wish, whether the node gives addresses, and whether the task has a link.
    let said = |asked: bool, given: bool, linked: bool| {
        let ip = Ipv4Addr::new(10, 208, 1, 2);
        let mut own = task("t1", Some("web"), 1, &ip.to_string(), TaskState::Healthy);
        own.endpoints[0].mac = linked.then(|| MacAddress::of_address(ip));
        let mut facts = facts_with(
            Service {
                ipv6: asked,
                ..web()
            },
            own,
        );
        let snapshot = Arc::make_mut(&mut facts.snapshot);
        for node in snapshot.nodes.values_mut() {
            Arc::make_mut(node).ipv6 = given;
        }
        let planes = facts.planes.as_mut().unwrap();
        planes.fast.serves = true;
        planes.told = portolan_plane::frontends(&facts.snapshot);
        let row = facts.ports().remove(0);
        (row.ipv6.unwrap(), row.ipv6_reason)
    };
    let relay = |reason: Option<&str>| ("relay".to_owned(), reason.map(str::to_owned));
    assert_eq!(said(true, true, true), ("ebpf".to_owned(), None));
    assert_eq!(said(false, true, true), relay(None));
    assert_eq!(
        said(true, false, true),
        relay(Some(
            "web.1 has no IPv6 address, as n1 gives its tasks none"
        ))
    );
    assert_eq!(
        said(true, true, false),
        relay(Some(
            "web.1 has no link of its own to have an IPv6 address on"
        ))
    );
}

#[test]
fn a_node_that_cannot_give_addresses_says_so_if_one_is_wanted() {
    let own = task("t1", Some("web"), 1, "10.208.1.2", TaskState::Healthy);
    let problem = |ipv6: bool| {
        let mut facts = facts_with(Service { ipv6, ..web() }, own.clone());
        facts.overlay.no_ipv6 = Some("this kernel has no IPv6".to_owned());
        facts.status().problems.join("\n")
    };
    assert!(problem(true).contains("service web: it wants IPv6 clients"));
    assert!(problem(true).contains("this kernel has no IPv6"));
    assert!(!problem(false).contains("IPv6"));
}

#[test]
fn a_fast_path_that_was_asked_for_and_is_not_there_is_a_problem() {
    let mut facts = facts();
    let fast = &mut facts.planes.as_mut().unwrap().fast;
    fast.reason = Some("kernel 5.10 is too old".to_owned());
    let missing = "plane ebpf: kernel 5.10 is too old".to_owned();
    // Where it is only preferred, it is no more than said.
    assert!(!facts.problems().contains(&missing));
    assert_eq!(facts.status().planes[1].reason, "kernel 5.10 is too old");
    facts.config = Arc::new(Config {
        plane: PlaneChoice::Ebpf,
        ..testing::config()
    });
    assert!(facts.problems().contains(&missing));
}

#[test]
fn a_frontend_that_only_the_fast_path_can_serve_is_served() {
    let mut facts = facts();
    let frontend = portolan_plane::frontends(&facts.snapshot)
        .keys()
        .next()
        .cloned()
        .unwrap();
    let planes = facts.planes.as_mut().unwrap();
    planes
        .relay
        .unsupported
        .insert(frontend, "nft is missing".to_owned());
    assert_eq!(facts.ports()[0].problem.as_deref(), Some("nft is missing"));
    facts.planes.as_mut().unwrap().fast.serves = true;
    assert_eq!(facts.ports()[0].problem, None);
}

#[test]
fn nodes_are_members_and_records_together() {
    let rows = facts().nodes();
    let short: Vec<_> = rows
        .iter()
        .map(|r| {
            (
                r.name.as_str(),
                r.address.as_str(),
                r.membership.as_str(),
                r.state.as_str(),
                r.tasks,
            )
        })
        .collect();
    assert_eq!(
        short,
        [
            ("n1", "10.77.0.1", "alive", "up", 1),
            ("n2", "10.77.0.2", "alive", "draining", 2),
            ("n3", "10.77.0.3", "down", "", 0),
        ]
    );
    assert_eq!(
        rows.iter().map(|r| r.me).collect::<Vec<_>>(),
        [true, false, false]
    );
    assert_eq!(facts().own_node(), rows[0]);
}

#[test]
fn a_network_shows_who_is_on_it() {
    let row = facts().networks().remove(0);
    assert_eq!(
        (row.name.as_str(), row.vni, row.subnet.as_str()),
        ("ingress", 4096, "10.208.0.0/12")
    );
    let mut slices = row.slices;
    slices.sort();
    assert_eq!(
        slices,
        [
            ("n1".to_owned(), vec!["10.208.1.1/24".to_owned()]),
            ("n2".to_owned(), vec!["10.208.2.1/24".to_owned()]),
        ]
    );
    assert_eq!((row.endpoints, row.problems.len()), (3, 0));
}

#[test]
fn a_service_shows_its_ports_and_vips() {
    let mut service = web();
    let network = claims::ingress_network().name;
    service.networks = vec![ServiceNetwork {
        name: network,
        aliases: Vec::new(),
        vip: Some(Ipv4Addr::new(10, 9, 0, 2)),
    }];
    let row = facts_with(
        service,
        task("t1", Some("web"), 1, "10.208.1.2", TaskState::Healthy),
    )
    .services()
    .remove(0);
    assert_eq!(row.ports, ["8080:80/tcp", "9090:90/udp (host)"]);
    assert_eq!(
        row.vips,
        [("ingress".to_owned(), Ipv4Addr::new(10, 9, 0, 2))]
    );
    assert_eq!(
        (row.endpoint_mode.as_str(), row.healthy, row.tasks),
        ("vip", 1, 1)
    );
    assert!(row.problems.is_empty());
}

#[test]
fn a_task_says_why_it_is_not_in_rotation() {
    let facts = facts();
    let rows = facts.tasks();
    let short: Vec<_> = rows
        .iter()
        .map(|r| {
            (
                r.name.as_str(),
                r.node.as_str(),
                r.state.as_str(),
                r.reason.as_str(),
                r.weight,
            )
        })
        .collect();
    assert_eq!(
        short,
        [
            ("a1", "n2", "healthy", "", 1),
            ("web.1", "n1", "healthy", "", 3),
            ("web.2", "n2", "draining", "its node drains", 1),
        ]
    );
    let known: TaskId = "t1".parse().unwrap();
    assert_eq!(facts.task(&known).as_ref(), Some(&rows[1]));
    assert_eq!(facts.task(&"none".parse().unwrap()), None);

    let reason = |service: &Service, state| {
        let own = task("t1", Some("web"), 1, "10.208.1.2", state);
        facts_with(service.clone(), own).tasks().remove(0).reason
    };
    assert_eq!(reason(&web(), TaskState::Starting), "not checked yet");
    assert_eq!(
        reason(&web(), TaskState::Unhealthy),
        "failing its health check"
    );
    assert_eq!(reason(&web(), TaskState::Draining), "draining");
    let unchecked = Service {
        health: None,
        ..web()
    };
    assert_eq!(reason(&unchecked, TaskState::Starting), "not attached yet");
    let other = Service::new("db".parse().unwrap());
    assert_eq!(
        reason(&other, TaskState::Healthy),
        "its service is not declared"
    );
    let weightless = Task {
        weight: 0,
        ..task("t1", Some("web"), 1, "10.208.1.2", TaskState::Healthy)
    };
    assert_eq!(
        facts_with(web(), weightless).tasks()[0].reason,
        "its weight is 0"
    );
    let mut local = facts_with(
        web(),
        task("t1", Some("web"), 1, "10.208.1.2", TaskState::Starting),
    );
    local
        .reasons
        .tasks
        .insert(known, "no namespace /run/netns/x".to_owned());
    assert_eq!(local.tasks()[0].reason, "no namespace /run/netns/x");
}

#[test]
fn a_service_whose_tasks_all_fail_has_a_problem() {
    let failing = task("t1", Some("web"), 1, "10.208.1.2", TaskState::Unhealthy);
    let facts = facts_with(web(), failing);
    assert_eq!(
        facts.services()[0].problems,
        ["its only task takes no new flows"]
    );
    assert!(
        facts
            .status()
            .problems
            .contains(&"service web: its only task takes no new flows".to_owned())
    );
}
