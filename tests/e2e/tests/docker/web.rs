//! A published service, from its creation to its removal.

use anyhow::{Context, Result, ensure};
use portolan_e2e::{Plane, answers::refused, on_both_planes};
use portolan_testbed::Protocol;

use crate::{answered, swarm};

on_both_planes! {
    a_published_service_answers_on_every_node,
}

fn a_published_service_answers_on_every_node(plane: Plane) -> Result<()> {
    let cluster = swarm("web", plane)?;
    // As in the tutorials: it waits until the tasks have run for five seconds.
    cluster.docker(
        0,
        "service create --name web --replicas 2 -p 8080:80 web:blue",
    )?;
    cluster.wait_served("web", 2)?;
    answered::by_all_nodes(&cluster, 8080, 2)?;
    let mut running = (0..3).map(|node| cluster.docker(node, "ps -q"));
    ensure!(
        running.any(|ids| ids.is_ok_and(|ids| ids.is_empty())),
        "each node has a task"
    );
    // And for who is on the node.
    for node in 0..3 {
        let local = "127.0.0.1:8080".parse()?;
        let seen = cluster.answers_from(cluster.node(node), local, Protocol::Tcp, 4)?;
        ensure!(seen.len() == 2, "n{}: {seen:?}", node + 1);
    }

    for tasks in [6, 3] {
        cluster.docker(0, &format!("service scale -d web={tasks}"))?;
        cluster.wait_served("web", tasks)?;
        answered::by_all_nodes(&cluster, 8080, tasks)?;
    }

    // The names, slots and nodes are those of the Swarm.
    let format = "--filter desired-state=running --format {{.Name}}@{{.Node}}";
    let by_docker = cluster.docker(0, &format!("service ps web {format}"))?;
    let mut by_docker: Vec<&str> = by_docker.lines().collect();
    by_docker.sort_unstable();
    for node in 0..3 {
        let rows = cluster.json(node, &["tasks"])?;
        let rows = rows.as_array().context("no rows")?;
        let mut shown: Vec<String> = rows
            .iter()
            .filter(|row| row["state"] == "healthy")
            .map(|row| format!("{}@{}", row["name"], row["node"]).replace('"', ""))
            .collect();
        shown.sort_unstable();
        ensure!(shown == by_docker, "{shown:?}, and by docker {by_docker:?}");
        let services = cluster.json(node, &["services"])?;
        ensure!(
            services[0]["name"] == "web"
                && services[0]["ports"][0] == "8080:80/tcp"
                && services[0]["problems"]
                    .as_array()
                    .is_some_and(Vec::is_empty),
            "{services:#}"
        );
    }

    cluster.docker(0, "service rm web")?;
    for node in 0..3 {
        refused(&cluster.client, cluster.node(node).at(8080))?;
    }
    for node in 0..3 {
        cluster.wait_for(node, "no task", &["tasks"], |rows| {
            rows.as_array().is_some_and(Vec::is_empty)
        })?;
    }
    Ok(())
}
