//! What the relay holds under load. These are measurements, for an optimised build:
//! `cargo nextest run --release -p portolan-relay --run-ignored only --no-capture`.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use portolan_model::Protocol;
use portolan_plane::Sources;
use portolan_testbed::Namespace;
use socket2::{Domain, Socket, Type};

use crate::support::{Rig, at, spec, until};

/// Resident memory of this process in bytes.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .unwrap();
    let kib: usize = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kib * 1024
}

#[test]
#[ignore = "a measurement"]
fn ten_thousand_idle_connections_take_less_than_100_mib() {
    // Both ends of both sides are descriptors of this process, which few systems give 40,000 of.
    const COUNT: usize = 4_500;
    portolan_relay::raise_open_files().unwrap();
    let backend = TcpListener::bind("127.0.0.1:0").unwrap();
    let spec = spec(Protocol::Tcp, &[backend.local_addr().unwrap()]);
    let holder = std::thread::spawn(move || -> Vec<TcpStream> {
        let streams = backend.incoming().flatten().take(COUNT);
        streams
            .map(|mut stream| {
                // Bytes have moved on each, so that what a flow keeps afterwards is counted.
                stream.write_all(b"hello").unwrap();
                stream
            })
            .collect()
    });
    let mut rig = Rig::new();
    rig.serve(&spec);
    let before = resident();
    let clients: Vec<TcpStream> = (0..COUNT)
        .map(|_| {
            let mut stream = TcpStream::connect(at(&spec)).unwrap();
            stream.read_exact(&mut [0; 5]).unwrap();
            stream
        })
        .collect();
    until("all are open", || rig.active() == COUNT as u64);
    let after = resident();
    let each = (after - before) / COUNT;
    let ten_thousand = (before + each * 10_000) as f64 / f64::from(1 << 20);
    println!("an idle connection: {each} bytes; 10,000 of them: {ten_thousand:.1} MiB resident");
    assert!(ten_thousand < 100.0, "clients and backend included");
    drop(clients);
    drop(holder.join().unwrap());
    until("all are closed", || rig.active() == 0);
}

#[test]
#[ignore = "a measurement"]
fn a_hundred_thousand_connections_to_one_backend_do_not_stall() {
    const COUNT: u32 = 100_000;
    const THREADS: u32 = 8;
    let node = Namespace::create("pt-rl-load-n").unwrap();
    let task = Namespace::create("pt-rl-load-t").unwrap();
    let run = |namespace: &Namespace, words: &str| {
        namespace.run(words.split_whitespace()).unwrap();
    };
    run(
        &node,
        &format!(
            "ip link add v0 type veth peer name eth0 netns {}",
            task.name()
        ),
    );
    run(&node, "ip addr add 10.208.1.1/12 dev v0");
    run(&node, "ip link set v0 up");
    run(&task, "ip addr add 10.208.2.2/12 dev eth0");
    run(&task, "ip link set eth0 up");
    let addresses: Vec<Ipv4Addr> = (239..255).map(|last| [10, 208, 1, last].into()).collect();
    for address in &addresses {
        run(&node, &format!("ip addr add {address}/32 dev v0"));
    }
    let listen = || Ok(TcpListener::bind("10.208.2.2:80")?);
    let listener = task.enter(listen).unwrap();
    let _server = server_of(listener);
    let measure = || {
        let mut spec = spec(Protocol::Tcp, &["10.208.2.2:80".parse().unwrap()]);
        spec.sources = Some(Sources {
            within: "10.208.0.0/12".parse().unwrap(),
            addresses,
        });
        let mut rig = Rig::new();
        rig.serve(&spec);
        let (next, begun) = (AtomicU32::new(0), Instant::now());
        let slowest = std::thread::scope(|scope| {
            let work = || {
                let mut slowest = Duration::ZERO;
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= COUNT {
                        return slowest;
                    }
                    let begun = Instant::now();
                    // Clients have many addresses, and so do not run out of ports themselves.
                    let [_, _, high, low] = (number % 1000).to_be_bytes();
                    one([127, 1, high, low].into(), at(&spec));
                    slowest = slowest.max(begun.elapsed());
                }
            };
            let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(work)).collect();
            threads
                .into_iter()
                .map(|t| t.join().unwrap())
                .max()
                .unwrap()
        });
        let took = begun.elapsed();
        println!(
            "{COUNT} connections to one backend: {took:.1?}, {:.0}/s, slowest {slowest:.1?}",
            f64::from(COUNT) / took.as_secs_f64()
        );
        let stats = rig.stats();
        assert_eq!(stats.backends[0].2.flows, u64::from(COUNT));
        assert_eq!(stats.backends[0].2.connect_failures, 0);
        assert!(took < Duration::from_mins(1));
        assert!(slowest < Duration::from_secs(1));
        Ok(())
    };
    node.enter(measure).unwrap();
}

/// A client that closes first, so that it is the relay that keeps the port to the backend for a while.
fn one(from: Ipv4Addr, to: SocketAddr) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((from, 0)).into()).unwrap();
    socket.connect(&to.into()).unwrap();
    let mut stream = TcpStream::from(socket);
    stream
        .set_read_timeout(Some(Duration::from_secs(5)))
        .unwrap();
    stream.write_all(b"x").unwrap();
    stream.read_exact(&mut [0]).unwrap();
}

/// A backend that answers each byte with a byte, on a runtime of its own.
fn server_of(listener: TcpListener) -> tokio::runtime::Runtime {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    listener.set_nonblocking(true).unwrap();
    let accept = async move {
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        let mut tasks = tokio::task::JoinSet::new();
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tasks.spawn(async move {
                let mut byte = [0];
                while let Ok(1) = stream.read(&mut byte).await {
                    if stream.write_all(&byte).await.is_err() {
                        return;
                    }
                }
            });
            while tasks.try_join_next().is_some() {}
        }
    };
    runtime.handle().spawn(accept);
    runtime
}
