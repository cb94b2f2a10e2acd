//! Records survive the wire, and the catalog judges contested declarations alike in any order.
#![expect(clippy::unwrap_used, reason = "a test that cannot set up has failed")]

use std::net::Ipv4Addr;

use portolan_model::{
    Catalog, Endpoint, MAX_RECORD_BYTES, Node, NodeId, NodeState, Protocol, PublishedPort, Record,
    RecordKey, Service, ServiceNetwork, Task, TaskState,
};
use proptest::prelude::*;

fn service(id: &str, version: u64, created_ms: u64, port: u16) -> Service {
    let mut service = Service::new(id.parse().unwrap());
    service.spec_version = version;
    service.created_ms = created_ms;
    service.ports = vec![PublishedPort::new(port, 80, Protocol::Tcp)];
    service
}

fn node(name: &str, state: NodeState) -> Record {
    Record::Node(Node {
        name: name.into(),
        underlay: Ipv4Addr::LOCALHOST.into(),
        state,
        version: "1".into(),
        fast_path: false,
        ipv6: false,
    })
}

fn task(id: &str, service: &str) -> Record {
    Record::Task(Task {
        id: id.parse().unwrap(),
        service: service.parse().ok(),
        slot: 1,
        endpoints: vec![Endpoint {
            network: "ingress".parse().unwrap(),
            ip: Ipv4Addr::new(10, 208, 1, 2).into(),
            mac: None,
        }],
        state: TaskState::Healthy,
        weight: 1,
    })
}

