//! From the bytes of a query to those of its reply.

use std::net::SocketAddr;

use hickory_server::{
    net::xfer::Protocol,
    proto::{
        op::{Edns, Message, MessageType, OpCode, Query, ResponseCode},
        rr::{DNSClass, Name, RecordType},
    },
    server::Request,
};
use portolan_model::TaskState;
use proptest::prelude::*;

use super::{Action, answer};
use crate::{
    testing::{World, dnsrr, encoded, network_name, service},
    zone::{Rotation, Ttls, Zones},
};

const CLIENT: &str = "10.96.0.11";

fn query(name: &str, qtype: RecordType) -> Message {
    let mut query = Message::new(4711, MessageType::Query, OpCode::Query);
    query.metadata.recursion_desired = true;
    query.add_query(Query::query(Name::from_ascii(name).unwrap(), qtype));
    query
}

fn with_edns(mut query: Message, payload: u16) -> Message {
    let mut edns = Edns::new();
    edns.set_max_payload(payload);
    query.set_edns(edns);
    query
}

/// What is answered to these bytes: `None` if they are not ours to answer, or are no query at all.
fn act(
    world: &World,
    network: &str,
    client: &str,
    transport: Protocol,
    bytes: &[u8],
) -> Option<Vec<u8>> {
    let zones = Zones::new(&world.snapshot(), Ttls { task: 5, vip: 60 });
    let client = SocketAddr::new(client.parse().unwrap(), 5353);
    let request = Request::from_bytes(bytes.to_vec(), client, transport).ok()?;
    let (network, allow) = (network_name(network), ["203.0.113.0/24".parse().unwrap()]);
    let scope = zones.on(&network, client.ip(), &allow);
    match answer(scope.as_ref(), &Rotation::default(), &request) {
        Action::Reply(reply) => encoded(&request, reply),
        Action::Forward(_) => None,
    }
}

fn replied(bytes: Option<Vec<u8>>) -> Message {
    Message::from_vec(&bytes.expect("a reply")).unwrap()
}

fn ask(world: &World, query: &Message) -> Message {
    let bytes = query.to_vec().unwrap();
    replied(act(world, "prod", CLIENT, Protocol::Udp, &bytes))
}

fn code(message: &Message) -> ResponseCode {
    message.metadata.response_code
}

/// A dnsrr service of so many tasks.
fn crowd(tasks: u32) -> World {
    let mut world = World::default();
    world
        .node()
        .network("prod", "10.96.0.0/16", false)
        .service(dnsrr(service("crowd", &[("prod", None, &[])])));
    for slot in 1..=tasks {
        let ip = format!("10.96.{}.{}", 1 + slot / 250, 1 + slot % 250);
        world.task("crowd", slot, TaskState::Healthy, &[("prod", &ip)]);
    }
    world
}

#[test]
fn an_answer_of_ours_is_authoritative_and_repeats_the_question_as_spelt() {
    let reply = ask(&World::usual(), &query("wEb.", RecordType::A));
    assert_eq!(code(&reply), ResponseCode::NoError);
    assert_eq!(reply.metadata.id, 4711);
    assert!(reply.metadata.authoritative && reply.metadata.recursion_desired);
    assert!(reply.metadata.recursion_available && !reply.metadata.truncation);
    assert_eq!(reply.queries[0].name().to_ascii(), "wEb.");
    assert_eq!(reply.answers[0].name.to_ascii(), "wEb.");
    assert!(reply.edns.is_none(), "OPT only if asked");
}

#[test]
fn absence_says_by_soa_how_long_it_may_be_remembered() {
    let world = World::usual();
    let reply = ask(&world, &query("nosuch.", RecordType::A));
    assert_eq!(code(&reply), ResponseCode::NXDomain);
    assert_eq!(reply.authorities[0].record_type(), RecordType::SOA);
    assert_eq!(
        (
            reply.authorities[0].name.to_ascii(),
            reply.authorities[0].ttl
        ),
        (".".into(), 5)
    );
    let reply = ask(&world, &query("web.prod.", RecordType::AAAA));
    assert_eq!(code(&reply), ResponseCode::NoError);
    assert!(reply.answers.is_empty());
    assert_eq!(reply.authorities[0].name.to_ascii(), "prod.");
    let reply = ask(&world, &query("prod.", RecordType::SOA));
    assert_eq!(reply.answers[0].record_type(), RecordType::SOA);
}

