//! `docker stack deploy`, and networks that are Docker's own.

use std::fs;

use anyhow::{Context, Result, ensure};
use portolan_e2e::{Cluster, Plane, answers::refused, on_both_planes};
use portolan_testbed::{http_get, wait_until};

use crate::{
    answered::{DOCKER, by_all_nodes, page},
    swarm,
};

on_both_planes! {
    a_stack_counts_its_hits,
}

/// Redis is found by Docker's own names. Without IPVS only those answer that lead to tasks.
const SHOP: &str = "
version: '3.8'
services:
  web:
    image: web:blue
    ports: ['8080:80']
    networks: [back]
    deploy: {replicas: 2}
  redis:
    image: redis:7
    networks: [back]
    deploy: {endpoint_mode: dnsrr}
networks:
  back:
    attachable: true
    ipam: {config: [{subnet: 10.98.7.0/24}]}
";

fn a_stack_counts_its_hits(plane: Plane) -> Result<()> {
    let cluster = swarm("stack", plane)?;
    let file = cluster.file(0, "shop.yml");
    fs::write(&file, SHOP)?;
    let deploy = format!("stack deploy -c {} shop", file.display());
    cluster.docker(0, &deploy)?;
    cluster.wait_served("shop_web", 2)?;
    let mut counted = wait_until(DOCKER, "redis counts", || hits(&cluster, 0).map(Some))?;
    for node in [0, 1, 2, 0, 1, 2] {
        let next = hits(&cluster, node)?;
        ensure!(next == counted + 1, "n{}: {next} after {counted}", node + 1);
        counted = next;
    }
    let services = cluster.json(2, &["services"])?;
    ensure!(
        services[0]["name"] == "shop_web" && services[0]["stack"] == "shop",
        "{services:#}"
    );

    // A container of no service, on the stack's network and published by its labels.
    cluster.docker(
        1,
        "run -d --name side --network shop_back --label portolan.publish=8085:80 web:green",
    )?;
    cluster.wait_served("side", 1)?;
    by_all_nodes(&cluster, 8085, 1)?;
    let inside = cluster.docker(1, "exec side wget -qO- http://tasks.web/page")?;
    ensure!(inside.starts_with("page: blue"), "{inside}");

    // Deployed once more it is updated, and what is not in it any more goes.
    fs::write(&file, SHOP.replace("web:blue", "web:green"))?;
    cluster.docker(0, &deploy)?;
    wait_until(DOCKER, "the page changes", || {
        let pages = (0..6).map(|turn| {
            let at = cluster.node(turn % 3).at(8080).to_string();
            page(&cluster.client, &at)
        });
        let pages = pages.collect::<Result<Vec<_>>>()?;
        ensure!(pages.iter().all(|page| page == "green"), "{pages:?}");
        Ok(Some(()))
    })?;
    cluster.docker(1, "rm -f side")?;
    cluster.docker(0, "stack rm shop")?;
    for node in 0..3 {
        refused(&cluster.client, cluster.node(node).at(8080))?;
        refused(&cluster.client, cluster.node(node).at(8085))?;
    }
    Ok(())
}

/// Makes a hit on a node, and gives how many there were.
fn hits(cluster: &Cluster, node: usize) -> Result<u64> {
    let answer = http_get(
        &cluster.client,
        &format!("{}/hits", cluster.node(node).at(8080)),
    )?;
    let count = answer.first_line().strip_prefix("hits: ");
    let count = count.with_context(|| format!("{answer:?}"))?;
    Ok(count.parse()?)
}
