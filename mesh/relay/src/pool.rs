//! Buffers and pipes: held while bytes are in motion, never by an idle flow.

use std::{
    fmt,
    ops::{Deref, DerefMut},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Mutex,
};

use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};

use crate::served::lock;

/// The size of a buffer, which the largest datagram fits into too.
pub(crate) const BUFFER: usize = 64 * 1024;
/// How many unused buffers are kept.
const SPARE_BUFFERS: usize = 64;
/// The size of a pipe: the kernel's limit for users without privileges, and the best one measured.
pub(crate) const PIPE: usize = 1 << 20;

/// Buffers of one size.
pub(crate) struct Buffers {
    size: usize,
    spare: Mutex<Vec<Box<[u8]>>>,
}

impl Buffers {
    pub(crate) fn new(size: usize) -> Self {
        Self {
            size,
            spare: Mutex::default(),
        }
    }

    /// A buffer with arbitrary content.
    pub(crate) fn take(&self) -> Buffer<'_> {
        let spare = lock(&self.spare).pop();
        Buffer {
            bytes: spare.unwrap_or_else(|| vec![0; self.size].into()),
            pool: self,
        }
    }
}

impl fmt::Debug for Buffers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffers({} spare)", lock(&self.spare).len())
    }
}

/// A buffer, which goes back when it is dropped.
pub(crate) struct Buffer<'a> {
    bytes: Box<[u8]>,
    pool: &'a Buffers,
}

impl Deref for Buffer<'_> {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl DerefMut for Buffer<'_> {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
}

impl Drop for Buffer<'_> {
    fn drop(&mut self) {
        let mut spare = lock(&self.pool.spare);
        if spare.len() < SPARE_BUFFERS {
            spare.push(std::mem::take(&mut self.bytes));
        }
    }
}

/// Pipes for splice(2).
#[derive(Debug)]
pub(crate) struct Pipes {
    state: Mutex<PipesState>,
}

#[derive(Debug)]
struct PipesState {
    /// How many more may be made.
    left: usize,
    spare: Vec<Pipe>,
}

/// The two ends of an empty pipe.
#[derive(Debug)]
pub(crate) struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
}

impl Pipe {
    pub(crate) fn read(&self) -> BorrowedFd<'_> {
        self.read.as_fd()
    }

    pub(crate) fn write(&self) -> BorrowedFd<'_> {
        self.write.as_fd()
    }
}

impl Pipes {
    /// At most `count` pipes.
    pub(crate) fn new(count: usize) -> Self {
        Self {
            state: Mutex::new(PipesState {
                left: count,
                spare: Vec::new(),
            }),
        }
    }

    /// An empty pipe; none when all are in use, or when the kernel gives no more of this size (a user
    /// without privileges has 64 MiB of them, pipe(7)): bytes are then copied through a buffer.
    pub(crate) fn take(&self) -> Option<PipeGuard<'_>> {
        let pipe = {
            let mut state = lock(&self.state);
            if let Some(pipe) = state.spare.pop() {
                Some(pipe)
            } else {
                state.left = state.left.checked_sub(1)?;
                None
            }
        };
        let Some(pipe) = pipe.or_else(|| make().ok()) else {
            lock(&self.state).left += 1;
            return None;
        };
        Some(PipeGuard {
            pipe: Some(pipe),
            pool: self,
        })
    }
}

fn make() -> rustix::io::Result<Pipe> {
    let (read, write) = pipe_with(PipeFlags::NONBLOCK | PipeFlags::CLOEXEC)?;
    fcntl_setpipe_size(&write, PIPE)?;
    Ok(Pipe { read, write })
}

/// A pipe in use. It goes back only by [`PipeGuard::give_back`]: dropped in the middle of a transfer it may
/// hold bytes of its flow, and is closed.
pub(crate) struct PipeGuard<'a> {
    pipe: Option<Pipe>,
    pool: &'a Pipes,
}

impl PipeGuard<'_> {
    /// The pipe.
    pub(crate) fn get(&self) -> Option<&Pipe> {
        self.pipe.as_ref()
    }

    /// Returns the pipe, which must be empty.
    pub(crate) fn give_back(mut self) {
        if let Some(pipe) = self.pipe.take() {
            lock(&self.pool.state).spare.push(pipe);
        }
    }
}

impl Drop for PipeGuard<'_> {
    fn drop(&mut self) {
        if self.pipe.take().is_some() {
            lock(&self.pool.state).left += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pipes_end_at_the_cap_and_come_back() {
        let pipes = Pipes::new(2);
        let (first, second) = (pipes.take().unwrap(), pipes.take().unwrap());
        assert!(pipes.take().is_none());
        first.give_back();
        let again = pipes.take().unwrap();
        assert!(pipes.take().is_none());
        drop(second);
        assert!(pipes.take().is_some(), "a closed one may be replaced");
        drop(again);
    }

    #[test]
    fn buffers_are_used_again() {
        let buffers = Buffers::new(BUFFER);
        buffers.take()[0] = 7;
        assert_eq!(buffers.take()[0], 7);
        assert_eq!(buffers.take().len(), BUFFER);
    }
}
