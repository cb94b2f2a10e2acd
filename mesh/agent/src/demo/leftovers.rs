//! What a demo must not leave behind.

use std::{env, fs, io, path::Path};

use anyhow::{Context, Result};

use super::cluster::PREFIX;

/// Where namespaces, what belongs to them, and their settings are.
const PLACES: [&str; 3] = ["/run/netns", "/run/portolan-testbed", "/etc/netns"];

/// Everything of the demo that is still there: files by their paths, and those processes of `pids` that
/// still run.
pub(super) fn find(pids: &[u32]) -> Result<Vec<String>> {
    let mut left = Vec::new();
    for place in PLACES {
        for name in names(Path::new(place))? {
            if name.starts_with(&format!("pt-{PREFIX}-")) {
                left.push(format!("{place}/{name} is left behind"));
            }
        }
    }
    let program = env::current_exe().context("cannot find this program's own file")?;
    for pid in pids {
        // The number may belong to another program by now.
        if fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe == program) {
            left.push(format!("process {pid} is left behind"));
        }
    }
    Ok(left)
}

fn names(dir: &Path) -> Result<Vec<String>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| dir.display().to_string()),
    };
    let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    names
        .collect::<io::Result<_>>()
        .with_context(|| dir.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_still_runs_is_found() {
        let own = std::process::id();
        let left = find(&[own]).unwrap();
        assert!(
            left.contains(&format!("process {own} is left behind")),
            "{left:?}"
        );
    }
}
