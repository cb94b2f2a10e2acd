//! HTTP requests by threads that each ask, wait, and ask again.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;
use portolan_testbed::Namespace;
use socket2::{Domain, Socket, Type};

use crate::results::Sample;

/// What a request, or a connect, may take at most; longer is a failure.
const PATIENCE: Duration = Duration::from_secs(3);
/// How many requests a connection that is kept carries: fewer than the 1000 after which nginx ends it.
const REQUESTS_KEPT: u32 = 900;
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: bench\r\n\r\n";

/// Whether each request is a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Connections {
    /// It is, and the client is the first to close: so the ports that are held for a minute after the
    /// end are those of whoever connects, as with most protocols.
    Close,
    /// One connection for [`REQUESTS_KEPT`].
    Keep,
}

/// What all threads together have met.
#[derive(Debug, Default)]
pub(crate) struct Load {
    /// When, since the start, each answer had come, and how long it took from connect or request on.
    answers: Vec<(Duration, Duration)>,
    failures: usize,
}

/// Asks for so long, by so many threads.
pub(crate) fn run(
    from: &Namespace,
    to: SocketAddr,
    clients: u8,
    connections: Connections,
    time: Duration,
) -> Result<Load> {
    from.enter(|| {
        let start = Instant::now();
        thread::scope(|scope| {
            let work = || ask_until(start, time, to, connections);
            let threads = (0..clients).map(|_| scope.spawn(work)).collect::<Vec<_>>();
            let mut all = Load::default();
            for thread in threads {
                let one = thread
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
                all.answers.extend(one.answers);
                all.failures += one.failures;
            }
            Ok(all)
        })
    })
}

impl Load {
    /// Its figures; `cpu` in seconds.
    pub(crate) fn sample(mut self, time: Duration, cpu: f64) -> Sample {
        self.answers.sort_unstable_by_key(|(_, took)| *took);
        let micros = |share: f64| {
            let rank = (self.answers.len() as f64 * share) as usize;
            let found = self.answers.get(rank).or(self.answers.last());
            found.map(|(_, took)| took.as_secs_f64() * 1e6)
        };
        let within = |from: f64, to: f64| {
            let span = time.mul_f64(from)..time.mul_f64(to);
            self.answers
                .iter()
                .filter(|(at, _)| span.contains(at))
                .count() as f64
        };
        let count = self.answers.len() as f64;
        Sample {
            value: count / time.as_secs_f64(),
            cpu: cpu / (count / 1000.0),
            p50_us: micros(0.50),
            p99_us: micros(0.99),
            kept: Some(within(0.75, 1.0) / within(0.0, 0.25).max(1.0)),
            failures: self.failures,
        }
    }
}

fn ask_until(start: Instant, time: Duration, to: SocketAddr, connections: Connections) -> Load {
    let mut load = Load::default();
    let most = match connections {
        Connections::Close => 1,
        Connections::Keep => REQUESTS_KEPT,
    };
    let (mut open, mut asked) = (None, 0);
    while start.elapsed() < time {
        let begin = Instant::now();
        match ask(open.take(), to) {
            Ok(connection) => {
                load.answers.push((start.elapsed(), begin.elapsed()));
                asked = if connection.is_some() { asked + 1 } else { 0 };
                open = connection.filter(|_| asked % most != 0);
            }
            Err(_) => load.failures += 1,
        }
    }
    load
}

/// Asks once, and returns the connection if the server keeps it.
fn ask(open: Option<TcpStream>, to: SocketAddr) -> io::Result<Option<TcpStream>> {
    let mut stream = match open {
        Some(stream) => stream,
        None => connect(to)?,
    };
    stream.write_all(REQUEST)?;
    let mut buffer = [0; 2048];
    let mut length = 0;
    loop {
        let rest = buffer.get_mut(length..).unwrap_or_default();
        match stream.read(rest)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            more => length += more,
        }
        if let Some(kept) = answered(buffer.get(..length).unwrap_or_default()) {
            return Ok(kept.then_some(stream));
        }
    }
}

fn connect(to: SocketAddr) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
    // The time for writing is that for connecting too (socket(7)).
    socket.set_write_timeout(Some(PATIENCE))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.set_tcp_nodelay(true)?;
    socket.connect(&to.into())?;
    Ok(socket.into())
}

/// Whether the connection stays open, once the whole answer is there.
fn answered(bytes: &[u8]) -> Option<bool> {
    let text = str::from_utf8(bytes).ok()?;
    let (head, body) = text.split_once("\r\n\r\n")?;
    let field = |name: &str| {
        let mut lines = head.lines().filter_map(|line| line.split_once(": "));
        lines
            .find(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value)
    };
    let length: usize = field("content-length")?.parse().ok()?;
    (body.len() >= length).then(|| field("connection") != Some("close"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_whole_with_its_last_byte() {
        let answer = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: keep-alive\r\n\r\nhello";
        assert_eq!(answered(answer.as_bytes()), Some(true));
        assert_eq!(answered(&answer.as_bytes()[..answer.len() - 1]), None);
        let last = answer.replace("keep-alive", "close");
        assert_eq!(answered(last.as_bytes()), Some(false));
    }

    #[test]
    fn figures_are_those_of_the_time_and_of_the_ranks() {
        let at = |ms| Duration::from_millis(ms);
        let load = Load {
            answers: (0..100).map(|i| (at(i * 10), at(i))).rev().collect(),
            failures: 3,
        };
        let sample = load.sample(Duration::from_secs(1), 0.5);
        assert!((sample.value - 100.0).abs() < 1e-9);
        assert!((sample.cpu - 5.0).abs() < 1e-9);
        assert_eq!(sample.p50_us, Some(50_000.0));
        assert_eq!(sample.p99_us, Some(99_000.0));
        assert_eq!(sample.kept, Some(1.0));
        assert_eq!(sample.failures, 3);
    }
}
