//! The address of the node itself, asked by its processes, its containers and the world outside.

use std::collections::BTreeSet;

use super::{
    harness::{Namespace, Running, config, eventually, ip, run},
    *,
};
use crate::Askers;

const NODE: &str = "169.254.77.53";

/// What dig prints that asks from an address.
async fn dig(from: &str, arguments: &str) -> String {
    let fixed = format!("@{NODE} -b {from} -p 5377 -r +tries=1");
    run("dig", &format!("{fixed} {arguments}")).await
}

#[test]
fn who_asks_decides_and_outside_is_not_answered() {
    let mut world = World::default();
    world
        .node()
        .network("prod", "10.255.77.0/24", false)
        .service(service("web", &[("prod", Some([10, 255, 77, 100]), &[])]));
    let namespace = Namespace::new("node");
    namespace.run(async || {
        ip("link set lo up").await;
        for address in [NODE, "172.17.0.2", "172.17.0.9", "203.0.113.9"] {
            ip(&format!("addr add {address}/32 dev lo")).await;
        }
        let node_address = Some(NODE.parse().unwrap());
        let with_address = DnsConfig {
            node_address,
            ..config()
        };
        let running = Running::start_unbound(7, with_address, &world);
        eventually("both addresses are bound", || {
            running.server.stats().listeners == 2
        })
        .await;
        // Nobody but the node itself is known yet.
        let from_node = dig(NODE, "+short web +time=8").await;
        assert_eq!(from_node, "10.255.77.100\n");
        running.server.set_askers(Askers {
            local: BTreeSet::from(["172.17.0.0/16".parse().unwrap()]),
            tasks: [(
                "172.17.0.2".parse().unwrap(),
                BTreeSet::from(["prod".parse().unwrap()]),
            )]
            .into(),
            ..Askers::default()
        });
        for transport in ["+notcp", "+tcp"] {
            let task = dig("172.17.0.2", &format!("+short web +time=8 {transport}")).await;
            assert_eq!(task, "10.255.77.100\n", "{transport}");
            // There is no upstream.
            let stranger = dig("172.17.0.9", &format!("web +time=8 {transport}")).await;
            assert!(stranger.contains("status: SERVFAIL"), "{stranger}");
            let outside = dig("203.0.113.9", &format!("web +time=1 {transport}")).await;
            assert!(!outside.contains("status:"), "{outside}");
        }
        running.stop().await;
    });
}
