//! What the overlay finds around it in its namespace, and what of it is in its way.

use std::net::{IpAddr, Ipv4Addr};

use portolan_model::INGRESS_NETWORK;

use crate::{
    Config,
    alias::{Alias, Answers},
    names,
    netlink::{Address, Kind, Link},
};

/// What is there besides the overlay.
#[derive(Debug)]
pub(crate) struct Surroundings {
    /// The largest packet, in bytes, that fits into a VXLAN packet on the underlay; `None` while no link
    /// has the node's address there.
    pub(crate) mtu: Option<u32>,
    /// The node's IPv4 addresses outside the overlay.
    pub(crate) addresses: Vec<Ipv4Addr>,
    /// What is wrong, worded for the user.
    pub(crate) problems: Vec<String>,
}

/// VXLAN, UDP and Ethernet headers, with the outer IP header: RFC 7348, section 5.
const OVERHEAD_V4: u32 = 50;
const OVERHEAD_V6: u32 = 70;
/// What fits where nothing is known of the underlay: an Ethernet of 1500 bytes.
pub(crate) const FALLBACK_MTU: u32 = 1500 - OVERHEAD_V6;
/// The least that an IPv4 host must be able to take (RFC 791, section 3.2).
const MIN_MTU: u32 = 576;
/// The length of an IPv4 packet is a number of 16 bits.
const MAX_MTU: u32 = 65_535;

impl Surroundings {
    pub(crate) fn new(links: &[Link], addresses: &[Address], config: &Config) -> Self {
        let mut problems = Vec::new();
        let mtu = if let Some(link) = underlay_link(links, addresses, config.underlay) {
            let (mtu, problem) = mtu(link, config.underlay);
            problems.extend(problem);
            Some(mtu)
        } else {
            problems.push(format!(
                "no link has the advertised address {}: VXLAN packets cannot be sent from it, and the \
                 overlay's MTU is a guess",
                config.underlay
            ));
            None
        };
        problems.extend(port_taken(links, config.data_path_port));
        problems.extend(astray(links));
        let ours = |index: u32| {
            let link = links.iter().find(|link| link.index == index);
            link.is_some_and(|link| names::role(&link.name).is_some())
        };
        let elsewhere = addresses.iter().filter(|address| !ours(address.link));
        Self {
            mtu,
            addresses: elsewhere
                .filter_map(|address| match address.ip {
                    IpAddr::V4(ip) => Some(ip),
                    IpAddr::V6(_) => None,
                })
                .collect(),
            problems,
        }
    }
}

fn underlay_link<'a>(
    links: &'a [Link],
    addresses: &[Address],
    underlay: IpAddr,
) -> Option<&'a Link> {
    let address = addresses.iter().find(|address| address.ip == underlay)?;
    links.iter().find(|link| link.index == address.link)
}

fn mtu(underlay: &Link, address: IpAddr) -> (u32, Option<String>) {
    let overhead = if address.is_ipv4() {
        OVERHEAD_V4
    } else {
        OVERHEAD_V6
    };
    let fits = underlay.mtu.saturating_sub(overhead);
    let problem = (fits < MIN_MTU).then(|| {
        format!(
            "link {} has an MTU of {}, of which VXLAN takes {overhead}: the overlay needs at least {}, \
             and its larger packets are sent in fragments",
            underlay.name,
            underlay.mtu,
            MIN_MTU + overhead
        )
    });
    (fits.clamp(MIN_MTU, MAX_MTU - overhead), problem)
}

/// Links of others that hold the UDP port of VXLAN: it can only be shared by links with `vnifilter`.
fn port_taken(links: &[Link], port: u16) -> impl Iterator<Item = String> {
    let others = links.iter().filter(move |link| {
        matches!(link.kind, Kind::Vxlan { port: theirs, filtered: false } if theirs == port)
    });
    others.map(move |link| {
        format!(
            "UDP port {port} is held by VXLAN link {}: give the mesh another one with \
             --data-path-port, the same on all nodes",
            link.name
        )
    })
}

/// Tasks of which the answers by UDP may leave by other links than the overlay's.
fn astray(links: &[Link]) -> impl Iterator<Item = String> {
    let astray = links.iter().filter_map(Alias::of).filter(|alias| {
        let end = alias.end.as_ref();
        alias.network.as_str() == INGRESS_NETWORK
            && end.is_some_and(|end| end.answers == Answers::Astray)
    });
    astray.map(|alias| {
        format!(
            "task {} has other links besides the overlay's, and nft (package nftables) could not be used \
             in its network namespace: its UDP does not see clients' own addresses",
            alias.task
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::Framing;

    fn link(index: u32, name: &str, mtu: u32, kind: Kind) -> Link {
        Link {
            index,
            name: name.to_owned(),
            kind,
            framing: Framing::Ethernet,
            mtu,
            mac: None,
            up: true,
            master: None,
            alias: None,
        }
    }

    fn address(link: u32, ip: &str) -> Address {
        Address {
            link,
            ip: ip.parse().unwrap(),
            prefix: 24,
        }
    }

    fn config(underlay: &str) -> Config {
        Config {
            underlay: underlay.parse().unwrap(),
            data_path_port: 4789,
            node_address: None,
        }
    }

    #[test]
    fn vxlan_takes_its_part_of_the_underlays_mtu() {
        let links = [
            link(2, "eth0", 1500, Kind::Other),
            link(3, "eth1", 9000, Kind::Other),
            link(4, "lo", 65_536, Kind::Other),
            link(5, "thin", 600, Kind::Other),
        ];
        let addresses = [
            address(2, "10.77.0.11"),
            address(2, "fd77::11"),
            address(3, "10.78.0.11"),
            address(4, "127.0.0.1"),
            address(5, "10.79.0.11"),
        ];
        let mtu = |ip| {
            Surroundings::new(&links, &addresses, &config(ip))
                .mtu
                .unwrap()
        };
        assert_eq!(mtu("10.77.0.11"), 1450);
        assert_eq!(mtu("fd77::11"), 1430);
        assert_eq!(mtu("10.78.0.11"), 8950);
        assert_eq!(mtu("127.0.0.1"), 65_485);
        let thin = Surroundings::new(&links, &addresses, &config("10.79.0.11"));
        assert_eq!(thin.mtu, Some(576));
        assert!(thin.problems.iter().any(|p| p.contains("thin")));
    }

    #[test]
    fn what_is_in_the_way_is_named() {
        let vxlan = |filtered| Kind::Vxlan {
            port: 4789,
            filtered,
        };
        let links = [
            link(2, "flannel.1", 1450, vxlan(false)),
            link(3, "ptvx4096", 1450, vxlan(true)),
            link(4, "ptbr4096", 1450, Kind::Bridge),
        ];
        let addresses = [address(2, "10.1.0.0"), address(4, "10.208.1.1")];
        let seen = Surroundings::new(&links, &addresses, &config("10.77.0.11"));
        assert_eq!(seen.addresses, ["10.1.0.0".parse::<Ipv4Addr>().unwrap()]);
        let [address, port] = seen.problems.as_slice() else {
            panic!("{:?}", seen.problems);
        };
        assert!(address.contains("10.77.0.11"));
        assert!(port.contains("flannel.1") && port.contains("4789"));
    }
}
