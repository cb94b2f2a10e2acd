//! What happens when a plane does not do what it is told.

use std::{collections::BTreeSet, time::Duration};

use portolan_model::{Protocol, PublishedPort, Record, Snapshot};
use portolan_plane::{
    Actual, DataPlane, Failure, FaultyPlane, FlowView, Frontend, FrontendAddress, OpError, Plan,
    PlaneKind, PlaneStats, Reconciler, Unavailable, frontends,
};

use super::world::{ME, World, service};

/// A plane that the test can change while the reconciler has it.
#[derive(Debug, Default, Clone)]
struct Shared(std::rc::Rc<std::cell::RefCell<FaultyPlane>>);

impl DataPlane for Shared {
    fn kind(&self) -> PlaneKind {
        self.0.borrow().kind()
    }
    fn probe(&self) -> Result<(), Unavailable> {
        self.0.borrow().probe()
    }
    fn dump(&self) -> Result<Actual, OpError> {
        self.0.borrow().dump()
    }
    fn apply(&mut self, plan: &Plan) -> Vec<Failure> {
        self.0.borrow_mut().apply(plan)
    }
    fn stats(&self) -> PlaneStats {
        self.0.borrow().stats()
    }
    fn flows(&self, limit: usize) -> Vec<FlowView> {
        self.0.borrow().flows(limit)
    }
}

fn ports(ports: &[u16]) -> Snapshot {
    let world = ports.iter().fold(World::of(&[ME]), |world, port| {
        let published = PublishedPort::new(*port, 80, Protocol::Tcp);
        let service = service(&format!("s{port}"), &[published]);
        world.with(ME, Record::Service(service))
    });
    world.snapshot(true)
}

fn at(port: u16) -> Frontend {
    Frontend {
        address: FrontendAddress::Node,
        port,
        protocol: Protocol::Tcp,
    }
}

fn reconciler() -> (Shared, Reconciler<Shared>) {
    let plane = Shared::default();
    (plane.clone(), Reconciler::new(plane, &ports(&[])))
}

fn refuse(plane: &Shared, frontends: &[Frontend]) {
    plane.0.borrow_mut().refused = frontends.iter().cloned().collect();
}

const FIRST: Duration = Duration::from_millis(200);

#[test]
fn what_works_is_served_and_nothing_more_is_to_be_done() {
    let (plane, mut reconciler) = reconciler();
    assert_eq!(reconciler.update(&ports(&[80, 81])), None);
    let standing = reconciler.standing();
    assert_eq!((standing.served, standing.applied_total), (2, 2));
    assert_eq!(plane.dump().unwrap(), frontends(&ports(&[80, 81])));
    assert_eq!(reconciler.step(), None);
    assert_eq!(reconciler.standing().applied_total, 2);
}

#[test]
fn the_pause_doubles_up_to_five_seconds_and_a_new_snapshot_begins_again() {
    let (plane, mut reconciler) = reconciler();
    refuse(&plane, &[at(80)]);
    let mut pauses = vec![reconciler.update(&ports(&[80]))];
    pauses.extend((0..6).map(|_| reconciler.step()));
    let expected = [200, 400, 800, 1600, 3200, 5000, 5000].map(Duration::from_millis);
    assert_eq!(pauses, expected.map(Some));
    assert_eq!(reconciler.standing().failed_total, 7);
    assert_eq!(reconciler.update(&ports(&[80, 81])), Some(FIRST));
}

#[test]
fn a_failure_is_told_by_frontend_with_its_cause_and_keeps_nothing_else_back() {
    let (plane, mut reconciler) = reconciler();
    refuse(&plane, &[at(81)]);
    reconciler.update(&ports(&[80, 81, 82]));
    let standing = reconciler.standing();
    assert_eq!(standing.served, 2);
    let (frontend, words) = standing.failures.first_key_value().unwrap();
    assert_eq!((frontend, standing.failures.len()), (&at(81), 1));
    assert!(
        words.starts_with("program *:81/tcp: Cannot allocate memory"),
        "{words}"
    );
}

#[test]
fn what_failed_is_tried_again_until_it_works() {
    let (plane, mut reconciler) = reconciler();
    refuse(&plane, &[at(80)]);
    reconciler.update(&ports(&[80]));
    refuse(&plane, &[]);
    assert_eq!(reconciler.step(), None);
    assert!(reconciler.standing().failures.is_empty());
    assert_eq!(reconciler.standing().served, 1);
    // The next failure is a first one again.
    refuse(&plane, &[at(81)]);
    assert_eq!(reconciler.update(&ports(&[80, 81])), Some(FIRST));
}

#[test]
fn what_no_longer_is_asked_for_fails_no_more() {
    let (plane, mut reconciler) = reconciler();
    refuse(&plane, &[at(80)]);
    reconciler.update(&ports(&[80]));
    assert_eq!(reconciler.update(&ports(&[81])), None);
    assert!(reconciler.standing().failures.is_empty());
}

#[test]
fn a_plane_that_cannot_be_read_is_left_alone_until_it_can() {
    let (plane, mut reconciler) = reconciler();
    plane.0.borrow().unreadable.set(2);
    assert_eq!(reconciler.update(&ports(&[80])), Some(FIRST));
    let unreadable = reconciler.standing().unreadable.clone().unwrap();
    assert!(unreadable.starts_with("program dump: "), "{unreadable}");
    assert_eq!(reconciler.step(), Some(FIRST * 2));
    assert!(plane.dump().unwrap().is_empty());
    assert_eq!(reconciler.step(), None);
    assert_eq!(reconciler.standing().unreadable, None);
    assert_eq!(plane.dump().unwrap().len(), 1);
}

#[test]
fn a_plane_that_refuses_every_third_operation_gets_there() {
    let (plane, mut reconciler) = reconciler();
    plane.0.borrow_mut().nth = 3;
    let all: Vec<u16> = (80..120).collect();
    let mut wait = reconciler.update(&ports(&all));
    let mut steps = 0;
    while wait.is_some() {
        wait = reconciler.step();
        steps += 1;
        assert!(steps < 20, "{:?}", reconciler.standing().failures);
    }
    let served: BTreeSet<u16> = plane.dump().unwrap().keys().map(|f| f.port).collect();
    assert_eq!(served, all.into_iter().collect());
}
