//! Tasks call services: by virtual addresses, and by the node's published ports.

use std::sync::Arc;

use anyhow::{Result, ensure};
use portolan_ebpf::Surroundings;
use portolan_model::{Protocol, claims};
use portolan_plane::{DataPlane, FrontendAddress, Op, Plan};
use portolan_testbed::http_get;

use crate::{
    cluster::{Cluster, spec},
    reach::whoami,
    transfer::both_ways,
};

const VIP: &str = "10.208.255.1";

impl Cluster {
    /// Serves a virtual address of the ingress network on all nodes, with these tasks.
    fn serve_vip(&self, tasks: &[(usize, &str)]) {
        for n in 1..=self.nodes.len() {
            let mut spec = spec(n, 0, Protocol::Tcp, tasks);
            let network = claims::ingress_network().name;
            spec.frontend.address = FrontendAddress::Vip(network, VIP.parse().unwrap());
            for backend in &mut spec.backends {
                backend.port = 0;
            }
            self.threads[n - 1].run(move |inside| {
                let plan = Plan {
                    ops: vec![Op::Upsert(Arc::new(spec))],
                };
                let failures = inside.plane().apply(&plan);
                assert!(failures.is_empty(), "{failures:?}");
            });
        }
    }
}

#[test]
fn a_task_calls_a_virtual_address_and_is_seen_as_itself() -> Result<()> {
    let cluster = Cluster::new(2)?;
    let caller = cluster.task(1, "caller", "10.208.1.2")?;
    let tasks = [(1, "10.208.1.3"), (2, "10.208.2.2")];
    let near = cluster.task(1, "near", tasks[0].1)?;
    let far = cluster.task(2, "far", tasks[1].1)?;
    let _nginx = [whoami(&near)?, whoami(&far)?];
    cluster.serve_vip(&tasks);
    // The other node needs no fast path for it.
    cluster.threads[1].run(|inside| {
        inside.surroundings = Surroundings::default();
        inside.surround();
    });
    let mut seen = Vec::new();
    for _ in 0..4 {
        seen.push(http_get(&caller, &format!("{VIP}:80"))?.body);
    }
    seen.sort();
    let expected = |task: &str| format!("{task} 10.208.1.2");
    assert_eq!(seen[..2], [expected(tasks[0].1), expected(tasks[0].1)]);
    assert_eq!(seen[2..], [expected(tasks[1].1), expected(tasks[1].1)]);
    ensure!(cluster.counter(1, "new_flow") == 4);
    Ok(())
}

#[test]
fn a_task_calls_a_published_port_of_its_node() -> Result<()> {
    let cluster = Cluster::new(2)?;
    let caller = cluster.task(1, "caller", "10.208.1.2")?;
    let far = cluster.task(2, "far", "10.208.2.2")?;
    let _nginx = whoami(&far)?;
    cluster.publish(8080, Protocol::Tcp, &[(2, "10.208.2.2")]);
    let answer = http_get(&caller, &cluster.nodes[0].at(8080).to_string())?;
    assert_eq!(answer.body, "10.208.2.2 10.208.1.2");
    ensure!(cluster.counter(1, "new_flow") == 1);
    Ok(())
}

#[test]
fn every_byte_arrives_by_a_virtual_address() -> Result<()> {
    for (n, address) in [(1, "10.208.1.3"), (2, "10.208.2.2")] {
        let cluster = Cluster::new(2)?;
        let caller = cluster.task(1, "caller", "10.208.1.2")?;
        let task = cluster.task(n, "called", address)?;
        cluster.serve_vip(&[(n, address)]);
        both_ways(&caller, &task, format!("{VIP}:80").parse()?)?;
        ensure!(cluster.counter(1, "new_flow") == 1);
    }
    Ok(())
}
