//! What may come in: a packet filter of one table, `inet portolan_overlay`.
//!
//! It is programmed by the `nft` program, one transaction at a time, and only when it changes. What
//! routing cannot keep apart is kept apart here: a node accepts packets to any address of its own,
//! whichever link they come by.

mod forward;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    net::{IpAddr, Ipv4Addr},
    time::{Duration, Instant},
};

use ipnetwork::Ipv4Network;

use crate::{
    Counters, OverlayError, names,
    nft::{self, Failed},
};

const TABLE: &str = "inet portolan_overlay";
const NON_MEMBER: &str = "non_member";
const MISDIRECTED: &str = "misdirected";
const FORGED_SOURCE: &str = "forged_source";

/// How long a reading of counters and of other tables is good for: it costs two runs of `nft`.
const FRESH: Duration = Duration::from_secs(5);

/// The packet filter, as it was last programmed.
#[derive(Debug)]
pub(crate) struct Guard {
    /// The program that programs it.
    program: &'static str,
    /// What was last applied, and whether all else was removed.
    applied: Option<(Rules, bool)>,
    missing: bool,
    read: Option<Instant>,
    counters: Counters,
    /// Chains of others that drop the overlay's packets.
    in_the_way: Vec<String>,
    /// Why a table that was removed could not be made again.
    unmended: Option<String>,
}

/// What the filter is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rules {
    /// The UDP port of VXLAN.
    pub(crate) port: u16,
    /// The node's own address for its containers.
    pub(crate) node_address: Option<Ipv4Addr>,
    /// The underlay addresses from which VXLAN packets are accepted.
    pub(crate) members: BTreeSet<IpAddr>,
    /// What is each VNI's: first the subnet, from which tasks may send, then what else nodes send from.
    pub(crate) networks: BTreeMap<u32, Vec<Ipv4Network>>,
}

impl Guard {
    /// A filter of which nothing is known yet.
    pub(crate) fn new(program: &'static str) -> Self {
        Self {
            program,
            applied: None,
            missing: false,
            read: None,
            counters: Counters::default(),
            in_the_way: Vec::new(),
            unmended: None,
        }
    }

    /// Programs the filter. Without `complete` what is in the kernel stays, and is only added to.
    pub(crate) fn apply(&mut self, rules: Rules, complete: bool) -> Result<(), OverlayError> {
        let mut script = rules.clone();
        if let Some((applied, whole)) = &self.applied {
            if *applied == rules && (*whole || !complete) {
                return Ok(());
            }
            if !complete {
                script
                    .networks
                    .retain(|vni, _| !applied.networks.contains_key(vni));
            }
        }
        match nft::run(self.program, &["-f", "-"], &script.script(complete)) {
            Ok(_) => {
                (self.missing, self.unmended) = (false, None);
                self.applied = Some((rules, complete));
                Ok(())
            }
            Err(Failed::Missing) => {
                self.missing = true;
                Ok(())
            }
            Err(Failed::Refused(error)) => Err(OverlayError::Filter(error)),
        }
    }

    /// The counters, at most [`FRESH`] old. A table that is gone, by a firewall's reload say, is made anew.
    pub(crate) fn counters(&mut self) -> Counters {
        if self.read.is_none_or(|read| read.elapsed() >= FRESH) {
            self.read = Some(Instant::now());
            self.read();
        }
        self.counters
    }

    fn read(&mut self) {
        let list = ["list", "counters", "table", "inet", "portolan_overlay"];
        if let Ok(text) = nft::run(self.program, &list, "") {
            self.counters = Counters {
                non_member_packets: packets(&text, NON_MEMBER),
                misdirected_packets: packets(&text, MISDIRECTED),
                forged_source_packets: packets(&text, FORGED_SOURCE),
            };
        } else if let Some((rules, complete)) = self.applied.take() {
            let mended = self.apply(rules, complete);
            self.unmended = mended.err().map(|error| error.to_string());
        }
        // Once it is removed, nothing is put into Docker's again.
        if self.applied.is_some()
            && let Ok(in_the_way) = forward::let_through(self.program)
        {
            self.in_the_way = in_the_way;
        }
    }

    /// Removes the table, and what was put into Docker's.
    pub(crate) fn remove(&mut self) -> Result<(), OverlayError> {
        self.applied = None;
        // Adding first makes the removal of one that is not there no error.
        let script = format!("add table {TABLE}\ndelete table {TABLE}\n");
        let removed = nft::run(self.program, &["-f", "-"], &script).map(drop);
        match removed.and(forward::take_back(self.program)) {
            Ok(()) | Err(Failed::Missing) => Ok(()),
            Err(Failed::Refused(error)) => Err(OverlayError::Filter(error)),
        }
    }

    /// What is wrong with this filter or with others, worded for the user.
    pub(crate) fn problems(&self) -> impl Iterator<Item = String> {
        let missing = self.missing.then(|| {
            "nft is not installed (package nftables): VXLAN packets from addresses that are no members, \
             and packets from one network to the gateways of another, are not dropped"
                .to_owned()
        });
        let in_the_way = self.in_the_way.iter().map(|chain| {
            format!(
                "the packet filter's chain {chain} drops what is forwarded, packets between tasks too: \
                 let those of the links ptbr+ and ptvx+ through"
            )
        });
        let unmended = self.unmended.iter().map(|error| {
            format!("the overlay's packet filter was removed by another program, and then: {error}")
        });
        missing.into_iter().chain(in_the_way).chain(unmended)
    }
}

