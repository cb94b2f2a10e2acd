//! Engines without a Swarm: services that the labels of containers describe.

use std::{
    fs::{self, Permissions},
    os::unix::fs::{PermissionsExt, chown},
};

use anyhow::{Result, ensure};
use portolan_e2e::{Cluster, Machines, Options, Plane, on_both_planes};
use portolan_testbed::binary;
use serde_json::Value;

use crate::{
    answered::{Loads, by_all_nodes},
    start,
};

on_both_planes! {
    labels_publish_on_every_node,
    containers_come_and_go_under_load,
    a_container_joins_and_leaves_networks_under_load,
}

fn labels_publish_on_every_node(plane: Plane) -> Result<()> {
    let cluster = start("plain", 2, Machines::Engines, plane)?;
    let labels = "--label portolan.service=web --label portolan.publish=8080:80/tcp";
    for node in 0..2 {
        cluster.docker(node, &format!("run -d --name web {labels} web:blue"))?;
    }
    cluster.wait_served("web", 2)?;
    by_all_nodes(&cluster, 8080, 2)?;

    // What is wrong is shown where it is wrong, and breaks nothing else.
    cluster.docker(
        0,
        "run -d --name wrong --label portolan.publish=80800:80 web:blue",
    )?;
    shown(&cluster, 0, "wrong", "80800")?;
    cluster.docker(
        1,
        "run -d --name second --label portolan.publish=8080:80 web:green",
    )?;
    shown(
        &cluster,
        1,
        "second",
        "8080/tcp is already published by service web",
    )?;
    by_all_nodes(&cluster, 8080, 2)?;

    // With the first its port is free for the second.
    for node in 0..2 {
        cluster.docker(node, "rm -f web")?;
    }
    cluster.wait_served("second", 1)?;
    by_all_nodes(&cluster, 8080, 1)
}

fn containers_come_and_go_under_load(plane: Plane) -> Result<()> {
    let cluster = start("come", 2, Machines::Engines, plane)?;
    let labels = "--label portolan.service=web --label portolan.publish=8080:80";
    let checked = "--health-cmd 'test ! -e /ill' --health-interval 300ms --health-retries 1";
    for node in 0..2 {
        let run = format!("run -d --name web {labels} {checked} web:blue");
        cluster.docker(node, &run)?;
    }
    cluster.wait_served("web", 2)?;
    let loads = Loads::start(&cluster, &[0, 1], 8080, 50)?;
    loads.answered(20)?;

    cluster.docker(1, "restart web")?;
    cluster.wait_served("web", 2)?;
    by_all_nodes(&cluster, 8080, 2)?;

    cluster.docker(1, "exec web touch /ill")?;
    let told = |rows: &Value| {
        let mut rows = rows.as_array().into_iter().flatten();
        rows.any(|row| row["state"] == "unhealthy" && row["reason"].is_string())
    };
    cluster.wait_for(0, "why a task gets no request", &["tasks"], told)?;
    cluster.wait_served("web", 1)?;
    by_all_nodes(&cluster, 8080, 1)?;
    cluster.docker(1, "exec web rm /ill")?;
    cluster.wait_served("web", 2)?;

    cluster.docker(1, "stop web")?;
    cluster.wait_served("web", 1)?;
    cluster.docker(1, "start web")?;
    cluster.wait_served("web", 2)?;
    by_all_nodes(&cluster, 8080, 2)?;
    loads.none_failed()?;
    Ok(())
}

fn a_container_joins_and_leaves_networks_under_load(plane: Plane) -> Result<()> {
    let cluster = start("nets", 1, Machines::Engines, plane)?;
    let labels = "--label portolan.service=web --label portolan.publish=8080:80";
    cluster.docker(0, &format!("run -d --name web {labels} web:blue"))?;
    for network in ["front", "back"] {
        cluster.docker(0, &format!("network create {network}"))?;
    }
    cluster.wait_served("web", 1)?;
    let loads = Loads::start(&cluster, &[0], 8080, 50)?;
    loads.answered(20)?;
    for change in [
        "connect front",
        "connect back",
        "disconnect front",
        "connect front",
        "disconnect bridge",
        "disconnect back",
    ] {
        cluster.docker(0, &format!("network {change} web"))?;
        loads.answered(10)?;
    }
    loads.none_failed()?;
    // Docker has its names to itself.
    let links = cluster.docker(0, "exec web ip -o link")?;
    ensure!(links.contains(" pt0"), "{links}");
    Ok(())
}

#[test]
fn an_engine_that_refuses_is_told_with_the_remedy() -> Result<()> {
    let options = Options::nodes(1).on(Machines::Engines);
    let cluster = Cluster::prepare("dt-refuses", options)?;
    let engine = cluster.engine(0)?;
    let socket = engine.socket();
    // Root may open what is another's, but without this capability.
    chown(&socket, Some(65534), Some(65534))?;
    fs::set_permissions(&socket, Permissions::from_mode(0o600))?;
    let mut command = engine.command("setpriv");
    command
        .args(["--bounding-set", "-dac_override,-dac_read_search", "--"])
        .arg(binary()?)
        .args(["agent", "--insecure", "--plane", "relay", "--docker"])
        .arg(&socket)
        .arg("--state-dir")
        .arg(cluster.file(0, "state"))
        .arg("--socket")
        .arg(cluster.file(0, "agent.sock"));
    let _agent = engine.spawn(&mut command)?;
    let status = cluster.wait_for(0, "the refusal", &["status"], |status| {
        status["docker"]["state"] == "down"
    })?;
    let remedy = "permission denied; run the agent as root, or as a member of the group docker";
    let mut problems = status["problems"].as_array().into_iter().flatten();
    ensure!(
        problems.any(|problem| problem.as_str().is_some_and(|p| p.contains(remedy))),
        "{status:#}"
    );
    // All else goes on.
    cluster.apply(0, "services:\n  api:\n    ports: ['8090:80']\n")?;
    let address = cluster.node(0).ipv4().to_string();
    cluster.cli(0, &["task", "add", "api", "--address", &address])?;
    Ok(())
}

/// Waits until `portolan services` on a node shows a problem of a service with these words.
fn shown(cluster: &Cluster, node: usize, service: &str, words: &str) -> Result<()> {
    let what = format!("{service}: {words}");
    cluster.wait_for(node, &what, &["services"], |rows| {
        let mut rows = rows.as_array().into_iter().flatten();
        rows.any(|row| row["name"] == service && row["problems"].to_string().contains(words))
    })?;
    Ok(())
}
