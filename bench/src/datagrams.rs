//! Datagrams of 64 bytes: a sender as fast as it can be, and sinks that count.

use std::{
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;
use portolan_testbed::Namespace;
use socket2::SockRef;

use crate::results::Sample;

const PAYLOAD: [u8; 64] = [0x5a; 64];
/// As many flows, each from a port of its own.
const FLOWS: usize = 8;
/// How many datagrams go out between two looks at the clock.
const BURST: usize = 64;
const RECEIVE_BUFFER: usize = 4 << 20;

/// Counts what comes, on a thread of its own, until it is dropped.
#[derive(Debug, Default)]
pub(crate) struct Sink {
    received: AtomicU64,
}

impl Sink {
    /// Starts one inside a namespace. It ends when nobody else holds it.
    pub(crate) fn start(inside: &Namespace, port: u16) -> Result<Arc<Self>> {
        let socket = inside.enter(|| Ok(UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))?))?;
        // More than the kernel lets through is cut to what it does.
        SockRef::from(&socket).set_recv_buffer_size(RECEIVE_BUFFER)?;
        socket.set_read_timeout(Some(Duration::from_millis(100)))?;
        let sink = Arc::new(Self::default());
        let counted = Arc::downgrade(&sink);
        let count = move || {
            let mut buffer = [0; 2048];
            while let Some(sink) = counted.upgrade() {
                // Those of one burst are counted before the look whether anyone still asks.
                for _ in 0..BURST {
                    if socket.recv(&mut buffer).is_err() {
                        break;
                    }
                    sink.received.fetch_add(1, Ordering::Relaxed);
                }
            }
        };
        thread::Builder::new()
            .name("sink".to_owned())
            .spawn(count)?;
        Ok(sink)
    }

    fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }
}

/// What became of a flood.
#[derive(Debug)]
pub(crate) struct Flood {
    sent: u64,
    received: u64,
    failures: usize,
}

/// Sends for so long, and counts what came to the sink in that time.
pub(crate) fn flood(
    from: &Namespace,
    to: SocketAddr,
    sink: &Sink,
    time: Duration,
) -> Result<Flood> {
    let sockets = from.enter(|| {
        let socket = |_| {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
            socket.connect(to).map(|()| socket)
        };
        Ok((0..FLOWS).map(socket).collect::<Result<Vec<_>, _>>()?)
    })?;
    let (start, before) = (Instant::now(), sink.received());
    let (mut sent, mut failures) = (0, 0);
    while start.elapsed() < time {
        for socket in sockets.iter().cycle().take(BURST) {
            match socket.send(&PAYLOAD) {
                Ok(_) => sent += 1,
                Err(_) => failures += 1,
            }
        }
    }
    let received = sink.received() - before;
    Ok(Flood {
        sent,
        received,
        failures,
    })
}

impl Flood {
    /// Its figures; `cpu` in seconds.
    pub(crate) fn sample(&self, time: Duration, cpu: f64) -> Sample {
        let received = self.received as f64;
        Sample {
            value: received / time.as_secs_f64(),
            cpu: cpu / (received / 1000.0),
            kept: Some(received / (self.sent as f64).max(1.0)),
            failures: self.failures,
            ..Sample::default()
        }
    }
}
