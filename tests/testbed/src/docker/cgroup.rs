//! The processes of an engine's containers: in namespaces of their own, they are found by their cgroup.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::wait_until;

const ROOT: &str = "/sys/fs/cgroup";
const PREFIX: &str = "pt-docker-";

/// The cgroup, in every hierarchy, in which an engine makes those of its containers.
#[derive(Debug)]
pub(super) struct Parent {
    name: String,
}

impl Parent {
    /// The cgroup of the engine on a node, called by its namespace. What engines have left whose namespace
    /// is gone is removed.
    pub(super) fn new(namespace: &str) -> Result<Self> {
        for dir in directories()? {
            let name = dir.file_name().unwrap_or_default().to_string_lossy();
            let of = name.strip_prefix(PREFIX);
            let is_left = |of: &str| of == namespace || !Path::new("/run/netns").join(of).exists();
            if of.is_some_and(is_left) {
                let name = name.into_owned();
                Self { name }.remove()?;
            }
        }
        Ok(Self {
            name: format!("{PREFIX}{namespace}"),
        })
    }

    /// What `dockerd --cgroup-parent` is told.
    pub(super) fn path(&self) -> String {
        format!("/{}", self.name)
    }

    /// Kills what is in it, and removes it.
    pub(super) fn remove(&self) -> Result<()> {
        let what = format!("nothing is left in the cgroup {}", self.name);
        wait_until(Duration::from_secs(10), what, || {
            let mut left = Vec::new();
            for dir in directories()?
                .iter()
                .filter(|dir| dir.ends_with(&self.name))
            {
                for pid in processes(dir)? {
                    self.kill(pid)?;
                    left.push(pid);
                }
            }
            if !left.is_empty() {
                bail!("{left:?} are left");
            }
            Ok(Some(()))
        })?;
        for dir in directories()?
            .iter()
            .filter(|dir| dir.ends_with(&self.name))
        {
            remove_tree(dir).with_context(|| dir.display().to_string())?;
        }
        Ok(())
    }

    /// The process may end, and its number be given to another at any time: so it is looked at once more
    /// when it is held by its descriptor.
    fn kill(&self, pid: Pid) -> Result<()> {
        let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty()) else {
            return Ok(());
        };
        let of = fs::read_to_string(format!("/proc/{}/cgroup", pid.as_raw_nonzero()));
        let ours = of.is_ok_and(|of| of.split(['/', '\n']).any(|part| part == self.name));
        if !ours {
            return Ok(());
        }
        match pidfd_send_signal(&pidfd, Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error).with_context(|| format!("kill {pid:?}")),
        }
    }
}

/// The directories at the top of every hierarchy: one with cgroup v2, one for each controller with v1.
fn directories() -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for hierarchy in subdirectories(Path::new(ROOT)).context(ROOT)? {
        // Controllers that share a hierarchy have names that are links.
        if !hierarchy.is_symlink() {
            found.extend(subdirectories(&hierarchy).unwrap_or_default());
        }
        found.push(hierarchy);
    }
    Ok(found)
}

fn subdirectories(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = fs::read_dir(dir)?.collect::<io::Result<Vec<_>>>()?;
    let paths = entries.into_iter().map(|entry| entry.path());
    Ok(paths.filter(|path| path.is_dir()).collect())
}

/// The processes of a cgroup and of those below it. One that vanishes meanwhile has none.
fn processes(dir: &Path) -> Result<Vec<Pid>> {
    let text = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    let pids = text
        .lines()
        .filter_map(|line| Pid::from_raw(line.parse().ok()?));
    let mut pids: Vec<Pid> = pids.collect();
    for below in subdirectories(dir).unwrap_or_default() {
        pids.extend(processes(&below)?);
    }
    Ok(pids)
}

fn remove_tree(dir: &Path) -> io::Result<()> {
    for below in subdirectories(dir).unwrap_or_default() {
        remove_tree(&below)?;
    }
    match fs::remove_dir(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
