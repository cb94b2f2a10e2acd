//! Tasks find one another: names, VIPs on any port, and only on networks that they share.

#![expect(clippy::indexing_slicing, reason = "a test of missing JSON has failed")]

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use portolan_e2e::{Cluster, Options, Plane, Task, on_both_planes};
use portolan_testbed::{Namespace, redis};
use serde_json::Value;

const STACK: &str = "
services:
  web:
    networks: {app: {aliases: [shop]}}
    ports: ['8080:80']
    deploy: {endpoint_mode: vip}
  rr:
    networks: [app]
    deploy: {endpoint_mode: dnsrr}
  redis:
    networks: [app]
  hidden:
    networks: [closed]
networks:
  app: {}
  closed: {internal: true}
";

/// A node's gateway on a network: the first address of its first slice.
fn gateway(cluster: &Cluster, node: usize, network: &str) -> Result<String> {
    let name = format!("n{}", node + 1);
    let rows = cluster.wait_for(
        node,
        &format!("a slice of {network}"),
        &["networks"],
        |rows| slice(rows, network, &name).is_some(),
    )?;
    slice(&rows, network, &name).context("no slice")
}

fn slice(rows: &Value, network: &str, node: &str) -> Option<String> {
    let row = rows.as_array()?.iter().find(|row| row["name"] == network)?;
    let slices = row["slices"]
        .as_array()?
        .iter()
        .find(|slices| slices[0] == node)?;
    let slice = slices[1][0].as_str()?;
    Some(slice.split_once('/')?.0.to_owned())
}

/// A namespace on a network of a node, which asks that node for names.
fn guest(cluster: &Cluster, label: &str, node: usize, network: &str) -> Result<Namespace> {
    let netns = cluster.lab.task(label)?;
    let path = netns.path().display().to_string();
    cluster.cli(node, &["attach", network, "--netns", &path])?;
    let gateway = gateway(cluster, node, network)?;
    netns.set_resolver(gateway.parse()?, &[], &[])?;
    Ok(netns)
}

/// Waits until the fast path, where a node has it, carries the virtual addresses that lead to tasks: from then on no
/// packet to one of them is the relay's.
fn wait_carried(cluster: &Cluster, node: usize) -> Result<()> {
    if cluster.plane(node) == Plane::Relay {
        return Ok(());
    }
    let is_vip = |row: &Value| {
        row["frontend"]
            .as_str()
            .is_some_and(|at| at.contains(":*/"))
    };
    let what = "the fast path carries the virtual addresses";
    cluster.wait_for(node, what, &["status"], |status| {
        let rows = status["ports"].as_array().into_iter().flatten();
        let mut vips = rows
            .filter(|row| row["active"] != 0 && is_vip(row))
            .peekable();
        vips.peek().is_some() && vips.all(|row| row["plane"] == "ebpf")
    })?;
    Ok(())
}

/// How many flows to redis the fast path of all nodes has begun.
fn begun_by_fast_path(cluster: &Cluster) -> Result<f64> {
    let labels = ["plane=\"ebpf\"", "service=\"redis\""];
    let flows = |node| cluster.metric(node, "portolan_plane_flows_total", &labels);
    (0..cluster.len()).map(flows).sum()
}

/// What dig prints for a question to a namespace's own resolver.
fn dig(netns: &Namespace, args: &[&str]) -> Result<Vec<String>> {
    let mut line = vec!["dig", "+short", "+time=2", "+tries=1"];
    line.extend(args);
    Ok(netns.run(line)?.stdout.lines().map(str::to_owned).collect())
}

/// What curl prints, and an error if it fails.
fn curl(netns: &Namespace, url: &str) -> Result<String> {
    Ok(netns.run(["curl", "-sS", "--max-time", "3", url])?.stdout)
}

/// Its address on the network.
fn guest_address(guest: &Namespace) -> Result<IpAddr> {
    let shown = guest.run(["ip", "-4", "-o", "address", "show", "dev", "pt0"])?;
    let mut words = shown.stdout.split_whitespace().skip_while(|w| *w != "inet");
    let address = words.nth(1).and_then(|word| word.split('/').next());
    Ok(address.context("no address")?.parse()?)
}

/// The name of the task that answered: the first line of `whoami`.
fn who(answer: &str) -> String {
    answer.lines().next().unwrap_or_default().to_owned()
}

/// The address that the task that answered has for its client's.
fn seen(answer: &str) -> Option<IpAddr> {
    let client = answer
        .lines()
        .find_map(|line| line.strip_prefix("client: "))?;
    Some(client.parse::<SocketAddr>().ok()?.ip())
}

