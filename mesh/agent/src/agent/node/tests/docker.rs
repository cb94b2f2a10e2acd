//! What follows from what a Docker engine says.

use portolan_docker::{
    Known, NetworkWanted, Observed, Origin, Place as Sandbox, ServiceWanted, TaskWanted, Wanted,
    observed::{Engine, Swarm},
};

use super::*;

/// A version as a Swarm gives it, with room below.
fn swarm(version: u64) -> u64 {
    (1 << 62) + (version << 20)
}

fn service(id: &str, version: u64, published: u16) -> ServiceWanted {
    let mut service = Service::new(id.parse().unwrap());
    service.ports = vec![PublishedPort::new(published, 80, Protocol::Tcp)];
    service.created_ms = 500;
    service.spec_version = swarm(version);
    ServiceWanted {
        service,
        origin: Origin::Swarm,
        left_to_docker: Vec::new(),
    }
}

fn by_labels(id: &str, started_ms: u64) -> ServiceWanted {
    let mut wanted = service(id, 0, 8080);
    wanted.origin = Origin::Engine;
    wanted.service.spec_version = started_ms << 20;
    wanted
}

fn task(id: &str, service: &str) -> TaskWanted {
    TaskWanted {
        id: id.parse().unwrap(),
        name: format!("{service}.1.{id}"),
        container: id.repeat(8),
        service: Some(service.parse().unwrap()),
        slot: Some(1),
        weight: None,
        place: Sandbox::Netns(format!("/var/run/docker/netns/{id}").into()),
        started_ms: 700,
        endpoints: Vec::new(),
        state: TaskState::Healthy,
        checked: true,
        reason: None,
    }
}

/// What a manager knows, or an engine outside of any Swarm.
fn known(services: &[ServiceWanted], tasks: &[TaskWanted]) -> Wanted {
    Wanted {
        services: services.to_vec(),
        tasks: tasks.to_vec(),
        knows_swarm: true,
        ..Wanted::default()
    }
}

fn on_worker(tasks: &[TaskWanted]) -> Wanted {
    Wanted {
        knows_swarm: false,
        ..known(&[], tasks)
    }
}

/// Has a node hear from an engine that is `engine` in its Swarm.
fn hear_from(node: &mut Node, engine: Option<&str>, wanted: Wanted, now_ms: u64) {
    let swarm = engine.map(|id| Swarm {
        node_id: id.to_owned(),
        manager: wanted.knows_swarm,
        state: "active".to_owned(),
        error: String::new(),
        address: None,
        managers: Vec::new(),
    });
    let observed = Observed {
        engine: Engine {
            swarm,
            ..Engine::default()
        },
        ..Observed::default()
    };
    node.set_docker(Arc::new(Known { observed, wanted }));
    node.refresh(now_ms);
}

fn hear(node: &mut Node, wanted: Wanted) {
    hear_from(node, Some("e1"), wanted, NOW);
}

fn attach(node: &mut Node, id: &str) {
    node.set_attached(&id.parse().unwrap(), AttachState::Attached);
    node.refresh(NOW);
}

fn state(node: &Node, id: &str) -> Option<TaskState> {
    let view = node.snapshot().tasks.get(&id.parse::<TaskId>().unwrap())?;
    Some(view.state)
}

fn local<'a>(node: &'a Node, id: &str) -> &'a LocalTask {
    &node.state().tasks[&id.parse::<TaskId>().unwrap()]
}

#[test]
fn managers_declare_and_each_node_runs_its_own_containers() {
    let mut nodes = [node("n1"), node("n2"), node("n3")];
    // The worker knows of its container first.
    hear_from(
        &mut nodes[2],
        Some("e3"),
        on_worker(&[task("t1", "web")]),
        NOW,
    );
    assert_eq!(state(&nodes[2], "t1"), None);
    for (at, engine) in ["e1", "e2"].into_iter().enumerate() {
        let wanted = known(&[service("web", 7, 8080)], &[]);
        hear_from(&mut nodes[at], Some(engine), wanted, NOW);
    }
    exchange(&mut nodes, NOW);
    assert_eq!(state(&nodes[2], "t1"), Some(TaskState::Starting));
    assert_eq!(
        local(&nodes[2], "t1").endpoints[0].network.as_str(),
        "ingress"
    );
    attach(&mut nodes[2], "t1");
    exchange(&mut nodes, NOW);
    assert_eq!(state(&nodes[0], "t1"), Some(TaskState::Healthy));
    let view = nodes[1].snapshot().find_service("web").unwrap();
    assert_eq!(view.service.spec_version, swarm(7), "both say the same");
    assert_eq!(view.declared_by.len(), 3, "the worker repeats it");
}

