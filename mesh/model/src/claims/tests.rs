use super::*;
use crate::{Catalog, NetworkAttach, Protocol, Record, Service, ServiceNetwork};

fn name(text: &str) -> NetworkName {
    text.parse().unwrap()
}

fn net(text: &str, subnet: &str) -> Record {
    Record::Network(Network {
        name: name(text),
        vni: 5000,
        subnet: subnet.parse().unwrap(),
        internal: false,
        encrypted: false,
        spec_version: 1,
        created_ms: 1,
        removed: false,
        stack: None,
        own_range: None,
    })
}

/// Claims `count` slices for as many nodes, each seeing those before it.
fn claim_in_turn(subnet: &str, count: usize) -> Vec<Result<Slice, Exhausted>> {
    let mut catalog = Catalog::new(NodeId::of_name("n0"));
    (0..count)
        .map(|i| {
            let node = NodeId::of_name(&format!("n{i}"));
            let declared = (i == 0).then(|| net("app", subnet));
            catalog.set_owner(node, true, declared.clone());
            let slice = slice(&catalog.snapshot(true), node, &name("app"), i as u64);
            if let Ok(slice) = slice {
                let attach = Record::NetworkAttach(NetworkAttach {
                    network: name("app"),
                    slices: vec![slice],
                });
                catalog.set_owner(node, true, declared.into_iter().chain([attach]));
            }
            slice
        })
        .collect()
}

#[test]
fn slices_do_not_meet_and_keep_off_the_vips() {
    let slices: Vec<Slice> = claim_in_turn("10.1.2.0/24", 11)
        .into_iter()
        .map(Result::unwrap)
        .collect();
    let vips = vip_range("10.1.2.0/24".parse().unwrap());
    assert_eq!(vips.to_string(), "10.1.2.192/26");
    for (i, a) in slices.iter().enumerate() {
        assert_eq!(a.prefix.prefix(), 28);
        assert!(!a.prefix.overlaps(vips));
        assert!(
            slices
                .iter()
                .skip(i + 1)
                .all(|b| !a.prefix.overlaps(b.prefix))
        );
    }
    let full = claim_in_turn("10.1.2.0/24", 12);
    assert!(matches!(full.last(), Some(Err(Exhausted::Slices { .. }))));
}

#[test]
fn a_contested_slice_stays_with_the_older_claim() {
    let (a, b) = (NodeId::of_name("a"), NodeId::of_name("b"));
    let prefix = "10.1.2.16/28".parse().unwrap();
    let attach = |claimed_ms| {
        Record::NetworkAttach(NetworkAttach {
            network: name("app"),
            slices: vec![Slice { prefix, claimed_ms }],
        })
    };
    let mut catalog = Catalog::new(a);
    catalog.set_owner(a, true, [net("app", "10.1.2.0/24"), attach(20)]);
    catalog.set_owner(b, true, [attach(10)]);
    let snapshot = catalog.snapshot(true);
    let slices = &snapshot.networks[&name("app")].slices;
    assert!(slices.contains_key(&b) && !slices.contains_key(&a));
    // A node that is away keeps its claim, and is not routed to.
    catalog.set_owner(b, false, [attach(10)]);
    let snapshot = catalog.snapshot(true);
    assert!(snapshot.networks[&name("app")].slices.is_empty());
    let next = slice(&snapshot, a, &name("app"), 30).unwrap();
    assert!(!next.prefix.overlaps(prefix));
}

#[test]
fn vips_and_ports_keep_off_those_of_other_services() {
    let me = NodeId::of_name("a");
    let service = |id: &str, vip, published| {
        let mut service = Service::new(id.parse().unwrap());
        service.networks = vec![ServiceNetwork {
            name: name("app"),
            aliases: vec![],
            vip,
        }];
        service.ports = vec![PublishedPort::new(published, 80, Protocol::Tcp)];
        service
    };
    let mut catalog = Catalog::new(me);
    let mut records = vec![net("app", "10.1.2.0/24")];
    for i in 0..40 {
        let id = format!("s{i}");
        catalog.set_owner(me, true, records.clone());
        let snapshot = catalog.snapshot(true);
        let open = PublishedPort::new(0, 80, Protocol::Tcp);
        let vip = vip(&snapshot, &id.parse().unwrap(), &name("app")).unwrap();
        let published = published_port(&snapshot, &id.parse().unwrap(), &open, &[]).unwrap();
        assert!(PORT_RANGE.contains(&published));
        records.push(Record::Service(service(&id, Some(vip), published)));
    }
    catalog.set_owner(me, true, records);
    let snapshot = catalog.snapshot(true);
    let mut vips: Vec<_> = snapshot
        .services
        .values()
        .map(|v| v.service.networks[0].vip)
        .collect();
    vips.sort();
    vips.dedup();
    assert_eq!(vips.len(), 40);
    assert!(
        snapshot
            .services
            .values()
            .all(|v| v.problems.is_empty() && v.ports.len() == 1)
    );
}

#[test]
fn nodes_that_claim_at_once_beside_a_subnet_that_others_hand_out_do_not_meet() {
    let mut catalog = Catalog::new(NodeId::of_name("n0"));
    let nodes: Vec<NodeId> = (0..200)
        .map(|i| NodeId::of_name(&format!("n{i}")))
        .collect();
    for node in &nodes {
        let snapshot = catalog.snapshot(true);
        let slices = vec![slice(&snapshot, *node, &NetworkName::ingress(), 1).unwrap()];
        let attach = NetworkAttach {
            network: NetworkName::ingress(),
            slices,
        };
        catalog.set_owner(*node, true, [Record::NetworkAttach(attach)]);
    }
    let subnet = "10.10.3.0/24".parse().unwrap();
    let range = own_range(&catalog.snapshot(true), &name("app"), subnet).unwrap();
    let Record::Network(app) = net("app", "10.10.3.0/24") else {
        unreachable!()
    };
    let app = Network {
        own_range: Some(range),
        ..app
    };
    catalog.set_owner(
        NodeId::of_name("declares"),
        true,
        [Record::Network(app.clone())],
    );
    let snapshot = catalog.snapshot(true);
    let mut claimed = std::collections::BTreeSet::new();
    for node in nodes {
        let slice = slice(&snapshot, node, &app.name, 1).unwrap().prefix;
        assert!(range.contains(slice.ip()) && slice.prefix() == 32);
        assert!(!vip_range(range).overlaps(slice), "{slice}");
        assert!(claimed.insert(slice), "{slice} is claimed twice");
    }
    let id = "web".parse().unwrap();
    assert!(vip_range(range).contains(vip(&snapshot, &id, &app.name).unwrap()));
    // Nobody else gets addresses of the range.
    let other = Network {
        name: name("other"),
        vni: 5001,
        subnet: range,
        created_ms: 2,
        own_range: None,
        ..app
    };
    catalog.set_owner(NodeId::of_name("late"), true, [Record::Network(other)]);
    let problems = &catalog.snapshot(true).networks[&name("other")].problems;
    assert!(!problems.is_empty());
}
