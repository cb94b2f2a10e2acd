//! Engines and nodes that are away for a while.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use portolan_e2e::{Machines, Plane, on_both_planes};
use portolan_testbed::{output_within, wait_until};
use serde_json::Value;

use crate::{
    answered::{DOCKER, Loads, by_all_nodes},
    start, swarm,
};

on_both_planes! {
    an_engine_is_started_again_under_load,
    a_worker_is_cut_off_under_load,
    a_worker_leaves_and_joins_again,
}

fn an_engine_is_started_again_under_load(plane: Plane) -> Result<()> {
    let mut cluster = swarm("again", plane)?;
    cluster.docker(
        0,
        "service create -d --name web --mode global -p 8080:80 --restart-delay 300ms web:blue",
    )?;
    cluster.wait_served("web", 3)?;
    for node in [2, 1, 0] {
        let loads = Loads::start(&cluster, &[0, 1, 2], 8080, 50)?;
        loads.answered(20)?;
        cluster.engine_mut(node)?.stop()?;
        cluster.wait_served("web", 2)?;
        cluster.engine_mut(node)?.start_again()?;
        cluster.wait_served("web", 3)?;
        by_all_nodes(&cluster, 8080, 3)?;
        loads.none_failed()?;
    }
    Ok(())
}

#[test]
fn a_locked_manager_serves_again_once_it_is_unlocked() -> Result<()> {
    let mut cluster = start("lock", 1, Machines::Swarm, Plane::Relay)?;
    cluster.docker(0, "service create -d --name web -p 8080:80 web:blue")?;
    cluster.wait_served("web", 1)?;
    cluster.docker(0, "swarm update --autolock")?;
    let key = cluster.docker(0, "swarm unlock-key -q")?;
    let engine = cluster.engine_mut(0)?;
    engine.stop()?;
    engine.start_again()?;
    cluster.wait_for(0, "the lock", &["status"], |status| {
        status["problems"].to_string().contains("swarm unlock")
    })?;
    let none = |rows: &Value| rows.as_array().is_some_and(Vec::is_empty);
    cluster.wait_for(0, "no task", &["tasks"], none)?;
    let services = cluster.json(0, &["services"])?;
    ensure!(services.to_string().contains("8080"), "{services}");

    let mut unlock = cluster.engine(0)?.command("sh");
    unlock.args(["-c", "echo \"$0\" | docker swarm unlock", &key]);
    output_within(&mut unlock, DOCKER)?.success()?;
    cluster.wait_served("web", 1)?;
    by_all_nodes(&cluster, 8080, 1)
}

fn a_worker_is_cut_off_under_load(plane: Plane) -> Result<()> {
    let cluster = swarm("cut", plane)?;
    cluster.docker(
        0,
        "service create -d --name web --mode global -p 8080:80 --restart-delay 300ms web:blue",
    )?;
    cluster.wait_served("web", 3)?;
    let loads = Loads::start(&cluster, &[0, 1], 8080, 50)?;
    loads.answered(20)?;
    cluster.lab.cut(cluster.node(2))?;
    let (begin, time) = (Instant::now(), loads.elapsed());
    wait_until(DOCKER, "the cut has lasted", || {
        Ok((begin.elapsed() > Duration::from_secs(8)).then_some(()))
    })?;
    loads.answered(20)?;
    loads.none_failed_from(time + Duration::from_secs(5))?;
    cluster.lab.heal(cluster.node(2))?;
    cluster.wait_served("web", 3)?;
    by_all_nodes(&cluster, 8080, 3)
}

fn a_worker_leaves_and_joins_again(plane: Plane) -> Result<()> {
    let cluster = swarm("leave", plane)?;
    // So that the Swarm does not take long to call a node down.
    cluster.docker(0, "swarm update --dispatcher-heartbeat 2s")?;
    cluster.docker(
        0,
        "service create -d --name web --replicas 3 -p 8080:80 web:blue",
    )?;
    cluster.wait_served("web", 3)?;
    let loads = Loads::start(&cluster, &[0, 1, 2], 8080, 50)?;
    loads.answered(20)?;
    // An engine that leaves kills its tasks without a word before.
    cluster.docker(2, "swarm leave")?;
    let killed = loads.elapsed() + Duration::from_millis(300);
    wait_until(DOCKER, "the Swarm calls n3 down", || {
        let nodes = cluster.docker(0, "node ls --format {{.Hostname}}:{{.Status}}")?;
        ensure!(nodes.contains("n3:Down"), "{nodes}");
        Ok(Some(()))
    })?;
    cluster.wait_served("web", 3)?;
    by_all_nodes(&cluster, 8080, 3)?;
    cluster.docker(0, "node rm n3")?;
    let token = cluster.docker(0, "swarm join-token -q worker")?;
    let manager = cluster.node(0).ipv4();
    cluster.docker(2, &format!("swarm join --token {token} {manager}:2377"))?;
    cluster.docker(0, "service scale -d web=6")?;
    cluster.wait_served("web", 6)?;
    by_all_nodes(&cluster, 8080, 6)?;
    ensure!(
        !cluster.docker(2, "ps -q")?.is_empty(),
        "n3 has no task again"
    );

    // Whoever manages: the service is the same.
    cluster.docker(0, "node promote n2")?;
    wait_until(DOCKER, "n2 manages", || {
        cluster.docker(1, "service ls -q").map(Some)
    })?;
    cluster.docker(1, "service scale -d web=4")?;
    cluster.wait_served("web", 4)?;
    by_all_nodes(&cluster, 8080, 4)?;
    cluster.docker(0, "node demote n2")?;
    cluster.docker(0, "service scale -d web=2")?;
    cluster.wait_served("web", 2)?;
    by_all_nodes(&cluster, 8080, 2)?;
    loads.none_failed_from(killed)?;
    Ok(())
}
