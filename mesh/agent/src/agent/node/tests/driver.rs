//! What Docker asks of its network driver.

use std::{collections::BTreeSet, path::PathBuf};

use portolan_model::{MacAddress, Network};

use super::*;
use crate::agent::{
    node::{DriverChange, driver::DriverError},
    state::DriverNetwork,
};

const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 10, 3, 5);

/// A node that knows of the network `shop`, of which Docker hands out the subnet.
fn on_shop() -> Node {
    let mut node = node("n1");
    let shop = Network {
        name: "shop".parse().unwrap(),
        vni: 5000,
        subnet: "10.10.3.0/24".parse().unwrap(),
        own_range: Some("10.224.16.0/20".parse().unwrap()),
        created_ms: NOW,
        spec_version: NOW,
        ..portolan_model::claims::ingress_network()
    };
    let records = [Record::Network(shop)];
    node.catalog()
        .set_owner(NodeId::of_name("n2"), true, records);
    node.refresh(NOW);
    node
}

fn network(subnet: &str, vni: Option<u32>) -> DriverNetwork {
    DriverNetwork {
        subnet: subnet.parse().unwrap(),
        vni,
    }
}

fn id() -> TaskId {
    "0123456789ab".parse().unwrap()
}

fn do_it(node: &mut Node, change: DriverChange) {
    node.driver(change, NOW).unwrap();
    node.refresh(NOW);
}

/// A container of Docker's joined to `shop`.
fn joined() -> Node {
    let mut node = on_shop();
    let shop = network("10.10.3.0/24", Some(5000));
    do_it(&mut node, DriverChange::AddNetwork("c9".to_owned(), shop));
    let endpoint = DriverChange::AddEndpoint {
        id: id(),
        network: "c9".to_owned(),
        address: ADDRESS,
        mac: MacAddress::of_address(ADDRESS),
    };
    do_it(&mut node, endpoint);
    node.join_driver_endpoint(&id(), PathBuf::from("/run/docker/netns/a"))
        .unwrap();
    node.refresh(NOW);
    node
}

#[test]
fn a_joined_container_is_told_to_the_others_and_its_node_is_on_the_network() {
    let mut node = joined();
    let view = &node.snapshot().tasks[&id()];
    assert_eq!(view.endpoint("shop").unwrap().ip, IpAddr::V4(ADDRESS));
    let gateway = node.snapshot().networks[&"shop".parse().unwrap()].gateway(&node.identity.id);
    let range: ipnetwork::Ipv4Network = "10.224.16.0/20".parse().unwrap();
    assert!(range.contains(gateway.unwrap()));
    // Nobody but Docker attaches it.
    assert!(node.wanted_attachments().is_empty());

    do_it(&mut node, DriverChange::Leave(id()));
    assert!(!node.snapshot().tasks.contains_key(&id()));
    do_it(&mut node, DriverChange::Leave(id()));
    do_it(&mut node, DriverChange::RemoveEndpoint(id()));
    do_it(&mut node, DriverChange::RemoveNetwork("c9".to_owned()));
    assert_eq!(
        node.state().driver,
        super::super::super::state::Driver::default()
    );
}

#[test]
fn a_network_without_a_vni_is_the_one_with_the_subnet() {
    let mut node = on_shop();
    let shop = network("10.10.3.0/24", None);
    do_it(&mut node, DriverChange::AddNetwork("c9".to_owned(), shop));
    let unknown = network("10.10.9.0/24", None);
    do_it(
        &mut node,
        DriverChange::AddNetwork("d0".to_owned(), unknown),
    );
    for (docker, ours) in [("c9", Some("shop")), ("d0", None)] {
        let subnet = node.state().driver.networks[docker].subnet;
        let endpoint = DriverChange::AddEndpoint {
            id: id(),
            network: docker.to_owned(),
            address: subnet.nth(5).unwrap(),
            mac: MacAddress::of_address(ADDRESS),
        };
        do_it(&mut node, endpoint);
        let joined = node.join_driver_endpoint(&id(), "/run/docker/netns/a".into());
        match ours {
            Some(name) => assert_eq!(joined.unwrap().network.as_str(), name),
            None => assert!(matches!(joined, Err(DriverError::NotDeclared { .. }))),
        }
    }
}

#[test]
fn what_cannot_stand_is_refused_and_changes_nothing() {
    let mut node = on_shop();
    let before = node.state().clone();
    for (subnet, vni, word) in [
        (
            "10.10.0.0/16",
            None,
            "overlaps 10.10.3.0/24 of network shop",
        ),
        ("10.224.17.0/24", None, "overlaps 10.224.16.0/20"),
        ("10.10.3.0/24", Some(6000), "overlaps"),
        ("10.11.0.0/16", Some(5000), "that of network shop"),
        ("10.77.0.0/24", None, "at which node n1 is reached"),
    ] {
        let change = DriverChange::AddNetwork("x".to_owned(), network(subnet, vni));
        let error = node.driver(change, NOW).unwrap_err().to_string();
        assert!(error.contains(word), "{subnet}: {error}");
    }
    let unknown = DriverChange::AddEndpoint {
        id: id(),
        network: "never".to_owned(),
        address: ADDRESS,
        mac: MacAddress::of_address(ADDRESS),
    };
    assert!(matches!(
        node.driver(unknown, NOW),
        Err(DriverError::NoNetwork(_))
    ));
    let join = node.join_driver_endpoint(&id(), "/run/docker/netns/a".into());
    assert!(matches!(join, Err(DriverError::NoEndpoint(_))));
    assert_eq!(*node.state(), before);
}

#[test]
fn after_a_restart_only_what_the_kernel_has_is_still_joined() {
    let mut again = restarted("n1", joined().state().clone());
    assert!(again.is_driver_endpoint(&id()));
    again.forget_driver_endpoints(&BTreeSet::from([id()]), NOW);
    assert!(again.is_driver_endpoint(&id()));
    again.forget_driver_endpoints(&BTreeSet::new(), NOW);
    assert!(again.state().driver.endpoints.is_empty());

    let mut gone = joined();
    gone.namespace_gone(&id());
    gone.refresh(NOW);
    assert!(gone.snapshot().tasks.is_empty());
}
