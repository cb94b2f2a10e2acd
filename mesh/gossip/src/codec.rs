//! The wire format beneath the encryption: a strict decoder that cannot panic.
//!
//! Numbers are big endian; counts and sequence numbers are LEB128. Every decoder checks lengths
//! before it takes or allocates anything, and a message with bytes left over is refused.

pub(crate) mod datagram;
pub(crate) mod members;
pub(crate) mod records;
pub(crate) mod stream;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use bytes::{Buf, BufMut, Bytes};
use portolan_model::NodeId;

/// Why bytes are not a message. Nothing has changed when one of these is returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DecodeError {
    /// The message ends before the value does.
    #[error("the message is cut short")]
    Truncated,
    /// The message goes on after its last value.
    #[error("the message has bytes left over")]
    Trailing,
    /// A kind, state or family that this version does not know.
    #[error("unknown {what} {value}")]
    Unknown {
        /// What kind of value it is.
        what: &'static str,
        /// The value found.
        value: u8,
    },
    /// A length or count beyond the limit for its type.
    #[error("{what} is too long")]
    TooLong {
        /// What is too long.
        what: &'static str,
    },
    /// A value that no sender of this version writes.
    #[error("{what} makes no sense")]
    Invalid {
        /// What makes no sense.
        what: &'static str,
    },
    /// An encoder met a buffer without room for the value.
    #[error("the buffer is full")]
    NoRoom,
}

type Result<T> = std::result::Result<T, DecodeError>;

pub(crate) fn get_u8(buf: &mut impl Buf) -> Result<u8> {
    buf.try_get_u8().map_err(|_| DecodeError::Truncated)
}

pub(crate) fn get_u16(buf: &mut impl Buf) -> Result<u16> {
    buf.try_get_u16().map_err(|_| DecodeError::Truncated)
}

pub(crate) fn get_u32(buf: &mut impl Buf) -> Result<u32> {
    buf.try_get_u32().map_err(|_| DecodeError::Truncated)
}

pub(crate) fn get_u64(buf: &mut impl Buf) -> Result<u64> {
    buf.try_get_u64().map_err(|_| DecodeError::Truncated)
}

pub(crate) fn get_array<const N: usize>(buf: &mut impl Buf) -> Result<[u8; N]> {
    let mut array = [0; N];
    buf.try_copy_to_slice(&mut array)
        .map_err(|_| DecodeError::Truncated)?;
    Ok(array)
}

pub(crate) fn get_node(buf: &mut impl Buf) -> Result<NodeId> {
    get_array(buf).map(NodeId::from_bytes)
}

pub(crate) fn get_varint(buf: &mut impl Buf) -> Result<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let byte = get_u8(buf)?;
        let bits = u64::from(byte & 0x7f);
        if shift == 63 && bits > 1 {
            break;
        }
        value |= bits << shift;
        if byte & 0x80 == 0 {
            // One number has one encoding, so that equal messages are equal bytes.
            return if byte == 0 && shift > 0 {
                Err(DecodeError::Invalid { what: "number" })
            } else {
                Ok(value)
            };
        }
    }
    Err(DecodeError::TooLong { what: "number" })
}

/// A count of things that take at least `least` bytes each, so that no count can make us allocate
/// more than the message itself is long.
pub(crate) fn get_count(buf: &mut impl Buf, least: usize, what: &'static str) -> Result<usize> {
    let count = usize::try_from(get_varint(buf)?).map_err(|_| DecodeError::TooLong { what })?;
    if count.saturating_mul(least.max(1)) > buf.remaining() {
        return Err(DecodeError::TooLong { what });
    }
    Ok(count)
}

pub(crate) fn get_bytes(buf: &mut impl Buf, limit: usize, what: &'static str) -> Result<Bytes> {
    let len = get_count(buf, 1, what)?;
    if len > limit {
        return Err(DecodeError::TooLong { what });
    }
    Ok(buf.copy_to_bytes(len))
}

pub(crate) fn get_addr(buf: &mut impl Buf) -> Result<SocketAddr> {
    let ip = match get_u8(buf)? {
        4 => IpAddr::V4(Ipv4Addr::from(get_array::<4>(buf)?)),
        6 => IpAddr::V6(Ipv6Addr::from(get_array::<16>(buf)?)),
        value => {
            return Err(DecodeError::Unknown {
                what: "address family",
                value,
            });
        }
    };
    Ok(SocketAddr::new(ip, get_u16(buf)?))
}

pub(crate) fn finish<T>(buf: &impl Buf, value: T) -> Result<T> {
    if buf.has_remaining() {
        Err(DecodeError::Trailing)
    } else {
        Ok(value)
    }
}

pub(crate) fn put_varint(buf: &mut impl BufMut, mut value: u64) {
    while value >= 0x80 {
        buf.put_u8(value as u8 | 0x80);
        value >>= 7;
    }
    buf.put_u8(value as u8);
}

pub(crate) fn put_bytes(buf: &mut impl BufMut, bytes: &[u8]) {
    put_varint(buf, bytes.len() as u64);
    buf.put_slice(bytes);
}

pub(crate) fn put_addr(buf: &mut impl BufMut, addr: SocketAddr) {
    match addr.ip() {
        IpAddr::V4(ip) => {
            buf.put_u8(4);
            buf.put_slice(&ip.octets());
        }
        IpAddr::V6(ip) => {
            buf.put_u8(6);
            buf.put_slice(&ip.octets());
        }
    }
    buf.put_u16(addr.port());
}

#[cfg(test)]
mod tests;
