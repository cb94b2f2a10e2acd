//! TCP streams: one task each, which owns the socket and talks to the driver's loop by messages.

mod cipher;

use std::{collections::BTreeMap, io, net::SocketAddr, time::Duration};

use bytes::Bytes;
use tokio::{
    net::TcpStream,
    sync::mpsc,
    task::JoinSet,
    time::{Instant, timeout_at},
};

use crate::{core::StreamId, keyring::KeyId, seal::Secrets};
use cipher::Sealed;

/// Streams accepted at one time.
const MAX_ACCEPTED: usize = 64;
/// Events that wait for the loop before streams wait for it.
const EVENTS: usize = 256;

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum StreamError {
    #[error("its key {0} is not in this node's ring")]
    UnknownKey(KeyId),
    #[error("this node's key {0} is not in its ring")]
    OurKey(KeyId),
    #[error("its messages are damaged, forged, or of another cluster")]
    Decrypt,
    #[error("it speaks version {0} of the protocol")]
    Version(u8),
    #[error("its message is too long")]
    TooLong,
    #[error("it took too long")]
    Timeout,
    #[error("it ended before the answer")]
    Closed,
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// What happened on a stream.
#[derive(Debug)]
pub(super) enum Event {
    Message {
        stream: StreamId,
        bytes: Bytes,
    },
    /// Bytes that went over the wire.
    Moved {
        received: u64,
        sent: u64,
    },
    Failed {
        stream: StreamId,
        peer: SocketAddr,
        error: StreamError,
    },
}

enum Order {
    Send(Bytes),
    Close,
}

/// All streams of a node.
pub(super) struct Streams {
    patience: Duration,
    tasks: JoinSet<StreamId>,
    orders: BTreeMap<StreamId, mpsc::UnboundedSender<Order>>,
    accepted: u64,
    sender: mpsc::Sender<Event>,
    events: mpsc::Receiver<Event>,
}

impl Streams {
    pub(super) fn new(patience: Duration) -> Self {
        let (sender, events) = mpsc::channel(EVENTS);
        Self {
            patience,
            tasks: JoinSet::new(),
            orders: BTreeMap::new(),
            accepted: 0,
            sender,
            events,
        }
    }

    pub(super) fn have_room(&self) -> bool {
        let accepted = self.orders.keys();
        let accepted = accepted.filter(|stream| matches!(stream, StreamId::In(_)));
        accepted.count() < MAX_ACCEPTED
    }

    /// The next thing that happens. Safe to drop and call again.
    pub(super) async fn next(&mut self) -> Event {
        loop {
            tokio::select! {
                biased;
                Some(event) = self.events.recv() => return event,
                Some(ended) = self.tasks.join_next() => {
                    if let Ok(stream) = ended {
                        self.orders.remove(&stream);
                    }
                }
                else => std::future::pending().await,
            }
        }
    }

    pub(super) fn open(&mut self, id: u64, to: SocketAddr, first: Bytes, secrets: Secrets) {
        let stream = StreamId::Out(id);
        self.spawn(stream, to, async move {
            let socket = TcpStream::connect(to).await?;
            let mut sealed = Sealed::connect(socket, &secrets).await?;
            sealed.write(&first).await?;
            Ok(sealed)
        });
    }

    pub(super) fn accept(&mut self, socket: TcpStream, from: SocketAddr, secrets: Secrets) {
        self.accepted += 1;
        let stream = StreamId::In(self.accepted);
        self.spawn(stream, from, async move {
            Sealed::accept(socket, &secrets).await
        });
    }

    pub(super) fn send(&self, stream: StreamId, bytes: Bytes) {
        self.order(stream, Order::Send(bytes));
    }

    pub(super) fn close(&self, stream: StreamId) {
        self.order(stream, Order::Close);
    }

    fn order(&self, stream: StreamId, order: Order) {
        if let Some(orders) = self.orders.get(&stream) {
            // A stream that has just ended reports so itself.
            let _ = orders.send(order);
        }
    }

    fn spawn(
        &mut self,
        stream: StreamId,
        peer: SocketAddr,
        setup: impl Future<Output = Result<Sealed, StreamError>> + Send + 'static,
    ) {
        let (orders, mut ordered) = mpsc::unbounded_channel();
        self.orders.insert(stream, orders);
        let events = self.sender.clone();
        let deadline = Instant::now() + self.patience;
        self.tasks.spawn(async move {
            let talk = async {
                let mut sealed = setup.await?;
                let result = converse(stream, &mut sealed, &mut ordered, &events).await;
                let (received, sent) = sealed.moved();
                let _ = events.send(Event::Moved { received, sent }).await;
                result
            };
            let result = timeout_at(deadline, talk).await;
            if let Err(error) = result.unwrap_or(Err(StreamError::Timeout)) {
                // The loop has ended: nobody is left to tell.
                let _ = events
                    .send(Event::Failed {
                        stream,
                        peer,
                        error,
                    })
                    .await;
            }
            stream
        });
    }
}

/// Passes messages in both directions until the loop closes the stream.
async fn converse(
    stream: StreamId,
    sealed: &mut Sealed,
    orders: &mut mpsc::UnboundedReceiver<Order>,
    events: &mpsc::Sender<Event>,
) -> Result<(), StreamError> {
    loop {
        // The sides take turns, so reading and writing never wait for each other.
        let bytes = tokio::select! {
            biased;
            order = orders.recv() => match order {
                Some(Order::Send(bytes)) => {
                    sealed.write(&bytes).await?;
                    continue;
                }
                Some(Order::Close) | None => return sealed.finish().await,
            },
            bytes = sealed.read() => bytes?,
        };
        let event = Event::Message { stream, bytes };
        if events.send(event).await.is_err() {
            return Ok(());
        }
        match orders.recv().await {
            Some(Order::Send(bytes)) => sealed.write(&bytes).await?,
            Some(Order::Close) | None => return sealed.finish().await,
        }
    }
}