#[test]
fn a_task_gets_flows_once_it_listens_if_nobody_else_says_when_it_is_ready() {
    let mut node = node("n1");
    let unchecked = TaskWanted {
        checked: false,
        ..task("t1", "web")
    };
    let wanted = known(&[service("web", 7, 8080)], &[unchecked]);
    hear(&mut node, wanted.clone());
    attach(&mut node, "t1");
    assert_eq!(state(&node, "t1"), Some(TaskState::Starting));
    assert_eq!(node.awaited_ports(local(&node, "t1")), [80]);
    let why = node.why_waiting(&"t1".parse().unwrap()).unwrap();
    assert!(why.contains("port 80"), "{why}");
    node.set_health(&"t1".parse().unwrap(), true);
    node.refresh(NOW);
    assert_eq!(state(&node, "t1"), Some(TaskState::Healthy));
    // Another engine's word does not begin it again, nor does an agent's restart.
    hear(&mut node, wanted);
    let again = restarted("n1", node.state().clone());
    assert_eq!(state(&again, "t1"), Some(TaskState::Healthy));
}

#[test]
fn dockers_word_on_a_task_counts_and_may_change() {
    let mut node = node("n1");
    let services = [service("web", 7, 8080)];
    for said in [
        TaskState::Healthy,
        TaskState::Starting,
        TaskState::Unhealthy,
        TaskState::Draining,
        TaskState::Healthy,
    ] {
        let said = TaskWanted {
            state: said,
            ..task("t1", "web")
        };
        hear(&mut node, known(&services, std::slice::from_ref(&said)));
        attach(&mut node, "t1");
        assert_eq!(state(&node, "t1"), Some(said.state));
    }
    hear(&mut node, known(&services, &[]));
    assert_eq!(state(&node, "t1"), None);
    // What ends before it was ever seen to run is no task.
    let ending = TaskWanted {
        state: TaskState::Draining,
        ..task("t2", "web")
    };
    hear(&mut node, known(&services, &[ending]));
    assert_eq!(state(&node, "t2"), None);
}

#[test]
fn a_drain_lasts_as_long_as_the_container() {
    let mut node = node("n1");
    let draining = TaskWanted {
        state: TaskState::Draining,
        ..task("t1", "web")
    };
    let services = [service("web", 7, 8080)];
    hear(&mut node, known(&services, &[task("t1", "web")]));
    attach(&mut node, "t1");
    hear(&mut node, known(&services, &[draining]));
    let late = NOW + 20 * u64::from(Service::DEFAULT_DRAIN_MS);
    node.refresh(late);
    assert_eq!(state(&node, "t1"), Some(TaskState::Draining));
}

#[test]
fn a_container_that_starts_again_is_attached_anew_at_its_address() {
    let mut node = node("n1");
    let services = [service("web", 7, 8080)];
    let unchecked = TaskWanted {
        checked: false,
        ..task("t1", "web")
    };
    hear(
        &mut node,
        known(&services, std::slice::from_ref(&unchecked)),
    );
    attach(&mut node, "t1");
    node.set_health(&unchecked.id, true);
    node.refresh(NOW);
    let before = local(&node, "t1").clone();
    let again = TaskWanted {
        place: Sandbox::Netns("/var/run/docker/netns/other".into()),
        started_ms: 900,
        ..unchecked
    };
    hear(&mut node, known(&services, &[again]));
    assert_eq!(state(&node, "t1"), Some(TaskState::Starting));
    assert_eq!(local(&node, "t1").endpoints, before.endpoints);
    let (place, _) = &node.wanted_attachments()[&before.id];
    assert_eq!(*place, Place::Netns("/var/run/docker/netns/other".into()));
    attach(&mut node, "t1");
    assert_eq!(
        state(&node, "t1"),
        Some(TaskState::Starting),
        "it has yet to listen"
    );
}

