//! What one UDP datagram carries, beneath the encryption.

use bytes::{Buf, BufMut, Bytes};

use super::{
    DecodeError, Result, finish, get_u8, get_u16, get_u64,
    members::{Membership, get_identity, put_identity},
    records::{Change, Delta, get_group, put_group},
};
use crate::identity::Identity;
use portolan_model::NodeId;

/// What a datagram may hold at most, so that it fits an MTU of 1400 with envelope and IP headers.
pub(crate) const MAX_BODY: usize = 1290;

/// Bytes of a [`Header`] and the kind before it.
pub(crate) const HEAD: usize = 1 + 8 + 8 + 8 + 2;

/// What every datagram tells of its sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) boot: u64,
    pub(crate) table: u64,
    pub(crate) members: u64,
    /// Milliseconds since either hash changed, at most `u16::MAX`.
    pub(crate) quiet: u16,
}

/// A datagram.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Body {
    /// A message of membership.
    Membership(Membership),
    /// Changes of records.
    Deltas(Vec<Delta>),
    /// "This is the identity that I hold for your node", sent to one that it supersedes.
    Notice(Identity),
}

const MEMBERSHIP: u8 = 1;
const DELTAS: u8 = 2;
const NOTICE: u8 = 3;

fn put_head(kind: u8, header: Header) -> Vec<u8> {
    let mut buf = Vec::with_capacity(MAX_BODY);
    buf.put_u8(kind);
    buf.put_u64(header.boot);
    buf.put_u64(header.table);
    buf.put_u64(header.members);
    buf.put_u16(header.quiet);
    buf
}

pub(crate) fn membership(header: Header, message: &[u8]) -> Bytes {
    let mut buf = put_head(MEMBERSHIP, header);
    buf.put_slice(message);
    buf.into()
}

pub(crate) fn deltas<'a>(
    header: Header,
    groups: impl IntoIterator<Item = (NodeId, u64, &'a [Change])>,
) -> Bytes {
    let mut buf = put_head(DELTAS, header);
    for (owner, boot, changes) in groups {
        put_group(&mut buf, owner, boot, changes);
    }
    buf.into()
}

pub(crate) fn notice(header: Header, known: &Identity) -> Bytes {
    let mut buf = put_head(NOTICE, header);
    put_identity(&mut buf, known);
    buf.into()
}

pub(crate) fn decode(mut buf: Bytes) -> Result<(Header, Body)> {
    let kind = get_u8(&mut buf)?;
    let header = Header {
        boot: get_u64(&mut buf)?,
        table: get_u64(&mut buf)?,
        members: get_u64(&mut buf)?,
        quiet: get_u16(&mut buf)?,
    };
    let body = match kind {
        MEMBERSHIP => Body::Membership(Membership::decode(buf)?),
        DELTAS => {
            let mut deltas = Vec::new();
            while buf.has_remaining() {
                get_group(&mut buf, &mut deltas)?;
            }
            Body::Deltas(deltas)
        }
        NOTICE => {
            let known = get_identity(&mut buf)?;
            finish(&buf, Body::Notice(known))?
        }
        value => {
            return Err(DecodeError::Unknown {
                what: "datagram",
                value,
            });
        }
    };
    Ok((header, body))
}
