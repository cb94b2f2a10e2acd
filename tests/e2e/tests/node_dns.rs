//! Names at the node's own address, for its processes and for containers that other software has put there.

#![expect(clippy::indexing_slicing, reason = "a test of missing JSON has failed")]

use std::time::Duration;

use anyhow::{Result, ensure};
use portolan_e2e::{Cluster, Options, PATIENCE, Plane, on_both_planes};
use portolan_testbed::{Namespace, Process, Protocol, wait_until};

const NODE: &str = "169.254.77.53";

const STACK: &str = "
services:
  front:
    ports: ['8080:80']
  web:
    networks: [app]
    deploy: {endpoint_mode: vip}
  hidden:
    networks: [closed]
networks:
  app: {}
  closed: {internal: true}
";

/// A resolver that knows one address for every name.
const UPSTREAM: &str = r"
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind((sys.argv[1], 53))
while True:
    query, client = s.recvfrom(4096)
    end = query.index(b'\0', 12) + 5
    answer = b'\xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x05\x00\x04' + bytes([192, 0, 2, 80])
    s.sendto(query[:2] + b'\x81\x80\x00\x01\x00\x01\x00\x00\x00\x00' + query[12:end] + answer, client)
";

fn upstream(cluster: &Cluster) -> Result<Process> {
    let script = cluster.client.dir().join("upstream.py");
    std::fs::write(&script, UPSTREAM)?;
    let mut command = cluster.client.command("python3");
    command.arg(&script).arg(cluster.client.ipv4().to_string());
    let server = cluster.client.spawn(&mut command)?;
    server.bound(Protocol::Udp, 53)
}

/// What dig prints of a question to the node's own address.
fn dig(netns: &Namespace, args: &[&str]) -> Result<String> {
    let at = format!("@{NODE}");
    let mut line = vec!["dig", at.as_str(), "+time=2", "+tries=1"];
    line.extend(args);
    Ok(netns.output(line)?.stdout)
}

/// The addresses of a name.
fn short(netns: &Namespace, name: &str) -> Result<Vec<String>> {
    let found = dig(netns, &["+short", name])?;
    let records = found.lines().filter(|line| !line.starts_with(';'));
    Ok(records.map(str::to_owned).collect())
}

/// A container as Docker would have it on a node: behind a bridge with a subnet of its own.
fn container(cluster: &Cluster, label: &str, node: usize) -> Result<Namespace> {
    let netns = cluster.lab.task(label)?;
    let path = netns.path().display().to_string();
    for line in [
        "ip link add docker0 type bridge".to_owned(),
        "ip address add 172.17.0.1/16 dev docker0".to_owned(),
        format!("ip link add veth{label} type veth peer name eth9 netns {path}"),
        format!("ip link set veth{label} master docker0 up"),
        "ip link set docker0 up".to_owned(),
    ] {
        cluster.node(node).run(line.split(' '))?;
    }
    for line in [
        "ip address add 172.17.0.2/16 dev eth9",
        "ip link set eth9 up",
        "ip route add default via 172.17.0.1",
    ] {
        netns.run(line.split(' '))?;
    }
    Ok(netns)
}

fn addresses(node: &Namespace) -> Result<String> {
    Ok(node.run("ip -4 -o address show dev lo".split(' '))?.stdout)
}

on_both_planes!(each_gets_its_own_names);

