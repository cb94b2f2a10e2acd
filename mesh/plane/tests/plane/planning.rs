//! The way from what a plane serves to what it is to serve.

use portolan_model::{Protocol, PublishMode, PublishedPort, Record, Snapshot, TaskState};
use portolan_plane::{Actual, DataPlane, FakePlane, Op, Plan, frontends};
use proptest::{collection::vec, prelude::*};

use super::world::{World, service, task};

/// Services `s0`, `s1`, ... on the ports 8000, 8001, ..., each with tasks of these states on two nodes.
fn world(services: &[Vec<TaskState>]) -> World {
    let mut world = World::of(&["n1", "n2"]);
    for (s, tasks) in services.iter().enumerate() {
        let id = format!("s{s}");
        let port = PublishedPort {
            mode: if s % 3 == 2 {
                PublishMode::Host
            } else {
                PublishMode::Ingress
            },
            ..PublishedPort::new(8000 + s as u16, 80, Protocol::Tcp)
        };
        world = world.with("n1", Record::Service(service(&id, &[port])));
        for (t, state) in tasks.iter().enumerate() {
            let node = ["n1", "n2"][t % 2];
            let ip = [10, 208, 1 + (t % 2) as u8, 2 + (s * 8 + t) as u8];
            let task = task(&format!("{id}-{t}"), &id, *state, &[("ingress", ip)]);
            world = world.with(node, Record::Task(task));
        }
    }
    world
}

fn healthy(counts: &[usize]) -> World {
    let services = counts.iter().map(|n| vec![TaskState::Healthy; *n]);
    world(&services.collect::<Vec<_>>())
}

fn served_by(snapshot: &Snapshot) -> FakePlane {
    let mut plane = FakePlane::default();
    assert!(plane.apply(&Plan::new(snapshot, &Actual::new())).is_empty());
    plane
}

fn after(plane: &mut FakePlane, snapshot: &Snapshot) -> Actual {
    assert!(
        plane
            .apply(&Plan::new(snapshot, &plane.dump().unwrap()))
            .is_empty()
    );
    plane.dump().unwrap()
}

#[test]
fn what_is_added_or_changed_comes_before_what_is_removed() {
    let mut plane = served_by(&healthy(&[1, 1]).snapshot(true));
    // s0 grows, s1 goes, s3 comes.
    let mut next = healthy(&[2]);
    let port = PublishedPort::new(8100, 80, Protocol::Tcp);
    next = next.with("n1", Record::Service(service("s3", &[port])));
    let plan = Plan::new(&next.snapshot(true), &plane.dump().unwrap());
    let kinds: Vec<_> = plan
        .ops
        .iter()
        .map(|op| (matches!(op, Op::Remove(_)), op.frontend().port))
        .collect();
    assert_eq!(kinds, [(false, 8000), (false, 8100), (true, 8001)]);
    after(&mut plane, &next.snapshot(true));
    assert_eq!(plane.log[2..], plan.ops);
}

#[test]
fn before_all_sources_reported_nothing_is_taken_away() {
    let full = healthy(&[3, 2]);
    let mut plane = served_by(&full.snapshot(true));
    let before = plane.dump().unwrap();
    let part = healthy(&[1]);
    assert_eq!(after(&mut plane, &part.snapshot(false)), before);
    assert!(Plan::new(&part.snapshot(false), &before).is_empty());
    let synced = after(&mut plane, &part.snapshot(true));
    assert_eq!(synced, frontends(&part.snapshot(true)));
    assert_eq!(synced.values().next().unwrap().backends.len(), 1);
}

#[test]
fn before_all_sources_reported_a_known_task_changes_all_the_same() {
    let mut plane = served_by(&healthy(&[2]).snapshot(true));
    let draining = world(&[vec![TaskState::Draining]]);
    let served = after(&mut plane, &draining.snapshot(false));
    let backends = served.values().next().unwrap().backends.iter();
    let states: Vec<_> = backends.map(|b| (b.task.as_str(), b.state)).collect();
    let (draining, active) = (
        portolan_plane::BackendState::Draining,
        portolan_plane::BackendState::Active,
    );
    assert_eq!(states, [("s0-0", draining), ("s0-1", active)]);
}

fn any_state() -> impl Strategy<Value = TaskState> {
    prop_oneof![
        Just(TaskState::Healthy),
        Just(TaskState::Draining),
        Just(TaskState::Unhealthy),
        Just(TaskState::Starting)
    ]
}

fn any_world() -> impl Strategy<Value = Vec<Vec<TaskState>>> {
    vec(vec(any_state(), 0..5), 0..6)
}

proptest! {
    #[test]
    fn from_anything_one_plan_leads_there_and_the_next_is_empty(
        from in any_world(), to in any_world(), synced: bool,
    ) {
        let (from, to) = (world(&from).snapshot(true), world(&to).snapshot(synced));
        let mut plane = served_by(&from);
        let before = plane.dump().unwrap();
        let now = after(&mut plane, &to);
        prop_assert!(Plan::new(&to, &now).is_empty());
        let wanted = frontends(&to);
        if synced {
            prop_assert_eq!(now, wanted);
        } else {
            for (frontend, old) in &before {
                let kept = now.get(frontend);
                prop_assert!(kept.is_some());
                let has = |task| kept.is_some_and(|k| k.backends.iter().any(|b| b.task == task));
                prop_assert!(old.backends.iter().all(|b| has(b.task.clone())));
            }
            for (frontend, new) in &wanted {
                let kept = &now[frontend].backends;
                prop_assert!(new.backends.iter().all(|b| kept.contains(b)));
            }
        }
    }

    #[test]
    fn no_step_of_a_plan_touches_what_stays_as_it_is(from in any_world(), to in any_world()) {
        let (from, to) = (world(&from).snapshot(true), world(&to).snapshot(true));
        let (before, wanted) = (frontends(&from), frontends(&to));
        for op in &Plan::new(&to, &before).ops {
            prop_assert!(before.get(op.frontend()) != wanted.get(op.frontend()));
        }
    }
}
