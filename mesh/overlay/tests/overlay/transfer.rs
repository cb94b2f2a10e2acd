//! Bulk data through the overlay: whole, fast, unfragmented.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    thread,
};

use anyhow::{Context, Result, ensure};
use portolan_testbed::Namespace;

use crate::cluster::Cluster;

const PATTERN: usize = 1 << 20;

/// A pattern in which every shift and every lost segment shows.
fn pattern(round: usize) -> Vec<u8> {
    (0..PATTERN)
        .map(|at| ((at * 31 + at / 251 + round * 7) % 256) as u8)
        .collect()
}

/// Sends `rounds` MiB from one namespace to a listener in another, and compares every byte.
pub(crate) fn transfer(
    from: &Namespace,
    to: &Namespace,
    address: SocketAddr,
    rounds: usize,
) -> Result<()> {
    let listener = to.enter(|| Ok(TcpListener::bind(address)?))?;
    let mut sender = from.enter(|| TcpStream::connect(address).context("connect"))?;
    let (mut receiver, _) = listener.accept()?;
    let sending = thread::spawn(move || -> Result<()> {
        (0..rounds).try_for_each(|round| Ok(sender.write_all(&pattern(round))?))
    });
    let mut got = vec![0; PATTERN];
    for round in 0..rounds {
        receiver.read_exact(&mut got)?;
        ensure!(got == pattern(round), "MiB {round} differs");
    }
    sending.join().expect("the sender panicked")
}

#[test]
fn every_byte_arrives_both_ways() -> Result<()> {
    let cluster = Cluster::new("ov", 2)?;
    cluster.reconcile()?;
    let a = cluster.task(1, "t1", &[("ingress", "10.208.1.2")])?;
    let b = cluster.task(2, "t2", &[("ingress", "10.208.2.2")])?;
    let c = cluster.task(1, "t3", &[("ingress", "10.208.1.3")])?;
    transfer(&a, &b, "10.208.2.2:5001".parse()?, 32)?;
    transfer(&b, &a, "10.208.1.2:5001".parse()?, 32)?;
    transfer(&a, &c, "10.208.1.3:5001".parse()?, 32)?;
    transfer(&cluster.nodes[0], &b, "10.208.2.2:5002".parse()?, 32)?;
    Ok(())
}

#[test]
fn iperf_runs_at_speed_and_nothing_is_fragmented() -> Result<()> {
    let cluster = Cluster::new("ov", 2)?;
    cluster.reconcile()?;
    let a = cluster.task(1, "t1", &[("ingress", "10.208.1.2")])?;
    let b = cluster.task(2, "t2", &[("ingress", "10.208.2.2")])?;
    let mut server = b.command("iperf3");
    server.args(["-s", "-1"]);
    let _server = b.spawn(&mut server)?.listening(5201)?;
    let report = a.run(["iperf3", "-c", "10.208.2.2", "-t", "2", "-f", "m"])?;
    let rate = report.stdout.lines().find(|line| line.contains("receiver"));
    let rate: f64 = rate
        .and_then(|line| line.split_whitespace().rev().nth(2)?.parse().ok())
        .with_context(|| report.stdout.clone())?;
    // With wrong checksums or a wrong MTU it is a thousandth of that.
    ensure!(rate > 100.0, "{rate} Mbit/s");
    for node in &cluster.nodes {
        let counters = node.run(["nstat", "-az", "IpFragCreates", "IpReasmReqds"])?;
        for line in counters
            .stdout
            .lines()
            .filter(|line| line.starts_with("Ip"))
        {
            let count = line.split_whitespace().nth(1);
            ensure!(count == Some("0"), "{}: {line}", node.label());
        }
    }
    Ok(())
}
