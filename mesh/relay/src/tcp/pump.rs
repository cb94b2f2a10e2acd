//! Moving bytes between two connections.

use std::{
    future::poll_fn,
    io::{self, ErrorKind},
    net::Shutdown,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::Duration,
};

use nix::libc::c_int;
use rustix::{
    ioctl::{Getter, Opcode, ioctl},
    net::{RecvFlags, recv},
    pipe::{SpliceFlags, splice},
};
use socket2::SockRef;
use tokio::{io::Interest, net::TcpStream, task::coop::consume_budget, time::sleep_until};

use crate::{
    engine::Engine,
    flows::{Direction, Flow},
    pool::{PIPE, Pipe},
};

/// After so many bytes a direction goes through a pipe: below, the pipe costs more than it saves.
const SPLICE_AFTER: u64 = 4 << 20;
/// After so many further bytes a direction that got no pipe asks again.
const ASK_AGAIN_AFTER: u64 = 4 << 20;

/// The request behind sockatmark(3), of asm-generic/sockios.h.
const SIOCATMARK: Opcode = 0x8905;

/// How a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// Both sides closed in order, and all bytes were delivered.
    Finished,
    /// One side was reset or lost.
    Broken,
    /// No byte moved for too long.
    Idle,
}

/// What came of a turn of one direction.
enum Turn {
    /// There is nothing more to read for now.
    Drained,
    /// There may be more.
    More,
    /// The sender is done.
    Eof,
}

/// One direction of a connection.
struct Leg<'a> {
    engine: &'a Engine,
    flow: &'a Flow,
    direction: Direction,
    from: &'a TcpStream,
    to: &'a TcpStream,
    last_ms: &'a AtomicU64,
    /// Whether one of the two directions has ended.
    half_closed: &'a AtomicBool,
}

/// Moves bytes both ways until both sides have closed, or one is broken, or nothing moved for `idle`. A
/// side that closes early can still receive. Nothing is held while there is nothing to move.
pub(super) async fn both_ways(
    engine: &Engine,
    flow: &Flow,
    client: &TcpStream,
    upstream: &TcpStream,
    idle: Option<Duration>,
) -> End {
    let last_ms = AtomicU64::new(engine.now_ms());
    let half_closed = AtomicBool::new(false);
    let leg = |direction, from, to| Leg {
        engine,
        flow,
        direction,
        from,
        to,
        last_ms: &last_ms,
        half_closed: &half_closed,
    };
    let inward = leg(Direction::In, client, upstream).run();
    let outward = leg(Direction::Out, upstream, client).run();
    let idle = idle_for(engine, &last_ms, idle);
    tokio::pin!(inward, outward, idle);
    let (mut in_done, mut out_done) = (false, false);
    while !(in_done && out_done) {
        let result = tokio::select! {
            result = &mut inward, if !in_done => {
                in_done = true;
                result
            }
            result = &mut outward, if !out_done => {
                out_done = true;
                result
            }
            // No one reads from a side that has closed, so its reset has to be looked for.
            error = broken(client), if in_done => Err(error),
            error = broken(upstream), if out_done => Err(error),
            () = &mut idle => return End::Idle,
        };
        if result.is_err() {
            return End::Broken;
        }
    }
    End::Finished
}

/// Returns when no byte has moved for so long.
async fn idle_for(engine: &Engine, last_ms: &AtomicU64, idle: Option<Duration>) {
    let Some(idle) = idle else {
        return std::future::pending().await;
    };
    loop {
        let last = last_ms.load(Ordering::Relaxed);
        sleep_until(engine.at_ms(last) + idle).await;
        if last_ms.load(Ordering::Relaxed) == last {
            return;
        }
    }
}

/// Returns when the stream was reset.
async fn broken(stream: &TcpStream) -> io::Error {
    match stream.ready(Interest::ERROR).await {
        Ok(_) => ErrorKind::ConnectionReset.into(),
        Err(error) => error,
    }
}

