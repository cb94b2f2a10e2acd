use bytes::Bytes;
use foca::{Header, Member, Message as Foca, State};
use portolan_model::NodeId;
use proptest::{collection::vec, option, prelude::*};

use super::{
    DecodeError, datagram, get_varint,
    members::{Membership, Update},
    put_varint,
    records::{Change, Digest, MAX_KEY, MAX_VALUE, Part},
    stream::{BUCKETS, Message},
};
use crate::identity::Identity;

fn node() -> impl Strategy<Value = NodeId> {
    any::<[u8; 16]>().prop_map(NodeId::from_bytes)
}

fn identity() -> impl Strategy<Value = Identity> {
    (node(), any::<std::net::IpAddr>(), any::<(u16, u64, u32)>()).prop_map(
        |(node, ip, (port, boot, bump))| Identity {
            node,
            addr: (ip, port).into(),
            boot,
            bump,
        },
    )
}

fn update() -> impl Strategy<Value = Update> {
    let state = prop_oneof![Just(State::Alive), Just(State::Suspect), Just(State::Down)];
    (identity(), any::<u16>(), state).prop_map(|(id, inc, state)| Member::new(id, inc, state))
}

fn membership() -> impl Strategy<Value = Membership> {
    let message = (identity(), any::<u8>(), 0..10u8).prop_map(|(id, number, kind)| match kind {
        0 => Foca::Ping(number),
        1 => Foca::Ack(number),
        2 => Foca::PingReq {
            target: id,
            probe_number: number,
        },
        3 => Foca::IndirectPing {
            origin: id,
            probe_number: number,
        },
        4 => Foca::IndirectAck {
            target: id,
            probe_number: number,
        },
        5 => Foca::ForwardedAck {
            origin: id,
            probe_number: number,
        },
        6 => Foca::Announce,
        7 => Foca::Feed,
        8 => Foca::Gossip,
        _ => Foca::TurnUndead,
    });
    (
        identity(),
        any::<u16>(),
        identity(),
        message,
        vec(update(), 0..8),
    )
        .prop_map(|(src, src_incarnation, dst, message, updates)| Membership {
            updates: if message == Foca::Announce {
                Vec::new()
            } else {
                updates
            },
            header: Header {
                src,
                src_incarnation,
                dst,
                message,
            },
        })
}

fn bytes(most: usize) -> impl Strategy<Value = Bytes> {
    vec(any::<u8>(), 0..=most).prop_map(Bytes::from)
}

fn changes() -> impl Strategy<Value = Vec<Change>> {
    let step = (
        1..1000u64,
        any::<u64>(),
        bytes(MAX_KEY),
        option::of(bytes(MAX_VALUE)),
    );
    vec(step, 1..5).prop_map(|steps| {
        let mut seq = 0;
        let change = |(step, prev, key, value): (u64, u64, Bytes, Option<Bytes>)| {
            seq += step;
            Change {
                seq,
                prev: prev % seq,
                key,
                value,
            }
        };
        steps.into_iter().map(change).collect()
    })
}

fn part() -> impl Strategy<Value = Part> {
    (node(), any::<[u64; 3]>(), changes()).prop_map(|(owner, [boot, contig, floor], changes)| {
        Part {
            owner,
            boot,
            base: 0,
            contig,
            floor,
            changes,
        }
    })
}

fn digest() -> impl Strategy<Value = Digest> {
    (node(), any::<[u64; 3]>()).prop_map(|(owner, [boot, contig, content])| Digest {
        owner,
        boot,
        contig,
        content,
    })
}

fn message() -> impl Strategy<Value = Message> {
    prop_oneof![
        bytes(100).prop_map(Message::Datagram),
        (identity(), any::<bool>(), any::<u64>()).prop_map(|(from, full, bucket)| {
            Message::Open {
                from,
                full,
                buckets: Box::new([bucket; BUCKETS]),
            }
        }),
        (
            identity(),
            option::of((identity(), any::<bool>())),
            any::<u64>(),
            vec(digest(), 0..5),
            vec(update(), 0..5)
        )
            .prop_map(
                |(from, known, differing, digests, members)| Message::Digest {
                    from,
                    known,
                    differing,
                    digests,
                    members
                }
            ),
        (vec(digest(), 0..5), vec(update(), 0..5), vec(part(), 0..3)).prop_map(
            |(digests, members, parts)| Message::Exchange {
                digests,
                members,
                parts
            }
        ),
        vec(part(), 0..3).prop_map(Message::Parts),
        Just(Message::Busy),
    ]
}

