//! Restarts, removals, and leaving nothing behind.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Result, ensure};
use portolan_model::Snapshot;
use portolan_overlay::Overlay;
use portolan_testbed::{Namespace, wait_until};

use crate::cluster::{Cluster, id, pings};

/// All of a namespace's networking that the overlay has a hand in, without what only counts.
pub(crate) fn state(node: &Namespace) -> Result<String> {
    let mut all = String::new();
    for command in [
        "ip -d link",
        "ip -d addr",
        "ip route show table all",
        "ip rule",
        "ip -6 rule",
        "ip neigh show nud permanent",
        "bridge vni",
        "nft -s list ruleset",
    ] {
        let output = node.run(command.split(' '))?.stdout;
        all += command;
        all += &output;
    }
    Ok(all.lines().map(lasting).collect())
}

/// A line without what passes by itself: timers, carriers, the link-local addresses of IPv6.
fn lasting(line: &str) -> String {
    let mut words = line.split_whitespace();
    let mut kept = String::new();
    if line.contains("fe80::") {
        return kept;
    }
    while let Some(word) = words.next() {
        // How IPv6 addresses are made means nothing without any.
        if word.ends_with("_timer") || ["state", "addrgenmode"].contains(&word) {
            words.next();
        } else if !["tentative", "linkdown"].contains(&word) {
            kept += &word.replace("NO-CARRIER,", "").replace(",LOWER_UP", "");
            kept.push(' ');
        }
    }
    kept + "\n"
}

pub(crate) fn assert_same(before: &str, after: &str) {
    let lacks = |line: &&str, other: &str| !other.lines().any(|theirs| theirs == *line);
    let gone: Vec<&str> = before.lines().filter(|line| lacks(line, after)).collect();
    let new: Vec<&str> = after.lines().filter(|line| lacks(line, before)).collect();
    assert!(
        gone.is_empty() && new.is_empty(),
        "gone: {gone:#?}\nnew: {new:#?}"
    );
}

fn several_networks(nodes: usize) -> Result<Cluster> {
    let mut cluster = Cluster::new("ov", nodes)?;
    cluster.add_network("red", 5001, "10.224.1.0/24");
    for n in 1..=nodes {
        cluster.slice("red", n, &format!("10.224.1.{}/28", 16 * n));
    }
    cluster.vip("web", "red", "10.224.1.200");
    Ok(cluster)
}

#[test]
fn a_second_pass_changes_nothing() -> Result<()> {
    let cluster = several_networks(2)?;
    cluster.reconcile()?;
    let before = state(&cluster.nodes[0])?;
    cluster.reconcile()?;
    assert_same(&before, &state(&cluster.nodes[0])?);
    Ok(())
}

#[test]
fn a_restart_disturbs_no_transfer() -> Result<()> {
    let mut cluster = several_networks(2)?;
    cluster.reconcile()?;
    let a = cluster.task(1, "t1", &[("ingress", "10.208.1.2")])?;
    let b = cluster.task(2, "t2", &[("ingress", "10.208.2.2")])?;
    let address: SocketAddr = "10.208.2.2:5001".parse()?;
    let listener = b.enter(|| Ok(TcpListener::bind(address)?))?;
    let mut sender = a.enter(|| Ok(TcpStream::connect(address)?))?;
    let (mut receiver, _) = listener.accept()?;
    receiver.set_read_timeout(Some(Duration::from_secs(5)))?;
    let (stop, received) = (AtomicBool::new(false), AtomicU64::new(0));
    let before = [state(&cluster.nodes[0])?, state(&cluster.nodes[1])?];

    thread::scope(|scope| -> Result<()> {
        let sending = scope.spawn(|| -> Result<u64> {
            let (block, mut sent) = (vec![7; 1 << 16], 0);
            while !stop.load(Ordering::Relaxed) {
                sender.write_all(&block)?;
                sent += block.len() as u64;
            }
            sender.shutdown(std::net::Shutdown::Write)?;
            Ok(sent)
        });
        let receiving = scope.spawn(|| -> Result<()> {
            let mut block = vec![0; 1 << 16];
            loop {
                match receiver.read(&mut block)? {
                    0 => return Ok(()),
                    n => received.fetch_add(n as u64, Ordering::Relaxed),
                };
            }
        });
        let flows = |by: u64| {
            let mark = received.load(Ordering::Relaxed) + by;
            wait_until(Duration::from_secs(10), "data flows", || {
                Ok((received.load(Ordering::Relaxed) > mark).then_some(()))
            })
        };
        let mut restarts = || -> Result<()> {
            flows(1 << 20)?;
            for n in [1, 2] {
                cluster.restart(n)?;
                // At first nothing is known but the node itself, then all, then all for sure.
                let all = cluster.snapshot(n);
                let nothing = Snapshot::empty(all.me);
                let unsure = Snapshot {
                    synced: false,
                    ..all.clone()
                };
                for snapshot in [nothing, unsure, all] {
                    cluster.overlays[n - 1].reconcile(&snapshot)?;
                    flows(1 << 20)?;
                }
            }
            Ok(())
        };
        let done = restarts();
        stop.store(true, Ordering::Relaxed);
        let sent = sending.join().expect("the sender panicked")?;
        receiving.join().expect("the receiver panicked")?;
        done?;
        assert_eq!(received.load(Ordering::Relaxed), sent);
        Ok(())
    })?;
    for (node, before) in cluster.nodes.iter().zip(before) {
        assert_same(&before, &state(node)?);
    }
    Ok(())
}

