//! One client's flow: its socket to the backend, and its move to the next one.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use portolan_model::{Protocol, TaskId};
use rustix::{
    io::Errno,
    net::{RecvFlags, SendFlags, recv, send},
};
use socket2::{Domain, Socket, Type};
use tokio::{
    io::Interest, net::UdpSocket, sync::Notify, task::coop::consume_budget, time::sleep_until,
};

use super::{Key, Table, datagram};
use crate::{
    candidates::Candidates,
    engine::Engine,
    flows::{Direction, OpenFlow},
    passed_over::Fault,
    proxy_protocol,
    served::{Live, Refusal, Reserved, Route, Served, lock},
    sources,
    vips::nft,
};

/// How replies reach the client.
pub(super) enum Replies {
    /// Through the socket that the client asked, with the address set on each.
    Inlet {
        inlet: Arc<UdpSocket>,
        interface: u32,
    },
    /// From a socket bound to what the client asked.
    Own(Socket),
}

/// A flow.
pub(super) struct UdpFlow {
    engine: Arc<Engine>,
    served: Arc<Served>,
    client: SocketAddr,
    asked: SocketAddr,
    replies: Replies,
    last_ms: AtomicU64,
    place: Mutex<Place>,
    /// Told when the place changes.
    moved: Notify,
}

/// Where a flow is.
struct Place {
    /// `None` before it begins, and when there is no backend left.
    upstream: Option<Arc<Upstream>>,
    /// Who failed since the last answer: a datagram goes to each backend at most once.
    failed: Vec<TaskId>,
}

/// A socket connected to a backend.
struct Upstream {
    socket: UdpSocket,
    open: OpenFlow,
    /// The PROXY protocol's header, until the first datagram took it.
    header: Vec<u8>,
    greeted: AtomicBool,
    /// Whether the way there takes several datagrams at once.
    takes_trains: AtomicBool,
    /// The last datagram that was not answered yet; a refusal is told only later, and it is then sent to
    /// the next backend.
    unanswered: Mutex<Option<Vec<u8>>>,
}

/// A socket that sends from an address of others: a virtual one, which many flows share.
pub(super) fn reply_socket(from: SocketAddr) -> io::Result<Socket> {
    let kind = Type::DGRAM.nonblocking();
    let socket = Socket::new(Domain::for_address(from), kind, None)?;
    socket.set_reuse_address(true)?;
    socket.set_ip_transparent_v4(true)?;
    socket.set_mark(nft::REPLY_MARK)?;
    socket.bind(&from.into())?;
    Ok(socket)
}

impl UdpFlow {
    pub(super) fn new(
        engine: Arc<Engine>,
        served: Arc<Served>,
        client: SocketAddr,
        asked: SocketAddr,
        replies: Replies,
    ) -> Self {
        Self {
            last_ms: AtomicU64::new(engine.now_ms()),
            engine,
            served,
            client,
            asked,
            replies,
            place: Mutex::new(Place {
                upstream: None,
                failed: Vec::new(),
            }),
            moved: Notify::new(),
        }
    }

    /// Chooses the first backend, and sends it the first datagrams.
    pub(super) fn begin(&self, payloads: &[&[u8]]) -> Result<(), Refusal> {
        let mut place = lock(&self.place);
        self.advance(&mut place, payloads)
    }

    /// Sends datagrams of the client to the backend, and to the next one if that fails at once. False when
    /// the flow is over and another has to begin.
    pub(super) fn forward(&self, payloads: &[&[u8]]) -> bool {
        self.mark();
        let mut place = lock(&self.place);
        let Some(upstream) = place.upstream.clone() else {
            return false;
        };
        let mut left = payloads;
        let fault = if upstream.live().gone.is_cancelled() {
            // The task of the flow has yet to learn of it.
            None
        } else {
            match upstream.send(&mut left) {
                Ok(()) => return true,
                Err(fault) => Some(fault),
            }
        };
        self.leave(&mut place, &upstream, fault);
        if self.served.ended.is_cancelled() {
            return true;
        }
        // Who is removed may have acted on the datagram before; who refused has not seen it.
        let kept = fault.and_then(|_| lock(&upstream.unanswered).take());
        let left = left.iter().copied();
        let datagrams: Vec<&[u8]> = kept.as_deref().into_iter().chain(left).collect();
        if let Err(why) = self.advance(&mut place, &datagrams) {
            self.served.refuse(why);
        }
        true
    }

    /// The life of a flow that has begun: answers go back, until it is idle or has no backend.
    pub(super) async fn run(self: Arc<Self>, table: &Table, key: Key) {
        self.served
            .ended
            .run_until_cancelled(self.answers(table, &key))
            .await;
        table.remove_if(&key, |_, flow| Arc::ptr_eq(flow, &self));
    }

