//! Answering Docker.

use std::convert::Infallible;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    Request, Response, StatusCode,
    body::Incoming,
    header::{ACCEPT, CONTENT_TYPE},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::{net::UnixListener, task::JoinSet};

use crate::{Agent, Call, Scope, call::MEDIA_TYPE};

/// The longest call.
const MAX_CALL: usize = 1 << 20;

/// What the plugin is made of.
#[derive(Debug, Clone)]
pub struct Plugin {
    /// The agent of the node.
    pub agent: Agent,
    /// Whose networks are.
    pub scope: Scope,
}

/// Answers whoever connects, without end. Dropped, it ends at once: a call that was under way Docker sees
/// broken off.
pub async fn serve(listener: UnixListener, plugin: Plugin) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => {
                // One that is gone before it was accepted asked for nothing.
                let Ok((stream, _)) = accepted else { continue };
                let plugin = plugin.clone();
                connections.spawn(async move {
                    let service = service_fn(|request| plugin.answer(request));
                    let io = TokioIo::new(stream);
                    // Its errors are Docker's, who has them already.
                    let _ended = http1::Builder::new().serve_connection(io, service).await;
                });
            }
        }
    }
}

impl Plugin {
    async fn answer(
        &self,
        request: Request<Incoming>,
    ) -> Result<Response<Full<Bytes>>, Infallible> {
        let accepts = request
            .headers()
            .get(ACCEPT)
            .and_then(|kind| kind.to_str().ok());
        let call = Call::of(request.uri().path(), accepts, self.scope);
        let (status, body) = match call {
            Call::Answer(answer) => (StatusCode::OK, answer.to_string().into()),
            Call::Agent { name, patience } => {
                match Limited::new(request.into_body(), MAX_CALL).collect().await {
                    Ok(body) => match self.agent.ask(name, body.to_bytes(), patience).await {
                        Ok(answer) => (StatusCode::OK, answer),
                        Err(error) => {
                            failure(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string())
                        }
                    },
                    Err(error) => failure(StatusCode::BAD_REQUEST, &error.to_string()),
                }
            }
            Call::Unknown(what) => failure(
                StatusCode::NOT_FOUND,
                &format!(
                    "the plugin portolan {} does not know {what}; it needs an engine of version 20.10 or later, \
                     and a newer engine may need a newer plugin",
                    env!("CARGO_PKG_VERSION")
                ),
            ),
        };
        let mut response = Response::new(Full::new(body));
        *response.status_mut() = status;
        let kind = hyper::header::HeaderValue::from_static(MEDIA_TYPE);
        response.headers_mut().insert(CONTENT_TYPE, kind);
        Ok(response)
    }
}

/// An error as Docker shows it to whoever typed the command.
fn failure(status: StatusCode, error: &str) -> (StatusCode, Bytes) {
    (status, json!({ "Err": error }).to_string().into())
}
