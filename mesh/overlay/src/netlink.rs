//! A blocking rtnetlink socket, and the kernel's objects in the overlay's own terms.
//!
//! A socket belongs to the network namespace of the thread that opened it, for good. Requests are few
//! and answered at once, so nothing here is asynchronous; an asynchronous client would bring a runtime
//! to a thread that has no other use for one, and has no word for the VNI filter of a VXLAN link.

mod address;
mod link;
mod neighbour;
mod route;
mod rule;
mod vni;

use std::{fmt, io, net::IpAddr};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkBuffer, NetlinkMessage,
    NetlinkPayload, NetlinkSerializable, NlasIterator,
};
use netlink_packet_route::AddressFamily;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use rustix::io::Errno;

pub(crate) use address::Address;
pub(crate) use link::{Framing, Kind, Link, NewLink, Peer};
pub(crate) use neighbour::Neighbour;
pub(crate) use route::{ANYWHERE, ANYWHERE_V6, Hop, MAIN_TABLE, Route};
pub(crate) use rule::{Rule, Selector};

/// What marks routes and rules as ours (`RTPROT_*` of rtnetlink(7)); free in iproute2's `rt_protos`.
pub(crate) const PROTOCOL: u8 = 112;

/// Of which version of IP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
}

impl Family {
    pub(crate) fn of(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    fn number(self) -> AddressFamily {
        match self {
            Self::V4 => AddressFamily::Inet,
            Self::V6 => AddressFamily::Inet6,
        }
    }

    /// The length of a prefix that is a single address.
    pub(crate) fn bits(self) -> u8 {
        match self {
            Self::V4 => 32,
            Self::V6 => 128,
        }
    }
}

/// What the kernel answered to a request that it did not carry out.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// The kernel refused; nothing has changed.
    #[error("{}{}", io::Error::from(*errno), Detail(detail.as_deref()))]
    Refused {
        /// Why.
        errno: Errno,
        /// The kernel's own words, where it has some.
        detail: Option<String>,
    },
    /// The socket failed; whether the kernel has carried out the request is not known.
    #[error("the netlink socket failed")]
    Socket(#[from] io::Error),
    /// The answer is none; whether the kernel has carried out the request is not known.
    #[error("the kernel's answer cannot be read: {0}")]
    Answer(String),
}

impl NetlinkError {
    /// The error number, if the kernel refused.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Refused { errno, .. } => Some(*errno),
            Self::Socket(_) | Self::Answer(_) => None,
        }
    }
}

struct Detail<'a>(Option<&'a str>);

impl fmt::Display for Detail<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |detail| write!(f, ": {detail}"))
    }
}

/// A connection with the kernel's networking of one namespace.
#[derive(Debug)]
pub(crate) struct Netlink {
    socket: Socket,
    sequence: u32,
}

/// `NLMSG_*` of netlink(7).
const NOOP: u16 = 1;
const ERROR: u16 = 2;
const DONE: u16 = 3;
/// `NLMSGERR_ATTR_MSG` of netlink(7).
const ATTR_MESSAGE: u16 = 1;
const HEADER: usize = 16;
/// The kernel fills dumps into buffers of at most 32 KiB.
const RECEIVE_BYTES: usize = 64 * 1024;