proptest! {
    #[test]
    fn no_bytes_panic(noise in vec(any::<u8>(), 0..200), kind in 0..8u8) {
        let mut bytes = vec![kind];
        bytes.extend(noise);
        let bytes = Bytes::from(bytes);
        let _ = datagram::decode(bytes.clone());
        let _ = Message::decode(bytes);
    }

    #[test]
    fn a_damaged_message_does_not_panic(message in message(), at in any::<usize>(), byte in any::<u8>()) {
        let mut bytes = message.encode().to_vec();
        let index = at % bytes.len();
        bytes[index] = byte;
        let _ = Message::decode(bytes.into());
    }

    #[test]
    fn membership_survives_the_wire(packet in membership()) {
        let bytes = packet.encode();
        prop_assert_eq!(Membership::decode(&bytes[..]), Ok(packet));
    }

    #[test]
    fn stream_messages_survive_the_wire(message in message()) {
        prop_assert_eq!(Message::decode(message.encode()), Ok(message));
    }

    #[test]
    fn a_message_cut_short_or_too_long_is_refused(message in message(), cut in any::<usize>()) {
        prop_assume!(!matches!(message, Message::Datagram(_)));
        let bytes = message.encode();
        prop_assert!(Message::decode(bytes.slice(..cut % bytes.len())).is_err());
        let longer = [&bytes[..], &[0]].concat();
        prop_assert!(Message::decode(longer.into()).is_err());
    }

    #[test]
    fn deltas_survive_the_wire(owner in node(), boot in any::<u64>(), changes in changes()) {
        let header = datagram::Header { boot, table: 1, members: 2, quiet: 3 };
        let bytes = datagram::deltas(header, [(owner, boot, &changes[..])]);
        let (decoded, body) = datagram::decode(bytes).unwrap();
        prop_assert_eq!(decoded, header);
        let datagram::Body::Deltas(deltas) = body else { panic!("deltas") };
        let decoded: Vec<Change> = deltas.into_iter().map(|delta| delta.change).collect();
        prop_assert_eq!(decoded, changes);
    }

    #[test]
    fn numbers_have_one_encoding(value in any::<u64>()) {
        let mut bytes = Vec::new();
        put_varint(&mut bytes, value);
        prop_assert_eq!(get_varint(&mut &bytes[..]), Ok(value));
        *bytes.last_mut().unwrap() |= 0x80;
        bytes.push(0);
        prop_assert!(get_varint(&mut &bytes[..]).is_err());
    }
}

#[test]
fn the_shortest_change_survives_the_wire() {
    let change = Change {
        seq: 1,
        prev: 0,
        key: Bytes::new(),
        value: None,
    };
    let header = datagram::Header {
        boot: 1,
        table: 1,
        members: 1,
        quiet: 0,
    };
    let owner = NodeId::of_name("a");
    let bytes = datagram::deltas(header, [(owner, 1, &[change.clone()][..])]);
    let Ok((_, datagram::Body::Deltas(deltas))) = datagram::decode(bytes) else {
        panic!("deltas");
    };
    assert_eq!(deltas[0].change, change);
}

#[test]
fn a_count_cannot_make_us_allocate() {
    let mut bytes = vec![5];
    put_varint(&mut bytes, u64::from(u32::MAX));
    let refused = Message::decode(bytes.into());
    assert_eq!(refused, Err(DecodeError::TooLong { what: "parts" }));
}

#[test]
fn the_longest_record_fits_a_datagram() {
    let change = Change {
        seq: u64::MAX,
        prev: 0,
        key: vec![1; MAX_KEY].into(),
        value: Some(vec![1; MAX_VALUE].into()),
    };
    let room = datagram::MAX_BODY - datagram::HEAD;
    assert!(super::records::GROUP_HEAD + super::records::change_size(&change) <= room);
    let header = datagram::Header {
        boot: 1,
        table: 1,
        members: 1,
        quiet: 0,
    };
    let owner = NodeId::of_name("a");
    let bytes = datagram::deltas(header, [(owner, 1, &[change][..])]);
    assert!(bytes.len() <= datagram::MAX_BODY);
}
