//! The first thing that a user does: a service, a task somewhere, and curl against any node.

use anyhow::{Result, ensure};
use portolan_e2e::{Cluster, Options, Plane, on_both_planes};
use portolan_testbed::nginx;

const STACK: &str = "
services:
  web:
    ports: ['8080:80']
";

on_both_planes! {
    a_published_port_answers_on_every_node,
}

fn a_published_port_answers_on_every_node(plane: Plane) -> Result<()> {
    let cluster = Cluster::start("first", Options::nodes(3).plane(plane))?;
    cluster.apply(0, STACK)?;
    let netns = cluster.lab.task("web1")?;
    let _nginx = nginx(&netns, 80, "hello from nginx")?;
    let _task = cluster.add_task(netns, 1, "web")?;
    cluster.wait_served("web", 1)?;
    for node in 0..3 {
        let url = format!("http://{}/", cluster.node(node).at(8080));
        let answer = cluster
            .client
            .run(["curl", "-sS", "--max-time", "5", &url])?;
        ensure!(
            answer.stdout.contains("hello from nginx"),
            "n{}: {}",
            node + 1,
            answer.stdout
        );
    }
    Ok(())
}
