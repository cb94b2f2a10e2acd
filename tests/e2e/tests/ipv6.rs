//! IPv6 clients outside: at every node, by both planes, seen as they are where the service wants it.

#![expect(clippy::indexing_slicing, reason = "a test of missing JSON has failed")]

use std::{
    io::{Read, Write},
    net::{IpAddr, SocketAddr, UdpSocket},
    panic::resume_unwind,
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use portolan_e2e::{
    Cluster, Options, PATIENCE, Plane, Task,
    answers::{each, refused},
    on_both_planes,
    stream::{both_ends, connect, echo, listen_v6},
};
use portolan_testbed::{Namespace, Protocol, http_get, udp_exchange, wait_until};
use serde_json::Value;

/// "Message too long" (errno(3)).
const EMSGSIZE: i32 = 90;
const BOTH: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];
const STACK: &str = "
services:
  web:
    ports: ['8080:80', '8080:80/udp', '9000:90']
    x-portolan: {ipv6: true}
";

on_both_planes! {
    every_task_answers_at_every_nodes_ipv6_address,
    a_service_that_does_not_ask_for_it_is_relayed,
    large_transfers_arrive_whole_both_ways,
    lists_of_clients_hold_for_ipv6,
    a_port_at_one_ipv6_address_is_served_only_there,
}

/// The client's address as a task sees it that is asked from a namespace.
fn seen(from: &Namespace, to: SocketAddr, protocol: Protocol) -> Result<(SocketAddr, SocketAddr)> {
    let (client, answer) = match protocol {
        Protocol::Tcp => {
            let answer = http_get(from, &to.to_string())?;
            (answer.client, answer.body)
        }
        Protocol::Udp => {
            let (client, answer) = udp_exchange(from, to, b"who?", Duration::from_secs(2))?;
            (client, String::from_utf8(answer)?)
        }
    };
    let seen = answer
        .lines()
        .find_map(|line| line.strip_prefix("client: "));
    let seen = seen.with_context(|| format!("no client in: {answer}"))?;
    Ok((client, seen.parse()?))
}

/// Waits until IPv6 clients of a service take this plane on a node.
fn wait_ipv6(cluster: &Cluster, service: &str, plane: Plane) -> Result<()> {
    for node in 0..cluster.len() {
        let what = format!("IPv6 clients of {service} take the plane {}", plane.word());
        cluster.wait_for(node, &what, &["status"], |status| {
            let mut rows = ports(status, service);
            rows.all(|row| row["ipv6"].is_null() || row["ipv6"] == plane.word())
        })?;
    }
    Ok(())
}

fn ports<'a>(status: &'a Value, service: &'a str) -> impl Iterator<Item = &'a Value> {
    let rows = status["ports"].as_array().into_iter().flatten();
    rows.filter(move |row| row["service"] == service)
}

/// That a task sees the client itself on the fast path, and an address of the overlay by the relay.
fn is_seen(cluster: &Cluster, to: SocketAddr, protocol: Protocol, plane: Plane) -> Result<()> {
    let (client, seen) = seen(&cluster.client, to, protocol)?;
    let right = match plane {
        Plane::Ebpf => seen == client,
        Plane::Relay => seen.is_ipv4(),
    };
    ensure!(right, "{to}/{protocol}: {client} is seen as {seen}");
    Ok(())
}

fn started(prefix: &str, plane: Plane, stack: &str) -> Result<(Cluster, Vec<Task>)> {
    let mut cluster = Cluster::start(prefix, Options::nodes(3).plane(plane))?;
    cluster.apply(0, stack)?;
    // One on the first node, one on the second, and none on the third.
    let tasks = (0..2)
        .map(|node| cluster.whoami(&format!("a{}", node + 1), node, "web"))
        .collect::<Result<_>>()?;
    cluster.wait_served("web", 2)?;
    Ok((cluster, tasks))
}

fn every_task_answers_at_every_nodes_ipv6_address(plane: Plane) -> Result<()> {
    let (cluster, _tasks) = started("six", plane, STACK)?;
    wait_ipv6(&cluster, "web", plane)?;
    for protocol in BOTH {
        for node in (0..3).map(|i| cluster.node(i)) {
            let to = node.at_v6(8080);
            let answers = cluster.answers(to, protocol, 8)?;
            ensure!(
                answers == each(&["a1", "a2"], 4),
                "{to}/{protocol}: {answers:?}"
            );
            for _ in 0..2 {
                is_seen(&cluster, to, protocol, plane)?;
            }
            // Both families take turns in one round.
            let first = cluster.ask(node.at(8080), protocol)?;
            let second = cluster.ask(to, protocol)?;
            ensure!(first != second, "{to}/{protocol}: {first} twice");
        }
    }
    let services = cluster.json(0, &["services"])?;
    ensure!(services[0]["ipv6"] == true, "{services:#}");
    Ok(())
}

