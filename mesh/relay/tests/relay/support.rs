//! What the tests of the relay share: a relay on its own runtime, servers that are tasks, and waiting.

use std::{
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering},
    },
    time::{Duration, Instant},
};

use portolan_model::Protocol;
use portolan_plane::{DataPlane, Failure, FrontendSpec, FrontendStats, Op, Plan, contract};
use portolan_relay::{Relay, RelayConfig};
use tokio::runtime::Runtime;

/// A relay with the runtime that it runs on.
pub(crate) struct Rig {
    pub(crate) relay: Relay,
    _runtime: Runtime,
}

impl Rig {
    pub(crate) fn new() -> Self {
        Self::with(RelayConfig::default())
    }

    pub(crate) fn with(config: RelayConfig) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        Self {
            relay: Relay::new(config, runtime.handle().clone()),
            _runtime: runtime,
        }
    }

    /// Applies and expects success.
    pub(crate) fn serve(&mut self, spec: &FrontendSpec) {
        let failures = self.try_serve(spec);
        assert!(failures.is_empty(), "{failures:?}");
    }

    pub(crate) fn try_serve(&mut self, spec: &FrontendSpec) -> Vec<Failure> {
        self.relay.apply(&Plan {
            ops: vec![Op::Upsert(Arc::new(spec.clone()))],
        })
    }

    pub(crate) fn remove(&mut self, spec: &FrontendSpec) {
        let failures = self.relay.apply(&Plan {
            ops: vec![Op::Remove(spec.frontend.clone())],
        });
        assert!(failures.is_empty(), "{failures:?}");
    }

    /// The counters of the only frontend.
    pub(crate) fn stats(&self) -> FrontendStats {
        let mut stats = self.relay.stats();
        assert_eq!(stats.frontends.len(), 1);
        stats.frontends.remove(0)
    }

    pub(crate) fn refused(&self, reason: &str) -> u64 {
        let stats = self.stats();
        stats
            .refused
            .iter()
            .find(|(name, _)| *name == reason)
            .unwrap()
            .1
    }

    pub(crate) fn active(&self) -> u64 {
        self.stats().backends.iter().map(|(_, _, b)| b.active).sum()
    }
}

/// A port that no other test of this machine is given, below the kernel's ephemeral range.
pub(crate) fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    loop {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        // Test programs run side by side as processes of their own.
        let port = 10_000
            + ((std::process::id() as u16)
                .wrapping_mul(37)
                .wrapping_add(step))
                % 20_000;
        let any = |ip: IpAddr| {
            TcpListener::bind((ip, port)).is_ok() && std::net::UdpSocket::bind((ip, port)).is_ok()
        };
        if any(Ipv4Addr::UNSPECIFIED.into()) {
            return port;
        }
    }
}

/// A spec on a free port with these backends.
pub(crate) fn spec(protocol: Protocol, backends: &[SocketAddr]) -> FrontendSpec {
    let mut spec = contract::spec(free_port(), protocol, &[]);
    let like = contract::spec(1, protocol, &[Ipv4Addr::LOCALHOST])
        .backends
        .remove(0);
    for (at, address) in backends.iter().enumerate() {
        spec.backends.push(portolan_plane::Backend {
            task: format!("task-{at}").parse().unwrap(),
            name: format!("web.{at}"),
            ip: address.ip(),
            port: address.port(),
            ..like.clone()
        });
    }
    spec
}

/// Where a client on this machine finds it.
pub(crate) fn at(spec: &FrontendSpec) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, spec.frontend.port).into()
}

/// A server that runs `serve` for each connection on a thread of its own, until the test program ends.
pub(crate) fn server(serve: impl Fn(TcpStream) + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let serve = Arc::new(serve);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let serve = Arc::clone(&serve);
            std::thread::spawn(move || serve(stream));
        }
    });
    address
}

/// A server that says its name and closes.
pub(crate) fn named(name: &'static str) -> SocketAddr {
    server(move |mut stream| {
        let _ = stream.write_all(name.as_bytes());
    })
}

/// A server that sends back what it gets.
pub(crate) fn echo() -> SocketAddr {
    server(|mut stream| {
        let mut bytes = vec![0; 65536];
        while let Ok(count @ 1..) = stream.read(&mut bytes) {
            if stream.write_all(&bytes[..count]).is_err() {
                return;
            }
        }
    })
}

/// An address where nothing listens.
pub(crate) fn closed() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
}

/// A client that would rather fail than hang.
pub(crate) fn connect(to: SocketAddr) -> TcpStream {
    try_connect(to).unwrap()
}

fn try_connect(to: SocketAddr) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&to, Duration::from_secs(5))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.set_write_timeout(Some(Duration::from_secs(5)))?;
    Ok(stream)
}

/// Connects and reads until the end.
pub(crate) fn ask(to: SocketAddr) -> std::io::Result<String> {
    let mut answer = String::new();
    try_connect(to)?.read_to_string(&mut answer)?;
    Ok(answer)
}

/// Whether a connection, which may be a new one, is reset rather than closed in order or left to hang.
pub(crate) fn is_reset<T>(result: &std::io::Result<T>) -> bool {
    matches!(result, Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset)
}

/// Waits until the condition holds.
pub(crate) fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(5);
    while !condition() {
        assert!(Instant::now() < deadline, "not within 5 s: {what}");
        std::thread::park_timeout(Duration::from_millis(2));
    }
}
