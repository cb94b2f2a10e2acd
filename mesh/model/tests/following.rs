//! A catalog that follows changes shows what a new one would show of the same records, whatever came before.
#![expect(clippy::unwrap_used, reason = "a test that cannot set up has failed")]

use std::{collections::BTreeMap, net::Ipv4Addr};

use imbl::{OrdMap, ordmap::DiffItem};
use portolan_model::{
    Catalog, Network, NetworkAttach, Node, NodeId, NodeState, Protocol, PublishedPort, Record,
    RecordKey, Service, Slice, Task, TaskState,
};
use proptest::prelude::*;

type Records = BTreeMap<RecordKey, Record>;

#[derive(Debug, Clone)]
enum Change {
    /// Some records of a node, new ones and gone ones.
    Some(NodeId, BTreeMap<RecordKey, Option<Record>>),
    /// All of them, and whether the node is a member.
    All(NodeId, bool, Vec<Record>),
    /// Whether the node is a member.
    Visible(NodeId, bool),
    Gone(NodeId),
}

fn owner() -> impl Strategy<Value = NodeId> {
    (0..4_u8).prop_map(|number| NodeId::of_name(&number.to_string()))
}

fn task() -> impl Strategy<Value = Record> {
    let state = prop::sample::select(vec![
        TaskState::Starting,
        TaskState::Healthy,
        TaskState::Draining,
    ]);
    let of = prop::option::weighted(0.9, 0..3_u8);
    (0..8_u8, of, 0..4_u32, state).prop_map(|(id, of, slot, state)| {
        Record::Task(Task {
            id: format!("t{id}").parse().unwrap(),
            service: of.map(|of| format!("s{of}").parse().unwrap()),
            slot,
            endpoints: Vec::new(),
            state,
            weight: 1,
        })
    })
}

fn service() -> impl Strategy<Value = Record> {
    (0..3_u8, 1..4_u64, 80..83_u16, prop::bool::weighted(0.2)).prop_map(
        |(id, version, port, removed)| {
            let mut service = Service::new(format!("s{id}").parse().unwrap());
            service.spec_version = version;
            service.ports = vec![PublishedPort::new(port, 80, Protocol::Tcp)];
            service.removed = removed;
            Record::Service(service)
        },
    )
}

fn node() -> impl Strategy<Value = Record> {
    let state = prop::sample::select(vec![NodeState::Up, NodeState::Draining]);
    state.prop_map(|state| {
        Record::Node(Node {
            name: "n".to_owned(),
            underlay: Ipv4Addr::LOCALHOST.into(),
            state,
            version: String::new(),
            fast_path: false,
            ipv6: false,
        })
    })
}

fn network() -> impl Strategy<Value = Record> {
    (0..2_u8, 1..3_u64, any::<bool>()).prop_map(|(number, version, removed)| {
        Record::Network(Network {
            name: format!("w{number}").parse().unwrap(),
            vni: 5000,
            subnet: format!("10.{number}.0.0/16").parse().unwrap(),
            internal: false,
            encrypted: false,
            spec_version: version,
            created_ms: 1,
            removed,
            stack: None,
            own_range: None,
        })
    })
}

fn attach() -> impl Strategy<Value = Record> {
    (0..2_u8, 0..3_u64).prop_map(|(number, claimed_ms)| {
        Record::NetworkAttach(NetworkAttach {
            network: format!("w{number}").parse().unwrap(),
            slices: vec![Slice {
                prefix: format!("10.{number}.0.0/24").parse().unwrap(),
                claimed_ms,
            }],
        })
    })
}

fn record() -> impl Strategy<Value = Record> {
    prop_oneof![6 => task(), 2 => service(), 1 => node(), 1 => network(), 1 => attach()]
}

