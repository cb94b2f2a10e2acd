//! Network namespaces of tasks, and working inside them.

use std::{
    fmt,
    fs::File,
    io,
    os::fd::{AsFd, BorrowedFd},
    path::{Path, PathBuf},
    thread,
};

use rustix::{
    fs::fstat,
    thread::{LinkNameSpaceType, move_into_link_name_space},
};

use crate::netlink::Netlink;

/// Where containers have the machine's `/proc`: at its own place there is that of the container's own processes.
const IN_CONTAINERS: &str = "/host/proc";

/// The directory in which the processes of the machine are, by the numbers that they have there.
pub fn processes() -> &'static Path {
    let machines = Path::new(IN_CONTAINERS);
    if machines.join("1").exists() {
        machines
    } else {
        Path::new("/proc")
    }
}

/// Which network namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetnsRef {
    /// That of a file: `/run/netns/NAME`, `/proc/PID/ns/net`, a container's sandbox key.
    Path(PathBuf),
    /// That of a process, by its number on the machine.
    Pid(u32),
}

impl NetnsRef {
    pub(crate) fn path(&self) -> PathBuf {
        match self {
            Self::Path(path) => path.clone(),
            Self::Pid(pid) => processes().join(format!("{pid}/ns/net")),
        }
    }
}

impl fmt::Display for NetnsRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.path().display().fmt(f)
    }
}

/// An open network namespace: it stays as long as this does.
#[derive(Debug)]
pub(crate) struct Netns(File);

impl Netns {
    /// Opens one.
    pub(crate) fn open(at: &NetnsRef) -> io::Result<Self> {
        let netns = Self(File::open(at.path())?);
        // A file that is no namespace is found out here, and not when half is done.
        netns.run(|| Ok(()))?;
        Ok(netns)
    }

    /// Whether it is that of the calling thread.
    pub(crate) fn is_current(&self) -> io::Result<bool> {
        let (this, current) = (fstat(&self.0)?, File::open("/proc/thread-self/ns/net")?);
        let current = fstat(current)?;
        Ok((this.st_dev, this.st_ino) == (current.st_dev, current.st_ino))
    }

    /// Opens a netlink socket inside.
    pub(crate) fn netlink(&self) -> io::Result<Netlink> {
        self.run(Netlink::open)
    }

    /// Runs a closure on a thread of its own inside: entering changes the thread for good. Programs that
    /// it starts are inside too.
    pub(crate) fn run<T: Send>(
        &self,
        work: impl FnOnce() -> io::Result<T> + Send,
    ) -> io::Result<T> {
        let inside = || {
            move_into_link_name_space(self.as_fd(), Some(LinkNameSpaceType::Network))?;
            work()
        };
        thread::scope(|scope| scope.spawn(inside).join())
            .unwrap_or_else(|_| Err(io::Error::other("the thread inside the namespace panicked")))
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
