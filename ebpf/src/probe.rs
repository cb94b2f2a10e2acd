//! Whether the fast path can work here.

use std::path::Path;

use portolan_plane::Unavailable;
use rustix::{fs::statfs, io::Errno, system::uname};

use crate::ABSENT;

/// The first kernel with TCX.
const TCX: (u32, u32) = (6, 6);
/// `BPF_FS_MAGIC` (linux/magic.h).
const BPF_FS: u64 = 0xcafe_4a11;

/// Whether the fast path can work on this machine, with its pins below `pins`. Changes nothing.
///
/// # Errors
/// It cannot, with the reason in the words of a user.
pub fn probe(pins: &Path) -> Result<(), Unavailable> {
    let no = |why: String| Err(Unavailable(why));
    is_built(ABSENT)?;
    let release = uname().release().to_string_lossy().into_owned();
    if version(&release).is_none_or(|version| version < TCX) {
        return no(format!("kernel {release} is too old: TCX came with 6.6"));
    }
    let existing = pins.ancestors().find(|path| path.exists());
    match existing.map(statfs) {
        Some(Ok(fs)) if fs.f_type.cast_unsigned() & 0xffff_ffff == BPF_FS => Ok(()),
        Some(Err(Errno::ACCESS | Errno::PERM)) => {
            no(format!("no privilege to read {}", pins.display()))
        }
        _ => no(format!(
            "{} is not on a BPF file system: mount -t bpf bpf /sys/fs/bpf",
            pins.display()
        )),
    }
}

/// `absent` is why the build has no programs; empty if it has them.
fn is_built(absent: &str) -> Result<(), Unavailable> {
    if absent.is_empty() {
        return Ok(());
    }
    let why = format!("this build has no fast path: {absent}");
    Err(Unavailable(why))
}

/// `6.18.5-amd64` is 6.18.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read() {
        assert_eq!(version("6.18.5-amd64"), Some((6, 18)));
        assert_eq!(version("6.6"), Some((6, 6)));
        assert_eq!(version("next"), None);
    }

    #[test]
    fn a_build_without_programs_says_why() {
        assert!(is_built("").is_ok());
        let reason = is_built("clang was not found").unwrap_err().0;
        assert_eq!(reason, "this build has no fast path: clang was not found");
    }

    #[test]
    fn a_place_that_is_no_bpf_file_system_is_refused() {
        let reason = probe(Path::new("/tmp")).unwrap_err().0;
        assert!(reason.contains("mount -t bpf"), "{reason}");
    }
}
