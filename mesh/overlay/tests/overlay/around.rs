//! What the overlay tells of the node's links, addresses, networks and tasks.

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use anyhow::{Result, ensure};
use portolan_model::MacAddress;
use portolan_overlay::{Around, NetworkLink, Overlay, TaskEnd};
use portolan_testbed::wait_until;

use crate::cluster::{Cluster, ip, net};

fn around(cluster: &Cluster) -> Result<Around> {
    Ok(cluster.overlays[0].run(Overlay::around)?)
}

/// The MAC address of the link with this one, as the kernel tells it.
fn mac_of(text: &str) -> Option<&str> {
    let mut words = text.split_whitespace();
    words.find(|word| *word == "link/ether")?;
    words.next()
}

#[test]
fn links_by_which_clients_come_are_followed() -> Result<()> {
    let cluster = Cluster::new("ov", 1)?;
    cluster.reconcile()?;
    let node = &cluster.nodes[0];
    let _task = cluster.task(1, "t1", &[("ingress", "10.208.1.2")])?;
    let outside = || -> Result<BTreeSet<String>> { Ok(around(&cluster)?.outside) };
    let named = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    assert_eq!(outside()?, named(&["eth0"]));

    // A bridge with a container's end as its port, one of a container on no bridge, and a sub-link.
    for command in [
        "ip link add docker0 type bridge",
        "ip link add vethA type veth peer name farA",
        "ip link set vethA master docker0 up",
        "ip link add cali1 type veth peer name farB",
        "ip link set cali1 up",
        "ip link set docker0 up",
        "ip link add link eth0 name eth0.10 type macvlan",
        "ip link set eth0.10 up",
        // Down.
        "ip link add spare type bridge",
    ] {
        node.run(command.split(' '))?;
    }
    assert_eq!(outside()?, named(&["cali1", "docker0", "eth0", "eth0.10"]));
    node.run(["ip", "link", "set", "vethA", "nomaster"])?;
    node.run(["ip", "link", "del", "cali1"])?;
    node.run(["ip", "link", "set", "eth0.10", "down"])?;
    assert_eq!(outside()?, named(&["docker0", "eth0", "vethA"]));

    // One without an Ethernet header counts once it has an address.
    node.run("ip tuntap add dev tun0 mode tun".split(' '))?;
    node.run("ip link set tun0 up".split(' '))?;
    ensure!(around(&cluster)?.without_ethernet.is_empty());
    node.run("ip addr add 10.9.0.1/24 dev tun0".split(' '))?;
    let seen = around(&cluster)?;
    assert_eq!(seen.without_ethernet, named(&["tun0"]));
    ensure!(!seen.outside.contains("tun0"));
    Ok(())
}

#[test]
fn own_addresses_are_those_of_the_node_and_its_gateways() -> Result<()> {
    let mut cluster = Cluster::new("ov", 1)?;
    cluster.add_network("red", 5001, "10.224.1.0/24");
    cluster.slice("red", 1, "10.224.1.16/28");
    cluster.vip("web", "red", "10.224.1.200");
    cluster.reconcile()?;
    let node = &cluster.nodes[0];
    node.run("ip addr add 192.0.2.53/32 dev lo".split(' '))?;
    let own = around(&cluster)?.own;
    let expected: BTreeSet<IpAddr> = [
        "10.77.0.11",
        "fd77::11",
        "192.0.2.53",
        "169.254.77.53",
        "10.208.1.0",
        "10.224.1.16",
    ]
    .map(|ip| ip.parse().unwrap())
    .into();
    assert_eq!(own, expected);
    node.run("ip addr del 192.0.2.53/32 dev lo".split(' '))?;
    ensure!(
        !around(&cluster)?
            .own
            .contains(&IpAddr::V4(ip("192.0.2.53")))
    );
    Ok(())
}

#[test]
fn networks_and_tasks_are_told_also_after_a_restart() -> Result<()> {
    let mut cluster = Cluster::new("ov", 1)?;
    cluster.add_network("red", 5001, "10.224.1.0/24");
    cluster.slice("red", 1, "10.224.1.16/28");
    cluster.reconcile()?;
    let on = [("ingress", "10.208.1.2"), ("red", "10.224.1.17")];
    let task = cluster.task(1, "t1", &on)?;
    let seen = around(&cluster)?;

    let network = |vni: u32, subnet: &str, gateway: &str| NetworkLink {
        link: format!("ptvx{vni}"),
        vni,
        subnet: net(subnet),
        gateway: ip(gateway),
        mtu: 1450,
    };
    let networks = [
        ("ingress", network(4096, "10.208.0.0/12", "10.208.1.0")),
        ("red", network(5001, "10.224.1.0/24", "10.224.1.16")),
    ];
    assert_eq!(
        seen.networks,
        networks
            .map(|(name, link)| (name.parse().unwrap(), link))
            .into()
    );

    let end = &seen.tasks[&ip("10.208.1.2")];
    let bridge = cluster.nodes[0].run(["ip", "link", "show", "ptbr4096"])?;
    let inside = task.run(["ip", "link", "show", "pt0"])?;
    ensure!(mac_of(&bridge.stdout) == Some(end.gateway_mac.to_string().as_str()));
    ensure!(mac_of(&inside.stdout) == Some(end.mac.to_string().as_str()));
    let expected = TaskEnd {
        task: "t1".parse()?,
        network: "ingress".parse()?,
        link: end.link.clone(),
        mac: MacAddress::of_address(ip("10.208.1.2")),
        gateway_mac: MacAddress::of_address(ip("10.208.1.0")),
        answers_udp: true,
    };
    assert_eq!(*end, expected);
    let ports = cluster.nodes[0].run("ip link show master ptbr4096".split(' '))?;
    ensure!(ports.stdout.contains(&end.link), "{}", ports.stdout);
    assert_eq!(seen.tasks[&ip("10.224.1.17")].network, "red".parse()?);

    cluster.restart(1)?;
    let fresh = around(&cluster)?;
    assert_eq!(fresh.tasks, seen.tasks);
    ensure!(fresh.networks.is_empty(), "nobody has told of them yet");
    cluster.reconcile()?;
    let fresh = around(&cluster)?;
    ensure!(fresh.addresses.is_empty(), "they are read anew in turn");
    assert_eq!(
        Around {
            addresses: seen.addresses.clone(),
            ..fresh
        },
        seen
    );

    let id = "t1".parse()?;
    cluster.overlays[0].run(move |overlay| overlay.detach(&id))?;
    ensure!(around(&cluster)?.tasks.is_empty());
    Ok(())
}

#[test]
fn a_network_and_a_task_that_go_are_no_longer_told() -> Result<()> {
    let mut cluster = Cluster::new("ov", 1)?;
    cluster.add_network("red", 5001, "10.224.1.0/24");
    cluster.slice("red", 1, "10.224.1.16/28");
    cluster.reconcile()?;
    let task = cluster.task(1, "t1", &[("red", "10.224.1.17")])?;
    ensure!(around(&cluster)?.tasks.len() == 1);
    task.remove()?;
    wait_until(Duration::from_secs(5), "the task is gone", || {
        Ok(around(&cluster)?.tasks.is_empty().then_some(()))
    })?;
    cluster.world.networks.remove(&"red".parse()?);
    cluster.reconcile()?;
    let seen = around(&cluster)?;
    ensure!(seen.networks.len() == 1 && !seen.own.contains(&IpAddr::V4(ip("10.224.1.16"))));
    Ok(())
}
