//! `portolan trace`: what users see of a real client's way through two nodes.

use std::fs;

use anyhow::{Context, Result, ensure};
use portolan_e2e::{Cluster, Options, PATIENCE, Plane};
use portolan_testbed::{Process, binary, wait_until};
use serde_json::Value;

const STACK: &str = "
services:
  web:
    ports: ['8080:80', '8080:80/udp']
  old:
    ports: ['8081:80']
    x-portolan: {plane: relay}
";

/// Starts a trace on a node, and waits until it listens.
fn trace(cluster: &Cluster, node: usize, args: &[&str]) -> Result<Process> {
    let mut command = cluster.node(node).command(binary()?);
    command
        .arg("--socket")
        .arg(cluster.file(node, "agent.sock"))
        .arg("trace")
        .arg(cluster.client.ipv4().to_string())
        .args(args);
    let process = cluster.node(node).spawn(&mut command)?;
    wait_until(PATIENCE, "the trace to listen", || {
        let log = process.log_text()?;
        let listens = log.contains("listens for packets") || log.contains("\"start\"");
        Ok(listens.then_some(()))
    })
    .with_context(|| process.log_tail())?;
    Ok(process)
}

/// The packets that a trace has told by its end.
fn told(mut process: Process) -> Result<Vec<Value>> {
    let status = process.wait(PATIENCE)?;
    ensure!(status.success(), "{status}: {}", process.log_tail());
    let text = fs::read_to_string(process.log())?;
    let lines = text
        .lines()
        .map(|line| serde_json::from_str(line).with_context(|| line.to_owned()));
    let lines: Vec<Value> = lines.collect::<Result<_>>()?;
    Ok(lines
        .into_iter()
        .filter(|line| line["line"] == "hop")
        .collect())
}

fn curl(cluster: &Cluster, node: usize, port: u16) -> Result<()> {
    let url = format!("http://{}/", cluster.node(node).at(port));
    cluster
        .client
        .run(["curl", "-sS", "--max-time", "5", &url])?;
    Ok(())
}

fn has(hop: &Value, flag: &str) -> bool {
    let mut flags = hop["flags"].as_array().into_iter().flatten();
    flags.any(|name| name == flag)
}

fn cluster(prefix: &str, nodes: usize) -> Result<Cluster> {
    let cluster = Cluster::start(prefix, Options::nodes(nodes).plane(Plane::Ebpf))?;
    cluster.apply(0, STACK)?;
    Ok(cluster)
}

#[test]
fn a_connection_is_told_on_both_nodes_from_its_syn_to_its_end() -> Result<()> {
    let mut cluster = cluster("tr", 2)?;
    let _task = cluster.whoami("web1", 1, "web")?;
    cluster.wait_healthy_everywhere("web", 1)?;
    curl(&cluster, 0, 8080)?;

    let args = [":8080/tcp", "--format", "json"];
    let (first, second) = (trace(&cluster, 0, &args)?, trace(&cluster, 1, &args)?);
    curl(&cluster, 0, 8080)?;
    let (first, second) = (told(first)?, told(second)?);
    let both = || format!("n1: {first:#?}\nn2: {second:#?}");

    let syn = first.first().with_context(both)?;
    for (field, value) in [
        ("verdict", "forwarded"),
        ("side", "outside"),
        ("node", "n1"),
        ("task", "web.1"),
        ("peer", "n2"),
        ("protocol", "tcp"),
    ] {
        ensure!(syn[field] == value, "{field}: {}", both());
    }
    ensure!(has(syn, "SYN") && syn["first"] == true, "{}", both());
    ensure!(
        syn["to"] == cluster.node(0).at(8080).to_string(),
        "{}",
        both()
    );
    let arrived = second.first().with_context(both)?;
    ensure!(
        arrived["verdict"] == "delivered" && arrived["peer"] == "n1" && arrived["task"] == "web.1",
        "{}",
        both()
    );
    // The task has its own address there, and the client's is kept.
    ensure!(
        arrived["from"] == syn["from"] && arrived["to"] == syn["to_after"],
        "{}",
        both()
    );
    // One machine, one clock.
    ensure!(
        arrived["time"].as_str() > syn["time"].as_str(),
        "{}",
        both()
    );
    let reply = |hops: &[Value], verdict: &str| {
        let found = hops.iter().find(|hop| hop["verdict"] == verdict);
        found.is_some_and(|hop| has(hop, "SYN") && has(hop, "ACK"))
    };
    ensure!(reply(&second, "sent_back"), "{}", both());
    ensure!(reply(&first, "given_back"), "{}", both());
    for hops in [&first, &second] {
        let fins = hops.iter().filter(|hop| has(hop, "FIN")).count();
        ensure!(fins >= 2, "{}", both());
        let client = &syn["from"];
        let of_flow = |hop: &&Value| hop["from"] == *client || hop["to"] == *client;
        ensure!(hops.iter().all(|hop| of_flow(&hop)), "{}", both());
    }
    Ok(())
}