fn tasks(cluster: &mut Cluster) -> Result<Vec<Task>> {
    Ok(vec![
        cluster.whoami("web1", 0, "web")?,
        cluster.whoami("web2", 1, "web")?,
        cluster.whoami("rr1", 0, "rr")?,
        cluster.whoami("rr2", 1, "rr")?,
        cluster.whoami("hid1", 0, "hidden")?,
    ])
}

on_both_planes! {
    names_lead_to_tasks_on_shared_networks_only,
    names_that_are_not_ours_are_forwarded_but_not_from_internal_networks,
    a_hit_counter_finds_redis_by_name,
    a_name_is_known_again_at_once_after_the_agent_was_away,
}

fn names_lead_to_tasks_on_shared_networks_only(plane: Plane) -> Result<()> {
    let mut cluster = Cluster::start("names", Options::nodes(3).plane(plane))?;
    cluster.apply(0, STACK)?;
    let tasks = tasks(&mut cluster)?;
    for service in ["web", "rr"] {
        cluster.wait_healthy_everywhere(service, 2)?;
    }
    cluster.wait_healthy_everywhere("hidden", 1)?;
    let guest = guest(&cluster, "guest", 2, "app")?;
    wait_carried(&cluster, 2)?;
    let on_app = |task: &Task| task.address("app").map(str::to_owned);
    let mut web = vec![on_app(&tasks[0])?, on_app(&tasks[1])?];
    let mut rr = vec![on_app(&tasks[2])?, on_app(&tasks[3])?];
    web.sort();
    rr.sort();

    // A VIP for the service and its alias, with and without the network's name.
    let vip = dig(&guest, &["web"])?;
    ensure!(
        vip.len() == 1 && vip[0].parse::<Ipv4Addr>().is_ok(),
        "web: {vip:?}"
    );
    ensure!(
        !web.contains(&vip[0]),
        "web is a task's address, not a VIP: {vip:?}"
    );
    for name in ["shop", "web.app", "shop.app", "WEB"] {
        ensure!(dig(&guest, &[name])? == vip, "{name} is not {vip:?}");
    }
    // Task addresses by `tasks.`, and for round robin services by the name itself.
    let sorted = |name: &str| -> Result<Vec<String>> {
        let mut found = dig(&guest, &[name])?;
        found.sort();
        Ok(found)
    };
    ensure!(sorted("tasks.web")? == web);
    ensure!(sorted("rr")? == rr && sorted("tasks.rr")? == rr);
    // SRV, PTR, and a type that is not there.
    let srv = dig(&guest, &["SRV", "_80._tcp.web"])?;
    ensure!(
        srv.len() == 2 && srv.iter().all(|line| line.contains(" 80 ")),
        "SRV: {srv:?}"
    );
    let ptr = dig(&guest, &["-x", &web[0]])?;
    ensure!(ptr.len() == 1 && ptr[0].contains("web"), "PTR: {ptr:?}");
    let none = guest.run(["dig", "AAAA", "web"])?.stdout;
    ensure!(
        none.contains("status: NOERROR") && none.contains("SOA"),
        "{none}"
    );
    let tcp = dig(&guest, &["+tcp", "web"])?;
    ensure!(tcp == vip, "over TCP: {tcp:?}");

    // The VIP is balanced, exactly. On the fast path a task sees who called, on the relay the node that relayed.
    let own = guest_address(&guest)?;
    let mut answers = (0..10)
        .map(|_| {
            let answer = curl(&guest, "http://web/")?;
            ensure!(
                (seen(&answer) == Some(own)) == (plane == Plane::Ebpf),
                "{own} calls: {answer}"
            );
            Ok(who(&answer))
        })
        .collect::<Result<Vec<_>>>()?;
    answers.sort();
    ensure!(answers[..5].iter().all(|a| *a == answers[0]), "{answers:?}");
    ensure!(
        answers[5..]
            .iter()
            .all(|a| *a == answers[9] && *a != answers[0]),
        "{answers:?}"
    );

    // A service of another network has no name here, and its tasks are out of reach.
    let unknown = guest.run(["dig", "hidden"])?.stdout;
    ensure!(unknown.contains("status: NXDOMAIN"), "{unknown}");
    let hidden = format!("http://{}/", tasks[4].address("closed")?);
    // With a route that a stray administrator might set: it is not the route that keeps them apart.
    let via = gateway(&cluster, 2, "app")?;
    guest.run([
        "ip", "route", "add", "default", "via", &via, "onlink", "dev", "pt0",
    ])?;
    ensure!(
        curl(&guest, &hidden).is_err(),
        "{hidden} was reached from another network"
    );
    let underlay = cluster
        .client
        .output(["curl", "-sS", "--max-time", "2", &hidden])?;
    ensure!(
        !underlay.status.success(),
        "{hidden} was reached from the underlay"
    );
    Ok(())
}

