//! An open network namespace, and entering it.

use std::ffi::CStr;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use anyhow::{Context, Result};
use rustix::mount::{MountPropagationFlags, mount_bind, mount_change};
use rustix::system::sethostname;
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

use crate::forward::Protocol;

pub(crate) fn path(name: &str) -> PathBuf {
    Path::new("/run/netns").join(name)
}

/// A handle on a namespace, cheap to clone. As long as one is open the kernel keeps the
/// namespace, also when its name is gone.
#[derive(Debug, Clone)]
pub(crate) struct Netns(Arc<File>);

impl Netns {
    pub(super) fn open(name: &str) -> Result<Self> {
        let path = path(name);
        let file = File::open(&path).with_context(|| path.display().to_string())?;
        Ok(Self(Arc::new(file)))
    }

    /// Moves the calling thread, and it alone, into the namespace.
    pub(crate) fn enter(&self) -> io::Result<()> {
        move_into_link_name_space(self.0.as_fd(), Some(LinkNameSpaceType::Network))?;
        Ok(())
    }

    /// Runs a closure on a thread of its own inside.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let inside = || {
            self.enter().context("cannot enter the namespace")?;
            work()
        };
        match thread::scope(|scope| scope.spawn(inside).join()) {
            Ok(result) => result,
            Err(panic) => resume_unwind(panic),
        }
    }

    /// Whether a socket listens on this TCP port, or is bound to this UDP port.
    pub(crate) fn has_open_port(&self, protocol: Protocol, port: u16) -> Result<bool> {
        self.run(|| {
            let tables = match protocol {
                Protocol::Tcp => ["tcp", "tcp6"],
                Protocol::Udp => ["udp", "udp6"],
            };
            for table in tables {
                // Not /proc/net: that is the view of the main thread. Without IPv6 the second
                // table does not exist.
                let file = format!("/proc/thread-self/net/{table}");
                let text = match fs::read_to_string(&file) {
                    Ok(text) => text,
                    Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                    Err(error) => return Err(error).context(file),
                };
                if text.lines().any(|line| is_open(line, protocol, port)) {
                    return Ok(true);
                }
            }
            Ok(false)
        })
    }
}

/// Gives the calling process a host name that is seen by it alone.
pub(super) fn set_hostname(name: &str) -> io::Result<()> {
    unshare(UnshareFlags::NEWUTS)?;
    sethostname(name.as_bytes())?;
    Ok(())
}

/// Gives the calling process a mount namespace in which `/etc/resolv.conf` is `file`. Changes
/// of the mounts outside go on to be seen in it, so that later namespaces can be opened.
pub(super) fn mount_resolver(file: &CStr) -> io::Result<()> {
    unshare(UnshareFlags::NEWNS)?;
    let slave = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    mount_change(c"/", slave)?;
    mount_bind(file, c"/etc/resolv.conf")?;
    Ok(())
}

fn unshare(what: UnshareFlags) -> io::Result<()> {
    // SAFETY: no file descriptor table is unshared, which is what this call is unsafe for.
    // SAFETY: no file descriptor table is unshared, which is what this call is unsafe for.
    #[expect(unsafe_code, reason = "the change is for this process alone")]
    unsafe {
        unshare_unsafe(what)?;
    }
    Ok(())
}

/// Reads one line of a socket table (the kernel's `proc_net_tcp.rst`): local address and port in
/// hex, then those of the other side, then the state, 0A for LISTEN, 07 for a UDP socket that is
/// not connected.
fn is_open(line: &str, protocol: Protocol, port: u16) -> bool {
    let mut columns = line.split_whitespace().skip(1);
    let (Some(local), Some(state)) = (columns.next(), columns.nth(1)) else {
        return false;
    };
    let local = local.rsplit(':').next();
    let local = local.and_then(|hex| u16::from_str_radix(hex, 16).ok());
    let open = match protocol {
        Protocol::Tcp => "0A",
        Protocol::Udp => "07",
    };
    local == Some(port) && state == open
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_listeners_are_open() {
        let listener = "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000";
        let connection = "   1: 0100007F:1F90 0100007F:9C40 01 00000000:00000000 00:00000000";
        let heading = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when";
        assert!(is_open(listener, Protocol::Tcp, 8080));
        assert!(!is_open(listener, Protocol::Tcp, 8081));
        assert!(!is_open(connection, Protocol::Tcp, 8080));
        assert!(!is_open(heading, Protocol::Tcp, 8080));
    }
}
