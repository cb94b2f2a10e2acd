//! Planes that follow one snapshot after the other are asked for what each of them says, whatever has changed since the
//! last; and what has not changed is not made anew.

use std::{collections::BTreeMap, sync::Arc};

use portolan_model::{
    Catalog, NodeId, Protocol, PublishedPort, Record, Service, Snapshot, Task, TaskState,
};
use portolan_plane::{FakePlane, Planes, frontends};
use proptest::prelude::*;

use crate::world::{ME, attach, network, place, service, task};

/// What may happen between two snapshots.
#[derive(Debug, Clone)]
enum Change {
    Task(u8, u8, TaskState),
    TaskGone(u8),
    /// With a port, a name, and whether the service is on network `back`, with this address.
    Service(u8, u16, String, Option<u8>),
    ServiceGone(u8),
    Network(bool),
}

fn change() -> impl Strategy<Value = Change> {
    let state = prop::sample::select(vec![
        TaskState::Healthy,
        TaskState::Draining,
        TaskState::Starting,
    ]);
    prop_oneof![
        4 => (0..6_u8, 0..4_u8, state).prop_map(|(task, service, state)| Change::Task(task, service, state)),
        1 => (0..6_u8).prop_map(Change::TaskGone),
        2 => (0..4_u8, 80..83_u16, "[ab]", prop::option::of(1..3_u8))
            .prop_map(|(service, port, name, vip)| Change::Service(service, port, name, vip)),
        1 => (0..4_u8).prop_map(Change::ServiceGone),
        1 => any::<bool>().prop_map(Change::Network),
    ]
}

#[derive(Debug, Default)]
struct World {
    tasks: BTreeMap<u8, Task>,
    services: BTreeMap<u8, Service>,
    version: u64,
    back: bool,
}

impl World {
    fn take(&mut self, change: Change) {
        self.version += 1;
        match change {
            Change::Task(number, of, state) => {
                let at = [
                    ("ingress", [10, 208, 2, number]),
                    ("back", [10, 9, 0, number]),
                ];
                let new = task(&format!("t{number}"), &format!("s{of}"), state, &at);
                self.tasks.insert(number, new);
            }
            Change::TaskGone(number) => drop(self.tasks.remove(&number)),
            Change::Service(number, port, name, vip) => {
                let port = PublishedPort::new(port, 80, Protocol::Tcp);
                let mut new = service(&format!("s{number}"), &[port]);
                new.spec_version = self.version;
                new.name = name;
                new.networks = vip
                    .map(|vip| place("back", Some([10, 9, 1, vip])))
                    .into_iter()
                    .collect();
                self.services.insert(number, new);
            }
            Change::ServiceGone(number) => drop(self.services.remove(&number)),
            Change::Network(back) => self.back = back,
        }
    }

    fn records(&self) -> Vec<Record> {
        let services = self.services.values().cloned().map(Record::Service);
        let mut records: Vec<Record> = services.collect();
        records.extend(self.tasks.values().cloned().map(Record::Task));
        records.push(attach("ingress", "10.208.1.0/24"));
        if self.back {
            records.extend([
                network("back", 4100, "10.9.0.0/16"),
                attach("back", "10.9.0.0/24"),
            ]);
        }
        records
    }
}

fn planes(snapshot: &Arc<Snapshot>) -> Planes<FakePlane, FakePlane> {
    Planes::new(FakePlane::default(), snapshot)
}

proptest! {
    #[test]
    fn what_is_asked_for_is_what_the_snapshot_says(changes in prop::collection::vec(change(), 1..40)) {
        let mut world = World::default();
        let mut catalog = Catalog::new(NodeId::of_name(ME));
        let mut planes = planes(&Arc::new(catalog.snapshot(true)));
        for change in changes {
            world.take(change);
            catalog.set_owner(NodeId::of_name(ME), true, world.records());
            let snapshot = Arc::new(catalog.snapshot(true));
            let before = planes.told().clone();
            planes.update(&snapshot);
            prop_assert_eq!(planes.told(), &frontends(&snapshot));
            for (frontend, spec) in planes.told() {
                let known = before.get(frontend).filter(|known| *known == spec);
                prop_assert!(known.is_none_or(|known| Arc::ptr_eq(known, spec)), "{frontend} was made anew");
            }
        }
    }
}
