//! Compiles the programs in `bpf` with clang. Without clang, or where it cannot, the build succeeds and the
//! objects are empty: then the probe of the plane says why, and the next build tries again.
//!
//! `CLANG=<path>` overrides; otherwise it is the first of clang, clang-25 .. clang-14 that runs.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
    process::Command,
};

/// The objects, each of one file in `bpf`, and the variables that tell the crate where they are.
const OBJECTS: [(&str, &str); 2] = [
    ("fast_path", "FAST_PATH_OBJECT"),
    ("sockets", "SOCKETS_OBJECT"),
];

/// What clang is told, for a test that tries every clang too.
const FLAGS: &str = concat!(
    // v3 is the first that has atomic operations which return the old value.
    "-mcpu=v3 -O2 -g -std=gnu11 -ffreestanding -nostdlibinc -fno-stack-protector ",
    "-Wall -Wextra -Werror"
);

fn main() -> io::Result<()> {
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or(io::ErrorKind::NotFound)?);
    emit("cargo:rerun-if-env-changed=CLANG");
    emit("cargo:rerun-if-changed=bpf");
    fs::write(
        out.join("counters.rs"),
        counters(&fs::read_to_string("bpf/counters.h")?),
    )?;
    let objects =
        OBJECTS.map(|(name, variable)| (name, variable, out.join(format!("{name}.bpf.o"))));
    let compiled = objects
        .iter()
        .try_for_each(|(name, _, object)| compile(&format!("bpf/{name}.bpf.c"), object));
    let absent = match compiled {
        Ok(()) => String::new(),
        Err(reason) => {
            for (_, _, object) in &objects {
                fs::write(object, [])?;
            }
            emit(&format!(
                "cargo:warning=built without the fast path: {reason}"
            ));
            // What is not there makes cargo run this with the next build again, when clang may be installed.
            emit(&format!(
                "cargo:rerun-if-changed={}",
                out.join("never-there").display()
            ));
            reason
        }
    };
    fs::write(out.join("absent.txt"), absent)?;
    for (_, variable, object) in &objects {
        emit(&format!("cargo:rustc-env={variable}={}", object.display()));
    }
    emit(&format!(
        "cargo:rustc-env=FAST_PATH_FLAGS=-target {} {FLAGS}",
        target()
    ));
    emit(&format!(
        "cargo:rustc-env=FAST_PATH_ABSENT={}",
        out.join("absent.txt").display()
    ));
    emit(&format!(
        "cargo:rustc-env=FAST_PATH_COUNTERS={}",
        out.join("counters.rs").display()
    ));
    Ok(())
}

fn compile(source: &str, object: &Path) -> Result<(), String> {
    let clang =
        clang().ok_or("clang was not found (package clang; or set CLANG=/path/to/clang)")?;
    let here = env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
    let output = Command::new(&clang)
        .args(["-target", target()])
        .args(FLAGS.split_whitespace())
        .arg(format!("-fdebug-prefix-map={here}=."))
        .args(["-c", source, "-o"])
        .arg(object)
        .output()
        .map_err(|error| format!("{clang}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let why = String::from_utf8_lossy(&output.stderr);
    for line in why.lines() {
        emit(&format!("cargo:warning={line}"));
    }
    Err(format!("{clang} could not compile the eBPF programs"))
}

fn target() -> &'static str {
    match env::var("CARGO_CFG_TARGET_ENDIAN").as_deref() {
        Ok("big") => "bpfeb",
        _ => "bpfel",
    }
}

fn clang() -> Option<String> {
    if let Ok(named) = env::var("CLANG") {
        return Some(named);
    }
    let numbered = (14..=25).rev().map(|version| format!("clang-{version}"));
    std::iter::once("clang".to_owned())
        .chain(numbered)
        .find(|name| {
            let version = Command::new(name).arg("--version").output();
            version.is_ok_and(|output| output.status.success())
        })
}

/// The counters of `bpf/counters.h`, the one definition, as a Rust table. Each is a line
/// `COUNTER(NAME, "name", "meaning")`.
fn counters(header: &str) -> String {
    let lines = header
        .lines()
        .filter_map(|line| line.trim().strip_prefix("COUNTER("));
    let rows: Vec<String> = lines
        .filter_map(|line| {
            let (_, rest) = line.split_once(',')?;
            let (row, _) = rest.rsplit_once(')')?;
            Some(format!("    ({}),\n", row.trim()))
        })
        .collect();
    format!("&[\n{}]\n", rows.concat())
}

/// Speaks with cargo.
fn emit(line: &str) {
    println!("{line}");
}
