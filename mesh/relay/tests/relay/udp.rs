//! Flows of datagrams.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    time::Duration,
};

use portolan_model::{Protocol, ProxyProtocol};
use portolan_plane::BackendState;

use crate::support::{Rig, at, spec, until};

/// A server that answers with its name, its client's port and what it got, until told to stop or dropped.
struct Server {
    address: SocketAddr,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Server {
    fn start(name: &'static str) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        let thread = std::thread::spawn(move || {
            let mut bytes = vec![0; 65536];
            loop {
                let (length, from) = socket.recv_from(&mut bytes).unwrap();
                if &bytes[..length] == b"stop" {
                    return;
                }
                let mut answer = format!("{name} ").into_bytes();
                answer.extend(&bytes[..length]);
                let _ = socket.send_to(&answer, from);
            }
        });
        Self {
            address,
            thread: Some(thread),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            socket.send_to(b"stop", self.address).unwrap();
            thread.join().unwrap();
        }
    }
}

fn client(ip: impl Into<IpAddr>) -> UdpSocket {
    let socket = UdpSocket::bind((ip.into(), 0)).unwrap();
    socket
        .set_read_timeout(Some(Duration::from_secs(5)))
        .unwrap();
    socket
}

/// Sends and waits for the answer; who answered is part of it.
fn ask(client: &UdpSocket, to: SocketAddr, text: &[u8]) -> (Vec<u8>, SocketAddr) {
    client.send_to(text, to).unwrap();
    let mut bytes = vec![0; 65536];
    let (length, from) = client.recv_from(&mut bytes).unwrap();
    (bytes[..length].to_vec(), from)
}

fn answer(client: &UdpSocket, to: SocketAddr, text: &[u8]) -> String {
    String::from_utf8_lossy(&ask(client, to, text).0).into_owned()
}

#[test]
fn bursts_of_several_clients_arrive_whole_and_in_order() {
    // Equal ones go through the kernel together; what is shorter, longer or empty ends such a train.
    const SIZES: [usize; 12] = [
        64, 64, 64, 10, 64, 64, 1200, 1200, 0, 30_000, 30_000, 30_000,
    ];
    let backend = UdpSocket::bind("127.0.0.1:0").unwrap();
    backend
        .set_read_timeout(Some(Duration::from_secs(5)))
        .unwrap();
    let spec = spec(Protocol::Udp, &[backend.local_addr().unwrap()]);
    let mut rig = Rig::new();
    rig.serve(&spec);
    let clients = [client(Ipv4Addr::LOCALHOST), client(Ipv4Addr::LOCALHOST)];
    for round in 0..20_u8 {
        for (at_byte, size) in (0_u8..).zip(SIZES) {
            for client in &clients {
                client
                    .send_to(&vec![round ^ at_byte; size], at(&spec))
                    .unwrap();
            }
        }
        // By the address from which the relay sends, which is another one for each client.
        let mut arrived: BTreeMap<SocketAddr, Vec<Vec<u8>>> = BTreeMap::new();
        let mut bytes = vec![0; 65536];
        for _ in 0..SIZES.len() * clients.len() {
            let (length, from) = backend.recv_from(&mut bytes).unwrap();
            let flow = arrived.entry(from).or_default();
            flow.push(bytes[..length].to_vec());
        }
        let sent: Vec<_> = (0_u8..)
            .zip(SIZES)
            .map(|(at_byte, size)| vec![round ^ at_byte; size])
            .collect();
        assert_eq!(arrived.len(), clients.len());
        assert!(arrived.values().all(|flow| *flow == sent));
    }
}

