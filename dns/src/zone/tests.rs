//! What names mean.

use std::net::IpAddr;

use hickory_server::proto::rr::{Name, RData, RecordType};
use portolan_model::{Protocol, PublishedPort, Service, TaskState};

use super::{Found, Rotation, Ttls, Zones};
use crate::testing::{World, dnsrr, network_name, service};

const CLIENT: &str = "10.96.0.11";

/// The records that a client on `prod` finds, as `TTL TYPE data`, or what it finds instead.
fn ask(world: &World, name: &str, qtype: RecordType) -> Vec<String> {
    ask_on(world, "prod", CLIENT, name, qtype)
}

fn ask_on(
    world: &World,
    network: &str,
    client: &str,
    name: &str,
    qtype: RecordType,
) -> Vec<String> {
    let zones = Zones::new(&world.snapshot(), Ttls { task: 5, vip: 60 });
    let name = Name::from_ascii(name).unwrap();
    let client: IpAddr = client.parse().unwrap();
    let rotation = Rotation::default();
    let scope = zones.on(&network_name(network), client, &[]).unwrap();
    match scope.lookup(&name, qtype, &rotation) {
        Found::Records {
            answers,
            additionals,
        } => answers
            .iter()
            .chain(&additionals)
            .map(|record| match &record.data {
                RData::A(_) if record.name != name => format!("{} {}", record.name, record.data),
                _ => format!("{} {} {}", record.ttl, record.record_type(), record.data),
            })
            .collect(),
        other => vec![format!("{other:?}")],
    }
}

fn nothing() -> Vec<String> {
    Vec::new()
}

#[test]
fn a_service_and_its_aliases_give_the_vip_with_and_without_the_network() {
    let world = World::usual();
    for name in [
        "web.",
        "WEB.",
        "web.prod.",
        "Web.Prod.",
        "w.alias.",
        "w.alias.prod.",
    ] {
        assert_eq!(
            ask(&world, name, RecordType::A),
            ["60 A 10.96.0.100"],
            "{name}"
        );
        assert_eq!(ask(&world, name, RecordType::AAAA), nothing(), "{name}");
        assert_eq!(ask(&world, name, RecordType::MX), nothing(), "{name}");
    }
    assert_eq!(ask(&world, "web.prod.prod.", RecordType::A), ["Foreign"]);
    assert_eq!(ask(&world, "web.other.", RecordType::A), ["Foreign"]);
}

#[test]
fn dnsrr_gives_the_healthy_tasks() {
    let world = World::usual();
    assert_eq!(ask(&world, "db.", RecordType::A), ["5 A 10.96.0.21"]);
    assert_eq!(
        ask(&world, "tasks.web.", RecordType::A),
        ["5 A 10.96.0.11", "5 A 10.96.0.12"]
    );
    assert_eq!(ask(&world, "tasks.w.alias.prod.", RecordType::A).len(), 2);
}

#[test]
fn a_service_without_tasks_exists_with_nothing_at_it() {
    let world = World::usual();
    assert_eq!(ask(&world, "dead.", RecordType::A), nothing());
    assert_eq!(ask(&world, "tasks.dead.", RecordType::A), nothing());
}

#[test]
fn the_draining_ones_are_better_than_none() {
    let mut world = World::usual();
    world
        .service(dnsrr(service("old", &[("prod", None, &[])])))
        .task("old", 1, TaskState::Draining, &[("prod", "10.96.0.41")])
        .task("old", 2, TaskState::Starting, &[("prod", "10.96.0.42")]);
    assert_eq!(ask(&world, "old.", RecordType::A), ["5 A 10.96.0.41"]);
    assert_eq!(ask(&world, "tasks.old.", RecordType::A), ["5 A 10.96.0.41"]);
}

