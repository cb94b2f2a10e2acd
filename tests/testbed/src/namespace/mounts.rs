//! What programs mounted in the directory of their namespace, such as a BPF file system.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::mount::{UnmountFlags, unmount};

/// Unmounts all that is mounted at or below a directory, the last mount first.
///
/// # Errors
/// The first that could not be unmounted; the others are.
pub(super) fn unmount_below(dir: &Path) -> Result<()> {
    let table = fs::read_to_string("/proc/self/mountinfo").context("/proc/self/mountinfo")?;
    let mut first = Ok(());
    for at in mounted_below(&table, dir).iter().rev() {
        // Detached: a program of another namespace may have a copy of the mount, and keep it busy.
        match unmount(at, UnmountFlags::DETACH) {
            // It is gone already, by the hand of whoever mounted it.
            Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => {}
            Err(error) => {
                let error = io::Error::from(error);
                first = first.and(Err(error).with_context(|| format!("unmount {}", at.display())));
            }
        }
    }
    first
}

/// The places of `proc_pid_mountinfo(5)` that are at or below a directory, in the order of their mounting.
fn mounted_below(table: &str, dir: &Path) -> Vec<PathBuf> {
    let places = table.lines().filter_map(|line| line.split(' ').nth(4));
    let places = places.map(|place| PathBuf::from(std::ffi::OsString::from_vec(unescaped(place))));
    places.filter(|place| place.starts_with(dir)).collect()
}

/// Blanks, tabs, newlines and backslashes are written as a backslash and three octal digits.
fn unescaped(text: &str) -> Vec<u8> {
    let (mut bytes, mut rest) = (Vec::new(), text.as_bytes());
    while let Some((first, after)) = rest.split_first() {
        let code = after.get(..3).filter(|_| *first == b'\\');
        let code = code.and_then(|digits| std::str::from_utf8(digits).ok());
        let code = code.and_then(|digits| u8::from_str_radix(digits, 8).ok());
        bytes.push(code.unwrap_or(*first));
        rest = after.get(code.map_or(0, |_| 3)..).unwrap_or_default();
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_mounts_inside_are_found_in_their_order() {
        let line = |place: &str| format!("31 23 0:27 / {place} rw - bpf bpf rw\n");
        let table = ["/a", "/a/b\\040c", "/ab", "/a/d"].map(line).concat();
        let found = mounted_below(&table, Path::new("/a"));
        let wanted = ["/a", "/a/b c", "/a/d"].map(PathBuf::from);
        assert_eq!(found, wanted);
    }
}