fn change() -> impl Strategy<Value = Change> {
    // With `false` they are gone.
    let some = |of: BoxedStrategy<Record>| {
        let changes = prop::collection::vec((of, prop::bool::weighted(0.7)), 1..5);
        let some = changes.prop_map(|changes| {
            let some = changes.into_iter();
            some.map(|(record, there)| (record.key(), there.then_some(record)))
                .collect()
        });
        (owner(), some).prop_map(|(owner, changes)| Change::Some(owner, changes))
    };
    prop_oneof![
        6 => some(task().boxed()),
        2 => some(record().boxed()),
        1 => (owner(), prop::bool::weighted(0.8), prop::collection::vec(record(), 0..12))
            .prop_map(|(owner, visible, records)| Change::All(owner, visible, records)),
        1 => (owner(), any::<bool>()).prop_map(|(owner, visible)| Change::Visible(owner, visible)),
        1 => owner().prop_map(Change::Gone),
    ]
}

/// What the nodes publish, as it should be known after all changes.
#[derive(Debug, Clone, Default, PartialEq)]
struct World(BTreeMap<NodeId, (bool, Records)>);

impl World {
    fn take(&mut self, change: &Change) {
        match change {
            Change::Some(owner, changes) => {
                let (visible, records) = self.0.entry(*owner).or_default();
                *visible = true;
                for (key, record) in changes {
                    match record {
                        Some(record) => drop(records.insert(key.clone(), record.clone())),
                        None => drop(records.remove(key)),
                    }
                }
            }
            Change::All(owner, visible, records) => {
                let records = records.iter().map(|record| (record.key(), record.clone()));
                self.0.insert(*owner, (*visible, records.collect()));
            }
            Change::Visible(owner, visible) => self.0.entry(*owner).or_default().0 = *visible,
            Change::Gone(owner) => drop(self.0.remove(owner)),
        }
    }

    /// A catalog that has never known anything else.
    fn catalog(&self) -> Catalog {
        let mut catalog = Catalog::new(NodeId::of_name("0"));
        for (owner, (visible, records)) in &self.0 {
            catalog.set_owner(*owner, *visible, records.values().cloned());
        }
        catalog
    }
}

fn take(catalog: &mut Catalog, change: Change) -> bool {
    match change {
        Change::Some(owner, changes) => catalog.change_owner(owner, true, changes),
        Change::All(owner, visible, records) => catalog.set_owner(owner, visible, records),
        Change::Visible(owner, visible) => catalog.change_owner(owner, visible, []),
        Change::Gone(owner) => catalog.remove_owner(&owner),
    }
}

proptest! {
    #[test]
    fn what_was_followed_is_as_if_merged_anew(changes in prop::collection::vec((change(), any::<bool>()), 1..40)) {
        let (mut world, mut catalog) = (World::default(), World::default().catalog());
        for (change, looked_at) in changes {
            let before = (world.clone(), catalog.revision());
            world.take(&change);
            let news = take(&mut catalog, change);
            prop_assert_eq!(news, world != before.0);
            prop_assert_eq!(news, catalog.revision() != before.1);
            // Several changes may come before anyone looks.
            if looked_at {
                prop_assert_eq!(catalog.snapshot(true), world.catalog().snapshot(true));
            }
        }
        prop_assert_eq!(catalog.snapshot(true), world.catalog().snapshot(true));
    }

    /// All that follows changes relies on this of the maps of snapshots, also where much is shared.
    #[test]
    fn two_maps_differ_in_what_was_changed(
        size in 0..3_000_u32,
        changes in prop::collection::vec((0..3_000_u32, prop::option::of(0..2_u8)), 0..60),
    ) {
        let before: OrdMap<u32, u8> = (0..size).map(|key| (key, 0)).collect();
        let mut after = before.clone();
        for (key, value) in changes {
            match value {
                Some(value) => drop(after.insert(key, value)),
                None => drop(after.remove(&key)),
            }
        }
        let found = before.diff(&after).map(|item| match item {
            DiffItem::Add(key, new) => (*key, None, Some(*new)),
            DiffItem::Update { old: (key, old), new: (_, new) } => (*key, Some(*old), Some(*new)),
            DiffItem::Remove(key, old) => (*key, Some(*old), None),
        });
        let all = (0..3_000).map(|key| (key, before.get(&key).copied(), after.get(&key).copied()));
        let differing = all.filter(|(_, old, new)| old != new);
        prop_assert_eq!(found.collect::<Vec<_>>(), differing.collect::<Vec<_>>());
        prop_assert_eq!(before == after, before.iter().eq(after.iter()));
    }
}