impl Netlink {
    /// Opens a socket in the namespace of the calling thread.
    pub(crate) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        socket.set_ext_ack(true)?;
        // Makes the kernel filter dumps by what the request says, and refuse what it does not know.
        socket.set_netlink_get_strict_chk(true)?;
        Ok(Self {
            socket,
            sequence: 0,
        })
    }

    /// Has one change made; `flags` are `NLM_F_CREATE` and its like.
    fn change<M: NetlinkSerializable>(
        &mut self,
        message: M,
        flags: u16,
    ) -> Result<(), NetlinkError> {
        self.send(message, NLM_F_REQUEST | NLM_F_ACK | flags)?;
        self.receive(|_, _| {}).map(drop)
    }

    /// Hands every message of a dump, type and payload, to a function. A dump that was disturbed by a
    /// change is taken anew.
    fn dump<M: NetlinkSerializable + Clone, T>(
        &mut self,
        message: &M,
        mut read: impl FnMut(u16, &[u8]) -> Option<T>,
    ) -> Result<Vec<T>, NetlinkError> {
        const TRIES: usize = 8;
        let mut found = Vec::new();
        for _ in 0..TRIES {
            found.clear();
            self.send(message.clone(), NLM_F_REQUEST | NLM_F_DUMP)?;
            let whole = self.receive(|kind, payload| found.extend(read(kind, payload)))?;
            if whole {
                break;
            }
        }
        Ok(found)
    }

    fn send<M: NetlinkSerializable>(&mut self, message: M, flags: u16) -> Result<(), NetlinkError> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut message = NetlinkMessage::new(
            netlink_packet_core::NetlinkHeader::default(),
            NetlinkPayload::InnerMessage(message),
        );
        message.header.flags = flags;
        message.header.sequence_number = self.sequence;
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;
        Ok(())
    }

    /// Reads until the end of the answer; tells whether a dump was consistent.
    fn receive(&self, mut read: impl FnMut(u16, &[u8])) -> Result<bool, NetlinkError> {
        let mut whole = true;
        loop {
            let mut bytes = Vec::with_capacity(RECEIVE_BYTES);
            match self.socket.recv(&mut bytes, 0) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                received => received?,
            };
            let mut rest = bytes.as_slice();
            while rest.len() >= HEADER {
                let buffer = NetlinkBuffer::new_checked(rest)
                    .map_err(|error| NetlinkError::Answer(error.to_string()))?;
                let length = (buffer.length() as usize).max(HEADER);
                let payload = rest.get(HEADER..length).unwrap_or_default();
                // An older sequence number is an answer that its request gave up waiting for.
                if buffer.sequence_number() == self.sequence {
                    whole &= buffer.flags() & NLM_F_DUMP_INTR == 0;
                    match buffer.message_type() {
                        ERROR => return refusal(payload).map_or(Ok(whole), Err),
                        DONE => return refusal_of_dump(payload).map_or(Ok(whole), Err),
                        NOOP => {}
                        kind => read(kind, payload),
                    }
                }
                rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
            }
        }
    }
}

/// The error of an `NLMSG_ERROR`: its code, then the request's header (for a refusal all of the
/// request), then attributes. Zero is an acknowledgement.
fn refusal(payload: &[u8]) -> Option<NetlinkError> {
    let errno = errno(payload)?;
    let request = payload.get(4..).unwrap_or_default();
    let length = NetlinkBuffer::new_checked(request).map_or(HEADER, |r| r.length() as usize);
    let attributes = request
        .get(length.next_multiple_of(4)..)
        .unwrap_or_default();
    Some(NetlinkError::Refused {
        errno,
        detail: detail(attributes),
    })
}

/// The error of an `NLMSG_DONE`: its code, then attributes.
fn refusal_of_dump(payload: &[u8]) -> Option<NetlinkError> {
    let errno = errno(payload)?;
    Some(NetlinkError::Refused {
        errno,
        detail: detail(payload.get(4..).unwrap_or_default()),
    })
}

fn errno(payload: &[u8]) -> Option<Errno> {
    let code = i32::from_ne_bytes(*payload.first_chunk()?);
    (code < 0).then(|| Errno::from_raw_os_error(-code))
}

fn detail(attributes: &[u8]) -> Option<String> {
    let message = NlasIterator::new(attributes)
        .filter_map(Result::ok)
        .find(|attribute| attribute.kind() == ATTR_MESSAGE)?;
    let text = message.value().split(|byte| *byte == 0).next()?;
    Some(String::from_utf8_lossy(text).into_owned())
}

#[cfg(test)]
mod tests;
