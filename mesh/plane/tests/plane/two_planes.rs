//! One plane before another: what the fast one is given, and that neither keeps the other from serving.

use std::{cell::RefCell, collections::BTreeSet, rc::Rc, sync::Arc};

use portolan_model::{PlaneChoice, Protocol, PublishedPort, Record, Snapshot};
use portolan_plane::{
    Actual, DataPlane, Failure, FaultyPlane, FlowView, Frontend, FrontendAddress, Op, OpError,
    Plan, PlaneKind, PlaneStats, Planes, Unavailable,
};

use super::world::{ME, World, service};

/// A plane that the test can change while the reconciler has it; some frontends it does not carry at all.
#[derive(Debug, Default, Clone)]
struct Plane {
    inner: Rc<RefCell<FaultyPlane>>,
    unsupported: Rc<RefCell<BTreeSet<Frontend>>>,
}

impl DataPlane for Plane {
    fn kind(&self) -> PlaneKind {
        PlaneKind::Fake
    }
    fn probe(&self) -> Result<(), Unavailable> {
        Ok(())
    }
    fn dump(&self) -> Result<Actual, OpError> {
        self.inner.borrow().dump()
    }
    fn apply(&mut self, plan: &Plan) -> Vec<Failure> {
        let unsupported = self.unsupported.borrow();
        let refused = |op: &&Op| matches!(op, Op::Upsert(_)) && unsupported.contains(op.frontend());
        let (no, yes): (Vec<_>, Vec<_>) = plan.ops.iter().partition(refused);
        let ops = yes.into_iter().cloned().collect();
        let mut failures = self.inner.borrow_mut().apply(&Plan { ops });
        failures.extend(no.into_iter().map(|op| Failure {
            frontend: op.frontend().clone(),
            error: OpError::Unsupported("PROXY protocol".to_owned()),
        }));
        failures
    }
    fn stats(&self) -> PlaneStats {
        self.inner.borrow().stats()
    }
    fn flows(&self, limit: usize) -> Vec<FlowView> {
        self.inner.borrow().flows(limit)
    }
}

impl Plane {
    fn refuse(&self, ports: &[u16]) {
        self.inner.borrow_mut().refused = ports.iter().map(|port| at(*port)).collect();
    }

    fn served(&self) -> Vec<u16> {
        let served = self.inner.borrow().dump().unwrap();
        served.keys().map(|frontend| frontend.port).collect()
    }
}

fn at(port: u16) -> Frontend {
    Frontend {
        address: FrontendAddress::Node,
        port,
        protocol: Protocol::Tcp,
    }
}

/// A service for each port; those of the second list ask for the relay.
fn world(ports: &[u16], for_relay: &[u16], synced: bool) -> Arc<Snapshot> {
    let world = ports.iter().fold(World::of(&[ME]), |world, port| {
        let published = PublishedPort::new(*port, 80, Protocol::Tcp);
        let mut service = service(&format!("s{port}"), &[published]);
        if for_relay.contains(port) {
            service.plane = PlaneChoice::Relay;
        }
        world.with(ME, Record::Service(service))
    });
    Arc::new(world.snapshot(synced))
}

fn ports(ports: &[u16]) -> Arc<Snapshot> {
    world(ports, &[], true)
}

/// Both planes, and what drives them.
fn both() -> (Plane, Plane, Planes<Plane, Plane>) {
    let (slow, fast) = (Plane::default(), Plane::default());
    let mut planes = Planes::new(slow.clone(), &ports(&[]));
    planes.set_fast(fast.clone());
    (slow, fast, planes)
}

#[test]
fn both_serve_but_what_asks_for_the_relay() {
    let (slow, fast, mut planes) = both();
    assert_eq!(planes.update(&world(&[80, 81], &[81], true)), None);
    assert_eq!((slow.served(), fast.served()), (vec![80, 81], vec![80]));
    assert_eq!(planes.kept_from_fast(&at(80)), None);
    let reason = planes.kept_from_fast(&at(81)).unwrap();
    assert!(reason.contains("asks for the relay"), "{reason}");
    // A change of the declaration takes it away from the fast one again.
    planes.update(&world(&[80, 81], &[80, 81], true));
    assert_eq!((slow.served(), fast.served()), (vec![80, 81], vec![]));
}

