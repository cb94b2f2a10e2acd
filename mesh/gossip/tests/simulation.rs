//! Whole clusters on a virtual clock. A failure names the seed, which brings the same run again:
//! `SEED=17 cargo nextest run -p portolan-gossip --test simulation`.

#![expect(
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking, in its helpers too"
)]

use std::{collections::BTreeSet, env, time::Duration};

use portolan_gossip::sim::{Faults, World};

const SECOND: Duration = Duration::from_secs(1);

/// The seeds of a test, or the one that is asked for.
fn seeds(range: std::ops::Range<u64>) -> Vec<u64> {
    match env::var("SEED") {
        Ok(seed) => vec![seed.parse().expect("SEED is a number")],
        Err(_) => range.collect(),
    }
}

/// A cluster that stands.
fn cluster(nodes: usize, seed: u64) -> World {
    let mut world = World::new(nodes, seed);
    world.start_all(SECOND);
    settle(&mut world, 20 * SECOND);
    world
}

#[track_caller]
fn settle(world: &mut World, most: Duration) -> Duration {
    let took = world.until(most, World::is_settled);
    took.unwrap_or_else(|| {
        let mut differences = world.differences();
        let count = differences.len();
        differences.truncate(10);
        panic!(
            "{}: not equal after {most:?}, {count} differences: {differences:#?}",
            world.rerun()
        )
    })
}

/// Trouble of every kind for 20 s, then quiet: everything must be equal, and nothing may come back.
fn storm(range: std::ops::Range<u64>) {
    for seed in seeds(range) {
        let mut world = cluster(50, seed);
        if let Err(wrong) = world.trouble(20 * SECOND) {
            panic!("{}: {wrong}", world.rerun());
        }
        world.calm();
        settle(&mut world, 40 * SECOND);
        if let Err(wrong) = world.look() {
            panic!("{}: {wrong}", world.rerun());
        }
    }
}

#[test]
fn trouble_leaves_no_trace_1() {
    storm(0..25);
}

#[test]
fn trouble_leaves_no_trace_2() {
    storm(25..50);
}

#[test]
fn trouble_leaves_no_trace_3() {
    storm(50..75);
}

#[test]
fn trouble_leaves_no_trace_4() {
    storm(75..100);
}

#[test]
fn one_seed_is_one_run() {
    let run = |seed| {
        let mut world = cluster(10, seed);
        world.trouble(10 * SECOND).unwrap();
        (world.digest(), world.events())
    };
    assert_eq!(run(1), run(1));
    assert_ne!(run(1), run(2));
}

#[test]
fn an_update_is_everywhere_within_a_second_at_a_tenth_lost() {
    let mut slow = 0;
    let mut count = 0;
    for seed in seeds(0..10) {
        let mut world = cluster(50, seed);
        world.set_faults(Faults {
            loss: 0.1,
            ..Faults::default()
        });
        for update in 0..20 {
            let owner = (seed as usize + update * 7) % 50;
            let value = world.publish(owner, 1);
            let took = world.until(10 * SECOND, |world| {
                (0..50).all(|viewer| world.shows(viewer, owner, 1, &value))
            });
            let took = took.unwrap_or_else(|| panic!("{}: update {update} lost", world.rerun()));
            count += 1;
            slow += u32::from(took > SECOND);
        }
    }
    assert!(
        slow * 100 <= count,
        "{slow} of {count} updates took more than a second"
    );
}

#[test]
fn a_kill_is_known_everywhere_in_time() {
    for nodes in [3, 5, 50] {
        for seed in seeds(0..10) {
            let mut world = cluster(nodes, seed);
            world.run(3 * SECOND);
            let victim = seed as usize % nodes;
            world.kill(victim);
            let others: Vec<usize> = world.running();
            let took = world.until(10 * SECOND, |world| {
                others
                    .iter()
                    .all(|viewer| !world.holds_alive(*viewer, victim))
            });
            let took = took.unwrap_or(Duration::MAX);
            assert!(
                took <= 5 * SECOND,
                "{}, {nodes} nodes: {took:?}",
                world.rerun()
            );
        }
    }
}

