//! Who reaches whom, and who does not.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use portolan_model::{Endpoint, MacAddress, Task, TaskState, TaskView};
use portolan_overlay::Overlay;
use portolan_testbed::Namespace;

use crate::cluster::{Cluster, id, ip, pings};

/// Two nodes, a task of `ingress` on each.
fn two_nodes() -> Result<(Cluster, Namespace, Namespace)> {
    let cluster = Cluster::new("ov", 2)?;
    cluster.reconcile()?;
    let a = cluster.task(1, "t1", &[("ingress", "10.208.1.2")])?;
    let b = cluster.task(2, "t2", &[("ingress", "10.208.2.2")])?;
    Ok((cluster, a, b))
}

#[test]
fn tasks_reach_each_other_on_the_same_node_and_across() -> Result<()> {
    let (cluster, a, b) = two_nodes()?;
    let neighbour = cluster.task(1, "t3", &[("ingress", "10.208.1.3")])?;
    for (from, to) in [
        (&a, "10.208.2.2"),
        (&b, "10.208.1.2"),
        (&a, "10.208.1.3"),
        (&neighbour, "10.208.1.2"),
        // The gateways, where DNS is served.
        (&a, "10.208.1.0"),
        (&a, "10.208.2.0"),
    ] {
        ensure!(pings(from, to)?, "{} does not reach {to}", from.name());
    }
    Ok(())
}

#[test]
fn the_node_reaches_all_tasks_from_all_its_addresses() -> Result<()> {
    let (cluster, _a, _b) = two_nodes()?;
    let node = &cluster.nodes[0];
    for to in ["10.208.1.2", "10.208.2.2"] {
        ensure!(pings(node, to)?, "{to}");
        // 10.208.1.239 to .254 are the node's source addresses.
        for from in ["10.208.1.0", "10.208.1.239", "10.208.1.254"] {
            let ping = node.output(["ping", "-c1", "-W1", "-I", from, to])?;
            ensure!(ping.status.success(), "{from} to {to}: {}", ping.stdout);
        }
    }
    Ok(())
}

#[test]
fn what_no_one_has_is_unreachable_at_once() -> Result<()> {
    let (cluster, a, _b) = two_nodes()?;
    for from in [&a, &*cluster.nodes[0]] {
        let ping = from.output(["ping", "-c1", "-W5", "10.208.77.7"])?;
        let answer = ping.stdout + &ping.stderr;
        let at_once = ["Host Unreachable", "No route to host"];
        ensure!(at_once.iter().any(|word| answer.contains(word)), "{answer}");
    }
    Ok(())
}

/// Two nodes and the networks `red` and `blue`, with a task of each on both nodes.
struct Colours {
    cluster: Cluster,
    red: [Namespace; 2],
    blue: [Namespace; 2],
}

fn colours() -> Result<Colours> {
    let mut cluster = Cluster::new("ov", 2)?;
    for (name, vni, third) in [("red", 5001, 1), ("blue", 5002, 2)] {
        cluster.add_network(name, vni, &format!("10.224.{third}.0/24"));
        for n in 1..=2 {
            cluster.slice(name, n, &format!("10.224.{third}.{}/28", 16 * n));
        }
    }
    cluster.vip("web", "red", "10.224.1.200");
    cluster.reconcile()?;
    let task = |n: usize, name: &str, on: &str, third: u8| {
        let address = format!("10.224.{third}.{}", 16 * n + 1);
        cluster.task(n, name, &[(on, &address)])
    };
    let red = [task(1, "r1", "red", 1)?, task(2, "r2", "red", 1)?];
    let blue = [task(1, "b1", "blue", 2)?, task(2, "b2", "blue", 2)?];
    Ok(Colours { cluster, red, blue })
}