#[test]
fn until_synced_nothing_is_removed() -> Result<()> {
    let cluster = several_networks(2)?;
    cluster.reconcile()?;
    let before = state(&cluster.nodes[0])?;
    let mut less = cluster.snapshot(1);
    less.synced = false;
    less.networks.clear();
    less.nodes.clear();
    less.services.clear();
    cluster.overlays[0].reconcile(&less)?;
    assert_same(&before, &state(&cluster.nodes[0])?);
    less.synced = true;
    cluster.overlays[0].reconcile(&less)?;
    let links = cluster.nodes[0].run(["ip", "-br", "link"])?.stdout;
    ensure!(!links.contains("pt"), "{links}");
    Ok(())
}

#[test]
fn a_network_that_is_removed_goes_when_its_last_task_has_left() -> Result<()> {
    let mut cluster = several_networks(2)?;
    cluster.reconcile()?;
    let a = cluster.task(1, "t1", &[("red", "10.224.1.17")])?;
    let _b = cluster.task(2, "t2", &[("red", "10.224.1.33")])?;
    let name = "red".parse()?;
    cluster.world.networks.remove(&name);
    cluster.reconcile()?;
    ensure!(pings(&a, "10.224.1.33")?, "cut off while attached");
    let task = "t1".parse()?;
    cluster.overlays[0].run(move |overlay| overlay.detach(&task))?;
    cluster.reconcile()?;
    let after = state(&cluster.nodes[0])?;
    for trace in ["5001", "10.224.1"] {
        ensure!(!after.contains(trace), "{after}");
    }
    ensure!(pings(&cluster.nodes[0], "10.208.2.0")?);
    Ok(())
}

#[test]
fn clean_leaves_nothing() -> Result<()> {
    let cluster = several_networks(2)?;
    let node = &cluster.nodes[0];
    let before = state(node)?;
    cluster.reconcile()?;
    let task = cluster.task(
        1,
        "t1",
        &[("ingress", "10.208.1.2"), ("red", "10.224.1.17")],
    )?;
    ensure!(state(node)? != before);
    // As `portolan leave --clean` does it: with an overlay that has programmed nothing itself.
    for _ in 0..2 {
        let done = cluster.overlays[0].run(Overlay::clean);
        ensure!(done.is_ok(), "{done:?}");
        assert_same(&before, &state(node)?);
    }
    ensure!(!task.run(["ip", "-br", "link"])?.stdout.contains("pt0"));
    Ok(())
}

#[test]
fn a_thousand_nodes_are_programmed_and_found_again() -> Result<()> {
    let mut cluster = several_networks(1)?;
    for n in 2..=1000 {
        let underlay = std::net::Ipv4Addr::from_bits(0x0a4e_0000 + n as u32);
        let mut record = (*cluster.world.nodes[&id(1)]).clone();
        record.underlay = underlay.into();
        cluster.world.nodes.insert(id(n), record.into());
        cluster.slice(
            "ingress",
            n,
            &format!("10.{}.{}.0/24", 208 + n / 256, n % 256),
        );
    }
    let node = &cluster.nodes[0];
    cluster.reconcile()?;
    let routes = node.run([
        "ip",
        "route",
        "show",
        "table",
        &(0x7000_0000 + 4096).to_string(),
    ])?;
    // Their slices, the node's own, and the default.
    assert_eq!(routes.stdout.lines().count(), 1001);
    let before = state(node)?;
    cluster.restart(1)?;
    cluster.reconcile()?;
    assert_same(&before, &state(&cluster.nodes[0])?);
    Ok(())
}