#[test]
fn a_task_of_weight_0_gets_no_flows_by_name() {
    let mut world = World::usual();
    let healthy = TaskState::Healthy;
    world
        .service(dnsrr(service("w", &[("prod", None, &[])])))
        .task("w", 1, healthy, &[("prod", "10.96.0.41")])
        .task_named("w-2", "w", 2, 0, healthy, &[("prod", "10.96.0.42")]);
    assert_eq!(ask(&world, "w.", RecordType::A), ["5 A 10.96.0.41"]);
    assert_eq!(ask(&world, "tasks.w.", RecordType::A).len(), 2);
}

#[test]
fn a_vip_that_is_not_claimed_yet_is_stood_in_for_by_the_tasks() {
    let mut world = World::usual();
    world.service(service("new", &[("prod", None, &[])])).task(
        "new",
        1,
        TaskState::Healthy,
        &[("prod", "10.96.0.41")],
    );
    assert_eq!(ask(&world, "new.", RecordType::A), ["5 A 10.96.0.41"]);
}

#[test]
fn services_that_share_an_alias_are_united_under_the_shorter_ttl() {
    let mut world = World::usual();
    let blue = dnsrr(service("blue", &[("prod", None, &["www"])]));
    world
        .service(blue)
        .task("blue", 1, TaskState::Healthy, &[("prod", "10.96.0.41")]);
    assert_eq!(
        ask(&world, "www.", RecordType::A),
        ["5 A 10.96.0.41", "5 A 10.96.0.100"]
    );
}

#[test]
fn tasks_have_names_whatever_their_state() {
    let world = World::usual();
    for name in ["web.3.", "web.3.prod.", "3.tasks.web.", "3.tasks.web.prod."] {
        assert_eq!(
            ask(&world, name, RecordType::A),
            ["5 A 10.96.0.13"],
            "{name}"
        );
    }
    assert_eq!(ask(&world, "dead.1.", RecordType::A), ["5 A 10.96.0.31"]);
}

#[test]
fn of_two_tasks_in_a_slot_the_healthy_one_has_its_name_and_both_have_their_ids() {
    let mut world = World::usual();
    world.task_named(
        "next",
        "db",
        1,
        1,
        TaskState::Draining,
        &[("prod", "10.96.0.29")],
    );
    assert_eq!(ask(&world, "db.1.", RecordType::A), ["5 A 10.96.0.21"]);
    assert_eq!(
        ask(&world, "next.tasks.db.", RecordType::A),
        ["5 A 10.96.0.29"]
    );
    assert_eq!(
        ask(&world, "_9._tcp.db.", RecordType::SRV),
        [
            "5 SRV 0 1 9 db-1.tasks.db.prod.",
            "db-1.tasks.db.prod. 10.96.0.21"
        ]
    );
}

#[test]
fn a_chosen_name_goes_before_a_derived_one() {
    let mut world = World::usual();
    world.service(service("web.1", &[("prod", Some([10, 96, 0, 101]), &[])]));
    assert_eq!(ask(&world, "web.1.", RecordType::A), ["60 A 10.96.0.101"]);
}

#[test]
fn ports_are_found_by_target_and_by_published_number_and_by_name() {
    let world = World::usual();
    let both = [
        "5 SRV 0 1 80 1.tasks.web.prod.",
        "5 SRV 0 1 80 2.tasks.web.prod.",
        "1.tasks.web.prod. 10.96.0.11",
        "2.tasks.web.prod. 10.96.0.12",
    ];
    for name in ["_80._tcp.web.", "_8080._tcp.web.prod.", "_http._TCP.www."] {
        assert_eq!(ask(&world, name, RecordType::SRV), both, "{name}");
        assert_eq!(ask(&world, name, RecordType::A), nothing(), "{name}");
    }
    assert_eq!(ask(&world, "_81._tcp.web.", RecordType::SRV), ["NoName"]);
    assert_eq!(ask(&world, "_80._udp.web.", RecordType::SRV), ["NoName"]);
    assert_eq!(
        ask(&world, "_nosuch._tcp.web.", RecordType::SRV),
        ["NoName"]
    );
    assert_eq!(ask(&world, "_tcp.web.", RecordType::SRV), nothing());
    assert_eq!(ask(&world, "_80._sctp.web.", RecordType::SRV), ["Foreign"]);
    assert_eq!(
        ask(&world, "_80._tcp.nosuch.", RecordType::SRV),
        ["Foreign"]
    );
    assert_eq!(ask(&world, "_5432._tcp.db.", RecordType::SRV).len(), 2);
}

