//! Putting a task's network namespace on its networks, and taking it off them.
//!
//! On each network a task has a veth pair. The node's end is a port of the network's bridge, and its
//! alias names the task: so attachments are found again after a restart without a file. The other end
//! is born in the task's namespace, under a name that nobody else gives: Docker counts its own `eth0`, `eth1` and so
//! on, and could not name the next link of the container if that was taken. It has the subnet's prefix, but only
//! the gateway is on the link; the rest of the subnet is behind it, other nodes and this one alike.

use std::{collections::BTreeSet, fmt, net::Ipv4Addr, os::fd::AsFd};

use ipnetwork::Ipv4Network;
use portolan_model::{INGRESS_NETWORK, MacAddress, NetworkName, Protocol, TaskId};

use crate::{
    OverlayError,
    alias::{Alias, Answers, End},
    error::Doing,
    inside, links, names,
    netlink::{Kind, Link, Netlink, NewLink, Peer},
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
    /// Where the nodes' own addresses on it are, if not in the subnet.
    pub own_range: Option<Ipv4Network>,
    /// The node's gateway on it.
    pub gateway: Ipv4Addr,
    /// The task's address.
    pub address: Ipv4Addr,
    /// The task's Ethernet address.
    pub mac: MacAddress,
    /// The ports at which it serves clients outside that speak IPv6. If there are any, and the network is
    /// ingress, it has its IPv6 address ([`portolan_model::ipv6_of`]) there too.
    pub ipv6: BTreeSet<PortRange>,
}

/// Some ports of a protocol, in a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortRange {
    /// The protocol.
    pub protocol: Protocol,
    /// The first of them.
    pub first: u16,
    /// The last of them.
    pub last: u16,
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            protocol,
            first,
            last,
        } = self;
        write!(f, "ipproto {protocol} sport {first}-{last}")
    }
}

impl AttachEndpoint {
    /// Whether it is to have an IPv6 address.
    pub(crate) fn has_ipv6(&self) -> bool {
        !self.ipv6.is_empty() && self.network.as_str() == INGRESS_NETWORK
    }
}

/// Does what is still to be done for an attachment, and gives all addresses that the namespace has then.
/// After an error the node's ends made by this call are removed, and with them the task's.
pub(crate) fn attach(
    netlink: &mut Netlink,
    mtu: u32,
    request: &Attachment,
) -> Result<BTreeSet<Ipv4Addr>, OverlayError> {
    let netns = open(request)?;
    let mut made = Vec::new();
    let done = attach_all(netlink, mtu, request, &netns, &mut made);
    if done.is_err() {
        for name in made {
            // The first error is the one to tell; what stays is mended or removed by the next call.
            if let Err(error) = remove(netlink, &name) {
                tracing::debug!(%error, link = name, "not undone");
            }
        }
        return done;
    }
    let joined: Vec<String> = request
        .endpoints
        .iter()
        .map(|endpoint| names::host_end(&request.id, &endpoint.network))
        .collect();
    detach_except(netlink, &request.id, &joined)?;
    done
}

fn attach_all(
    netlink: &mut Netlink,
    mtu: u32,
    request: &Attachment,
    netns: &Netns,
    made: &mut Vec<String>,
) -> Result<BTreeSet<Ipv4Addr>, OverlayError> {
    let mut task = Task {
        id: &request.id,
        netns,
        inside: netns.netlink().map_err(OverlayError::Open)?,
    };
    for endpoint in &request.endpoints {
        join(netlink, mtu, &mut task, endpoint, made)?;
    }
    let links = netlink.links().doing("list", || "links".into())?;
    let turned = links.iter().filter_map(Alias::of).any(|alias| {
        let end = alias.end.filter(|_| alias.task == request.id);
        end.is_some_and(|end| end.answers == Answers::Turned)
    });
    let answers = inside::lead_back(netns, &mut task.inside, &request.endpoints, turned)?;
    for endpoint in &request.endpoints {
        let alias = Alias {
            task: request.id.clone(),
            network: endpoint.network.clone(),
            end: Some(End {
                address: endpoint.address,
                mac: endpoint.mac,
                answers,
                netns: Some(request.netns.path()),
            }),
        };
        let name = names::host_end(&request.id, &endpoint.network);
        let link = links.iter().find(|link| link.name == name);
        let link = link.ok_or(OverlayError::LinkGone(name))?;
        set_alias(netlink, link, &alias)?;
    }
    inside::addresses(&mut task.inside)
}

pub(crate) fn set_alias(
    netlink: &mut Netlink,
    link: &Link,
    alias: &Alias,
) -> Result<(), OverlayError> {
    let text = alias.to_string();
    if link.alias.as_ref() == Some(&text) {
        return Ok(());
    }
    netlink
        .set_alias(link.index, &text)
        .doing("set", || format!("alias of link {}", link.name))
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
    inside: Netlink,
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
    let peer = inside::find(&theirs, endpoint.mac);
    // The node's end of a pair into another namespace, of an earlier life of the same task.
    let stale = old.filter(|_| peer.is_none());
    if let Some(old) = stale {
        remove_end(netlink, old)?;
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
                        netns: Some(task.netns.as_fd()),
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
    inside::finish(task.netns, &mut task.inside, mtu, endpoint)?;
    // The bridge has a carrier when its first port has one.
    for link in [host_end.index, bridge] {
        netlink
            .settle(link)
            .doing("settle", || format!("link {name}"))?;
    }
    Ok(())
}

/// Makes the node's end of a pair what it should be.
pub(crate) fn finish_host_end(
    netlink: &mut Netlink,
    mtu: u32,
    link: &Link,
    bridge: u32,
    task: &TaskId,
    endpoint: &AttachEndpoint,
) -> Result<(), OverlayError> {
    let name = &link.name;
    // Whose it is comes first, so that it is found again whatever comes between.
    if owner(link).as_ref() != Some(task) {
        let alias = Alias {
            task: task.clone(),
            network: endpoint.network.clone(),
            end: None,
        };
        set_alias(netlink, link, &alias)?;
    }
    if link.master != Some(bridge) {
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

/// The first name for a link in a task that is free there.
fn free_name(links: &[Link]) -> String {
    (0..=links.len())
        .map(names::task_end)
        .find(|name| links.iter().all(|link| link.name != *name))
        .unwrap_or_else(|| names::task_end(0))
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
        first = first.and(remove_end(netlink, link));
    }
    first
}

/// The task of a node's end.
pub(crate) fn owner(link: &Link) -> Option<TaskId> {
    Some(Alias::of(link)?.task)
}

/// Removes a node's end of a pair, and with it the task's and what was made for it in its namespace.
pub(crate) fn remove_end(netlink: &mut Netlink, link: &Link) -> Result<(), OverlayError> {
    // Only while the link is there can the namespace be told from another one of the same name.
    let left = Alias::of(link).map_or(Ok(()), |alias| inside::leave(&alias));
    gone_is_fine(netlink.remove_link(link.index))
        .doing("remove", || format!("link {}", link.name))
        .and(left)
}

fn remove(netlink: &mut Netlink, name: &str) -> Result<(), OverlayError> {
    let links = netlink.links().doing("list", || "links".into())?;
    let link = links.iter().find(|link| link.name == name);
    link.map_or(Ok(()), |link| remove_end(netlink, link))
}
