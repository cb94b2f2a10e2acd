//! What becomes of a query: a pure function of its bytes, its sender and the zones.

#[cfg(test)]
mod tests;

use std::net::IpAddr;

use hickory_proto::{
    op::{Message, ResponseCode},
    rr::{DNSClass, Name, RData, Record, RecordType, rdata::SOA},
};
use ipnetwork::IpNetwork;
use portolan_model::NetworkName;

use crate::{
    message::{Malformed, Request, Transport},
    zone::{Found, Rotation, Zone, Zones},
};

/// Who asks, where, and how.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asker<'a> {
    /// The network whose listener was asked.
    pub(crate) network: &'a NetworkName,
    pub(crate) address: IpAddr,
    pub(crate) transport: Transport,
    /// Clients let in besides those of the network.
    pub(crate) allow: &'a [IpNetwork],
}

/// What is to be done with a query.
#[derive(Debug)]
pub(crate) enum Action {
    /// Nothing: it is no query.
    Drop,
    /// Send these bytes.
    Reply(Reply),
    /// Ask an upstream.
    Forward(Box<Request>),
}

/// An encoded reply, and how it counts.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) bytes: Vec<u8>,
    /// `None` if the query could not be decoded that far.
    pub(crate) qtype: Option<RecordType>,
    pub(crate) code: ResponseCode,
}

/// Decides about a query.
pub(crate) fn answer(zones: &Zones, asker: Asker<'_>, rotation: &Rotation, query: &[u8]) -> Action {
    let request = match Request::decode(query, asker.transport) {
        Ok(request) => request,
        Err(Malformed::Drop) => return Action::Drop,
        Err(Malformed::Reply(bytes, code)) => {
            return Action::Reply(Reply {
                bytes,
                qtype: None,
                code,
            });
        }
    };
    let Some(zone) = zones.get(asker.network) else {
        // The network is going; its listener follows in a moment.
        return reply(&request, request.reply(ResponseCode::Refused));
    };
    let admitted = zones.admits(zone, asker.address)
        || asker.allow.iter().any(|net| net.contains(asker.address));
    if !admitted || is_refused(&request) {
        return reply(&request, request.reply(ResponseCode::Refused));
    }
    if request.has_bad_version() {
        return reply(&request, request.reply(ResponseCode::BADVERS));
    }
    let query = &request.query;
    let (name, qtype) = (query.name(), query.query_type());
    match zones.lookup(asker.network, asker.address, name, qtype, rotation) {
        Found::Foreign if !zone.internal => Action::Forward(Box::new(request)),
        Found::Foreign if zone.can_ask_elsewhere(zones, asker.address) => {
            reply(&request, request.reply(ResponseCode::Refused))
        }
        found => reply(&request, message(zones, zone, &request, found)),
    }
}

/// What nobody is answered: other classes than IN, zone transfers, and types that are no data
/// (RFC 6895, section 3.1).
fn is_refused(request: &Request) -> bool {
    let query = &request.query;
    let qtype = query.query_type();
    let meta = u16::from(qtype) == 41 || (128..=254).contains(&u16::from(qtype));
    query.query_class() != DNSClass::IN || meta
}

fn message(zones: &Zones, zone: &Zone, request: &Request, found: Found) -> Message {
    let mut message = request.reply(match &found {
        Found::Records { .. } => ResponseCode::NoError,
        Found::NoName | Found::Foreign => ResponseCode::NXDomain,
        Found::NotKnownYet => ResponseCode::ServFail,
    });
    message.metadata.recursion_available = !zone.internal;
    let (name, qtype) = (request.query.name(), request.query.query_type());
    match found {
        Found::NotKnownYet => return message,
        Found::Records {
            answers,
            additionals,
        } => {
            message.answers = answers;
            message.additionals = additionals;
        }
        Found::NoName | Found::Foreign => {}
    }
    message.metadata.authoritative = true;
    if message.answers.is_empty() {
        let at_apex = name == zone.origin() && qtype == RecordType::SOA;
        let soa = soa(zone, &zone.apex(name), zones.ttls().task);
        if at_apex {
            message.answers.push(soa);
        } else {
            message.authorities.push(soa);
        }
    }
    message
}

/// The record by which clients know how long to remember that there is nothing (RFC 2308, section 5).
/// Its serial is constant: nobody transfers these zones.
fn soa(zone: &Zone, apex: &Name, ttl: u32) -> Record {
    let under = |label: &str| {
        let name = zone.origin().prepend_label(label);
        name.unwrap_or_else(|_| zone.origin().clone())
    };
    let times = [3600, 600, 86_400];
    let [refresh, retry, expire] = times;
    let data = SOA::new(
        under("ns"),
        under("hostmaster"),
        1,
        refresh,
        retry,
        expire,
        ttl,
    );
    Record::from_rdata(apex.clone(), ttl, RData::SOA(data))
}

/// Encodes a reply.
pub(crate) fn reply(request: &Request, message: Message) -> Action {
    encode(request, message).map_or(Action::Drop, Action::Reply)
}

/// Encodes a reply; `None` if it cannot be, which takes records that nobody can send.
pub(crate) fn encode(request: &Request, message: Message) -> Option<Reply> {
    let code = message.metadata.response_code;
    let bytes = request.encode(message).ok()?;
    Some(Reply {
        bytes,
        qtype: Some(request.query.query_type()),
        code,
    })
}