#[test]
fn records_come_back_as_they_went() {
    let mut full = service("shop_web", 3, 7, 8080);
    full.allow = vec!["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()];
    full.ipv6 = true;
    full.tcp_idle_ms = Some(900_000);
    full.networks = vec![ServiceNetwork {
        name: "shop".parse().unwrap(),
        aliases: vec!["web".into()],
        vip: Some(Ipv4Addr::new(10, 1, 2, 200)),
    }];
    for record in [
        node("n1", NodeState::Draining),
        Record::Service(full),
        task("t1", "web"),
    ] {
        let key = record.key();
        let decoded = RecordKey::decode(&key.encode()).unwrap().unwrap();
        assert_eq!(decoded, key);
        assert_eq!(
            Record::decode(&decoded, &record.encode().unwrap()).unwrap(),
            record
        );
    }
}

#[test]
fn a_node_of_a_version_that_knew_no_fast_path_or_no_ipv6_has_none() {
    let Record::Node(mut record) = node("n1", NodeState::Up) else {
        unreachable!()
    };
    (record.fast_path, record.ipv6) = (true, true);
    let new = Record::Node(record).encode().unwrap();
    // An array of six, of which older versions wrote four and five.
    assert_eq!((new[0], &new[new.len() - 2..]), (0x86, &[0xf5, 0xf5][..]));
    let decoded = |fields: usize| {
        let mut value = new[..new.len() + fields - 6].to_vec();
        value[0] = 0x80 + fields as u8;
        match Record::decode(&RecordKey::Node, &value).unwrap() {
            Record::Node(node) => (node.fast_path, node.ipv6),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(decoded(6), (true, true));
    assert_eq!(decoded(5), (true, false));
    assert_eq!(decoded(4), (false, false));
}

#[test]
fn a_service_of_a_version_that_knew_no_ipv6_has_not_opted_in() {
    let mut record = service("web", 1, 1, 8080);
    record.ipv6 = true;
    let new = Record::Service(record.clone()).encode().unwrap();
    // An array of 19, the opt-in the last: the older version wrote 18.
    assert_eq!((new[0], new[new.len() - 1]), (0x93, 0xf5));
    let mut old = new[..new.len() - 1].to_vec();
    old[0] = 0x92;
    let key = RecordKey::Service("web".parse().unwrap());
    record.ipv6 = false;
    assert_eq!(Record::decode(&key, &old).unwrap(), Record::Service(record));
}

#[test]
fn an_unknown_kind_is_none_and_a_wrong_key_an_error() {
    assert_eq!(RecordKey::decode(b"zfuture").unwrap(), None);
    let record = task("t1", "web");
    let other = RecordKey::Task("t2".parse().unwrap());
    assert!(Record::decode(&other, &record.encode().unwrap()).is_err());
}

#[test]
fn a_record_that_is_too_long_is_refused_with_its_name() {
    let mut long = service("web", 1, 1, 8080);
    long.ports = (0..200)
        .map(|i| PublishedPort::new(8000 + i, 80, Protocol::Tcp))
        .collect();
    let error = Record::Service(long).encode().unwrap_err();
    assert!(error.bytes > MAX_RECORD_BYTES && error.to_string().contains("web"));
}

#[test]
fn the_older_service_keeps_a_contested_port() {
    let (a, b) = (NodeId::of_name("a"), NodeId::of_name("b"));
    let mut catalog = Catalog::new(a);
    catalog.set_owner(a, true, [Record::Service(service("late", 1, 20, 8080))]);
    catalog.set_owner(b, true, [Record::Service(service("web", 1, 10, 8080))]);
    let snapshot = catalog.snapshot(true);
    let late = snapshot.find_service("late").unwrap();
    assert!(late.ports.is_empty());
    assert_eq!(
        late.problems[0].to_string(),
        "port 8080/tcp is already published by service web; publish another one, or remove web"
    );
    assert!(snapshot.find_service("web").unwrap().problems.is_empty());
}

#[test]
fn a_removal_outranks_what_it_removes() {
    let (a, b) = (NodeId::of_name("a"), NodeId::of_name("b"));
    let mut catalog = Catalog::new(a);
    let gone = Service {
        removed: true,
        ..service("web", 2, 10, 8080)
    };
    catalog.set_owner(a, true, [Record::Service(gone)]);
    catalog.set_owner(b, true, [Record::Service(service("web", 1, 10, 8080))]);
    let snapshot = catalog.snapshot(true);
    assert!(snapshot.services.is_empty() && snapshot.removed_services.len() == 1);
    assert!(catalog.repeats_older_service(a, &"web".parse().unwrap(), 2));
}

#[test]
fn on_a_draining_node_every_task_drains_and_on_an_absent_one_none_is_there() {
    let (a, b) = (NodeId::of_name("a"), NodeId::of_name("b"));
    let mut catalog = Catalog::new(a);
    catalog.set_owner(b, true, [node("b", NodeState::Draining), task("t1", "web")]);
    let state = |c: &mut Catalog| {
        c.snapshot(true)
            .tasks
            .values()
            .map(|t| t.state)
            .collect::<Vec<_>>()
    };
    assert_eq!(state(&mut catalog), [TaskState::Draining]);
    catalog.set_owner(b, false, [node("b", NodeState::Up), task("t1", "web")]);
    let snapshot = catalog.snapshot(true);
    assert!(snapshot.away.contains_key(&b) && !snapshot.nodes.contains_key(&b));
    assert_eq!(state(&mut catalog), []);
}

proptest! {
    #[test]
    fn bytes_from_anywhere_do_not_panic(key: Vec<u8>, value: Vec<u8>) {
        if let Ok(Some(key)) = RecordKey::decode(&key) {
            let _ = Record::decode(&key, &value);
        }
        for key in [RecordKey::Node, RecordKey::Service("web".parse().unwrap()), RecordKey::Task("t".parse().unwrap())] {
            let _ = Record::decode(&key, &value);
        }
    }

    #[test]
    fn the_order_of_arrival_does_not_matter(declarations in proptest::collection::vec((0_u8..4, 1_u64..4, 0_u64..3, 8080_u16..8083), 1..12), seed: usize) {
        // One declaration per (node, service): a node holds one record of a key.
        let mut records = std::collections::BTreeMap::new();
        for (i, (owner, version, created, port)) in declarations.into_iter().enumerate() {
            records.insert((owner, i % 3), service(&format!("s{}", i % 3), version, created, port));
        }
        let of_owner = |owner: u8| records.iter().filter(move |((o, _), _)| *o == owner).map(|(_, s)| Record::Service(s.clone()));
        let build = |order: &[u8]| {
            let mut catalog = Catalog::new(NodeId::of_name("0"));
            for owner in order {
                catalog.set_owner(NodeId::of_name(&owner.to_string()), true, of_owner(*owner));
            }
            catalog.snapshot(true)
        };
        let mut order = [0, 1, 2, 3];
        order.rotate_left(seed % 4);
        prop_assert_eq!(build(&[0, 1, 2, 3]), build(&order));
    }
}
