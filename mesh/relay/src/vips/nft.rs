//! The rules that lead packets for virtual addresses to the transparent sockets, written by the `nft`
//! program: each script is one transaction, and it spares the relay the netlink of nftables.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    io::{self, ErrorKind, Write as _},
    net::Ipv4Addr,
    path::Path,
    process::{Command, Stdio},
};

use super::Error;

/// The relay's own table. No other program touches it, and the relay touches no other.
pub(crate) const TABLE: &str = "portolan_relay";
/// On packets that leave from a virtual address to a client on this node: through the loopback they come
/// by the rules again, and must not be taken for questions.
pub(crate) const REPLY_MARK: u32 = 0x706f_7274;

/// `NF_IP_PRI_FIRST`.
const FIRST: i32 = i32::MIN;

/// Whether packets of bridges run through the rules of IP (`br_netfilter`). When that begins, the rules have
/// to be written again, for their place is before its hook.
pub(crate) fn bridges_call_ip() -> bool {
    Path::new("/proc/sys/net/bridge").exists()
}

/// Leads these addresses to the sockets, in place of whatever the table held.
pub(crate) fn program(
    vips: &BTreeSet<Ipv4Addr>,
    tcp_port: u16,
    udp_port: u16,
) -> Result<(), Error> {
    run("nft", &script(vips, tcp_port, udp_port))
}

/// Removes the table, if it is there.
pub(crate) fn remove() -> Result<(), Error> {
    // Only what exists can be deleted, and adding what exists does nothing.
    run(
        "nft",
        &format!("table inet {TABLE}\ndelete table inet {TABLE}\n"),
    )
}

/// A virtual address is an address of the bridge of its network, so one that is not local to the interface
/// by which the packet came is asked for from another network, which must not reach it.
///
/// With `br_netfilter`, which Docker and others load, a packet from a bridge runs through prerouting while it
/// is still being bridged; what TPROXY finds there is forgotten when IP receives the packet, and the second
/// run is left out by a hook of the lowest priority (`ip_sabotage_in`). Of hooks of one priority the last
/// one registered is the first to run, so the chain `bridged` comes before it. Fragments are not put
/// together there yet, which is why the other chain remains for all other machines.
fn script(vips: &BTreeSet<Ipv4Addr>, tcp_port: u16, udp_port: u16) -> String {
    let addresses = vips.iter().fold(String::new(), |mut list, vip| {
        let comma = if list.is_empty() { "" } else { ", " };
        // Writing to a string does not fail.
        let _ = write!(list, "{comma}{vip}");
        list
    });
    format!(
        "table inet {TABLE}
delete table inet {TABLE}
table inet {TABLE} {{
  set vips {{ type ipv4_addr; elements = {{ {addresses} }} }}
  chain bridged {{
    type filter hook prerouting priority {FIRST}; policy accept;
    ip daddr @vips meta l4proto {{ tcp, udp }} jump serve
  }}
  chain prerouting {{
    type filter hook prerouting priority mangle; policy accept;
    ip daddr @vips meta l4proto {{ tcp, udp }} jump serve
  }}
  chain serve {{
    iif lo meta mark {REPLY_MARK:#x} return
    iif != lo fib daddr . iif type != local drop
    meta l4proto tcp tproxy ip to 127.0.0.1:{tcp_port}
    meta l4proto udp tproxy ip to 127.0.0.1:{udp_port}
  }}
}}
"
    )
}

fn run(program: &str, script: &str) -> Result<(), Error> {
    let spawned = Command::new(program)
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = match spawned {
        Err(error) if error.kind() == ErrorKind::NotFound => return Err(Error::NoNft),
        spawned => spawned.map_err(Error::Nft)?,
    };
    // If nft ends early its own words tell more than the broken pipe.
    let written = child
        .stdin
        .take()
        .map_or(Ok(()), |mut stdin| stdin.write_all(script.as_bytes()));
    let output = child.wait_with_output().map_err(Error::Nft)?;
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr);
        return Err(Error::Nft(io::Error::other(words.trim().to_owned())));
    }
    written.map_err(Error::Nft)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_transaction_replaces_what_was_there() {
        let vips = [Ipv4Addr::new(10, 0, 0, 9), Ipv4Addr::new(10, 0, 0, 8)];
        let script = script(&vips.into(), 5000, 5001);
        assert!(script.starts_with(
            "table inet portolan_relay\ndelete table inet portolan_relay\ntable inet portolan_relay {"
        ));
        assert!(script.contains("elements = { 10.0.0.8, 10.0.0.9 }"));
        assert!(script.contains("tcp tproxy ip to 127.0.0.1:5000"));
        assert!(script.contains("udp tproxy ip to 127.0.0.1:5001"));
    }

    #[test]
    fn without_the_program_the_error_says_what_to_install() {
        let error = run("pt-absent-nft", "").unwrap_err();
        assert!(
            error.to_string().contains("apt-get install nftables"),
            "{error}"
        );
    }

    #[test]
    fn the_words_of_the_program_are_the_cause() {
        let error = run("nft", "nonsense").unwrap_err();
        let cause = std::error::Error::source(&error).map(ToString::to_string);
        assert!(cause.unwrap().contains("syntax error"));
    }
}
