//! Places of which somebody else moves the link, and addresses that somebody else hands out.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use portolan_model::{Endpoint, Network, Task, TaskState, TaskView, claims};
use portolan_overlay::{Overlay, Plug};
use portolan_testbed::{Namespace, wait_until};

use crate::cluster::{Cluster, id, ip, net, pings};

/// Two nodes on the network `shop`, of which the addresses are not theirs to give.
fn two_nodes() -> Result<Cluster> {
    let mut cluster = Cluster::new("ov", 2)?;
    cluster.network(&Network {
        name: "shop".parse()?,
        vni: 5001,
        subnet: net("10.10.3.0/24"),
        own_range: Some(net("10.224.16.0/20")),
        ..claims::ingress_network()
    });
    cluster.slice("shop", 1, "10.224.16.1/32");
    cluster.slice("shop", 2, "10.224.16.2/32");
    Ok(cluster)
}

/// A place on `shop`, the same each time.
fn place(cluster: &Cluster, n: usize, name: &str, address: &str) -> Plug {
    Plug {
        id: name.parse().unwrap(),
        endpoint: cluster.endpoint(n, "shop", address),
        netns: PathBuf::from(format!("/run/netns/{name}")),
    }
}

/// What Docker does with the link that it is given.
fn moved(cluster: &Cluster, n: usize, name: &str, address: &str, loose: &str) -> Result<Namespace> {
    let task = cluster.lab.task(name)?;
    let node = &cluster.nodes[n - 1];
    let gateway = format!("10.224.16.{n}");
    node.run(["ip", "link", "set", loose, "netns", task.name()])?;
    task.run(["ip", "link", "set", loose, "name", "eth0"])?;
    task.run(["ip", "addr", "add", &format!("{address}/24"), "dev", "eth0"])?;
    task.run(["ip", "link", "set", "eth0", "up"])?;
    task.run(["ip", "route", "add", &gateway, "dev", "eth0"])?;
    for range in ["10.10.3.0/25", "10.10.3.128/25", "10.224.16.0/20"] {
        task.run(["ip", "route", "add", range, "via", &gateway])?;
    }
    Ok(task)
}

#[test]
fn a_link_that_somebody_else_moves_is_on_the_network() -> Result<()> {
    let mut cluster = two_nodes()?;
    for (n, name, address) in [(1, "a", "10.10.3.5"), (2, "b", "10.10.3.200")] {
        let task = Task {
            id: name.parse()?,
            service: None,
            slot: 0,
            endpoints: vec![Endpoint {
                network: "shop".parse()?,
                ip: ip(address).into(),
                mac: Some(portolan_model::MacAddress::of_address(ip(address))),
            }],
            state: TaskState::Healthy,
            weight: 0,
        };
        let view = TaskView {
            task: std::sync::Arc::new(task),
            node: id(n),
            state: TaskState::Healthy,
        };
        cluster.world.tasks.insert(name.parse()?, view);
    }
    cluster.reconcile()?;
    let plug = |n: usize, name: &str, address: &str| -> Result<String> {
        let place = place(&cluster, n, name, address);
        Ok(cluster.overlays[n - 1].run(move |overlay| overlay.plug(&place))?)
    };
    let loose = plug(1, "a", "10.10.3.5")?;
    assert_eq!(loose, plug(1, "a", "10.10.3.5")?, "asked twice, made once");
    let a = moved(&cluster, 1, "a", "10.10.3.5", &loose)?;
    let b = moved(
        &cluster,
        2,
        "b",
        "10.10.3.200",
        &plug(2, "b", "10.10.3.200")?,
    )?;
    let deadline = std::time::Duration::from_secs(5);
    wait_until(deadline, "the links have a carrier", || {
        Ok(pings(&a, "10.224.16.1")?.then_some(()))
    })?;
    ensure!(pings(&a, "10.10.3.200")? && pings(&b, "10.10.3.5")?);
    // Nodes speak with tasks, on their own node and on others.
    for node in &cluster.nodes {
        ensure!(pings(node, "10.10.3.5")? && pings(node, "10.10.3.200")?);
    }
    let around = cluster.overlays[0].run(Overlay::around)?;
    let end = around.tasks.get(&ip("10.10.3.5"));
    ensure!(
        end.is_some_and(|end| end.task.as_str() == "a"),
        "{around:?}"
    );

    // A task cannot speak as a node does.
    a.run(["ip", "addr", "add", "10.224.16.9/32", "dev", "lo"])?;
    a.output(["ping", "-c1", "-W1", "-I", "10.224.16.9", "10.10.3.200"])?;
    wait_until(
        std::time::Duration::from_secs(10),
        "the packet is counted",
        || {
            let counters = cluster.overlays[0].run(Overlay::counters);
            Ok((counters.forged_source_packets > 0).then_some(()))
        },
    )?;

    drop(a);
    wait_until(deadline, "the namespace has vanished", || {
        let vanished = cluster.overlays[0].run(Overlay::vanished);
        Ok((vanished == ["a".parse()?]).then_some(()))
    })?;
    // A new namespace of the same name gets a new link.
    let again = plug(1, "a", "10.10.3.5")?;
    let a = moved(&cluster, 1, "a", "10.10.3.5", &again)?;
    wait_until(deadline, "the new one is reached", || {
        Ok(pings(&b, "10.10.3.5")?.then_some(()))
    })?;
    let task = "a".parse()?;
    cluster.overlays[0].run(move |overlay| overlay.detach(&task))?;
    ensure!(!a.run(["ip", "-br", "link"])?.stdout.contains("eth0"));
    Ok(())
}
