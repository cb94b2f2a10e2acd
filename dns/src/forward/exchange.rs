//! One query to one upstream: over UDP, and over TCP if the answer is cut.

use std::{io, net::SocketAddr, time::Duration};

use hickory_proto::{
    ProtoError,
    op::{Message, MessageType, OpCode, ResponseCode},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
    time::{error::Elapsed, timeout},
};

use crate::message::{Request, opt};

/// Room for what upstreams send over UDP, those included that send more than they were told to.
const LONGEST_DATAGRAM: usize = 4096;

/// Why an upstream gave no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum ExchangeError {
    /// It could not be reached, or went away.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// It did not answer in time.
    #[error("no answer in time")]
    Silent(#[from] Elapsed),
    /// The query cannot be encoded.
    #[error(transparent)]
    Encode(#[from] ProtoError),
    /// What came over TCP is no answer to the query.
    #[error("not an answer to the query")]
    Wrong,
}

/// Asks an upstream what a client asked us, with `patience` for UDP and again for TCP. Returns its
/// answer and the answer's length.
///
/// Each query has a socket of its own, and so a port that others have to guess, as they have the id
/// (RFC 5452).
pub(super) async fn exchange(
    server: SocketAddr,
    request: &Request,
    patience: Duration,
) -> Result<(Message, usize), ExchangeError> {
    let query = upstream_query(request);
    let bytes = query.to_vec()?;
    let answer = timeout(patience, over_udp(server, &query, &bytes)).await??;
    if !answer.0.metadata.truncation {
        return Ok(answer);
    }
    // A client that cannot use TCP is better off with a part than with nothing.
    match timeout(patience, over_tcp(server, &query, &bytes)).await {
        Ok(Ok(whole)) => Ok(whole),
        Ok(Err(_)) | Err(_) => Ok(answer),
    }
}

fn upstream_query(request: &Request) -> Message {
    let mut query = Message::query();
    query.metadata.recursion_desired = request.metadata.recursion_desired;
    query.metadata.checking_disabled = request.metadata.checking_disabled;
    query.metadata.authentic_data = request.metadata.authentic_data;
    query.add_query(request.query.clone());
    query.edns = request.edns.map(|client| opt(client.dnssec_ok));
    query
}

async fn over_udp(
    server: SocketAddr,
    query: &Message,
    bytes: &[u8],
) -> Result<(Message, usize), ExchangeError> {
    let any: SocketAddr = if server.is_ipv4() {
        ([0; 4], 0).into()
    } else {
        ([0; 16], 0).into()
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(server).await?;
    socket.send(bytes).await?;
    let mut buffer = [0; LONGEST_DATAGRAM];
    loop {
        let length = socket.recv(&mut buffer).await?;
        // Anyone can send anything to the port: what does not fit is passed over, not believed.
        let received = buffer.get(..length).unwrap_or_default();
        if let Some(answer) = answer_to(query, received) {
            return Ok((answer, length));
        }
    }
}

async fn over_tcp(
    server: SocketAddr,
    query: &Message,
    bytes: &[u8],
) -> Result<(Message, usize), ExchangeError> {
    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(bytes.len()).map_err(|_| ExchangeError::Wrong)?;
    stream
        .write_all(&[&length.to_be_bytes(), bytes].concat())
        .await?;
    let length = usize::from(stream.read_u16().await?);
    let mut buffer = vec![0; length];
    stream.read_exact(&mut buffer).await?;
    let answer = answer_to(query, &buffer).ok_or(ExchangeError::Wrong)?;
    Ok((answer, length))
}

/// The message in these bytes, if it answers that query.
fn answer_to(query: &Message, bytes: &[u8]) -> Option<Message> {
    let answer = Message::from_vec(bytes).ok()?;
    // A server that refuses or does not understand may leave the question out.
    let unread = answer.queries.is_empty()
        && !matches!(
            answer.metadata.response_code,
            ResponseCode::NoError | ResponseCode::NXDomain
        );
    let fits = answer.metadata.id == query.metadata.id
        && answer.metadata.message_type == MessageType::Response
        && answer.metadata.op_code == OpCode::Query
        && (answer.queries == query.queries || unread);
    fits.then_some(answer)
}
