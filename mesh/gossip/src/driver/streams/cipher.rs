//! A TCP stream under keys that both sides' fresh nonces go into, so that nothing on it can be
//! replayed.
//!
//! The opening side sends `version 1 | key id 4 | nonce 16`, the other `status 1 | nonce 16`. Then
//! both send frames: `length 4 | ciphertext | tag 16`. The first byte of each plaintext says whether
//! the message ends with it.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use chacha20poly1305::{
    ChaCha20Poly1305, KeyInit,
    aead::{Aead, Payload},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::StreamError;
use crate::{
    codec::stream::MAX_MESSAGE,
    keyring::KeyId,
    seal::{Secrets, VERSION, derive, nonce},
};

const NONCE: usize = 16;
const TAG: usize = 16;
/// Plaintext of a frame at most: what a stranger can make us buffer.
const FRAME: usize = 32 << 10;

const OK: u8 = 0;
const UNKNOWN_KEY: u8 = 1;
const OTHER_VERSION: u8 = 2;

struct Direction {
    cipher: ChaCha20Poly1305,
    count: u64,
    bytes: u64,
}

impl Direction {
    fn new(key: [u8; 32]) -> Self {
        Self {
            cipher: ChaCha20Poly1305::new(&key.into()),
            count: 0,
            bytes: 0,
        }
    }
}

/// A stream after the handshake.
pub(super) struct Sealed {
    socket: TcpStream,
    receiving: Direction,
    sending: Direction,
    /// What was received and is not a whole frame yet; here, so that a read may be cancelled.
    buffer: BytesMut,
    message: BytesMut,
}

impl Sealed {
    pub(super) async fn connect(
        mut socket: TcpStream,
        secrets: &Secrets,
    ) -> Result<Self, StreamError> {
        socket.set_nodelay(true)?;
        let (id, key) = secrets.primary();
        let ours = fresh_nonce()?;
        let mut hello = Vec::with_capacity(1 + 4 + NONCE);
        hello.put_u8(VERSION);
        hello.put_slice(id.as_bytes());
        hello.put_slice(&ours);
        socket.write_all(&hello).await?;
        let mut answer = [0; 1 + NONCE];
        read_exact(&mut socket, &mut answer).await?;
        let [status, theirs @ ..] = answer;
        match status {
            OK => {}
            UNKNOWN_KEY => return Err(StreamError::OurKey(id)),
            other => return Err(StreamError::Version(other)),
        }
        let (up, down) = keys(&key, secrets, &ours, &theirs);
        Ok(Self::new(socket, down, up))
    }

    pub(super) async fn accept(
        mut socket: TcpStream,
        secrets: &Secrets,
    ) -> Result<Self, StreamError> {
        socket.set_nodelay(true)?;
        let mut hello = [0; 1 + 4 + NONCE];
        read_exact(&mut socket, &mut hello).await?;
        let [version, a, b, c, d, theirs @ ..] = hello;
        let id = KeyId::from_bytes([a, b, c, d]);
        let ours = fresh_nonce()?;
        let key = secrets.get(id);
        let status = match key {
            _ if version != VERSION => OTHER_VERSION,
            None => UNKNOWN_KEY,
            Some(_) => OK,
        };
        let mut answer = vec![status];
        answer.put_slice(&ours);
        socket.write_all(&answer).await?;
        if version != VERSION {
            return Err(StreamError::Version(version));
        }
        let key = key.ok_or(StreamError::UnknownKey(id))?;
        let (up, down) = keys(&key, secrets, &theirs, &ours);
        Ok(Self::new(socket, up, down))
    }

    fn new(socket: TcpStream, receiving: [u8; 32], sending: [u8; 32]) -> Self {
        Self {
            socket,
            receiving: Direction::new(receiving),
            sending: Direction::new(sending),
            buffer: BytesMut::new(),
            message: BytesMut::new(),
        }
    }

    /// Bytes received and sent.
    pub(super) fn moved(&self) -> (u64, u64) {
        (self.receiving.bytes, self.sending.bytes)
    }

