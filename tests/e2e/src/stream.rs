//! Single connections, held and watched.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{Receiver, RecvTimeoutError, channel},
    },
    thread::{Builder, JoinHandle, park_timeout},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};
use portolan_testbed::{Namespace, Process, wait_until};

/// How long a read may take when nothing is broken.
const READ: Duration = Duration::from_secs(5);
/// How often a paced stream sends.
const PACE: Duration = Duration::from_millis(10);

/// Starts a server on IPv4 that sends back what it gets.
pub fn echo_server(netns: &Namespace, port: u16) -> Result<Process> {
    let mut socat = netns.command("socat");
    socat.args([&format!("TCP-LISTEN:{port},fork,reuseaddr,nodelay"), "PIPE"]);
    netns.spawn(&mut socat)?.listening(port)
}

/// Connects from inside a namespace. A read that gets nothing for 5 s fails.
pub fn connect(from: &Namespace, to: SocketAddr) -> Result<TcpStream> {
    from.enter(|| {
        let stream =
            TcpStream::connect_timeout(&to, READ).with_context(|| format!("connect {to}"))?;
        stream.set_read_timeout(Some(READ))?;
        stream.set_nodelay(true)?;
        Ok(stream)
    })
}

/// Sends a word and reads it back.
pub fn echo(stream: &mut TcpStream, word: &[u8]) -> Result<()> {
    stream.write_all(word)?;
    let mut answer = vec![0; word.len()];
    stream.read_exact(&mut answer)?;
    ensure!(answer == word, "sent {word:?}, got {answer:?}");
    Ok(())
}

/// A listener of the test's own inside a namespace, on every IPv4 address.
pub fn listen(inside: &Namespace, port: u16) -> Result<TcpListener> {
    inside.enter(|| Ok(TcpListener::bind(("0.0.0.0", port))?))
}

/// A listener of the test's own inside a namespace, on every address of both families.
pub fn listen_v6(inside: &Namespace, port: u16) -> Result<TcpListener> {
    inside.enter(|| Ok(TcpListener::bind(("::", port))?))
}

/// Both ends of a new connection: the client's, and the task's as `listener` accepts it.
pub fn both_ends(
    from: &Namespace,
    to: SocketAddr,
    listener: &TcpListener,
) -> Result<(TcpStream, TcpStream)> {
    let client = connect(from, to)?;
    let (task, _) = listener.accept()?;
    task.set_read_timeout(Some(READ))?;
    task.set_nodelay(true)?;
    Ok((client, task))
}

/// A connection to an echo server on which a number goes forth and back every 10 ms.
pub struct PacedStream {
    to: SocketAddr,
    stop: Arc<AtomicBool>,
    exchanges: Arc<AtomicU64>,
    ended: Receiver<Result<Paced>>,
    thread: Option<JoinHandle<()>>,
}

/// What a paced stream has met.
#[derive(Debug, Clone, Copy)]
pub struct Paced {
    /// How many numbers came back.
    pub exchanges: u64,
    /// The longest time that one took.
    pub slowest: Duration,
}

impl PacedStream {
    /// Connects from inside a namespace and starts.
    pub fn start(from: &Namespace, to: SocketAddr) -> Result<Self> {
        let stream = connect(from, to)?;
        let (stop, exchanges) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let (sender, ended) = channel();
        let (stopped, count) = (Arc::clone(&stop), Arc::clone(&exchanges));
        let thread = Builder::new().name(format!("paced-{to}")).spawn(move || {
            // Whoever dropped the stream does not want to know how it ended.
            sender.send(exchange(stream, &stopped, &count)).ok();
        })?;
        Ok(Self {
            to,
            stop,
            exchanges,
            ended,
            thread: Some(thread),
        })
    }

    /// Waits until so many numbers more have come back.
    pub fn goes_on(&self, exchanges: u64) -> Result<()> {
        let enough = self.exchanges.load(Ordering::Relaxed) + exchanges;
        let what = format!("{exchanges} exchanges more with {}", self.to);
        let waited = wait_until(READ, what, || {
            Ok((self.exchanges.load(Ordering::Relaxed) >= enough).then_some(()))
        });
        waited.map_err(|error| match self.ended.try_recv() {
            Ok(Err(broken)) => broken.context(error),
            _ => error,
        })
    }

    /// Waits until the connection breaks, and tells how.
    ///
    /// # Errors
    /// It goes on for all that time.
    pub fn broken_within(&self, within: Duration) -> Result<anyhow::Error> {
        match self.ended.recv_timeout(within) {
            Ok(Err(error)) => Ok(error),
            Ok(Ok(_)) | Err(RecvTimeoutError::Disconnected) => Err(anyhow!("it was stopped")),
            Err(RecvTimeoutError::Timeout) => {
                Err(anyhow!("the connection goes on after {within:?}"))
            }
        }
    }

    /// Stops, and tells what it has met.
    ///
    /// # Errors
    /// The connection broke, or a number did not come back within 5 s.
    pub fn stop(self) -> Result<Paced> {
        self.stop.store(true, Ordering::Relaxed);
        self.ended.recv().context("the stream's thread died")?
    }
}

impl Drop for PacedStream {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic there was told by its message.
            thread.join().ok();
        }
    }
}

fn exchange(mut stream: TcpStream, stopped: &AtomicBool, count: &AtomicU64) -> Result<Paced> {
    let mut paced = Paced {
        exchanges: 0,
        slowest: Duration::ZERO,
    };
    while !stopped.load(Ordering::Relaxed) {
        let begin = Instant::now();
        echo(&mut stream, &paced.exchanges.to_be_bytes())
            .with_context(|| format!("after {} exchanges", paced.exchanges))?;
        paced.exchanges += 1;
        paced.slowest = paced.slowest.max(begin.elapsed());
        count.store(paced.exchanges, Ordering::Relaxed);
        park_timeout(PACE);
    }
    Ok(paced)
}
