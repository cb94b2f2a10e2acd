//! The services of a Swarm.

use portolan_docker::Origin;
use portolan_model::{Balancing, ProxyProtocol, Record};
use serde_json::json;

use crate::recording::{diagnostics, manager, observe, service, services, wanted, worker};

#[test]
fn a_manager_declares_what_is_published_or_labelled() {
    let wanted = wanted(&manager());
    assert_eq!(
        services(&wanted),
        "\
checked 8085:80/tcp Vip
hosted 8181:80/tcp(docker) Vip
labelled 8082:80/tcp Dnsrr
ranged 9000-9003:90-93/tcp 9100:94/tcp Vip
shop_web 8090:80/tcp 8091:81/udp(docker) of shop Vip
udp 5353:5353/udp Vip
web 8080:80/tcp Vip
wrong 8083:80/tcp Vip
"
    );
    assert!(wanted.knows_swarm);
    for service in &wanted.services {
        assert_eq!(service.origin, Origin::Swarm);
        assert_eq!(service.service.id.as_str().len(), 25, "the Swarm's own id");
        assert!(Record::Service(service.service.clone()).encode().is_ok());
    }
}

#[test]
fn labels_of_the_service_and_of_its_containers_are_its_options() {
    let wanted = wanted(&manager());
    let of = |name: &str| {
        let mut all = wanted.services.iter().map(|s| &s.service);
        all.find(|s| s.name == name).unwrap()
    };
    assert_eq!(of("labelled").drain_ms, 3000);
    assert_eq!(of("labelled").balancing, Balancing::LeastConnections);
    assert_eq!(of("shop_web").proxy_protocol, Some(ProxyProtocol::V2));
    assert_eq!(of("shop_web").tcp_idle_ms, Some(900_000), "from `labels:`");
    assert_eq!(of("wrong").allow.len(), 1, "what is right of it holds");
}

#[test]
fn the_label_of_a_service_goes_before_that_of_its_containers() {
    let mut engine = manager();
    let labels = &mut service(&mut engine, "shop_web")["Spec"]["Labels"];
    labels["portolan.idle_timeout"] = json!("1m");
    let wanted = wanted(&engine);
    let web = wanted
        .services
        .iter()
        .find(|s| s.service.name == "shop_web");
    assert_eq!(web.unwrap().service.tcp_idle_ms, Some(60_000));
}

#[test]
fn a_label_that_does_not_parse_is_told_on_its_service() {
    let wanted = wanted(&manager());
    assert_eq!(
        diagnostics(&wanted),
        [
            "service wrong: portolan.balancing: 'roundrobin' is not known here; did you mean round-robin?",
            "service wrong: portolan.publish[0]: '80x' is no port number; write one of 1-65535",
        ]
    );
    let wrong = wanted.services.iter().find(|s| s.service.name == "wrong");
    let id = &wrong.unwrap().service.id;
    assert!(
        wanted
            .diagnostics
            .iter()
            .all(|d| d.service.as_ref() == Some(id))
    );
}

#[test]
fn all_managers_declare_the_same_whatever_the_order() {
    let one = wanted(&manager());
    let mut engine = manager();
    for list in ["services", "tasks", "nodes", "networks"] {
        engine[list].as_array_mut().unwrap().reverse();
    }
    // Another manager has other containers, and other words for itself.
    engine["inspect"] = json!({});
    engine["info"]["Name"] = json!("n4");
    engine["info"]["Swarm"]["NodeID"] = json!("another");
    let other = wanted(&engine);
    assert_eq!(one.services, other.services);
    assert_eq!(one.networks, other.networks);
    assert_eq!(one.diagnostics, other.diagnostics);
}

#[test]
fn every_change_of_a_service_has_a_greater_version_with_room_for_what_the_agent_adds() {
    let before = wanted(&manager());
    let mut engine = manager();
    let web = service(&mut engine, "web");
    web["Version"]["Index"] = json!(web["Version"]["Index"].as_u64().unwrap() + 1);
    let after = wanted(&engine);
    let version = |wanted: &portolan_docker::Wanted| {
        let web = wanted.services.iter().find(|s| s.service.name == "web");
        web.unwrap().service.spec_version
    };
    assert!(version(&after) >= version(&before) + 100_000);
    assert!(version(&before) > 1 << 60, "above every clock");
}

#[test]
fn ports_of_one_target_are_each_served() {
    let mut engine = manager();
    let web = service(&mut engine, "web");
    let port = |published: u16| json!({"Protocol": "tcp", "TargetPort": 80, "PublishedPort": published, "PublishMode": "ingress"});
    web["Spec"]["EndpointSpec"]["Ports"] = json!([port(0), port(8080), port(0)]);
    web["Endpoint"]["Ports"] = json!([port(8080), port(30_001), port(30_002)]);
    let all = "web 8080:80/tcp 30001:80/tcp 30002:80/tcp Vip\n";
    assert!(services(&wanted(&engine)).contains(all));
}

