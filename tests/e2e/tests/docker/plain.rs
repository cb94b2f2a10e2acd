//! Engines without a Swarm: services that the labels of containers describe.

use anyhow::{Result, ensure};
use portolan_e2e::{Cluster, Machines, Plane, on_both_planes};
use serde_json::Value;

use crate::{answered::by_all_nodes, start};

on_both_planes! {
    labels_publish_on_every_node,
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
    shown(&cluster, "wrong", "80800")?;
    cluster.docker(
        1,
        "run -d --name second --label portolan.publish=8080:80 web:green",
    )?;
    shown(
        &cluster,
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

/// Waits until `portolan services` shows a problem of a service with these words.
fn shown(cluster: &Cluster, service: &str, words: &str) -> Result<Value> {
    let node = 0;
    let rows = cluster.wait_for(
        node,
        &format!("{service}: {words}"),
        &["services"],
        |rows| {
            let mut rows = rows.as_array().into_iter().flatten();
            rows.any(|row| row["name"] == service && row["problems"].to_string().contains(words))
        },
    )?;
    ensure!(!rows.is_null());
    Ok(rows)
}
