//! Putting a task's network namespace on its networks, and taking it off them.
//!
//! On each network a task has a veth pair. The node's end is a port of the network's bridge, and its
//! alias names the task: so attachments are found again after a restart without a file. The other end
//! is born in the task's namespace, as `eth0` if that is free. It has the subnet's prefix, but only the
//! gateway is on the link; the rest of the subnet is behind it, other nodes and this one alike.

use std::{net::Ipv4Addr, os::fd::AsFd};

use ipnetwork::Ipv4Network;
use portolan_model::{MacAddress, NetworkName, TaskId};

use crate::{
    OverlayError,
    error::Doing,
    links, names,
    netlink::{Address, Hop, Kind, Link, MAIN_TABLE, Netlink, NewLink, Peer, Route},
    netns::{Netns, NetnsRef},
    program::gone_is_fine,
};

/// A network namespace and the networks that it is to be on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attachment {
    /// The task, or whatever else the namespace is of.
    pub id: TaskId,
    /// The namespace.
    pub netns: NetnsRef,
    /// Its place on each network, in the order of their links, ingress first.
    pub endpoints: Vec<AttachEndpoint>,
}

/// A place on a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttachEndpoint {
    /// The network.
    pub network: NetworkName,
    /// Its VNI.
    pub vni: u32,
    /// Its subnet.
    pub subnet: Ipv4Network,
    /// The node's gateway on it.
    pub gateway: Ipv4Addr,
    /// The task's address.
    pub address: Ipv4Addr,
    /// The task's Ethernet address.
    pub mac: MacAddress,
}

/// Does what is still to be done for an attachment. After an error the node's ends made by this call
/// are removed, and with them the task's.
pub(crate) fn attach(
    netlink: &mut Netlink,
    mtu: u32,
    request: &Attachment,
) -> Result<(), OverlayError> {
    let netns = open(request)?;
    let mut inside = netns.netlink().map_err(OverlayError::Open)?;
    let mut made = Vec::new();
    let mut task = Task {
        id: &request.id,
        netns: &netns,
        inside: &mut inside,
    };
    let result = request
        .endpoints
        .iter()
        .try_for_each(|endpoint| join(netlink, mtu, &mut task, endpoint, &mut made));
    if result.is_err() {
        for name in made {
            // The first error is the one to tell; what stays is mended or removed by the next call.
            if let Err(error) = remove(netlink, &name) {
                tracing::debug!(%error, link = name, "not undone");
            }
        }
    }
    result?;
    let joined: Vec<String> = request
        .endpoints
        .iter()
        .map(|endpoint| names::host_end(&request.id, &endpoint.network))
        .collect();
    detach_except(netlink, &request.id, &joined)
}

fn open(request: &Attachment) -> Result<Netns, OverlayError> {
    for (at, endpoint) in request.endpoints.iter().enumerate() {
        let mut others = request.endpoints.iter().skip(at + 1);
        if others.any(|other| other.network == endpoint.network) {
            return Err(OverlayError::NetworkTwice {
                task: request.id.clone(),
                network: endpoint.network.clone(),
            });
        }
    }
    let no_namespace = |source| OverlayError::NoNamespace {
        task: request.id.clone(),
        namespace: request.netns.to_string(),
        source,
    };
    let netns = Netns::open(&request.netns).map_err(no_namespace)?;
    if netns.is_current().map_err(no_namespace)? {
        return Err(OverlayError::OwnNamespace(request.id.clone()));
    }
    Ok(netns)
}

struct Task<'a> {
    id: &'a TaskId,
    netns: &'a Netns,
    inside: &'a mut Netlink,
}

fn join(
    netlink: &mut Netlink,
    mtu: u32,
    task: &mut Task<'_>,
    endpoint: &AttachEndpoint,
    made: &mut Vec<String>,
) -> Result<(), OverlayError> {
    let name = names::host_end(task.id, &endpoint.network);
    let name = name.as_str();
    let present = netlink.links().doing("list", || "links".into())?;
    let bridge = names::bridge(endpoint.vni);
    let bridge = present
        .iter()
        .find(|link| link.name == bridge)
        .map(|link| link.index)
        .ok_or(OverlayError::LinkGone(bridge))?;
    let theirs = task.inside.links().doing("list", || "links".into())?;
    let old = present.iter().find(|link| link.name == name);
    let peer = theirs
        .iter()
        .find(|link| link.kind == Kind::Veth && link.mac == Some(endpoint.mac));
    // The node's end of a pair into another namespace, of an earlier life of the same task.
    let stale = old.filter(|_| peer.is_none());
    if let Some(old) = stale {
        gone_is_fine(netlink.remove_link(old.index)).doing("remove", || format!("link {name}"))?;
    }
    let host_end = match old {
        Some(old) if stale.is_none() => old.clone(),
        _ => {
            made.push(name.to_owned());
            netlink
                .add_link(&NewLink {
                    name,
                    mtu,
                    mac: None,
                    bridge: Some(bridge),
                    peer: Some(Peer {
                        name: &free_name(&theirs),
                        mac: endpoint.mac,
                        netns: task.netns.as_fd(),
                    }),
                    kind: Kind::Veth,
                })
                .doing("add", || {
                    format!("link {name} for task {} on {}", task.id, endpoint.network)
                })?;
            links::by_name(netlink, name)?
        }
    };
    finish_host_end(netlink, mtu, &host_end, bridge, task.id, endpoint)?;
    finish_inside(task.inside, mtu, endpoint)?;
    // The bridge has a carrier when its first port has one.
    for link in [host_end.index, bridge] {
        netlink
            .settle(link)
            .doing("settle", || format!("link {name}"))?;
    }
    Ok(())
}

