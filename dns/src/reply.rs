//! Replies, cut to what their client takes.

use std::slice;

use hickory_server::{
    net::xfer::Protocol,
    proto::{
        ProtoError,
        op::{Edns, Metadata, ResponseCode},
        rr::Record,
        serialize::binary::BinEncoder,
    },
    server::Request,
    zone_handler::{MessageResponse, MessageResponseBuilder},
};

/// The most that we send over UDP, and the payload that we advertise: what passes any path unfragmented
/// (the DNS flag day of 2020), the overlay's included.
pub(crate) const UDP_PAYLOAD: u16 = 1232;
/// The length of an OPT record without options (RFC 6891, section 6.1.2).
const OPT: u16 = 11;

type Records<'a> = slice::Iter<'a, Record>;

/// Why there is no reply to a query.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unanswerable {
    #[error("a name in its question is compressed")]
    Question,
    #[error(transparent)]
    Encode(#[from] ProtoError),
}

/// What a query is answered.
#[derive(Debug, Clone)]
pub(crate) struct Reply {
    pub(crate) metadata: Metadata,
    pub(crate) answers: Vec<Record>,
    pub(crate) authorities: Vec<Record>,
    pub(crate) additionals: Vec<Record>,
}

impl Reply {
    /// A reply with no records yet.
    pub(crate) fn new(request: &Request, code: ResponseCode) -> Self {
        let mut metadata = Metadata::response_from_request(&request.metadata);
        metadata.response_code = code;
        Self {
            metadata,
            answers: Vec::new(),
            authorities: Vec::new(),
            additionals: Vec::new(),
        }
    }

    /// Leaves out the records that the client does not take, with TC if answers or authorities are among
    /// them. Additional records go without notice (RFC 2181, section 9).
    ///
    /// The encoder would cut the message too, but the OPT record first, which says what the client may
    /// send and whether it is understood.
    ///
    /// # Errors
    /// The question cannot be repeated, or a record cannot be encoded.
    pub(crate) fn fitted(mut self, request: &Request) -> Result<Self, Unanswerable> {
        if !is_repeatable(request) {
            return Err(Unanswerable::Question);
        }
        let limit = limit(request);
        let opt = if request.edns.is_some() { OPT } else { 0 };
        let mut bytes = Vec::with_capacity(usize::from(limit.min(UDP_PAYLOAD)));
        let mut encoder = BinEncoder::new(&mut bytes);
        encoder.set_max_size(limit.saturating_sub(opt));
        let written = self
            .response(request, None)
            .destructive_emit(&mut encoder)?;
        let counts = written.counts();
        let (answers, authorities) = (counts.answers.into(), counts.authorities.into());
        self.metadata.truncation |=
            answers < self.answers.len() || authorities < self.authorities.len();
        self.answers.truncate(answers);
        self.authorities.truncate(authorities);
        self.additionals.truncate(counts.additionals.into());
        Ok(self)
    }

    /// The message to send, with the question as the client spelt it.
    pub(crate) fn response<'q, 'a>(
        &'a self,
        request: &'q Request,
        edns: Option<&'q Edns>,
    ) -> MessageResponse<'q, 'a, Records<'a>, Records<'a>, Records<'a>, Records<'a>> {
        MessageResponseBuilder::new(&request.queries, edns).build(
            self.metadata,
            &self.answers,
            &self.authorities,
            &[],
            &self.additionals,
        )
    }
}

/// The OPT record of the reply: there is one if and only if the query had one. Its payload is the limit
/// that the encoder keeps to.
pub(crate) fn opt(request: &Request) -> Option<Edns> {
    let asked = request.edns.as_ref()?;
    let mut edns = Edns::new();
    edns.set_max_payload(match request.protocol() {
        Protocol::Udp => limit(request),
        _ => UDP_PAYLOAD,
    });
    edns.set_dnssec_ok(asked.flags().dnssec_ok);
    Some(edns)
}

/// The longest reply that the client takes. Without EDNS that is 512 bytes over UDP (RFC 1035,
/// section 2.3.4).
fn limit(request: &Request) -> u16 {
    match request.protocol() {
        Protocol::Udp => request.max_payload().min(UDP_PAYLOAD),
        _ => u16::MAX,
    }
}

/// Whether the question section stands for itself. A reply repeats its bytes, and a pointer in there would
/// lead elsewhere in the reply; there is nothing before a question that a pointer could sensibly mean
/// (RFC 1035, section 4.1.4).
fn is_repeatable(request: &Request) -> bool {
    const HEADER: usize = 12;
    const TYPE_AND_CLASS: usize = 4;
    let message = request.as_slice();
    let mut at = HEADER;
    for _ in 0..request.queries.queries().len() {
        loop {
            match message.get(at) {
                Some(0) => break,
                Some(&length) if length < 64 => at += usize::from(length) + 1,
                _ => return false,
            }
        }
        at += 1 + TYPE_AND_CLASS;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(question: &[u8]) -> Request {
        let header = [0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        let bytes = header.iter().chain(question).copied().collect();
        let client = ([10, 96, 0, 11], 5353).into();
        Request::from_bytes(bytes, client, Protocol::Udp).expect("a query")
    }

    #[test]
    fn a_question_that_points_into_the_header_is_not_repeated() {
        assert!(is_repeatable(&request(b"\x03web\0\0\x01\0\x01")));
        // The rest of its name are the header's own flags and counts, read as labels.
        let pointing = request(b"\x03web\xc0\x02\0\x01\0\x01");
        assert!(!is_repeatable(&pointing));
        let reply = Reply::new(&pointing, ResponseCode::NoError);
        assert!(matches!(
            reply.fitted(&pointing),
            Err(Unanswerable::Question)
        ));
    }
}
