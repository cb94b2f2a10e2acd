//! Queries off the wire, and replies onto it.

use hickory_proto::{
    ProtoError,
    op::{Edns, Message, Metadata, OpCode, Query, ResponseCode},
    serialize::binary::{BinEncodable, BinEncoder},
};

/// The payload that we advertise, and the most that we send over UDP: what passes any path unfragmented
/// (the DNS flag day of 2020), the overlay's included.
pub(crate) const UDP_PAYLOAD: u16 = 1232;
/// The most that a client without EDNS takes over UDP (RFC 1035, section 2.3.4).
const PLAIN_UDP_PAYLOAD: u16 = 512;
/// The length of a header (RFC 1035, section 4.1.1).
const HEADER: usize = 12;
/// The length of an OPT record without options (RFC 6891, section 6.1.2).
const OPT: u16 = 11;

/// What a query came over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transport {
    Udp,
    Tcp,
}

/// A well-formed query.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) metadata: Metadata,
    pub(crate) query: Query,
    pub(crate) edns: Option<ClientEdns>,
    transport: Transport,
}

/// What a client says of itself by EDNS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ClientEdns {
    payload: u16,
    version: u8,
    pub(crate) dnssec_ok: bool,
}

/// Bytes that are no query that can be answered.
#[derive(Debug)]
pub(crate) enum Malformed {
    /// Too short, or a response: whatever is sent back could start a loop.
    Drop,
    /// Its sender can be told; the reply is encoded.
    Reply(Vec<u8>, ResponseCode),
}

impl Request {
    /// The query in a datagram, or in a message of a stream without its length.
    pub(crate) fn decode(bytes: &[u8], transport: Transport) -> Result<Self, Malformed> {
        let Some([id0, id1, flags, _, count0, count1, ..]) = bytes.first_chunk::<HEADER>() else {
            return Err(Malformed::Drop);
        };
        if flags & 0x80 != 0 {
            return Err(Malformed::Drop);
        }
        let id = u16::from_be_bytes([*id0, *id1]);
        let op_code = OpCode::from_u8((flags >> 3) & 0x0f);
        let reply = |code| {
            let mut message = Message::error_msg(id, op_code, code);
            message.metadata.recursion_desired = flags & 0x01 != 0;
            match message.to_vec() {
                Ok(bytes) => Malformed::Reply(bytes, code),
                Err(_) => Malformed::Drop,
            }
        };
        if op_code != OpCode::Query {
            return Err(reply(ResponseCode::NotImp));
        }
        // Looked at before decoding, which would make room for all the questions announced.
        if u16::from_be_bytes([*count0, *count1]) != 1 {
            return Err(reply(ResponseCode::FormErr));
        }
        let Ok(mut message) = Message::from_vec(bytes) else {
            return Err(reply(ResponseCode::FormErr));
        };
        let Some(query) = message.queries.pop() else {
            return Err(reply(ResponseCode::FormErr));
        };
        Ok(Self {
            metadata: message.metadata,
            query,
            edns: message.edns.as_ref().map(|edns| ClientEdns {
                payload: edns.max_payload(),
                version: edns.version(),
                dnssec_ok: edns.flags().dnssec_ok,
            }),
            transport,
        })
    }

    /// Whether it speaks a version of EDNS that does not exist.
    pub(crate) fn has_bad_version(&self) -> bool {
        self.edns.is_some_and(|edns| edns.version > 0)
    }

    /// A reply to it with nothing in it yet.
    pub(crate) fn reply(&self, code: ResponseCode) -> Message {
        let mut message = Message::response(self.metadata.id, OpCode::Query);
        message.metadata = Metadata::response_from_request(&self.metadata);
        message.metadata.response_code = code;
        message.add_query(self.query.clone());
        message
    }

    /// A reply's bytes: with OPT if and only if the query had one, and cut to what the client takes,
    /// whole records at a time, with TC if an answer had to go. Additional records go without notice
    /// (RFC 2181, section 9).
    pub(crate) fn encode(&self, mut message: Message) -> Result<Vec<u8>, ProtoError> {
        let limit = self.limit();
        let edns = self.edns.map(|client| opt(client.dnssec_ok));
        message.edns.clone_from(&edns);
        let whole = encode_within(&message, limit)?;
        if Counts::encoded(&whole) == Counts::wanted(&message) {
            return Ok(whole);
        }
        message.edns = None;
        let reserved = if edns.is_some() { OPT } else { 0 };
        let kept = Counts::encoded(&encode_within(&message, limit - reserved)?);
        message.metadata.truncation |=
            kept.answers < message.answers.len() || kept.authorities < message.authorities.len();
        message.answers.truncate(kept.answers);
        message.authorities.truncate(kept.authorities);
        message.additionals.truncate(kept.additionals);
        message.edns = edns;
        encode_within(&message, limit)
    }

    fn limit(&self) -> u16 {
        match (self.transport, self.edns) {
            (Transport::Tcp, _) => u16::MAX,
            (Transport::Udp, None) => PLAIN_UDP_PAYLOAD,
            (Transport::Udp, Some(edns)) => edns.payload.clamp(PLAIN_UDP_PAYLOAD, UDP_PAYLOAD),
        }
    }
}

/// An OPT record of ours, for a query or a reply.
pub(crate) fn opt(dnssec_ok: bool) -> Edns {
    let mut edns = Edns::new();
    edns.set_max_payload(UDP_PAYLOAD).set_dnssec_ok(dnssec_ok);
    edns
}

/// How many records a message has by section, OPT among the additional ones.
#[derive(PartialEq, Eq)]
struct Counts {
    answers: usize,
    authorities: usize,
    additionals: usize,
}

impl Counts {
    fn wanted(message: &Message) -> Self {
        Self {
            answers: message.answers.len(),
            authorities: message.authorities.len(),
            additionals: message.additionals.len() + usize::from(message.edns.is_some()),
        }
    }

    /// As the header says (RFC 1035, section 4.1.1).
    fn encoded(bytes: &[u8]) -> Self {
        let count = |at: usize| {
            let field = bytes.get(at..).and_then(|rest| rest.first_chunk::<2>());
            field.map_or(0, |field| usize::from(u16::from_be_bytes(*field)))
        };
        Self {
            answers: count(6),
            authorities: count(8),
            additionals: count(10),
        }
    }
}

/// The message, less the records that do not fit.
fn encode_within(message: &Message, limit: u16) -> Result<Vec<u8>, ProtoError> {
    let mut bytes = Vec::with_capacity(usize::from(limit.min(UDP_PAYLOAD)));
    let mut encoder = BinEncoder::new(&mut bytes);
    encoder.set_max_size(limit);
    message.emit(&mut encoder)?;
    Ok(bytes)
}
