//! The other verbs of a Swarm's services and nodes: ports, modes, labels.

use std::time::Duration;

use anyhow::{Result, ensure};
use portolan_e2e::{Cluster, Plane, answers::refused, on_both_planes};
use portolan_testbed::{Protocol, wait_until};

use crate::{
    answered::{self, by_all_nodes, by_node},
    swarm,
};

on_both_planes! {
    ports_are_added_and_removed,
    all_kinds_of_services_are_served,
}

/// How long Portolan may take to follow.
const FOLLOWED: Duration = Duration::from_secs(1);

fn ports_are_added_and_removed(plane: Plane) -> Result<()> {
    let cluster = swarm("ports", plane)?;
    cluster.docker(
        0,
        "service create -d --name web --replicas 2 -p 8080:80 web:blue",
    )?;
    cluster.wait_served("web", 2)?;
    by_all_nodes(&cluster, 8080, 2)?;

    let udp = "published=8081,target=80,protocol=udp";
    cluster.docker(0, &format!("service update -d --publish-add {udp} web"))?;
    for node in 0..3 {
        let at = cluster.node(node).at(8081);
        wait_until(FOLLOWED, format!("{at}/udp answers"), || {
            cluster.ask(at, Protocol::Udp).map(Some)
        })?;
    }
    cluster.wait_served("web", 2)?;
    for node in 0..3 {
        by_node(&cluster, node, 8081, Protocol::Udp, 2)?;
        by_node(&cluster, node, 8080, Protocol::Tcp, 2)?;
    }
    cluster.docker(0, "service update -d --publish-rm 80/tcp web")?;
    for node in 0..3 {
        refused(&cluster.client, cluster.node(node).at(8080))?;
        by_node(&cluster, node, 8081, Protocol::Udp, 2)?;
    }
    // A port that was there before can be there again.
    cluster.docker(0, "service update -d --publish-add 8080:80 web")?;
    cluster.wait_served("web", 2)?;
    by_all_nodes(&cluster, 8080, 2)
}

fn all_kinds_of_services_are_served(plane: Plane) -> Result<()> {
    let cluster = swarm("kinds", plane)?;
    cluster.docker(0, "node update --label-add zone=a n2")?;
    cluster.docker(0, "node update --label-add zone=a n3")?;
    cluster.docker(
        0,
        "service create -d --name zoned --mode global --constraint node.labels.zone==a -p 8081:80 web:blue",
    )?;
    cluster.docker(
        0,
        "service create -d --name hosted --mode global --publish mode=host,published=8082,target=80 web:blue",
    )?;
    cluster.docker(
        0,
        "service create -d --name questions --replicas 2 -p 8083:80/udp web:blue",
    )?;
    // Docker itself publishes no ports of such a service but in host mode.
    cluster.docker(
        0,
        "service create -d --name robin --replicas 2 --endpoint-mode dnsrr \
         --label portolan.publish=8084:80/tcp web:blue",
    )?;
    for (service, port, protocol) in [
        ("zoned", 8081, Protocol::Tcp),
        ("questions", 8083, Protocol::Udp),
        ("robin", 8084, Protocol::Tcp),
    ] {
        cluster.wait_served(service, 2)?;
        for node in 0..3 {
            by_node(&cluster, node, port, protocol, 2)?;
        }
    }
    left_to_docker(&cluster)?;

    cluster.docker(0, "node update --label-rm zone n3")?;
    cluster.wait_served("zoned", 1)?;
    by_all_nodes(&cluster, 8081, 1)?;
    cluster.docker(0, "node update --label-add zone=a n1")?;
    cluster.wait_served("zoned", 2)?;
    by_all_nodes(&cluster, 8081, 2)
}

/// That a port in host mode is answered by Docker, with its own node's task, and shown by Portolan.
fn left_to_docker(cluster: &Cluster) -> Result<()> {
    for node in 0..3 {
        let at = cluster.node(node).at(8082).to_string();
        wait_until(answered::DOCKER, format!("{at} answers"), || {
            let page = answered::page(&cluster.client, &at)?;
            ensure!(page == "blue", "{page}");
            Ok(Some(()))
        })?;
        let status = cluster.json(node, &["status"])?;
        ensure!(
            !status.to_string().contains("8082"),
            "Portolan has a part in it: {status:#}"
        );
    }
    // Managers know of it, and show it.
    cluster.wait_for(0, "the port in host mode", &["services"], |rows| {
        let mut rows = rows.as_array().into_iter().flatten();
        rows.any(|row| {
            row["name"] == "hosted"
                && row["ports"][0] == "8082:80/tcp (host, by Docker)"
                && row["problems"].as_array().is_some_and(Vec::is_empty)
        })
    })?;
    Ok(())
}
