//! The sockets of a forward, so that all can be woken when it stops.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::net::{Shutdown, shutdown};

/// All open sockets of one forward.
#[derive(Debug, Default)]
pub(super) struct Sockets {
    state: Mutex<State>,
    stop: Condvar,
}

#[derive(Debug, Default)]
struct State {
    stopped: bool,
    next: u64,
    open: BTreeMap<u64, OwnedFd>,
}

impl Sockets {
    /// Has this socket shut down when the forward stops, for as long as the guard lives.
    ///
    /// # Errors
    /// When the forward has stopped already.
    pub(super) fn add(&self, socket: &impl AsFd) -> io::Result<Guard<'_>> {
        let fd = socket.as_fd().try_clone_to_owned()?;
        let mut state = self.lock();
        if state.stopped {
            return Err(io::Error::other("stopped"));
        }
        let number = state.next;
        state.next += 1;
        state.open.insert(number, fd);
        Ok(Guard {
            sockets: self,
            number,
        })
    }

    /// Wakes all threads that wait at the sockets.
    pub(super) fn stop(&self) {
        let mut state = self.lock();
        state.stopped = true;
        for fd in state.open.values() {
            // Linux wakes who waits also where the call is an error, which it is for a socket
            // that is not connected (inet_shutdown).
            shutdown(fd, Shutdown::Both).ok();
        }
        self.stop.notify_all();
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.lock().stopped
    }

    /// Holds a thread up that has met an error which may last, such as too many open files.
    pub(super) fn rest(&self) {
        let state = self.lock();
        let rest = Duration::from_millis(20);
        let waited = self
            .stop
            .wait_timeout_while(state, rest, |state| !state.stopped);
        drop(waited);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code that could panic runs under the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) struct Guard<'a> {
    sockets: &'a Sockets,
    number: u64,
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        self.sockets.lock().open.remove(&self.number);
    }
}
