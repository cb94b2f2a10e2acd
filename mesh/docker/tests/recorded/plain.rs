//! Containers that no Swarm started.

use portolan_docker::Origin;
use portolan_model::HealthProbe;
use serde_json::json;

use crate::recording::{container, diagnostics, services, task, wanted, worker};

#[test]
fn labels_describe_services_and_compose_names_them() {
    let wanted = wanted(&worker());
    assert_eq!(
        services(&wanted),
        "\
blog_web 8071:80/tcp of blog Vip
hostnet 8072:8072/tcp Vip
plain 8070:80/tcp Vip
"
    );
    let plain = wanted.services.iter().find(|s| s.service.name == "plain");
    let plain = plain.unwrap();
    assert_eq!(plain.origin, Origin::Engine);
    assert!(
        matches!(&plain.service.health.as_ref().unwrap().probe, HealthProbe::Http { path, .. } if path == "/")
    );
}

#[test]
fn a_container_may_be_a_task_of_a_service_that_is_declared_elsewhere() {
    let mut engine = worker();
    let plain = container(&mut engine, "plain");
    plain["Config"]["Labels"] =
        json!({"portolan.service": "shop_web", "portolan.weight": "5", "portolan.slot": "3"});
    let wanted = wanted(&engine);
    assert!(!services(&wanted).contains("shop_web"));
    let task = task(&wanted, "plain");
    assert_eq!(task.service.as_ref().unwrap().as_str(), "shop_web");
    assert_eq!((task.weight, task.slot), (Some(5), Some(3)));
}

#[test]
fn compose_gives_slots_aliases_and_names() {
    let mut engine = worker();
    let composed = container(&mut engine, "composed");
    let labels = &mut composed["Config"]["Labels"];
    labels["com.docker.compose.container-number"] = json!("2");
    labels["portolan.networks"] = json!("front");
    let wanted = wanted(&engine);
    assert_eq!(task(&wanted, "composed").slot, Some(2));
    assert!(services(&wanted).contains("blog_web 8071:80/tcp on front=web of blog Vip"));
}

#[test]
fn of_containers_that_differ_the_one_made_last_is_right() {
    let mut engine = worker();
    let mut newer = container(&mut engine, "plain").clone();
    newer["Id"] = json!("0".repeat(64));
    newer["Name"] = json!("/newer");
    newer["Created"] = json!("2026-11-21T05:00:00Z");
    newer["Config"]["Labels"]["portolan.publish"] = json!("8079:80");
    engine["inspect"]["0"] = newer;
    // The older one was started again since.
    container(&mut engine, "plain")["State"]["StartedAt"] = json!("2026-11-21T06:00:00Z");
    let both = wanted(&engine);
    assert!(services(&both).contains("plain 8079:80/tcp Vip"));
    let plain = both.services.iter().find(|s| s.service.name == "plain");
    let plain = &plain.unwrap().service;
    assert_eq!(
        plain.spec_version >> 20,
        1_795_240_800_000,
        "of the last start"
    );
    assert_eq!(
        plain.created_ms, 1_795_232_216_666,
        "of the first container"
    );
    assert_eq!(
        both.tasks
            .iter()
            .filter(|t| t.service.as_ref() == Some(&plain.id))
            .count(),
        2
    );
}

#[test]
fn faults_are_told_on_the_service_of_the_container() {
    let mut engine = worker();
    let labels = &mut container(&mut engine, "plain")["Config"]["Labels"];
    labels["portolan.publish"] = json!("8070:80/sctp");
    labels["portolan.helth"] = json!("x");
    let wanted = wanted(&engine);
    assert_eq!(
        diagnostics(&wanted),
        [
            "container plain: portolan.helth: unknown label; did you mean health?",
            "container plain: portolan.publish[0]: sctp is not supported; publish tcp or udp",
            "container plain: portolan: the health check has no port, and the service publishes no tcp port to take it from; give `health` a port",
        ]
    );
    let ids = wanted
        .diagnostics
        .iter()
        .map(|d| d.service.as_ref().unwrap());
    assert!(ids.into_iter().all(|id| id.as_str() == "plain"));
    assert!(
        wanted.tasks.iter().any(|t| t.name == "plain"),
        "the task stays"
    );
}

#[test]
fn a_name_too_long_for_a_service_is_told() {
    let mut engine = worker();
    let plain = container(&mut engine, "plain");
    plain["Name"] = json!(format!("/{}", "x".repeat(70)));
    plain["Config"]["Labels"] = json!({"portolan.publish": "80"});
    let wanted = wanted(&engine);
    assert!(
        diagnostics(&wanted)[0].ends_with("give the service a name by the label portolan.service")
    );
    assert!(wanted.tasks.iter().all(|t| !t.name.starts_with("xxx")));
}

#[test]
fn containers_without_a_label_are_none_of_ours() {
    let wanted = wanted(&worker());
    assert!(wanted.tasks.iter().all(|t| t.name != "attached"));
}

#[test]
fn a_container_that_must_not_be_served_is_not() {
    let mut engine = worker();
    container(&mut engine, "plain")["Config"]["Labels"]["portolan.enable"] = json!("false");
    let wanted = wanted(&engine);
    assert!(wanted.tasks.iter().all(|t| t.name != "plain"));
    assert!(!services(&wanted).contains("plain "));
}