impl Rules {
    /// The transaction. Counters keep their values through it.
    fn script(&self, complete: bool) -> String {
        // Writing to it does not fail.
        let mut script = format!(
            "add table {TABLE}\n\
             add counter {TABLE} {NON_MEMBER}\n\
             add counter {TABLE} {MISDIRECTED}\n\
             add counter {TABLE} {FORGED_SOURCE}\n\
             add set {TABLE} members4 {{ type ipv4_addr; }}\n\
             add set {TABLE} members6 {{ type ipv6_addr; }}\n\
             add chain {TABLE} underlay {{ type filter hook input priority raw; }}\n\
             add chain {TABLE} networks {{ type filter hook prerouting priority raw; }}\n\
             add chain {TABLE} redirects {{ type filter hook output priority raw; }}\n\
             flush chain {TABLE} underlay\n"
        );
        if complete {
            let _ = writeln!(
                script,
                "flush set {TABLE} members4\n\
                 flush set {TABLE} members6\n\
                 flush chain {TABLE} networks\n\
                 flush chain {TABLE} redirects"
            );
        }
        for (set, v4) in [(4, true), (6, false)] {
            let members = self.members.iter().filter(|m| m.is_ipv4() == v4);
            let members: Vec<String> = members.map(ToString::to_string).collect();
            if !members.is_empty() {
                let members = members.join(", ");
                let _ = writeln!(script, "add element {TABLE} members{set} {{ {members} }}");
            }
        }
        let port = self.port;
        for (family, set) in [("ip", 4), ("ip6", 6)] {
            let _ = writeln!(
                script,
                "add rule {TABLE} underlay udp dport {port} {family} saddr != @members{set} \
                 counter name {NON_MEMBER} drop"
            );
        }
        if let Some(address) = self.node_address {
            let _ = writeln!(
                script,
                "add rule {TABLE} underlay ip daddr {address} iifname != lo meta iifkind != \"bridge\" \
                 counter name {MISDIRECTED} drop"
            );
        }
        for (&vni, ranges) in &self.networks {
            let (bridge, vxlan) = (names::bridge(vni), names::vxlan(vni));
            let listed = |ranges: &[Ipv4Network]| {
                let ranges: Vec<String> = ranges.iter().map(ToString::to_string).collect();
                format!("{{ {} }}", ranges.join(", "))
            };
            let (all, subnet) = (listed(ranges), listed(ranges.get(..1).unwrap_or_default()));
            let _ = writeln!(
                script,
                "add rule {TABLE} networks ip daddr {all} iifname != {{ lo, {bridge}, {vxlan} }} \
                 counter name {MISDIRECTED} drop\n\
                 add rule {TABLE} networks ip saddr != {subnet} iifname {bridge} \
                 counter name {FORGED_SOURCE} drop\n\
                 add rule {TABLE} networks ip saddr != {all} iifname {vxlan} \
                 counter name {FORGED_SOURCE} drop\n\
                 # Tasks of one bridge reach one another by the gateway, and are to go on doing so.\n\
                 add rule {TABLE} redirects oifname {bridge} icmp type redirect drop"
            );
        }
        script
    }
}

/// The packets of a counter in `nft list counters`: `counter NAME {`, then `packets N bytes M`.
fn packets(listing: &str, counter: &str) -> u64 {
    listing
        .split_once(&format!("counter {counter} {{"))
        .and_then(|(_, rest)| rest.split_whitespace().nth(1)?.parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_read_from_the_listing() {
        let listing = "table inet portolan_overlay {\n\tcounter non_member {\n\t\tpackets 7 bytes 700\n\t}\n\
                       \tcounter misdirected {\n\t\tpackets 0 bytes 0\n\t}\n}\n";
        assert_eq!(packets(listing, NON_MEMBER), 7);
        assert_eq!(packets(listing, MISDIRECTED), 0);
        assert_eq!(packets(listing, FORGED_SOURCE), 0);
    }

    fn rules() -> Rules {
        Rules {
            port: 4789,
            node_address: Some(Ipv4Addr::new(169, 254, 77, 53)),
            members: BTreeSet::from(["10.77.0.12".parse().unwrap(), "fd77::12".parse().unwrap()]),
            networks: BTreeMap::from([(4096, vec!["10.208.0.0/12".parse().unwrap()])]),
        }
    }

    #[test]
    fn without_the_program_there_is_no_error_but_a_problem() {
        let mut guard = Guard::new("portolan-no-such-nft");
        guard.apply(rules(), true).unwrap();
        guard.remove().unwrap();
        assert_eq!(guard.counters(), Counters::default());
        let problems: Vec<String> = guard.problems().collect();
        assert!(
            problems.len() == 1 && problems[0].contains("nftables"),
            "{problems:?}"
        );
    }

    #[test]
    fn what_only_nodes_send_from_no_task_may() {
        let ranges = ["10.10.3.0/24", "10.224.16.0/20"].map(|range| range.parse().unwrap());
        let rules = Rules {
            networks: BTreeMap::from([(5000, ranges.to_vec())]),
            ..rules()
        };
        let script = rules.script(true);
        for rule in [
            "ip daddr { 10.10.3.0/24, 10.224.16.0/20 } iifname != { lo, ptbr5000, ptvx5000 }",
            "ip saddr != { 10.10.3.0/24 } iifname ptbr5000",
            "ip saddr != { 10.10.3.0/24, 10.224.16.0/20 } iifname ptvx5000",
        ] {
            assert!(script.contains(rule), "{script}");
        }
    }

    #[test]
    fn before_everything_is_known_nothing_is_flushed() {
        let added = rules().script(false);
        assert!(!added.contains("flush set"));
        for chain in ["networks", "redirects"] {
            assert!(!added.contains(&format!("flush chain {TABLE} {chain}")));
        }
        let whole = rules().script(true);
        assert!(whole.contains("flush set"));
        assert!(
            whole.contains("members4 { 10.77.0.12 }") && whole.contains("members6 { fd77::12 }")
        );
    }
}
