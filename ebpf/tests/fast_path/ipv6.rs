//! Clients of IPv6 reach tasks at the tasks' own IPv6 addresses, and tasks see them.

use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket},
    time::Duration,
};

use anyhow::{Result, ensure};
use portolan_model::{Protocol, claims, ipv6_of};
use portolan_testbed::{Lab, Namespace, http_get, udp_ask, wait_until};

use crate::{
    cluster::{Cluster, spec},
    flows::echo_clients,
    policies::{are_reset, listener, open, serve},
    reach::whoami,
    transfer::{both_ways, fragments},
};

/// A task on each node.
const TASKS: [(usize, &str); 2] = [(1, "10.208.1.2"), (2, "10.208.2.2")];

fn of(task: &str) -> Ipv6Addr {
    ipv6_of(claims::ingress_network().vni, task.parse().unwrap())
}

fn tasks(cluster: &Cluster) -> Result<[Namespace; 2]> {
    Ok([
        cluster.task(1, "t1", TASKS[0].1)?,
        cluster.task(2, "t2", TASKS[1].1)?,
    ])
}

#[test]
fn tasks_see_clients_of_both_families_in_turn() -> Result<()> {
    let cluster = Cluster::new(2)?;
    let tasks = tasks(&cluster)?;
    let _nginx = [whoami(&tasks[0])?, whoami(&tasks[1])?];
    cluster.publish(8080, Protocol::Tcp, &TASKS);
    let client = cluster.lab.client("c1")?;
    for (n, node) in (1..).zip(&cluster.nodes) {
        let mut seen = Vec::new();
        for to in [
            node.at_v6(8080),
            node.at_v6(8080),
            node.at(8080),
            node.at(8080),
        ] {
            seen.push(http_get(&client, &to.to_string())?.body);
        }
        let (six, four) = seen.split_at_mut(2);
        six.sort();
        four.sort();
        let mut expected = TASKS.map(|(_, task)| format!("{} {}", of(task), client.ipv6()));
        expected.sort();
        assert_eq!(six, expected, "one round: each of them once");
        assert_eq!(
            four,
            TASKS.map(|(_, task)| format!("{task} {}", client.ipv4()))
        );
        ensure!(cluster.counter(n, "new_flow") == 4);
    }
    Ok(())
}

#[test]
fn datagrams_have_the_clients_address_too() -> Result<()> {
    let cluster = Cluster::new(2)?;
    let tasks = tasks(&cluster)?;
    let servers = [
        echo_clients(&tasks[0], &of(TASKS[0].1).to_string())?,
        echo_clients(&tasks[1], &of(TASKS[1].1).to_string())?,
    ];
    cluster.publish(8080, Protocol::Udp, &TASKS);
    let client = cluster.lab.client("c1")?;
    for node in &cluster.nodes {
        for _ in 0..2 {
            let answer = udp_ask(&client, node.at_v6(8080), b"who", Duration::from_secs(5))?;
            let seen: SocketAddr = String::from_utf8(answer)?.parse()?;
            assert_eq!(seen.ip(), IpAddr::V6(client.ipv6()));
        }
    }
    let stats = cluster.threads[0].run(|inside| portolan_plane::DataPlane::stats(inside.plane()));
    for (_, name, stats) in &stats.frontends[0].backends {
        assert_eq!(stats.flows, 1, "{name}");
    }
    for _ in 0..2 {
        udp_ask(
            &client,
            cluster.nodes[0].at_v6(8080),
            b"end",
            Duration::from_millis(1),
        )
        .ok();
    }
    for server in servers {
        server.join().unwrap();
    }
    Ok(())
}

