//! Sockets where this node has a gateway, and at its own address: one server of hickory's for each.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use hickory_server::{Server, net::NetError};
use socket2::{Domain, Socket, Type};
use tokio::{
    net::{TcpListener, UdpSocket},
    task::{JoinError, JoinSet},
};
use tokio_util::sync::CancellationToken;

use super::{DnsServer, handler::Handler};
use crate::{DnsError, zone::Door};

/// UDP sockets for each address: hickory reads a socket in one task, so one alone would be the bound.
const UDP_SOCKETS: usize = 2;
/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;
/// How long a connection may be idle.
const IDLE: Duration = Duration::from_secs(10);
/// Replies that wait for a slow reader of a connection.
const RESPONSES: usize = 32;

/// What is served, and the address where.
type Key = (Door, SocketAddr);

/// A server that ended, and whether it had been told to.
pub(super) struct Ended {
    key: Key,
    token: CancellationToken,
    result: Result<(), NetError>,
}

/// A socket that could not be had.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}/{protocol}: {source}")]
struct BindError {
    address: SocketAddr,
    protocol: &'static str,
    source: io::Error,
}

/// The servers that run.
#[derive(Default)]
pub(super) struct Listeners {
    bound: BTreeMap<Key, CancellationToken>,
    failing: BTreeSet<Key>,
    running: JoinSet<Ended>,
}

impl Listeners {
    /// The addresses that are bound.
    pub(super) fn addresses(&self) -> BTreeSet<SocketAddr> {
        self.bound.keys().map(|key| key.1).collect()
    }

    /// Binds what is wanted and not there, closes what is there and not wanted.
    pub(super) fn reconcile(&mut self, server: &Arc<DnsServer>) {
        let at = |ip: Ipv4Addr| SocketAddr::from((ip, server.config.port));
        let zones = server.zones.load();
        let networks = zones
            .served()
            .map(|(network, gateway)| (Door::Network(network.clone()), at(gateway)));
        let node = server.config.node_address.map(|ip| (Door::Node, at(ip)));
        let wanted: BTreeSet<Key> = networks.chain(node).collect();
        self.bound.retain(|key, running| {
            let keep = wanted.contains(key);
            if !keep {
                running.cancel();
            }
            keep
        });
        for gone in self.failing.difference(&wanted) {
            server.problems.clear(&object(gone));
        }
        self.failing.clear();
        for key in wanted {
            if self.bound.contains_key(&key) {
                continue;
            }
            match bind(server, &key) {
                Ok(serving) => {
                    tracing::info!("serving {}", object(&key));
                    server.problems.clear(&object(&key));
                    self.start(key, serving);
                }
                Err(error) => {
                    server.problems.set(&object(&key), error.to_string());
                    self.failing.insert(key);
                }
            }
        }
        let bound = self.bound.len() as u64;
        server.counters.listeners.store(bound, Ordering::Relaxed);
    }

    fn start(&mut self, key: Key, mut serving: Server<Handler>) {
        let token = serving.shutdown_token().clone();
        self.bound.insert(key.clone(), token.clone());
        self.running.spawn(async move {
            let result = serving.block_until_done().await;
            Ended { key, token, result }
        });
    }

    /// The next server that ends.
    pub(super) async fn ended(&mut self) -> Option<Result<Ended, JoinError>> {
        self.running.join_next().await
    }

    /// Notes the end of a server, and returns whether it was not by our will.
    pub(super) fn has_failed(
        &mut self,
        server: &DnsServer,
        ended: Result<Ended, JoinError>,
    ) -> Result<bool, DnsError> {
        let ended = ended.map_err(|e| DnsError::Task(e.into()))?;
        match ended.result {
            Err(error) if !ended.token.is_cancelled() => {
                server.problems.set(&object(&ended.key), error.to_string());
                self.bound.remove(&ended.key);
                self.failing.insert(ended.key);
                Ok(true)
            }
            Ok(()) | Err(_) => Ok(false),
        }
    }

    /// Closes everything.
    pub(super) async fn close(mut self) {
        self.bound.values().for_each(CancellationToken::cancel);
        while self.running.join_next().await.is_some() {}
    }
}

fn object(key: &Key) -> String {
    match &key.0 {
        Door::Network(network) => format!("DNS of network {network} on {}", key.1),
        Door::Node => format!("DNS of this node on {}", key.1),
    }
}

/// A server on all sockets of an address, or none: what is bound already is closed on an error.
///
/// TCP goes first. UDP sockets that share their port would also share it with those of another agent,
/// each with a part of the queries; its TCP listener keeps us from that.
fn bind(server: &Arc<DnsServer>, (door, address): &Key) -> Result<Server<Handler>, BindError> {
    let failed = |protocol| {
        move |source| BindError {
            address: *address,
            protocol,
            source,
        }
    };
    let tcp = tcp_listener(*address).map_err(failed("tcp"))?;
    let udp: Vec<UdpSocket> = (0..UDP_SOCKETS)
        .map(|_| udp_socket(*address))
        .collect::<io::Result<_>>()
        .map_err(failed("udp"))?;
    let mut serving = Server::new(Handler {
        server: Arc::clone(server),
        door: door.clone(),
    });
    serving.register_listener(tcp, IDLE, RESPONSES);
    for socket in udp {
        serving.register_socket(socket);
    }
    Ok(serving)
}

fn tcp_listener(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = socket(address, Type::STREAM)?;
    // A restarted agent can bind beside connections in TIME_WAIT.
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

fn udp_socket(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = socket(address, Type::DGRAM)?;
    socket.set_reuse_port(true)?;
    socket.bind(&address.into())?;
    UdpSocket::from_std(socket.into())
}

fn socket(address: SocketAddr, kind: Type) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), kind, None)?;
    // The overlay may configure the address a moment after the snapshot names it.
    socket.set_freebind_v4(true)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}
