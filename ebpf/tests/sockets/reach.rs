//! Processes of a node reach tasks of every node, with the programs that people use.

use std::{net::UdpSocket, thread, time::Duration};

use anyhow::{Result, ensure};
use portolan_model::Protocol;
use portolan_testbed::{Namespace, http_get, nginx};

use crate::{
    cluster::Cluster,
    processes::{GATEWAY, OnNode, PORT, TASKS, hook},
};

#[test]
fn curl_reaches_tasks_of_every_node_by_every_address() -> Result<()> {
    let cluster = Cluster::new(2)?;
    let tasks = [
        cluster.task(1, "t1", TASKS[0].1)?,
        cluster.task(2, "t2", TASKS[1].1)?,
    ];
    let _nginx = [nginx(&tasks[0], 80, "t1")?, nginx(&tasks[1], 80, "t2")?];
    hook(&cluster);
    cluster.publish(PORT, Protocol::Tcp, &TASKS);
    let node = &cluster.nodes[0];
    // No one listens on the node: whoever answers was reached by the hooks.
    for to in [
        "127.0.0.1",
        "[::1]",
        "localhost",
        &node.ipv4().to_string(),
        &format!("[{}]", node.ipv6()),
    ] {
        let mut answers = Vec::new();
        for _ in 0..2 {
            let url = format!("http://{to}:{PORT}/");
            let shown = node.run([
                "curl",
                "-sS",
                "--max-time",
                "5",
                "-w",
                " %{remote_ip} %{local_ip}",
                &url,
            ])?;
            answers.push(shown.stdout);
        }
        answers.sort();
        let dialled = to.trim_matches(['[', ']']);
        for (answer, task) in answers.iter().zip(["t1", "t2"]) {
            ensure!(answer.starts_with(task), "{to}: {answers:?}");
            ensure!(
                to == "localhost" || answer.contains(&format!(" {dialled} ")),
                "{to}: {answers:?}"
            );
            ensure!(answer.ends_with(GATEWAY), "{to}: {answers:?}");
        }
    }
    assert_eq!(cluster.counter(1, "socket_flow"), 10);
    // Clients from outside and nodes without the hooks have what they had.
    let client = cluster.lab.client("c1")?;
    http_get(&client, &node.at(PORT).to_string())?;
    ensure!(http_get(&cluster.nodes[1], "127.0.0.1:8080").is_err());
    Ok(())
}

/// A DNS server that knows no name, but says so.
fn answer_queries(task: &Namespace, address: &str) -> Result<()> {
    let socket = task.enter(|| Ok(UdpSocket::bind((address, 80))?))?;
    socket.set_read_timeout(Some(Duration::from_secs(20)))?;
    thread::spawn(move || {
        let mut query = [0; 512];
        while let Ok((length, from)) = socket.recv_from(&mut query) {
            query[2] |= 0x80;
            query[3] = 3;
            socket.send_to(&query[..length], from).unwrap();
        }
    });
    Ok(())
}

#[test]
fn datagrams_reach_tasks_by_the_hooks_and_connected_sockets_by_the_relay() -> Result<()> {
    let cluster = Cluster::new(2)?;
    let tasks = [
        cluster.task(1, "t1", TASKS[0].1)?,
        cluster.task(2, "t2", TASKS[1].1)?,
    ];
    answer_queries(&tasks[0], TASKS[0].1)?;
    answer_queries(&tasks[1], TASKS[1].1)?;
    hook(&cluster);
    cluster.publish(PORT, Protocol::Udp, &TASKS);
    let node = &cluster.nodes[0];
    let mut relay = OnNode::start(node)?;
    relay.serve(node, PORT, Protocol::Udp, &TASKS)?;
    for to in ["127.0.0.1", "::1", &node.ipv4().to_string()] {
        let shown = node.run([
            "dig",
            "+notcp",
            "+tries=1",
            "+time=5",
            &format!("@{to}"),
            "-p",
            "8080",
            "a.test",
        ])?;
        ensure!(shown.stdout.contains("NXDOMAIN"), "{to}: {}", shown.stdout);
    }
    let by_relay = relay.flows();
    ensure!(by_relay == 3, "dig connects its socket: {by_relay}");
    for _ in 0..2 {
        let socket = node.enter(|| Ok(UdpSocket::bind("0.0.0.0:0")?))?;
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
        socket.send_to(&[7; 20], ("127.0.0.1", PORT))?;
        let (_, from) = socket.recv_from(&mut [0; 512])?;
        assert_eq!(from.to_string(), "127.0.0.1:8080");
    }
    assert_eq!(relay.flows(), by_relay);
    assert_eq!(cluster.counter(1, "socket_flow"), 2);
    Ok(())
}
