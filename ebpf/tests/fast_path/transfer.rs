//! Much data, through the tunnel and without it.

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener},
    thread,
    time::Duration,
};

use anyhow::{Result, ensure};
use portolan_model::Protocol;
use portolan_testbed::{Lab, Namespace};

use crate::cluster::Cluster;

const BYTES: usize = 8 << 20;
const CHUNK: usize = 1 << 16;

/// The byte at a place of the stream, so that one that is lost, twice or elsewhere is seen.
fn byte(at: usize) -> u8 {
    (at ^ (at >> 8) ^ (at >> 16)) as u8
}

fn send(to: &mut impl Write) -> Result<()> {
    for start in (0..BYTES).step_by(CHUNK) {
        let chunk: Vec<u8> = (start..start + CHUNK).map(byte).collect();
        to.write_all(&chunk)?;
    }
    Ok(())
}

fn receive(from: &mut impl Read) -> Result<()> {
    let (mut at, mut chunk) = (0, vec![0; CHUNK]);
    loop {
        let length = from.read(&mut chunk)?;
        if length == 0 {
            ensure!(at == BYTES, "{at} bytes of {BYTES}");
            return Ok(());
        }
        let wrong = (0..length).find(|n| chunk[*n] != byte(at + n));
        ensure!(wrong.is_none(), "wrong at {}", at + wrong.unwrap_or(0));
        at += length;
    }
}

/// Both ways at once between a client and a task.
pub(crate) fn both_ways(client: &Namespace, task: &Namespace, to: SocketAddr) -> Result<()> {
    let listener = task.enter(|| Ok(TcpListener::bind("0.0.0.0:80")?))?;
    let limit = Some(Duration::from_secs(30));
    let exchange = move |stream: std::net::TcpStream| -> Result<()> {
        stream.set_read_timeout(limit)?;
        stream.set_write_timeout(limit)?;
        let (mut reader, mut writer) = (stream.try_clone()?, stream);
        thread::scope(|scope| {
            let sent = scope.spawn(move || {
                send(&mut writer)?;
                Ok::<(), anyhow::Error>(writer.shutdown(Shutdown::Write)?)
            });
            receive(&mut reader)?;
            sent.join().unwrap()
        })
    };
    let served = thread::spawn(move || exchange(listener.accept()?.0));
    exchange(crate::life::connect(client, to)?)?;
    served.join().unwrap()
}

fn fragments(node: &Namespace) -> Result<u64> {
    let text = node.run(["nstat", "-asz", "IpFragCreates"])?.stdout;
    let value = text.lines().find(|line| line.starts_with("IpFragCreates"));
    Ok(value
        .and_then(|line| line.split_whitespace().nth(1))
        .unwrap_or("0")
        .parse()?)
}

#[test]
fn every_byte_arrives_through_the_tunnel_and_none_in_fragments() -> Result<()> {
    for mtu in [1400, 1500, 9000] {
        let cluster = Cluster::build(Lab::unique("bp")?.with_mtu(mtu), 2)?;
        let tasks = [
            cluster.task(1, "t1", "10.208.1.2")?,
            cluster.task(2, "t2", "10.208.2.2")?,
        ];
        let client = cluster.lab.client("c1")?;
        for ((n, address), (port, task)) in [(1, "10.208.1.2"), (2, "10.208.2.2")]
            .into_iter()
            .zip((8080..).zip(&tasks))
        {
            cluster.publish(port, Protocol::Tcp, &[(n, address)]);
            both_ways(&client, task, cluster.nodes[0].at(port))?;
        }
        for node in &cluster.nodes {
            ensure!(fragments(node)? == 0, "fragments at MTU {mtu}");
        }
    }
    Ok(())
}
