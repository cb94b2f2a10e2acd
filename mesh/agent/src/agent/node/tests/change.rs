//! Changes of what is declared while tasks run, here and on nodes that do not know of it yet.

use portolan_model::EndpointMode;
use portolan_provider::{StaticTask, TaskPlace};

use super::{super::tasks::Wanted, *};

fn addresses(node: &Node, network: &str) -> Vec<IpAddr> {
    let tasks = node.state().tasks.values().flat_map(|t| &t.endpoints);
    let on = tasks.filter(|e| e.network.as_str() == network);
    on.map(|e| e.ip).collect()
}

fn networks_wanted(node: &Node, task: &str) -> Vec<String> {
    let wanted = node.wanted_attachments();
    let (_, wanted) = &wanted[&task.parse().unwrap()];
    wanted.iter().map(|w| w.network.to_string()).collect()
}

fn place(network: &str) -> ServiceNetwork {
    ServiceNetwork {
        name: network.parse().unwrap(),
        aliases: vec![],
        vip: None,
    }
}

#[test]
fn one_file_names_the_same_place_on_two_nodes() {
    let mut file = stack(&[("web", 8080)]);
    file.tasks = ["n1", "n2"]
        .map(|node| StaticTask {
            service: "web".parse().unwrap(),
            node: node.to_owned(),
            place: TaskPlace::Netns("/run/netns/web".into()),
            slot: None,
            weight: None,
        })
        .to_vec();
    let mut nodes = [node("n1"), node("n2")];
    for node in &mut nodes {
        node.apply(&file, false, NOW).unwrap();
        node.refresh(NOW);
        node.set_static_tasks("shop", &file.tasks, NOW).unwrap();
    }
    exchange(&mut nodes, NOW);
    assert!(nodes.iter().all(|node| node.snapshot().tasks.len() == 2));
}

#[test]
fn many_tasks_at_once_have_an_address_each() {
    let mut node = node("n1");
    let mut file = stack(&[("web", 8080)]);
    file.networks[0].subnet = Some("10.9.0.0/24".parse().unwrap());
    node.apply(&file, false, NOW).unwrap();
    node.refresh(NOW);
    for i in 0..60 {
        let (id, place) = (
            format!("t{i}"),
            Place::Netns(format!("/run/netns/t{i}").into()),
        );
        node.add_task(id.parse().unwrap(), "web", place, None, None, None)
            .unwrap();
    }
    node.refresh(NOW);
    let all = addresses(&node, "app");
    let each: BTreeSet<_> = all.iter().collect();
    assert_eq!((all.len(), each.len()), (60, 60));
    let slices = &node.state().slices[&app()].slices;
    for (i, slice) in slices.iter().enumerate() {
        let gateway = IpAddr::V4(slice.prefix.ip());
        assert!(!each.contains(&gateway), "it may become the gateway");
        assert!(
            slices
                .iter()
                .skip(i + 1)
                .all(|s| !s.prefix.overlaps(slice.prefix))
        );
    }
}

#[test]
fn an_address_is_not_given_again_at_once() {
    let mut node = node("n1");
    node.apply(&stack(&[("web", 8080)]), false, NOW).unwrap();
    node.refresh(NOW);
    add(&mut node, "t1", "web");
    let before = addresses(&node, "app");
    node.remove_task(&"t1".parse().unwrap());
    node.refresh(NOW);
    add(&mut node, "t2", "web");
    assert_ne!(addresses(&node, "app"), before);
}

#[test]
fn a_subnet_that_holds_a_nodes_address_is_refused() {
    let mut node = node("n1");
    let mut file = stack(&[("web", 8080)]);
    file.networks[0].subnet = Some("10.77.0.0/24".parse().unwrap());
    let refused = node.apply(&file, false, NOW).unwrap_err();
    assert_eq!(
        refused[0].to_string(),
        "network app: subnet 10.77.0.0/24 holds 10.77.0.11, at which node n1 is reached; give it another one"
    );
    file.networks[0].subnet = Some("10.77.1.0/24".parse().unwrap());
    node.apply(&file, false, NOW).unwrap();
}

#[test]
fn tasks_follow_the_networks_of_their_service() {
    let mut node = node("n1");
    let mut file = stack(&[("web", 8080)]);
    node.apply(&file, false, NOW).unwrap();
    node.refresh(NOW);
    add(&mut node, "t1", "web");
    let before = addresses(&node, "app");
    file.networks.push(network("back"));
    file.services[0].networks.push(place("back"));
    node.apply(&file, false, NOW + 1).unwrap();
    node.refresh(NOW + 1);
    assert_eq!(networks_wanted(&node, "t1"), ["ingress", "app", "back"]);
    assert_eq!(addresses(&node, "app"), before);
    file.services[0].networks.remove(0);
    file.services[0].ports.clear();
    node.apply(&file, false, NOW + 2).unwrap();
    node.refresh(NOW + 2);
    assert_eq!(networks_wanted(&node, "t1"), ["back"]);
    assert!(addresses(&node, "app").is_empty() && addresses(&node, "ingress").is_empty());
}

