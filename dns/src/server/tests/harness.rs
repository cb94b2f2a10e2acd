//! A running server, and how it is asked.

use std::{
    net::{Ipv4Addr, SocketAddr},
    os::fd::AsFd,
    sync::Arc,
    time::Duration,
};

use hickory_server::proto::{
    op::{Message, MessageType, OpCode, Query},
    rr::{Name, RecordType},
};
use portolan_model::Snapshot;
use tokio::{
    net::UdpSocket,
    process::Command,
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{DnsConfig, DnsError, DnsServer, Upstreams, testing::World};

/// How long anything may take.
const DEADLINE: Duration = Duration::from_secs(10);

/// Without upstreams, on a port of its own.
pub(super) fn config() -> DnsConfig {
    DnsConfig {
        port: 5377,
        upstreams: Upstreams::Explicit(Vec::new()),
        ..DnsConfig::default()
    }
}

/// Each test has a network of its own, as tests run side by side.
pub(super) fn subnet(test: u8) -> String {
    format!("127.77.{test}.0/24")
}

pub(super) struct Running {
    pub(super) server: Arc<DnsServer>,
    /// Where the network of the test is served.
    pub(super) address: SocketAddr,
    snapshots: Option<watch::Sender<Arc<Snapshot>>>,
    cancel: CancellationToken,
    task: JoinHandle<Result<(), DnsError>>,
}

impl Running {
    /// A server that is bound already.
    pub(super) async fn start(test: u8, config: DnsConfig, world: &World) -> Self {
        let running = Self::start_unbound(test, config, world);
        eventually("the server is bound", || {
            running.server.stats().listeners > 0
        })
        .await;
        running
    }

    #[expect(clippy::disallowed_methods, reason = "stop() awaits it")]
    pub(super) fn start_unbound(test: u8, config: DnsConfig, world: &World) -> Self {
        let address = Self::at(test, config.port);
        let server = Arc::new(DnsServer::new(config).unwrap());
        let (sender, receiver) = watch::channel(Arc::new(world.snapshot()));
        let cancel = CancellationToken::new();
        let task = tokio::spawn(Arc::clone(&server).run(receiver, cancel.clone()));
        Self {
            server,
            address,
            snapshots: Some(sender),
            cancel,
            task,
        }
    }

    pub(super) fn at(test: u8, port: u16) -> SocketAddr {
        (Ipv4Addr::new(127, 77, test, 1), port).into()
    }

    /// A task's address on the network of the test.
    pub(super) fn client(&self) -> SocketAddr {
        client_of(self.address)
    }

    pub(super) fn set(&self, world: &World) {
        let sender = self.snapshots.as_ref().unwrap();
        sender.send_replace(Arc::new(world.snapshot()));
    }

    pub(super) fn drop_sender(&mut self) {
        self.snapshots = None;
    }

    /// What dig prints, asking from a task's address.
    pub(super) async fn dig(&self, arguments: &str) -> String {
        dig(self.client(), self.address, arguments).await
    }

    pub(super) async fn dig_from(&self, client: &str, arguments: &str) -> String {
        let client = SocketAddr::new(client.parse().unwrap(), 0);
        dig(client, self.address, arguments).await
    }

    pub(super) async fn short(&self, arguments: &str) -> Vec<String> {
        short(self.address, arguments).await
    }

    /// Ends the server, which closes its sockets.
    pub(super) async fn stop(self) {
        self.cancel.cancel();
        let ended = timeout(DEADLINE, self.task).await;
        ended.expect("the server ends when told").unwrap().unwrap();
        assert_eq!(self.server.stats().listeners, 0);
    }
}

fn client_of(server: SocketAddr) -> SocketAddr {
    match server {
        SocketAddr::V4(v4) => {
            let [a, b, c, _] = v4.ip().octets();
            (Ipv4Addr::new(a, b, c, 9), 0).into()
        }
        SocketAddr::V6(_) => panic!("tests are over IPv4"),
    }
}

/// The records alone, asked from a task's address.
pub(super) async fn short(server: SocketAddr, arguments: &str) -> Vec<String> {
    let text = dig(client_of(server), server, &format!("+short {arguments}")).await;
    let records = text.lines().filter(|line| !line.starts_with(';'));
    records.map(str::to_owned).collect()
}

async fn dig(client: SocketAddr, server: SocketAddr, arguments: &str) -> String {
    let (client, port, server) = (client.ip(), server.port(), server.ip());
    let fixed = format!("@{server} -b {client} -p {port} -r +time=8 +tries=1");
    run("dig", &format!("{fixed} {arguments}")).await
}

/// What a program prints.
pub(super) async fn run(program: &str, arguments: &str) -> String {
    let output = Command::new(program)
        .args(arguments.split_whitespace())
        .output()
        .await
        .expect("dig, of the package bind9-dnsutils, and ip, of iproute2");
    String::from_utf8(output.stdout).unwrap()
}

/// Configures the network namespace of this thread.
pub(super) async fn ip(arguments: &str) {
    assert_eq!(run("ip", arguments).await, "", "ip {arguments}");
}

/// A network namespace, gone when dropped. It takes root.
pub(super) struct Namespace(String);

impl Namespace {
    pub(super) fn new(name: &str) -> Self {
        let name = format!("pt-dns-{name}-{}", std::process::id());
        let added = std::process::Command::new("ip")
            .args(["netns", "add", &name])
            .status();
        assert!(added.unwrap().success(), "ip netns add {name}");
        Self(name)
    }

    /// Runs a test on a thread that is in the namespace, as the programs are that it starts.
    pub(super) fn run(&self, test: impl AsyncFnOnce() + Send) {
        let file = std::fs::File::open(format!("/run/netns/{}", self.0)).unwrap();
        std::thread::scope(|scope| {
            let inside = scope.spawn(move || {
                let kind = Some(rustix::thread::LinkNameSpaceType::Network);
                rustix::thread::move_into_link_name_space(file.as_fd(), kind).unwrap();
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build();
                runtime.unwrap().block_on(test());
            });
            inside.join().unwrap();
        });
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let removed = std::process::Command::new("ip")
            .args(["netns", "del", &self.0])
            .status();
        drop(removed);
    }
}

/// A query with RD set.
pub(super) fn query(id: u16, name: &str, qtype: RecordType) -> Message {
    let mut query = Message::new(id, MessageType::Query, OpCode::Query);
    query.metadata.recursion_desired = true;
    query.add_query(Query::query(Name::from_ascii(name).unwrap(), qtype));
    query
}

/// The reply to a query over UDP, from a socket of its own.
pub(super) async fn ask(client: SocketAddr, server: SocketAddr, query: &Message) -> Message {
    let socket = UdpSocket::bind(client).await.unwrap();
    socket.connect(server).await.unwrap();
    socket.send(&query.to_vec().unwrap()).await.unwrap();
    let mut buffer = [0; 4096];
    let received = timeout(DEADLINE, socket.recv(&mut buffer)).await;
    let length = received.expect("a reply in time").unwrap();
    let reply = Message::from_vec(&buffer[..length]).unwrap();
    assert_eq!(reply.metadata.id, query.metadata.id);
    reply
}

/// Waits for a condition.
pub(super) async fn eventually(what: &str, condition: impl Fn() -> bool) {
    eventually_async(what, async || condition()).await;
}

/// Waits for a condition that has to be asked for.
pub(super) async fn eventually_async(what: &str, condition: impl AsyncFn() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !condition().await {
        assert!(Instant::now() < deadline, "in time: {what}");
        sleep(Duration::from_millis(5)).await;
    }
}