#[test]
fn what_is_remembered_stays_until_the_engine_has_spoken() {
    let mut node = node("n1");
    let services = [service("web", 7, 8080)];
    hear(&mut node, known(&services, &[task("t1", "web")]));
    attach(&mut node, "t1");
    let mut again = restarted("n1", node.state().clone());
    assert_eq!(state(&again, "t1"), Some(TaskState::Healthy));
    hear(&mut again, known(&[], &[]));
    assert_eq!(state(&again, "t1"), None);
    assert!(again.snapshot().find_service("web").is_none());
}

#[test]
fn a_service_of_the_swarm_is_removed_by_who_knows_and_comes_back_later() {
    let mut nodes = [node("n1"), node("n2")];
    let wanted = known(&[service("web", 7, 8080)], &[]);
    hear_from(&mut nodes[0], Some("e1"), wanted.clone(), NOW);
    hear_from(&mut nodes[1], Some("e2"), wanted.clone(), NOW);
    exchange(&mut nodes, NOW);
    // Demoted: it cannot know.
    hear_from(&mut nodes[0], Some("e1"), on_worker(&[]), NOW);
    exchange(&mut nodes, NOW);
    assert!(nodes[0].snapshot().find_service("web").is_some());
    hear_from(&mut nodes[1], Some("e2"), known(&[], &[]), NOW);
    exchange(&mut nodes, NOW);
    assert!(nodes[0].snapshot().find_service("web").is_none());
    // Who has not heard yet does not bring it back; a later version of it does.
    hear_from(&mut nodes[0], Some("e1"), wanted, NOW);
    exchange(&mut nodes, NOW);
    assert!(nodes[1].snapshot().find_service("web").is_none());
    let later = known(&[service("web", 9, 8081)], &[]);
    hear_from(&mut nodes[0], Some("e1"), later, NOW);
    exchange(&mut nodes, NOW);
    let view = nodes[1].snapshot().find_service("web").unwrap();
    assert_eq!(view.ports[0].published, 8081);
}

#[test]
fn a_node_that_left_its_swarm_takes_nothing_with_it_that_others_declare() {
    let mut nodes = [node("n1"), node("n2")];
    let wanted = known(&[service("web", 7, 8080)], &[]);
    for (at, engine) in ["e1", "e2"].into_iter().enumerate() {
        hear_from(&mut nodes[at], Some(engine), wanted.clone(), NOW);
    }
    exchange(&mut nodes, NOW);
    hear_from(&mut nodes[0], None, on_worker(&[]), NOW);
    exchange(&mut nodes, NOW);
    assert!(nodes[1].snapshot().find_service("web").is_some());
    // A Swarm of one ends with it.
    let mut alone = node("n3");
    hear_from(&mut alone, Some("e3"), wanted, NOW);
    hear_from(&mut alone, None, on_worker(&[]), NOW);
    assert!(alone.snapshot().find_service("web").is_none());
}

#[test]
fn a_manager_that_is_locked_withdraws_nothing() {
    let mut node = node("n1");
    let wanted = Wanted {
        networks: vec![network_of_swarm("back", "10.50.0.0/24")],
        ..known(&[service("web", 7, 8080)], &[])
    };
    hear(&mut node, wanted.clone());
    // No identity, no services, no containers.
    hear_from(&mut node, Some(""), on_worker(&[]), NOW);
    let view = node.snapshot().find_service("web").unwrap();
    assert_eq!(view.service.spec_version, swarm(7));
    assert!(
        node.snapshot()
            .networks
            .contains_key(&"back".parse().unwrap())
    );
    hear(&mut node, wanted);
    assert!(node.snapshot().find_service("web").is_some());
    // With another identity it is in another Swarm.
    hear_from(&mut node, Some("e2"), on_worker(&[]), NOW);
    assert!(node.snapshot().find_service("web").is_none());
}

#[test]
fn a_later_declaration_stands_against_one_who_lags() {
    let mut nodes = [node("n1"), node("n2")];
    let new = known(&[service("web", 9, 8081)], &[]);
    hear_from(&mut nodes[0], Some("e1"), new, NOW);
    exchange(&mut nodes, NOW);
    let old = known(&[service("web", 7, 8080)], &[]);
    hear_from(&mut nodes[1], Some("e2"), old, NOW);
    exchange(&mut nodes, NOW);
    let view = nodes[1].snapshot().find_service("web").unwrap();
    assert_eq!(
        (view.ports[0].published, view.service.spec_version),
        (8081, swarm(9))
    );
}

