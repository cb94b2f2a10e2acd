//! What the fast path has to be told, from what the overlay sees of this node and the catalog knows of others.

use std::net::{IpAddr, Ipv4Addr};

use portolan_ebpf::{Mesh, Surroundings, TaskLink};
use portolan_model::Snapshot;
use portolan_overlay::Around;

/// The surroundings of this node, whose underlay address is given.
pub(super) fn surroundings(
    around: &Around,
    snapshot: &Snapshot,
    underlay: Ipv4Addr,
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
    let others = snapshot.nodes.iter().filter(|(id, _)| **id != snapshot.me);
    let peers = others.filter_map(|(id, node)| match node.underlay {
        IpAddr::V4(ip) if node.fast_path => Some((*id, ip)),
        _ => None,
    });
    Surroundings {
        networks: networks.collect(),
        outside: around.outside.clone(),
        own: around.own.iter().filter_map(ipv4).collect(),
        peers: peers.collect(),
        tasks: tasks.collect(),
    }
}

fn ipv4(ip: &IpAddr) -> Option<Ipv4Addr> {
    match ip {
        IpAddr::V4(ip) => Some(*ip),
        IpAddr::V6(_) => None,
    }
}
