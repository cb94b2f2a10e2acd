//! Records on the wire: single deltas in datagrams, and parts of an owner's log in a pull.

use bytes::{Buf, BufMut, Bytes};
use portolan_model::NodeId;

use super::{
    DecodeError, Result, get_bytes, get_count, get_node, get_u8, get_u64, get_varint, put_bytes,
    put_varint,
};

/// The longest key of a record, in bytes.
pub const MAX_KEY: usize = 128;
/// The longest value of a record, in bytes.
pub const MAX_VALUE: usize = 1024;

/// One change: what `key` is since sequence number `seq` of its owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) seq: u64,
    /// No change that still matters lies between `prev` and `seq`; `prev < seq`.
    pub(crate) prev: u64,
    pub(crate) key: Bytes,
    /// `None` deletes.
    pub(crate) value: Option<Bytes>,
}

/// A change with the log that it belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Delta {
    pub(crate) owner: NodeId,
    pub(crate) boot: u64,
    pub(crate) change: Change,
}

/// How far somebody has an owner's log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Digest {
    pub(crate) owner: NodeId,
    pub(crate) boot: u64,
    pub(crate) contig: u64,
    /// Hash of the live records, which tells equal logs from logs that only end at one number.
    pub(crate) content: u64,
}

/// A stretch of an owner's log: every change that still matters in `(base, contig]`, and any that
/// the sender has beyond. With `base` 0 it is a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) owner: NodeId,
    pub(crate) boot: u64,
    pub(crate) base: u64,
    pub(crate) contig: u64,
    /// Deletes up to this number may have been forgotten by the sender.
    pub(crate) floor: u64,
    /// By sequence number, ascending.
    pub(crate) changes: Vec<Change>,
}

/// The bytes that the head of a group of deltas takes at most.
pub(crate) const GROUP_HEAD: usize = 16 + 8 + 2;

/// The least bytes that a change takes: the deletion of an empty key by small numbers.
const LEAST_CHANGE: usize = 1 + 1 + 1 + 1;

/// The bytes that a change takes at most.
pub(crate) fn change_size(change: &Change) -> usize {
    10 + 10 + 1 + 2 + change.key.len() + change.value.as_ref().map_or(0, |value| 2 + value.len())
}

/// Changes of one log, as they stand in a datagram.
pub(crate) fn put_group(buf: &mut impl BufMut, owner: NodeId, boot: u64, changes: &[Change]) {
    buf.put_slice(owner.as_bytes());
    buf.put_u64(boot);
    put_varint(buf, changes.len() as u64);
    for change in changes {
        put_change(buf, change);
    }
}

pub(crate) fn get_group(buf: &mut impl Buf, into: &mut Vec<Delta>) -> Result<()> {
    let owner = get_node(buf)?;
    let boot = get_u64(buf)?;
    let count = get_count(buf, LEAST_CHANGE, "deltas")?;
    for _ in 0..count {
        let change = get_change(buf)?;
        into.push(Delta {
            owner,
            boot,
            change,
        });
    }
    Ok(())
}

fn put_change(buf: &mut impl BufMut, change: &Change) {
    put_varint(buf, change.seq);
    put_varint(buf, change.seq - change.prev);
    put_bytes(buf, &change.key);
    match &change.value {
        None => buf.put_u8(0),
        Some(value) => {
            buf.put_u8(1);
            put_bytes(buf, value);
        }
    }
}

fn get_change(buf: &mut impl Buf) -> Result<Change> {
    let seq = get_varint(buf)?;
    let back = get_varint(buf)?;
    let prev = seq
        .checked_sub(back)
        .filter(|_| back > 0)
        .ok_or(DecodeError::Invalid {
            what: "sequence number",
        })?;
    let key = get_bytes(buf, MAX_KEY, "key")?;
    let value = match get_u8(buf)? {
        0 => None,
        1 => Some(get_bytes(buf, MAX_VALUE, "value")?),
        value => {
            return Err(DecodeError::Unknown {
                what: "change",
                value,
            });
        }
    };
    Ok(Change {
        seq,
        prev,
        key,
        value,
    })
}

pub(crate) const DIGEST_SIZE: usize = 16 + 8 + 8 + 8;

pub(crate) fn put_digest(buf: &mut impl BufMut, digest: &Digest) {
    buf.put_slice(digest.owner.as_bytes());
    buf.put_u64(digest.boot);
    buf.put_u64(digest.contig);
    buf.put_u64(digest.content);
}

pub(crate) fn get_digest(buf: &mut impl Buf) -> Result<Digest> {
    Ok(Digest {
        owner: get_node(buf)?,
        boot: get_u64(buf)?,
        contig: get_u64(buf)?,
        content: get_u64(buf)?,
    })
}

pub(crate) fn put_part(buf: &mut impl BufMut, part: &Part) {
    buf.put_slice(part.owner.as_bytes());
    buf.put_u64(part.boot);
    put_varint(buf, part.base);
    put_varint(buf, part.contig);
    put_varint(buf, part.floor);
    put_varint(buf, part.changes.len() as u64);
    for change in &part.changes {
        put_change(buf, change);
    }
}

/// The least bytes that a part takes.
pub(crate) const LEAST_PART: usize = 16 + 8 + 4;

pub(crate) fn get_part(buf: &mut impl Buf) -> Result<Part> {
    let owner = get_node(buf)?;
    let boot = get_u64(buf)?;
    let base = get_varint(buf)?;
    let contig = get_varint(buf)?;
    let floor = get_varint(buf)?;
    let count = get_count(buf, LEAST_CHANGE, "changes")?;
    let mut changes = Vec::with_capacity(count);
    let mut last = base;
    for _ in 0..count {
        let change = get_change(buf)?;
        if change.seq <= last {
            return Err(DecodeError::Invalid {
                what: "order of changes",
            });
        }
        last = change.seq;
        changes.push(change);
    }
    if contig < base {
        return Err(DecodeError::Invalid {
            what: "stretch of a log",
        });
    }
    Ok(Part {
        owner,
        boot,
        base,
        contig,
        floor,
        changes,
    })
}