#[test]
fn networks_are_isolated() -> Result<()> {
    let Colours { cluster, red, blue } = colours()?;
    ensure!(pings(&red[0], "10.224.1.33")? && pings(&blue[0], "10.224.2.33")?);
    ensure!(pings(&red[0], "10.224.1.200")?, "the VIP is not served");
    // Even a task that tries: a route of its own for the other network.
    for task in red.iter().chain(&blue) {
        let gateway = gateway(task)?;
        task.run(["ip", "route", "add", "default", "via", &gateway])?;
    }
    for (from, to) in [
        (&red[0], "10.224.2.17"),
        (&red[0], "10.224.2.33"),
        (&red[0], "10.208.1.0"),
        (&blue[0], "10.224.1.17"),
        (&blue[0], "10.224.1.33"),
        // Gateways and VIPs are addresses of the node itself.
        (&blue[0], "10.224.1.16"),
        (&blue[0], "10.224.1.32"),
        (&blue[0], "10.224.1.200"),
        // Another node, though not this one.
        (&blue[0], "10.77.0.12"),
    ] {
        ensure!(!pings(from, to)?, "{} reaches {to}", from.name());
    }
    // Published ports answer at the node's own address.
    ensure!(pings(&blue[0], "10.77.0.11")?);
    let dropped = cluster.overlays[0].run(Overlay::counters);
    ensure!(dropped.misdirected_packets >= 3, "{dropped:?}");
    Ok(())
}

#[test]
fn the_underlay_does_not_reach_in() -> Result<()> {
    let Colours {
        cluster,
        red: _red,
        blue: _blue,
    } = colours()?;
    let client = cluster.lab.client("c1")?;
    client.run(["ip", "route", "add", "10.192.0.0/10", "via", "10.77.0.11"])?;
    // A node that forwards for others too.
    cluster.nodes[0].run(["sysctl", "-qw", "net.ipv4.ip_forward=1"])?;
    ensure!(pings(&client, "10.77.0.11")?);
    for to in ["10.224.1.17", "10.224.1.16", "10.224.1.200", "10.208.1.0"] {
        ensure!(!pings(&client, to)?, "the underlay reaches {to}");
    }
    Ok(())
}

#[test]
fn a_forged_source_goes_nowhere() -> Result<()> {
    let Colours {
        cluster,
        red,
        blue: _blue,
    } = colours()?;
    red[0].run(["ip", "addr", "add", "10.224.2.17/32", "dev", "lo"])?;
    let listener = red[1].enter(|| {
        let socket = UdpSocket::bind("10.224.1.33:9")?;
        socket.set_read_timeout(Some(Duration::from_millis(300)))?;
        Ok(socket)
    })?;
    red[0].enter(|| Ok(UdpSocket::bind("10.224.2.17:0")?.send_to(b"x", "10.224.1.33:9")?))?;
    ensure!(listener.recv(&mut [0; 8]).is_err(), "it arrived");
    let dropped = cluster.overlays[0].run(Overlay::counters);
    ensure!(dropped.forged_source_packets == 1, "{dropped:?}");
    Ok(())
}

#[test]
fn a_task_on_two_networks_reaches_both_and_joins_them_not() -> Result<()> {
    let Colours {
        cluster,
        red,
        blue: _blue,
    } = colours()?;
    let both = cluster.task(
        1,
        "both",
        &[
            ("ingress", "10.208.1.5"),
            ("red", "10.224.1.18"),
            ("blue", "10.224.2.18"),
        ],
    )?;
    for to in ["10.208.2.0", "10.224.1.33", "10.224.2.33"] {
        ensure!(pings(&both, to)?, "{to}");
    }
    ensure!(!pings(&red[1], "10.224.2.18")?);
    let links = both.run(["ip", "-br", "addr"])?.stdout;
    let order: Vec<&str> = links
        .lines()
        .filter(|line| line.starts_with("pt"))
        .filter_map(|line| line.split_whitespace().find(|word| word.contains('/')))
        .collect();
    assert_eq!(order, ["10.208.1.5/12", "10.224.1.18/24", "10.224.2.18/24"]);
    Ok(())
}

#[test]
fn an_address_from_outside_the_slices_is_reached_where_its_task_is() -> Result<()> {
    let (mut cluster, a, _b) = two_nodes()?;
    let stray = cluster.task(2, "stray", &[("ingress", "10.208.1.77")])?;
    ensure!(!pings(&a, "10.208.1.77")?);
    cluster.world.tasks.insert(
        "stray".parse()?,
        TaskView {
            task: std::sync::Arc::new(Task {
                id: "stray".parse()?,
                service: None,
                slot: 0,
                endpoints: vec![Endpoint {
                    network: "ingress".parse()?,
                    ip: ip("10.208.1.77").into(),
                    mac: Some(MacAddress::of_address(ip("10.208.1.77"))),
                }],
                state: TaskState::Healthy,
                weight: 1,
            }),
            node: id(2),
            state: TaskState::Healthy,
        },
    );
    cluster.reconcile()?;
    ensure!(pings(&a, "10.208.1.77")? && pings(&stray, "10.208.1.2")?);
    Ok(())
}