    async fn answers(self: &Arc<Self>, table: &Table, key: &Key) {
        // The end of the frontend is the end of each of its backends too, and no reason to choose another.
        while !self.served.ended.is_cancelled() {
            let moved = self.moved.notified();
            let Some(upstream) = lock(&self.place).upstream.clone() else {
                return;
            };
            let gone = &upstream.live().gone;
            tokio::select! {
                () = gone.cancelled() => self.abandon(&upstream, None),
                fault = self.relay_answers(&upstream) => self.abandon(&upstream, Some(fault)),
                () = moved => {}
                () = self.idle() => {
                    let idle = |_: &Key, flow: &Arc<Self>| Arc::ptr_eq(flow, self) && self.is_idle();
                    if table.remove_if(key, idle).is_some() {
                        return;
                    }
                }
            }
        }
    }

    /// Passes answers on until the backend fails.
    async fn relay_answers(&self, upstream: &Upstream) -> Fault {
        // A refusal is told as an error, without anything to read.
        let something = Interest::READABLE | Interest::ERROR;
        loop {
            // `try_io` would not do: it takes one interest at a time.
            let received = upstream.socket.async_io(something, || {
                let mut buffer = self.engine.buffers.take();
                let (length, _) = recv(&upstream.socket, &mut *buffer, RecvFlags::DONTWAIT)?;
                Ok((buffer, length))
            });
            match received.await {
                Ok((buffer, length)) => {
                    self.answered(upstream);
                    self.reply(upstream, buffer.get(..length).unwrap_or_default());
                }
                Err(error) => return Fault::of(&error).unwrap_or(Fault::Silent),
            }
            consume_budget().await;
        }
    }

    fn answered(&self, upstream: &Upstream) {
        self.mark();
        let spec = &upstream.live().spec;
        self.engine.passed_over.answered(spec, Protocol::Udp);
        lock(&upstream.unanswered).take();
        lock(&self.place).failed.clear();
    }

    fn reply(&self, upstream: &Upstream, payload: &[u8]) {
        let sent = match &self.replies {
            Replies::Inlet { inlet, interface } => {
                datagram::reply(inlet, payload, self.client, self.asked.ip(), *interface)
            }
            Replies::Own(socket) => socket.send_to(payload, &self.client.into()).map(|_| ()),
        };
        // A datagram that cannot be sent is lost, as it may be anywhere on its way.
        if sent.is_ok() {
            upstream.open.count(Direction::Out, payload.len());
        }
    }

    /// Leaves a backend that is gone or failed, unless a datagram of the client found that out first.
    fn abandon(&self, upstream: &Arc<Upstream>, fault: Option<Fault>) {
        let mut place = lock(&self.place);
        let here = place.upstream.as_ref();
        if !here.is_some_and(|here| Arc::ptr_eq(here, upstream)) {
            return;
        }
        self.leave(&mut place, upstream, fault);
        // Who is removed may have acted on the datagram; who refused has not seen it.
        let again = fault.and_then(|_| lock(&upstream.unanswered).take());
        let datagrams: Vec<&[u8]> = again.as_deref().into_iter().collect();
        if let Err(why) = self.advance(&mut place, &datagrams) {
            self.served.refuse(why);
        }
    }

    fn leave(&self, place: &mut Place, upstream: &Upstream, fault: Option<Fault>) {
        let live = upstream.live();
        place.upstream = None;
        if let Some(fault) = fault {
            place.failed.push(live.spec.task.clone());
            self.failed(live, fault);
        }
    }

    fn failed(&self, live: &Live, fault: Fault) {
        live.counters
            .connect_failures
            .fetch_add(1, Ordering::Relaxed);
        let now = Instant::now();
        self.engine
            .passed_over
            .failed(&live.spec, Protocol::Udp, fault, now);
    }

    /// Goes to the next backend that takes these datagrams, and tells the task of the flow.
    fn advance(&self, place: &mut Place, datagrams: &[&[u8]]) -> Result<(), Refusal> {
        let mut candidates =
            Candidates::new(&self.served, &self.engine.passed_over, self.client.ip());
        candidates.exclude(&place.failed);
        let mut refusal = if place.failed.is_empty() {
            Refusal::NoBackend
        } else {
            Refusal::AllBackendsFailed
        };
        while let Some(reserved) = candidates.next() {
            refusal = Refusal::AllBackendsFailed;
            let live = Arc::clone(reserved.backend());
            let fault = match self.connect(candidates.route(), reserved) {
                Ok(upstream) => match upstream.send(&mut { datagrams }) {
                    Ok(()) => {
                        let retried = u64::from(!place.failed.is_empty());
                        self.served
                            .counters
                            .retries
                            .fetch_add(retried, Ordering::Relaxed);
                        place.upstream = Some(Arc::new(upstream));
                        self.moved.notify_one();
                        return Ok(());
                    }
                    Err(fault) => fault,
                },
                Err(error) => Fault::of(&error).unwrap_or(Fault::Silent),
            };
            place.failed.push(live.spec.task.clone());
            self.failed(&live, fault);
        }
        self.moved.notify_one();
        Err(refusal)
    }

