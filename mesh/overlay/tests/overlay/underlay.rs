//! The underlay: its MTU, IPv6, and who else uses the port.

use anyhow::{Context, Result, ensure};
use portolan_overlay::{Failure, Overlay, OverlayError};
use portolan_testbed::{Lab, Namespace};

use crate::{
    cluster::{Cluster, ip, pings},
    transfer::transfer,
};

/// Whether an IPv4 packet of this length, in bytes, goes through whole.
fn fits(from: &Namespace, to: &str, length: u32) -> Result<bool> {
    let payload = (length - 28).to_string();
    let args = ["ping", "-c1", "-W1", "-M", "do", "-s", &payload, to];
    Ok(from.output(args)?.status.success())
}

#[test]
fn the_largest_packet_fits_and_none_larger() -> Result<()> {
    for (mtu, expected) in [(1500, 1450), (1400, 1350), (9000, 8950)] {
        let cluster = Cluster::build(Lab::unique("ov")?.with_mtu(mtu), 2, false)?;
        cluster.reconcile()?;
        let a = cluster.task(1, "t1", &[("ingress", "10.208.1.2")])?;
        let _b = cluster.task(2, "t2", &[("ingress", "10.208.2.2")])?;
        assert_eq!(cluster.overlays[0].run(|overlay| overlay.mtu()), expected);
        ensure!(fits(&a, "10.208.2.2", expected)?, "{expected} of {mtu}");
        ensure!(!fits(&a, "10.208.2.2", expected + 1)?);
    }
    Ok(())
}

#[test]
fn a_change_of_the_mtu_is_followed() -> Result<()> {
    let cluster = Cluster::new("ov", 2)?;
    cluster.reconcile()?;
    let a = cluster.task(1, "t1", &[("ingress", "10.208.1.2")])?;
    let b = cluster.task(2, "t2", &[("ingress", "10.208.2.2")])?;
    for node in &cluster.nodes {
        node.set_mtu(1300)?;
    }
    cluster.reconcile()?;
    assert_eq!(cluster.overlays[0].run(|overlay| overlay.mtu()), 1250);
    // The tasks have the old one; the node tells them (RFC 1191).
    transfer(&a, &b, "10.208.2.2:5001".parse()?, 4)?;
    // Attached again, as after a restart, they have the new one.
    let request = cluster.attachment(1, &a, "t1", &[("ingress", "10.208.1.2")]);
    cluster.overlays[0].run(move |overlay| overlay.attach(&request))?;
    let link = a.run(["ip", "link", "show", "pt0"])?.stdout;
    ensure!(link.contains("mtu 1250"), "{link}");
    Ok(())
}

#[test]
fn a_change_of_the_mtu_is_seen_and_followed_to_the_tasks() -> Result<()> {
    let cluster = Cluster::new("ov", 1)?;
    cluster.reconcile()?;
    let node = &cluster.nodes[0];
    let task = cluster.task(1, "t1", &[("ingress", "10.208.1.2")])?;
    let mtu_of = |namespace: &Namespace, link: &str| -> Result<u32> {
        let text = namespace.run(["ip", "link", "show", link])?.stdout;
        let word = text
            .split_whitespace()
            .skip_while(|word| *word != "mtu")
            .nth(1);
        Ok(word.context("no MTU")?.parse()?)
    };
    let end = cluster.overlays[0].run(Overlay::around)?.tasks[&ip("10.208.1.2")].clone();
    for (underlay, expected) in [(1300, 1250), (1500, 1450)] {
        node.set_mtu(underlay)?;
        let seen = cluster.overlays[0].run(Overlay::around)?;
        assert_eq!(seen.networks[&"ingress".parse()?].mtu, expected);
        for link in ["ptvx4096", "ptbr4096", &end.link] {
            assert_eq!(mtu_of(node, link)?, expected, "{link}");
        }
        assert_eq!(mtu_of(&task, "pt0")?, expected);
    }
    // While the address is not there nothing is changed by guess.
    node.run("ip addr flush dev eth0".split(' '))?;
    let seen = cluster.overlays[0].run(Overlay::around)?;
    assert_eq!(seen.networks[&"ingress".parse()?].mtu, 1450);
    let problems = cluster.overlays[0].run(|overlay| overlay.problems());
    ensure!(
        problems.iter().any(|p| p.contains("10.77.0.11")),
        "{problems:?}"
    );
    Ok(())
}

