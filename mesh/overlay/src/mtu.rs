//! Having the overlay's links follow the MTU of the underlay.

use crate::{
    OverlayError,
    alias::Alias,
    error::Doing,
    inside, names,
    netlink::{Link, Netlink},
};

/// Gives all links of ours an MTU, the tasks' ends before the node's: while those differ, the node's tells
/// that something is left to be done. Tells whether anything was changed, and what was not, worded for
/// the user.
pub(crate) fn follow(netlink: &mut Netlink, links: &[Link], mtu: u32) -> (bool, Vec<String>) {
    let mut behind = Vec::new();
    let mut followed = false;
    for link in links.iter().filter(|link| link.mtu != mtu) {
        let done = if names::role(&link.name).is_some() {
            set(netlink, link, mtu)
        } else if let Some(alias) = Alias::of(link) {
            match inside::set_mtu(&alias, mtu) {
                Ok(true) => set(netlink, link, mtu),
                Ok(false) => {
                    behind.push(format!(
                        "task {} still has an MTU of {} on {}, not {mtu}: its network namespace is no \
                         longer where it was; attach it again",
                        alias.task, link.mtu, alias.network
                    ));
                    continue;
                }
                Err(error) => Err(error),
            }
        } else {
            continue;
        };
        match done {
            Ok(()) => followed = true,
            Err(error) => behind.push(format!(
                "link {} still has an MTU of {}, not {mtu}: {error}",
                link.name, link.mtu
            )),
        }
    }
    (followed, behind)
}

fn set(netlink: &mut Netlink, link: &Link, mtu: u32) -> Result<(), OverlayError> {
    netlink
        .set_mtu(link.index, mtu)
        .doing("set", || format!("MTU of link {}", link.name))
}
