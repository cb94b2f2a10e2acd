//! Identities, and the messages of membership: what foca reads and writes.

use bytes::{Buf, BufMut};
use foca::{Header, Member, Message, State};

use super::{
    DecodeError, Result, finish, get_addr, get_node, get_u8, get_u16, get_u32, get_u64, put_addr,
};
use crate::identity::Identity;

/// A member and what is believed of it.
pub(crate) type Update = Member<Identity>;

/// The least bytes that an update takes: an IPv4 identity, incarnation and state.
pub(crate) const LEAST_UPDATE: usize = 16 + 7 + 8 + 4 + 3;

/// A whole message of membership, decoded before foca sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Membership {
    pub(crate) header: Header<Identity>,
    pub(crate) updates: Vec<Update>,
}

impl Membership {
    pub(crate) fn decode(mut buf: impl Buf) -> Result<Self> {
        let header = get_header(&mut buf)?;
        let count = if buf.has_remaining() {
            usize::from(get_u16(&mut buf)?)
        } else {
            0
        };
        if count * LEAST_UPDATE > buf.remaining() {
            return Err(DecodeError::TooLong { what: "updates" });
        }
        let updates = (0..count)
            .map(|_| get_update(&mut buf))
            .collect::<Result<_>>()?;
        finish(&buf, Self { header, updates })
    }

    /// Whether a message of foca's is a ping.
    pub(crate) fn is_ping(mut message: &[u8]) -> bool {
        get_header(&mut message).is_ok_and(|header| matches!(header.message, Message::Ping(_)))
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut buf = Vec::with_capacity(1400);
        put_header(&mut buf, &self.header);
        // foca refuses an announcement with anything behind the header.
        if self.header.message != Message::Announce {
            buf.put_u16(self.updates.len() as u16);
            for update in &self.updates {
                put_update(&mut buf, update);
            }
        }
        buf
    }
}

pub(crate) fn get_identity(buf: &mut impl Buf) -> Result<Identity> {
    Ok(Identity {
        node: get_node(buf)?,
        addr: get_addr(buf)?,
        boot: get_u64(buf)?,
        bump: get_u32(buf)?,
    })
}

pub(crate) fn put_identity(buf: &mut impl BufMut, identity: &Identity) {
    buf.put_slice(identity.node.as_bytes());
    put_addr(buf, identity.addr);
    buf.put_u64(identity.boot);
    buf.put_u32(identity.bump);
}

pub(crate) fn get_update(buf: &mut impl Buf) -> Result<Update> {
    let identity = get_identity(buf)?;
    let incarnation = get_u16(buf)?;
    let state = match get_u8(buf)? {
        0 => State::Alive,
        1 => State::Suspect,
        2 => State::Down,
        value => {
            return Err(DecodeError::Unknown {
                what: "member state",
                value,
            });
        }
    };
    Ok(Member::new(identity, incarnation, state))
}

pub(crate) fn put_update(buf: &mut impl BufMut, update: &Update) {
    put_identity(buf, update.id());
    buf.put_u16(update.incarnation());
    buf.put_u8(match update.state() {
        State::Alive => 0,
        State::Suspect => 1,
        State::Down => 2,
    });
}

fn get_header(buf: &mut impl Buf) -> Result<Header<Identity>> {
    let src = get_identity(buf)?;
    let src_incarnation = get_u16(buf)?;
    let dst = get_identity(buf)?;
    let message = match get_u8(buf)? {
        1 => Message::Ping(get_u8(buf)?),
        2 => Message::Ack(get_u8(buf)?),
        3 => Message::PingReq {
            target: get_identity(buf)?,
            probe_number: get_u8(buf)?,
        },
        4 => Message::IndirectPing {
            origin: get_identity(buf)?,
            probe_number: get_u8(buf)?,
        },
        5 => Message::IndirectAck {
            target: get_identity(buf)?,
            probe_number: get_u8(buf)?,
        },
        6 => Message::ForwardedAck {
            origin: get_identity(buf)?,
            probe_number: get_u8(buf)?,
        },
        7 => Message::Announce,
        8 => Message::Feed,
        9 => Message::Gossip,
        11 => Message::TurnUndead,
        value => {
            return Err(DecodeError::Unknown {
                what: "membership message",
                value,
            });
        }
    };
    Ok(Header {
        src,
        src_incarnation,
        dst,
        message,
    })
}

fn put_header(buf: &mut impl BufMut, header: &Header<Identity>) {
    put_identity(buf, &header.src);
    buf.put_u16(header.src_incarnation);
    put_identity(buf, &header.dst);
    let mut about = |kind: u8, identity: &Identity, number: u8| {
        buf.put_u8(kind);
        put_identity(buf, identity);
        buf.put_u8(number);
    };
    match &header.message {
        Message::Ping(number) => buf.put_slice(&[1, *number]),
        Message::Ack(number) => buf.put_slice(&[2, *number]),
        Message::PingReq {
            target,
            probe_number,
        } => about(3, target, *probe_number),
        Message::IndirectPing {
            origin,
            probe_number,
        } => about(4, origin, *probe_number),
        Message::IndirectAck {
            target,
            probe_number,
        } => about(5, target, *probe_number),
        Message::ForwardedAck {
            origin,
            probe_number,
        } => about(6, origin, *probe_number),
        Message::Announce => buf.put_u8(7),
        Message::Feed => buf.put_u8(8),
        Message::Gossip => buf.put_u8(9),
        // Records never travel by foca's own broadcasts, so this one is never received.
        Message::Broadcast => buf.put_u8(10),
        Message::TurnUndead => buf.put_u8(11),
    }
}

/// The same format, in the form that foca asks for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FocaCodec;

impl foca::Codec<Identity> for FocaCodec {
    type Error = DecodeError;

    fn encode_header(&mut self, header: &Header<Identity>, buf: impl BufMut) -> Result<()> {
        with_room(buf, 128, |scratch| put_header(scratch, header))
    }

    fn decode_header(&mut self, mut buf: impl Buf) -> Result<Header<Identity>> {
        get_header(&mut buf)
    }

    fn encode_member(&mut self, member: &Update, buf: impl BufMut) -> Result<()> {
        with_room(buf, 64, |scratch| put_update(scratch, member))
    }

    fn decode_member(&mut self, mut buf: impl Buf) -> Result<Update> {
        get_update(&mut buf)
    }
}

/// foca's buffer is limited and a write past the limit panics, so each value is written whole or
/// not at all.
fn with_room(mut buf: impl BufMut, size: usize, write: impl FnOnce(&mut Vec<u8>)) -> Result<()> {
    let mut scratch = Vec::with_capacity(size);
    write(&mut scratch);
    if buf.remaining_mut() < scratch.len() {
        return Err(DecodeError::NoRoom);
    }
    buf.put_slice(&scratch);
    Ok(())
}