#[test]
fn a_network_that_goes_takes_its_tasks_off_no_other() {
    let mut nodes = [node("n1"), node("n2")];
    exchange(&mut nodes, NOW);
    nodes[0]
        .apply(&stack(&[("web", 8080)]), false, NOW)
        .unwrap();
    exchange(&mut nodes, NOW);
    add(&mut nodes[0], "t1", "web");
    // It was removed on a node that did not know of the service yet.
    let network = (*nodes[1].snapshot().networks[&app()].network).clone();
    nodes[1].remove_network(&network, NOW + 1);
    exchange(&mut nodes, NOW + 1);
    let task = nodes[0].state().tasks.values().next().unwrap();
    assert_eq!(networks_wanted(&nodes[0], "t1"), ["ingress"]);
    let why = nodes[0].lacks_address(task).unwrap();
    assert!(why.contains("network app is not declared"), "{why}");
    // Declared again, it has them back.
    nodes[1]
        .apply(&stack(&[("web", 8080)]), false, NOW + 2)
        .unwrap();
    exchange(&mut nodes, NOW + 2);
    assert_eq!(networks_wanted(&nodes[0], "t1"), ["ingress", "app"]);
    assert_eq!(nodes[1].snapshot().tasks.len(), 1);
}

#[test]
fn a_vip_comes_back_with_the_mode() {
    let mut node = node("n1");
    let mut file = stack(&[("web", 8080)]);
    let vip = |node: &Node| {
        node.snapshot()
            .find_service("web")
            .unwrap()
            .service
            .networks[0]
            .vip
    };
    node.apply(&file, false, NOW).unwrap();
    node.refresh(NOW);
    let first = vip(&node);
    file.services[0].endpoint_mode = EndpointMode::Dnsrr;
    node.apply(&file, false, NOW + 1).unwrap();
    node.refresh(NOW + 1);
    assert!(first.is_some() && vip(&node).is_none());
    file.services[0].endpoint_mode = EndpointMode::Vip;
    node.apply(&file, false, NOW + 2).unwrap();
    node.refresh(NOW + 2);
    assert_eq!(vip(&node), first);
}

#[test]
fn a_node_that_was_away_brings_back_neither_what_was_removed_nor_an_older_text() {
    let mut nodes = [node("n1"), node("n2")];
    exchange(&mut nodes, NOW);
    nodes[0]
        .apply(&stack(&[("web", 8080), ("old", 8081)]), false, NOW)
        .unwrap();
    nodes[0].refresh(NOW);
    nodes[0].remove("old", NOW + 1).unwrap();
    let (away, records) = (nodes[0].identity.id, nodes[0].records(NOW + 1));
    // The other node never heard of any of it.
    nodes[1].catalog().remove_owner(&away);
    nodes[1]
        .apply(&stack(&[("web", 9090), ("old", 9091)]), false, NOW + 5000)
        .unwrap();
    nodes[1].catalog().set_owner(away, true, records);
    nodes[1].refresh(NOW + 6000);
    exchange(&mut nodes, NOW + 6000);
    for node in &nodes {
        let port = |name| node.snapshot().find_service(name).unwrap().ports[0].published;
        assert_eq!((port("web"), port("old")), (9090, 9091));
    }
}

#[test]
fn a_node_that_comes_back_with_an_old_state_follows() {
    let mut nodes = [node("n1"), node("n2")];
    exchange(&mut nodes, NOW);
    nodes[0]
        .apply(&stack(&[("web", 8080), ("gone", 8081)]), false, NOW)
        .unwrap();
    exchange(&mut nodes, NOW);
    add(&mut nodes[1], "t1", "web");
    add(&mut nodes[1], "t2", "gone");
    let old = nodes[1].state().clone();
    nodes[0].remove("gone", NOW + 1).unwrap();
    nodes[0]
        .apply(&stack(&[("web", 9090)]), false, NOW + 1)
        .unwrap();
    nodes[1] = restarted("n2", old);
    exchange(&mut nodes, NOW + 2);
    for node in &nodes {
        assert_eq!(node.snapshot().services.len(), 1);
        assert_eq!(
            node.snapshot().find_service("web").unwrap().ports[0].published,
            9090
        );
        assert_eq!(node.snapshot().tasks.len(), 1);
    }
}

