//! Datagrams.

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
};

use portolan_model::NetworkName;
use tokio::{net::UdpSocket, task::JoinSet};

use super::DnsServer;
use crate::{
    answer::{Action, Reply},
    message::Transport,
    stats::count,
};

/// Longer than any query: one with a name and options of full length.
const LONGEST_QUERY: usize = 4096;
/// Datagrams answered in a row before other work of the thread gets its turn.
const BATCH: usize = 64;

/// Answers datagrams. What the zone answers is sent from here; what has to wait for an upstream waits
/// in a task of its own.
pub(super) async fn serve(
    server: &Arc<DnsServer>,
    network: &NetworkName,
    socket: UdpSocket,
) -> io::Result<()> {
    let socket = Arc::new(socket);
    let mut forwards = JoinSet::new();
    let mut buffer = [0; LONGEST_QUERY];
    loop {
        tokio::select! {
            ready = socket.readable() => ready?,
            Some(ended) = forwards.join_next() => {
                ended.map_err(io::Error::other)?;
                continue;
            }
        }
        for _ in 0..BATCH {
            let (length, client) = match socket.try_recv_from(&mut buffer) {
                Ok(received) => received,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            };
            let query = buffer.get(..length).unwrap_or_default();
            match server.answer(network, client, Transport::Udp, query) {
                Action::Drop => {}
                Action::Reply(reply) => send(server, &socket, client, &reply).await,
                Action::Forward(request) => {
                    let (server, socket) = (Arc::clone(server), Arc::clone(&socket));
                    forwards.spawn(async move {
                        if let Some(reply) = server.forward(&request).await {
                            send(&server, &socket, client, &reply).await;
                        }
                    });
                }
            }
        }
        tokio::task::consume_budget().await;
    }
}

/// A reply that cannot be sent is lost, as any datagram may be: its client asks again.
async fn send(server: &DnsServer, socket: &UdpSocket, client: SocketAddr, reply: &Reply) {
    if let Err(error) = socket.send_to(&reply.bytes, client).await {
        count(&server.counters.send_failures);
        let total = server.counters.send_failures.load(Ordering::Relaxed);
        tracing::debug!(%client, %error, total, "a reply could not be sent");
    }
}