fn a_service_that_does_not_ask_for_it_is_relayed(plane: Plane) -> Result<()> {
    let (cluster, _tasks) = started("six-no", plane, &STACK.replace("ipv6: true", "ipv6: false"))?;
    wait_ipv6(&cluster, "web", Plane::Relay)?;
    for protocol in BOTH {
        for node in (0..3).map(|i| cluster.node(i)) {
            let answers = cluster.answers(node.at_v6(8080), protocol, 8)?;
            ensure!(answers == each(&["a1", "a2"], 4), "{protocol}: {answers:?}");
            is_seen(&cluster, node.at_v6(8080), protocol, Plane::Relay)?;
        }
    }
    // It comes to want it, and then no longer; its tasks run on.
    for (asked, then) in [("true", plane), ("false", Plane::Relay)] {
        cluster.apply(1, &STACK.replace("ipv6: true", &format!("ipv6: {asked}")))?;
        wait_ipv6(&cluster, "web", then)?;
        for node in (0..3).map(|i| cluster.node(i)) {
            for protocol in BOTH {
                let what = format!("{} follows: ipv6: {asked}", node.label());
                wait_until(PATIENCE, what, || {
                    is_seen(&cluster, node.at_v6(8080), protocol, then).map(Some)
                })?;
            }
        }
    }
    Ok(())
}

fn large_transfers_arrive_whole_both_ways(plane: Plane) -> Result<()> {
    const AMOUNT: usize = 32 << 20;
    let cluster = Cluster::start("six-bulk", Options::nodes(2).plane(plane))?;
    cluster.apply(
        0,
        "services: {raw: {ports: ['9000:90'], x-portolan: {ipv6: true}}}\n",
    )?;
    let netns = cluster.lab.task("r1")?;
    let listener = listen_v6(&netns, 90)?;
    let _task = cluster.add_task(netns, 1, "raw")?;
    cluster.wait_served("raw", 1)?;
    wait_ipv6(&cluster, "raw", plane)?;
    for node in (0..2).map(|i| cluster.node(i)) {
        let (client, task) = both_ends(&cluster.client, node.at_v6(9000), &listener)?;
        ensure!((task.peer_addr()? == client.local_addr()?) == (plane == Plane::Ebpf));
        let bytes: Vec<u8> = (0..AMOUNT)
            .map(|i| (i ^ (i >> 8) ^ (i >> 16)) as u8)
            .collect();
        for (mut from, mut to) in [(&client, &task), (&task, &client)] {
            thread::scope(|scope| {
                let sent = scope.spawn(|| from.write_all(&bytes));
                let mut got = vec![0; AMOUNT];
                to.read_exact(&mut got)?;
                ensure!(got == bytes, "{}: other bytes than were sent", node.label());
                Ok(sent.join().unwrap_or_else(|panic| resume_unwind(panic))?)
            })?;
        }
    }
    Ok(())
}

fn lists_of_clients_hold_for_ipv6(plane: Plane) -> Result<()> {
    let stack =
        |allowed: &str| STACK.replace("ipv6: true", &format!("ipv6: true, allow: ['{allowed}']"));
    let (cluster, _tasks) = started("six-allow", plane, &stack("fd77::/64"))?;
    wait_ipv6(&cluster, "web", plane)?;
    for protocol in BOTH {
        for node in (0..3).map(|i| cluster.node(i)) {
            is_seen(&cluster, node.at_v6(8080), protocol, plane)?;
            let refused = cluster.ask(node.at(8080), protocol);
            ensure!(refused.is_err(), "{protocol}: IPv4 is not on the list");
        }
    }
    cluster.apply(0, &stack("10.77.0.0/24"))?;
    for node in (0..3).map(|i| cluster.node(i)) {
        wait_until(PATIENCE, "IPv6 is refused", || {
            Ok(cluster.ask(node.at_v6(8080), Protocol::Tcp).err())
        })?;
        cluster.ask(node.at(8080), Protocol::Tcp)?;
    }
    Ok(())
}

fn a_port_at_one_ipv6_address_is_served_only_there(plane: Plane) -> Result<()> {
    let stack = "
services:
  web:
    ports: ['[fd77::11]:8081:80', '[fd77::11]:8081:80/udp']
    x-portolan: {ipv6: true}
";
    let (cluster, _tasks) = started("six-at", plane, stack)?;
    let (n1, client) = (cluster.node(0), &cluster.client);
    for protocol in BOTH {
        let answers = cluster.answers(n1.at_v6(8081), protocol, 8)?;
        ensure!(answers == each(&["a1", "a2"], 4), "{protocol}: {answers:?}");
        let what = format!("{} sees the client", n1.label());
        wait_until(PATIENCE, what, || {
            is_seen(&cluster, n1.at_v6(8081), protocol, plane).map(Some)
        })?;
    }
    refused(client, n1.at(8081))?;
    refused(client, cluster.node(1).at_v6(8081))
}

