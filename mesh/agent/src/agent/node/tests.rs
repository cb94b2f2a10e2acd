use std::net::Ipv4Addr;

use portolan_model::{NetworkName, Protocol, PublishedPort, Service, ServiceNetwork};
use portolan_provider::{Stack, StackNetwork};

use super::{tasks::TaskError, *};
use crate::api::Place;

mod change;
mod docker;
mod driver;
mod time;

const NOW: u64 = 1_000_000;

fn node(name: &str) -> Node {
    restarted(name, LocalState::default())
}

fn restarted(name: &str, state: LocalState) -> Node {
    let identity = Identity {
        id: NodeId::of_name(name),
        name: name.to_owned(),
        underlay: Ipv4Addr::new(10, 77, 0, 11).into(),
        version: "test".to_owned(),
    };
    let mut node = Node::new(identity, state);
    node.set_synced(NOW);
    node.refresh(NOW);
    node
}

/// Gives each node the records of the others, until nothing changes any more.
fn exchange(nodes: &mut [Node], now_ms: u64) {
    for _ in 0..4 {
        let records: Vec<_> = nodes
            .iter()
            .map(|n| (n.identity.id, n.records(now_ms)))
            .collect();
        for node in nodes.iter_mut() {
            let me = node.identity.id;
            for (id, records) in records.iter().filter(|(id, _)| *id != me) {
                node.catalog().set_owner(*id, true, records.clone());
            }
            node.refresh(now_ms);
        }
    }
}

fn network(name: &str) -> StackNetwork {
    StackNetwork {
        name: name.parse().unwrap(),
        subnet: None,
        internal: false,
        encrypted: false,
        external: false,
    }
}

fn stack(services: &[(&str, u16)]) -> Stack {
    let services = services.iter().map(|(name, published)| {
        let mut service = Service::new(name.parse().unwrap());
        service.ports = vec![PublishedPort::new(*published, 80, Protocol::Tcp)];
        service.networks = vec![ServiceNetwork {
            name: "app".parse().unwrap(),
            aliases: vec![],
            vip: None,
        }];
        service.stack = Some("shop".to_owned());
        service
    });
    Stack {
        name: Some("shop".to_owned()),
        networks: vec![network("app")],
        services: services.collect(),
        tasks: Vec::new(),
        ignored: Vec::new(),
    }
}

fn add(node: &mut Node, id: &str, service: &str) {
    let place = Place::Netns(format!("/run/netns/{id}").into());
    node.add_task(id.parse().unwrap(), service, place, None, None, None)
        .unwrap();
    node.refresh(NOW);
    node.set_attached(&id.parse().unwrap(), AttachState::Attached);
    node.refresh(NOW);
}

fn app() -> NetworkName {
    "app".parse().unwrap()
}

#[test]
fn applying_again_changes_nothing_and_a_change_keeps_what_was_chosen() {
    let mut node = node("n1");
    let first = node.apply(&stack(&[("web", 0)]), false, NOW).unwrap();
    node.refresh(NOW);
    assert_eq!(first.created, ["network app", "service web"]);
    let view = node.snapshot().find_service("web").unwrap().clone();
    assert!(view.service.networks[0].vip.is_some());
    assert!(portolan_model::claims::PORT_RANGE.contains(&view.ports[0].published));

    let again = node.apply(&stack(&[("web", 0)]), false, NOW + 5).unwrap();
    assert_eq!(again.unchanged, ["network app", "service web"]);

    let mut changed = stack(&[("web", 0)]);
    changed.services[0]
        .ports
        .push(PublishedPort::new(8080, 81, Protocol::Tcp));
    let updated = node.apply(&changed, false, NOW + 9).unwrap();
    node.refresh(NOW + 9);
    assert_eq!(updated.updated, ["service web"]);
    let now = node.snapshot().find_service("web").unwrap();
    assert_eq!(now.ports[0], view.ports[0]);
    assert_eq!(now.service.networks, view.service.networks);
    assert_eq!(now.service.created_ms, view.service.created_ms);
}

#[test]
fn a_port_that_is_taken_refuses_the_whole_stack() {
    let mut node = node("n1");
    node.apply(&stack(&[("web", 8080)]), false, NOW).unwrap();
    node.refresh(NOW);
    let before = node.state().clone();
    let errors = node
        .apply(&stack(&[("fine", 8081), ("late", 8080)]), false, NOW)
        .unwrap_err();
    assert_eq!(errors.len(), 1);
    let text = errors[0].to_string();
    assert!(
        text.contains("port 8080/tcp is already published by service web"),
        "{text}"
    );
    assert_eq!(*node.state(), before);
}

