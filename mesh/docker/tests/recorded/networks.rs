//! Networks of Portolan's driver. The recordings have those of Docker's own; some are changed here.

use portolan_docker::{NetworkWanted, Origin};
use portolan_model::TaskState;
use serde_json::{Value, json};

use crate::recording::{diagnostics, manager, services, task, wanted, worker};

/// The engine with the network `front` of another driver.
fn with_driver(mut engine: Value, driver: &str, options: &Value) -> Value {
    for network in engine["networks"].as_array_mut().unwrap() {
        if network["Name"] == "front" {
            network["Driver"] = json!(driver);
            network["Options"] = options.clone();
        }
    }
    engine
}

#[test]
fn a_managers_networks_of_the_driver_are_declared() {
    for driver in [
        "portolan",
        "portolan:latest",
        "registry.example:5000/net/portolan:1.2",
    ] {
        let options = json!({"portolan.vni": "4242", "encrypted": ""});
        let wanted = wanted(&with_driver(manager(), driver, &options));
        assert_eq!(
            wanted.networks,
            [NetworkWanted {
                name: "front".parse().unwrap(),
                id: "hyv1kbdqkwhrsjl1pjinlz36g".into(),
                subnet: "10.65.7.0/24".parse().ok(),
                vni: Some(4242),
                internal: false,
                encrypted: true,
                created_ms: 1_795_232_216_430,
                spec_version: 1_795_232_216_430 << 20,
                origin: Origin::Swarm,
            }]
        );
        let shown = services(&wanted);
        // The Swarm's VIPs and aliases are on it, and Docker's own network is not ours.
        assert!(
            shown.contains("web 8080:80/tcp on front@10.65.7.2 Vip\n"),
            "{shown}"
        );
        assert!(
            shown.contains("on front=www=shop.local=web@10.65.7.6 of shop"),
            "{shown}"
        );
        assert!(!shown.contains("shop_default"));
    }
    assert_eq!(wanted(&manager()).networks, []);
    let none = wanted(&with_driver(manager(), "portolano", &json!(null)));
    assert_eq!(none.networks, []);
}

#[test]
fn a_worker_leaves_the_swarms_networks_to_managers_and_knows_the_addresses_of_its_tasks() {
    let wanted = wanted(&with_driver(worker(), "portolan", &json!(null)));
    assert_eq!(wanted.networks, []);
    let web = task(&wanted, "web.2");
    assert_eq!(web.endpoints.len(), 1, "Docker's ingress is none of ours");
    assert_eq!(web.endpoints[0].ip.to_string(), "10.65.7.4");
    assert_eq!(
        web.endpoints[0].mac.unwrap().to_string(),
        "02:42:0a:41:07:04"
    );
}

#[test]
fn a_container_that_only_is_on_the_network_is_attached_and_no_task_of_a_service() {
    let wanted = wanted(&with_driver(worker(), "portolan", &json!(null)));
    let attached = task(&wanted, "attached");
    assert_eq!(
        (attached.service.as_ref(), attached.state),
        (None, TaskState::Healthy)
    );
    assert_eq!(attached.endpoints.len(), 1);
}

#[test]
fn an_engine_without_a_swarm_declares_its_own() {
    let mut engine = with_driver(worker(), "portolan", &json!({"portolan.vni": "x"}));
    engine["info"]["Swarm"] = json!({"LocalNodeState": "inactive"});
    for network in engine["networks"].as_array_mut().unwrap() {
        network["Scope"] = json!("local");
    }
    let wanted = wanted(&engine);
    assert_eq!(wanted.networks[0].origin, Origin::Engine);
    assert_eq!(wanted.networks[0].vni, None);
    assert_eq!(
        diagnostics(&wanted),
        [
            "network front: portolan.vni: 'x' is no VNI; give a number from 1 to 16777215, or leave the option out"
        ]
    );
}

#[test]
fn a_network_without_a_subnet_or_of_a_reserved_name_is_told() {
    let mut engine = with_driver(manager(), "portolan", &json!({}));
    for network in engine["networks"].as_array_mut().unwrap() {
        if network["Name"] == "front" {
            network["IPAM"]["Config"] = json!([{"Subnet": "fd00::/64"}]);
        }
        if network["Name"] == "ingress" {
            network["Driver"] = json!("portolan");
        }
    }
    let wanted = wanted(&engine);
    let told = diagnostics(&wanted).join("\n");
    assert!(told.contains("network front: it has no IPv4 subnet; create it with --subnet"));
    assert!(told.contains("network ingress: the network ingress is built in"));
    assert_eq!(wanted.networks.len(), 1);
}

#[test]
fn with_dnsrr_there_is_no_virtual_address() {
    let mut engine = with_driver(manager(), "portolan", &json!({}));
    crate::recording::service(&mut engine, "web")["Spec"]["EndpointSpec"]["Mode"] = json!("dnsrr");
    assert!(services(&wanted(&engine)).contains("web 8080:80/tcp on front Dnsrr\n"));
}

#[test]
fn of_two_networks_of_one_name_the_later_is_meant() {
    let mut engine = with_driver(manager(), "portolan", &json!({}));
    let networks = engine["networks"].as_array_mut().unwrap();
    let mut later = networks
        .iter()
        .find(|n| n["Name"] == "front")
        .unwrap()
        .clone();
    later["Id"] = json!("later");
    later["Created"] = json!("2026-11-21T05:00:00Z");
    networks.insert(0, later);
    let wanted = wanted(&engine);
    assert_eq!(wanted.networks.len(), 1);
    assert_eq!(wanted.networks[0].id, "later");
}
