//! The BPF file system in which the fast path is pinned: found, or mounted where there is none.

use std::{
    ffi::CString,
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use rustix::{
    fs::statfs,
    mount::{MountFlags, UnmountFlags, mount, unmount},
};

/// Where it is mounted on every machine that has one.
const USUAL: &str = "/sys/fs/bpf";
/// `BPF_FS_MAGIC` (linux/magic.h).
const MAGIC: u64 = 0xcafe_4a11;
/// What a mount of ours is told by: the name of its source, which this file system has no other use for.
const SOURCE: &str = "portolan";

/// What the kernel itself puts into each.
const OF_THE_KERNEL: [&str; 2] = ["maps.debug", "progs.debug"];

/// Makes sure that a directory is, or can be made, on a BPF file system.
///
/// # Errors
/// There is none, and none can be mounted.
pub(super) fn prepare(dir: &Path) -> Result<()> {
    let existing = dir.ancestors().find(|path| path.exists());
    let present = existing.map(statfs).transpose().context("statfs")?;
    if present.is_some_and(|fs| fs.f_type.cast_unsigned() & 0xffff_ffff == MAGIC) {
        return Ok(());
    }
    let at = mount_point(dir);
    let what = || format!("cannot mount a BPF file system at {}", at.display());
    if at != Path::new(USUAL) {
        fs::create_dir_all(&at).with_context(what)?;
    }
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount(SOURCE, &at, "bpf", flags, Some(c"mode=0700")).with_context(what)?;
    tracing::info!(at = %at.display(), "mounted a BPF file system");
    Ok(())
}

/// Unmounts a BPF file system that [`prepare`] mounted for a directory, unless something else is pinned there.
///
/// # Errors
/// It cannot be unmounted.
pub(super) fn release(dir: &Path) -> Result<()> {
    let at = mount_point(dir);
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("/proc/self/mountinfo")?;
    if !is_ours(&mounts, &at) {
        return Ok(());
    }
    // Our directory, if it has become empty; one that is not there or is the mount itself is fine.
    let _ = fs::remove_dir(dir);
    let what = || format!("cannot unmount {}", at.display());
    for entry in fs::read_dir(&at).with_context(what)? {
        let name = entry.with_context(what)?.file_name();
        if !OF_THE_KERNEL.iter().any(|own| name == *own) {
            return Ok(());
        }
    }
    unmount(&at, UnmountFlags::empty()).with_context(what)?;
    match fs::remove_dir(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| dir.display().to_string())
        }
        _ => Ok(()),
    }
}

fn mount_point(dir: &Path) -> PathBuf {
    if dir.starts_with(USUAL) {
        USUAL.into()
    } else {
        dir.into()
    }
}

/// Whether the uppermost mount at a place is ours, by `proc_pid_mountinfo(5)`.
fn is_ours(mounts: &str, at: &Path) -> bool {
    let Some(at) = at.to_str().and_then(|at| CString::new(at).ok()) else {
        return false;
    };
    let at = escaped(&at.to_string_lossy());
    let mut here = mounts
        .lines()
        .filter(|line| line.split(' ').nth(4) == Some(at.as_str()));
    let rest = here.next_back().and_then(|line| line.split_once(" - "));
    rest.is_some_and(|(_, fs)| fs.split(' ').take(2).eq(["bpf", SOURCE]))
}

/// A path as the kernel writes it there.
fn escaped(path: &str) -> String {
    path.replace('\\', "\\134").replace(' ', "\\040")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_mount_of_ours_is_taken_for_one() {
        let theirs = "30 23 0:26 / /sys/fs/bpf rw,nosuid shared:9 - bpf bpf rw,mode=700\n";
        let ours = "31 23 0:27 / /run/my\\040pins rw - bpf portolan rw,mode=700\n";
        let mounts = format!("{theirs}{ours}");
        assert!(!is_ours(&mounts, Path::new(USUAL)));
        assert!(is_ours(&mounts, Path::new("/run/my pins")));
        assert!(!is_ours(&mounts, Path::new("/run")));
    }

    #[test]
    fn it_is_mounted_where_none_is_and_unmounted_when_nothing_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let pins = dir.path().join("pins");
        prepare(&pins).unwrap();
        prepare(&pins).unwrap();
        let inside = pins.join("v1");
        fs::create_dir(&inside).unwrap();
        release(&pins).unwrap();
        assert!(inside.exists(), "something is pinned");
        fs::remove_dir(&inside).unwrap();
        release(&pins).unwrap();
        assert!(!pins.exists());
        release(&pins).unwrap();
    }
}
