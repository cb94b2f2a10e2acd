//! What fuzz targets call.

use std::{net::SocketAddr, sync::LazyLock};

use hickory_server::{
    net::xfer::Protocol,
    proto::op::{Message, MessageType},
    server::Request,
};

use crate::{
    Askers,
    answer::{Action, answer},
    reply::UDP_PAYLOAD,
    testing::{World, encoded, network_name},
    zone::{Rotation, Scope, Ttls, Zones},
};

/// The same world before and after all sources have reported.
static WORLDS: LazyLock<[Zones; 2]> = LazyLock::new(|| {
    let mut world = World::usual();
    world.network("vault", "10.97.0.0/24", true);
    let synced = world.snapshot();
    [synced, world.unsynced().snapshot()].map(|s| Zones::new(&s, Ttls { task: 5, vip: 60 }))
});
static ROTATION: LazyLock<Rotation> = LazyLock::new(Rotation::default);

/// Answers these bytes as the server does, over UDP and TCP, on a network, on an internal one, at the node's own
/// address, and to a client that is on neither network.
///
/// # Panics
/// A reply that cannot be decoded, or is longer than its client takes.
pub fn fuzz_query(bytes: &[u8]) {
    let networks = ["prod", "vault"].map(network_name);
    let askers = Askers::default();
    let clients: [SocketAddr; 3] =
        [[10, 96, 0, 11], [10, 97, 0, 11], [192, 0, 2, 200]].map(|ip| (ip, 5353).into());
    for client in clients {
        for transport in [Protocol::Udp, Protocol::Tcp] {
            let Ok(request) = Request::from_bytes(bytes.to_vec(), client, transport) else {
                return;
            };
            if request.metadata.message_type == MessageType::Response {
                return;
            }
            for zones in WORLDS.iter() {
                let mut scopes: Vec<Option<Scope<'_>>> = networks
                    .iter()
                    .map(|network| zones.on(network, client.ip(), &[]))
                    .collect();
                scopes.push(zones.at_node(&askers, client.ip(), &[]));
                for scope in &scopes {
                    check(&request, answer(scope.as_ref(), &ROTATION, &request));
                }
            }
        }
    }
}

fn check(request: &Request, action: Action<'_>) {
    let Action::Reply(reply) = action else { return };
    let Some(bytes) = encoded(request, reply) else {
        return;
    };
    assert!(Message::from_vec(&bytes).is_ok(), "{bytes:x?}");
    let limit = match request.protocol() {
        Protocol::Udp => usize::from(UDP_PAYLOAD),
        _ => usize::from(u16::MAX),
    };
    assert!(bytes.len() <= limit, "{} bytes", bytes.len());
}