#[test]
fn a_task_gets_an_address_on_each_network_and_keeps_it() {
    let mut node = node("n1");
    node.apply(&stack(&[("web", 8080)]), false, NOW).unwrap();
    node.refresh(NOW);
    add(&mut node, "t1", "web");
    add(&mut node, "t2", "web");
    let snapshot = node.snapshot().clone();
    let view = &snapshot.tasks[&"t1".parse::<TaskId>().unwrap()];
    let networks: Vec<&str> = view
        .task
        .endpoints
        .iter()
        .map(|e| e.network.as_str())
        .collect();
    assert_eq!(networks, ["ingress", "app"]);
    assert_eq!(view.state, TaskState::Healthy);
    assert_eq!(
        snapshot.tasks[&"t2".parse::<TaskId>().unwrap()].task.slot,
        2
    );
    let wanted = node.wanted_attachments();
    let (_, wanted) = &wanted[&"t1".parse().unwrap()];
    assert!(
        wanted
            .iter()
            .all(|w| w.subnet.contains(w.address) && w.address != w.gateway)
    );
    // The same node, started again from what it remembers.
    let mut again = Node::new(node.identity.clone(), node.state().clone());
    again.refresh(NOW + 1);
    assert_eq!(again.state().tasks, node.state().tasks);
}

#[test]
fn a_restart_takes_no_task_out_of_rotation() {
    let mut before = node("n1");
    let mut stack = stack(&[("web", 8080)]);
    stack.services[0].health = Some(HealthCheck {
        probe: portolan_model::HealthProbe::Tcp { port: 80 },
        interval_ms: 2000,
        timeout_ms: 1000,
        rise: 2,
        fall: 3,
    });
    before.apply(&stack, false, NOW).unwrap();
    before.refresh(NOW);
    for (id, healthy) in [("good", Some(true)), ("bad", Some(false)), ("new", None)] {
        add(&mut before, id, "web");
        before.set_attached(&id.parse().unwrap(), AttachState::Attached);
        if let Some(healthy) = healthy {
            before.set_health(&id.parse().unwrap(), healthy);
        }
    }
    before.refresh(NOW);
    let mut after = restarted("n1", before.state().clone());
    let states = |node: &Node| -> Vec<(String, TaskState)> {
        let tasks = node.snapshot().tasks.iter();
        tasks
            .map(|(id, view)| (id.to_string(), view.state))
            .collect()
    };
    let (bad, good, new) = (
        TaskState::Unhealthy,
        TaskState::Healthy,
        TaskState::Starting,
    );
    let all = [("bad", bad), ("good", good), ("new", new)].map(|(id, s)| (id.to_owned(), s));
    assert_eq!(states(&before), all);
    assert_eq!(states(&after), all);
    // What an earlier agent attached may be gone all the same.
    after.set_attached(
        &"good".parse().unwrap(),
        AttachState::Pending("gone".to_owned()),
    );
    after.refresh(NOW);
    assert_eq!(states(&after)[1].1, TaskState::Starting);
}

#[test]
fn a_service_outlives_the_node_that_declared_it_and_a_removal_reaches_all() {
    let mut nodes = [node("n1"), node("n2")];
    exchange(&mut nodes, NOW);
    nodes[0]
        .apply(&stack(&[("web", 8080)]), false, NOW)
        .unwrap();
    exchange(&mut nodes, NOW);
    add(&mut nodes[1], "t1", "web");
    exchange(&mut nodes, NOW);
    let (first, second) = (nodes[0].identity.id, nodes[1].identity.id);
    nodes[1].catalog().remove_owner(&first);
    nodes[1].refresh(NOW);
    let view = nodes[1].snapshot().find_service("web").unwrap();
    assert!(view.problems.is_empty() && view.declared_by.contains(&second));

    exchange(&mut nodes, NOW);
    nodes[0].remove("shop", NOW).unwrap();
    exchange(&mut nodes, NOW);
    for node in &nodes {
        assert!(node.snapshot().services.is_empty() && node.snapshot().tasks.is_empty());
        assert!(!node.snapshot().networks.contains_key(&app()));
    }
    // What was removed is forgotten once everyone had the time to hear of it.
    exchange(&mut nodes, NOW + 11 * 60 * 1000);
    exchange(&mut nodes, NOW + 11 * 60 * 1000);
    assert!(
        nodes
            .iter()
            .all(|n| n.state().services.is_empty() && n.state().networks.is_empty())
    );
}

