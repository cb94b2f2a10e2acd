//! The tasks of a node.

use portolan_docker::{Place, translate};
use portolan_model::TaskState;
use serde_json::{Value, json};

use crate::recording::{container, diagnostics, manager, observe, task, tasks, wanted, worker};

#[test]
fn the_swarms_tasks_are_those_of_its_services_that_are_ours() {
    assert_eq!(
        tasks(&wanted(&manager())),
        "\
checked.2 of swarm's slot Some(2) weight None /run/docker/netns Healthy checked
hosted of swarm's slot None weight None /run/docker/netns Healthy
shop_web.2 of swarm's slot Some(2) weight None /run/docker/netns Healthy
web.1 of swarm's slot Some(1) weight None /run/docker/netns Healthy
"
    );
}

#[test]
fn a_worker_names_the_service_and_knows_no_more_of_it() {
    let wanted = wanted(&worker());
    assert_eq!(
        tasks(&wanted),
        "\
composed of blog_web slot None weight None /run/docker/netns Healthy
hosted of swarm's slot None weight None /run/docker/netns Healthy
hostnet of hostnet slot None weight None node Healthy
labelled.1 of swarm's slot Some(1) weight Some(2) /run/docker/netns Healthy
plain of plain slot None weight None /run/docker/netns Healthy
shop_cache.1 of swarm's slot Some(1) weight None /run/docker/netns Healthy
udp.1 of swarm's slot Some(1) weight None /run/docker/netns Healthy
web.2 of swarm's slot Some(2) weight None /run/docker/netns Healthy
wrong.1 of swarm's slot Some(1) weight None /run/docker/netns Healthy
"
    );
    let web = task(&wanted, "web.2");
    assert_eq!(web.id.as_str(), "yjnlaigolu1cfcq6pest5pgrh");
    assert_eq!(
        web.service.as_ref().unwrap().as_str(),
        "6yr3oa7kp2kwkz0ypn4g3b2d0"
    );
    assert!(matches!(&web.place, Place::Netns(path) if path.ends_with("dd1c34feb728")));
}

#[test]
fn health_is_that_of_the_healthcheck() {
    for (status, state, reason) in [
        (
            "starting",
            TaskState::Starting,
            Some("its HEALTHCHECK has not passed yet"),
        ),
        ("healthy", TaskState::Healthy, None),
        (
            "unhealthy",
            TaskState::Unhealthy,
            Some(
                "its HEALTHCHECK fails: wget: can't connect to remote host (127.0.0.1): Connection refused",
            ),
        ),
    ] {
        let mut engine = manager();
        let health = &mut container(&mut engine, "checked")["State"]["Health"];
        health["Status"] = json!(status);
        health["Log"] = json!([{"Output": "wget: can't connect to remote host (127.0.0.1): Connection refused\nx"}]);
        let wanted = wanted(&engine);
        let checked = task(&wanted, "checked");
        assert_eq!((checked.state, checked.reason.as_deref()), (state, reason));
        assert!(checked.checked);
    }
    let mut engine = manager();
    container(&mut engine, "checked")["State"]["Health"]["Status"] = json!("none");
    assert!(!task(&wanted(&engine), "checked").checked);
}

#[test]
fn a_container_that_is_paused_stopped_or_over_gets_no_new_flows() {
    let with_status = |status: &str| {
        let mut engine = worker();
        container(&mut engine, "plain")["State"]["Status"] = json!(status);
        wanted(&engine)
    };
    let paused = with_status("paused");
    assert_eq!(task(&paused, "plain").state, TaskState::Unhealthy);
    assert!(
        task(&paused, "plain")
            .reason
            .as_ref()
            .unwrap()
            .contains("docker unpause")
    );
    for status in [
        "exited",
        "created",
        "restarting",
        "dead",
        "removing",
        "unheard-of",
    ] {
        let wanted = with_status(status);
        assert!(wanted.tasks.iter().all(|t| t.name != "plain"), "{status}");
    }
    let mut observed = observe(&worker());
    for container in &mut observed.containers {
        container.stopping = true;
    }
    let wanted = translate(&observed);
    assert!(wanted.tasks.iter().all(|t| t.state == TaskState::Draining));
}

/// The recording after `docker restart` of web.2 on the worker: its container runs again, and the Swarm has
/// another task in its place.
fn after_restart(mut engine: Value, tasks: bool) -> Value {
    let orphan: Value = serde_json::from_str(include_str!("../data/worker-orphan.json")).unwrap();
    for (id, container) in orphan["inspect"].as_object().unwrap() {
        engine["inspect"][id] = container.clone();
    }
    if tasks {
        let later: Value =
            serde_json::from_str(include_str!("../data/manager-orphan.json")).unwrap();
        engine["tasks"] = later["tasks"].clone();
    }
    engine
}

