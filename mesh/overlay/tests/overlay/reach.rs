//! Who reaches whom.

use anyhow::{Result, ensure};

use crate::cluster::{Cluster, pings};

#[test]
fn tasks_on_different_nodes_reach_each_other() -> Result<()> {
    let cluster = Cluster::new("ov", 2)?;
    cluster.reconcile()?;
    let a = cluster.task(1, "t1", &[("ingress", "10.208.1.2")])?;
    let b = cluster.task(2, "t2", &[("ingress", "10.208.2.2")])?;
    if !pings(&a, "10.208.2.2")? {
        for node in &cluster.nodes {
            for cmd in [
                "ip -d link",
                "ip addr",
                "ip route show table all",
                "ip rule",
                "ip neigh",
                "bridge vni",
                "nft list ruleset",
                "ip -s link",
            ] {
                println!("## {cmd}\n{}", node.output(cmd.split(' '))?.stdout);
            }
        }
        println!("{}", b.output(["ip", "addr"])?.stdout);
        println!("{}", b.output(["ip", "route"])?.stdout);
        anyhow::bail!("no answer");
    }
    ensure!(pings(&b, "10.208.1.2")?);
    cluster.reconcile()?;
    ensure!(pings(&b, "10.208.1.2")?);
    Ok(())
}
