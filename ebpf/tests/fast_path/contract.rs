//! The fast path passes the suite that every plane has to pass.

use std::net::Ipv4Addr;

use anyhow::Result;
use portolan_ebpf::TaskLink;
use portolan_model::{MacAddress, claims};
use portolan_plane::contract;

use crate::cluster::Cluster;

#[test]
fn the_fast_path_keeps_the_contract() -> Result<()> {
    let cluster = Cluster::new(1)?;
    cluster.threads[0].run(|inside| contract::check(inside.plane(), [8080, 8081, 8082]));
    // The same with the suite's backend within reach, so that its rounds are written too.
    let mac = MacAddress([2, 0, 0, 0, 0, 1]);
    cluster.threads[0].run(move |inside| {
        let task = TaskLink {
            network: claims::ingress_network().name,
            link: "lo".into(),
            mac,
            gateway_mac: mac,
        };
        inside.surroundings.tasks.insert(Ipv4Addr::LOCALHOST, task);
        inside.surround();
        contract::check(inside.plane(), [8080, 8081, 8082]);
    });
    Ok(())
}
