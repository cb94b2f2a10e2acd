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
    /// Not even the question fits, or a record cannot be encoded.
    pub(crate) fn fitted(mut self, request: &Request) -> Result<Self, ProtoError> {
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
