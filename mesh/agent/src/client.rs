//! The admin API seen from the other side: HTTP over the agent's unix socket.

mod lines;

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Method, Request, StatusCode, client::conn::http1::SendRequest, header};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use tokio::net::UnixStream;

use crate::api::ErrorBody;
pub use lines::Lines;

type Sender = SendRequest<Full<Bytes>>;
type Connection = hyper::client::conn::http1::Connection<TokioIo<UnixStream>, Full<Bytes>>;

/// Speaks to the agent behind one socket. Each request has a connection of its own.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
    timeout: Duration,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The agent said no.
    #[error("{}", .0.errors.join("\n"))]
    Refused(ErrorBody),
    /// There is no agent at the socket, or it is not for this user. Nothing was asked.
    #[error("no agent at {}: {}", .socket.display(), unreachable_because(.source))]
    Unreachable {
        /// The socket.
        socket: PathBuf,
        /// What connecting to it said.
        source: io::Error,
    },
    /// The connection broke, or what came over it was not understood. The request may have been done.
    #[error("the agent at {} did not answer as an agent does", .socket.display())]
    Broken {
        /// The socket.
        socket: PathBuf,
        /// What was wrong.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// No answer in time. The request may still be done.
    #[error("the agent at {} did not answer within {} s", .socket.display(), .after.as_secs())]
    Timeout {
        /// The socket.
        socket: PathBuf,
        /// How long was waited.
        after: Duration,
    },
}

fn unreachable_because(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "the socket does not exist; start an agent with `portolan agent \
                                    --advertise IP --key-file FILE`, or name its socket with --socket"
            .to_owned(),
        io::ErrorKind::ConnectionRefused => "nothing listens on the socket; the agent has ended, start it \
                                             again with `portolan agent`"
            .to_owned(),
        io::ErrorKind::PermissionDenied => {
            "permission denied; use sudo, or the user that runs the agent".to_owned()
        }
        _ => error.to_string(),
    }
}

impl Client {
    /// A client for the agent at a socket. Nothing is connected yet.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self {
            socket: socket.into(),
            timeout: Duration::from_secs(30),
        }
    }

    /// The client with another limit to how long an answer may take.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// The socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Asks for something.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.request(Method::GET, path, Bytes::new()).await
    }

    /// Asks for something to be done.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, ClientError> {
        let body = serde_json::to_vec(body).map_err(|error| self.broken(error))?;
        self.request(Method::POST, path, body.into()).await
    }

    /// Asks for something to be removed.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn delete<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.request(Method::DELETE, path, Bytes::new()).await
    }

    async fn request<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<T, ClientError> {
        let answer = tokio::time::timeout(self.timeout, self.exchange(method, path, body));
        let (status, bytes) = answer.await.map_err(|_| ClientError::Timeout {
            socket: self.socket.clone(),
            after: self.timeout,
        })??;
        if status.is_success() {
            return serde_json::from_slice(&bytes).map_err(|error| self.broken(error));
        }
        Err(self.refused(path, status, &bytes))
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<(StatusCode, Bytes), ClientError> {
        let (mut sender, connection) = self.connect().await?;
        let request = self.request_of(method, path, body)?;
        let answer = async {
            let response = sender.send_request(request).await?;
            let status = response.status();
            let bytes = response.into_body().collect().await?.to_bytes();
            // Without its sender the connection ends, and with it the other half of the join.
            drop(sender);
            Ok::<_, hyper::Error>((status, bytes))
        };
        let (answer, _) = tokio::join!(answer, connection);
        answer.map_err(|error| self.broken(error))
    }

    async fn connect(&self) -> Result<(Sender, Connection), ClientError> {
        let stream =
            UnixStream::connect(&self.socket)
                .await
                .map_err(|source| ClientError::Unreachable {
                    socket: self.socket.clone(),
                    source,
                })?;
        hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| self.broken(error))
    }

    fn request_of(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<Request<Full<Bytes>>, ClientError> {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "portolan");
        if !body.is_empty() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        request
            .body(Full::new(body))
            .map_err(|error| self.broken(error))
    }

    /// What a status of 400 or above says.
    fn refused(&self, path: &str, status: StatusCode, body: &[u8]) -> ClientError {
        match serde_json::from_slice::<ErrorBody>(body) {
            Ok(body) if !body.errors.is_empty() => ClientError::Refused(body),
            // An agent of another version may not know the path, and has nothing to say about it.
            _ => self.broken(format!("status {status} to {path}")),
        }
    }

    fn broken(&self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> ClientError {
        ClientError::Broken {
            socket: self.socket.clone(),
            source: source.into(),
        }
    }
}
