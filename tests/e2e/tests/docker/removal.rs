//! What an agent has made on a node with Docker, it takes away again.

use std::time::Duration;

use anyhow::{Result, ensure};
use portolan_e2e::{
    Bpf, Cluster, Machines, Options, Plane, answers::refused, kernel, on_both_planes,
};
use portolan_testbed::{output_within, wait_until};

use crate::answered::{DOCKER, by_all_nodes};

on_both_planes! {
    nothing_is_left_on_nodes_and_in_containers,
}

fn nothing_is_left_on_nodes_and_in_containers(plane: Plane) -> Result<()> {
    let options = Options::nodes(2).on(Machines::Swarm).plane(plane);
    let mut cluster = Cluster::prepare("dt-clean", options)?;
    cluster.import_images()?;
    cluster.docker(
        0,
        "service create -d --name web --mode global -p 8080:80 web:blue",
    )?;
    let containers = (0..2).map(|node| {
        wait_until(DOCKER, "the task runs", || {
            let id = cluster.docker(node, "ps -q")?;
            Ok((!id.is_empty()).then_some(id))
        })
    });
    let containers = containers.collect::<Result<Vec<_>>>()?;
    let before = held(&cluster, &containers)?;

    cluster.start_agent(0)?;
    cluster.start_agent(1)?;
    cluster.wait_ready()?;
    cluster.wait_served("web", 2)?;
    by_all_nodes(&cluster, 8080, 2)?;
    let with = held(&cluster, &containers)?;
    for (name, with) in &with {
        let same = before
            .iter()
            .any(|before| before == &(name.clone(), with.clone()));
        ensure!(!same, "{name}: there was nothing to clean");
    }

    let mut loaded = Vec::new();
    for node in 0..2 {
        let bpf = Bpf::of(cluster.agent(node)?.pid())?;
        ensure!(bpf.is_empty() == (plane == Plane::Relay), "{bpf:?}");
        loaded.extend(bpf);
    }
    for node in 0..2 {
        cluster.cli(node, &["leave", "--clean"])?;
        cluster.agent(node)?.wait(Duration::from_secs(10))?;
    }
    // Programs on links and on the cgroups of the machine, which other tests have theirs on too.
    wait_until(DOCKER, "its programs and maps are gone", || {
        for object in &loaded {
            ensure!(!object.is_loaded()?, "{object:?} is there");
        }
        Ok(Some(()))
    })?;
    for ((name, before), (_, after)) in before.iter().zip(&held(&cluster, &containers)?) {
        for (before, after) in before.iter().zip(after) {
            ensure!(
                before == after,
                "{name}: before:\n{before}\nafter:\n{after}"
            );
        }
    }
    for node in 0..2 {
        refused(&cluster.client, cluster.node(node).at(8080))?;
        for file in ["state", "agent.sock", "bpf"] {
            let file = cluster.file(node, file);
            // With the engine's mounts, which are the agent's.
            let mut list = cluster.engine(node)?.command("ls");
            let listed = output_within(list.arg(&file), DOCKER)?;
            ensure!(
                !listed.status.success(),
                "{} is there: {}",
                file.display(),
                listed.stdout
            );
        }
    }
    Ok(())
}

/// What the kernel holds for each node and each container.
fn held(cluster: &Cluster, containers: &[String]) -> Result<Vec<(String, Vec<String>)>> {
    let mut all = Vec::new();
    for (node, container) in containers.iter().enumerate() {
        let label = cluster.node(node).label();
        all.push((label.to_owned(), kernel(cluster.node(node))?));
        let questions = ["ip link", "ip address", "ip route", "ip rule"];
        let inside =
            questions.map(|words| cluster.docker(node, &format!("exec {container} {words}")));
        let inside = inside.into_iter().collect::<Result<Vec<_>>>()?;
        all.push((format!("the container on {label}"), inside));
    }
    Ok(all)
}