#[test]
fn a_node_without_ip_forwarding_stays_so() -> Result<()> {
    let (cluster, a, _b) = two_nodes()?;
    let forward = cluster.nodes[0].run(["sysctl", "-n", "net.ipv4.ip_forward"])?;
    assert_eq!(forward.stdout.trim(), "0");
    ensure!(pings(&a, "10.208.2.2")?);
    Ok(())
}

#[test]
fn strict_source_checks_of_the_node_do_no_harm() -> Result<()> {
    let cluster = Cluster::new("ov", 2)?;
    for node in &cluster.nodes {
        node.run(["sysctl", "-qw", "net.ipv4.conf.all.rp_filter=1"])?;
    }
    cluster.reconcile()?;
    let a = cluster.task(1, "t1", &[("ingress", "10.208.1.2")])?;
    let _b = cluster.task(2, "t2", &[("ingress", "10.208.2.2")])?;
    ensure!(pings(&a, "10.208.2.2")?);
    Ok(())
}

#[test]
fn a_subnet_that_the_node_uses_itself_is_left_alone() -> Result<()> {
    let mut cluster = Cluster::new("ov", 2)?;
    cluster.add_network("clash", 5003, "10.77.0.0/16");
    cluster.slice("clash", 1, "10.77.9.0/28");
    let snapshot = cluster.snapshot(1);
    let failures = cluster.overlays[0].run(move |overlay| overlay.reconcile(&snapshot));
    let [failure] = failures.as_slice() else {
        bail!("{failures:?}");
    };
    assert_eq!(failure.object, "clash");
    ensure!(
        failure.error.to_string().contains("10.77.0.11"),
        "{failure}"
    );
    ensure!(pings(&cluster.nodes[1], "10.77.0.11")?);
    Ok(())
}

#[test]
fn a_slice_that_moves_is_followed() -> Result<()> {
    let mut cluster = Cluster::new("ov", 3)?;
    cluster.reconcile()?;
    let a = cluster.task(1, "t1", &[("ingress", "10.208.1.2")])?;
    let old = cluster.task(2, "t2", &[("ingress", "10.208.2.2")])?;
    ensure!(pings(&a, "10.208.2.2")?);
    let detached = "t2".parse()?;
    cluster.overlays[1].run(move |overlay| overlay.detach(&detached))?;
    drop(old);
    let moved = cluster.view("ingress").slices.remove(&id(2)).unwrap();
    cluster
        .view("ingress")
        .slices
        .entry(id(3))
        .or_default()
        .extend(moved);
    cluster.slice("ingress", 2, "10.208.22.0/24");
    cluster.reconcile()?;
    let _new = cluster.task(3, "t2b", &[("ingress", "10.208.2.2")])?;
    let _there = cluster.task(2, "t4", &[("ingress", "10.208.22.2")])?;
    ensure!(pings(&a, "10.208.2.2")? && pings(&a, "10.208.22.2")?);
    let addresses = cluster.nodes[1]
        .run(["ip", "addr", "show", "ptbr4096"])?
        .stdout;
    ensure!(!addresses.contains("10.208.2.0/"), "{addresses}");
    Ok(())
}

#[test]
fn a_service_of_the_node_answers_from_the_address_asked() -> Result<()> {
    let Colours {
        cluster,
        red,
        blue: _blue,
    } = colours()?;
    let vip: SocketAddr = "10.224.1.200:80".parse()?;
    let _listener = cluster.nodes[0].enter(|| Ok(std::net::TcpListener::bind(vip)?))?;
    let peer = red[0].enter(|| {
        let stream = TcpStream::connect_timeout(&vip, Duration::from_secs(2)).context("connect")?;
        Ok(stream.peer_addr()?)
    })?;
    assert_eq!(peer, vip);
    Ok(())
}

fn gateway(task: &Namespace) -> Result<String> {
    let routes = task.run(["ip", "-4", "route"])?.stdout;
    let line = routes.lines().find(|line| line.contains(" via "));
    let word = line.and_then(|line| line.split_whitespace().nth(2));
    let gateway = word.with_context(|| format!("no gateway in {routes}"))?;
    Ok(gateway.parse::<Ipv4Addr>()?.to_string())
}
