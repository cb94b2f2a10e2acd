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

use crate::{
    reply::Reply,
    zone::{Found, Others, Rotation, Scope},
};

/// What is to be done with a query.
#[derive(Debug)]
pub(crate) enum Action<'a> {
    /// Send this.
    Reply(Reply),
    /// Ask an upstream this.
    Forward(&'a Query),
}

/// Decides about a query of a client that gets the names of a scope; one that has none is refused.
pub(crate) fn answer<'a>(
    scope: Option<&Scope<'_>>,
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
    let Some(scope) = scope.filter(|_| !is_refused(query)) else {
        return reply(ResponseCode::Refused);
    };
    if request.version() > 0 {
        return reply(ResponseCode::BADVERS);
    }
    let found = scope.lookup(query.name(), query.query_type(), rotation);
    match (found, scope.others) {
        (Found::Foreign, Others::Forward) => Action::Forward(query),
        (Found::Foreign, Others::Refuse) => reply(ResponseCode::Refused),
        (found, _) => Action::Reply(found_reply(scope, request, query, found)),
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

fn found_reply(scope: &Scope<'_>, request: &Request, query: &Query, found: Found) -> Reply {
    let code = match &found {
        Found::Records { .. } => ResponseCode::NoError,
        Found::NoName | Found::Foreign => ResponseCode::NXDomain,
        Found::NotKnownYet => ResponseCode::ServFail,
    };
    let mut reply = Reply::new(request, code);
    reply.metadata.recursion_available = scope.others == Others::Forward;
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
        let soa = soa(scope, scope.apex(name));
        if *name == scope.origin() && query.query_type() == RecordType::SOA {
            reply.answers.push(soa);
        } else {
            reply.authorities.push(soa);
        }
    }
    reply
}

/// The record by which clients know how long to remember that there is nothing (RFC 2308, section 5).
/// Its serial is constant: nobody transfers these zones.
fn soa(scope: &Scope<'_>, apex: Name) -> Record {
    let (origin, ttl) = (scope.origin(), scope.negative_ttl());
    let under = |label: &str| {
        let name = origin.prepend_label(label);
        name.unwrap_or_else(|_| origin.clone())
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
    Record::from_rdata(apex, ttl, RData::SOA(data))
}
