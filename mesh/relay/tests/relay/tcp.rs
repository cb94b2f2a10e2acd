//! The life of a connection.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::mpsc,
    time::{Duration, Instant},
};

use portolan_model::{Protocol, ProxyProtocol};
use portolan_plane::{BackendState, DataPlane, FrontendAddress, OpError, Sources};
use portolan_relay::RelayConfig;
use sha2::{Digest, Sha256};
use socket2::SockRef;

use crate::support::{Rig, ask, at, connect, echo, is_reset, named, server, spec, until};

/// A relay with one backend, of which the test holds the connections.
struct Pair {
    rig: Rig,
    spec: portolan_plane::FrontendSpec,
    accepted: mpsc::Receiver<TcpStream>,
}

impl Pair {
    fn new(change: impl FnOnce(&mut portolan_plane::FrontendSpec)) -> Self {
        let (sender, accepted) = mpsc::channel();
        let backend = server(move |stream| {
            stream
                .set_read_timeout(Some(Duration::from_secs(5)))
                .unwrap();
            sender.send(stream).unwrap();
        });
        let mut spec = spec(Protocol::Tcp, &[backend]);
        change(&mut spec);
        let mut rig = Rig::new();
        rig.serve(&spec);
        Self {
            rig,
            spec,
            accepted,
        }
    }

    /// The client's end and the backend's.
    fn open(&self) -> (TcpStream, TcpStream) {
        let client = connect(at(&self.spec));
        let backend = self.accepted.recv_timeout(Duration::from_secs(5)).unwrap();
        (client, backend)
    }
}

fn pair() -> Pair {
    Pair::new(|_| {})
}

fn read_all(stream: &mut TcpStream) -> String {
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

/// Closes it by RST.
fn reset(stream: TcpStream) {
    SockRef::from(&stream)
        .set_linger(Some(Duration::ZERO))
        .unwrap();
    drop(stream);
}

#[test]
fn urgent_data_holds_nothing_up() {
    let pair = pair();
    for _ in 0..20 {
        let mut client = connect(at(&pair.spec));
        // All of it is there when the relay, which asks the backend first, begins to read.
        client.write_all(b"before").unwrap();
        SockRef::from(&client).send_out_of_band(b"!").unwrap();
        client.write_all(b"after").unwrap();
        let mut backend = pair.accepted.recv_timeout(Duration::from_secs(5)).unwrap();
        let mut text = [0; 11];
        backend.read_exact(&mut text).unwrap();
        assert_eq!(&text, b"beforeafter");
    }
}

#[test]
fn a_client_that_has_closed_its_side_still_receives() {
    let pair = pair();
    let (mut client, mut backend) = pair.open();
    client.write_all(b"question").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_all(&mut backend), "question");
    backend.write_all(b"answer").unwrap();
    drop(backend);
    assert_eq!(read_all(&mut client), "answer");
    until("the flow is over", || pair.rig.active() == 0);
}

#[test]
fn a_backend_that_has_closed_its_side_still_receives() {
    let pair = pair();
    let (mut client, mut backend) = pair.open();
    backend.write_all(b"banner").unwrap();
    backend.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_all(&mut client), "banner");
    client.write_all(b"late").unwrap();
    drop(client);
    assert_eq!(read_all(&mut backend), "late");
    until("the flow is over", || pair.rig.active() == 0);
}

#[test]
fn a_reset_is_passed_on_both_ways() {
    let pair = pair();
    let (client, mut backend) = pair.open();
    reset(client);
    assert!(is_reset(&backend.read(&mut [0])));
    let (mut client, backend) = pair.open();
    reset(backend);
    assert!(is_reset(&client.read(&mut [0])));
    until("the flows are over", || pair.rig.active() == 0);
}

#[test]
fn a_reset_after_a_half_close_is_passed_on() {
    let pair = pair();
    let (client, mut backend) = pair.open();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_all(&mut backend), "");
    reset(client);
    until("the flow is over", || pair.rig.active() == 0);
    until("the backend has heard", || {
        SockRef::from(&backend).take_error().unwrap().is_some()
    });
}

