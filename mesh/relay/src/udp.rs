//! UDP: a flow per client, which stays at its backend while that answers.

pub(crate) mod datagram;
mod flow;

use std::{net::SocketAddr, ops::Range, sync::Arc, time::Duration};

use dashmap::DashMap;
use tokio::{io::Interest, net::UdpSocket, task::coop::consume_budget};

use crate::{
    engine::Engine,
    pool::BUFFER,
    served::{Refusal, Served},
};
use datagram::Received;
use flow::{Replies, UdpFlow};

/// The wait after an error of a listening socket, which is none of a datagram's.
const ERROR_WAIT: Duration = Duration::from_millis(50);
/// How many datagrams are taken from a listening socket before they are passed on.
const BURST: usize = 64;

/// Who asked, and where.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Key {
    client: SocketAddr,
    asked: SocketAddr,
}

type Table = DashMap<Key, Arc<UdpFlow>>;

/// Receives datagrams until the frontend closes. `served` finds the frontend of one that begins a flow.
pub(crate) async fn receive(
    engine: Arc<Engine>,
    inlet: UdpSocket,
    served: impl Fn(&Received) -> Option<Arc<Served>>,
) {
    let inlet = Arc::new(inlet);
    let table: Arc<Table> = Arc::default();
    loop {
        if inlet.readable().await.is_err() {
            tokio::time::sleep(ERROR_WAIT).await;
            continue;
        }
        let mut buffer = engine.bursts.take();
        loop {
            let burst = take(&inlet, &mut buffer);
            if burst.is_empty() {
                break;
            }
            for datagrams in burst.chunk_by(|a, b| a.key == b.key) {
                forward(&engine, &table, &inlet, datagrams, &buffer, &served);
            }
            consume_budget().await;
        }
    }
}

/// A datagram in the buffer of its burst.
struct Datagram {
    key: Key,
    received: Received,
    payload: Range<usize>,
}

/// Takes the datagrams that wait, as far as they fit, and puts those of a flow together in the order in which
/// they came.
fn take(inlet: &UdpSocket, buffer: &mut [u8]) -> Vec<Datagram> {
    let mut burst = Vec::new();
    let mut begin = 0;
    // A datagram for which there is no room would be cut.
    while burst.len() < BURST && begin + BUFFER <= buffer.len() {
        let room = buffer.get_mut(begin..).unwrap_or_default();
        let received = inlet.try_io(Interest::READABLE, || datagram::receive(inlet, room));
        let Ok(received) = received else { break };
        let payload = begin..begin + received.length;
        begin = payload.end;
        if let Some(asked) = received.asked {
            burst.push(Datagram {
                key: Key {
                    client: received.client,
                    asked,
                },
                received,
                payload,
            });
        }
    }
    burst.sort_by_key(|datagram| datagram.key);
    burst
}

/// Passes on datagrams of one flow.
fn forward(
    engine: &Arc<Engine>,
    table: &Arc<Table>,
    inlet: &Arc<UdpSocket>,
    datagrams: &[Datagram],
    buffer: &[u8],
    served: impl Fn(&Received) -> Option<Arc<Served>>,
) {
    let Some(first) = datagrams.first() else {
        return;
    };
    let payload = |datagram: &Datagram| buffer.get(datagram.payload.clone()).unwrap_or_default();
    let payloads: Vec<&[u8]> = datagrams.iter().map(payload).collect();
    // The guard is held while they are sent, so that the flow cannot end in between.
    let flow = table.get(&first.key);
    if flow.is_some_and(|flow| flow.forward(&payloads)) {
        return;
    }
    let Some(served) = served(&first.received) else {
        return;
    };
    let begun = begin(engine, table, inlet, first, &served, &payloads);
    if let Err(why) = begun {
        served.refuse(why);
    }
}

fn begin(
    engine: &Arc<Engine>,
    table: &Arc<Table>,
    inlet: &Arc<UdpSocket>,
    first: &Datagram,
    served: &Arc<Served>,
    payloads: &[&[u8]],
) -> Result<(), Refusal> {
    let Datagram { key, received, .. } = first;
    let key = *key;
    if !served.allows(key.client.ip()) {
        return Err(Refusal::NotAllowed);
    }
    let permit = Arc::clone(&engine.udp_flows)
        .try_acquire_owned()
        .map_err(|_| Refusal::Limit)?;
    // A transparent socket tells the port too; its replies need a socket of that very address.
    let (asked, replies) = if key.asked.port() == 0 {
        let asked = SocketAddr::new(key.asked.ip(), served.frontend.port);
        let replies = Replies::Inlet {
            inlet: Arc::clone(inlet),
            interface: received.interface,
        };
        (asked, replies)
    } else {
        let socket = flow::reply_socket(key.asked).map_err(|_| Refusal::Limit)?;
        (key.asked, Replies::Own(socket))
    };
    let flow = Arc::new(UdpFlow::new(
        Arc::clone(engine),
        Arc::clone(served),
        key.client,
        asked,
        replies,
    ));
    flow.begin(payloads)?;
    table.insert(key, Arc::clone(&flow));
    let table = Arc::clone(table);
    let life = async move {
        flow.run(&table, key).await;
        drop(permit);
    };
    served.tasks.spawn_on(life, &engine.runtime);
    Ok(())
}
