//! Streams of messages, each behind its length (RFC 7766).

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use portolan_model::NetworkName;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::timeout,
};

use super::DnsServer;
use crate::{answer::Action, message::Transport};

/// Connections at once on one address; more wait to be accepted.
const MAX_CONNECTIONS: usize = 256;
/// How long a client may take for the next query, and to take its reply.
const IDLE: Duration = Duration::from_secs(10);
/// The pause after a failed accept: without a free descriptor the next one fails at once too.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Answers connections.
pub(super) async fn serve(
    server: &Arc<DnsServer>,
    network: &NetworkName,
    listener: TcpListener,
) -> io::Result<()> {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if connections.len() < MAX_CONNECTIONS => match accepted {
                Ok((stream, client)) => {
                    let (server, network) = (Arc::clone(server), network.clone());
                    connections.spawn(async move {
                        if let Err(error) = converse(&server, &network, stream, client).await {
                            tracing::trace!(%client, %error, "a connection ended early");
                        }
                    });
                }
                Err(error) => {
                    tracing::debug!(%error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(ended) = connections.join_next() => ended.map_err(io::Error::other)?,
        }
    }
}

/// Answers one query after the other until the client closes, dawdles or sends what is no query.
async fn converse(
    server: &DnsServer,
    network: &NetworkName,
    mut stream: TcpStream,
    client: SocketAddr,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut query = Vec::new();
    loop {
        let length = timeout(IDLE, stream.read_u16()).await??;
        query.resize(usize::from(length), 0);
        timeout(IDLE, stream.read_exact(&mut query)).await??;
        let reply = match server.answer(network, client, Transport::Tcp, &query) {
            Action::Drop => return Ok(()),
            Action::Reply(reply) => Some(reply),
            Action::Forward(request) => server.forward(&request).await,
        };
        let Some(reply) = reply else { return Ok(()) };
        let length = u16::try_from(reply.bytes.len()).map_err(io::Error::other)?;
        let framed = [&length.to_be_bytes(), reply.bytes.as_slice()].concat();
        timeout(IDLE, stream.write_all(&framed)).await??;
    }
}