#[test]
fn a_client_stays_at_its_backend_and_clients_take_turns() {
    let (a, b) = (Server::start("a"), Server::start("b"));
    let mut rig = Rig::new();
    let spec = spec(Protocol::Udp, &[a.address, b.address]);
    rig.serve(&spec);
    let clients: Vec<_> = (0..4).map(|_| client(Ipv4Addr::LOCALHOST)).collect();
    for _ in 0..3 {
        let answers: Vec<_> = clients.iter().map(|c| answer(c, at(&spec), b"x")).collect();
        assert_eq!(answers, ["a x", "b x", "a x", "b x"]);
    }
    // A reply is counted once it has left, and its client may be quicker than that.
    until("every reply to be counted", || {
        let backends = rig.stats().backends;
        backends.iter().all(|(_, _, stats)| stats.bytes_out == 18)
    });
    let flows: Vec<_> = rig.stats().backends.into_iter().map(|b| b.2).collect();
    assert_eq!([flows[0].flows, flows[1].flows], [2, 2]);
    assert_eq!([flows[0].bytes_in, flows[1].bytes_in], [6, 6]);
    assert_eq!(portolan_plane::DataPlane::flows(&rig.relay, 10).len(), 4);
}

#[test]
fn replies_leave_from_the_address_that_was_asked() {
    let server = Server::start("a");
    let mut rig = Rig::new();
    let spec = spec(Protocol::Udp, &[server.address]);
    rig.serve(&spec);
    let client4 = client(Ipv4Addr::UNSPECIFIED);
    for ip in ["127.0.0.1", "127.0.0.2", "127.9.9.9"] {
        let asked = SocketAddr::new(ip.parse().unwrap(), spec.frontend.port);
        assert_eq!(ask(&client4, asked, b"x"), (b"a x".to_vec(), asked));
    }
    let asked: SocketAddr = format!("[::1]:{}", spec.frontend.port).parse().unwrap();
    let client6 = client(std::net::Ipv6Addr::LOCALHOST);
    assert_eq!(ask(&client6, asked, b"x"), (b"a x".to_vec(), asked));
}

#[test]
fn a_flow_moves_when_its_backend_is_removed_and_not_when_it_drains() {
    let (a, b) = (Server::start("a"), Server::start("b"));
    let mut rig = Rig::new();
    let mut spec = spec(Protocol::Udp, &[a.address, b.address]);
    rig.serve(&spec);
    let client1 = client(Ipv4Addr::LOCALHOST);
    assert_eq!(answer(&client1, at(&spec), b"1"), "a 1");
    spec.backends[0].state = BackendState::Draining;
    rig.serve(&spec);
    assert_eq!(answer(&client1, at(&spec), b"2"), "a 2");
    for _ in 0..3 {
        let new = client(Ipv4Addr::LOCALHOST);
        assert_eq!(answer(&new, at(&spec), b"3"), "b 3");
    }
    spec.backends.remove(0);
    rig.serve(&spec);
    until("the flow has moved", || {
        let flows = portolan_plane::DataPlane::flows(&rig.relay, 10);
        flows.iter().all(|flow| flow.backend == b.address)
    });
    assert_eq!(answer(&client1, at(&spec), b"4"), "b 4");
}

#[test]
fn a_refused_datagram_goes_to_the_next_backend() {
    let (a, b) = (Server::start("a"), Server::start("b"));
    let mut rig = Rig::new();
    let spec = spec(Protocol::Udp, &[a.address, b.address]);
    rig.serve(&spec);
    let client = client(Ipv4Addr::LOCALHOST);
    assert_eq!(answer(&client, at(&spec), b"1"), "a 1");
    drop(a);
    // One datagram, one answer: the one that was refused is not lost.
    assert_eq!(answer(&client, at(&spec), b"2"), "b 2");
    assert_eq!(rig.stats().retries, 1);
    assert_eq!(rig.stats().backends[0].2.connect_failures, 1);
}

#[test]
fn without_a_backend_that_answers_the_flow_ends_and_the_next_datagram_begins_anew() {
    let server = Server::start("a");
    let address = server.address;
    let mut rig = Rig::new();
    let spec = spec(Protocol::Udp, &[address]);
    rig.serve(&spec);
    drop(server);
    let client = client(Ipv4Addr::LOCALHOST);
    client.send_to(b"1", at(&spec)).unwrap();
    until("it is refused", || rig.refused("all_backends_failed") == 1);
    until("the flow is gone", || rig.active() == 0);
    let back = UdpSocket::bind(address).unwrap();
    client.send_to(b"2", at(&spec)).unwrap();
    let mut bytes = [0; 16];
    assert_eq!(back.recv(&mut bytes).unwrap(), 1);
    assert_eq!(bytes[0], b'2');
}