#[test]
fn a_range_of_ports_is_many_ports() {
    let mut world = World::usual();
    let range = PublishedPort {
        count: 10,
        ..PublishedPort::new(9000, 7000, Protocol::Udp)
    };
    world
        .service(Service {
            ports: vec![range],
            ..service("game", &[("prod", None, &[])])
        })
        .task_named(
            "g",
            "game",
            1,
            7,
            TaskState::Healthy,
            &[("prod", "10.96.0.41")],
        );
    let found = ask(&world, "_9003._udp.game.", RecordType::SRV);
    assert_eq!(found[0], "5 SRV 0 7 7003 1.tasks.game.prod.");
}

#[test]
fn addresses_of_the_network_have_names_and_others_of_the_mesh_have_none() {
    let mut world = World::usual();
    world.network("other", "10.97.0.0/24", false);
    let ptr = |ip: &str| {
        let name = Name::from(ip.parse::<IpAddr>().unwrap()).to_ascii();
        ask(&world, &name, RecordType::PTR)
    };
    assert_eq!(ptr("10.96.0.12"), ["5 PTR web.2.prod."]);
    assert_eq!(ptr("10.96.0.100"), ["5 PTR web.prod."]);
    assert_eq!(ptr("10.96.0.200"), ["NoName"]);
    assert_eq!(ptr("10.97.0.5"), ["NoName"]);
    assert_eq!(ptr("192.0.2.7"), ["Foreign"]);
    assert_eq!(ptr("2001:db8::1"), ["Foreign"]);
    assert_eq!(
        ask(&world, "12.0.96.10.in-addr.arpa.", RecordType::A),
        nothing()
    );
    assert_eq!(
        ask(&world, "96.10.in-addr.arpa.", RecordType::PTR),
        ["Foreign"]
    );
}

#[test]
fn addresses_may_be_of_both_families() {
    let mut world = World::usual();
    world
        .service(dnsrr(service("six", &[("prod", None, &[])])))
        .task("six", 1, TaskState::Healthy, &[("prod", "2001:db8::5")])
        .task("six", 2, TaskState::Healthy, &[("prod", "10.96.0.41")]);
    assert_eq!(
        ask(&world, "six.", RecordType::AAAA),
        ["5 AAAA 2001:db8::5"]
    );
    assert_eq!(ask(&world, "six.", RecordType::A), ["5 A 10.96.0.41"]);
    assert_eq!(ask(&world, "six.", RecordType::ANY), ["5 A 10.96.0.41"]);
    let arpa = Name::from("2001:db8::5".parse::<IpAddr>().unwrap()).to_ascii();
    assert_eq!(ask(&world, &arpa, RecordType::PTR), ["5 PTR six.1.prod."]);
}

#[test]
fn one_label_is_ours_and_two_are_somebody_elses() {
    let world = World::usual();
    assert_eq!(ask(&world, "nosuch.", RecordType::A), ["NoName"]);
    assert_eq!(ask(&world, "nosuch.prod.", RecordType::A), ["Foreign"]);
    assert_eq!(ask(&world, "www.example.com.", RecordType::A), ["Foreign"]);
    assert_eq!(ask(&world, ".", RecordType::NS), ["Foreign"]);
    // Names exist under these.
    assert_eq!(ask(&world, "prod.", RecordType::A), nothing());
    assert_eq!(ask(&world, "alias.", RecordType::A), nothing());
}

