//! What the fast path has to be told, from what the overlay sees of this node and the catalog knows of others.

use std::{
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
};

use portolan_ebpf::{Mesh, Surroundings, TaskLink};
use portolan_model::Snapshot;
use portolan_overlay::Around;

/// The surroundings of this node, whose underlay address and root of cgroups are given.
pub(super) fn surroundings(
    around: &Around,
    snapshot: &Snapshot,
    underlay: Ipv4Addr,
    cgroup: Option<PathBuf>,
) -> Surroundings {
    let networks = around.networks.iter().map(|(name, network)| {
        let mesh = Mesh {
            link: network.link.clone(),
            vni: network.vni,
            subnet: network.subnet.network(),
            prefix: network.subnet.prefix(),
            gateway: network.gateway,
            underlay,
            mtu: network.mtu,
        };
        (name.clone(), mesh)
    });
    let tasks = around.tasks.iter().map(|(ip, task)| {
        let link = TaskLink {
            network: task.network.clone(),
            link: task.link.clone(),
            mac: task.mac,
            gateway_mac: task.gateway_mac,
        };
        (*ip, link)
    });
    // Where only the agent is away, clients still come by that node.
    let known = snapshot.nodes.iter().chain(&snapshot.away);
    let others = known.filter(|(id, _)| **id != snapshot.me);
    let peers = others.filter_map(|(id, node)| match node.underlay {
        IpAddr::V4(ip) if node.fast_path => Some((*id, ip)),
        _ => None,
    });
    Surroundings {
        networks: networks.collect(),
        outside: around.outside.clone(),
        own: around.own.clone(),
        cgroup,
        peers: peers.collect(),
        tasks: tasks.collect(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use portolan_model::{Catalog, Node, NodeId, NodeState, Record};

    use super::*;

    #[test]
    fn peers_are_the_other_nodes_with_the_fast_path_and_an_ipv4_underlay() {
        let me = NodeId::of_name("n1");
        let mut catalog = Catalog::new(me);
        for (name, underlay, fast_path) in [
            ("n1", "10.77.0.11", true),
            ("n2", "10.77.0.12", true),
            ("n3", "10.77.0.13", false),
            ("n4", "fd77::14", true),
        ] {
            let node = Node {
                name: name.to_owned(),
                underlay: underlay.parse().unwrap(),
                state: NodeState::Up,
                version: String::new(),
                fast_path,
                ipv6: fast_path,
            };
            catalog.set_owner(NodeId::of_name(name), true, [Record::Node(node)]);
        }
        let around = Around {
            outside: BTreeSet::from(["eth0".to_owned()]),
            own: BTreeSet::from(["10.77.0.11".parse().unwrap(), "fd77::11".parse().unwrap()]),
            ..Around::default()
        };
        let told = surroundings(
            &around,
            &catalog.snapshot(true),
            Ipv4Addr::new(10, 77, 0, 11),
            Some("/sys/fs/cgroup".into()),
        );
        let n2 = (NodeId::of_name("n2"), Ipv4Addr::new(10, 77, 0, 12));
        assert_eq!(told.peers, BTreeMap::from([n2]));
        assert_eq!(told.own, around.own);
        assert_eq!(told.outside, around.outside);
    }
}