#[test]
fn nobody_is_down_by_mistake_in_ten_minutes_at_a_tenth_lost() {
    for seed in seeds(0..3) {
        let mut world = cluster(50, seed);
        world.set_faults(Faults {
            loss: 0.1,
            ..Faults::default()
        });
        let before = world.downs();
        world.run(600 * SECOND);
        assert_eq!(world.downs(), before, "{}", world.rerun());
    }
}

#[test]
fn a_healed_cut_of_one_node_is_over_in_two_seconds_and_touches_nobody_else() {
    for nodes in [2, 3, 5, 50] {
        for seed in seeds(0..10) {
            let mut world = cluster(nodes, seed);
            world.run(3 * SECOND);
            let cut = seed as usize % nodes;
            world.isolate(&BTreeSet::from([cut]));
            world.run(10 * SECOND);
            world.publish(cut, 3);
            world.publish((cut + 1) % nodes, 3);
            world.run(20 * SECOND);
            let downs = world.downs();
            world.heal();
            let took = settle(&mut world, 10 * SECOND);
            assert!(
                took <= 2 * SECOND,
                "{}, {nodes} nodes: {took:?}",
                world.rerun()
            );
            assert_eq!(
                world.downs(),
                downs,
                "{}: the heal took somebody down",
                world.rerun()
            );
        }
    }
}

#[test]
fn a_healed_partition_is_over_soon() {
    for seed in seeds(0..5) {
        let mut world = cluster(50, seed);
        world.isolate(&(0..25).collect());
        world.run(10 * SECOND);
        world.publish(1, 3);
        world.publish(49, 3);
        world.run(20 * SECOND);
        world.heal();
        let took = settle(&mut world, 20 * SECOND);
        assert!(took <= 4 * SECOND, "{}: {took:?}", world.rerun());
    }
}

#[test]
fn of_two_of_one_name_the_later_gives_way() {
    for seed in seeds(0..5) {
        let mut world = cluster(10, seed);
        world.run(3 * SECOND);
        world.clone_name(2, 7);
        let mut in_place = true;
        let took = world.until(30 * SECOND, |world| {
            let viewers = [0, 1, 3, 9].map(|viewer| world.place_of(viewer, 2));
            in_place &= viewers == [Some(2); 4];
            world.has_refused(7)
        });
        assert!(took.is_some(), "{}: the clone runs on", world.rerun());
        world.run(5 * SECOND);
        assert!(in_place, "{}: the clone took the place", world.rerun());
        assert_eq!(world.place_of(0, 2), Some(2), "{}", world.rerun());
    }
}

#[test]
fn a_node_that_stood_still_suspects_nobody() {
    for seed in seeds(0..10) {
        let mut world = cluster(10, seed);
        world.run(3 * SECOND);
        // Who is suspected objects. Only the others may suspect, and only the one that stands still.
        let objections = |world: &World| {
            let stats = world.stats();
            let others = stats.iter().enumerate().filter(|(node, _)| *node != 4);
            others.map(|(_, stats)| stats.refutations).sum::<u64>()
        };
        // Slow enough that an answer is often on its way when the process stops.
        world.set_faults(Faults {
            latency: (Duration::from_millis(60), Duration::from_millis(90)),
            ..Faults::default()
        });
        let before = (objections(&world), world.stats()[4].downs);
        for _ in 0..5 {
            world.freeze(4, 2 * SECOND);
            world.run(4 * SECOND + Duration::from_millis(70));
        }
        let after = (objections(&world), world.stats()[4].downs);
        assert_eq!(before, after, "{}", world.rerun());
        world.freeze(4, 10 * SECOND);
        world.run(12 * SECOND);
        assert_eq!(world.stats()[4].downs, after.1, "{}", world.rerun());
        settle(&mut world, 5 * SECOND);
    }
}

#[test]
fn a_flood_of_records_is_everywhere_soon_and_every_message_is_read() {
    for seed in seeds(0..3) {
        let mut world = cluster(50, seed);
        world.publish_many(40);
        let took = settle(&mut world, 20 * SECOND);
        assert!(took <= 8 * SECOND, "{}: {took:?}", world.rerun());
        world.look().expect("no message is malformed");
    }
}