fn names_that_are_not_ours_are_forwarded_but_not_from_internal_networks(
    plane: Plane,
) -> Result<()> {
    // The lab's client is the nodes' resolver: an agent's DNS server is one, so another cluster's would do;
    // socat answers any query with one fixed address, which is all that is asked here.
    let mut cluster = Cluster::prepare("forward", Options::nodes(1).plane(plane))?;
    let upstream = cluster.client.ipv4().to_string();
    let zone = cluster.client.dir().join("answer.py");
    std::fs::write(&zone, UPSTREAM)?;
    let mut command = cluster.client.command("python3");
    command.arg(&zone).arg(&upstream);
    let _server = cluster
        .client
        .spawn(&mut command)?
        .bound(portolan_testbed::Protocol::Udp, 53)?;
    cluster.start_agent_with(0, &["--dns-upstream", &upstream])?;
    cluster.wait_ready()?;
    cluster.apply(0, STACK)?;
    let open = guest(&cluster, "open", 0, "app")?;
    let closed = guest(&cluster, "closed", 0, "closed")?;
    let answer = dig(&open, &["www.example.org"])?;
    ensure!(answer == ["192.0.2.80"], "{answer:?}");
    let refused = closed
        .run(["dig", "+time=2", "+tries=1", "www.example.org"])?
        .stdout;
    ensure!(!refused.contains("status: NOERROR"), "{refused}");
    Ok(())
}

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

fn a_hit_counter_finds_redis_by_name(plane: Plane) -> Result<()> {
    let cluster = Cluster::start("hits", Options::nodes(2).plane(plane))?;
    cluster.apply(0, STACK)?;
    let store = cluster.lab.task("redis1")?;
    let _redis = redis(&store, 6379)?;
    let _store = cluster.add_task(store, 0, "redis")?;
    cluster.wait_healthy_everywhere("redis", 1)?;
    // Two front tasks on two nodes count on one store.
    let fronts = [
        guest(&cluster, "front1", 0, "app")?,
        guest(&cluster, "front2", 1, "app")?,
    ];
    for node in 0..2 {
        wait_carried(&cluster, node)?;
    }
    let begun = begun_by_fast_path(&cluster)?;
    for hit in 1..=10 {
        let front = &fronts[hit % 2];
        let count = front
            .run(["redis-cli", "-h", "redis", "INCR", "hits"])?
            .stdout;
        ensure!(
            count.trim() == hit.to_string(),
            "hit {hit} was counted as {count}"
        );
    }
    let begun = begun_by_fast_path(&cluster)? - begun;
    let expected = if plane == Plane::Ebpf { 10.0 } else { 0.0 };
    ensure!(
        (begun - expected).abs() < 0.5,
        "the fast path began {begun} connections"
    );
    Ok(())
}

fn a_name_is_known_again_at_once_after_the_agent_was_away(plane: Plane) -> Result<()> {
    let mut cluster = Cluster::start("again", Options::nodes(2).plane(plane))?;
    cluster.apply(0, STACK)?;
    let _task = cluster.whoami("web1", 1, "web")?;
    cluster.wait_healthy_everywhere("web", 1)?;
    let guest = guest(&cluster, "guest", 0, "app")?;
    wait_carried(&cluster, 0)?;
    let vip = dig(&guest, &["web"])?;
    cluster.kill_agent(0)?;
    if plane == Plane::Ebpf {
        // Without an agent there are no names, and the address leads on.
        let answer = curl(&guest, &format!("http://{}/", vip[0]))?;
        ensure!(who(&answer).contains("web1"), "{answer}");
    }
    cluster.start_agent(0)?;
    cluster.wait_node_ready(0)?;
    let within = Duration::from_secs(5);
    portolan_testbed::wait_until(within, "the same answer as before", || {
        let output = guest.output(["dig", "+time=1", "+tries=1", "web"])?;
        ensure!(
            !output.stdout.contains("NXDOMAIN"),
            "a restart said that the name does not exist"
        );
        Ok(output.stdout.contains(&vip[0]).then_some(()))
    })?;
    ensure!(who(&curl(&guest, "http://web/")?).contains("web1"));
    Ok(())
}
