//! What fuzz targets call.

use std::{net::IpAddr, sync::LazyLock};

use hickory_proto::op::Message;
use portolan_model::NetworkName;

use crate::{
    answer::{Action, Asker, answer},
    message::{Transport, UDP_PAYLOAD},
    testing::{World, network_name},
    zone::{Rotation, Ttls, Zones},
};

/// The same world before and after all sources have reported.
static WORLDS: LazyLock<[Zones; 2]> = LazyLock::new(|| {
    let mut world = World::usual();
    world.network("vault", "10.97.0.0/24", true);
    let synced = world.snapshot();
    [synced, world.unsynced().snapshot()].map(|s| Zones::new(&s, Ttls { task: 5, vip: 60 }))
});
static ROTATION: LazyLock<Rotation> = LazyLock::new(Rotation::default);

/// Answers these bytes as the server does, over UDP and TCP, on a network, on an internal one and to a
/// client that is on neither.
///
/// # Panics
/// A reply that cannot be decoded, or is longer than its client takes.
pub fn fuzz_query(bytes: &[u8]) {
    let networks: [NetworkName; 2] = ["prod", "vault"].map(network_name);
    let clients: [IpAddr; 3] =
        [[10, 96, 0, 11], [10, 97, 0, 11], [192, 0, 2, 200]].map(IpAddr::from);
    for zones in WORLDS.iter() {
        for network in &networks {
            for address in clients {
                for transport in [Transport::Udp, Transport::Tcp] {
                    let asker = Asker {
                        network,
                        address,
                        transport,
                        allow: &[],
                    };
                    check(&answer(zones, asker, &ROTATION, bytes), transport);
                }
            }
        }
    }
}

fn check(action: &Action, transport: Transport) {
    let Action::Reply(reply) = action else { return };
    assert!(
        Message::from_vec(&reply.bytes).is_ok(),
        "{:x?}",
        reply.bytes
    );
    let limit = match transport {
        Transport::Udp => usize::from(UDP_PAYLOAD),
        Transport::Tcp => usize::from(u16::MAX),
    };
    assert!(reply.bytes.len() <= limit, "{} bytes", reply.bytes.len());
}
