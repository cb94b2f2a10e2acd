//! Answers that come line by line, and need not end.

use bytes::{Buf, Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::{Method, body::Incoming};
use serde::de::DeserializeOwned;

use super::{Client, ClientError, Connection};

/// The longest line that an agent writes.
const MAX_LINE: usize = 1 << 20;

/// The lines of an answer. Dropped, it tells the agent that nobody reads any more.
#[derive(Debug)]
pub struct Lines {
    client: Client,
    body: Incoming,
    connection: Option<Connection>,
    read: BytesMut,
}

impl Client {
    /// Asks for something that is answered by JSON, an object a line.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn lines(&self, path: &str) -> Result<Lines, ClientError> {
        let begun = tokio::time::timeout(self.timeout, self.begin(path));
        begun.await.map_err(|_| ClientError::Timeout {
            socket: self.socket.clone(),
            after: self.timeout,
        })?
    }

    async fn begin(&self, path: &str) -> Result<Lines, ClientError> {
        let (mut sender, mut connection) = self.connect().await?;
        let request = self.request_of(Method::GET, path, Bytes::new())?;
        let sent = sender.send_request(request);
        let response = alongside(&mut connection, sent)
            .await
            .map_err(|error| self.broken(error))?;
        let status = response.status();
        let body = response.into_body();
        if !status.is_success() {
            let body = alongside(&mut connection, body.collect()).await;
            let body = body.map_err(|error| self.broken(error))?.to_bytes();
            return Err(self.refused(path, status, &body));
        }
        Ok(Lines {
            client: self.clone(),
            body,
            connection: Some(connection),
            read: BytesMut::new(),
        })
    }
}

impl Lines {
    /// The next line; `None` is the end. Nothing is lost if the wait for it is given up.
    ///
    /// # Errors
    /// The connection broke, or a line was not understood.
    pub async fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, ClientError> {
        loop {
            while let Some(end) = self.read.iter().position(|byte| *byte == b'\n') {
                let line = self.read.split_to(end);
                self.read.advance(1);
                // An empty one says that the agent is there.
                if !line.is_empty() {
                    let line = serde_json::from_slice(&line);
                    return line.map(Some).map_err(|error| self.client.broken(error));
                }
            }
            if self.read.len() > MAX_LINE {
                return Err(self.client.broken("a line without an end"));
            }
            let frame = self.body.frame();
            let frame = match &mut self.connection {
                Some(connection) => tokio::select! {
                    biased;
                    frame = frame => frame,
                    _ = connection => {
                        self.connection = None;
                        continue;
                    }
                },
                None => frame.await,
            };
            let Some(frame) = frame else {
                return Ok(None);
            };
            let frame = frame.map_err(|error| self.client.broken(error))?;
            if let Ok(data) = frame.into_data() {
                self.read.extend_from_slice(&data);
            }
        }
    }
}

/// Waits for what a connection brings while it is driven.
async fn alongside<T>(
    connection: &mut Connection,
    awaited: impl Future<Output = hyper::Result<T>>,
) -> hyper::Result<T> {
    let mut awaited = std::pin::pin!(awaited);
    tokio::select! {
        biased;
        done = &mut awaited => return done,
        ended = connection => ended?,
    }
    awaited.await
}
