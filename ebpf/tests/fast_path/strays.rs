//! Packets that come by another way than their flow, and tasks that take the place of others.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket},
    thread,
    time::Duration,
};

use anyhow::{Result, ensure};
use portolan_model::Protocol;
use portolan_testbed::{Namespace, Node, wait_until};

use crate::cluster::Cluster;

/// Answers every datagram with the same, until the test's process ends.
fn answering(task: &Namespace, address: &str, word: &'static [u8]) -> Result<()> {
    let socket = task.enter(|| Ok(UdpSocket::bind((address, 80))?))?;
    thread::spawn(move || {
        while let Ok((_, from)) = socket.recv_from(&mut [0; 16]) {
            let _ = socket.send_to(word, from);
        }
    });
    Ok(())
}

fn socket(client: &Node) -> Result<UdpSocket> {
    let socket = client.enter(|| Ok(UdpSocket::bind("0.0.0.0:40000")?))?;
    socket.set_read_timeout(Some(Duration::from_millis(500)))?;
    Ok(socket)
}

fn ask(socket: &UdpSocket, to: SocketAddr) -> Result<Vec<u8>> {
    socket.send_to(b"ask", to)?;
    let mut answer = [0; 16];
    let (length, from) = socket.recv_from(&mut answer)?;
    ensure!(from == to, "{from}");
    Ok(answer[..length].to_vec())
}

/// A datagram in a packet in a frame in the tunnel's header.
fn tunnelled(from: (Ipv4Addr, u16), to: (Ipv4Addr, u16), payload: &[u8]) -> Vec<u8> {
    let length = 8 + payload.len() as u16;
    let fields = [from.1, to.1, length, 0];
    let header = fields.map(u16::to_be_bytes).concat();
    in_tunnel(17, from.0, to.0, &[&header, payload].concat())
}

/// The same with a segment in the middle of a connection. Its checksum says nothing.
fn segment(from: (Ipv4Addr, u16), to: (Ipv4Addr, u16), payload: &[u8]) -> Vec<u8> {
    let ports = [from.1, to.1].map(u16::to_be_bytes).concat();
    // At 1, with all acknowledged up to 2.
    let rest = [0, 0, 0, 1, 0, 0, 0, 2, 5 << 4, 16, 0x20, 0, 0, 0, 0, 0];
    in_tunnel(6, from.0, to.0, &[&ports, &rest[..], payload].concat())
}

fn in_tunnel(protocol: u8, from: Ipv4Addr, to: Ipv4Addr, payload: &[u8]) -> Vec<u8> {
    let mut ip = vec![0x45, 0];
    ip.extend((20 + payload.len() as u16).to_be_bytes());
    ip.extend([0, 0, 0, 0, 64, protocol, 0, 0]);
    ip.extend(from.octets());
    ip.extend(to.octets());
    let words = ip
        .chunks(2)
        .map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])));
    let sum: u32 = words.sum();
    let check = !((sum & 0xffff) + (sum >> 16)) as u16;
    ip[10..12].copy_from_slice(&check.to_be_bytes());
    // VNI 4096; any Ethernet addresses will do.
    let mut frame = vec![8, 0, 0, 0, 0, 0x10, 0, 0];
    frame.extend([2; 12]);
    frame.extend([8, 0]);
    frame.extend(ip);
    frame.extend(payload);
    frame
}

#[test]
fn an_answer_by_a_node_that_is_not_the_tasks_is_dropped() -> Result<()> {
    let cluster = Cluster::new(3)?;
    let task = cluster.task(2, "t1", "10.208.2.2")?;
    answering(&task, "10.208.2.2", b"task")?;
    cluster.publish(8080, Protocol::Udp, &[(2, "10.208.2.2")]);
    let client = cluster.lab.client("c1")?;
    let socket = socket(&client)?;
    let node = cluster.nodes[0].at(8080);
    assert_eq!(ask(&socket, node)?, b"task");
    let forged = tunnelled(
        ("10.208.2.2".parse()?, 80),
        (client.ipv4(), 40_000),
        b"forged",
    );
    let tunnel = cluster.nodes[0].at(4789);
    cluster.nodes[2].enter(|| Ok(UdpSocket::bind("0.0.0.0:0")?.send_to(&forged, tunnel)?))?;
    ensure!(socket.recv(&mut [0; 16]).is_err(), "it reached the client");
    assert_eq!(cluster.counter(1, "drop_misdirected"), 1);
    // The same is an answer if it comes by the task's own node.
    cluster.nodes[1].enter(|| Ok(UdpSocket::bind("0.0.0.0:0")?.send_to(&forged, tunnel)?))?;
    let mut answer = [0; 16];
    let length = socket.recv(&mut answer)?;
    assert_eq!(&answer[..length], b"forged");
    Ok(())
}

/// Only what begins a connection can be given another task.
#[test]
fn a_segment_by_another_node_does_not_reach_a_connection_of_the_same_ends() -> Result<()> {
    let cluster = Cluster::new(2)?;
    let task = cluster.task(2, "t1", "10.208.2.2")?;
    let listener = task.enter(|| Ok(TcpListener::bind("10.208.2.2:80")?))?;
    cluster.publish(8080, Protocol::Tcp, &[(2, "10.208.2.2")]);
    let client = cluster.lab.client("c1")?;
    let mut connection = crate::life::connect(&client, cluster.nodes[1].at(8080))?;
    let (mut served, from) = listener.accept()?;
    assert_eq!(from, connection.local_addr()?);
    let stray = segment(
        (client.ipv4(), from.port()),
        ("10.208.2.2".parse()?, 80),
        b"stray",
    );
    let tunnel = cluster.nodes[1].at(4789);
    cluster.nodes[0].enter(|| Ok(UdpSocket::bind("0.0.0.0:0")?.send_to(&stray, tunnel)?))?;
    wait_until(Duration::from_secs(5), "the stray is dropped", || {
        Ok((cluster.counter(2, "drop_collision") == 1).then_some(()))
    })?;
    // The connection goes on by the node that it came by.
    connection.write_all(b"own")?;
    let mut got = [0; 16];
    let length = served.read(&mut got)?;
    assert_eq!(&got[..length], b"own");
    Ok(())
}

/// The flow of the old one has gone with it, whoever it came by.
#[test]
fn a_task_with_the_address_of_another_has_none_of_its_flows() -> Result<()> {
    let cluster = Cluster::new(3)?;
    let task = cluster.task(3, "t1", "10.208.3.2")?;
    answering(&task, "10.208.3.2", b"old")?;
    cluster.publish(8080, Protocol::Udp, &[(3, "10.208.3.2")]);
    let client = cluster.lab.client("c1")?;
    let socket = socket(&client)?;
    assert_eq!(ask(&socket, cluster.nodes[0].at(8080))?, b"old");
    cluster.threads[2].run(|inside| inside.overlay.detach(&"t1".parse().unwrap()).unwrap());
    drop(task);
    let task = cluster.task(3, "t2", "10.208.3.2")?;
    answering(&task, "10.208.3.2", b"new")?;
    // By another node, from the same port.
    let node = cluster.nodes[1].at(8080);
    let answered = || Ok(ask(&socket, node).ok());
    let answer = wait_until(Duration::from_secs(5), "the new task's answer", answered)?;
    assert_eq!(answer, b"new");
    assert_eq!(cluster.counter(3, "sent_back"), 0);
    Ok(())
}
