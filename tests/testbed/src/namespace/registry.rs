//! Who owns which namespace, so that what a killed owner left can be found and removed.
//!
//! `/run/portolan-testbed/NAMESPACE/owner` has the owner's process id and start time; the
//! directory holds the namespace's other files too. Claims and sweeps take one lock, so that no
//! sweep removes what another process is just making.

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process;
use std::str::FromStr;

use anyhow::{Context, Result, anyhow, bail};
use rustix::mount::{UnmountFlags, unmount};

use super::{netns, pids};
use crate::programs::ip;

const ROOT: &str = "/run/portolan-testbed";

/// Removes the namespaces whose owners are gone, also by kill -9, with their processes and
/// files. Returns their names.
///
/// # Errors
/// All that could not be removed; the others are gone nevertheless.
pub fn sweep() -> Result<Vec<String>> {
    let _lock = lock()?;
    let (mut removed, mut errors) = (Vec::new(), Vec::new());
    for entry in fs::read_dir(ROOT).context(ROOT)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if !entry.file_type()?.is_dir() || live_owner(&entry.path()).is_some() {
            continue;
        }
        match remove(&name) {
            Ok(()) => removed.push(name),
            Err(error) => errors.push(error),
        }
    }
    none_of(&errors)?;
    Ok(removed)
}

/// Takes a name for this process, and returns the directory that goes with it.
pub(super) fn claim(name: &str) -> Result<PathBuf> {
    let _lock = lock()?;
    let dir = Path::new(ROOT).join(name);
    if let Some(owner) = live_owner(&dir) {
        bail!("namespace {name} is in use by process {}", owner.pid);
    }
    if dir.exists() {
        remove(name)?;
    }
    if netns::path(name).exists() {
        bail!("namespace {name} exists, and has no owner: remove it by `ip netns del {name}`");
    }
    let owner = Owner::of(process::id()).context("this process is not in /proc")?;
    fs::create_dir(&dir).with_context(|| dir.display().to_string())?;
    fs::write(dir.join("owner"), owner.to_string()).with_context(|| dir.display().to_string())?;
    Ok(dir)
}

/// Removes a namespace, its processes and its files, those of them that exist; goes on after an
/// error, and leaves the claim when there was one, for the next sweep.
pub(super) fn remove(name: &str) -> Result<()> {
    let netns = netns::path(name);
    let mut errors = Vec::new();
    if netns.exists() {
        errors.extend(pids::kill_inside(&netns).err());
        errors.extend(ip(&["netns", "del", name]).err());
    }
    errors.extend(remove_dir(&etc_dir(name)).err());
    let dir = Path::new(ROOT).join(name);
    errors.extend(unmount_below(&dir).err());
    if errors.is_empty() {
        errors.extend(remove_dir(&dir).err());
    }
    none_of(&errors).with_context(|| format!("cannot remove namespace {name}"))
}

/// What `ip netns exec` mounts over `/etc`.
pub(super) fn etc_dir(name: &str) -> PathBuf {
    Path::new("/etc/netns").join(name)
}

fn lock() -> Result<File> {
    let path = Path::new(ROOT).join(".lock");
    let open = || -> io::Result<File> {
        fs::create_dir_all(ROOT)?;
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)?;
        file.lock()?;
        Ok(file)
    };
    open().with_context(|| format!("{} (the testbed needs root)", path.display()))
}

fn remove_dir(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| dir.display().to_string())
        }
        _ => Ok(()),
    }
}

/// Unmounts what programs inside have mounted in a namespace's directory, such as a BPF file system; with it goes
/// what is pinned there.
fn unmount_below(dir: &Path) -> Result<()> {
    let path = "/proc/self/mountinfo";
    let mounts = fs::read_to_string(path).context(path)?;
    // proc_pid_mountinfo(5): the fifth field is the mount point. Names of namespaces have nothing to be escaped.
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(4));
    let below: Vec<&str> = points
        .filter(|point| Path::new(point).starts_with(dir))
        .collect();
    // The last one mounted comes first off.
    for point in below.into_iter().rev() {
        unmount(point, UnmountFlags::DETACH).with_context(|| format!("cannot unmount {point}"))?;
    }
    Ok(())
}

fn none_of(errors: &[anyhow::Error]) -> Result<()> {
    if errors.is_empty() {
        return Ok(());
    }
    let messages: Vec<String> = errors.iter().map(|error| format!("{error:#}")).collect();
    Err(anyhow!(messages.join("; ")))
}

fn live_owner(dir: &Path) -> Option<Owner> {
    let owner: Owner = fs::read_to_string(dir.join("owner")).ok()?.parse().ok()?;
    (Owner::of(owner.pid) == Some(owner)).then_some(owner)
}

/// A process, told from later ones of the same number by its start time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Owner {
    pid: u32,
    /// In clock ticks since the machine's start.
    started: u64,
}

impl Owner {
    /// The owner that a process which runs would be.
    fn of(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // proc_pid_stat(5): the name in parentheses may have blanks and parentheses itself; the
        // state is the first field after it, field 3, and the start time is field 22.
        let (_, fields) = stat.rsplit_once(')')?;
        let fields: Vec<&str> = fields.split_whitespace().collect();
        let state = fields.first()?;
        let started = fields.get(19)?.parse().ok()?;
        (!matches!(*state, "Z" | "X")).then_some(Self { pid, started })
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.pid, self.started)
    }
}

impl FromStr for Owner {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (pid, started) = text.trim().split_once(' ').context("no blank")?;
        Ok(Self {
            pid: pid.parse()?,
            started: started.parse()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_a_live_owner() {
        let owner = Owner::of(process::id()).unwrap();
        assert_eq!(owner.to_string().parse::<Owner>().unwrap(), owner);
    }

    #[test]
    fn a_process_that_took_the_number_over_is_no_owner() {
        let dir = tempfile::tempdir().unwrap();
        let mut owner = Owner::of(process::id()).unwrap();
        fs::write(dir.path().join("owner"), owner.to_string()).unwrap();
        assert_eq!(live_owner(dir.path()), Some(owner));
        owner.started -= 1;
        fs::write(dir.path().join("owner"), owner.to_string()).unwrap();
        assert_eq!(live_owner(dir.path()), None);
    }
}