#[test]
fn a_port_that_the_swarm_chooses_is_served_once_it_is_chosen() {
    let mut engine = manager();
    let web = service(&mut engine, "web");
    web["Spec"]["EndpointSpec"]["Ports"][0]["PublishedPort"] = json!(0);
    web["Endpoint"]["Ports"][0]["PublishedPort"] = json!(30_001);
    assert!(services(&wanted(&engine)).contains("web 30001:80/tcp Vip\n"));
    service(&mut engine, "web")["Endpoint"]["Ports"] = json!(null);
    assert!(!services(&wanted(&engine)).contains("\nweb "));
}

#[test]
fn a_protocol_that_is_not_supported_is_told_and_the_other_ports_are_served() {
    let mut engine = manager();
    let ranged = service(&mut engine, "ranged");
    ranged["Spec"]["EndpointSpec"]["Ports"][4]["Protocol"] = json!("sctp");
    let wanted = wanted(&engine);
    assert!(services(&wanted).contains("ranged 9000-9003:90-93/tcp Vip"));
    assert!(
        diagnostics(&wanted).contains(
            &"service ranged: ports: 9100:94/sctp: sctp is not supported; publish tcp or udp"
                .to_owned()
        )
    );
}

#[test]
fn a_service_can_be_kept_from_portolan() {
    assert!(!services(&wanted(&manager())).contains("off"));
    let mut engine = manager();
    let labels = &mut service(&mut engine, "off")["Spec"]["Labels"];
    labels["portolan.enable"] = json!("perhaps");
    let doubtful = wanted(&engine);
    assert!(!services(&doubtful).contains("off"), "in doubt it is kept");
    assert!(diagnostics(&doubtful)[0].contains("found a text; write true or false"));
}

#[test]
fn a_service_that_is_no_record_is_told() {
    let mut engine = manager();
    let ports: Vec<_> = (0..200)
        .map(|i| json!({"Protocol": "tcp", "TargetPort": 80, "PublishedPort": 10_000 + 2 * i, "PublishMode": "ingress"}))
        .collect();
    service(&mut engine, "web")["Spec"]["EndpointSpec"]["Ports"] = json!(ports);
    let wanted = wanted(&engine);
    assert!(!services(&wanted).contains("\nweb "));
    let told = diagnostics(&wanted);
    assert!(
        told.iter()
            .any(|d| d.starts_with("service web: the service takes"))
    );
}

#[test]
fn a_worker_declares_nothing_of_the_swarm_and_does_not_know_what_is_absent() {
    let wanted = wanted(&worker());
    assert!(!wanted.knows_swarm);
    assert!(wanted.services.iter().all(|s| s.origin == Origin::Engine));
}

#[test]
fn the_nodes_of_the_swarm_are_peers() {
    let peers = |engine| {
        let peers = wanted(&engine).peers;
        peers.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(peers(manager()), ["172.31.88.2", "172.31.88.3"]);
    assert_eq!(peers(worker()), ["172.31.88.1"]);
    // A manager that listens everywhere is known by the other address that it has.
    let mut engine = manager();
    let info = engine["info"]["Swarm"].as_object_mut().unwrap();
    info.insert("NodeID".into(), json!("another"));
    info.insert("NodeAddr".into(), json!("172.31.88.2"));
    info.insert("RemoteManagers".into(), json!(null));
    for node in engine["nodes"].as_array_mut().unwrap() {
        if node["ManagerStatus"].is_object() {
            node["Status"]["Addr"] = json!("0.0.0.0");
        }
    }
    assert_eq!(peers(engine), ["172.31.88.1", "172.31.88.3"]);
}

#[test]
fn a_locked_swarm_is_told() {
    let mut engine = manager();
    engine["info"]["Swarm"]["LocalNodeState"] = json!("locked");
    engine["info"]["Swarm"]["ControlAvailable"] = json!(false);
    let wanted = wanted(&engine);
    assert!(!wanted.knows_swarm);
    assert_eq!(
        diagnostics(&wanted),
        ["docker: its part in the Swarm is locked; unlock it with `docker swarm unlock`"]
    );
    engine["info"]["Swarm"]["LocalNodeState"] = json!("inactive");
    assert_eq!(observe(&engine).engine.swarm, None);
}

#[test]
fn a_name_that_is_none_is_told_and_its_id_is_shown() {
    let mut engine = manager();
    service(&mut engine, "web")["Spec"]["Name"] = json!("\u{1b}[2Jweb");
    let wanted = wanted(&engine);
    assert!(services(&wanted).contains("6yr3oa7kp2kwkz0ypn4g3b2d0 8080:80/tcp Vip"));
    assert!(
        diagnostics(&wanted)
            .iter()
            .any(|d| d.contains("is not allowed there"))
    );
}
