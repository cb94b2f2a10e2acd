use portolan_model::{Balancing, HealthProbe, PlaneChoice, ProxyProtocol, Service};
use proptest::prelude::*;

use super::Labels;

fn read(labels: &[(&str, &str)]) -> (Service, Labels) {
    let mut service = Service::new("web".parse().unwrap());
    let labels = Labels::apply(labels.iter().copied(), "service web", &mut service);
    (service, labels)
}

fn wrong(labels: &[(&str, &str)]) -> Vec<String> {
    let (_, labels) = read(labels);
    labels.wrong.iter().map(ToString::to_string).collect()
}

#[test]
fn every_word_of_a_stack_file_is_a_label() {
    let (service, labels) = read(&[
        ("portolan.publish", "8080:80/tcp, 8000-8001:90-91/udp,81"),
        ("portolan.networks", "front,back"),
        ("portolan.endpoint-mode", "dnsrr"),
        ("portolan.service", "shop_web"),
        ("portolan.weight", "3"),
        ("portolan.slot", "2"),
        ("portolan.drain", "1m30s"),
        ("portolan.idle_timeout", "15m"),
        ("portolan.udp-idle-timeout", "5s"),
        ("portolan.balancing", "source-hash"),
        ("portolan.local_first", "true"),
        ("portolan.ipv6", "true"),
        ("portolan.plane", "relay"),
        ("portolan.proxy-protocol", "v2"),
        ("portolan.allow", "10.0.0.0/8,192.168.0.0/16"),
        ("portolan.health.http", "/health"),
        ("portolan.health.port", "8081"),
        ("com.example.other", "80"),
    ]);
    assert_eq!(labels.wrong, []);
    let ports: Vec<String> = service.ports.iter().map(ToString::to_string).collect();
    assert_eq!(
        ports,
        ["8080:80/tcp", "8000-8001:90-91/udp", "0:81/tcp"],
        "81 leaves the published port open"
    );
    let networks: Vec<&str> = service.networks.iter().map(|n| n.name.as_str()).collect();
    assert_eq!(networks, ["front", "back"]);
    assert_eq!(service.endpoint_mode, portolan_model::EndpointMode::Dnsrr);
    assert_eq!(
        (service.drain_ms, service.tcp_idle_ms, service.udp_idle_ms),
        (90_000, Some(900_000), 5000)
    );
    assert_eq!(service.balancing, Balancing::SourceHash);
    assert!(service.local_first && service.ipv6);
    assert_eq!(service.plane, PlaneChoice::Relay);
    assert_eq!(service.proxy_protocol, Some(ProxyProtocol::V2));
    assert_eq!(service.allow.len(), 2);
    let probe = HealthProbe::Http {
        port: 8081,
        path: "/health".into(),
        status: 0,
    };
    assert_eq!(service.health.unwrap().probe, probe);
    assert_eq!(labels.service.unwrap().as_str(), "shop_web");
    assert_eq!((labels.weight, labels.slot), (Some(3), Some(2)));
    assert!(labels.enabled && labels.declares && labels.fits);
}

#[test]
fn labels_of_a_task_alone_declare_nothing() {
    let (service, labels) = read(&[("portolan.service", "web"), ("portolan.weight", "0")]);
    assert!(!labels.declares);
    assert_eq!(service, Service::new("web".parse().unwrap()));
    assert!(!read(&[]).1.declares);
}

#[test]
fn what_does_not_parse_is_left_out_and_the_rest_holds() {
    let (service, labels) = read(&[
        ("portolan.publish", "80x,8083:80,8083:81"),
        ("portolan.balancing", "roundrobin"),
        ("portolan.drain", "3s"),
    ]);
    assert_eq!(service.ports.len(), 1);
    assert_eq!(service.drain_ms, 3000);
    assert!(labels.fits);
    let wrong: Vec<String> = labels.wrong.iter().map(ToString::to_string).collect();
    assert_eq!(
        wrong,
        [
            "service web: portolan.publish[0]: '80x' is no port number; write one of 1-65535",
            "service web: portolan.publish[2]: 8083:81/tcp is already published by this service, as 8083:80/tcp; remove one of the two",
            "service web: portolan.balancing: 'roundrobin' is not known here; did you mean round-robin?",
        ]
    );
}

#[test]
fn each_fault_has_its_remedy() {
    for (label, text, expected) in [
        (
            "publsh",
            "80",
            "portolan.publsh: unknown label; did you mean publish?",
        ),
        (
            "helth.http",
            "/",
            "portolan.helth: unknown label; did you mean health?",
        ),
        (
            "health",
            "/",
            "portolan.health: the check asks nothing; write portolan.health.http=/path or portolan.health.tcp=PORT",
        ),
        (
            "health.http",
            "x",
            "portolan.health.http: 'x' is no path; write one that starts with / and has only printable ASCII, such as /health",
        ),
        (
            "health.tcp",
            "true",
            "portolan: the health check has no port, and the service publishes no tcp port to take it from; give `health` a port",
        ),
        (
            "publish",
            "",
            "portolan.publish: no port is given; write such as 8080:80/tcp",
        ),
        (
            "networks",
            "ingress",
            "portolan.networks[0]: the network ingress is built in; remove it: every service with published ports is on it",
        ),
        (
            "tasks",
            "x",
            "portolan.tasks: a container is a task by itself; remove it",
        ),
        (
            "slot",
            "0",
            "portolan.slot: 0 is out of range; write a whole number from 1 to 4294967295",
        ),
        (
            "enable",
            "perhaps",
            "portolan.enable: found a text; write true or false",
        ),
    ] {
        let name = format!("portolan.{label}");
        assert_eq!(
            wrong(&[(&name, text)]),
            [format!("service web: {expected}")]
        );
    }
}

#[test]
fn a_contradiction_is_reported_and_mended() {
    let (service, labels) = read(&[
        ("portolan.publish", "53:53/udp"),
        ("portolan.proxy_protocol", "v1"),
        ("portolan.health.tcp", "true"),
    ]);
    assert_eq!(labels.wrong.len(), 2);
    assert_eq!((service.proxy_protocol, service.health), (None, None));
    assert_eq!(service.ports.len(), 1);
}

#[test]
fn a_service_that_is_no_record_says_so() {
    let ports: Vec<String> = (0..200).map(|i| format!("{}:80", 8000 + 2 * i)).collect();
    let (_, labels) = read(&[("portolan.publish", &ports.join(","))]);
    assert!(!labels.fits);
    assert!(labels.wrong[0].message.contains("bytes of at most"));
}

#[test]
fn only_a_clear_no_keeps_a_service_from_being_served_except_in_doubt() {
    assert!(!read(&[("portolan.enable", "false")]).1.enabled);
    assert!(!read(&[("portolan.enable", "nope")]).1.enabled);
    assert!(read(&[("portolan.enable", "true")]).1.enabled);
}

proptest! {
    #[test]
    fn no_label_makes_it_panic(
        labels in prop::collection::vec(
            ("portolan\\.[a-z._-]{0,12}|portolan\\.(publish|networks|allow|health\\.http|health)|.{0,8}", ".{0,20}|[0-9:/.,-]{0,20}"),
            0..8,
        ),
    ) {
        let labels: Vec<(&str, &str)> = labels.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        let (service, labels) = read(&labels);
        prop_assert!(!labels.fits || portolan_model::Record::Service(service).encode().is_ok());
    }
}
