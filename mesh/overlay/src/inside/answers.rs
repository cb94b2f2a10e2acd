//! The packet filter of a task that has other links besides the overlay's. To an answer that a UDP server
//! bound to no address sends to a client that came by the overlay, it gives the source that was asked.
//!
//! What came is kept for a minute after the last packet either way, twice as long as a UDP flow lives of
//! which its service says nothing. So 4,000 new flows a second have room; of more, as where connections
//! are tracked, some go unanswered. Of requests from one socket by two ways the later one counts. Applied
//! again it forgets nothing.

use std::{fmt::Write as _, io, net::IpAddr};

use crate::{netlink::Family, netns::Netns, nft, settings};

/// The most flows that are kept of each family.
const FLOWS: u32 = 1 << 18;

/// Puts it in force for these addresses of the task, which are on this link, and takes it away for the
/// families of which there is none. The error is in words.
pub(super) fn turn(netns: &Netns, link: &str, addresses: &[IpAddr]) -> Result<(), String> {
    let mut script = String::new();
    for family in [Family::V4, Family::V6] {
        match addresses.iter().find(|ip| Family::of(**ip) == family) {
            Some(address) => add(&mut script, family, link, *address),
            None if family == Family::V6 && !settings::has_ipv6() => {}
            None => remove(&mut script, family),
        }
    }
    run(netns, script)
}

/// Takes it away. The error is in words.
pub(super) fn leave(netns: &Netns) -> Result<(), String> {
    turn(netns, "", &[])
}

fn add(script: &mut String, family: Family, link: &str, address: IpAddr) {
    let ip = word(family);
    let table = table(family);
    let kind = match family {
        Family::V4 => "ipv4_addr",
        Family::V6 => "ipv6_addr",
    };
    // Writing to a string does not fail.
    let _ = writeln!(
        script,
        "add table {table}\n\
         add set {table} asked {{ type {kind} . inet_service . inet_service; size {FLOWS}; \
         flags dynamic,timeout; timeout 1m; }}"
    );
    for (chain, hook) in [
        ("came", "filter hook input"),
        ("leaves", "route hook output"),
    ] {
        let _ = writeln!(
            script,
            "add chain {table} {chain} {{ type {hook} priority raw; }}\nflush chain {table} {chain}"
        );
    }
    let from = format!("{ip} saddr . udp sport . udp dport");
    let to = format!("{ip} daddr . udp dport . udp sport");
    let _ = writeln!(
        script,
        "add rule {table} came iif \"{link}\" {ip} daddr {address} update @asked {{ {from} }}\n\
         add rule {table} came iif != \"{link}\" delete @asked {{ {from} }}\n\
         add rule {table} leaves {ip} saddr != {address} {to} @asked update @asked {{ {to} }} \
         {ip} saddr set {address}"
    );
}

/// Adding first makes the removal of one that is not there no error.
fn remove(script: &mut String, family: Family) {
    let table = table(family);
    let _ = writeln!(script, "add table {table}\ndelete table {table}");
}

fn table(family: Family) -> String {
    format!("{} portolan_task", word(family))
}

fn word(family: Family) -> &'static str {
    match family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
    }
}

/// Runs a script in a namespace.
fn run(netns: &Netns, script: String) -> Result<(), String> {
    let done = netns.run(move || {
        nft::run(nft::PROGRAM, &["-f", "-"], &script).map_err(|failed| match failed {
            nft::Failed::Missing => io::Error::other("nft is not installed"),
            nft::Failed::Refused(words) => io::Error::other(words),
        })
    });
    done.map(drop).map_err(|error| error.to_string())
}
