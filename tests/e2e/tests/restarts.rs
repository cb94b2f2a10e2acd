//! Agents are killed and started again: what flows past them goes on, and what they knew is there.

#![expect(
    clippy::indexing_slicing,
    reason = "what is not there fails the test, as it has to"
)]

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use portolan_e2e::{
    Cluster, Options, Plane, Task,
    answers::each,
    on_both_planes,
    stream::{PacedStream, echo_server},
};
use portolan_testbed::{Namespace, Process, Protocol};
use serde_json::Value;

const STACK: &str = "
services:
  web:
    ports: ['8080:80', '9000:90']
    x-portolan: {drain: 1m}
  side:
    networks: [inner]
networks:
  inner:
";
/// A retransmission or two. A stream through a tunnel that was taken down and set up anew stands longer.
const STALL: Duration = Duration::from_secs(1);

fn rows(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// A namespace on the network `inner` without being a task, with an echo server, and its address.
fn guest(cluster: &Cluster, label: &str, node: usize) -> Result<(Namespace, Process, String)> {
    let netns = cluster.lab.task(label)?;
    let server = echo_server(&netns, 90)?;
    let path = netns.path().to_string_lossy().into_owned();
    let row = cluster.json(node, &["attach", "inner", "--netns", &path])?;
    let address = row["endpoints"][0][1]
        .as_str()
        .context("no address")?
        .to_owned();
    Ok((netns, server, address))
}

on_both_planes! {
    an_agent_that_is_killed_ends_its_own_relaying_and_nothing_else,
    an_agent_remembers_over_its_restart,
    a_service_outlives_the_node_that_declared_it,
}

fn an_agent_that_is_killed_ends_its_own_relaying_and_nothing_else(plane: Plane) -> Result<()> {
    let mut cluster = Cluster::start("kill9", Options::nodes(3).plane(plane))?;
    cluster.apply(0, STACK)?;
    let task = cluster.whoami("a2", 1, "web")?;
    let _echo = echo_server(&task.netns, 90)?;
    cluster.wait_served("web", 1)?;
    let guests = (0..3)
        .map(|node| guest(&cluster, &format!("g{}", node + 1), node))
        .collect::<Result<Vec<_>>>()?;
    cluster.wait_for(2, "three guests", &["tasks"], |all| rows(all).count() == 4)?;

    let published_by =
        |node: usize| PacedStream::start(&cluster.client, cluster.node(node).at(9000));
    let through_killed = published_by(0)?;
    let overlay = |from: usize, to: usize| -> Result<PacedStream> {
        PacedStream::start(&guests[from].0, format!("{}:90", guests[to].2).parse()?)
    };
    // Out of the node whose agent is killed, into it, between two others, and by another one's published port.
    let mut streams = vec![
        overlay(0, 1)?,
        overlay(2, 0)?,
        overlay(1, 2)?,
        published_by(2)?,
    ];

    cluster.kill_agent(0)?;
    match plane {
        Plane::Relay => drop(through_killed.broken_within(Duration::from_secs(2))?),
        Plane::Ebpf => streams.insert(0, through_killed),
    }
    let go_on = |when: &str| {
        // Well before the others take the node for down, and refuse its tunnel's packets.
        let each = |stream: &PacedStream| stream.goes_on(20);
        streams
            .iter()
            .try_for_each(each)
            .with_context(|| when.to_owned())
    };
    go_on("while n1 has no agent")?;
    cluster.start_agent(0)?;
    cluster.wait_ready()?;
    let seen = cluster.answers(cluster.node(0).at(8080), Protocol::Tcp, 3)?;
    ensure!(seen == each(&["a2"], 3), "n1 after the restart: {seen:?}");

    // The other end too; n3 has its backend there.
    cluster.kill_agent(1)?;
    go_on("while n2 has no agent")?;
    cluster.start_agent(1)?;
    cluster.wait_ready()?;
    cluster.wait_for(0, "three guests", &["tasks"], |all| rows(all).count() == 4)?;

    go_on("at the end")?;
    for stream in streams {
        let met = stream
            .stop()
            .context("ended with an agent that did not carry it")?;
        ensure!(met.slowest < STALL, "stood still: {met:?}");
    }
    Ok(())
}

fn an_agent_remembers_over_its_restart(plane: Plane) -> Result<()> {
    let mut cluster = Cluster::start("state", Options::nodes(3).plane(plane))?;
    cluster.apply(0, STACK)?;
    let tasks: Vec<Task> = [("a1", 0), ("a2", 1), ("b2", 1)]
        .into_iter()
        .map(|(label, node)| cluster.whoami(label, node, "web"))
        .collect::<Result<_>>()?;
    let _guest = guest(&cluster, "g1", 0)?;
    let _side = cluster.whoami("s3", 2, "side")?;
    cluster.wait_served("web", 3)?;
    cluster.cli(1, &["node", "drain"])?;
    cluster.wait_served("web", 1)?;
    // All at once, so that no one can learn from anyone what was forgotten.
    let state = |cluster: &Cluster| -> Result<Vec<Value>> {
        let all = [["networks"], ["services"], ["tasks"]];
        all.iter().map(|args| cluster.json(0, args)).collect()
    };
    let before = state(&cluster)?;
    for node in 0..3 {
        cluster.kill_agent(node)?;
    }
    for node in 0..3 {
        cluster.start_agent(node)?;
    }
    cluster.wait_ready()?;
    cluster.wait_served("web", 1)?;
    for (before, args) in before.iter().zip(["networks", "services", "tasks"]) {
        cluster.wait_for(0, "what was before", &[args], |now| now == before)?;
    }
    let nodes = cluster.json(0, &["nodes"])?;
    let second = rows(&nodes)
        .find(|row| row["name"] == "n2")
        .context("no n2")?;
    ensure!(second["state"] == "draining", "{second:#}");
    for node in 0..3 {
        let seen = cluster.answers(cluster.node(node).at(8080), Protocol::Tcp, 3)?;
        ensure!(seen == each(&["a1"], 3), "n{}: {seen:?}", node + 1);
    }
    cluster.cli(1, &["node", "activate"])?;
    cluster.wait_served("web", 3)?;
    let seen = cluster.answers(cluster.node(2).at(8080), Protocol::Tcp, 6)?;
    ensure!(seen == each(&["a1", "a2", "b2"], 2), "{seen:?}");
    drop(tasks);
    Ok(())
}

fn a_service_outlives_the_node_that_declared_it(plane: Plane) -> Result<()> {
    let mut cluster = Cluster::start("outlive", Options::nodes(3).plane(plane))?;
    cluster.apply(0, STACK)?;
    let _task = cluster.whoami("a2", 1, "web")?;
    cluster.wait_served("web", 1)?;
    cluster.kill_agent(0)?;
    cluster.lab.cut(cluster.node(0))?;
    for node in [1, 2] {
        cluster.wait_for(node, "n1 is down", &["nodes"], |all| {
            rows(all).any(|row| row["name"] == "n1" && row["membership"] == "down")
        })?;
        let services = cluster.json(node, &["services"])?;
        let web = rows(&services)
            .find(|row| row["name"] == "web")
            .context("no web")?;
        ensure!(
            web["problems"].as_array().is_some_and(Vec::is_empty),
            "{web:#}"
        );
        let seen = cluster.answers(cluster.node(node).at(8080), Protocol::Tcp, 3)?;
        ensure!(seen == each(&["a2"], 3), "n{}: {seen:?}", node + 1);
    }
    // It is theirs now: an agent that starts afresh learns it, and an update counts.
    cluster.kill_agent(2)?;
    std::fs::remove_dir_all(cluster.file(2, "state"))?;
    cluster.start_agent(2)?;
    cluster.wait_node_ready(2)?;
    cluster.apply(2, "services:\n  web:\n    ports: ['8090:80']\n")?;
    for node in [1, 2] {
        cluster.wait_for(node, "the update", &["services"], |all| {
            rows(all).any(|row| row["name"] == "web" && row["ports"][0] == "8090:80/tcp")
        })?;
        cluster.answered_by(cluster.node(node).at(8090), Protocol::Tcp, "a2")?;
        let seen = cluster.answers(cluster.node(node).at(8090), Protocol::Tcp, 3)?;
        ensure!(seen == each(&["a2"], 3), "n{}: {seen:?}", node + 1);
    }
    Ok(())
}
