//! IPv6 clients of tasks that speak IPv4.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket},
    time::Duration,
};

use portolan_model::{Protocol, ProxyProtocol};
use portolan_plane::{DataPlane, FrontendSpec};

use crate::support::{Rig, ask, at, named, spec, until};

const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

fn at_v6(spec: &FrontendSpec) -> SocketAddr {
    (Ipv6Addr::LOCALHOST, spec.frontend.port).into()
}

/// The header of version 2, for a transport: 1 is a stream, 2 datagrams (section 2.2 of its specification).
fn header(transport: u8, client: SocketAddr, asked: SocketAddr) -> Vec<u8> {
    let mut header = SIGNATURE.to_vec();
    header.extend([0x21, 0x20 | transport, 0, 36]);
    for end in [client, asked] {
        let SocketAddr::V6(end) = end else {
            panic!("{end} is no IPv6 address")
        };
        header.extend(end.ip().octets());
    }
    header.extend(client.port().to_be_bytes());
    header.extend(asked.port().to_be_bytes());
    header
}

fn udp(ip: impl Into<std::net::IpAddr>) -> UdpSocket {
    let socket = UdpSocket::bind((ip.into(), 0)).unwrap();
    socket
        .set_read_timeout(Some(Duration::from_secs(5)))
        .unwrap();
    socket
}

#[test]
fn clients_of_both_families_take_turns_in_one_round() {
    let mut rig = Rig::new();
    let spec = spec(Protocol::Tcp, &[named("a"), named("b")]);
    rig.serve(&spec);
    let both = [at(&spec), at_v6(&spec), at_v6(&spec), at(&spec)];
    let answers = both.map(|to| ask(to).unwrap());
    assert_eq!(answers, ["a", "b", "a", "b"]);
}

#[test]
fn the_proxy_header_has_ipv6_addresses_over_tcp() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let mut rig = Rig::new();
    let mut spec = spec(Protocol::Tcp, &[listener.local_addr().unwrap()]);
    spec.policy.proxy_protocol = Some(ProxyProtocol::V2);
    rig.serve(&spec);
    let mut client = TcpStream::connect(at_v6(&spec)).unwrap();
    client.write_all(b"GET").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let (mut task, _) = listener.accept().unwrap();
    let mut got = Vec::new();
    task.read_to_end(&mut got).unwrap();
    let mut sent = header(1, client.local_addr().unwrap(), at_v6(&spec));
    sent.extend(b"GET");
    assert_eq!(got, sent);
}

#[test]
fn the_proxy_header_has_ipv6_addresses_over_udp() {
    let task = udp(Ipv4Addr::LOCALHOST);
    let mut rig = Rig::new();
    let mut spec = spec(Protocol::Udp, &[task.local_addr().unwrap()]);
    spec.policy.proxy_protocol = Some(ProxyProtocol::V2);
    rig.serve(&spec);
    let client = udp(Ipv6Addr::LOCALHOST);
    client.send_to(b"x", at_v6(&spec)).unwrap();
    let mut bytes = [0; 128];
    let (length, relay) = task.recv_from(&mut bytes).unwrap();
    let mut sent = header(2, client.local_addr().unwrap(), at_v6(&spec));
    sent.push(b'x');
    assert_eq!(bytes[..length], sent);
    task.send_to(b"answer", relay).unwrap();
    let (length, from) = client.recv_from(&mut bytes).unwrap();
    assert_eq!((&bytes[..length], from), (&b"answer"[..], at_v6(&spec)));
    let flows = rig.relay.flows(10);
    assert_eq!(flows[0].client, client.local_addr().unwrap());
}

#[test]
fn a_list_of_clients_with_ipv6_networks_holds_for_datagrams() {
    let task = udp(Ipv4Addr::LOCALHOST);
    let mut rig = Rig::new();
    let mut spec = spec(Protocol::Udp, &[task.local_addr().unwrap()]);
    spec.policy.allow = vec!["::1/128".parse().unwrap()];
    rig.serve(&spec);
    udp(Ipv4Addr::LOCALHOST).send_to(b"x", at(&spec)).unwrap();
    until("it is counted", || rig.refused("not_allowed") == 1);
    let client = udp(Ipv6Addr::LOCALHOST);
    client.send_to(b"y", at_v6(&spec)).unwrap();
    let mut bytes = [0; 16];
    assert_eq!(task.recv(&mut bytes).unwrap(), 1);
    assert_eq!(bytes[0], b'y');
}