    pub(super) async fn write(&mut self, message: &[u8]) -> Result<(), StreamError> {
        let mut chunks = message.chunks(FRAME - 1).peekable();
        while let Some(chunk) = chunks.next() {
            let last = u8::from(chunks.peek().is_none());
            let mut plain = Vec::with_capacity(1 + chunk.len());
            plain.put_u8(last);
            plain.put_slice(chunk);
            let len = (plain.len() + TAG) as u32;
            self.sending.count += 1;
            let payload = Payload {
                msg: &plain,
                aad: &len.to_be_bytes(),
            };
            let sealed = self
                .sending
                .cipher
                .encrypt(&nonce(self.sending.count), payload)
                .map_err(|_| StreamError::TooLong)?;
            let mut frame = Vec::with_capacity(4 + sealed.len());
            frame.put_u32(len);
            frame.put_slice(&sealed);
            self.socket.write_all(&frame).await?;
            self.sending.bytes += frame.len() as u64;
        }
        Ok(())
    }

    /// The next message. Safe to drop and call again.
    pub(super) async fn read(&mut self) -> Result<Bytes, StreamError> {
        loop {
            while let Some(frame) = self.take_frame()? {
                let Some((last, chunk)) = frame.split_first() else {
                    return Err(StreamError::Decrypt);
                };
                if self.message.len() + chunk.len() > MAX_MESSAGE {
                    return Err(StreamError::TooLong);
                }
                self.message.extend_from_slice(chunk);
                if *last == 1 {
                    return Ok(self.message.split().freeze());
                }
            }
            let read = self.socket.read_buf(&mut self.buffer).await?;
            if read == 0 {
                return Err(StreamError::Closed);
            }
            self.receiving.bytes += read as u64;
        }
    }

    fn take_frame(&mut self) -> Result<Option<Vec<u8>>, StreamError> {
        let Some(head) = self.buffer.first_chunk::<4>().copied() else {
            return Ok(None);
        };
        let len = u32::from_be_bytes(head) as usize;
        if len > FRAME + TAG {
            return Err(StreamError::TooLong);
        }
        if self.buffer.len() < 4 + len {
            return Ok(None);
        }
        self.buffer.advance(4);
        let sealed = self.buffer.split_to(len);
        self.receiving.count += 1;
        let payload = Payload {
            msg: &sealed,
            aad: &head,
        };
        let plain = self
            .receiving
            .cipher
            .decrypt(&nonce(self.receiving.count), payload)
            .map_err(|_| StreamError::Decrypt)?;
        Ok(Some(plain))
    }

    /// Lets the other side read all before the stream ends.
    pub(super) async fn finish(&mut self) -> Result<(), StreamError> {
        // A side that has closed already has all that it wanted.
        let _ = self.socket.shutdown().await;
        Ok(())
    }
}

async fn read_exact(socket: &mut TcpStream, buffer: &mut [u8]) -> Result<(), StreamError> {
    match socket.read_exact(buffer).await {
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Err(StreamError::Closed),
        Err(error) => Err(error.into()),
        Ok(_) => Ok(()),
    }
}

fn fresh_nonce() -> Result<[u8; NONCE], StreamError> {
    let mut nonce = [0; NONCE];
    getrandom::fill(&mut nonce).map_err(std::io::Error::from)?;
    Ok(nonce)
}

/// The keys of the way from the opening side, and of the way back.
fn keys(
    key: &[u8; 32],
    secrets: &Secrets,
    opener: &[u8; NONCE],
    other: &[u8; NONCE],
) -> ([u8; 32], [u8; 32]) {
    let salt = [*opener, *other].concat();
    let way = |name: &[u8]| {
        let info: [&[u8]; 3] = [
            b"portolan gossip stream 1",
            name,
            secrets.cluster().as_bytes(),
        ];
        derive(key, &salt, &info)
    };
    (way(b"up"), way(b"down"))
}
