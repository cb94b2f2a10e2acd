//! Backends that do not answer, and what their clients see.

use std::{
    net::{SocketAddr, TcpListener, TcpStream},
    time::{Duration, Instant},
};

use portolan_model::Protocol;
use socket2::{Domain, Socket, Type};

use crate::support::{Rig, ask, at, closed, is_reset, named, spec};

/// An address that drops what comes, as a node does that is cut from the network: a listener whose queue
/// is full.
struct BlackHole {
    address: SocketAddr,
    _listener: TcpListener,
    _queued: Vec<Socket>,
}

impl BlackHole {
    /// Each on an address of its own, for silence is that of a whole task.
    fn new(ip: [u8; 4]) -> Self {
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        listener.bind(&SocketAddr::from((ip, 0)).into()).unwrap();
        listener.listen(0).unwrap();
        let listener = TcpListener::from(listener);
        let address = listener.local_addr().unwrap();
        let queued = (0..4)
            .map(|_| {
                let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
                socket.set_nonblocking(true).unwrap();
                let _ = socket.connect(&address.into());
                socket
            })
            .collect();
        let hole = Self {
            address,
            _listener: listener,
            _queued: queued,
        };
        let limit = Duration::from_millis(100);
        assert!(TcpStream::connect_timeout(&hole.address, limit).is_err());
        hole
    }
}

fn timed(to: SocketAddr) -> (std::io::Result<String>, Duration) {
    let begun = Instant::now();
    (ask(to), begun.elapsed())
}

#[test]
fn a_refusal_is_not_seen_by_the_client() {
    let mut rig = Rig::new();
    let spec = spec(Protocol::Tcp, &[closed(), named("b"), named("c")]);
    rig.serve(&spec);
    let asked: Vec<_> = (0..6).map(|_| ask(at(&spec)).unwrap()).collect();
    assert_eq!(
        asked,
        ["b", "c", "b", "c", "b", "c"],
        "and the others share its turns"
    );
    let stats = rig.stats();
    assert_eq!(stats.retries, 1, "it was passed over after the first");
    assert_eq!(stats.backends[0].2.connect_failures, 1);
    assert_eq!(stats.backends[0].2.flows, 0);
}

#[test]
fn silence_costs_one_client_a_short_delay() {
    let (first, second) = (
        BlackHole::new([127, 0, 2, 1]),
        BlackHole::new([127, 0, 2, 2]),
    );
    let mut rig = Rig::new();
    let spec = spec(Protocol::Tcp, &[first.address, second.address, named("c")]);
    rig.serve(&spec);
    let (answer, took) = timed(at(&spec));
    assert_eq!(answer.unwrap(), "c");
    assert!(took < Duration::from_millis(1500), "{took:?}");
    for _ in 0..5 {
        let (answer, took) = timed(at(&spec));
        assert_eq!(answer.unwrap(), "c");
        assert!(
            took < Duration::from_millis(200),
            "passed over, but {took:?}"
        );
    }
}

#[test]
fn one_that_was_passed_over_and_is_back_is_found() {
    let mut rig = Rig::new();
    let gone = closed();
    let spec = spec(Protocol::Tcp, &[gone, named("b")]);
    rig.serve(&spec);
    assert_eq!(ask(at(&spec)).unwrap(), "b");
    let _back = TcpListener::bind(gone).unwrap();
    let deadline = Instant::now() + Duration::from_secs(5);
    while rig.stats().backends[0].2.flows == 0 {
        assert!(Instant::now() < deadline, "it gets no flows");
        let stream = crate::support::connect(at(&spec));
        stream
            .set_read_timeout(Some(Duration::from_millis(20)))
            .unwrap();
        // Who is back accepts and says nothing.
        let _ = std::io::read_to_string(stream);
    }
}

#[test]
fn all_silent_is_a_reset_and_not_a_hang() {
    let hole = BlackHole::new([127, 0, 2, 3]);
    let mut rig = Rig::new();
    let spec = spec(Protocol::Tcp, &[hole.address]);
    rig.serve(&spec);
    let (answer, took) = timed(at(&spec));
    assert!(is_reset(&answer), "{answer:?}");
    assert!(took < Duration::from_millis(1500), "{took:?}");
    assert_eq!(rig.refused("all_backends_failed"), 1);
    assert_eq!(rig.active(), 0);
}

#[test]
fn all_passed_over_are_tried_all_the_same() {
    let mut rig = Rig::new();
    let gone = closed();
    let spec = spec(Protocol::Tcp, &[gone]);
    rig.serve(&spec);
    assert!(is_reset(&ask(at(&spec))));
    let back = TcpListener::bind(gone).unwrap();
    let server = std::thread::spawn(move || drop(back.accept().unwrap()));
    assert_eq!(ask(at(&spec)).unwrap(), "");
    server.join().unwrap();
}

#[test]
fn no_backend_is_a_reset() {
    let mut rig = Rig::new();
    let spec = spec(Protocol::Tcp, &[]);
    rig.serve(&spec);
    assert!(is_reset(&ask(at(&spec))));
    assert_eq!(rig.refused("no_backend"), 1);
}
