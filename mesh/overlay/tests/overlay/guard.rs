//! The packet filter against forged VXLAN packets.

use std::{
    net::{SocketAddr, UdpSocket},
    time::Duration,
};

use anyhow::{Result, ensure};
use portolan_model::MacAddress;
use portolan_overlay::Overlay;
use portolan_testbed::{Namespace, wait_until};

use crate::cluster::{Cluster, ip};

/// A VXLAN packet of VNI 4096 to the gateway of node 1, in it a UDP datagram to its task 10.208.1.2:9 that says
/// it is from this address.
fn forged(source: &str) -> Vec<u8> {
    let mut packet = vec![0x08, 0, 0, 0, 0, 0x10, 0, 0];
    packet.extend(MacAddress::of_address(ip("10.208.1.0")).0);
    packet.extend(MacAddress::of_address(ip("10.208.2.0")).0);
    packet.extend([0x08, 0x00]);
    let mut header = vec![0x45, 0, 0, 32, 0, 0, 0, 0, 64, 17, 0, 0];
    header.extend(ip(source).octets());
    header.extend(ip("10.208.1.2").octets());
    let sum = header
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]))
        .sum::<u32>();
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend(header);
    // Ports 1000 and 9, length 12, no checksum.
    packet.extend([3, 0xe8, 0, 9, 0, 12, 0, 0]);
    packet.extend(b"evil");
    packet
}

fn send(from: &Namespace, to: SocketAddr) -> Result<()> {
    send_as("10.208.2.2", from, to)
}

fn send_as(source: &str, from: &Namespace, to: SocketAddr) -> Result<()> {
    from.enter(|| Ok(UdpSocket::bind("0.0.0.0:0")?.send_to(&forged(source), to)?))?;
    Ok(())
}

#[test]
fn vxlan_from_a_stranger_is_dropped_and_counted() -> Result<()> {
    let cluster = Cluster::new("ov", 2)?;
    cluster.reconcile()?;
    let task = cluster.task(1, "t1", &[("ingress", "10.208.1.2")])?;
    let socket = task.enter(|| Ok(UdpSocket::bind("10.208.1.2:9")?))?;
    socket.set_read_timeout(Some(Duration::from_millis(500)))?;
    let node = cluster.nodes[0].at(4789);

    // From a member the very same packet goes through: it is well made.
    send(&cluster.nodes[1], node)?;
    let mut got = [0; 16];
    let (length, from) = socket.recv_from(&mut got)?;
    assert_eq!(
        (&got[..length], from),
        (&b"evil"[..], "10.208.2.2:1000".parse()?)
    );

    let stranger = cluster.lab.client("c1")?;
    send(&stranger, node)?;
    ensure!(socket.recv(&mut got).is_err(), "it went through");
    wait_until(Duration::from_secs(10), "it is counted", || {
        let counters = cluster.overlays[0].run(Overlay::counters);
        Ok((counters.non_member_packets == 1).then_some(()))
    })
}

#[test]
fn a_clients_address_that_no_program_took_is_dropped_and_counted() -> Result<()> {
    let cluster = Cluster::new("ov", 2)?;
    cluster.reconcile()?;
    let task = cluster.task(1, "t1", &[("ingress", "10.208.1.2")])?;
    let socket = task.enter(|| Ok(UdpSocket::bind("10.208.1.2:9")?))?;
    socket.set_read_timeout(Some(Duration::from_millis(500)))?;
    // Clients' addresses come by the members' fast path, and are taken before the filter.
    send_as("198.51.100.7", &cluster.nodes[1], cluster.nodes[0].at(4789))?;
    ensure!(socket.recv(&mut [0; 16]).is_err(), "it went through");
    wait_until(Duration::from_secs(10), "it is counted", || {
        let counters = cluster.overlays[0].run(Overlay::counters);
        Ok((counters.forged_source_packets == 1).then_some(()))
    })
}

#[test]
fn one_that_was_a_member_is_a_stranger() -> Result<()> {
    let mut cluster = Cluster::new("ov", 2)?;
    cluster.reconcile()?;
    let task = cluster.task(1, "t1", &[("ingress", "10.208.1.2")])?;
    let socket = task.enter(|| Ok(UdpSocket::bind("10.208.1.2:9")?))?;
    socket.set_read_timeout(Some(Duration::from_millis(300)))?;
    let gone = crate::cluster::id(2);
    cluster.world.nodes.remove(&gone);
    cluster.view("ingress").slices.remove(&gone);
    cluster.world.synced = false;
    cluster.overlays[0].reconcile(&cluster.snapshot(1))?;
    send(&cluster.nodes[1], cluster.nodes[0].at(4789))?;
    let unsynced = socket.recv(&mut [0; 16]);
    ensure!(unsynced.is_ok(), "not synced, and yet it was removed");
    cluster.world.synced = true;
    cluster.overlays[0].reconcile(&cluster.snapshot(1))?;
    send(&cluster.nodes[1], cluster.nodes[0].at(4789))?;
    ensure!(socket.recv(&mut [0; 16]).is_err(), "it went through");
    Ok(())
}

#[test]
fn a_filter_that_someone_flushed_comes_back() -> Result<()> {
    let cluster = Cluster::new("ov", 1)?;
    cluster.reconcile()?;
    let node = &cluster.nodes[0];
    node.run(["nft", "flush", "ruleset"])?;
    wait_until(Duration::from_secs(15), "the table is back", || {
        cluster.overlays[0].run(Overlay::counters);
        let rules = node.run(["nft", "list", "ruleset"])?.stdout;
        Ok(rules.contains("portolan_overlay").then_some(()))
    })
}

#[test]
fn a_firewall_that_stops_forwarding_is_named_until_it_does_not() -> Result<()> {
    let cluster = Cluster::new("ov", 1)?;
    cluster.reconcile()?;
    let node = &cluster.nodes[0];
    node.run(["nft", "add table ip filter"])?;
    node.run([
        "nft",
        "add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }",
    ])?;
    let told = || {
        cluster.overlays[0].run(|overlay| {
            overlay.counters();
            let problems = overlay.problems();
            problems.iter().any(|p| p.contains("ip filter FORWARD"))
        })
    };
    let within = Duration::from_secs(15);
    wait_until(within, "it is told", || Ok(told().then_some(())))?;
    node.run(["nft", "add rule ip filter FORWARD iifname ptbr* accept"])?;
    wait_until(within, "it is not told", || Ok((!told()).then_some(())))
}
