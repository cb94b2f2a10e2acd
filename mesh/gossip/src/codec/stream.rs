//! What goes over a TCP stream, beneath the encryption: a ping, or the four messages of a pull.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::{
    DecodeError, Result, finish, get_count, get_u8, get_u64,
    members::{LEAST_UPDATE, Update, get_identity, get_update, put_identity, put_update},
    records::{DIGEST_SIZE, Digest, LEAST_PART, Part, get_digest, get_part, put_digest, put_part},
};
use crate::identity::Identity;

/// Owners are split over this many buckets, whose hashes tell where two tables differ.
pub(crate) const BUCKETS: usize = 64;

/// The hashes of all buckets of a table.
pub(crate) type Buckets = [u64; BUCKETS];

/// The longest message: what two sides spend on one turn of a pull.
pub(crate) const MAX_MESSAGE: usize = 16 << 20;

/// One message of a stream. A pull goes Open, Digest, Exchange, Parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Message {
    /// A datagram that may have been lost; answered by one or by nothing.
    Datagram(Bytes),
    /// Who asks, whether it is full, and where its table stands.
    Open {
        from: Identity,
        full: bool,
        buckets: Box<Buckets>,
    },
    /// Who answers, what it knows of the asker, and how far it has the owners of differing buckets.
    Digest {
        from: Identity,
        /// The asker's node as the answerer has it, with whether it holds it for alive.
        known: Option<(Identity, bool)>,
        /// A bit for each bucket that differs.
        differing: u64,
        digests: Vec<Digest>,
        members: Vec<Update>,
    },
    /// The same from the asker, with what the answerer lacks.
    Exchange {
        digests: Vec<Digest>,
        members: Vec<Update>,
        parts: Vec<Part>,
    },
    /// What the asker lacks.
    Parts(Vec<Part>),
    /// Too many pulls are being served; ask again later.
    Busy,
}

impl Message {
    pub(crate) fn encode(&self) -> Bytes {
        let mut buf = BytesMut::with_capacity(1024);
        match self {
            Self::Datagram(bytes) => {
                buf.put_u8(1);
                buf.put_slice(bytes);
            }
            Self::Open {
                from,
                full,
                buckets,
            } => {
                buf.put_u8(2);
                put_identity(&mut buf, from);
                buf.put_u8(u8::from(*full));
                buckets.iter().for_each(|bucket| buf.put_u64(*bucket));
            }
            Self::Digest {
                from,
                known,
                differing,
                digests,
                members,
            } => {
                buf.put_u8(3);
                put_identity(&mut buf, from);
                match known {
                    None => buf.put_u8(0),
                    Some((identity, alive)) => {
                        buf.put_u8(1 + u8::from(*alive));
                        put_identity(&mut buf, identity);
                    }
                }
                buf.put_u64(*differing);
                put_list(&mut buf, digests, put_digest);
                put_list(&mut buf, members, put_update);
            }
            Self::Exchange {
                digests,
                members,
                parts,
            } => {
                buf.put_u8(4);
                put_list(&mut buf, digests, put_digest);
                put_list(&mut buf, members, put_update);
                put_list(&mut buf, parts, put_part);
            }
            Self::Parts(parts) => {
                buf.put_u8(5);
                put_list(&mut buf, parts, put_part);
            }
            Self::Busy => buf.put_u8(6),
        }
        buf.freeze()
    }

    pub(crate) fn decode(mut buf: Bytes) -> Result<Self> {
        let message = match get_u8(&mut buf)? {
            1 => return Ok(Self::Datagram(buf)),
            2 => {
                let from = get_identity(&mut buf)?;
                let full = get_bool(&mut buf)?;
                let mut buckets = Box::new([0; BUCKETS]);
                for bucket in buckets.iter_mut() {
                    *bucket = get_u64(&mut buf)?;
                }
                Self::Open {
                    from,
                    full,
                    buckets,
                }
            }
            3 => Self::Digest {
                from: get_identity(&mut buf)?,
                known: match get_u8(&mut buf)? {
                    0 => None,
                    tag @ (1 | 2) => Some((get_identity(&mut buf)?, tag == 2)),
                    value => {
                        return Err(DecodeError::Unknown {
                            what: "flag",
                            value,
                        });
                    }
                },
                differing: get_u64(&mut buf)?,
                digests: get_list(&mut buf, DIGEST_SIZE, "digests", get_digest)?,
                members: get_list(&mut buf, LEAST_UPDATE, "members", get_update)?,
            },
            4 => Self::Exchange {
                digests: get_list(&mut buf, DIGEST_SIZE, "digests", get_digest)?,
                members: get_list(&mut buf, LEAST_UPDATE, "members", get_update)?,
                parts: get_list(&mut buf, LEAST_PART, "parts", get_part)?,
            },
            5 => Self::Parts(get_list(&mut buf, LEAST_PART, "parts", get_part)?),
            6 => Self::Busy,
            value => {
                return Err(DecodeError::Unknown {
                    what: "stream message",
                    value,
                });
            }
        };
        finish(&buf, message)
    }
}

fn get_bool(buf: &mut impl Buf) -> Result<bool> {
    match get_u8(buf)? {
        0 => Ok(false),
        1 => Ok(true),
        value => Err(DecodeError::Unknown {
            what: "flag",
            value,
        }),
    }
}

fn put_list<T>(buf: &mut BytesMut, list: &[T], put: impl Fn(&mut BytesMut, &T)) {
    super::put_varint(buf, list.len() as u64);
    for item in list {
        put(buf, item);
    }
}

fn get_list<T>(
    buf: &mut Bytes,
    least: usize,
    what: &'static str,
    get: impl Fn(&mut Bytes) -> Result<T>,
) -> Result<Vec<T>> {
    let count = get_count(buf, least, what)?;
    (0..count).map(|_| get(buf)).collect()
}
