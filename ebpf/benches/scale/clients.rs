//! What clients notice: connections per second through a node whose maps are full, and through one whose table of flows
//! is full too, so that each new flow pushes out an old one. A task on another node answers.

use std::{
    net::UdpSocket,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;
use portolan_model::Protocol;
use portolan_plane::{Actual, DataPlane, Op, Plan};
use portolan_testbed::{Load, LoadOptions, Node};

use crate::{
    cluster::{Cluster, spec},
    reach::whoami,
    world::{SERVICES, World},
};

const TASK: &str = "10.208.2.2";
const ROUNDS: usize = 4;
const SPAN: Duration = Duration::from_secs(2);

pub(crate) fn measure() -> Result<()> {
    let cluster = Cluster::new(2)?;
    let task = cluster.task(2, "t1", TASK)?;
    let _nginx = whoami(&task)?;
    cluster.publish(8080, Protocol::Tcp, &[(2, TASK)]);
    cluster.publish(8081, Protocol::Udp, &[(2, TASK)]);
    let client = cluster.lab.client("c1")?;
    let all = Plan::new(&World::new(SERVICES).snapshot(), &Actual::new());
    let none = Plan {
        ops: all
            .ops
            .iter()
            .map(|op| Op::Remove(op.frontend().clone()))
            .collect(),
    };
    let (all, none) = (Arc::new(all), Arc::new(none));
    println!("| connections/s, 4 clients, a task on another node | each round |\n|---|---|");
    let mut rates = [const { Vec::new() }; 2];
    for _ in 0..ROUNDS {
        for (plan, rates) in [&none, &all].into_iter().zip(&mut rates) {
            let plan = Arc::clone(plan);
            cluster.threads[0].run(move |inside| {
                let failures = inside.plane().apply(&plan);
                assert!(failures.is_empty(), "{failures:?}");
            });
            rates.push(rate(&client, &cluster)?);
        }
    }
    let [few, many] = rates;
    println!("| 2 frontends | {few:.0?} |");
    println!("| {SERVICES} services more | {many:.0?} |");
    let mut rates = Vec::new();
    for _ in 0..ROUNDS {
        fill(&client, &cluster)?;
        rates.push(rate(&client, &cluster)?);
    }
    println!("| and the table of 65,536 flows full | {rates:.0?} |");
    Ok(())
}

/// Answers per second.
fn rate(client: &Node, cluster: &Cluster) -> Result<f64> {
    let target = cluster.nodes[0].at(8080).to_string();
    let load = Load::start(client, &target, LoadOptions::workers(4))?;
    let begun = Instant::now();
    #[expect(
        clippy::disallowed_methods,
        reason = "the time is what is measured over"
    )]
    thread::sleep(SPAN);
    let took = begun.elapsed();
    let report = load.stop()?;
    assert!(report.failures.is_empty(), "{report}");
    Ok((report.requests - report.failures.len()) as f64 / took.as_secs_f64())
}

/// More flows than the table holds: a datagram from each of 60,000 ports.
fn fill(client: &Node, cluster: &Cluster) -> Result<()> {
    let to = cluster.nodes[0].at(8081);
    client.enter(|| {
        for port in 4_000..64_000 {
            // One that a connection has just left is not needed.
            if let Ok(socket) = UdpSocket::bind(("0.0.0.0", port)) {
                socket.send_to(b"x", to)?;
            }
        }
        Ok(())
    })
}