#[test]
fn of_two_declarations_at_once_one_counts_everywhere() {
    let mut nodes = [node("n1"), node("n2")];
    exchange(&mut nodes, NOW);
    nodes[0]
        .apply(&stack(&[("web", 8080)]), false, NOW)
        .unwrap();
    nodes[1]
        .apply(&stack(&[("web", 9090)]), false, NOW)
        .unwrap();
    exchange(&mut nodes, NOW);
    let web = |node: &Node| node.snapshot().find_service("web").unwrap().clone();
    assert_eq!(web(&nodes[0]), web(&nodes[1]));
    assert_eq!(web(&nodes[0]).declared_by.len(), 2);
}

#[test]
fn the_start_of_a_name_removes_nothing() {
    let mut node = node("n1");
    node.apply(&stack(&[("web", 8080)]), false, NOW).unwrap();
    node.refresh(NOW);
    assert!(node.remove("we", NOW).is_err());
    assert!(node.remove("web", NOW).is_ok());
}

#[test]
fn a_health_check_that_comes_later_takes_no_task_out_of_rotation() {
    let mut node = node("n1");
    let mut file = stack(&[("web", 8080)]);
    node.apply(&file, false, NOW).unwrap();
    node.refresh(NOW);
    add(&mut node, "t1", "web");
    file.services[0].health = Some(HealthCheck {
        probe: portolan_model::HealthProbe::Tcp { port: 80 },
        interval_ms: 2000,
        timeout_ms: 1000,
        rise: 2,
        fall: 3,
    });
    node.apply(&file, false, NOW + 1).unwrap();
    node.refresh(NOW + 1);
    let id: TaskId = "t1".parse().unwrap();
    assert_eq!(node.snapshot().tasks[&id].state, TaskState::Healthy);
    assert!(node.set_health(&id, false));
    node.refresh(NOW + 2);
    assert_eq!(node.snapshot().tasks[&id].state, TaskState::Unhealthy);
    // A new task has to prove itself.
    add(&mut node, "t2", "web");
    let new = &node.snapshot().tasks[&"t2".parse::<TaskId>().unwrap()];
    assert_eq!(new.state, TaskState::Starting);
}

#[test]
fn a_slot_is_one_in_the_whole_cluster_and_an_overlay_address_is_given_not_taken() {
    let mut nodes = [node("n1"), node("n2")];
    exchange(&mut nodes, NOW);
    nodes[0]
        .apply(&stack(&[("web", 8080)]), false, NOW)
        .unwrap();
    exchange(&mut nodes, NOW);
    add(&mut nodes[1], "t1", "web");
    exchange(&mut nodes, NOW);
    let mut put = |ip: &str, slot| {
        let place = Place::Address(ip.parse().unwrap());
        nodes[0].add_task("t9".parse().unwrap(), "web", place, slot, None, None)
    };
    let taken = put("10.77.0.30", Some(1)).unwrap_err().to_string();
    assert!(taken.contains("taken by task t1 on n2"), "{taken}");
    assert_eq!(put("10.77.0.30", Some(0)), Err(TaskError::SlotZero));
    assert!(matches!(
        put("10.208.200.9", None),
        Err(TaskError::OverlayAddress(_))
    ));
    put("10.77.0.30", Some(2)).unwrap();
}

#[test]
fn tasks_serve_ipv6_at_the_target_ports_while_their_service_wants_it_and_their_node_can() {
    let mut node = node("n1");
    let mut stack = stack(&[("web", 8080)]);
    node.apply(&stack, false, NOW).unwrap();
    node.refresh(NOW);
    add(&mut node, "t1", "web");
    let served = |node: &Node| -> Vec<(String, Vec<String>)> {
        let (_, wanted) = &node.wanted_attachments()[&"t1".parse().unwrap()];
        let ports = |w: &Wanted| w.ipv6.iter().map(ToString::to_string).collect();
        let on = wanted.iter().map(|w| (w.network.to_string(), ports(w)));
        on.filter(|(_, ports): &(_, Vec<String>)| !ports.is_empty())
            .collect()
    };
    node.set_ipv6(true);
    assert_eq!(served(&node), []);

    stack.services[0].ipv6 = true;
    stack.services[0].ports.push(PublishedPort {
        count: 3,
        ..PublishedPort::new(9000, 90, Protocol::Udp)
    });
    node.apply(&stack, false, NOW + 1).unwrap();
    node.refresh(NOW + 1);
    let ports = ["ipproto tcp sport 80-80", "ipproto udp sport 90-92"];
    assert_eq!(
        served(&node),
        [("ingress".to_owned(), ports.map(str::to_owned).into())]
    );
    let says = |node: &Node| match &node.records(NOW)[0] {
        Record::Node(node) => node.ipv6,
        other => panic!("{other:?}"),
    };
    assert!(says(&node));

    node.set_ipv6(false);
    assert_eq!(served(&node), []);
    assert!(!says(&node));
}
