//! The two links of a network: its bridge and its VXLAN link.

use std::collections::BTreeSet;

use portolan_model::MacAddress;
use rustix::io::Errno;

use crate::{
    OverlayError,
    error::Doing,
    names::{self, Role},
    netlink::{Kind, Link, Netlink, NewLink},
    program::Settings,
    settings,
};

const ADD: &str = "add";

/// The indexes of a network's links.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pair {
    pub(crate) bridge: u32,
    /// `None` when it could not be made: then the network ends at this node.
    pub(crate) vxlan: Option<u32>,
}

/// The links of a network, if it has a bridge.
pub(crate) fn find(present: &[Link], vni: u32) -> Option<Pair> {
    let index = |name: String| present.iter().find(|l| l.name == name).map(|l| l.index);
    Some(Pair {
        bridge: index(names::bridge(vni))?,
        vxlan: index(names::vxlan(vni)),
    })
}

/// The networks of which the bridge has ports.
pub(crate) fn in_use(present: &[Link]) -> BTreeSet<u32> {
    present
        .iter()
        .filter_map(|port| {
            let bridge = present.iter().find(|l| Some(l.index) == port.master)?;
            match names::role(&bridge.name)? {
                (Role::Bridge, vni) => Some(vni),
                (Role::Vxlan, _) => None,
            }
        })
        .collect()
}

/// Makes a network's VXLAN link, or mends it; gives its index.
pub(crate) fn ensure_vxlan(
    netlink: &mut Netlink,
    present: &[Link],
    settings: Settings,
    vni: u32,
    mac: MacAddress,
) -> Result<u32, OverlayError> {
    let kind = Kind::Vxlan {
        port: settings.port,
        filtered: true,
    };
    let name = names::vxlan(vni);
    let old = present.iter().find(|link| link.name == name);
    // The port of a VXLAN link cannot be changed.
    let (stale, old) = match old {
        Some(link) if matches!(link.kind, Kind::Vxlan { .. }) && link.kind != kind => (old, None),
        _ => (None, old),
    };
    if let Some(stale) = stale {
        netlink
            .remove_link(stale.index)
            .doing("remove", || format!("link {name}"))?;
    }
    let vxlan = ensure_link(netlink, old, &name, kind, settings.mtu, mac)
        .map_err(|error| explain(error, settings.port))?;
    // Without a VNI the link takes no packets. It is let in at each pass, which changes nothing when it
    // is in already.
    netlink
        .add_vni(vxlan, vni)
        .doing("add", || format!("vni {vni} to link {name}"))?;
    Ok(vxlan)
}

/// Puts what the kernel says of a VXLAN link into words that help.
fn explain(error: OverlayError, port: u16) -> OverlayError {
    match error {
        OverlayError::Kernel { source, .. } if source.errno() == Some(Errno::ADDRINUSE) => {
            OverlayError::PortInUse { port, source }
        }
        // An unknown kind of link, or an unknown attribute of a known one.
        OverlayError::Kernel {
            operation: ADD,
            source,
            ..
        } if matches!(source.errno(), Some(Errno::OPNOTSUPP | Errno::INVAL)) => {
            OverlayError::NoVniFilter(source)
        }
        error => error,
    }
}

/// Makes a network's bridge, or mends it; gives its index.
pub(crate) fn ensure_bridge(
    netlink: &mut Netlink,
    present: &[Link],
    mtu: u32,
    vni: u32,
    mac: MacAddress,
) -> Result<u32, OverlayError> {
    let name = names::bridge(vni);
    let old = present.iter().find(|link| link.name == name);
    ensure_link(netlink, old, &name, Kind::Bridge, mtu, mac)
}

fn ensure_link(
    netlink: &mut Netlink,
    old: Option<&Link>,
    name: &str,
    kind: Kind,
    mtu: u32,
    mac: MacAddress,
) -> Result<u32, OverlayError> {
    let made;
    let link = match old {
        Some(link) if link.kind == kind => link,
        Some(_) => {
            return Err(OverlayError::NameTaken {
                name: name.to_owned(),
                expected: match kind {
                    Kind::Bridge => "bridge",
                    Kind::Vxlan { .. } | Kind::Veth | Kind::Vrf | Kind::Other => "VXLAN link",
                },
            });
        }
        None => {
            let new = NewLink {
                name,
                mtu,
                mac: Some(mac),
                bridge: None,
                peer: None,
                kind,
            };
            netlink
                .add_link(&new)
                .doing(ADD, || format!("link {name}"))?;
            made = by_name(netlink, name)?;
            &made
        }
    };
    settings::write(name)?;
    if link.mac != Some(mac) {
        netlink
            .set_mac(link.index, mac)
            .doing("set", || format!("MAC address of link {name}"))?;
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
    Ok(link.index)
}

/// A link that must be there.
pub(crate) fn by_name(netlink: &mut Netlink, name: &str) -> Result<Link, OverlayError> {
    netlink
        .links()
        .doing("list", || "links".into())?
        .into_iter()
        .find(|link| link.name == name)
        .ok_or_else(|| OverlayError::LinkGone(name.to_owned()))
}
