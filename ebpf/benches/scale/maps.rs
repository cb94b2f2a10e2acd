//! Filling the maps, and changing one task among all.

use std::{fs, os::fd::AsRawFd, path::Path, sync::Arc};

use anyhow::{Context, Result};
use aya::maps::MapData;
use portolan_model::TaskState;
use portolan_plane::{DataPlane, FakePlane, Planes, frontends};

use crate::{
    Times,
    cluster::{Cluster, Inside},
    world::{SERVICES, TASKS, World},
};

const CHANGES: usize = 50;
const DECLARATIONS: u64 = 20;

pub(crate) fn measure() -> Result<()> {
    let cluster = Cluster::new(2)?;
    cluster.threads[0].run(|inside| {
        through("fast path", FakePlane::default(), inside);
        memory(&inside.pins).unwrap();
        let mut opening = Times::default();
        opening.of(|| inside.open());
        opening.row("taken over by the next agent");
        inside.surround();
    });
    Ok(())
}

/// All the way from snapshots to the kernel, behind a plane that is slow in no way.
fn through(what: &str, slow: impl DataPlane, inside: &mut Inside) {
    let mut world = World::new(SERVICES);
    let snapshot = Arc::new(world.snapshot());
    let mut planes = Planes::new(slow, &snapshot);
    planes.set_fast(inside.plane.take().unwrap());
    println!("| {what} | ms | at most | ms of processor time | at most |\n|---|---|---|---|---|");
    let mut filling = Times::default();
    let filled = filling.of(|| planes.update(&snapshot));
    assert_eq!(filled, None, "{:?}", planes.fast_standing());
    filling.row("all filled");
    let [
        mut whole,
        mut comparing,
        mut merging,
        mut changing,
        mut looking,
    ] = [(); 5].map(|()| Times::default());
    let mut last = snapshot;
    for change in 0..CHANGES {
        let task = change * 1987 % (SERVICES * TASKS);
        for state in [TaskState::Draining, TaskState::Healthy] {
            let (key, value) = world.record(task, state);
            whole.of(|| {
                let snapshot = Arc::new(merging.of(|| {
                    world.take(&key, &value);
                    world.snapshot()
                }));
                assert!(comparing.of(|| *last != *snapshot));
                assert_eq!(changing.of(|| planes.update(&snapshot)), None);
                last = snapshot;
            });
            let surrounded = || planes.fast_mut().unwrap().surround(&inside.surroundings);
            looking.of(surrounded).unwrap();
        }
    }
    whole.row("one task changed, from its record to the kernel");
    merging.row("of that, from the record to the snapshot");
    comparing.row("whether the snapshot is another one");
    changing.row("from the snapshot to the kernel");
    looking.row("a look at what is around, with no change");
    let [mut merging, mut changing] = [(); 2].map(|()| Times::default());
    for version in 2..2 + DECLARATIONS {
        world.declare(0, version);
        let snapshot = Arc::new(merging.of(|| world.snapshot()));
        assert_eq!(changing.of(|| planes.update(&snapshot)), None);
    }
    merging.row("one service declared anew: all records merged");
    changing.row("from that snapshot to the kernel");
    drop(planes.take_fast());
}

/// What the kernel has given the maps.
fn memory(pins: &Path) -> Result<()> {
    let mut sizes = Vec::new();
    let dir = fs::read_dir(pins)?.next().context("no pins")??.path();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let Ok(map) = MapData::from_pin(&path) else {
            continue;
        };
        let fd = map.fd();
        let info = fs::read_to_string(format!(
            "/proc/self/fdinfo/{}",
            std::os::fd::AsFd::as_fd(fd).as_raw_fd()
        ))?;
        // Links are pinned beside the maps, and have none.
        let Some(bytes) = info.lines().find_map(|line| line.strip_prefix("memlock:")) else {
            continue;
        };
        let bytes: u64 = bytes.trim().parse()?;
        sizes.push((
            bytes,
            path.file_name().unwrap().to_string_lossy().into_owned(),
        ));
    }
    sizes.sort_unstable();
    let total: u64 = sizes.iter().map(|(bytes, _)| bytes).sum();
    let largest = sizes
        .iter()
        .rev()
        .take(6)
        .map(|(bytes, name)| format!("{name} {}", mib(*bytes)));
    println!(
        "| memory of all maps | {}: {} |",
        mib(total),
        largest.collect::<Vec<_>>().join(", ")
    );
    Ok(())
}

fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}
