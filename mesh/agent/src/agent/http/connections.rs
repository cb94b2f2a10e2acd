//! Serving HTTP/1 on a listener, with limits that a hostile client cannot pass.

use std::{pin::pin, sync::Arc, time::Duration};

use axum::{Router, serve::Listener};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::Semaphore,
    task::JoinSet,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

/// How long a client may take for a request's head, and stay silent between two requests.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Header lines of a request.
const MAX_HEADERS: usize = 64;
/// Bytes of a request's head.
const MAX_HEAD: usize = 16 * 1024;
/// How long requests under way have to end once the agent ends.
const GRACE: Duration = Duration::from_secs(2);

/// How much clients get.
#[derive(Debug, Clone, Copy)]
pub(in crate::agent) struct Limits {
    /// Connections at once; further ones wait to be accepted.
    pub connections: usize,
    /// How long one connection may last; `None` is as long as it likes.
    pub lifetime: Option<Duration>,
}

/// Serves until cancelled, and until the requests then under way are answered.
pub(in crate::agent) async fn serve<L: Listener>(
    mut listener: L,
    router: Router,
    limits: Limits,
    cancel: &CancellationToken,
) {
    let permits = Arc::new(Semaphore::new(limits.connections));
    let mut connections = JoinSet::new();
    loop {
        let accepted = async {
            let permit = Arc::clone(&permits).acquire_owned().await;
            (permit, listener.accept().await.0)
        };
        tokio::select! {
            () = cancel.cancelled() => break,
            Some(_) = connections.join_next() => {}
            (permit, io) = accepted => {
                let connection = connection(io, router.clone(), limits, cancel.clone());
                connections.spawn(async move {
                    connection.await;
                    drop(permit);
                });
            }
        }
    }
    while connections.join_next().await.is_some() {}
}

/// One connection. Its errors are the client's, who has them already.
async fn connection(
    io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    router: Router,
    limits: Limits,
    cancel: CancellationToken,
) {
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_headers(MAX_HEADERS)
        .max_buf_size(MAX_HEAD);
    let service = TowerToHyperService::new(router);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(io), service));
    let expired = async {
        match limits.lifetime {
            Some(lifetime) => tokio::time::sleep(lifetime).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        _ = connection.as_mut() => return,
        () = expired => {}
        () = cancel.cancelled() => {}
    }
    connection.as_mut().graceful_shutdown();
    drop(timeout(GRACE, connection).await);
}