#[test]
fn a_service_of_labels_stands_while_anyone_runs_it() {
    let mut nodes = [node("n1"), node("n2")];
    let wanted = |started| {
        known(
            &[by_labels("web", started)],
            &[task(&format!("t{started}"), "web")],
        )
    };
    hear_from(&mut nodes[0], None, wanted(1), NOW);
    hear_from(&mut nodes[1], None, wanted(2), NOW);
    exchange(&mut nodes, NOW);
    assert_eq!(
        nodes[0].snapshot().find_service("web").unwrap().tasks.len(),
        2
    );
    hear_from(&mut nodes[1], None, known(&[], &[]), NOW);
    exchange(&mut nodes, NOW);
    assert!(nodes[1].snapshot().find_service("web").is_some());
    hear_from(&mut nodes[0], None, known(&[], &[]), NOW);
    exchange(&mut nodes, NOW);
    assert!(nodes[1].snapshot().find_service("web").is_none());
    // A node that was away still runs it: it is there again, though its container is older than the removal.
    hear_from(&mut nodes[1], None, wanted(2), NOW);
    exchange(&mut nodes, NOW);
    assert!(nodes[0].snapshot().find_service("web").is_some());
}

#[test]
fn what_was_chosen_is_kept_and_what_docker_gives_is_not_chosen() {
    let mut node = node("n1");
    node.apply(&stack(&[]), false, NOW).unwrap();
    node.refresh(NOW);
    let mut wanted = service("web", 7, 0);
    let place = |name: &str, vip: Option<&str>| ServiceNetwork {
        name: name.parse().unwrap(),
        aliases: Vec::new(),
        vip: vip.map(|vip| vip.parse().unwrap()),
    };
    wanted.service.networks = vec![
        place("app", None),
        place("back", Some("10.10.3.2")),
        place("late", None),
    ];
    let networks = [
        network_of_swarm("back", "10.10.3.0/24"),
        network_of_swarm("late", "10.10.4.0/24"),
    ];
    let all = |wanted: &ServiceWanted| Wanted {
        networks: networks.to_vec(),
        ..known(std::slice::from_ref(wanted), &[])
    };
    hear(&mut node, all(&wanted));
    let first = node.snapshot().find_service("web").unwrap().clone();
    assert!(portolan_model::claims::PORT_RANGE.contains(&first.ports[0].published));
    let vips: Vec<_> = first.service.networks.iter().map(|n| n.vip).collect();
    assert!(vips[0].is_some(), "a network of ours: {vips:?}");
    assert_eq!(vips[1], "10.10.3.2".parse().ok());
    assert_eq!(vips[2], None, "the Swarm will give it");
    wanted.service.spec_version = swarm(8);
    wanted.service.created_ms = 600;
    wanted.service.local_first = true;
    hear(&mut node, all(&wanted));
    let second = node.snapshot().find_service("web").unwrap();
    assert!(second.service.local_first);
    assert_eq!(second.ports, first.ports);
    assert_eq!(second.service.networks, first.service.networks);
    assert_eq!(second.service.created_ms, 500);
}

fn network_of_swarm(name: &str, subnet: &str) -> NetworkWanted {
    NetworkWanted {
        name: name.parse().unwrap(),
        id: format!("id-of-{name}"),
        subnet: subnet.parse().ok(),
        vni: None,
        internal: false,
        encrypted: false,
        created_ms: 400,
        spec_version: 400 << 20,
        origin: Origin::Swarm,
    }
}

#[test]
fn a_port_that_is_taken_is_said_of_the_service_and_breaks_nothing_else() {
    let mut node = node("n1");
    node.apply(&stack(&[("first", 8080)]), false, NOW).unwrap();
    node.refresh(NOW);
    let mut late = service("late", 7, 8080);
    late.service.created_ms = NOW + 1;
    late.service
        .ports
        .push(PublishedPort::new(8081, 80, Protocol::Tcp));
    hear(&mut node, known(&[late, service("fine", 8, 8090)], &[]));
    let view = node.snapshot().find_service("late").unwrap();
    assert_eq!(view.ports.len(), 1);
    let problem = view.problems[0].to_string();
    assert!(
        problem.contains("first") && problem.contains("publish another one"),
        "{problem}"
    );
    assert!(
        node.snapshot()
            .find_service("fine")
            .unwrap()
            .problems
            .is_empty()
    );
}

