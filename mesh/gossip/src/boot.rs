//! The boot number: higher at every start of a node, also when its clock went back.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use crate::keyring::persist;

/// The file in the state directory.
const FILE: &str = "gossip.boot";

/// Takes the next boot number and brings it to disk.
pub(crate) fn next(state_dir: &Path) -> io::Result<u64> {
    fs::create_dir_all(state_dir)?;
    let last: u64 = match fs::read_to_string(path(state_dir)) {
        // A file that is no number is as good as none: peers know better, and say so.
        Ok(text) => text.trim().parse().unwrap_or(0),
        Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
        Err(error) => return Err(error),
    };
    let clock = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_millis() as u64);
    let boot = clock.max(last.saturating_add(1));
    keep(state_dir, boot)?;
    Ok(boot)
}

/// Brings a boot number to disk.
pub(crate) fn keep(state_dir: &Path, boot: u64) -> io::Result<()> {
    persist(&path(state_dir), &format!("{boot}\n"))
}

pub(crate) fn path(state_dir: &Path) -> PathBuf {
    state_dir.join(FILE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_start_has_a_higher_number_whatever_the_clock_says() {
        let dir = tempfile::tempdir().unwrap();
        let first = next(dir.path()).unwrap();
        assert!(next(dir.path()).unwrap() > first);
        let future = first + (1 << 40);
        keep(dir.path(), future).unwrap();
        assert_eq!(next(dir.path()).unwrap(), future + 1);
    }

    #[test]
    fn a_damaged_file_does_not_keep_a_node_from_starting() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(path(dir.path()), "\u{0}garbage").unwrap();
        assert!(next(dir.path()).unwrap() > 1_600_000_000_000);
    }
}
