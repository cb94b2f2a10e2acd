//! What the overlay calls its objects in the kernel, by which it finds them again.
//!
//! | object | name |
//! |---|---|
//! | bridge of a network | `ptbr<vni>` |
//! | VXLAN link of a network | `ptvx<vni>` |
//! | node's end of a task's veth pair | `ptv` and 12 hex digits, a hash of task and network |
//! | task's end | `pt` and a number, in the task's namespace; found again by its Ethernet address |
//! | alias of the node's end | [`crate::alias::Alias`] |
//! | the other end, as long as nobody has moved it | `ptp` and the same digits |
//! | routing table of a network | [`TABLE_BASE`] + vni |
//! | routing table of a task on the ingress network, in its namespace | [`TASK_TABLE_BASE`] + the lower 24 bits of its address |
//! | packet filter in tasks that have other links too | `ip portolan_task`, `ip6 portolan_task` |
//! | routes and rules | protocol [`crate::netlink::PROTOCOL`] |

use std::net::Ipv4Addr;

use portolan_model::{NetworkName, TaskId};
use sha2::{Digest, Sha256};

/// The routing table of VNI 0: far from the small numbers that people choose and from those that other
/// software derives from marks and interface indexes. `0x70` is `p`.
pub(crate) const TABLE_BASE: u32 = 0x7000_0000;
/// Where the tables in tasks' namespaces begin: after those of all VNIs. Of several tasks in one namespace each
/// has its own.
const TASK_TABLE_BASE: u32 = 0x7100_0000;
/// The priority of our rules (ip-rule(8)): after that of local addresses, 0, and before those of VPNs
/// and of routing by source, which would take the node's own packets to tasks out of our hands.
pub(crate) const RULE_PRIORITY: u32 = 1120;
/// The priority of the rule in a task's namespace: before those of VPN software there, which begin near
/// 100 and would take the task's answers out of the overlay.
pub(crate) const TASK_RULE_PRIORITY: u32 = 11;
/// The metric of the default route in a task's namespace: any other one is preferred.
pub(crate) const LAST_METRIC: u32 = u32::MAX;

const MAX_VNI: u32 = (1 << 24) - 1;
const BRIDGE: &str = "ptbr";
const VXLAN: &str = "ptvx";
const HOST_END: &str = "ptv";
const LOOSE_END: &str = "ptp";
const TASK_END: &str = "pt";

/// A link that belongs to a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Role {
    Bridge,
    Vxlan,
}

pub(crate) fn bridge(vni: u32) -> String {
    format!("{BRIDGE}{vni}")
}

pub(crate) fn vxlan(vni: u32) -> String {
    format!("{VXLAN}{vni}")
}

/// What a link is to which network, if its name is one of ours.
pub(crate) fn role(link: &str) -> Option<(Role, u32)> {
    let (role, digits) = match link.split_at_checked(BRIDGE.len())? {
        (BRIDGE, digits) => (Role::Bridge, digits),
        (VXLAN, digits) => (Role::Vxlan, digits),
        _ => return None,
    };
    let vni = digits.parse().ok().filter(|vni| *vni <= MAX_VNI)?;
    Some((role, vni))
}

pub(crate) fn host_end(task: &TaskId, network: &NetworkName) -> String {
    end(HOST_END, task, network)
}

/// The other end of a pair that somebody else is to move.
pub(crate) fn loose_end(task: &TaskId, network: &NetworkName) -> String {
    end(LOOSE_END, task, network)
}

/// The name of a link in a task. No container engine gives it, by whatever it counts its own.
pub(crate) fn task_end(number: usize) -> String {
    format!("{TASK_END}{number}")
}

fn end(prefix: &str, task: &TaskId, network: &NetworkName) -> String {
    let digest = Sha256::digest(format!("{task}\0{network}"));
    let hash = digest.iter().take(6).map(|byte| format!("{byte:02x}"));
    hash.fold(prefix.to_owned(), |name, digits| name + &digits)
}

/// Whether a link's name is that of a node's end of a veth pair.
pub(crate) fn is_host_end(link: &str) -> bool {
    link.strip_prefix(HOST_END)
        .is_some_and(|hash| hash.len() == 12 && hash.bytes().all(|digit| digit.is_ascii_hexdigit()))
}

pub(crate) const fn table(vni: u32) -> u32 {
    TABLE_BASE + vni
}

/// The routing table of a task in its namespace; the ingress network has fewer than 24 bits of addresses.
pub(crate) fn task_table(address: Ipv4Addr) -> u32 {
    TASK_TABLE_BASE + (address.to_bits() & 0x00ff_ffff)
}

/// The network of a routing table.
pub(crate) fn vni_of_table(table: u32) -> Option<u32> {
    table.checked_sub(TABLE_BASE).filter(|vni| *vni <= MAX_VNI)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_the_kernel_and_are_read_back() {
        // IFNAMSIZ is 16 with the terminating zero.
        assert!(bridge(MAX_VNI).len() <= 15);
        assert_eq!(role(&bridge(4096)), Some((Role::Bridge, 4096)));
        assert_eq!(role(&vxlan(MAX_VNI)), Some((Role::Vxlan, MAX_VNI)));
        for foreign in ["ptbr", "ptbrx", "ptvx16777216", "br0", "ptv0123456789ab"] {
            assert_eq!(role(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn a_host_end_is_its_task_and_network() {
        let (task, a, b) = (
            "t1".parse().unwrap(),
            "a".parse().unwrap(),
            "b".parse().unwrap(),
        );
        assert_eq!(host_end(&task, &a), host_end(&task, &a));
        assert_ne!(host_end(&task, &a), host_end(&task, &b));
        assert!(is_host_end(&host_end(&task, &a)) && host_end(&task, &a).len() <= 15);
        assert!(!is_host_end(&vxlan(123_456_789)));
    }

    #[test]
    fn a_table_is_its_network() {
        assert_eq!(vni_of_table(table(4096)), Some(4096));
        assert_eq!(vni_of_table(254), None);
        assert_eq!(vni_of_table(table(MAX_VNI) + 1), None);
        assert_eq!(vni_of_table(task_table(Ipv4Addr::UNSPECIFIED)), None);
    }
}