#[test]
fn a_task_that_has_no_ipv6_address_makes_the_relay_serve_and_says_so() -> Result<()> {
    let (cluster, _tasks) = started("six-addr", Plane::Ebpf, STACK)?;
    wait_ipv6(&cluster, "web", Plane::Ebpf)?;
    // A process of a node itself, at its gateway address, which the fast path reaches by IPv4 alone.
    let networks = cluster.json(2, &["networks"])?;
    let mut networks = networks.as_array().into_iter().flatten();
    let ingress = networks.find(|network| network["name"] == "ingress");
    let slices = ingress.and_then(|ingress| ingress["slices"].as_array());
    let slice = slices
        .into_iter()
        .flatten()
        .find(|slice| slice[0] == "n3")
        .and_then(|slice| slice[1][0].as_str())
        .context("no slice of n3")?;
    let gateway: IpAddr = slice.split('/').next().unwrap_or_default().parse()?;
    let program = portolan_testbed::binary()?;
    let mut command = cluster.node(2).command(program);
    command.args(["whoami", "--name", "a3", "--http", "80", "--udp", "80"]);
    let _program = cluster.node(2).spawn(&mut command)?.listening(80)?;
    cluster.cli(
        2,
        &["task", "add", "web", "--address", &gateway.to_string()],
    )?;
    cluster.wait_healthy_everywhere("web", 3)?;
    wait_ipv6(&cluster, "web", Plane::Relay)?;
    for node in (0..3).map(|i| cluster.node(i)) {
        let answers = cluster.answers(node.at_v6(8080), Protocol::Tcp, 9)?;
        ensure!(answers == each(&["a1", "a2", "a3"], 3), "{answers:?}");
    }
    Ok(())
}

/// One larger than the tunnel is answered by the node with an ICMP error, of which the client's kernel makes
/// fragments the next time; those are the relay's.
#[test]
fn a_datagram_that_does_not_fit_the_tunnel_is_sent_in_parts_the_next_time() -> Result<()> {
    let mut cluster = Cluster::start("six-pmtu", Options::nodes(2).plane(Plane::Ebpf))?;
    cluster.apply(0, STACK)?;
    let _task = cluster.whoami("a1", 1, "web")?;
    cluster.wait_served("web", 1)?;
    wait_ipv6(&cluster, "web", Plane::Ebpf)?;
    let to = cluster.node(0).at_v6(8080);
    let socket = cluster.client.enter(|| Ok(UdpSocket::bind("[::]:0")?))?;
    socket.set_read_timeout(Some(Duration::from_secs(1)))?;
    socket.connect(to)?;
    let ask = |bytes: usize| {
        socket.send(&vec![b'x'; bytes])?;
        socket.recv(&mut [0; 2048])
    };
    // The overlay's packets have at most 1450 bytes, of which the headers are 48.
    ask(1402).context("the largest that fits")?;
    let first = ask(1403);
    let too_long = first
        .as_ref()
        .is_err_and(|e| e.raw_os_error() == Some(EMSGSIZE));
    ensure!(too_long, "{first:?}");
    ask(1403).context("in parts")?;
    let counted = cluster.fast_path_counters(0)?;
    ensure!(counted.get("too_big") == Some(&1), "{counted:?}");
    Ok(())
}

#[test]
fn flows_outlive_the_agents() -> Result<()> {
    let (mut cluster, tasks) = started("six-kill", Plane::Ebpf, STACK)?;
    wait_ipv6(&cluster, "web", Plane::Ebpf)?;
    let mut servers = Vec::new();
    for task in &tasks {
        let mut socat = task.netns.command("socat");
        socat.args(["TCP6-LISTEN:90,fork,reuseaddr,nodelay", "PIPE"]);
        servers.push(task.netns.spawn(&mut socat)?.listening(90)?);
    }
    let dial = |cluster: &Cluster| -> Result<Vec<_>> {
        let held = (0..3).map(|i| connect(&cluster.client, cluster.node(i).at_v6(9000)));
        held.collect()
    };
    let mut held = dial(&cluster)?;
    for node in 0..3 {
        cluster.kill_agent(node)?;
    }
    held.extend(dial(&cluster)?);
    for stream in &mut held {
        echo(stream, b"no agent")?;
    }
    for node in 0..3 {
        cluster.start_agent(node)?;
    }
    cluster.wait_ready()?;
    wait_ipv6(&cluster, "web", Plane::Ebpf)?;
    for stream in &mut held {
        echo(stream, b"other agents")?;
    }
    for protocol in BOTH {
        is_seen(&cluster, cluster.node(2).at_v6(8080), protocol, Plane::Ebpf)?;
    }
    Ok(())
}