#[test]
fn a_contested_slice_is_given_up_by_the_later_claim_and_its_tasks_move() {
    let mut nodes = [node("n1"), node("n2")];
    exchange(&mut nodes, NOW);
    let ingress = NetworkName::ingress();
    let theirs = nodes[1].state().slices[&ingress].slices[0];
    let id = nodes[0].identity.id;
    nodes[0].state.slices.get_mut(&ingress).unwrap().slices = vec![portolan_model::Slice {
        claimed_ms: theirs.claimed_ms + 1,
        ..theirs
    }];
    exchange(&mut nodes, NOW + 2);
    for node in &nodes {
        let view = &node.snapshot().networks[&ingress];
        assert_eq!(view.slices.len(), 2);
        assert_ne!(view.gateway(&id).unwrap(), theirs.prefix.ip());
    }
}

#[test]
fn two_services_that_chose_one_vip_part_again() {
    let mut nodes = [node("n1"), node("n2")];
    exchange(&mut nodes, NOW);
    nodes[0]
        .apply(&stack(&[("web", 8080)]), false, NOW)
        .unwrap();
    exchange(&mut nodes, NOW);
    nodes[1]
        .apply(&stack(&[("late", 8081)]), false, NOW + 1)
        .unwrap();
    let vip = nodes[0]
        .snapshot()
        .find_service("web")
        .unwrap()
        .service
        .networks[0]
        .vip;
    nodes[1]
        .state
        .services
        .get_mut(&"late".parse().unwrap())
        .unwrap()
        .networks[0]
        .vip = vip;
    exchange(&mut nodes, NOW + 2);
    for node in &nodes {
        let of = |name: &str| node.snapshot().find_service(name).unwrap().service.networks[0].vip;
        assert_eq!(of("web"), vip);
        assert!(of("late").is_some() && of("late") != vip);
    }
}

#[test]
fn a_draining_task_is_removed_at_its_time_and_a_draining_node_withholds_its_tasks() {
    let mut node = node("n1");
    node.apply(&stack(&[("web", 8080)]), false, NOW).unwrap();
    node.refresh(NOW);
    add(&mut node, "t1", "web");
    add(&mut node, "t2", "web");
    let drain = u64::from(Service::DEFAULT_DRAIN_MS);
    node.drain_task(&"t1".parse().unwrap(), NOW).unwrap();
    node.refresh(NOW);
    assert_eq!(
        node.snapshot().tasks[&"t1".parse::<TaskId>().unwrap()].state,
        TaskState::Draining
    );
    assert_eq!(node.next_deadline_ms(), Some(NOW + drain));
    node.refresh(NOW + drain);
    assert_eq!(node.state().tasks.len(), 1);

    node.set_draining(true, NOW + drain);
    node.refresh(NOW + drain);
    assert_eq!(
        node.snapshot().tasks[&"t2".parse::<TaskId>().unwrap()].state,
        TaskState::Draining
    );
    node.refresh(NOW + 2 * drain);
    assert!(node.snapshot().tasks.is_empty());
    node.set_draining(false, NOW + 2 * drain);
    node.refresh(NOW + 2 * drain);
    assert_eq!(
        node.snapshot().tasks[&"t2".parse::<TaskId>().unwrap()].state,
        TaskState::Healthy
    );
}

#[test]
fn an_address_that_others_cannot_reach_is_refused() {
    let mut node = node("n1");
    node.apply(&stack(&[("web", 8080)]), false, NOW).unwrap();
    node.refresh(NOW);
    let place = |ip: &str| Place::Address(ip.parse().unwrap());
    let mut add = |ip| node.add_task("t1".parse().unwrap(), "web", place(ip), None, None, None);
    assert!(matches!(add("127.0.0.1"), Err(TaskError::Loopback(_))));
    assert!(matches!(add("0.0.0.0"), Err(TaskError::NoAddress(_))));
    add("10.77.0.11").unwrap();
}

#[test]
fn after_a_restart_nothing_is_missing_before_every_node_of_before_has_told() {
    let mut nodes = [node("n1"), node("n2"), node("n3")];
    exchange(&mut nodes, NOW);
    let others: Vec<_> = nodes[1..]
        .iter()
        .map(|n| (n.identity.id, n.records(NOW)))
        .collect();

    let mut again = restarted("n1", nodes[0].state().clone());
    assert!(!again.snapshot().synced, "nobody has told anything yet");
    for (at, (id, records)) in others.into_iter().enumerate() {
        again.catalog().set_owner(id, true, records);
        again.refresh(NOW);
        assert_eq!(again.snapshot().synced, at == 1);
    }

    let mut alone = restarted("n1", nodes[0].state().clone());
    alone.refresh(NOW + MISSED_MS);
    assert!(alone.snapshot().synced, "who is gone is not waited for");
    assert_eq!(alone.state().nodes, BTreeSet::from(["n1".to_owned()]));
}
