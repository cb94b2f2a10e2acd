//! A node on which Swarm's own mesh lives: dockerd listens on the published ports. This kernel has no IPVS, so a program
//! of its name stands in for it.

use std::os::unix::fs::symlink;

use anyhow::{Context, Result, ensure};
use portolan_e2e::{Cluster, Machines, PATIENCE, Plane, on_both_planes};
use portolan_testbed::{Process, Protocol, binary, wait_until};
use serde_json::Value;

use crate::{answered, start};

on_both_planes! {
    the_fast_path_goes_before_swarms_own_mesh_and_before_nobody_else,
}

fn the_fast_path_goes_before_swarms_own_mesh_and_before_nobody_else(plane: Plane) -> Result<()> {
    let cluster = start("mesh", 1, Machines::Swarm, plane)?;
    let _docker = holder(&cluster, "dockerd", 8080)?;
    let _other = holder(&cluster, "nginx", 8081)?;
    cluster.docker(
        0,
        "service create -d --name web -p 8080:80 -p 8081:80 -p 8082:80 web:blue",
    )?;
    cluster.wait_healthy(0, "web", 1)?;
    answered::by_node(&cluster, 0, 8082, Protocol::Tcp, 1)?;

    let (fast, other) = match plane {
        Plane::Ebpf => ("ebpf", "relay"),
        Plane::Relay => ("docker", "relay"),
    };
    wait_until(PATIENCE, "it is said who has which port", || {
        let (dockers, others) = (port(&cluster, 8080)?, port(&cluster, 8081)?);
        ensure!(
            dockers["plane"] == fast && dockers["problem"].is_null(),
            "{dockers}"
        );
        let said = dockers["plane_reason"].as_str().unwrap_or_default();
        ensure!(said.contains("Swarm's own mesh"), "{dockers}");
        let problem = others["problem"].as_str().unwrap_or_default();
        ensure!(
            others["plane"] == other && problem.contains("another process"),
            "{others}"
        );
        Ok(Some(()))
    })?;
    let answers = |number| cluster.ask(cluster.node(0).at(number), Protocol::Tcp);
    ensure!(
        answers(8081)?.contains("nginx"),
        "the port was taken from its holder"
    );
    let by_docker = answers(8080)?.contains("dockerd");
    ensure!(
        by_docker == (plane == Plane::Relay),
        "by docker: {by_docker}"
    );
    Ok(())
}

/// A program of a name that has a port, and says its name there.
fn holder(cluster: &Cluster, name: &str, port: u16) -> Result<Process> {
    let program = cluster.file(0, name);
    symlink(binary()?, &program)?;
    let mut command = cluster.node(0).command(&program);
    command.args(["whoami", "--http", &port.to_string(), "--name", name]);
    cluster.node(0).spawn(&mut command)?.listening(port)
}

/// What `portolan status` says of a port.
fn port(cluster: &Cluster, number: u16) -> Result<Value> {
    let status = cluster.json(0, &["status"])?;
    let rows = status["ports"].as_array().context("no ports")?;
    let row = rows
        .iter()
        .find(|row| row["frontend"] == format!("*:{number}/tcp"));
    row.cloned()
        .with_context(|| format!("no {number}: {rows:?}"))
}
