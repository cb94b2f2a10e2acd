//! Docker and Swarm, with real engines and the `docker` command line as its users type it.

#![expect(
    clippy::indexing_slicing,
    reason = "what is not there fails the test, as it has to"
)]

mod answered;
mod outages;
mod own_mesh;
mod plain;
mod removal;
mod stacks;
mod tasks_end;
mod timing;
mod updates;
mod verbs;
mod web;

use anyhow::Result;
use portolan_e2e::{Cluster, Machines, Options, Plane};

/// Three engines that are a Swarm, with the images of the tests and an agent on each.
fn swarm(prefix: &str, plane: Plane) -> Result<Cluster> {
    start(prefix, 3, Machines::Swarm, plane)
}

fn start(prefix: &str, nodes: usize, machines: Machines, plane: Plane) -> Result<Cluster> {
    let options = Options::nodes(nodes).on(machines).plane(plane);
    let cluster = Cluster::start(&format!("dt-{prefix}"), options)?;
    cluster.import_images()?;
    Ok(cluster)
}
