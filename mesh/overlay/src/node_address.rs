//! An address of the node's own, at which its containers reach it whatever bridge they are on: on the
//! loopback link, so that it is there without any network, and of host scope, so that nothing is sent from it
//! that does not ask for it. Its label says that it is ours.

use std::net::{IpAddr, Ipv4Addr};

use ipnetwork::Ipv4Network;

use crate::{
    OverlayError,
    error::Doing,
    names,
    netlink::{Address, Framing, Kind, Link, Netlink},
    program::gone_is_fine,
};

/// What `ip address` shows for its link; `IFNAMSIZ` bounds it to 15 bytes.
const LABEL: &str = "lo:portolan";

/// Brings the loopback link to this address, and to no other of ours. One that somebody else has put there is
/// used, and left alone.
pub(crate) fn ensure(netlink: &mut Netlink, wanted: Option<Ipv4Addr>) -> Result<(), OverlayError> {
    let links = netlink.links().doing("list", || "links".into())?;
    let Some(loopback) = links.iter().find(|link| link.framing == Framing::Loopback) else {
        return Ok(());
    };
    let all = netlink.addresses().doing("list", || "addresses".into())?;
    let wanted = wanted.map(|ip| Address {
        link: loopback.index,
        ip: ip.into(),
        prefix: 32,
    });
    let present = |wanted: &Address| all.iter().any(|found| found.ip == wanted.ip);
    if let Some(address) = wanted.as_ref().filter(|wanted| !present(wanted)) {
        netlink
            .add_host_address(address, LABEL)
            .doing("add", || format!("address {}", address.ip))?;
    }
    let ours = netlink.labelled_addresses(LABEL);
    for address in ours.doing("list", || "addresses".into())? {
        if wanted != Some(address) {
            gone_is_fine(netlink.remove_address(&address))
                .doing("remove", || format!("address {}", address.ip))?;
        }
    }
    Ok(())
}

/// The subnets of bridges on which only containers are: those of which every port is one end of a veth pair,
/// and that do not lead to the underlay.
pub(crate) fn container_subnets<'a>(
    links: &'a [Link],
    addresses: &'a [Address],
    underlay: IpAddr,
) -> impl Iterator<Item = Ipv4Network> {
    let is_inside = move |index: u32| {
        let link = links.iter().find(|link| link.index == index);
        let foreign = |link: &Link| link.kind == Kind::Bridge && names::role(&link.name).is_none();
        let mut ports = links.iter().filter(|port| port.master == Some(index));
        let mut own = addresses.iter().filter(|address| address.link == index);
        link.is_some_and(foreign)
            && ports.all(|port| port.kind == Kind::Veth)
            && own.all(|address| address.ip != underlay)
    };
    let subnets = addresses
        .iter()
        .filter(move |address| is_inside(address.link));
    subnets.filter_map(|address| match address.ip {
        IpAddr::V4(ip) => {
            let network = Ipv4Network::new(ip, address.prefix).ok()?;
            Ipv4Network::new(network.network(), address.prefix).ok()
        }
        IpAddr::V6(_) => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, name: &str, kind: Kind, master: Option<u32>) -> Link {
        Link {
            index,
            name: name.to_owned(),
            kind,
            framing: Framing::Ethernet,
            mtu: 1500,
            mac: None,
            up: true,
            master,
            alias: None,
        }
    }

    fn address(link: u32, ip: &str, prefix: u8) -> Address {
        let ip = ip.parse().unwrap();
        Address { link, ip, prefix }
    }

    #[test]
    fn containers_are_on_bridges_with_nothing_else() {
        let links = [
            link(2, "eth0", Kind::Other, None),
            link(3, "docker0", Kind::Bridge, None),
            link(4, "veth1", Kind::Veth, Some(3)),
            link(5, "empty0", Kind::Bridge, None),
            link(6, "br0", Kind::Bridge, None),
            link(7, "eth1", Kind::Other, Some(6)),
            link(8, "veth2", Kind::Veth, Some(6)),
            // In a container, a card is a veth as well.
            link(9, "br1", Kind::Bridge, None),
            link(10, "eth2", Kind::Veth, Some(9)),
            link(11, "ptbr4096", Kind::Bridge, None),
        ];
        let addresses = [
            address(2, "192.0.2.1", 24),
            address(3, "172.17.0.1", 16),
            address(3, "fd00::1", 64),
            address(5, "172.18.0.1", 16),
            address(6, "192.168.1.7", 24),
            address(9, "10.77.0.11", 24),
            address(9, "10.78.0.11", 24),
            address(11, "10.208.1.1", 32),
        ];
        let underlay = "10.77.0.11".parse().unwrap();
        let found = container_subnets(&links, &addresses, underlay);
        let found: Vec<String> = found.map(|subnet| subnet.to_string()).collect();
        assert_eq!(found, ["172.17.0.0/16", "172.18.0.0/16"]);
    }
}
