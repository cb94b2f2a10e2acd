//! Which backend a connection reaches.

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpStream},
};

use crate::support::{Rig, ask, at, connect, echo, named, spec, until};
use portolan_model::{Balancing, Protocol};
use portolan_plane::BackendState;

fn count(to: SocketAddr, connections: usize) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for _ in 0..connections {
        *counts.entry(ask(to).unwrap()).or_insert(0) += 1;
    }
    counts
}

fn shares<const N: usize>(expected: [(&str, usize); N]) -> BTreeMap<String, usize> {
    expected
        .map(|(name, count)| (name.to_owned(), count))
        .into()
}

#[test]
fn round_robin_is_exactly_fair() {
    let mut rig = Rig::new();
    let spec = spec(Protocol::Tcp, &[named("a"), named("b"), named("c")]);
    rig.serve(&spec);
    assert_eq!(
        count(at(&spec), 30),
        shares([("a", 10), ("b", 10), ("c", 10)])
    );
}

#[test]
fn round_robin_is_exactly_fair_to_clients_that_come_at_once() {
    let mut rig = Rig::new();
    let spec = spec(Protocol::Tcp, &[named("a"), named("b"), named("c")]);
    rig.serve(&spec);
    let to = at(&spec);
    let threads: Vec<_> = (0..8)
        .map(|_| std::thread::spawn(move || count(to, 30)))
        .collect();
    let mut sum = BTreeMap::new();
    for (name, count) in threads
        .into_iter()
        .flat_map(|thread| thread.join().unwrap())
    {
        *sum.entry(name).or_insert(0) += count;
    }
    assert_eq!(sum, shares([("a", 80), ("b", 80), ("c", 80)]));
    let flows: Vec<u64> = rig
        .stats()
        .backends
        .iter()
        .map(|(_, _, b)| b.flows)
        .collect();
    assert_eq!(flows, [80, 80, 80]);
}

#[test]
fn an_update_does_not_begin_the_turns_anew() {
    let mut rig = Rig::new();
    let spec = spec(Protocol::Tcp, &[named("a"), named("b"), named("c")]);
    let asked: Vec<_> = (0..6)
        .map(|_| {
            rig.serve(&spec);
            ask(at(&spec)).unwrap()
        })
        .collect();
    assert_eq!(asked, ["a", "b", "c", "a", "b", "c"]);
}

#[test]
fn shares_follow_the_weights_and_zero_is_none() {
    let mut rig = Rig::new();
    let mut spec = spec(Protocol::Tcp, &[named("a"), named("b"), named("c")]);
    for (backend, weight) in spec.backends.iter_mut().zip([3, 1, 0]) {
        backend.weight = weight;
    }
    rig.serve(&spec);
    assert_eq!(count(at(&spec), 40), shares([("a", 30), ("b", 10)]));
}

#[test]
fn local_backends_come_first_while_there_are_any() {
    let mut rig = Rig::new();
    let mut spec = spec(Protocol::Tcp, &[named("a"), named("b"), named("c")]);
    spec.policy.local_first = true;
    spec.backends[0].local = false;
    spec.backends[1].local = false;
    rig.serve(&spec);
    assert_eq!(count(at(&spec), 4), shares([("c", 4)]));
    spec.backends[2].state = BackendState::Draining;
    rig.serve(&spec);
    assert_eq!(count(at(&spec), 4), shares([("a", 2), ("b", 2)]));
}

#[test]
fn least_connections_evens_out_what_is_open() {
    let mut rig = Rig::new();
    let mut spec = spec(Protocol::Tcp, &[echo(), echo(), echo()]);
    spec.policy.balancing = Balancing::LeastConnections;
    rig.serve(&spec);
    let open = |count: usize| -> Vec<TcpStream> {
        let mut streams: Vec<_> = (0..count).map(|_| connect(at(&spec))).collect();
        for stream in &mut streams {
            stream.write_all(b"x").unwrap();
            stream.read_exact(&mut [0]).unwrap();
        }
        streams
    };
    let active = |rig: &Rig| -> Vec<u64> {
        rig.stats()
            .backends
            .iter()
            .map(|(_, _, b)| b.active)
            .collect()
    };
    let mut streams = open(9);
    assert_eq!(active(&rig), [3, 3, 3]);
    let first = rig.stats().backends[0].0.clone();
    let flows = portolan_plane::DataPlane::flows(&rig.relay, 100);
    let of_first: Vec<SocketAddr> = flows
        .iter()
        .filter(|f| f.task == first)
        .map(|f| f.client)
        .collect();
    streams.retain(|stream| !of_first.contains(&stream.local_addr().unwrap()));
    until("three have gone", || rig.active() == 6);
    let _more = open(3);
    assert_eq!(active(&rig), [3, 3, 3]);
}

#[test]
fn source_hash_keeps_a_client_at_its_backend() {
    let mut rig = Rig::new();
    let mut spec = spec(Protocol::Tcp, &[named("a"), named("b"), named("c")]);
    spec.policy.balancing = Balancing::SourceHash;
    rig.serve(&spec);
    let ask_from = |last: u8| {
        let from: IpAddr = [127, 0, 1, last].into();
        let socket =
            socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::new(from, 0).into()).unwrap();
        socket.connect(&at(&spec).into()).unwrap();
        let mut answer = String::new();
        TcpStream::from(socket).read_to_string(&mut answer).unwrap();
        answer
    };
    let first: Vec<_> = (1..30).map(ask_from).collect();
    let second: Vec<_> = (1..30).map(ask_from).collect();
    assert_eq!(first, second);
    for name in ["a", "b", "c"] {
        assert!(
            first.iter().any(|answer| answer == name),
            "{name} has clients too"
        );
    }
}