#[test]
fn every_byte_arrives_and_none_in_fragments() -> Result<()> {
    for mtu in [1400, 1500] {
        let cluster = Cluster::build(Lab::unique("bp")?.with_mtu(mtu), 2)?;
        let tasks = tasks(&cluster)?;
        let client = cluster.lab.client("c1")?;
        for (port, (at, task)) in (8080..).zip(TASKS.iter().zip(&tasks)) {
            cluster.publish(port, Protocol::Tcp, &[*at]);
            both_ways(&client, task, cluster.nodes[0].at_v6(port))?;
        }
        for node in &cluster.nodes {
            ensure!(fragments(node)? == 0, "fragments at MTU {mtu}");
        }
    }
    Ok(())
}

#[test]
fn an_idle_connection_is_reset_at_both_ends() -> Result<()> {
    let cluster = Cluster::new(2)?;
    let tasks = tasks(&cluster)?;
    let client = cluster.lab.client("c1")?;
    for (port, (at, task)) in (8080..).zip(TASKS.iter().zip(&tasks)) {
        let listener = listener(task, &of(at.1).to_string())?;
        let mut spec = spec(1, port, Protocol::Tcp, &[*at]);
        spec.policy.tcp_idle_ms = Some(300);
        serve(&cluster, 1, spec);
        let ends = open(&client, &listener, cluster.nodes[0].at_v6(port))?;
        are_reset(&cluster, &ends)?;
    }
    Ok(())
}

/// Path MTU discovery (RFC 8201), both ways, as of IPv4.
#[test]
fn senders_learn_the_size_that_fits_the_tunnel() -> Result<()> {
    let cluster = Cluster::build(Lab::unique("bp")?.with_mtu(1400), 2)?;
    let task = cluster.task(2, "t1", TASKS[1].1)?;
    cluster.publish(8080, Protocol::Udp, &TASKS[1..]);
    let client = cluster.lab.client("c1")?;
    let own = of(TASKS[1].1);
    let here = task.enter(|| Ok(UdpSocket::bind((own, 80))?))?;
    let there = client.enter(|| Ok(UdpSocket::bind("[::]:0")?))?;
    for socket in [&here, &there] {
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    }
    // What the client leaves to its card the answer must not: it leaves by one that computes no checksums.
    let card = cluster.nodes[0].underlay();
    cluster.nodes[0].run(["ethtool", "-K", card, "tx", "off"])?;
    let node = cluster.nodes[0].at_v6(8080);
    let mut datagram = [0; 2000];
    there.send_to(&[1; 1340], node)?;
    let frontend = cluster.nodes[0].ipv6().to_string();
    wait_until(Duration::from_secs(5), "the client knows the size", || {
        let route = client.run(["ip", "-6", "route", "get", &frontend])?;
        Ok(route.stdout.contains("mtu 1350").then_some(()))
    })?;
    there.send_to(&[2; 1302], node)?;
    let (length, from) = here.recv_from(&mut datagram)?;
    ensure!((length, datagram[0]) == (1302, 2), "{length}");

    let ip = TASKS[1].1.parse()?;
    let link = cluster.threads[1].run(move |inside| inside.surroundings.tasks[&ip].link.clone());
    cluster.nodes[1].run(["ip", "link", "set", &link, "mtu", "1400"])?;
    task.run(["ip", "link", "set", "pt0", "mtu", "1400"])?;
    here.send_to(&[3; 1340], from)?;
    // Its kernel keeps no size for a way that a rule of ports leads; it hears of it, and connections heed it.
    wait_until(Duration::from_secs(5), "the task is told the size", || {
        let told = task.run(["nstat", "-as", "Icmp6InPktTooBigs"])?;
        Ok(told.stdout.contains("Icmp6InPktTooBigs").then_some(()))
    })?;
    here.send_to(&[4; 1302], from)?;
    let (length, _) = there.recv_from(&mut datagram)?;
    ensure!((length, datagram[0]) == (1302, 4), "{length}");
    assert_eq!(
        (cluster.counter(1, "too_big"), cluster.counter(2, "too_big")),
        (1, 1)
    );
    Ok(())
}