#[test]
fn bytes_before_a_reset_are_delivered() {
    let pair = pair();
    let (mut client, mut backend) = pair.open();
    backend.write_all(b"last words").unwrap();
    let mut bytes = [0; 10];
    client.read_exact(&mut bytes).unwrap();
    reset(backend);
    assert_eq!(&bytes, b"last words");
    assert!(is_reset(&client.read(&mut [0])));
}

#[test]
fn a_draining_backend_keeps_its_flows_and_gets_no_new_one() {
    let mut rig = Rig::new();
    let mut spec = spec(Protocol::Tcp, &[echo(), named("b")]);
    rig.serve(&spec);
    let mut old = connect(at(&spec));
    let still_answers = |old: &mut TcpStream| {
        old.write_all(b"x").unwrap();
        old.read_exact(&mut [0]).unwrap();
    };
    still_answers(&mut old);
    spec.backends[0].state = BackendState::Draining;
    rig.serve(&spec);
    for _ in 0..3 {
        assert_eq!(ask(at(&spec)).unwrap(), "b");
    }
    still_answers(&mut old);
    spec.backends.remove(0);
    rig.serve(&spec);
    assert!(
        is_reset(&old.read(&mut [0])),
        "its flows end when it is gone"
    );
    let rows: Vec<_> = rig
        .stats()
        .backends
        .iter()
        .map(|b| (b.1.clone(), b.2.flows))
        .collect();
    assert_eq!(
        rows,
        [("web.0".to_owned(), 1), ("web.1".to_owned(), 3)],
        "its counters stay"
    );
}

#[test]
fn a_removed_frontend_ends_its_flows_and_frees_its_port() {
    let mut pair = pair();
    let (mut client, mut backend) = pair.open();
    pair.rig.remove(&pair.spec);
    TcpListener::bind((Ipv4Addr::UNSPECIFIED, pair.spec.frontend.port)).unwrap();
    assert!(is_reset(&client.read(&mut [0])));
    assert!(is_reset(&backend.read(&mut [0])));
    until("the flow is over", || pair.rig.relay.flows(10).is_empty());
}

#[test]
fn an_idle_connection_ends_by_reset_on_both_sides() {
    let pair = Pair::new(|spec| spec.policy.tcp_idle_ms = Some(150));
    let (mut client, mut backend) = pair.open();
    let begun = Instant::now();
    for _ in 0..4 {
        std::thread::park_timeout(Duration::from_millis(60));
        client.write_all(b"x").unwrap();
        backend.read_exact(&mut [0]).unwrap();
    }
    assert!(
        begun.elapsed() > Duration::from_millis(150),
        "bytes keep it alive"
    );
    assert!(is_reset(&client.read(&mut [0])));
    assert!(is_reset(&backend.read(&mut [0])));
    assert_eq!(pair.rig.stats().idle_timeouts, 1);
}

#[test]
fn the_proxy_header_comes_before_the_first_byte() {
    for (version, expected) in [
        (ProxyProtocol::V1, "PROXY TCP4 127.0.0.1 127.0.0.1"),
        (
            ProxyProtocol::V2,
            "\r\n\r\n\0\r\nQUIT\n!\u{11}\0\u{c}\u{7f}",
        ),
    ] {
        let pair = Pair::new(|spec| spec.policy.proxy_protocol = Some(version));
        let (mut client, mut backend) = pair.open();
        client.write_all(b"GET").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let port = client.local_addr().unwrap().port();
        let mut got = Vec::new();
        backend.read_to_end(&mut got).unwrap();
        assert!(got.starts_with(expected.as_bytes()), "{got:?}");
        match version {
            ProxyProtocol::V1 => {
                let end = format!(" {port} {}\r\nGET", pair.spec.frontend.port);
                assert!(got.ends_with(end.as_bytes()), "{got:?}");
            }
            ProxyProtocol::V2 => assert_eq!(got[24..26], port.to_be_bytes()),
        }
        until(
            "the client's bytes to be counted, without the header",
            || pair.rig.stats().backends[0].2.bytes_in == 3,
        );
    }
}

