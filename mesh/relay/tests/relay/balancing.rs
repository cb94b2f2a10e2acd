//! Which backend a connection reaches.

use std::{collections::BTreeMap, net::SocketAddr};

use crate::support::{Rig, ask, at, named, spec};
use portolan_model::Protocol;

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
