//! The image that engines have without a registry.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
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
    let root = dir.path().join("root.tar");
    pack(dir.path(), &root)?;
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

/// Packs a file system with busybox and its programs.
fn pack(dir: &Path, to: &Path) -> Result<()> {
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
    let mut tar = Command::new("tar");
    tar.arg("-C").arg(&root).arg("-cf").arg(to).arg(".");
    output_within(&mut tar, LIMIT)?.success()?;
    Ok(())
}
