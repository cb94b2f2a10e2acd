//! One question and its answer.

use std::{error::Error, future::Future, path::Path, pin::Pin};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::{Request, Response, body::Incoming, header};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixStream;

use super::EngineError;

/// The longest answer: thousands of services take some ten MiB.
const MAX_BODY: usize = 256 << 20;

/// What moves the bytes of a connection; it has to be polled beside what waits for them.
pub(super) type Connection = Pin<Box<dyn Future<Output = Result<(), hyper::Error>> + Send>>;

/// Asks for a path, and gives the start of the answer.
pub(super) async fn open(
    socket: &Path,
    path: &str,
) -> Result<(Response<Incoming>, Connection), EngineError> {
    let broken = |error: Box<dyn Error + Send + Sync>| EngineError::Broken {
        path: path.to_owned(),
        source: error,
    };
    let stream = UnixStream::connect(socket)
        .await
        .map_err(|source| EngineError::Unreachable {
            socket: socket.to_owned(),
            source,
        })?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| broken(error.into()))?;
    let mut connection: Connection = Box::pin(connection);
    let request = Request::get(path)
        .header(header::HOST, "docker")
        .body(Empty::<Bytes>::new())
        .map_err(|error| broken(error.into()))?;
    let mut answer = std::pin::pin!(sender.send_request(request));
    let answer = tokio::select! {
        biased;
        answer = &mut answer => answer,
        ended = &mut connection => {
            // The end of the connection may come with the answer's last bytes.
            connection = Box::pin(std::future::ready(ended));
            answer.await
        }
    };
    let answer = answer.map_err(|error| broken(error.into()))?;
    if answer.status().is_success() {
        return Ok((answer, connection));
    }
    let status = answer.status().as_u16();
    let text = body(answer, &mut connection).await.map_err(broken)?;
    let message = match serde_json::from_slice::<Value>(&text) {
        Ok(json) => json
            .get("message")
            .and_then(Value::as_str)
            .map(str::to_owned),
        Err(_) => None,
    };
    let text = || String::from_utf8_lossy(&text).chars().take(200).collect();
    Err(EngineError::Refused {
        path: path.to_owned(),
        status,
        message: message.unwrap_or_else(text),
    })
}

/// Asks for a path, and gives the whole answer.
pub(super) async fn get(socket: &Path, path: &str) -> Result<Value, EngineError> {
    let (answer, mut connection) = open(socket, path).await?;
    let broken = |source| EngineError::Broken {
        path: path.to_owned(),
        source,
    };
    let body = body(answer, &mut connection).await.map_err(broken)?;
    serde_json::from_slice(&body).map_err(|error| broken(error.into()))
}

async fn body(
    answer: Response<Incoming>,
    connection: &mut Connection,
) -> Result<Bytes, Box<dyn Error + Send + Sync>> {
    let mut body = std::pin::pin!(Limited::new(answer.into_body(), MAX_BODY).collect());
    let body = tokio::select! {
        biased;
        body = &mut body => body,
        ended = connection => {
            ended?;
            body.await
        }
    };
    Ok(body?.to_bytes())
}

/// A text as a value in a query (RFC 3986, section 2.1).
pub(super) fn escape(text: &str) -> String {
    use std::fmt::Write;
    text.bytes().fold(String::new(), |mut escaped, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            escaped.push(char::from(byte));
        } else {
            // Writing to a string does not fail.
            let _ = write!(escaped, "%{byte:02X}");
        }
        escaped
    })
}

#[cfg(test)]
mod tests {
    use super::escape;

    #[test]
    fn what_has_a_meaning_in_an_address_is_escaped() {
        assert_eq!(
            escape(r#"{"a":["b c"]}"#),
            "%7B%22a%22%3A%5B%22b%20c%22%5D%7D"
        );
    }
}