#[test]
fn what_the_relay_has_is_told_with_the_reason() -> Result<()> {
    let mut cluster = cluster("tr", 1)?;
    let _task = cluster.whoami("old1", 0, "old")?;
    cluster.wait_healthy_everywhere("old", 1)?;
    let mut process = trace(&cluster, 0, &[":8081", "--count", "1"])?;
    curl(&cluster, 0, 8081)?;
    let status = process.wait(PATIENCE)?;
    let log = process.log_text()?;
    ensure!(status.success(), "{log}");
    ensure!(log.contains("*:8081/tcp of old is the relay's: "), "{log}");
    ensure!(
        log.contains("SYN") && log.contains("left to the kernel"),
        "{log}"
    );

    // No task yet: the fast path knows the frontend, and leaves it.
    let process = trace(
        &cluster,
        0,
        &[":8080/tcp", "--count", "1", "--format", "json"],
    )?;
    cluster.client.output([
        "curl",
        "-sS",
        "--max-time",
        "1",
        &format!("http://{}/", cluster.node(0).at(8080)),
    ])?;
    let hops = told(process)?;
    let hop = hops.first().context("no packet")?;
    ensure!(
        hop["verdict"] == "left" && hop["reason"] == "to_relay_no_backend",
        "{hop:#}"
    );
    Ok(())
}

#[test]
fn there_is_one_trace_at_a_time_and_a_killed_one_is_over() -> Result<()> {
    let cluster = cluster("tr", 1)?;
    let client = cluster.client.ipv4().to_string();
    let mut first = trace(&cluster, 0, &["--for", "5m"])?;
    let refused = cluster.try_cli(0, &["trace", &client])?;
    ensure!(
        refused.status.code() == Some(1)
            && refused.stderr.contains(&format!(
                "another trace runs on this node, of client {client}"
            )),
        "{refused:?}"
    );
    first.kill()?;
    wait_until(PATIENCE, "the killed trace to be over", || {
        let next = cluster.try_cli(0, &["trace", &client, "--for", "100ms"])?;
        Ok(next
            .stderr
            .contains("met no packet")
            .then_some(next.status.code()))
    })?;
    let wrong = cluster.try_cli(0, &["trace", &client, ":0"])?;
    ensure!(wrong.status.code() == Some(2), "{wrong:?}");
    Ok(())
}

#[test]
fn without_the_fast_path_there_is_nothing_to_trace() -> Result<()> {
    let cluster = Cluster::start("tr", Options::nodes(1))?;
    let refused = cluster.try_cli(0, &["trace", "10.0.0.5", ":8080"])?;
    ensure!(
        refused.status.code() == Some(1)
            && refused.stderr.contains(
                "the fast path does not serve on this node: not asked for: --plane relay"
            ),
        "{refused:?}"
    );
    Ok(())
}