    fn connect(&self, route: &Route, reserved: Reserved) -> io::Result<Upstream> {
        let spec = &reserved.backend().spec;
        let port = match spec.port {
            0 => self.asked.port(),
            port => port,
        };
        let address = SocketAddr::new(spec.ip, port);
        let socket = self.socket_to(route, address)?;
        let version = route.spec.policy.proxy_protocol;
        let header = version
            .map(|version| proxy_protocol::for_udp(version, self.client, self.asked))
            .unwrap_or_default();
        let flows = &self.engine.flows;
        Ok(Upstream {
            socket,
            open: flows.begin(&self.served, self.client, address, reserved),
            greeted: AtomicBool::new(header.is_empty()),
            header,
            takes_trains: AtomicBool::new(true),
            unanswered: Mutex::default(),
        })
    }

    fn socket_to(&self, route: &Route, to: SocketAddr) -> io::Result<UdpSocket> {
        let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
        for from in self.engine.source_turns.of(route.spec.sources.as_ref(), to) {
            let socket = Socket::new(Domain::for_address(to), Type::DGRAM.nonblocking(), None)?;
            let connected = from
                .map_or(Ok(()), |from| sources::bind(&socket, from))
                .and_then(|()| socket.connect(&to.into()));
            match connected {
                Ok(()) => return UdpSocket::from_std(socket.into()),
                Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => last = error,
                // No port is left at this address; udp(7) says it so.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => last = error,
                Err(error) => return Err(error),
            }
        }
        Err(last)
    }

    fn mark(&self) {
        self.last_ms.store(self.engine.now_ms(), Ordering::Relaxed);
    }

    fn idle_at(&self) -> tokio::time::Instant {
        let idle_ms = self.served.route().spec.policy.udp_idle_ms;
        let last = self.engine.at_ms(self.last_ms.load(Ordering::Relaxed));
        last + Duration::from_millis(idle_ms.into())
    }

    fn is_idle(&self) -> bool {
        tokio::time::Instant::now() >= self.idle_at()
    }

    /// Returns when no datagram has moved for the policy's time.
    async fn idle(&self) {
        while !self.is_idle() {
            sleep_until(self.idle_at()).await;
        }
    }
}

impl Upstream {
    fn live(&self) -> &Live {
        self.open.reserved().backend()
    }

    /// Sends without waiting. A full queue loses datagrams, as any router on their way would; only what is
    /// a fault of the backend is one here. Then `left` has those that were not sent.
    fn send(&self, left: &mut &[&[u8]]) -> Result<(), Fault> {
        while let Some(first) = left.first() {
            let greeted = self.greeted.swap(true, Ordering::Relaxed);
            let (sent, count) = if !greeted {
                let first = [&self.header[..], first].concat();
                (send(&self.socket, &first, SendFlags::DONTWAIT), 1)
            } else if let Some(sent) = self.send_train(left) {
                sent
            } else {
                (send(&self.socket, first, SendFlags::DONTWAIT), 1)
            };
            let fault = sent.err().and_then(|errno| Fault::of(&errno.into()));
            if let Some(fault) = fault {
                return Err(fault);
            }
            let (passed, later) = left.split_at(count);
            if let Some(last) = passed.last() {
                let mut unanswered = lock(&self.unanswered);
                let unanswered = unanswered.get_or_insert_default();
                unanswered.clear();
                unanswered.extend_from_slice(last);
            }
            if sent.is_ok() {
                let bytes = passed.iter().map(|payload| payload.len()).sum();
                self.open.count(Direction::In, bytes);
            }
            *left = later;
        }
        Ok(())
    }

    /// Sends as many as go in one piece, which costs little more than one alone, and tells how many; `None`
    /// if they do not go so.
    fn send_train(&self, datagrams: &[&[u8]]) -> Option<(rustix::io::Result<usize>, usize)> {
        if !self.takes_trains.load(Ordering::Relaxed) {
            return None;
        }
        let count = datagram::train(datagrams);
        if count < 2 {
            return None;
        }
        match datagram::send_train(&self.socket, datagrams.get(..count)?) {
            // Too large for the way there, or its kernel or link has no such thing.
            Err(Errno::INVAL | Errno::MSGSIZE | Errno::IO | Errno::OPNOTSUPP) => {
                self.takes_trains.store(false, Ordering::Relaxed);
                None
            }
            sent => Some((sent, count)),
        }
    }
}
