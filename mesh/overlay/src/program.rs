//! One pass that brings the kernel to the desired state.
//!
//! What is right already is not touched, so that packets flow on through a pass, and through a restart.
//! Additions come before removals. An operation that fails is reported, and the pass goes on.

use std::net::IpAddr;

use rustix::io::Errno;

use crate::{
    Failure, OverlayError,
    desired::Desired,
    error::Doing,
    links::{self, Pair},
    names,
    netlink::{Link, Netlink, NetlinkError},
    objects::Objects,
};

/// What a pass needs to know besides the desired state.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Settings {
    /// The node's own address on the underlay.
    pub(crate) underlay: IpAddr,
    /// The UDP port of VXLAN.
    pub(crate) port: u16,
    /// The MTU of all links, in bytes.
    pub(crate) mtu: u32,
}

/// Adds what lacks and mends what is wrong.
pub(crate) fn upsert(netlink: &mut Netlink, settings: Settings, desired: &Desired) -> Vec<Failure> {
    let mut failures = Vec::new();
    let mut wanted = Objects::default();
    let present = match links(netlink) {
        Ok(present) => present,
        Err(failure) => return vec![failure],
    };
    for (&vni, network) in &desired.networks {
        let mac = network.mac();
        let mut note = |error| failures.push(desired.failure(vni, error));
        let bridge = links::ensure_bridge(netlink, &present, settings.mtu, vni, mac);
        // Also a network that ends at this node is to be kept apart from the others.
        if let Ok(bridge) = bridge.map_err(&mut note) {
            let vxlan = links::ensure_vxlan(netlink, &present, settings, vni, mac);
            let vxlan = vxlan.map_err(&mut note).ok();
            wanted.want(settings.underlay, vni, network, Pair { bridge, vxlan });
        }
    }
    // After the links: with one that was made anew its routes have gone.
    let actual = match Objects::dump(netlink, &present) {
        Ok(actual) => actual.0,
        Err(error) => {
            failures.push(unlisted(error));
            return failures;
        }
    };
    for (key, (vni, object)) in &wanted.0 {
        if actual.get(key).is_none_or(|(_, found)| found != object) {
            let done = object.upsert(netlink).doing("set", || key.to_string());
            failures.extend(done.err().map(|error| desired.failure(*vni, error)));
        }
    }
    failures
}

/// Removes what is ours and no longer desired. A network on which tasks are attached stays whole.
pub(crate) fn remove(netlink: &mut Netlink, settings: Settings, desired: &Desired) -> Vec<Failure> {
    let present = match links(netlink) {
        Ok(present) => present,
        Err(failure) => return vec![failure],
    };
    let actual = match Objects::dump(netlink, &present) {
        Ok(actual) => actual.0,
        Err(error) => return vec![unlisted(error)],
    };
    let mut wanted = Objects::default();
    for (&vni, network) in &desired.networks {
        if let Some(pair) = links::find(&present, vni) {
            wanted.want(settings.underlay, vni, network, pair);
        }
    }
    let in_use = links::in_use(&present);
    let stays = |vni: &u32| in_use.contains(vni) && !desired.networks.contains_key(vni);
    let mut failures = Vec::new();
    for (key, (vni, _)) in actual.iter().rev() {
        if !wanted.0.contains_key(key) && !stays(vni) {
            let done = gone_is_fine(key.remove(netlink)).doing("remove", || key.to_string());
            failures.extend(done.err().map(|error| desired.failure(*vni, error)));
        }
    }
    for link in &present {
        match names::role(&link.name) {
            Some((_, vni)) if !desired.networks.contains_key(&vni) && !stays(&vni) => {
                let done = gone_is_fine(netlink.remove_link(link.index))
                    .doing("remove", || format!("link {}", link.name));
                failures.extend(done.err().map(|error| desired.failure(vni, error)));
            }
            _ => {}
        }
    }
    failures
}

/// What is to be removed may have gone with something else: a route with its link, say.
pub(crate) fn gone_is_fine(done: Result<(), NetlinkError>) -> Result<(), NetlinkError> {
    const GONE: [Errno; 4] = [Errno::NODEV, Errno::NOENT, Errno::SRCH, Errno::ADDRNOTAVAIL];
    match done {
        Err(error) if error.errno().is_some_and(|errno| GONE.contains(&errno)) => Ok(()),
        done => done,
    }
}

fn links(netlink: &mut Netlink) -> Result<Vec<Link>, Failure> {
    let links = netlink.links().doing("list", || "links".into());
    links.map_err(unlisted)
}

fn unlisted(error: OverlayError) -> Failure {
    Failure {
        object: "overlay".into(),
        error,
    }
}

impl Desired {
    /// A failure with the name of its network.
    fn failure(&self, vni: u32, error: OverlayError) -> Failure {
        let network = self.networks.get(&vni);
        Failure {
            object: network.map_or_else(|| format!("vni {vni}"), |n| n.name.to_string()),
            error,
        }
    }
}
