//! Every clang that is installed makes programs that this kernel takes. Which of them made the ones in this build is
//! for the other tests to try.

use std::{env, path::PathBuf, process::Command};

use aya::{EbpfLoader, programs::Program};

use super::*;
use crate::trace;

const SOURCES: [&str; 2] = ["fast_path", "sockets"];

/// The oldest that knows what the programs are compiled with.
const OLDEST: u32 = 14;

/// What may be called clang, by the file that it is: each that is called `clang`, or so with a number of those.
fn installed() -> BTreeMap<PathBuf, String> {
    let path = env::var_os("PATH").unwrap();
    let is_clang = |name: &str| {
        let number = name.strip_prefix("clang-").and_then(|n| n.parse().ok());
        name == "clang" || number.is_some_and(|number: u32| number >= OLDEST)
    };
    let entries = env::split_paths(&path)
        .filter_map(|dir| fs::read_dir(dir).ok())
        .flat_map(Iterator::flatten);
    let named = entries.filter_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        let file = entry.path().canonicalize().ok()?;
        is_clang(&name).then_some((file, name))
    });
    named.collect()
}

/// One of each version, and its name.
fn clangs() -> BTreeMap<String, String> {
    let version = |(file, name): (PathBuf, String)| {
        let output = Command::new(&file).arg("--version").output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        let version = said.lines().next().unwrap_or_default().to_owned();
        assert!(version.contains("clang version"), "{name} says {said:?}");
        (version, name)
    };
    installed().into_iter().map(version).collect()
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
        for (version, clang) in &clangs {
            println!("{clang}: {version}");
            let pins = rig.plane.pins.with_file_name(clang);
            for source in SOURCES {
                let object = compile(clang, source);
                assert!(load(&object, &pins, &format!("{clang}, {source}")) > 0);
            }
        }
    });
}
