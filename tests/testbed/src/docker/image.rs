//! The image that engines have without a registry.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};

use super::Engine;
use crate::process::output_within;

const LIMIT: Duration = Duration::from_secs(30);

/// Gives an engine [`Engine::IMAGE`].
///
/// An import makes an image of another identity each time, and the tasks of a Swarm find theirs by it: so
/// the first engine of this process makes it, and the others load what that has saved.
pub(super) fn import(engine: &Engine) -> Result<()> {
    static SAVED: Mutex<Option<tempfile::TempDir>> = Mutex::new(None);
    let mut saved = SAVED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(dir) = saved.as_ref() {
        let file = dir.path().join("image.tar");
        engine.docker(&["load", "-q", "-i", &file.to_string_lossy()])?;
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let root = pack(dir.path(), &[])?;
    engine.docker(&[
        "import",
        "-c",
        "ENV PATH=/bin",
        "-c",
        "CMD [\"/bin/sh\"]",
        &root.to_string_lossy(),
        Engine::IMAGE,
    ])?;
    let file = dir.path().join("image.tar");
    engine.docker(&["save", "-o", &file.to_string_lossy(), Engine::IMAGE])?;
    *saved = Some(dir);
    Ok(())
}

/// The identity of [`Engine::IMAGE`].
pub(super) fn identity(engine: &Engine) -> Result<String> {
    engine.docker(&["images", "-q", "--no-trunc", Engine::IMAGE])
}

/// Packs a file system as `docker import` takes it: busybox with all its programs, and these programs with the libraries
/// that they need, all in `/bin`. Its file is in `dir`, and goes with it.
pub(super) fn pack(dir: &Path, programs: &[&Path]) -> Result<PathBuf> {
    let root = dir.join("root");
    for sub in ["bin", "etc", "tmp", "proc", "sys", "dev"] {
        fs::create_dir_all(root.join(sub))?;
    }
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/:/bin/sh\n")?;
    let which = output_within(Command::new("sh").args(["-c", "command -v busybox"]), LIMIT)?;
    let program = root.join("bin/busybox");
    fs::copy(which.success()?.stdout.trim_end(), &program).context("copy busybox")?;
    // In a container there is no library for it.
    let alone = output_within(
        Command::new("chroot")
            .arg(&root)
            .args(["/bin/busybox", "true"]),
        LIMIT,
    )?;
    alone
        .success()
        .context("busybox is not a static program (apt-get install busybox-static)")?;
    let list = output_within(Command::new(&program).arg("--list"), LIMIT)?.success()?;
    for name in list.stdout.lines().filter(|name| *name != "busybox") {
        symlink("busybox", root.join("bin").join(name))?;
    }
    for program in programs {
        add(&root, program)?;
    }
    let packed = dir.join("root.tar");
    let mut tar = Command::new("tar");
    tar.arg("-C").arg(&root).arg("-cf").arg(&packed).arg(".");
    output_within(&mut tar, LIMIT)?.success()?;
    Ok(packed)
}

/// Adds a program to a file system, and its libraries at their own places.
fn add(root: &Path, program: &Path) -> Result<()> {
    let name = program.file_name().context("a program has a name")?;
    fs::copy(program, root.join("bin").join(name))
        .with_context(|| program.display().to_string())?;
    // A static program has none, which ldd calls a failure.
    let listed = output_within(Command::new("ldd").arg(program), LIMIT)?.stdout;
    for library in listed
        .split_whitespace()
        .filter(|word| word.starts_with('/'))
    {
        let to = root.join(library.trim_start_matches('/'));
        fs::create_dir_all(to.parent().context("a library is in a directory")?)?;
        fs::copy(library, to).with_context(|| library.to_owned())?;
    }
    Ok(())
}
