//! A build with other layouts of the maps follows another one, and goes on with its flows.

use std::process::Command;

use aya::EbpfLoader;

use super::*;
use crate::{inherit, trace};

const SIZES: [(&str, u32); 1] = [("flows", 4096)];

/// The maps of a build whose header differs by these replacements, pinned in a directory beside this build's.
fn other_build(rig: &Rig, changes: &[(&str, &str)]) -> PathBuf {
    let sources = tempfile::tempdir().unwrap();
    for file in fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/bpf")).unwrap() {
        let file = file.unwrap().path();
        let mut text = fs::read_to_string(&file).unwrap();
        if file.ends_with("layout.h") {
            for (from, to) in changes {
                assert!(text.contains(from), "{from}");
                text = text.replace(from, to);
            }
        }
        fs::write(sources.path().join(file.file_name().unwrap()), text).unwrap();
    }
    let output = Command::new("clang")
        .current_dir(&sources)
        .args(env!("FAST_PATH_FLAGS").split_whitespace())
        .args(["-c", "fast_path.bpf.c", "-o", "-"])
        .output()
        .unwrap();
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{complaints}");
    let pins = rig.plane.pins.with_file_name("other");
    fs::create_dir(&pins).unwrap();
    let mut loader = EbpfLoader::new();
    for (name, size) in SIZES {
        loader.map_max_entries(name, size);
    }
    loader
        .default_map_pin_directory(&pins)
        .map_pin_path(trace::SECTION, pins.join(trace::TRACED))
        .load(&output.stdout)
        .unwrap();
    pins
}

/// Forgets what this build has pinned, and opens it anew.
fn follow(rig: &mut Rig) -> Predecessor {
    for pin in fs::read_dir(&rig.plane.pins).unwrap() {
        fs::remove_file(pin.unwrap().path()).unwrap();
    }
    let pins = rig.plane.pins.parent().unwrap().to_owned();
    *rig = Rig::new(&pins, &SIZES);
    rig.plane.predecessor().clone()
}

#[test]
fn flows_go_on_in_a_build_with_other_layouts() {
    on_rig_with(&SIZES, |rig| {
        rig.serve(Protocol::Tcp, &[LOCAL, REMOTE]);
        let data = |port| tcp((CLIENT.0, port), FRONTEND, ACK, &[], b"data");
        let backends: Vec<End> = (1000..1003)
            .map(|port| {
                let syn = tcp((CLIENT.0, port), FRONTEND, SYN, &[], b"");
                ends(&rig.redirected(FROM_OUTSIDE, &syn)).1
            })
            .collect();
        let served = rig.plane.dump().unwrap();

        // There and back again: fields that stand elsewhere, that are not there, and that are new.
        let other = other_build(
            rig,
            &[
                (
                    "struct address saddr, daddr;",
                    "struct address daddr, saddr;",
                ),
                ("struct flow {\n", "struct flow {\n\t__u64 is_new;\n"),
                (
                    "struct backend {\n",
                    "struct backend {\n\t__u32 is_new[3];\n",
                ),
                (
                    "struct frontend_label {\n",
                    "struct frontend_label {\n\t__u8 is_new;\n",
                ),
                (
                    "\t__u64 flows, bytes_in,",
                    "\t__u64 is_new, flows, bytes_in,",
                ),
            ],
        );
        inherit::all(&rig.plane.pins, &other).unwrap();
        assert_eq!(follow(rig), Predecessor::Inherited(other.clone()));

        assert_eq!(rig.plane.dump().unwrap(), served);
        for (port, backend) in (1000..).zip(&backends) {
            let out = rig.redirected(FROM_OUTSIDE, &data(port));
            assert_eq!(ends(&out), ((CLIENT.0, port), *backend));
        }
        assert_eq!(rig.flow((CLIENT.0, 1000), FRONTEND, 6).unwrap().packets, 2);
        let next = tcp((CLIENT.0, 2000), FRONTEND, SYN, &[], b"");
        let next = ends(&rig.redirected(FROM_OUTSIDE, &next)).1;
        assert_eq!(next, backends[1], "the next turn");

        // What the other one's programs still do meanwhile is not lost.
        rig.plane
            .maps
            .flows
            .remove(&tuple((CLIENT.0, 1001), FRONTEND, 6))
            .unwrap();
        rig.plane.catch_up().unwrap();
        let out = rig.redirected(FROM_OUTSIDE, &data(1001));
        assert_eq!(ends(&out).1, backends[1]);
    });
}

#[test]
fn what_means_something_else_is_not_taken_over() {
    on_rig_with(&SIZES, |rig| {
        rig.serve(Protocol::Tcp, &[REMOTE]);
        other_build(rig, &[("\t__u32 ip_delta;", "\t__u64 ip_delta;")]);
        let Predecessor::TooDifferent(why) = follow(rig) else {
            panic!("taken over");
        };
        assert_eq!(why, "flows: a value has another meaning");
        assert!(rig.plane.dump().unwrap().is_empty());
        rig.plane.catch_up().unwrap();
    });
}
