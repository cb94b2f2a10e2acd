//! UDP: a flow per client, which stays at its backend while that answers.

pub(crate) mod datagram;
mod flow;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use dashmap::DashMap;
use tokio::{io::Interest, net::UdpSocket, task::coop::consume_budget};

use crate::{
    engine::Engine,
    served::{Refusal, Served},
};
use datagram::Received;
use flow::{Replies, UdpFlow};

/// The wait after an error of a listening socket, which is none of a datagram's.
const ERROR_WAIT: Duration = Duration::from_millis(50);

/// Who asked, and where.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
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
        let mut buffer = engine.buffers.take();
        loop {
            let received = inlet.try_io(Interest::READABLE, || {
                datagram::receive(&inlet, &mut buffer)
            });
            let Ok(received) = received else { break };
            let payload = buffer.get(..received.length).unwrap_or_default();
            forward(&engine, &table, &inlet, &received, payload, &served);
            consume_budget().await;
        }
    }
}

fn forward(
    engine: &Arc<Engine>,
    table: &Arc<Table>,
    inlet: &Arc<UdpSocket>,
    received: &Received,
    payload: &[u8],
    served: impl Fn(&Received) -> Option<Arc<Served>>,
) {
    let Some(asked) = received.asked else { return };
    let key = Key {
        client: received.client,
        asked,
    };
    // The guard is held while the datagram is sent, so that the flow cannot end in between.
    if table.get(&key).is_some_and(|flow| flow.forward(payload)) {
        return;
    }
    let Some(served) = served(received) else {
        return;
    };
    if let Err(why) = begin(engine, table, inlet, received, key, &served, payload) {
        served.refuse(why);
    }
}

fn begin(
    engine: &Arc<Engine>,
    table: &Arc<Table>,
    inlet: &Arc<UdpSocket>,
    received: &Received,
    key: Key,
    served: &Arc<Served>,
    payload: &[u8],
) -> Result<(), Refusal> {
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
    flow.begin(payload)?;
    table.insert(key, Arc::clone(&flow));
    let table = Arc::clone(table);
    let life = async move {
        flow.run(&table, key).await;
        drop(permit);
    };
    served.tasks.spawn_on(life, &engine.runtime);
    Ok(())
}
