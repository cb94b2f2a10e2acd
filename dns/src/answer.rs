//! What becomes of a query: a pure function of the query and the zones.

#[cfg(test)]
mod tests;

use hickory_server::{
    proto::{
        op::{OpCode, Query, ResponseCode},
        rr::{DNSClass, Name, RData, Record, RecordType, rdata::SOA},
    },
    server::Request,
};
use ipnetwork::IpNetwork;
use portolan_model::NetworkName;

use crate::{
    reply::Reply,
    zone::{Found, Rotation, Zone, Zones},
};

/// What is to be done with a query.
#[derive(Debug)]
pub(crate) enum Action<'a> {
    /// Send this.
    Reply(Reply),
    /// Ask an upstream this.
    Forward(&'a Query),
}

/// Decides about a query that came to the listener of a network. Clients in `allow` are let in besides
/// those of the network.
pub(crate) fn answer<'a>(
    zones: &Zones,
    network: &NetworkName,
    allow: &[IpNetwork],
    rotation: &Rotation,
    request: &'a Request,
) -> Action<'a> {
    let reply = |code| Action::Reply(Reply::new(request, code));
    if request.metadata.op_code != OpCode::Query {
        return reply(ResponseCode::NotImp);
    }
    let Some(query) = question(request) else {
        return reply(ResponseCode::FormErr);
    };
    let Some(zone) = zones.get(network) else {
        // The network is going; its listener follows in a moment.
        return reply(ResponseCode::Refused);
    };
    let client = request.src().ip();
    let admitted =
        zones.admits(zone, client) || allow.iter().any(|allowed| allowed.contains(client));
    if !admitted || is_refused(query) {
        return reply(ResponseCode::Refused);
    }
    if request.version() > 0 {
        return reply(ResponseCode::BADVERS);
    }
    match zones.lookup(network, client, query.name(), query.query_type(), rotation) {
        Found::Foreign if !zone.internal => Action::Forward(query),
        Found::Foreign if zone.can_ask_elsewhere(zones, client) => reply(ResponseCode::Refused),
        found => Action::Reply(found_reply(zones, zone, request, query, found)),
    }
}

/// The one question of a query, as the client spelt it.
pub(crate) fn question(request: &Request) -> Option<&Query> {
    Some(request.request_info().ok()?.query.original())
}

/// What nobody is answered: other classes than IN, zone transfers, and types that are no data
/// (RFC 6895, section 3.1).
fn is_refused(query: &Query) -> bool {
    let qtype = u16::from(query.query_type());
    query.query_class() != DNSClass::IN || qtype == 41 || (128..=254).contains(&qtype)
}

fn found_reply(
    zones: &Zones,
    zone: &Zone,
    request: &Request,
    query: &Query,
    found: Found,
) -> Reply {
    let code = match &found {
        Found::Records { .. } => ResponseCode::NoError,
        Found::NoName | Found::Foreign => ResponseCode::NXDomain,
        Found::NotKnownYet => ResponseCode::ServFail,
    };
    let mut reply = Reply::new(request, code);
    reply.metadata.recursion_available = !zone.internal;
    match found {
        Found::NotKnownYet => return reply,
        Found::Records {
            answers,
            additionals,
        } => {
            reply.answers = answers;
            reply.additionals = additionals;
        }
        Found::NoName | Found::Foreign => {}
    }
    reply.metadata.authoritative = true;
    if reply.answers.is_empty() {
        let name = query.name();
        let soa = soa(zone, &zone.apex(name), zones.ttls().task);
        if name == zone.origin() && query.query_type() == RecordType::SOA {
            reply.answers.push(soa);
        } else {
            reply.authorities.push(soa);
        }
    }
    reply
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
