//! Every clang that is installed makes programs that this kernel takes. Which of them made the ones in this build is
//! for the other tests to try.

use std::process::Command;

use aya::{EbpfLoader, programs::Program};

use super::*;
use crate::trace;

const SOURCES: [&str; 2] = ["fast_path", "sockets"];

/// One of each version.
fn clangs() -> BTreeMap<Vec<u8>, String> {
    let numbered = (14..=25).map(|version| format!("clang-{version}"));
    let names = std::iter::once("clang".to_owned()).chain(numbered);
    names
        .filter_map(|name| {
            let output = Command::new(&name).arg("--version").output().ok()?;
            Some((output.stdout, name))
        })
        .collect()
}

fn compile(clang: &str, source: &str) -> Vec<u8> {
    let output = Command::new(clang)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .args(env!("FAST_PATH_FLAGS").split_whitespace())
        .args(["-c", &format!("bpf/{source}.bpf.c"), "-o", "-"])
        .output()
        .unwrap();
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{clang}, {source}: {complaints}");
    output.stdout
}

/// How many programs of an object the kernel takes; it has to take all.
fn load(object: &[u8], pins: &Path, what: &str) -> usize {
    fs::create_dir_all(pins).unwrap();
    let mut loaded = EbpfLoader::new()
        .default_map_pin_directory(pins)
        .map_pin_path(trace::SECTION, pins.join(trace::TRACED))
        .map_max_entries("flows", 1024)
        .load(object)
        .unwrap_or_else(|error| panic!("{what}: {error}"));
    let programs = loaded.programs_mut().map(|(name, program)| {
        let taken = match program {
            Program::SchedClassifier(program) => program.load(),
            Program::CgroupSockAddr(program) => program.load(),
            other => panic!("{what}: {name} is a {:?}", other.prog_type()),
        };
        taken.unwrap_or_else(|error| panic!("{what}: {name}: {error}"));
    });
    programs.count()
}

#[test]
fn the_kernel_takes_the_programs_of_every_clang() {
    let clangs = clangs();
    assert!(!clangs.is_empty(), "there is no clang");
    on_rig(|rig| {
        for clang in clangs.values() {
            let pins = rig.plane.pins.with_file_name(clang);
            for source in SOURCES {
                let object = compile(clang, source);
                assert!(load(&object, &pins, &format!("{clang}, {source}")) > 0);
            }
        }
    });
}