#[test]
fn names_are_scoped_to_networks() {
    let mut world = World::usual();
    world
        .network("back", "10.97.0.0/24", false)
        .service(service("cache", &[("back", Some([10, 97, 0, 100]), &[])]))
        .task("cache", 1, TaskState::Healthy, &[("back", "10.97.0.11")]);
    assert_eq!(ask(&world, "cache.", RecordType::A), ["NoName"]);
    assert_eq!(ask(&world, "cache.back.", RecordType::A), ["Foreign"]);
    let on_back = |name| ask_on(&world, "back", "10.97.0.11", name, RecordType::A);
    assert_eq!(on_back("cache."), ["60 A 10.97.0.100"]);
    assert_eq!(on_back("web."), ["NoName"]);
}

#[test]
fn a_client_on_two_networks_finds_the_names_of_both_the_asked_one_first() {
    let mut world = World::usual();
    world
        .network("back", "10.97.0.0/24", false)
        .service(service(
            "cache",
            &[("back", Some([10, 97, 0, 100]), &["db"])],
        ))
        .service(service("app", &[("prod", None, &[]), ("back", None, &[])]))
        .task(
            "app",
            1,
            TaskState::Healthy,
            &[("prod", "10.96.0.51"), ("back", "10.97.0.51")],
        );
    let app = |network, ip, name| ask_on(&world, network, ip, name, RecordType::A);
    assert_eq!(app("prod", "10.96.0.51", "cache."), ["60 A 10.97.0.100"]);
    assert_eq!(
        app("prod", "10.96.0.51", "cache.back."),
        ["60 A 10.97.0.100"]
    );
    assert_eq!(app("back", "10.97.0.51", "web."), ["60 A 10.96.0.100"]);
    assert_eq!(app("prod", "10.96.0.51", "db."), ["5 A 10.96.0.21"]);
    assert_eq!(app("back", "10.97.0.51", "db."), ["60 A 10.97.0.100"]);
    assert_eq!(app("prod", "10.96.0.11", "cache."), ["NoName"]);
}

#[test]
fn before_the_snapshot_is_synced_absence_is_not_known() {
    let mut world = World::usual();
    world.unsynced();
    assert_eq!(ask(&world, "web.", RecordType::A), ["60 A 10.96.0.100"]);
    assert_eq!(ask(&world, "web.", RecordType::AAAA), nothing());
    for name in [
        "nosuch.",
        "nosuch.prod.",
        "tasks.nosuch.",
        "1.tasks.nosuch.",
        "_80._tcp.nosuch.",
        "dead.",
        "_81._tcp.web.",
        "200.0.96.10.in-addr.arpa.",
    ] {
        assert_eq!(ask(&world, name, RecordType::A), ["NotKnownYet"], "{name}");
    }
    assert_eq!(ask(&world, "www.example.com.", RecordType::A), ["Foreign"]);
}

#[test]
fn every_address_stands_first_in_turn_also_when_the_zone_is_replaced() {
    let snapshot = World::usual().snapshot();
    let rotation = Rotation::default();
    let name = Name::from_ascii("tasks.web.").unwrap();
    let firsts: Vec<String> = (0..4)
        .map(|_| {
            let zones = Zones::new(&snapshot, Ttls { task: 5, vip: 60 });
            let client = CLIENT.parse().unwrap();
            let scope = zones.on(&network_name("prod"), client, &[]).unwrap();
            match scope.lookup(&name, RecordType::A, &rotation) {
                Found::Records { answers, .. } => answers[0].data.to_string(),
                other => panic!("{other:?}"),
            }
        })
        .collect();
    assert_eq!(firsts[0], firsts[2]);
    assert_eq!(firsts[1], firsts[3]);
    assert_ne!(firsts[0], firsts[1]);
}

#[test]
fn names_that_cannot_be_asked_for_do_no_harm() {
    let mut world = World::usual();
    let long = "x".repeat(64);
    world.service(service(
        "odd",
        &[("prod", Some([10, 96, 0, 102]), &["", "a..b", &long, "ok."])],
    ));
    assert_eq!(ask(&world, "odd.", RecordType::A), ["60 A 10.96.0.102"]);
    assert_eq!(ask(&world, "ok.", RecordType::A), ["60 A 10.96.0.102"]);
}