#[test]
fn clients_outside_the_list_are_reset_and_counted() {
    let mut rig = Rig::new();
    let mut spec = spec(Protocol::Tcp, &[named("a")]);
    spec.policy.allow = vec!["10.0.0.0/8".parse().unwrap(), "::1/128".parse().unwrap()];
    rig.serve(&spec);
    assert!(is_reset(&ask(at(&spec))));
    assert_eq!(rig.refused("not_allowed"), 1);
    let v6: SocketAddr = format!("[::1]:{}", spec.frontend.port).parse().unwrap();
    assert_eq!(ask(v6).unwrap(), "a", "IPv6 clients reach IPv4 tasks");
}

#[test]
fn bulk_goes_both_ways_unchanged() {
    const SIZE: usize = 64 << 20;
    // Not the same in any two places, so that a byte out of order is seen.
    let mut state = 1_u64;
    let bytes: Vec<u8> = std::iter::repeat_with(|| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        state.to_be_bytes()
    })
    .take(SIZE / 8)
    .flatten()
    .collect();
    let digest = Sha256::digest(&bytes);
    let pipes = || {
        let descriptors = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
        let targets = descriptors.filter_map(|fd| std::fs::read_link(fd.path()).ok());
        targets
            .filter(|to| to.to_string_lossy().starts_with("pipe:"))
            .count()
    };
    let before = pipes();
    let pair = pair();
    let (client, backend) = pair.open();
    let send = |mut stream: &TcpStream| {
        stream.write_all(&bytes).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
    };
    let receive = |mut stream: &TcpStream| {
        let mut got = Vec::with_capacity(SIZE);
        stream.read_to_end(&mut got).unwrap();
        Sha256::digest(&got)
    };
    std::thread::scope(|scope| {
        scope.spawn(|| send(&client));
        scope.spawn(|| send(&backend));
        let (there, back) = (
            scope.spawn(|| receive(&backend)),
            scope.spawn(|| receive(&client)),
        );
        assert_eq!(there.join().unwrap(), digest);
        assert_eq!(back.join().unwrap(), digest);
    });
    assert!(pipes() > before, "it went by splice(2)");
    until("all bytes to be counted", || {
        let stats = pair.rig.stats().backends[0].2.clone();
        (stats.bytes_in, stats.bytes_out) == (SIZE as u64, SIZE as u64)
    });
}

#[test]
fn without_pipes_bulk_is_copied() {
    const SIZE: usize = 16 << 20;
    let mut rig = Rig::with(RelayConfig {
        pipes: 0,
        ..Default::default()
    });
    let spec = spec(
        Protocol::Tcp,
        &[server(|mut stream| {
            stream.write_all(&vec![7; SIZE]).unwrap();
        })],
    );
    rig.serve(&spec);
    let mut got = Vec::new();
    connect(at(&spec)).read_to_end(&mut got).unwrap();
    assert!(got.len() == SIZE && got.iter().all(|byte| *byte == 7));
}

#[test]
fn a_port_that_another_process_holds_is_named_and_the_others_are_served() {
    let mut rig = Rig::new();
    let (taken, free) = (
        spec(Protocol::Tcp, &[named("a")]),
        spec(Protocol::Tcp, &[named("b")]),
    );
    let port = taken.frontend.port;
    let holder = TcpListener::bind(format!("[::1]:{port}")).unwrap();
    let ops =
        [&taken, &free].map(|spec| portolan_plane::Op::Upsert(std::sync::Arc::new(spec.clone())));
    let failures = rig.relay.apply(&portolan_plane::Plan { ops: ops.into() });
    assert_eq!(failures.len(), 1);
    assert!(
        matches!(&failures[0].error, OpError::PortInUse { port: p } if *p == format!("{port}/tcp"))
    );
    assert_eq!(ask(at(&free)).unwrap(), "b");
    assert!(
        TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok(),
        "not half of it is held"
    );
    drop(holder);
    rig.serve(&taken);
    assert_eq!(ask(at(&taken)).unwrap(), "a");
}

#[test]
fn a_udp_port_that_is_held_is_named_too() {
    let mut rig = Rig::new();
    let spec = spec(Protocol::Udp, &[]);
    let _holder = std::net::UdpSocket::bind(at(&spec)).unwrap();
    let failures = rig.try_serve(&spec);
    assert!(matches!(&failures[0].error, OpError::PortInUse { port } if port.ends_with("/udp")));
}