impl Leg<'_> {
    async fn run(self) -> io::Result<()> {
        let mut moved = 0;
        let mut splice_from = SPLICE_AFTER;
        loop {
            // Half of what `readable` costs, and it takes its turn with other tasks by itself.
            poll_fn(|context| self.from.poll_read_ready(context)).await?;
            let pipe = if moved >= splice_from {
                self.engine.pipes.take()
            } else {
                None
            };
            let turn = if let Some(pipe) = pipe {
                let turn = match pipe.get() {
                    Some(ends) => self.splice(ends, &mut moved).await?,
                    None => Turn::More,
                };
                pipe.give_back();
                turn
            } else {
                if moved >= splice_from {
                    splice_from = moved + ASK_AGAIN_AFTER;
                }
                self.copy(&mut moved, splice_from).await?
            };
            if matches!(turn, Turn::Eof) {
                break;
            }
        }
        // The second direction's end is told by the close that follows.
        if !self.half_closed.swap(true, Ordering::Relaxed) {
            // It fails if the other side is gone meanwhile, which the other direction will find.
            let _ = SockRef::from(self.to).shutdown(Shutdown::Write);
        }
        Ok(())
    }

    /// Moves what there is through a buffer, until `splice_from` bytes have been moved in all.
    async fn copy(&self, moved: &mut u64, splice_from: u64) -> io::Result<Turn> {
        let mut buffer = self.engine.buffers.take();
        while *moved < splice_from {
            let (count, drained) = match read(self.from, &mut buffer) {
                Ok((0, _)) => return Ok(Turn::Eof),
                Ok(read) => read,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(Turn::Drained),
                Err(error) => return Err(error),
            };
            write_all(self.to, buffer.get(..count).unwrap_or_default()).await?;
            self.count(count, moved);
            if drained {
                return Ok(Turn::Drained);
            }
            consume_budget().await;
        }
        Ok(Turn::More)
    }

    /// Moves what there is through a pipe, which is empty before and after. An error leaves it as it is.
    async fn splice(&self, pipe: &Pipe, moved: &mut u64) -> io::Result<Turn> {
        const FLAGS: SpliceFlags = SpliceFlags::MOVE.union(SpliceFlags::NONBLOCK);
        loop {
            // The pipe is empty here, so it is the socket that would block.
            let read = self.from.try_io(Interest::READABLE, || {
                Ok(splice(self.from, None, pipe.write(), None, PIPE, FLAGS)?)
            });
            let count = match read {
                Ok(0) => return Ok(Turn::Eof),
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(Turn::Drained),
                Err(error) => return Err(error),
            };
            let mut left = count;
            while left > 0 {
                let write = self.to.async_io(Interest::WRITABLE, || {
                    Ok(splice(pipe.read(), None, self.to, None, left, FLAGS)?)
                });
                left = left.saturating_sub(write.await?);
                self.mark();
            }
            self.count(count, moved);
            consume_budget().await;
        }
    }

    fn count(&self, bytes: usize, moved: &mut u64) {
        *moved += bytes as u64;
        self.flow.count(self.direction, bytes);
        self.mark();
    }

    fn mark(&self) {
        self.last_ms.store(self.engine.now_ms(), Ordering::Relaxed);
    }
}

/// Reads what there is, and tells whether that was all, so that the next look at the socket is due when more
/// has come. Less than was asked for leaves nothing behind, as epoll(7) says, unless urgent data is in the way.
fn read(from: &TcpStream, buffer: &mut [u8]) -> io::Result<(usize, bool)> {
    let mut all = None;
    let read = from.try_io(Interest::READABLE, || {
        let (count, _) = recv(from, &mut *buffer, RecvFlags::empty())?;
        if count == 0 || count == buffer.len() || at_urgent_data(from) {
            return Ok(count);
        }
        all = Some(count);
        // It is how tokio is told that the socket is no longer readable.
        Err(ErrorKind::WouldBlock.into())
    });
    match all {
        Some(count) => Ok((count, true)),
        None => Ok((read?, false)),
    }
}

/// Whether the next byte is urgent data, before which every read stops: sockatmark(3).
#[expect(unsafe_code, reason = "rustix has no call of its own for it")]
fn at_urgent_data(stream: &TcpStream) -> bool {
    // SAFETY: this request stores an int and does nothing else: `SIOCATMARK` in socket(7).
    let mark = unsafe { ioctl(stream, Getter::<SIOCATMARK, c_int>::new()) };
    mark.is_ok_and(|mark| mark != 0)
}

/// Writes all bytes, waiting where the receiver is slower.
pub(super) async fn write_all(to: &TcpStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match to.try_write(bytes) {
            Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
            Err(error) if error.kind() == ErrorKind::WouldBlock => to.writable().await?,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