#[test]
fn a_network_that_cannot_be_is_said_and_the_others_are_there() {
    let mut node = node("n1");
    let mut wanted = known(&[], &[]);
    wanted.networks = vec![
        network_of_swarm("fine", "10.10.3.0/24"),
        network_of_swarm("wrong", "10.10.0.0/16"),
    ];
    hear(&mut node, wanted);
    let fine = &node.snapshot().networks[&"fine".parse::<NetworkName>().unwrap()];
    assert!(fine.network.own_range.is_some());
    assert_eq!(node.snapshot().networks.len(), 2, "ingress, and fine");
    let findings: Vec<_> = node.docker_findings().collect();
    assert!(
        findings[0].text.contains("overlaps 10.10.3.0/24"),
        "{findings:?}"
    );
    hear(&mut node, known(&[], &[]));
    assert_eq!(node.snapshot().networks.len(), 1);
}

#[test]
fn containers_without_a_namespace_or_without_a_port_of_ours() {
    let mut node = node("n1");
    let mut hosted = service("hosted", 7, 8080);
    hosted.left_to_docker = std::mem::take(&mut hosted.service.ports);
    let on_node = TaskWanted {
        place: Sandbox::Node,
        ..task("t1", "web")
    };
    let services = [service("web", 7, 8080), hosted];
    hear(
        &mut node,
        known(&services, &[on_node, task("t2", "hosted")]),
    );
    node.settle_attachments();
    node.refresh(NOW);
    let ingress = &node.snapshot().networks[&NetworkName::ingress()];
    let gateway = ingress.gateway(&node.identity.id).unwrap();
    assert_eq!(local(&node, "t1").endpoints[0].ip, IpAddr::V4(gateway));
    for id in ["t1", "t2"] {
        assert_eq!(state(&node, id), Some(TaskState::Healthy), "{id}");
        assert_eq!(node.lacks_address(local(&node, id)), None, "{id}");
    }
}

#[test]
fn a_user_may_drain_a_container_and_not_remove_it() {
    let mut node = node("n1");
    let wanted = known(&[service("web", 7, 8080)], &[task("t1", "web")]);
    hear(&mut node, wanted.clone());
    attach(&mut node, "t1");
    let id: TaskId = "t1".parse().unwrap();
    let refused = node.end_task(&id).unwrap_err().to_string();
    assert!(refused.contains("docker"), "{refused}");
    node.drain_task(&id, NOW).unwrap();
    node.refresh(NOW);
    assert_eq!(state(&node, "t1"), Some(TaskState::Draining));
    let over = NOW + u64::from(Service::DEFAULT_DRAIN_MS);
    hear_from(&mut node, Some("e1"), wanted, over);
    assert_eq!(state(&node, "t1"), None, "its record is withheld");
    assert!(
        node.state().tasks.contains_key(&id),
        "and it does not begin anew"
    );
}

#[test]
fn tasks_of_a_global_service_have_numbers_of_their_own() {
    let mut nodes = [node("n1"), node("n2"), node("n3")];
    let wanted = known(&[service("web", 7, 8080)], &[]);
    hear_from(&mut nodes[0], Some("e1"), wanted, NOW);
    exchange(&mut nodes, NOW);
    for (at, id) in ["t1", "t2", "t3"].into_iter().enumerate() {
        let global = TaskWanted {
            slot: None,
            ..task(id, "web")
        };
        let wanted = Wanted {
            services: vec![service("web", 7, 8080)],
            knows_swarm: at == 0,
            ..on_worker(&[global])
        };
        hear_from(&mut nodes[at], Some("e1"), wanted, NOW);
    }
    exchange(&mut nodes, NOW);
    let web = nodes[2]
        .snapshot()
        .find_service("web")
        .unwrap()
        .service
        .id
        .clone();
    let slots: BTreeSet<u32> = nodes[2]
        .snapshot()
        .tasks_of(&web)
        .map(|t| t.task.slot)
        .collect();
    assert_eq!(slots.len(), 3, "{slots:?}");
}