#[test]
fn one_address_is_served_alone_and_may_come_later() {
    let mut rig = Rig::new();
    let mut spec = spec(Protocol::Tcp, &[named("a")]);
    spec.frontend.address = FrontendAddress::Ip("127.0.0.3".parse().unwrap());
    rig.serve(&spec);
    let port = spec.frontend.port;
    assert_eq!(ask(([127, 0, 0, 3], port).into()).unwrap(), "a");
    assert!(TcpStream::connect(("127.0.0.1", port)).is_err());
    for later in ["192.0.2.1", "2001:db8::1"] {
        spec.frontend.address = FrontendAddress::Ip(later.parse().unwrap());
        rig.serve(&spec);
    }
}

#[test]
fn connections_leave_from_the_source_addresses_in_turn() {
    let backend = server(|mut stream| {
        let peer = stream.peer_addr().unwrap().ip();
        let _ = stream.write_all(peer.to_string().as_bytes());
    });
    let mut spec = spec(Protocol::Tcp, &[backend]);
    // The first is not configured here, and is passed over.
    let addresses = ["192.0.2.9", "127.0.0.5", "127.0.0.6"];
    spec.sources = Some(Sources {
        within: "127.0.0.0/8".parse().unwrap(),
        addresses: addresses.map(|a| a.parse().unwrap()).into(),
    });
    let mut rig = Rig::new();
    rig.serve(&spec);
    let mut from: Vec<_> = (0..6).map(|_| ask(at(&spec)).unwrap()).collect();
    from.sort();
    from.dedup();
    assert_eq!(from, ["127.0.0.5", "127.0.0.6"]);
    assert_eq!(rig.stats().backends[0].2.connect_failures, 0);
}

#[test]
fn connections_beyond_the_limit_are_reset() {
    let mut rig = Rig::with(RelayConfig {
        tcp_connections: 1,
        ..Default::default()
    });
    let spec = spec(Protocol::Tcp, &[echo()]);
    rig.serve(&spec);
    let mut first = connect(at(&spec));
    first.write_all(b"x").unwrap();
    first.read_exact(&mut [0]).unwrap();
    assert!(is_reset(&ask(at(&spec))));
    assert_eq!(rig.refused("limit"), 1);
    drop(first);
    until("there is room again", || {
        // A reset may be here before the connect returns.
        TcpStream::connect(at(&spec))
            .is_ok_and(|mut next| next.write_all(b"x").is_ok() && next.read_exact(&mut [0]).is_ok())
    });
}

#[test]
fn a_flow_is_listed_with_its_bytes() {
    let pair = pair();
    let (mut client, mut backend) = pair.open();
    client.write_all(b"four").unwrap();
    backend.read_exact(&mut [0; 4]).unwrap();
    until("its bytes are counted", || {
        pair.rig.relay.flows(1)[0].bytes_in == 4
    });
    let flows = pair.rig.relay.flows(10);
    assert_eq!(flows.len(), 1);
    assert_eq!(flows[0].client, client.local_addr().unwrap());
    assert_eq!(flows[0].backend, backend.local_addr().unwrap());
    assert_eq!(flows[0].frontend, pair.spec.frontend);
    assert!(pair.rig.relay.flows(0).is_empty());
}

#[test]
fn shutdown_lets_flows_run_for_the_grace_and_takes_no_new_ones() {
    let pair = pair();
    let (mut client, mut backend) = pair.open();
    std::thread::scope(|scope| {
        let shutdown = scope.spawn(|| pair.rig.relay.shutdown(Duration::from_secs(5)));
        let port = pair.spec.frontend.port;
        until("no one listens", || {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok()
        });
        client.write_all(b"x").unwrap();
        backend.read_exact(&mut [0]).unwrap();
        drop((client, backend));
        let begun = Instant::now();
        shutdown.join().unwrap().unwrap();
        assert!(
            begun.elapsed() < Duration::from_secs(4),
            "it ends with the last flow"
        );
    });
}

#[test]
fn after_the_grace_flows_are_reset() {
    let pair = pair();
    let (mut client, _backend) = pair.open();
    pair.rig.relay.shutdown(Duration::ZERO).unwrap();
    assert!(is_reset(&client.read(&mut [0])));
}
