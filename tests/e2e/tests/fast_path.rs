//! The fast path, as a user has it: the task sees the client itself, and nothing is lost when the fast path is.

use anyhow::{Context, Result, ensure};
use portolan_e2e::{Cluster, Options, Plane};

const STACK: &str = "
services:
  web:
    ports: ['8080:80', '8080:80/udp']
";

/// What `portolan whoami` says of the client that it sees.
fn client_of(answer: &str) -> Result<&str> {
    let line = answer
        .lines()
        .find_map(|line| line.strip_prefix("client: "))
        .with_context(|| format!("no client in: {answer}"))?;
    Ok(line.rsplit_once(':').context("no port")?.0)
}

#[test]
fn a_task_on_another_node_sees_the_client_itself() -> Result<()> {
    let mut cluster = Cluster::start("fp", Options::nodes(3).plane(Plane::Ebpf))?;
    cluster.apply(0, STACK)?;
    let _task = cluster.whoami("web1", 1, "web")?;
    cluster.wait_healthy_everywhere("web", 1)?;
    let client = cluster.client.ipv4().to_string();
    for node in 0..3 {
        let url = format!("http://{}/", cluster.node(node).at(8080));
        let answer = cluster
            .client
            .run(["curl", "-sS", "--max-time", "5", &url])?;
        ensure!(
            client_of(&answer.stdout)? == client,
            "n{}: {}\n{:#}",
            node + 1,
            answer.stdout,
            cluster.json(node, &["status"])?
        );
    }
    Ok(())
}
