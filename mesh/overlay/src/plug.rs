//! Veth pairs of which somebody else moves the task's end, as Docker does with what a network driver gives it.

use std::path::PathBuf;

use portolan_model::TaskId;

use crate::{
    AttachEndpoint, OverlayError,
    alias::{Alias, Answers, End},
    attach::{finish_host_end, remove_end, set_alias},
    error::Doing,
    links, names,
    netlink::{Kind, Netlink, NewLink, Peer},
};

/// A place on a network for a namespace that somebody else makes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plug {
    /// The task, or whatever else the namespace will be of. It has no other place.
    pub id: TaskId,
    /// The place.
    pub endpoint: AttachEndpoint,
    /// Where the namespace will be found.
    pub netns: PathBuf,
}

/// Makes the pair, and gives the name of the end to be moved.
pub(crate) fn plug(netlink: &mut Netlink, mtu: u32, plug: &Plug) -> Result<String, OverlayError> {
    let endpoint = &plug.endpoint;
    let name = names::host_end(&plug.id, &endpoint.network);
    let loose = names::loose_end(&plug.id, &endpoint.network);
    let present = netlink.links().doing("list", || "links".into())?;
    let find = |name: &str| present.iter().find(|link| link.name == name);
    let bridge = names::bridge(endpoint.vni);
    let bridge = find(&bridge)
        .map(|link| link.index)
        .ok_or(OverlayError::LinkGone(bridge))?;
    // Without its other end it is of an earlier namespace.
    let stale = find(&name).filter(|_| find(&loose).is_none());
    if let Some(stale) = stale {
        remove_end(netlink, stale)?;
    }
    if stale.is_some() || find(&name).is_none() {
        let peer = Peer {
            name: &loose,
            mac: endpoint.mac,
            netns: None,
        };
        let pair = NewLink {
            name: &name,
            mtu,
            mac: None,
            bridge: Some(bridge),
            peer: Some(peer),
            kind: Kind::Veth,
        };
        netlink.add_link(&pair).doing("add", || {
            format!("link {name} for {} on {}", plug.id, endpoint.network)
        })?;
    }
    let link = links::by_name(netlink, &name)?;
    let alias = Alias {
        task: plug.id.clone(),
        network: endpoint.network.clone(),
        end: Some(End {
            address: endpoint.address,
            mac: endpoint.mac,
            // Only on the ingress network, which nobody else gives places on, do clients from outside ask.
            answers: Answers::Straight,
            netns: Some(plug.netns.clone()),
        }),
    };
    let done = finish_host_end(netlink, mtu, &link, bridge, &plug.id, endpoint)
        .and_then(|()| set_alias(netlink, &link, &alias));
    if let Err(error) = done {
        // The first error is the one to tell; what stays is removed by the next call.
        if let Err(error) = remove_end(netlink, &link) {
            tracing::debug!(%error, link = name, "not undone");
        }
        return Err(error);
    }
    Ok(loose)
}
