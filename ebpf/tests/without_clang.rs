//! The build without clang, by the crate's own build script in a crate that has nothing else.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that fails may panic"
)]

use std::{
    env, fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

const MANIFEST: &str =
    "[package]\nname = 'stub'\nversion = '0.0.0'\nedition = '2024'\n[workspace]\n";
/// Says why there are no programs, and how long they are together.
const PROGRAM: &str = r#"fn main() {
    let objects: [&[u8]; 2] = [
        include_bytes!(env!("FAST_PATH_OBJECT")),
        include_bytes!(env!("SOCKETS_OBJECT")),
    ];
    println!("{}", objects.concat().len());
    println!("{}", include_str!(env!("FAST_PATH_ABSENT")));
}
"#;

/// A crate with the build script, and a directory of all programs of this machine but clang.
struct Stub {
    dir: tempfile::TempDir,
}

impl Stub {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let crate_dir = Path::new(env!("CARGO_MANIFEST_DIR"));
        for sub in ["src", "bin"] {
            fs::create_dir(dir.path().join(sub)).unwrap();
        }
        fs::write(dir.path().join("Cargo.toml"), MANIFEST).unwrap();
        fs::write(dir.path().join("src/main.rs"), PROGRAM).unwrap();
        fs::copy(crate_dir.join("build.rs"), dir.path().join("build.rs")).unwrap();
        symlink(crate_dir.join("bpf"), dir.path().join("bpf")).unwrap();
        let stub = Self { dir };
        for program in programs().filter(|program| !name(program).starts_with("clang")) {
            // Of two with one name the first in PATH is meant.
            let _ = symlink(&program, stub.bin().join(name(&program)));
        }
        stub
    }

    fn bin(&self) -> PathBuf {
        self.dir.path().join("bin")
    }

    /// What the crate's program says, built with that directory for PATH.
    fn says(&self, clang: Option<&str>) -> (usize, String) {
        let mut cargo = Command::new(env!("CARGO"));
        cargo
            .args(["run", "--quiet", "--offline"])
            .current_dir(self.dir.path())
            .env("PATH", self.bin())
            .env("CARGO_TARGET_DIR", self.dir.path().join("target"))
            .env_remove("CLANG");
        if let Some(clang) = clang {
            cargo.env("CLANG", clang);
        }
        let output = cargo.output().unwrap();
        let complaints = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{complaints}");
        let said = String::from_utf8(output.stdout).unwrap();
        let (length, reason) = said.split_once('\n').unwrap();
        (length.parse().unwrap(), reason.trim().to_owned())
    }
}

fn programs() -> impl Iterator<Item = PathBuf> {
    let path = env::var_os("PATH").unwrap();
    let dirs: Vec<_> = env::split_paths(&path)
        .filter(|dir| dir.is_absolute())
        .collect();
    dirs.into_iter()
        .filter_map(|dir| fs::read_dir(dir).ok())
        .flat_map(|entries| entries.flatten().map(|entry| entry.path()))
}

fn name(program: &Path) -> String {
    program.file_name().unwrap().to_string_lossy().into_owned()
}

#[test]
fn a_build_without_clang_says_so_and_the_first_one_with_it_has_the_programs() {
    let stub = Stub::new();
    let (length, reason) = stub.says(None);
    assert_eq!(length, 0);
    assert!(reason.starts_with("clang was not found"), "{reason}");
    let clang = programs().find(|program| name(program) == "clang");
    let clang = clang.unwrap_or_else(|| panic!("clang is not installed"));
    symlink(clang, stub.bin().join("clang")).unwrap();
    let (length, reason) = stub.says(None);
    assert_eq!(reason, "");
    assert!(length > 0);
    let (length, reason) = stub.says(Some("/none/clang"));
    assert_eq!(length, 0);
    assert!(reason.starts_with("/none/clang: "), "{reason}");
}
