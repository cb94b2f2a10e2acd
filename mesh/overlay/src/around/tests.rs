use super::*;

fn link(index: u32, name: &str) -> Link {
    Link {
        index,
        name: name.to_owned(),
        kind: Kind::Other,
        framing: Framing::Ethernet,
        mtu: 1500,
        mac: Some(MacAddress([2, 0, 0, 0, 0, index as u8])),
        up: true,
        master: None,
        alias: None,
    }
}

fn port(index: u32, name: &str, master: u32) -> Link {
    Link {
        master: Some(master),
        ..link(index, name)
    }
}

fn kind(kind: Kind, link: Link) -> Link {
    Link { kind, ..link }
}

fn framing(framing: Framing, link: Link) -> Link {
    Link { framing, ..link }
}

fn address(link: u32, ip: &str) -> Address {
    Address {
        link,
        ip: ip.parse().unwrap(),
        prefix: 24,
    }
}

fn names<const N: usize>(names: [&str; N]) -> BTreeSet<String> {
    names.into_iter().map(str::to_owned).collect()
}

fn around(links: &[Link], addresses: &[Address]) -> Around {
    let ingress = Known {
        name: "ingress".parse().unwrap(),
        subnet: "10.208.0.0/12".parse().unwrap(),
        gateway: "10.208.1.0".parse().unwrap(),
    };
    Around::new(links, addresses, &BTreeMap::from([(4096, ingress)]))
}

#[test]
fn ports_are_not_outside_but_what_they_are_ports_of() {
    let seen = around(
        &[
            framing(Framing::Loopback, link(1, "lo")),
            link(2, "bond0"),
            port(3, "eno1", 2),
            port(4, "eno2", 2),
            link(5, "bond0.10"),
            kind(Kind::Bridge, link(6, "docker0")),
            kind(Kind::Veth, port(7, "veth1", 6)),
            // The end of a container that is on no bridge.
            kind(Kind::Veth, link(8, "cali1")),
            Link {
                up: false,
                ..link(9, "eno3")
            },
        ],
        &[],
    );
    assert_eq!(
        seen.outside,
        names(["bond0", "bond0.10", "docker0", "cali1"])
    );
}

#[test]
fn the_members_of_a_vrf_are_outside_and_it_is_not() {
    let links = [kind(Kind::Vrf, link(2, "blue")), port(3, "eth0", 2)];
    assert_eq!(around(&links, &[]).outside, names(["eth0"]));
}

#[test]
fn the_overlays_links_are_not_outside() {
    let links = [
        kind(Kind::Bridge, link(2, "ptbr4096")),
        link(3, "ptvx4096"),
        port(4, "ptv0123456789ab", 2),
        // A name that only begins like ours.
        link(5, "ptvx"),
    ];
    assert_eq!(around(&links, &[]).outside, names(["ptvx"]));
}

#[test]
fn links_without_ethernet_are_told_apart() {
    let links = [
        framing(Framing::Other, link(2, "wg0")),
        // A CAN bus, say.
        framing(Framing::Other, link(3, "can0")),
        framing(Framing::Other, link(4, "tun0")),
    ];
    let seen = around(&links, &[address(2, "10.9.0.1"), address(4, "fe80::1")]);
    assert_eq!(seen.without_ethernet, names(["wg0"]));
    assert_eq!(seen.outside, names([]));
}

#[test]
fn own_are_the_addresses_that_others_may_address() {
    let links = [
        framing(Framing::Loopback, link(1, "lo")),
        link(2, "eth0"),
        kind(Kind::Bridge, link(3, "ptbr4096")),
        link(4, "ptvx4096"),
    ];
    let addresses = [
        address(1, "127.0.0.1"),
        address(1, "127.8.0.1"),
        address(1, "::1"),
        // An anycast address.
        address(1, "192.0.2.53"),
        address(2, "10.77.0.11"),
        address(2, "fd77::11"),
        address(2, "fe80::11"),
        address(3, "10.208.1.0"),
        // One that the node connects from.
        address(3, "10.208.1.254"),
    ];
    let own = around(&links, &addresses).own;
    let expected = ["192.0.2.53", "10.77.0.11", "fd77::11", "10.208.1.0"];
    assert_eq!(own, expected.map(|ip| ip.parse().unwrap()).into());
}

#[test]
fn a_task_is_read_from_its_link() {
    let end = |index, alias: &str| Link {
        alias: Some(alias.to_owned()),
        ..port(index, &format!("ptv00000000000{index}"), 2)
    };
    let links = [
        kind(Kind::Bridge, link(2, "ptbr4096")),
        Link {
            mtu: 1450,
            ..link(3, "ptvx4096")
        },
        end(
            4,
            "portolan:t1:ingress 10.208.1.2 02:70:0a:d0:01:02 turned /run/netns/t1",
        ),
        end(5, "portolan:t2:ingress 10.208.1.3 02:70:0a:d0:01:03 astray"),
        // One that is being attached, and one on no bridge.
        end(6, "portolan:t3:ingress"),
        Link {
            master: None,
            ..end(
                7,
                "portolan:t4:ingress 10.208.1.5 02:70:0a:d0:01:05 straight",
            )
        },
    ];
    let seen = around(&links, &[]);
    let task = |id: &str, ip: [u8; 4], link: &str, answers_udp| {
        let end = TaskEnd {
            task: id.parse().unwrap(),
            network: "ingress".parse().unwrap(),
            link: link.to_owned(),
            mac: MacAddress::of_address(ip.into()),
            gateway_mac: MacAddress([2, 0, 0, 0, 0, 2]),
            answers_udp,
        };
        (Ipv4Addr::from(ip), end)
    };
    let tasks = [
        task("t1", [10, 208, 1, 2], "ptv000000000004", true),
        task("t2", [10, 208, 1, 3], "ptv000000000005", false),
    ];
    assert_eq!(seen.tasks, tasks.into());
    let ingress = &seen.networks[&"ingress".parse().unwrap()];
    assert_eq!((ingress.vni, ingress.mtu), (4096, 1450));
}

#[test]
fn a_network_that_nobody_told_of_is_not_guessed() {
    let links = [link(3, "ptvx5001"), {
        Link {
            up: false,
            ..link(4, "ptvx4096")
        }
    }];
    assert!(around(&links, &[]).networks.is_empty());
}
