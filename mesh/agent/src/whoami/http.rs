//! The answers over HTTP.

use std::{
    convert::Infallible,
    net::SocketAddr,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use hyper::{
    Request, Response, StatusCode,
    body::{Body, Frame, Incoming, SizeHint},
    header::{ACCEPT, CONTENT_TYPE, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use super::Answer;

/// Accepts until it is told to stop; returns when the last connection has ended.
pub(crate) async fn serve(listener: TcpListener, name: Arc<str>, stop: CancellationToken) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, client)) => {
                    connections.spawn(connection(stream, client, name.clone(), stop.clone()));
                }
                // Out of descriptors, say: without a pause the loop would spin on the same error.
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            },
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

async fn connection(
    stream: TcpStream,
    client: SocketAddr,
    name: Arc<str>,
    stop: CancellationToken,
) {
    let Ok(address) = stream.local_addr() else {
        return;
    };
    // A delayed answer is a worse one, but still one.
    let _ = stream.set_nodelay(true);
    let service = service_fn(|request| answer(request, Answer::new(&name, address, client)));
    let mut connection = pin!(
        http1::Builder::new()
            .half_close(true)
            .serve_connection(TokioIo::new(stream), service)
    );
    tokio::select! {
        // That a client breaks off is its own business.
        _ = connection.as_mut() => return,
        () = stop.cancelled() => {}
    }
    connection.as_mut().graceful_shutdown();
    let _ = connection.await;
}

async fn answer(
    request: Request<Incoming>,
    answer: Answer<'_>,
) -> Result<Response<Payload>, Infallible> {
    let path = request.uri().path();
    let query = request.uri().query().unwrap_or_default();
    let mut response = if path == "/health" {
        Response::new(Payload::text("ok\n"))
    } else if let Some(count) = path.strip_prefix("/bytes/") {
        match count.parse() {
            Ok(count) => Response::new(Payload::zeros(count)),
            Err(_) => wrong("/bytes/N: N is a number of bytes\n"),
        }
    } else if path == "/wait" {
        match query.strip_prefix("ms=").map(str::parse) {
            Some(Ok(ms)) => {
                tokio::time::sleep(Duration::from_millis(ms)).await;
                who(&request, &answer)
            }
            _ => wrong("/wait?ms=N: N is a number of milliseconds\n"),
        }
    } else {
        who(&request, &answer)
    };
    response
        .headers_mut()
        .entry(CONTENT_TYPE)
        .or_insert(HeaderValue::from_static("text/plain; charset=utf-8"));
    Ok(response)
}

fn who(request: &Request<Incoming>, answer: &Answer<'_>) -> Response<Payload> {
    let accepts = request.headers().get(ACCEPT);
    let json = accepts.is_some_and(|types| {
        let types = types.to_str().unwrap_or_default();
        types.to_ascii_lowercase().contains("application/json")
    });
    match serde_json::to_string(answer) {
        Ok(text) if json => {
            let mut response = Response::new(Payload::text(text + "\n"));
            response
                .headers_mut()
                .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
            response
        }
        _ => Response::new(Payload::text(answer.text())),
    }
}

fn wrong(text: &'static str) -> Response<Payload> {
    let mut response = Response::new(Payload::text(text));
    *response.status_mut() = StatusCode::BAD_REQUEST;
    response
}

/// A text, or a number of zero bytes that are never all in memory.
struct Payload {
    text: Bytes,
    zeros: u64,
}

impl Payload {
    fn text(text: impl Into<Bytes>) -> Self {
        Self {
            text: text.into(),
            zeros: 0,
        }
    }

    const fn zeros(count: u64) -> Self {
        Self {
            text: Bytes::new(),
            zeros: count,
        }
    }
}

static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

impl Body for Payload {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if !self.text.is_empty() {
            return Poll::Ready(Some(Ok(Frame::data(std::mem::take(&mut self.text)))));
        }
        if self.zeros == 0 {
            return Poll::Ready(None);
        }
        let count = self.zeros.min(ZEROS.len() as u64);
        self.zeros -= count;
        let chunk = Bytes::from_static(&ZEROS).slice(..count as usize);
        Poll::Ready(Some(Ok(Frame::data(chunk))))
    }

    fn is_end_stream(&self) -> bool {
        self.text.is_empty() && self.zeros == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.text.len() as u64 + self.zeros)
    }
}