#[test]
fn before_the_snapshot_is_synced_absence_is_servfail() {
    let mut world = World::usual();
    let reply = ask(world.unsynced(), &query("nosuch.", RecordType::A));
    assert_eq!(code(&reply), ResponseCode::ServFail);
    assert!(!reply.metadata.authoritative && reply.authorities.is_empty());
}

#[test]
fn only_the_network_this_node_and_those_allowed_are_answered() {
    let bytes = query("web.", RecordType::A).to_vec().unwrap();
    let world = World::usual();
    let code_for = |client| code(&replied(act(&world, "prod", client, Protocol::Udp, &bytes)));
    for client in ["10.96.0.77", "10.96.0.1", "192.0.2.1", "203.0.113.9"] {
        assert_eq!(code_for(client), ResponseCode::NoError, "{client}");
    }
    for client in ["10.97.0.1", "127.0.0.1", "192.0.2.2", "2001:db8::1"] {
        assert_eq!(code_for(client), ResponseCode::Refused, "{client}");
    }
    let gone = act(&world, "gone", CLIENT, Protocol::Udp, &bytes);
    assert_eq!(code(&replied(gone)), ResponseCode::Refused);
}

#[test]
fn what_is_not_ours_is_forwarded() {
    let bytes = query("www.example.com.", RecordType::A).to_vec().unwrap();
    let action = act(&World::usual(), "prod", CLIENT, Protocol::Udp, &bytes);
    assert_eq!(action, None);
}

#[test]
fn nothing_is_forwarded_from_an_internal_network() {
    let mut world = World::usual();
    world
        .network("vault", "10.97.0.0/24", true)
        .service(service("app", &[("prod", None, &[]), ("vault", None, &[])]))
        .task(
            "app",
            1,
            TaskState::Healthy,
            &[("prod", "10.96.0.51"), ("vault", "10.97.0.51")],
        );
    let bytes = query("www.example.com.", RecordType::A).to_vec().unwrap();
    let from = |client| replied(act(&world, "vault", client, Protocol::Udp, &bytes));
    let only_there = from("10.97.0.9");
    assert_eq!(code(&only_there), ResponseCode::NXDomain);
    assert!(!only_there.metadata.recursion_available);
    assert_eq!(
        code(&from("10.97.0.51")),
        ResponseCode::Refused,
        "prod's server can tell"
    );
}

#[test]
fn other_classes_transfers_and_meta_types_are_refused() {
    let world = World::usual();
    for qtype in [
        RecordType::AXFR,
        RecordType::IXFR,
        RecordType::OPT,
        RecordType::Unknown(249),
    ] {
        assert_eq!(
            code(&ask(&world, &query("web.", qtype))),
            ResponseCode::Refused,
            "{qtype}"
        );
    }
    let mut chaos = query("version.bind.", RecordType::TXT);
    chaos.queries[0].set_query_class(DNSClass::CH);
    assert_eq!(code(&ask(&world, &chaos)), ResponseCode::Refused);
}

#[test]
fn a_query_asks_one_question() {
    let world = World::usual();
    let act = |bytes: &[u8]| act(&world, "prod", CLIENT, Protocol::Udp, bytes);
    let good = query("web.", RecordType::A).to_vec().unwrap();
    let mut none = good[..12].to_vec();
    none[5] = 0;
    let mut two = good.clone();
    two.extend_from_within(12..);
    two[5] = 2;
    for wrong in [none, two] {
        let reply = replied(act(&wrong));
        let id = reply.metadata.id;
        assert_eq!(
            (code(&reply), id),
            (ResponseCode::FormErr, 4711),
            "{wrong:x?}"
        );
    }
    let mut many = good.clone();
    for _ in 1..100 {
        many.extend_from_within(12..good.len());
    }
    many[5] = 100;
    assert_eq!(act(&many), None, "too long to repeat");
}

#[test]
fn other_opcodes_are_not_implemented() {
    let world = World::usual();
    for op_code in [1, 2, 4, 5, 6, 15] {
        let mut bytes = query("web.", RecordType::A).to_vec().unwrap();
        bytes[2] = (bytes[2] & 0x87) | (op_code << 3);
        let reply = replied(act(&world, "prod", CLIENT, Protocol::Udp, &bytes));
        assert_eq!(code(&reply), ResponseCode::NotImp, "opcode {op_code}");
    }
}