#[test]
fn a_port_that_another_process_holds_is_not_taken_from_it() {
    let (slow, fast, mut planes) = both();
    slow.refuse(&[80]);
    assert!(planes.update(&ports(&[80, 81])).is_some());
    assert_eq!((slow.served(), fast.served()), (vec![81], vec![81]));
    assert!(planes.kept_from_fast(&at(80)).is_some());
    // Once the process is gone both serve.
    slow.refuse(&[]);
    assert_eq!(planes.step(), None);
    assert_eq!((slow.served(), fast.served()), (vec![80, 81], vec![80, 81]));
}

#[test]
fn what_the_slow_one_has_and_cannot_change_stays_with_the_fast_one() {
    let (slow, fast, mut planes) = both();
    planes.update(&ports(&[80]));
    slow.refuse(&[80]);
    planes.update(&world(&[80, 81], &[], true));
    assert_eq!((slow.served(), fast.served()), (vec![80, 81], vec![80, 81]));
}

#[test]
fn a_failure_of_the_fast_one_keeps_the_slow_one_from_nothing() {
    let (slow, fast, mut planes) = both();
    fast.refuse(&[80]);
    assert!(planes.update(&ports(&[80, 81])).is_some());
    assert_eq!((slow.served(), fast.served()), (vec![80, 81], vec![81]));
    assert!(planes.slow_standing().failures.is_empty());
    assert!(
        planes
            .fast_standing()
            .unwrap()
            .failures
            .contains_key(&at(80))
    );
    fast.inner.borrow().unreadable.set(1);
    planes.update(&ports(&[82]));
    assert_eq!(slow.served(), [82]);
    fast.refuse(&[]);
    planes.step();
    assert_eq!(fast.served(), [82]);
}

#[test]
fn what_the_fast_one_does_not_carry_is_no_failure_and_does_not_stay_as_it_was() {
    let (slow, fast, mut planes) = both();
    planes.update(&ports(&[80, 81]));
    fast.unsupported.borrow_mut().insert(at(80));
    let mut changed = World::of(&[ME]);
    for port in [80, 81] {
        let mut service = service(
            &format!("s{port}"),
            &[PublishedPort::new(port, 90, Protocol::Tcp)],
        );
        service.local_first = true;
        changed = changed.with(ME, Record::Service(service));
    }
    planes.update(&Arc::new(changed.snapshot(true)));
    assert_eq!((slow.served(), fast.served()), (vec![80, 81], vec![81]));
    let standing = planes.fast_standing().unwrap();
    assert!(standing.failures.is_empty());
    assert_eq!(standing.unsupported[&at(80)], "PROXY protocol");
    assert_eq!(standing.failed_total, 0);
}

#[test]
fn a_fast_one_that_comes_later_keeps_what_it_has_until_all_is_known() {
    let (slow, mut fast) = (Plane::default(), Plane::default());
    let left = portolan_plane::contract::spec(80, Protocol::Tcp, &[]);
    fast.apply(&Plan {
        ops: vec![Op::Upsert(left.into())],
    });
    let mut planes = Planes::<Plane, Plane>::new(slow, &ports(&[]));
    planes.update(&world(&[81], &[], false));
    planes.set_fast(fast.clone());
    planes.step();
    assert_eq!(fast.served(), [80, 81]);
    planes.update(&ports(&[81]));
    assert_eq!(fast.served(), [81]);
    assert!(planes.take_fast().is_some());
    planes.update(&ports(&[82]));
    assert_eq!((fast.served(), planes.fast_standing()), (vec![81], None));
}

#[test]
fn a_port_that_is_shared_is_the_fast_planes_though_the_slow_one_cannot_have_it() {
    let (slow, fast) = (Plane::default(), Plane::default());
    slow.refuse(&[8080, 8081]);
    let snapshot = world(&[8080, 8081], &[], true);
    let mut planes = Planes::new(slow, &snapshot);
    planes.set_fast(fast.clone());
    planes.update(&snapshot);
    assert_eq!(fast.served(), [0_u16; 0]);
    assert!(planes.share(BTreeSet::from([at(8080)])));
    assert!(!planes.share(BTreeSet::from([at(8080)])));
    planes.step();
    assert_eq!(fast.served(), [8080]);
    assert_eq!(planes.kept_from_fast(&at(8080)), None);
    planes.share(BTreeSet::new());
    planes.step();
    assert_eq!(fast.served(), [0_u16; 0]);
}
