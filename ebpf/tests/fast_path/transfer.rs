//! Much data, through the tunnel and without it.

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, UdpSocket},
    thread,
    time::Duration,
};

use anyhow::{Result, ensure};
use portolan_model::Protocol;
use portolan_testbed::{Lab, Namespace, wait_until};

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
    let listener = task.enter(|| Ok(TcpListener::bind("[::]:80")?))?;
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

pub(crate) fn fragments(node: &Namespace) -> Result<u64> {
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

/// Path MTU discovery (RFC 1191) through a tunnel with less room than the links at its ends, both ways. TCP is not
/// tried: it keeps to the segment size that its SYNs are given.
#[test]
fn senders_learn_the_size_that_fits_the_tunnel() -> Result<()> {
    let cluster = Cluster::build(Lab::unique("bp")?.with_mtu(1400), 2)?;
    let task = cluster.task(2, "t1", "10.208.2.2")?;
    cluster.publish(8080, Protocol::Udp, &[(2, "10.208.2.2")]);
    let client = cluster.lab.client("c1")?;
    let here = task.enter(|| Ok(UdpSocket::bind("10.208.2.2:80")?))?;
    let there = client.enter(|| Ok(UdpSocket::bind("0.0.0.0:0")?))?;
    for socket in [&here, &there] {
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    }
    // What the client leaves to its card the answer must not: it leaves by one that computes no checksums.
    let card = cluster.nodes[0].underlay();
    cluster.nodes[0].run(["ethtool", "-K", card, "tx", "off"])?;
    let node = cluster.nodes[0].at(8080);
    let mut datagram = [0; 2000];
    let learns = |namespace: &Namespace, to: &str, from: &[&str]| {
        wait_until(Duration::from_secs(5), "the size is known", || {
            let ask = [&["ip", "route", "get", to], from].concat();
            Ok(namespace
                .run(ask)?
                .stdout
                .contains("mtu 1350")
                .then_some(()))
        })
    };
    there.send_to(&[1; 1360], node)?;
    learns(&client, &cluster.nodes[0].ipv4().to_string(), &[])?;
    there.send_to(&[2; 1322], node)?;
    let (length, from) = here.recv_from(&mut datagram)?;
    ensure!((length, datagram[0]) == (1322, 2), "{length}");

    // A task whose link is too wide, as who changes it by hand may have it.
    let ip = "10.208.2.2".parse()?;
    let link = cluster.threads[1].run(move |inside| inside.surroundings.tasks[&ip].link.clone());
    cluster.nodes[1].run(["ip", "link", "set", &link, "mtu", "1400"])?;
    task.run(["ip", "link", "set", "pt0", "mtu", "1400"])?;
    here.send_to(&[3; 1360], from)?;
    learns(&task, &from.ip().to_string(), &["from", "10.208.2.2"])?;
    here.send_to(&[4; 1322], from)?;
    let (length, _) = there.recv_from(&mut datagram)?;
    ensure!((length, datagram[0]) == (1322, 4), "{length}");
    assert_eq!(
        (cluster.counter(1, "too_big"), cluster.counter(2, "too_big")),
        (1, 1)
    );
    Ok(())
}
