//! The agent of the node, as the plugin reaches it.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::{
    net::UnixStream,
    time::{Instant, sleep, timeout_at},
};

/// Where the plugin sees the node's `/run`: its errors speak of the node's paths.
const HOST: &str = "/host";
/// How soon an agent that is away is looked for again.
const AGAIN: Duration = Duration::from_millis(100);
/// How long an answer may take: the agent itself waits for at most 16 seconds.
const ANSWER: Duration = Duration::from_secs(25);
/// The longest answer.
const MAX_ANSWER: usize = 1 << 20;

/// The way to the agent. Nothing is kept open between two calls.
#[derive(Debug, Clone)]
pub struct Agent {
    socket: PathBuf,
}

/// Why a call has no answer.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// Nothing was done.
    #[error(
        "no Portolan agent answers at {} of this node ({source}); start it, and try again", on_the_node(.socket).display()
    )]
    Away {
        /// The socket.
        socket: PathBuf,
        /// What connecting to it said.
        source: io::Error,
    },
    /// The call may have been carried out; it can be repeated.
    #[error("the Portolan agent of this node did not answer: {0}; see its log, and try again")]
    Broken(String),
    /// The agent said no.
    #[error("{0}")]
    Refused(String),
}

fn on_the_node(socket: &Path) -> PathBuf {
    socket
        .strip_prefix(HOST)
        .map_or_else(|_| socket.to_owned(), |path| Path::new("/").join(path))
}

impl Agent {
    /// The agent behind a socket.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self {
            socket: socket.into(),
        }
    }

    /// Passes on a call, and gives the answer. While there is no agent, or one that ends before it has answered,
    /// it is tried again, which every call bears.
    ///
    /// # Errors
    /// There was none for so long, or it refuses.
    pub async fn ask(
        &self,
        call: &str,
        body: Bytes,
        patience: Duration,
    ) -> Result<Bytes, AgentError> {
        let start = Instant::now();
        loop {
            let asked = self.ask_once(call, body.clone());
            let error = match timeout_at(start + ANSWER, asked).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(error @ AgentError::Refused(_))) => return Err(error),
                Ok(Err(error)) => error,
                Err(_) => return Err(AgentError::Broken(format!("not in {} s", ANSWER.as_secs()))),
            };
            if start.elapsed() >= patience {
                return Err(error);
            }
            sleep(AGAIN).await;
        }
    }

    async fn ask_once(&self, call: &str, body: Bytes) -> Result<Bytes, AgentError> {
        let stream = UnixStream::connect(&self.socket).await;
        let stream = stream.map_err(|source| AgentError::Away {
            socket: self.socket.clone(),
            source,
        })?;
        let broken = |error: hyper::Error| AgentError::Broken(error.to_string());
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(broken)?;
        let request = Request::post(format!("/v1/driver/{call}"))
            .header(header::HOST, "portolan")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|error| AgentError::Broken(error.to_string()))?;
        let answer = async move {
            let answer = sender.send_request(request).await.map_err(broken)?;
            let status = answer.status();
            let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await;
            let body = body.map_err(|error| AgentError::Broken(error.to_string()))?;
            Ok((status, body.to_bytes()))
        };
        // The connection ends with its sender.
        let (answer, _) = tokio::join!(answer, connection);
        let (status, body) = answer?;
        if status.is_success() {
            return Ok(body);
        }
        let refused = AgentError::Refused(refusal(status, &body));
        // An agent that is about to end says so; the next one will answer.
        if status == StatusCode::SERVICE_UNAVAILABLE {
            return Err(AgentError::Broken(refused.to_string()));
        }
        Err(refused)
    }
}

/// What the agent says with an error: lines, or something else if it is not the agent.
fn refusal(status: StatusCode, body: &[u8]) -> String {
    let body: Option<Value> = serde_json::from_slice(body).ok();
    let errors = body
        .as_ref()
        .and_then(|body| body.get("errors")?.as_array());
    let lines: Vec<&str> = errors
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    if lines.is_empty() {
        format!("the Portolan agent of this node answered with status {status}")
    } else {
        lines.join("; ")
    }
}