fn finish_host_end(
    netlink: &mut Netlink,
    mtu: u32,
    link: &Link,
    bridge: u32,
    task: &TaskId,
    endpoint: &AttachEndpoint,
) -> Result<(), OverlayError> {
    let name = &link.name;
    let alias = names::alias(task, &endpoint.network);
    if link.alias.as_ref() != Some(&alias) {
        netlink
            .set_alias(link.index, &alias)
            .doing("set", || format!("alias of link {name}"))?;
    }
    if link.bridge != Some(bridge) {
        netlink
            .set_bridge(link.index, bridge)
            .doing("set", || format!("bridge of link {name}"))?;
    }
    if link.mtu != mtu {
        netlink
            .set_mtu(link.index, mtu)
            .doing("set", || format!("MTU of link {name}"))?;
    }
    if !link.up {
        netlink
            .set_up(link.index)
            .doing("take up", || format!("link {name}"))?;
    }
    Ok(())
}

/// Gives the task's end its address and routes.
fn finish_inside(
    inside: &mut Netlink,
    mtu: u32,
    endpoint: &AttachEndpoint,
) -> Result<(), OverlayError> {
    const LOOPBACK: &str = "lo";
    let links = inside.links().doing("list", || "links".into())?;
    let peer = links
        .iter()
        .find(|link| link.kind == Kind::Veth && link.mac == Some(endpoint.mac))
        .ok_or_else(|| OverlayError::LinkGone(format!("of the task on {}", endpoint.network)))?;
    if peer.mtu != mtu {
        inside
            .set_mtu(peer.index, mtu)
            .doing("set", || format!("MTU of link {} of the task", peer.name))?;
    }
    let loopback = links.iter().find(|link| link.name == LOOPBACK);
    for link in loopback.into_iter().chain([peer]).filter(|link| !link.up) {
        inside
            .set_up(link.index)
            .doing("take up", || format!("link {} of the task", link.name))?;
    }
    inside
        .settle(peer.index)
        .doing("settle", || format!("link {} of the task", peer.name))?;
    let address = Address {
        link: peer.index,
        ip: endpoint.address.into(),
        prefix: endpoint.subnet.prefix(),
    };
    let addresses = inside.addresses().doing("list", || "addresses".into())?;
    if !addresses.contains(&address) {
        inside
            .add_address(&address)
            .doing("add", || format!("address {} of the task", address.ip))?;
    }
    let routes = inside.routes().doing("list", || "routes".into())?;
    for route in routes_inside(peer.index, endpoint) {
        if !routes.contains(&route) {
            inside
                .set_route(&route)
                .doing("set", || format!("route {} of the task", route.destination))?;
        }
    }
    Ok(())
}

fn routes_inside(link: u32, endpoint: &AttachEndpoint) -> [Route; 2] {
    let source = endpoint.address;
    let route = |destination, hop| Route {
        table: MAIN_TABLE,
        destination,
        hop,
    };
    [
        route(endpoint.gateway.into(), Hop::Link { link, source }),
        route(
            endpoint.subnet,
            Hop::Gateway {
                link,
                gateway: endpoint.gateway,
                source,
            },
        ),
    ]
}

/// The first of eth0, eth1, ... that is free.
fn free_name(links: &[Link]) -> String {
    (0..=links.len())
        .map(|number| format!("eth{number}"))
        .find(|name| links.iter().all(|link| link.name != *name))
        .unwrap_or_else(|| "eth0".to_owned())
}

/// Removes all links of a task. One that is gone already is fine.
pub(crate) fn detach(netlink: &mut Netlink, task: &TaskId) -> Result<(), OverlayError> {
    detach_except(netlink, task, &[])
}

fn detach_except(
    netlink: &mut Netlink,
    task: &TaskId,
    stay: &[String],
) -> Result<(), OverlayError> {
    let links = netlink.links().doing("list", || "links".into())?;
    let mut first = Ok(());
    for link in links
        .iter()
        .filter(|link| owner(link).as_ref() == Some(task) && !stay.contains(&link.name))
    {
        let done = gone_is_fine(netlink.remove_link(link.index))
            .doing("remove", || format!("link {} of task {task}", link.name));
        first = first.and(done);
    }
    first
}

/// The task of a node's end.
pub(crate) fn owner(link: &Link) -> Option<TaskId> {
    names::is_host_end(&link.name).then_some(())?;
    names::task_of(link.alias.as_deref()?)
}

fn remove(netlink: &mut Netlink, name: &str) -> Result<(), OverlayError> {
    let links = netlink.links().doing("list", || "links".into())?;
    let Some(link) = links.iter().find(|link| link.name == name) else {
        return Ok(());
    };
    gone_is_fine(netlink.remove_link(link.index)).doing("remove", || format!("link {name}"))
}
