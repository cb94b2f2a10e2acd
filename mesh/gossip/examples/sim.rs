//! One run of a large cluster on a virtual clock, with its figures:
//! `cargo run --release -p portolan-gossip --example sim -- --nodes 1000`

#![expect(
    clippy::print_stdout,
    reason = "the figures are what the program is for"
)]

use std::{collections::BTreeSet, env, process::ExitCode, time::Duration, time::Instant};

use portolan_gossip::sim::{Faults, World};

const USAGE: &str =
    "usage: sim [--nodes N] [--records N] [--seed N] [--loss PERCENT] [--updates N]";
const SECOND: Duration = Duration::from_secs(1);

struct Options {
    nodes: usize,
    records: u32,
    seed: u64,
    loss: u32,
    updates: usize,
}

impl Options {
    fn parse() -> Option<Self> {
        let mut options = Self {
            nodes: 1000,
            records: 5,
            seed: 1,
            loss: 0,
            updates: 10,
        };
        let mut args = env::args().skip(1);
        while let Some(flag) = args.next() {
            let value = args.next()?;
            match flag.as_str() {
                "--nodes" => options.nodes = value.parse().ok().filter(|nodes| *nodes > 2)?,
                "--records" => options.records = value.parse().ok()?,
                "--seed" => options.seed = value.parse().ok()?,
                "--loss" => options.loss = value.parse().ok()?,
                "--updates" => options.updates = value.parse().ok()?,
                _ => return None,
            }
        }
        Some(options)
    }
}

fn main() -> ExitCode {
    let Some(options) = Options::parse() else {
        println!("{USAGE}");
        return ExitCode::from(2);
    };
    let begin = Instant::now();
    let mut world = World::new(options.nodes, options.seed);
    let ok = figures(&options, &mut world);
    let (events, virtual_time) = (world.events(), world.age().as_secs_f64());
    row("events", format!("{events} in {virtual_time:.0} virtual s"));
    row("took", format!("{:.1} s", begin.elapsed().as_secs_f64()));
    row("digest", format!("{:016x}", world.digest()));
    if ok {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Prints the figures. False if anything did not come to pass.
fn figures(options: &Options, world: &mut World) -> bool {
    let nodes = options.nodes;
    row("nodes", nodes);
    row("records per node", options.records);
    row("seed", options.seed);
    row("datagrams lost", format!("{} %", options.loss));
    world.set_faults(Faults {
        loss: f64::from(options.loss) / 100.0,
        ..Faults::default()
    });

    world.start_all(SECOND);
    let cold = world.until(120 * SECOND, World::is_settled);
    let mut ok = show("cold join of all within 1 s, all equal after", cold);

    world.publish_many(options.records);
    let filled = world.until(300 * SECOND, World::is_settled);
    ok &= show(
        "all records published at one moment, all equal after",
        filled,
    );

    world.run(10 * SECOND);
    world.take_traffic();
    let before = world.downs();
    world.run(60 * SECOND);
    let traffic = world.take_traffic();
    row(
        "at rest, per node",
        format!(
            "{:.0} B/s in {:.1} datagrams/s, and {:.0} B/s over TCP",
            traffic.udp_bytes / 60.0,
            traffic.udp_packets / 60.0,
            traffic.tcp_bytes / 60.0
        ),
    );
    row(
        "members wrongly down in that minute",
        world.downs() - before,
    );

    let mut took = Vec::new();
    for update in 0..options.updates {
        let owner = update * 7919 % nodes;
        let value = world.publish(owner, 1);
        let done = world.until(60 * SECOND, |world| {
            (0..nodes).all(|viewer| world.shows(viewer, owner, 1, &value))
        });
        took.extend(done);
        world.run(SECOND);
    }
    ok &= took.len() == options.updates;
    took.sort_unstable();
    row(
        "one update at all nodes",
        format!(
            "median {:.0} ms, worst {:.0} ms, {} of {} arrived",
            millis(took.get(took.len() / 2)),
            millis(took.last()),
            took.len(),
            options.updates
        ),
    );

    let victim = nodes / 2;
    world.kill(victim);
    let known = world.until(60 * SECOND, |world| {
        (0..nodes).all(|viewer| viewer == victim || !world.holds_alive(viewer, victim))
    });
    ok &= show("a kill known to all after", known);
    world.start(victim);
    ok &= show(
        "its return, all equal after",
        world.until(60 * SECOND, World::is_settled),
    );

    let island: BTreeSet<usize> = (0..nodes / 2).collect();
    world.isolate(&island);
    world.run(30 * SECOND);
    world.publish(0, 2);
    world.publish(nodes - 1, 2);
    world.heal();
    let healed = world.until(120 * SECOND, World::is_settled);
    ok &= show("healed after 30 s in two halves, all equal after", healed);
    ok
}

fn show(what: &str, took: Option<Duration>) -> bool {
    match took {
        Some(took) => row(what, format!("{:.2} s", took.as_secs_f64())),
        None => row(what, "never"),
    }
    took.is_some()
}

fn row(what: &str, figure: impl std::fmt::Display) {
    println!("{what:<55} {figure}");
}

fn millis(took: Option<&Duration>) -> f64 {
    took.map_or(f64::NAN, |took| took.as_secs_f64() * 1000.0)
}
