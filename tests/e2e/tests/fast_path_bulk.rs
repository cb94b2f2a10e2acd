//! Bulk data through the fast path and the tunnel, at every size of the underlay's packets.

use std::{
    env,
    io::{Read, Write},
    net::TcpStream,
    panic::resume_unwind,
    thread,
};

use anyhow::{Context, Result, ensure};
use portolan_e2e::{
    Cluster, Options, Plane, Task,
    stream::{both_ends, listen},
};
use portolan_testbed::Namespace;

/// What goes each way, in MiB, unless `PORTOLAN_BULK_MIB` says otherwise.
const AMOUNT: usize = 256;
const BLOCK: usize = 1 << 20;

/// The numbered block of a stream: bytes of no pattern, and its number in each KiB, so that no part of it can stand in
/// for another.
fn block(number: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut block = vec![0; BLOCK];
    for word in block.chunks_exact_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        word.copy_from_slice(&state.to_le_bytes());
    }
    stamp(&mut block, number);
    block
}

fn stamp(block: &mut [u8], number: usize) {
    for part in block.chunks_exact_mut(1024) {
        let (begin, _) = part.split_at_mut(size_of::<usize>());
        begin.copy_from_slice(&number.to_le_bytes());
    }
}

fn send(mut to: &TcpStream, blocks: usize) -> Result<()> {
    let mut block = block(0);
    for number in 0..blocks {
        stamp(&mut block, number);
        to.write_all(&block)?;
    }
    Ok(())
}

fn receive(mut from: &TcpStream, blocks: usize) -> Result<()> {
    let (mut right, mut got) = (block(0), vec![0; BLOCK]);
    for number in 0..blocks {
        stamp(&mut right, number);
        from.read_exact(&mut got)
            .with_context(|| format!("block {number}"))?;
        ensure!(got == right, "block {number} is another than was sent");
    }
    Ok(())
}

/// How many packets a machine has made pieces of, or could not, and how many pieces came in.
fn fragments(of: &Namespace) -> Result<Vec<(String, u64)>> {
    let text = of
        .run([
            "nstat",
            "-asz",
            "IpFragCreates",
            "IpFragFails",
            "IpReasmReqds",
        ])?
        .stdout;
    let counted = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        Some((words.next()?.to_owned(), words.next()?.parse().ok()?))
    });
    Ok(counted.filter(|(_, count)| *count > 0).collect())
}

fn both_ways(mtu: u32) -> Result<()> {
    let amount = env::var("PORTOLAN_BULK_MIB")
        .ok()
        .and_then(|mib| mib.parse().ok());
    carried(mtu, amount.unwrap_or(AMOUNT), |_, _| Ok(()))
}

/// Has a cluster, prepared for it, carry so many blocks.
fn carried(
    mtu: u32,
    blocks: usize,
    prepare: impl FnOnce(&Cluster, &Task) -> Result<()>,
) -> Result<()> {
    let options = Options::nodes(2).plane(Plane::Ebpf).mtu(mtu);
    let cluster = Cluster::start("bulk", options)?;
    cluster.apply(0, "services: {raw: {ports: ['9000:90']}}\n")?;
    let netns = cluster.lab.task("r1")?;
    let listener = listen(&netns, 90)?;
    let task = cluster.add_task(netns, 1, "raw")?;
    cluster.wait_served("raw", 1)?;
    prepare(&cluster, &task)?;
    let (client, server) = both_ends(&cluster.client, cluster.node(0).at(9000), &listener)?;
    ensure!(
        server.peer_addr()? == client.local_addr()?,
        "the relay carries it"
    );
    // One way after the other, and both at once.
    send_and_receive(&client, &server, blocks).context("from the client")?;
    send_and_receive(&server, &client, blocks).context("to the client")?;
    thread::scope(|scope| {
        let other = scope.spawn(|| send_and_receive(&client, &server, blocks / 4));
        send_and_receive(&server, &client, blocks / 4)?;
        other.join().unwrap_or_else(|panic| resume_unwind(panic))
    })
    .context("both ways at once")?;
    for node in [cluster.node(0), cluster.node(1)] {
        let fragments = fragments(node)?;
        ensure!(fragments.is_empty(), "{}: {fragments:?}", node.label());
    }
    Ok(())
}

fn send_and_receive(from: &TcpStream, to: &TcpStream, blocks: usize) -> Result<()> {
    thread::scope(|scope| {
        let sent = scope.spawn(|| send(from, blocks));
        receive(to, blocks)?;
        sent.join().unwrap_or_else(|panic| resume_unwind(panic))
    })
}

#[test]
fn bulk_data_arrives_whole_both_ways_at_mtu_1500() -> Result<()> {
    both_ways(1500)
}

#[test]
fn bulk_data_arrives_whole_both_ways_at_mtu_1400() -> Result<()> {
    both_ways(1400)
}

#[test]
fn bulk_data_arrives_whole_both_ways_at_mtu_9000() -> Result<()> {
    both_ways(9000)
}

/// Cards do neither checksums nor segments then: each packet is as it is on a cable, and no sum is left for later.
#[test]
fn bulk_data_arrives_whole_both_ways_where_no_card_helps() -> Result<()> {
    carried(1500, 16, |cluster, task| {
        let machines: [&Namespace; 4] = [
            &cluster.client,
            cluster.node(0),
            cluster.node(1),
            &task.netns,
        ];
        machines.into_iter().try_for_each(without_offloads)
    })
}

/// Takes the offloads from all cards, tunnels and tasks' links of a machine.
fn without_offloads(machine: &Namespace) -> Result<()> {
    const OFFLOADS: [&str; 6] = ["rx", "tx", "sg", "tso", "gso", "gro"];
    let shown = machine.run(["ip", "-o", "link"])?.stdout;
    let names = shown
        .lines()
        .filter_map(|line| line.split([':', '@']).nth(1));
    let links: Vec<&str> = names
        .map(str::trim)
        .filter(|name| {
            ["eth", "ptv", "pt0"]
                .iter()
                .any(|kind| name.starts_with(kind))
        })
        .collect();
    ensure!(!links.is_empty(), "no link in {shown}");
    for link in links {
        let mut line = vec!["ethtool", "-K", link];
        line.extend(OFFLOADS.iter().flat_map(|offload| [*offload, "off"]));
        machine.run(line)?;
        let features = machine.run(["ethtool", "-k", link])?.stdout;
        for feature in [
            "tx-checksumming",
            "tcp-segmentation-offload",
            "generic-receive-offload",
        ] {
            let off = format!("{feature}: off");
            ensure!(features.contains(&off), "{link}: {features}");
        }
    }
    Ok(())
}