#[test]
fn a_container_restarted_behind_the_swarms_back_is_an_orphan_on_workers_and_managers() {
    for engine in [
        after_restart(worker(), false),
        after_restart(manager(), true),
    ] {
        let wanted = wanted(&engine);
        assert!(wanted.tasks.iter().all(|t| !t.name.starts_with("web.2")));
        let told = diagnostics(&wanted);
        let told = told.iter().find(|d| d.contains("behind the Swarm's back"));
        assert_eq!(
            told.unwrap(),
            "container web.2.yjnlaigolu1cfcq6pest5pgrh: it was started again behind the Swarm's back, which has replaced it, and gets no connections; remove it with `docker rm -f web.2.yjnlaigolu1cfcq6pest5pgrh`"
        );
    }
}

#[test]
fn a_manager_knows_an_orphan_by_its_task_too() {
    let mut engine = after_restart(manager(), true);
    container(&mut engine, "web.2")["State"]["FinishedAt"] = json!("0001-01-01T00:00:00Z");
    let wanted = wanted(&engine);
    assert!(wanted.tasks.iter().all(|t| !t.name.starts_with("web.2")));
}

#[test]
fn a_task_that_the_swarm_is_about_to_end_drains_before_its_container_hears_of_it() {
    let mut engine = manager();
    for task in engine["tasks"].as_array_mut().unwrap() {
        task["DesiredState"] = json!("shutdown");
    }
    let wanted = wanted(&engine);
    assert!(wanted.tasks.iter().all(|t| t.state == TaskState::Draining));
    assert_eq!(wanted.tasks.len(), 4);
}

#[test]
fn old_and_new_task_of_a_slot_are_there_while_one_replaces_the_other() {
    let mut engine = worker();
    let mut newer = container(&mut engine, "web.2").clone();
    newer["Id"] = json!("f".repeat(64));
    newer["Name"] = json!("/web.2.zzzzzigolu1cfcq6pest5pgrh");
    newer["Config"]["Labels"]["com.docker.swarm.task.id"] = json!("zzzzzigolu1cfcq6pest5pgrh");
    newer["Config"]["Labels"]["com.docker.swarm.task.name"] =
        json!("web.2.zzzzzigolu1cfcq6pest5pgrh");
    engine["inspect"]["f"] = newer;
    let wanted = wanted(&engine);
    let slots = wanted.tasks.iter().filter(|t| t.name.starts_with("web.2"));
    assert_eq!(
        slots.map(|t| t.slot).collect::<Vec<_>>(),
        [Some(2), Some(2)]
    );
}

#[test]
fn of_two_containers_that_say_to_be_one_task_one_counts() {
    let mut engine = worker();
    let mut twin = container(&mut engine, "web.2").clone();
    twin["Id"] = json!("f".repeat(64));
    twin["Name"] = json!("/twin");
    engine["inspect"]["f"] = twin;
    let wanted = wanted(&engine);
    assert!(wanted.tasks.iter().all(|t| t.name != "twin"));
    assert!(
        diagnostics(&wanted)
            .iter()
            .any(|d| d.contains("container twin: container web.2"))
    );
}

#[test]
fn a_restart_of_a_plain_container_is_another_place_of_the_same_task() {
    let before = wanted(&worker());
    let mut engine = worker();
    let plain = container(&mut engine, "plain");
    plain["State"]["FinishedAt"] = json!("2026-11-21T04:00:00Z");
    plain["State"]["StartedAt"] = json!("2026-11-21T04:00:01Z");
    plain["NetworkSettings"]["SandboxKey"] = json!("/run/docker/netns/another");
    let after = wanted(&engine);
    let (before, after) = (task(&before, "plain"), task(&after, "plain"));
    assert_eq!(before.id, after.id);
    assert_ne!(before.place, after.place);
    assert!(after.started_ms > before.started_ms);
}

#[test]
fn a_container_in_anothers_network_is_found_by_its_process() {
    let mut engine = worker();
    let plain = container(&mut engine, "plain");
    plain["NetworkSettings"]["SandboxKey"] = json!("");
    plain["HostConfig"]["NetworkMode"] = json!("container:abc");
    let wanted = wanted(&engine);
    assert!(matches!(task(&wanted, "plain").place, Place::Pid(pid) if pid > 0));
}