#[test]
fn an_idle_flow_is_forgotten() {
    let server = Server::start("a");
    let mut rig = Rig::new();
    let mut spec = spec(Protocol::Udp, &[server.address]);
    spec.policy.udp_idle_ms = 50;
    rig.serve(&spec);
    let client = client(Ipv4Addr::LOCALHOST);
    assert_eq!(answer(&client, at(&spec), b"1"), "a 1");
    until("the flow is forgotten", || rig.active() == 0);
    assert_eq!(answer(&client, at(&spec), b"2"), "a 2");
    assert_eq!(rig.stats().backends[0].2.flows, 2);
}

#[test]
fn a_burst_is_not_lost_and_sizes_are_kept() {
    let server = Server::start("");
    let mut rig = Rig::new();
    let spec = spec(Protocol::Udp, &[server.address]);
    rig.serve(&spec);
    let client = client(Ipv4Addr::LOCALHOST);
    assert_eq!(answer(&client, at(&spec), b""), " ");
    let large = vec![7; 60_000];
    assert_eq!(ask(&client, at(&spec), &large).0.len(), 60_001);
    for number in 0..200_u32 {
        client.send_to(&number.to_be_bytes(), at(&spec)).unwrap();
    }
    let mut bytes = [0; 16];
    for number in 0..200_u32 {
        assert_eq!(client.recv(&mut bytes).unwrap(), 5);
        assert_eq!(bytes[1..5], number.to_be_bytes());
    }
}

#[test]
fn only_the_first_datagram_has_the_proxy_header() {
    let server = Server::start("");
    let mut rig = Rig::new();
    let mut spec = spec(Protocol::Udp, &[server.address]);
    spec.policy.proxy_protocol = Some(ProxyProtocol::V2);
    rig.serve(&spec);
    let client = client(Ipv4Addr::LOCALHOST);
    let (first, _) = ask(&client, at(&spec), b"x");
    assert_eq!(first[1..17], *b"\r\n\r\n\0\r\nQUIT\n\x21\x12\0\x0c");
    assert_eq!(first[17..25], [127, 0, 0, 1, 127, 0, 0, 1]);
    assert_eq!(
        first[25..27],
        client.local_addr().unwrap().port().to_be_bytes()
    );
    assert_eq!(first[27..29], spec.frontend.port.to_be_bytes());
    assert_eq!(first[29..], *b"x");
    assert_eq!(answer(&client, at(&spec), b"y"), " y");
}

#[test]
fn clients_outside_the_list_are_dropped_and_counted() {
    let server = Server::start("a");
    let mut rig = Rig::new();
    let mut spec = spec(Protocol::Udp, &[server.address]);
    spec.policy.allow = vec!["127.0.0.2/32".parse().unwrap()];
    rig.serve(&spec);
    let refused = client(Ipv4Addr::LOCALHOST);
    refused.send_to(b"x", at(&spec)).unwrap();
    until("it is counted", || rig.refused("not_allowed") == 1);
    assert_eq!(rig.active(), 0);
    let allowed = client(Ipv4Addr::new(127, 0, 0, 2));
    assert_eq!(answer(&allowed, at(&spec), b"x"), "a x");
}

#[test]
fn flows_beyond_the_limit_are_refused() {
    let server = Server::start("a");
    let mut rig = Rig::with(portolan_relay::RelayConfig {
        udp_flows: 1,
        ..Default::default()
    });
    let spec = spec(Protocol::Udp, &[server.address]);
    rig.serve(&spec);
    let (first, second) = (client(Ipv4Addr::LOCALHOST), client(Ipv4Addr::LOCALHOST));
    assert_eq!(answer(&first, at(&spec), b"x"), "a x");
    second.send_to(b"x", at(&spec)).unwrap();
    until("it is refused", || rig.refused("limit") == 1);
    assert_eq!(answer(&first, at(&spec), b"y"), "a y");
}
