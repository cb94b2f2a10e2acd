//! The processes in a namespace.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, PidfdFlags, Signal, getpid, pidfd_open, pidfd_send_signal};

use crate::wait_until;

/// Kills all processes inside, but not the caller, and waits until they are gone.
pub(super) fn kill_inside(netns: &Path) -> Result<()> {
    let what = format!("no process is left in {}", netns.display());
    wait_until(Duration::from_secs(5), what, || {
        let pids = inside(netns)?;
        for &pid in &pids {
            kill(pid, netns)?;
        }
        if !pids.is_empty() {
            bail!("{pids:?} are left");
        }
        Ok(Some(()))
    })
}

fn inside(netns: &Path) -> Result<Vec<Pid>> {
    let mut pids = Vec::new();
    for entry in fs::read_dir("/proc").context("/proc")? {
        let name = entry?.file_name();
        let pid = name.to_str().and_then(|name| name.parse().ok());
        let Some(pid) = pid.and_then(Pid::from_raw) else {
            continue;
        };
        if pid != getpid() && is_inside(pid, netns) {
            pids.push(pid);
        }
    }
    Ok(pids)
}

/// The process may end, and its number may be given to another at any time: so the namespace is
/// looked at once more when the process is held by its descriptor.
fn kill(pid: Pid, netns: &Path) -> Result<()> {
    let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty()) else {
        return Ok(());
    };
    if is_inside(pid, netns) {
        match pidfd_send_signal(&pidfd, Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => return Err(error).with_context(|| format!("kill {pid:?}")),
        }
    }
    Ok(())
}

fn is_inside(pid: Pid, netns: &Path) -> bool {
    let of_pid = fs::metadata(format!("/proc/{}/ns/net", pid.as_raw_nonzero()));
    match (of_pid, fs::metadata(netns)) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        // A process that has ended has no namespace any more.
        _ => false,
    }
}
