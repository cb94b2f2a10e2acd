//! Who is told what at the node's own address.

use std::collections::BTreeSet;

use hickory_server::proto::rr::{Name, RecordType};

use super::*;
use crate::{
    testing::{World, network_name, service},
    zone::{Found, Rotation, Ttls},
};

const TASK: &str = "172.17.0.2";
const STRANGER: &str = "172.17.0.9";
const OUTSIDE: &str = "203.0.113.9";

/// `web` on `prod`, `cache` on the internal `vault`, `db` on both and another one on `ingress`.
fn world() -> World {
    let mut world = World::usual();
    world
        .network("vault", "10.97.0.0/24", true)
        .network("ingress", "10.208.0.0/12", false)
        .service(service("cache", &[("vault", Some([10, 97, 0, 100]), &[])]))
        .service(service(
            "front",
            &[("ingress", Some([10, 208, 0, 100]), &["web"])],
        ));
    world
}

fn askers(networks: &[&str]) -> Askers {
    let networks: BTreeSet<NetworkName> = networks.iter().map(|name| network_name(name)).collect();
    Askers {
        own: ["192.0.2.1".parse().unwrap()].into(),
        local: ["172.17.0.0/16".parse().unwrap()].into(),
        tasks: [(TASK.parse().unwrap(), networks)].into(),
        incomplete: false,
    }
}

/// What a client is told of a name: its addresses, what there is instead, or `outside`.
fn ask(world: &World, askers: &Askers, client: &str, name: &str) -> String {
    let zones = Zones::new(&world.snapshot(), Ttls { task: 5, vip: 60 });
    let Some(scope) = zones.at_node(askers, client.parse().unwrap(), &[]) else {
        return "outside".to_owned();
    };
    let name = Name::from_ascii(name).unwrap();
    match scope.lookup(&name, RecordType::A, &Rotation::default()) {
        Found::Records { answers, .. } => {
            let data: Vec<String> = answers.iter().map(|a| a.data.to_string()).collect();
            data.join(" ")
        }
        Found::Foreign => format!("{:?}", scope.others),
        other => format!("{other:?}"),
    }
}

#[test]
fn a_container_that_is_a_task_gets_the_names_of_its_networks() {
    let world = world();
    let prod = askers(&["prod"]);
    assert_eq!(ask(&world, &prod, TASK, "web."), "10.96.0.100");
    assert_eq!(ask(&world, &prod, TASK, "web.prod."), "10.96.0.100");
    assert_eq!(ask(&world, &prod, TASK, "cache."), "NoName");
    assert_eq!(ask(&world, &prod, TASK, "front."), "NoName");
    assert_eq!(ask(&world, &prod, TASK, "www.example.com."), "Forward");

    let vault = askers(&["vault"]);
    assert_eq!(ask(&world, &vault, TASK, "cache."), "10.97.0.100");
    assert_eq!(ask(&world, &vault, TASK, "www.example.com."), "Deny");

    let both = askers(&["prod", "vault"]);
    assert_eq!(ask(&world, &both, TASK, "cache."), "10.97.0.100");
    assert_eq!(ask(&world, &both, TASK, "web."), "10.96.0.100");
    assert_eq!(ask(&world, &both, TASK, "www.example.com."), "Forward");
}

#[test]
fn the_names_of_other_networks_go_before_those_of_ingress() {
    let world = world();
    let both = askers(&["ingress", "prod"]);
    assert_eq!(ask(&world, &both, TASK, "web."), "10.96.0.100");
    assert_eq!(ask(&world, &both, TASK, "web.ingress."), "10.208.0.100");
    assert_eq!(ask(&world, &both, TASK, "front."), "10.208.0.100");
}

#[test]
fn a_task_at_its_address_on_our_network_gets_what_it_gets_at_the_gateway() {
    let world = world();
    let none = Askers::default();
    assert_eq!(ask(&world, &none, "10.96.0.11", "web."), "10.96.0.100");
    assert_eq!(ask(&world, &none, "10.96.0.11", "cache."), "NoName");
    assert_eq!(ask(&world, &none, "10.97.0.11", "cache."), "10.97.0.100");
    assert_eq!(ask(&world, &none, "10.97.0.11", "www.example.com."), "Deny");
}

#[test]
fn processes_of_the_node_get_the_names_of_networks_that_are_not_internal() {
    let world = world();
    let askers = askers(&["vault"]);
    for own in ["127.0.0.1", "192.0.2.1", "10.96.0.1"] {
        assert_eq!(ask(&world, &askers, own, "web."), "10.96.0.100", "{own}");
        assert_eq!(ask(&world, &askers, own, "cache."), "NoName", "{own}");
        assert_eq!(ask(&world, &askers, own, "www.example.com."), "Forward");
    }
}

#[test]
fn a_container_that_is_no_task_gets_no_names_of_ours_and_outside_gets_nothing() {
    let world = world();
    let askers = askers(&["prod"]);
    for name in ["web.", "web.prod.", "nosuch.", "www.example.com."] {
        assert_eq!(ask(&world, &askers, STRANGER, name), "Forward", "{name}");
        assert_eq!(ask(&world, &askers, OUTSIDE, name), "outside", "{name}");
    }
    let reverse = "100.0.96.10.in-addr.arpa.";
    assert_eq!(ask(&world, &askers, STRANGER, reverse), "NoName");
}

#[test]
fn before_all_containers_are_known_none_learns_that_a_name_is_gone() {
    let world = world();
    let early = Askers {
        incomplete: true,
        ..askers(&["prod"])
    };
    for name in ["web.", "web.prod.", "_80._tcp.web."] {
        let told = ask(&world, &early, STRANGER, name);
        assert_eq!(told, "NotKnownYet", "{name}");
    }
    let elsewhere = ask(&world, &early, STRANGER, "www.example.com.");
    assert_eq!(elsewhere, "Forward");
    assert_eq!(ask(&world, &early, TASK, "nosuch."), "NoName");
}

#[test]
fn a_network_that_is_not_known_yet_may_be_an_internal_one() {
    let world = world();
    let early = askers(&["soon"]);
    assert_eq!(ask(&world, &early, TASK, "web."), "NotKnownYet");
    assert_eq!(ask(&world, &early, TASK, "www.example.com."), "Deny");
}
