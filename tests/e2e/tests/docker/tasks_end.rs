//! Tasks that are killed, and nodes that are drained, under load.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use portolan_e2e::{Cluster, Plane, on_both_planes};
use portolan_testbed::wait_until;

use crate::{
    answered::{self, DOCKER, Loads},
    swarm,
};

on_both_planes! {
    a_killed_task_is_missed_for_a_moment_only,
    a_drained_node_loses_no_request,
    an_ill_task_gets_no_request,
}

fn a_killed_task_is_missed_for_a_moment_only(plane: Plane) -> Result<()> {
    let cluster = swarm("kill", plane)?;
    cluster.docker(
        0,
        "service create -d --name web --replicas 3 -p 8080:80 --restart-delay 500ms \
         --env START_AFTER_MS=500 web:blue",
    )?;
    cluster.wait_served("web", 3)?;
    let (node, killed) = a_task(&cluster)?;
    let loads = Loads::start(&cluster, &[0, 1, 2], 8080, 100)?;
    loads.answered(50)?;
    cluster.docker(node, &format!("kill {killed}"))?;
    let time = loads.elapsed();
    cluster.wait_served("web", 2)?;
    cluster.wait_served("web", 3)?;
    // The replacement joins.
    answered::by_all_nodes(&cluster, 8080, 3)?;
    loads.answered(50)?;
    let reports = loads.none_failed_from(time + Duration::from_millis(300))?;
    for report in reports {
        ensure!(report.slowest < Duration::from_millis(3200), "{report}");
    }
    Ok(())
}

fn a_drained_node_loses_no_request(plane: Plane) -> Result<()> {
    let cluster = swarm("drain", plane)?;
    cluster.docker(
        0,
        "service create -d --name web --replicas 4 -p 8080:80 web:blue",
    )?;
    cluster.wait_served("web", 4)?;
    let (node, _) = a_task(&cluster)?;
    let name = format!("n{}", node + 1);
    let loads = Loads::start(&cluster, &[0, 1, 2], 8080, 50)?;
    loads.answered(20)?;
    cluster.docker(0, &format!("node update --availability drain {name}"))?;
    wait_until(DOCKER, format!("{name} has no task"), || {
        let left = cluster.docker(node, "ps -q")?;
        ensure!(left.is_empty(), "{left}");
        Ok(Some(()))
    })?;
    cluster.wait_served("web", 4)?;
    answered::by_all_nodes(&cluster, 8080, 4)?;
    cluster.docker(0, &format!("node update --availability active {name}"))?;
    // The Swarm moves no task back by itself.
    cluster.docker(0, "service scale -d web=6")?;
    cluster.wait_served("web", 6)?;
    answered::by_all_nodes(&cluster, 8080, 6)?;
    let back = cluster.docker(node, "ps -q")?;
    ensure!(!back.is_empty(), "no task is on {name} again");
    for report in loads.none_failed()? {
        ensure!(report.slowest < Duration::from_millis(1500), "{report}");
    }
    Ok(())
}

fn an_ill_task_gets_no_request(plane: Plane) -> Result<()> {
    let cluster = swarm("ill", plane)?;
    cluster.docker(
        0,
        "service create -d --name web --replicas 3 -p 8080:80 --health-cmd 'test ! -e /ill' \
         --health-interval 300ms --health-retries 1 --restart-delay 300ms web:blue",
    )?;
    cluster.wait_served("web", 3)?;
    let (node, ill) = a_task(&cluster)?;
    let loads = Loads::start(&cluster, &[0, 1, 2], 8080, 50)?;
    loads.answered(20)?;
    cluster.docker(node, &format!("exec {ill} touch /ill"))?;
    // The Swarm ends it, and starts another.
    wait_until(DOCKER, "the ill task is gone", || {
        let running = cluster.docker(node, "ps -q")?;
        ensure!(!running.contains(&ill), "{running}");
        Ok(Some(()))
    })?;
    cluster.wait_served("web", 3)?;
    answered::by_all_nodes(&cluster, 8080, 3)?;
    loads.none_failed()?;
    Ok(())
}

/// A worker with a task, from 0, and its container.
pub(crate) fn a_task(cluster: &Cluster) -> Result<(usize, String)> {
    let mut tasks = (0..3).rev().map(|node| {
        let ids = cluster.docker(node, "ps -q");
        Some((node, ids.ok()?.lines().next()?.to_owned()))
    });
    tasks
        .find_map(|task| task)
        .context("no node has a container")
}