fn each_gets_its_own_names(plane: Plane) -> Result<()> {
    let mut cluster = Cluster::prepare("nodedns", Options::nodes(2).plane(plane))?;
    let _upstream = upstream(&cluster)?;
    let resolver = cluster.client.ipv4().to_string();
    for node in 0..2 {
        cluster.start_agent_with(node, &["--dns-upstream", &resolver])?;
    }
    cluster.wait_ready()?;
    cluster.apply(0, STACK)?;
    let _front = cluster.whoami("front1", 0, "front")?;
    let web = [
        cluster.whoami("web1", 0, "web")?,
        cluster.whoami("web2", 1, "web")?,
    ];
    let _hidden = cluster.whoami("hidden1", 0, "hidden")?;
    cluster.wait_healthy_everywhere("front", 1)?;
    cluster.wait_healthy_everywhere("web", 2)?;
    cluster.wait_healthy_everywhere("hidden", 1)?;

    // A process of the node: what it is told it reaches, by the VIP and by each task's address.
    let node = cluster.node(0);
    for (name, answers) in [("front", 1), ("web", 1), ("tasks.web", 2), ("web.app", 1)] {
        let found = short(node, name)?;
        ensure!(
            found.len() == answers,
            "{name}: {found:?} {}",
            dig(node, &[name])?
        );
        for ip in found {
            let url = format!("http://{ip}/");
            let reached = node.output(["curl", "-sS", "--max-time", "3", &url])?;
            ensure!(
                reached.status.success(),
                "{name} at {ip}: {}",
                reached.stderr
            );
        }
    }
    ensure!(dig(node, &["hidden"])?.contains("status: NXDOMAIN"));
    ensure!(short(node, "www.example.org")? == ["192.0.2.80"]);

    // A task by the same address, over UDP and TCP: as at its gateway.
    let task = &web[0].netns;
    task.run([
        "ip",
        "route",
        "replace",
        "default",
        "via",
        &gateway(&cluster, "app")?,
        "dev",
        "pt0",
        "onlink",
    ])?;
    let vip = short(task, "web")?;
    ensure!(vip.len() == 1, "{vip:?}");
    ensure!(dig(task, &["+short", "+tcp", "web"])?.trim() == vip[0]);
    ensure!(dig(task, &["front"])?.contains("status: NXDOMAIN"));

    // A container that is no task: what is not ours, and nothing of ours.
    let stranger = container(&cluster, "box", 0)?;
    wait_until(PATIENCE, "the bridge is seen", || {
        let found = short(&stranger, "www.example.org")?;
        Ok((found == ["192.0.2.80"]).then_some(()))
    })?;
    ensure!(
        short(&stranger, "web")? == ["192.0.2.80"],
        "forwarded, as Docker does it"
    );
    ensure!(dig(&stranger, &["-x", &vip[0]])?.contains("status: NXDOMAIN"));

    // Attached it is a task, whatever address it asks by.
    let path = stranger.path().display().to_string();
    cluster.cli(0, &["attach", "app", "--netns", &path])?;
    wait_until(PATIENCE, "it gets the names of its network", || {
        Ok((short(&stranger, "web")? == vip).then_some(()))
    })?;

    // A neighbour that knows the way gets no answer at all, neither with the filter nor without.
    let via = cluster.node(0).ipv4().to_string();
    let to = format!("{NODE}/32");
    cluster
        .client
        .run(["ip", "route", "add", &to, "via", &via])?;
    for filtered in [true, false] {
        if !filtered {
            node.run("nft delete table inet portolan_overlay".split(' '))?;
        }
        for transport in ["+notcp", "+tcp"] {
            let told = dig(&cluster.client, &["+time=1", transport, "web"])?;
            ensure!(!told.contains("status:"), "{filtered} {transport}: {told}");
        }
    }
    Ok(())
}

#[test]
fn an_agent_that_would_ask_itself_says_so() -> Result<()> {
    let mut cluster = Cluster::prepare("nodeloop", Options::nodes(1))?;
    cluster.start_agent_with(0, &["--dns-upstream", NODE])?;
    cluster.wait_ready()?;
    let within = Duration::from_secs(5);
    wait_until(within, "the problem is told", || {
        let status = cluster.cli(0, &["status"])?;
        Ok(status
            .contains("no resolver but 169.254.77.53")
            .then_some(()))
    })?;
    let refused = dig(cluster.node(0), &["www.example.org"])?;
    ensure!(refused.contains("status: SERVFAIL"), "{refused}");
    Ok(())
}

#[test]
fn the_address_outlives_a_restart_and_can_be_had_elsewhere_or_not_at_all() -> Result<()> {
    let mut cluster = Cluster::start("nodeaddr", Options::nodes(1))?;
    let has = |cluster: &Cluster, address: &str| -> Result<bool> {
        Ok(addresses(cluster.node(0))?.contains(&format!("{address}/32")))
    };
    ensure!(has(&cluster, NODE)?);
    cluster.kill_agent(0)?;
    ensure!(has(&cluster, NODE)?, "it stays while the agent is away");
    cluster.start_agent_with(0, &["--dns-address", "169.254.77.54"])?;
    cluster.wait_node_ready(0)?;
    ensure!(has(&cluster, "169.254.77.54")? && !has(&cluster, NODE)?);
    cluster.kill_agent(0)?;
    cluster.start_agent_with(0, &["--dns-address", "none"])?;
    cluster.wait_node_ready(0)?;
    ensure!(!has(&cluster, "169.254.77.54")? && !has(&cluster, NODE)?);
    cluster.kill_agent(0)?;
    cluster.start_agent(0)?;
    cluster.wait_node_ready(0)?;
    ensure!(has(&cluster, NODE)?);
    cluster.cli(0, &["leave", "--clean"])?;
    ensure!(!has(&cluster, NODE)?);
    Ok(())
}

/// The first node's gateway on a network.
fn gateway(cluster: &Cluster, network: &str) -> Result<String> {
    let rows = cluster.json(0, &["networks"])?;
    let rows = rows.as_array().map(Vec::as_slice).unwrap_or_default();
    let row = rows.iter().find(|row| row["name"] == network);
    let slices = row
        .and_then(|row| row["slices"].as_array())
        .map(Vec::as_slice);
    let mut slices = slices.unwrap_or_default().iter();
    let slice = slices.find(|slice| slice[0] == "n1");
    let prefix = slice
        .and_then(|slice| slice[1][0].as_str())
        .unwrap_or_default();
    let gateway = prefix.split_once('/').map(|(ip, _)| ip.to_owned());
    gateway.ok_or_else(|| anyhow::anyhow!("n1 has no slice of {network}"))
}