#[test]
fn opt_is_answered_by_opt_and_a_version_to_come_by_badvers() {
    let world = World::usual();
    let reply = ask(&world, &with_edns(query("web.", RecordType::A), 4096));
    let edns = reply.edns.unwrap();
    assert_eq!((edns.max_payload(), edns.version()), (1232, 0));
    assert_eq!(reply.answers.len(), 1);

    let mut later = with_edns(query("web.", RecordType::A), 1232);
    later.edns.as_mut().unwrap().set_version(1);
    let reply = ask(&world, &later);
    assert_eq!(u16::from(code(&reply)), u16::from(ResponseCode::BADVERS));
    assert_eq!(reply.edns.unwrap().version(), 0);
    assert!(reply.answers.is_empty());
}

#[test]
fn udp_answers_are_cut_to_what_the_client_takes_and_tcp_ones_are_whole() {
    let world = crowd(200);
    let plain = query("crowd.", RecordType::A);
    for (query, limit) in [
        (plain.clone(), 512),
        (with_edns(plain.clone(), 100), 512),
        (with_edns(plain.clone(), 800), 800),
        (with_edns(plain.clone(), 65_535), 1232),
    ] {
        let bytes = query.to_vec().unwrap();
        let bytes = act(&world, "prod", CLIENT, Protocol::Udp, &bytes).unwrap();
        let length = bytes.len();
        assert!(length <= limit, "{length} of {limit}");
        assert!(length + 16 > limit, "as much as fits: {length}");
        let message = Message::from_vec(&bytes).unwrap();
        assert!(message.metadata.truncation);
        assert_eq!(message.edns.is_some(), query.edns.is_some());
    }
    let bytes = plain.to_vec().unwrap();
    let whole = replied(act(&world, "prod", CLIENT, Protocol::Tcp, &bytes));
    assert!(!whole.metadata.truncation);
    assert_eq!(whole.answers.len(), 200);
}

#[test]
fn additional_records_go_before_answers_and_without_notice() {
    let query = query("_80._tcp.crowd.", RecordType::SRV);
    let reply = ask(&crowd(10), &query);
    assert_eq!(reply.answers.len(), 10);
    assert!(reply.additionals.len() < 10);
    assert!(!reply.metadata.truncation);
    let reply = ask(&crowd(10), &with_edns(query, 1232));
    assert_eq!((reply.answers.len(), reply.additionals.len()), (10, 10));
}

#[test]
fn more_answers_than_a_message_takes_are_cut_over_tcp_too() {
    let bytes = query("crowd.", RecordType::A).to_vec().unwrap();
    let world = crowd(5000);
    let reply = replied(act(&world, "prod", CLIENT, Protocol::Tcp, &bytes));
    assert!(reply.metadata.truncation);
    assert!(reply.answers.len() > 3000, "{}", reply.answers.len());
}

#[cfg(feature = "fuzzing")]
mod fuzzed {
    use super::*;

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            crate::fuzz_query(&bytes);
        }
    }
}

/// A query of ours with some of its bytes changed, and cut or continued.
fn damaged() -> impl Strategy<Value = Vec<u8>> {
    let names = [
        "web.",
        "tasks.web.prod.",
        "_80._tcp.web.",
        "12.0.96.10.in-addr.arpa.",
        "www.example.com.",
    ];
    let qtypes = [
        RecordType::A,
        RecordType::SRV,
        RecordType::PTR,
        RecordType::ANY,
        RecordType::OPT,
    ];
    let changes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6);
    let tail = prop::collection::vec(any::<u8>(), 0..40);
    (
        prop::sample::select(names.to_vec()),
        prop::sample::select(qtypes.to_vec()),
        any::<bool>(),
        changes,
        tail,
        any::<prop::sample::Index>(),
    )
        .prop_map(|(name, qtype, edns, changes, tail, cut)| {
            let plain = query(name, qtype);
            let query = if edns { with_edns(plain, 1232) } else { plain };
            let mut bytes = query.to_vec().unwrap();
            for (at, byte) in changes {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            if tail.len() > 20 {
                bytes.truncate(cut.index(bytes.len()));
            } else {
                bytes.extend(tail);
            }
            bytes
        })
}

proptest! {
    #[test]
    fn any_reply_is_a_response_with_the_id_that_fits_the_client(
        bytes in prop_oneof![damaged(), prop::collection::vec(any::<u8>(), 0..100)],
    ) {
        let world = World::usual();
        for transport in [Protocol::Udp, Protocol::Tcp] {
            if let Some(reply) = act(&world, "prod", CLIENT, transport, &bytes) {
                let message = Message::from_vec(&reply).unwrap();
                prop_assert_eq!(message.metadata.message_type, MessageType::Response);
                prop_assert_eq!(&reply[..2], &bytes[..2]);
                prop_assert!(transport == Protocol::Tcp || reply.len() <= 1232);
            }
        }
    }
}