#[test]
fn it_runs_over_ipv6() -> Result<()> {
    let cluster = Cluster::over_ipv6("ov", 2)?;
    cluster.reconcile()?;
    let a = cluster.task(1, "t1", &[("ingress", "10.208.1.2")])?;
    let b = cluster.task(2, "t2", &[("ingress", "10.208.2.2")])?;
    assert_eq!(cluster.overlays[0].run(|overlay| overlay.mtu()), 1430);
    ensure!(fits(&a, "10.208.2.2", 1430)? && !fits(&a, "10.208.2.2", 1431)?);
    transfer(&a, &b, "10.208.2.2:5001".parse()?, 8)?;
    transfer(&b, &a, "10.208.1.2:5001".parse()?, 8)?;
    let route = cluster.nodes[0].run(["ip", "route", "show", "table", "all", "10.208.2.0/24"])?;
    ensure!(route.stdout.contains("fd77::12"), "{}", route.stdout);
    Ok(())
}

#[test]
fn the_node_sends_from_the_address_that_it_is_known_by() -> Result<()> {
    let cluster = Cluster::new("ov", 2)?;
    // Without care the kernel would send from the first address of the link.
    let node = &cluster.nodes[0];
    node.run(["ip", "addr", "del", "10.77.0.11/24", "dev", "eth0"])?;
    node.run(["ip", "addr", "add", "10.77.0.211/24", "dev", "eth0"])?;
    node.run(["ip", "addr", "add", "10.77.0.11/24", "dev", "eth0"])?;
    cluster.reconcile()?;
    let a = cluster.task(1, "t1", &[("ingress", "10.208.1.2")])?;
    let _b = cluster.task(2, "t2", &[("ingress", "10.208.2.2")])?;
    ensure!(pings(&a, "10.208.2.2")?);
    Ok(())
}

#[test]
fn a_task_of_a_network_that_holds_the_nodes_own_address_does_not_cut_the_node_off() -> Result<()> {
    let mut cluster = Cluster::new("ov", 2)?;
    cluster.reconcile()?;
    cluster.add_network("lan", 5000, "10.77.0.0/24");
    cluster.slice("lan", 1, "10.77.0.48/28");
    let namespace = cluster.lab.task("t1")?;
    let request = cluster.attachment(1, &namespace, "t1", &[("lan", "10.77.0.49")]);
    let attached = cluster.overlays[0].run(move |overlay| overlay.attach(&request));
    ensure!(
        matches!(attached, Err(OverlayError::SubnetInUse { .. })),
        "{attached:?}"
    );
    let rules = cluster.nodes[0].run(["ip", "rule"])?.stdout;
    ensure!(!rules.contains("10.77.0.0/24"), "{rules}");
    ensure!(pings(&cluster.nodes[0], "10.77.0.12")?);
    Ok(())
}

#[test]
fn someone_elses_vxlan_on_the_port_is_named() -> Result<()> {
    let cluster = Cluster::new("ov", 1)?;
    let node = &cluster.nodes[0];
    node.run(
        "ip link add flannel.1 type vxlan id 1 dstport 4789 local 10.77.0.11 dev eth0".split(' '),
    )?;
    node.run(["ip", "link", "set", "flannel.1", "up"])?;
    let snapshot = cluster.snapshot(1);
    let failures = cluster.overlays[0].run(move |overlay| overlay.reconcile(&snapshot));
    ensure!(
        matches!(
            failures.as_slice(),
            [Failure { object, error: OverlayError::PortInUse { .. } }] if object == "ingress"
        ),
        "{failures:?}"
    );
    let problems = cluster.overlays[0].run(|overlay| overlay.problems());
    ensure!(
        problems
            .iter()
            .any(|p| p.contains("flannel.1") && p.contains("--data-path-port")),
        "{problems:?}"
    );
    // What is on the node itself works, and is kept apart from the rest.
    let task = cluster.task(1, "t1", &[("ingress", "10.208.1.2")])?;
    ensure!(pings(&task, "10.208.1.0")? && pings(node, "10.208.1.2")?);
    let rules = node.run(["ip", "rule"])?.stdout;
    ensure!(rules.contains("iif ptbr4096"), "{rules}");
    // When it goes, the next pass does what was left.
    node.run(["ip", "link", "del", "flannel.1"])?;
    cluster.reconcile()?;
    ensure!(
        cluster.overlays[0]
            .run(|overlay| overlay.problems())
            .is_empty()
    );
    Ok(())
}

#[test]
fn a_path_narrower_than_its_link_loses_nothing() -> Result<()> {
    let cluster = Cluster::new("ov", 2)?;
    cluster.reconcile()?;
    let a = cluster.task(1, "t1", &[("ingress", "10.208.1.2")])?;
    let b = cluster.task(2, "t2", &[("ingress", "10.208.2.2")])?;
    for node in &cluster.nodes {
        node.run("ip route replace 10.77.0.0/24 dev eth0 mtu 1400".split(' '))?;
    }
    // The tunnel's own packets are sent in fragments then: slower, and whole.
    ensure!(fits(&a, "10.208.2.2", 1450)?);
    transfer(&a, &b, "10.208.2.2:5001".parse()?, 4)?;
    transfer(&b, &a, "10.208.1.2:5001".parse()?, 4)
}
