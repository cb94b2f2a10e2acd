//! The network: what becomes of datagrams and streams on their way.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use bytes::Bytes;
use portolan_model::NodeId;
use rand::{RngExt, SeedableRng, rngs::SmallRng};

use super::{World, host};
use crate::core::{Input, Output, StreamId};

/// What the network does to packets. The default is a good LAN.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Faults {
    /// The share of datagrams that is lost.
    pub loss: f64,
    /// The share that arrives twice.
    pub duplicates: f64,
    /// The share that is damaged on the way.
    pub damage: f64,
    /// The share that is late, and by how much at most.
    pub late: (f64, Duration),
    /// How long a packet takes at least and at most.
    pub latency: (Duration, Duration),
}

impl Default for Faults {
    fn default() -> Self {
        Self {
            loss: 0.0,
            duplicates: 0.0,
            damage: 0.0,
            late: (0.0, Duration::ZERO),
            latency: (Duration::from_micros(200), Duration::from_micros(1200)),
        }
    }
}

pub(super) enum Event {
    Tick {
        node: usize,
        life: u32,
    },
    Deliver {
        node: usize,
        /// Set for what only this life may get.
        life: Option<u32>,
        input: Input,
    },
    /// A datagram that was damaged.
    Damaged(Bytes),
    /// Something of a connection reaches one of its ends.
    Arrive {
        connection: u64,
        to: usize,
    },
}

#[derive(Debug, Default)]
pub(super) struct Sent {
    pub(super) udp_bytes: u64,
    pub(super) udp_packets: u64,
    pub(super) tcp_bytes: u64,
}

struct End {
    node: usize,
    life: u32,
    stream: StreamId,
}

struct Connection {
    opener: End,
    other: End,
    /// What is on its way to each side, in order.
    to_opener: Vec<Piece>,
    to_other: Vec<Piece>,
}

enum Piece {
    Message(Bytes),
    End,
}

pub(super) struct Network {
    pub(super) faults: Faults,
    pub(super) sent: Sent,
    queue: BTreeMap<(Duration, u64), Event>,
    count: u64,
    rng: SmallRng,
    cuts: BTreeSet<(usize, usize)>,
    connections: BTreeMap<u64, Connection>,
    /// Connections by who opened them, in which life, and under which number.
    by_opener: BTreeMap<(usize, u32, StreamId), u64>,
    opened: u64,
}

/// Bytes that IP, UDP and the envelope add to a datagram.
const UDP_OVERHEAD: u64 = 28 + 53;
/// Bytes that a stream costs before and after its messages.
const TCP_OVERHEAD: u64 = 40 * 8 + 38;
/// How long TCP waits before it sends again.
const RETRANSMIT: Duration = Duration::from_millis(200);
/// Datagrams that a kernel keeps for a process that stands still.
const KEPT: usize = 2000;

impl Network {
    pub(super) fn new(_nodes: usize, seed: u64) -> Self {
        Self {
            faults: Faults::default(),
            sent: Sent::default(),
            queue: BTreeMap::new(),
            count: 0,
            rng: SmallRng::seed_from_u64(!seed),
            cuts: BTreeSet::new(),
            connections: BTreeMap::new(),
            by_opener: BTreeMap::new(),
            opened: 0,
        }
    }

    pub(super) fn next(&mut self, until: Duration) -> Option<(Duration, Event)> {
        let entry = self.queue.first_entry()?;
        let at = entry.key().0;
        (at <= until).then(|| (at, entry.remove()))
    }

    pub(super) fn set_tick(&mut self, node: usize, life: u32, at: Duration) {
        self.push(at, Event::Tick { node, life });
    }

    /// Keeps what arrived for a process that stands still.
    pub(super) fn keep(&mut self, until: Duration, event: Event) {
        let node_of = |event: &Event| match event {
            Event::Deliver { node, .. } => Some(*node),
            _ => None,
        };
        let node = node_of(&event);
        // Counted from the end: what waits for that moment is mostly this.
        let waiting = self.queue.range((until, 0)..=(until, u64::MAX));
        if waiting.filter(|(_, event)| node_of(event) == node).count() < KEPT {
            self.push(until, event);
        }
    }

    pub(super) fn cut(&mut self, from: usize, to: usize, cut: bool) {
        if cut {
            self.cuts.insert((from, to));
        } else {
            self.cuts.remove(&(from, to));
        }
    }

    pub(super) fn heal(&mut self) {
        self.cuts.clear();
    }

    /// A machine's kernel resets the connections of a process that ended.
    pub(super) fn forget(&mut self, node: usize) {
        self.connections
            .retain(|_, c| c.opener.node != node || c.other.node != node);
    }

    fn push(&mut self, at: Duration, event: Event) {
        self.count += 1;
        self.queue.insert((at, self.count), event);
    }

    fn latency(&mut self) -> Duration {
        let (least, most) = self.faults.latency;
        let mut latency = least + most.saturating_sub(least).mul_f64(self.rng.random());
        if self.happens(self.faults.late.0) {
            latency += self.faults.late.1.mul_f64(self.rng.random());
        }
        latency
    }

    fn happens(&mut self, share: f64) -> bool {
        share > 0.0 && self.rng.random::<f64>() < share
    }

    fn datagram(&mut self, now: Duration, from: usize, sender: NodeId, to: usize, bytes: &Bytes) {
        self.sent.udp_packets += 1;
        self.sent.udp_bytes += bytes.len() as u64 + UDP_OVERHEAD;
        if self.cuts.contains(&(from, to)) || self.happens(self.faults.loss) {
            return;
        }
        if self.happens(self.faults.damage) {
            let mut damaged = bytes.to_vec();
            for _ in 0..self.rng.random_range(1..4) {
                let index = self.rng.random_range(0..damaged.len().max(1));
                if let Some(byte) = damaged.get_mut(index) {
                    *byte = self.rng.random();
                }
            }
            let at = now + self.latency();
            self.push(at, Event::Damaged(damaged.into()));
            return;
        }
        let copies = if self.happens(self.faults.duplicates) {
            2
        } else {
            1
        };
        for _ in 0..copies {
            let at = now + self.latency();
            let bytes = bytes.clone();
            let event = Event::Deliver {
                node: to,
                life: None,
                input: Input::Datagram { sender, bytes },
            };
            self.push(at, event);
        }
    }

    /// How long a piece takes over a stream; `None` if it does not get through.
    fn stream_latency(&mut self, from: usize, to: usize, bytes: usize) -> Option<Duration> {
        if self.cuts.contains(&(from, to)) || self.cuts.contains(&(to, from)) {
            return None;
        }
        self.sent.tcp_bytes += bytes as u64;
        let mut latency = self.latency();
        let segments = bytes.div_ceil(1400).min(50);
        let mut lost = 0;
        for _ in 0..=segments {
            lost += u32::from(self.happens(self.faults.loss));
        }
        if lost > 0 {
            latency += RETRANSMIT * lost.min(8);
        }
        Some(latency)
    }
}

impl World {
    pub(super) fn output(&mut self, node: usize, output: Output) {
        match output {
            Output::Datagram { to, bytes } => {
                if let Some(to) = host::index(to).filter(|to| *to < self.hosts.len()) {
                    let sender = self.hosts[node].id;
                    self.network.datagram(self.now, node, sender, to, &bytes);
                }
            }
            Output::Open { stream, to, bytes } => self.open(node, stream, host::index(to), bytes),
            Output::Send { stream, bytes } => self.pass(node, stream, Piece::Message(bytes)),
            Output::Close { stream } => self.pass(node, stream, Piece::End),
            Output::Boot(_) => {}
            Output::NameTaken { .. } => {
                if let Some(host) = self.hosts.get_mut(node) {
                    host.refused = true;
                }
                self.kill(node);
            }
            Output::Left => self.kill(node),
        }
    }

    fn open(&mut self, node: usize, stream: u64, to: Option<usize>, bytes: Bytes) {
        let stream = StreamId::Out(stream);
        let patience = self.timing.stream;
        let (Some(life), Some(other)) = (
            self.hosts.get(node).map(|host| host.life),
            to.and_then(|to| self.hosts.get(to)),
        ) else {
            return;
        };
        let closed = Event::Deliver {
            node,
            life: Some(life),
            input: Input::Closed { stream },
        };
        self.network.sent.tcp_bytes += TCP_OVERHEAD;
        if !other.is_running() {
            let latency = self.network.latency() * 2;
            self.network.push(self.now + latency, closed);
            return;
        }
        let other = End {
            node: other.index,
            life: other.life,
            stream: StreamId::In(0),
        };
        self.network.opened += 1;
        let id = self.network.opened;
        let connection = Connection {
            opener: End { node, life, stream },
            other: End {
                stream: StreamId::In(id),
                ..other
            },
            to_opener: Vec::new(),
            to_other: Vec::new(),
        };
        self.network.connections.insert(id, connection);
        self.network.by_opener.insert((node, life, stream), id);
        // Whatever becomes of it, in the end its time is up.
        self.network.push(self.now + patience, closed);
        let end = Event::Deliver {
            node: self.network.connections[&id].other.node,
            life: Some(self.network.connections[&id].other.life),
            input: Input::Closed {
                stream: StreamId::In(id),
            },
        };
        self.network.push(self.now + patience, end);
        self.pass(node, stream, Piece::Message(bytes));
    }

    /// Sends a piece from one end of a connection to the other.
    fn pass(&mut self, node: usize, stream: StreamId, piece: Piece) {
        let Some(life) = self.hosts.get(node).map(|host| host.life) else {
            return;
        };
        let is_end = |end: &End| end.node == node && end.stream == stream && end.life == life;
        let found = match stream {
            StreamId::In(id) => self.network.connections.get_key_value(&id),
            StreamId::Out(_) => {
                let id = self.network.by_opener.get(&(node, life, stream));
                id.and_then(|id| self.network.connections.get_key_value(id))
            }
        };
        let Some((&id, connection)) = found else {
            return;
        };
        let from_opener = is_end(&connection.opener);
        let to = if from_opener {
            connection.other.node
        } else {
            connection.opener.node
        };
        let size = match &piece {
            Piece::Message(bytes) => bytes.len(),
            Piece::End => 0,
        };
        // Three ways before the first message: the handshakes of TCP and of the keys.
        let first = from_opener
            && matches!(&connection.opener.stream, s if *s == stream)
            && matches!(piece, Piece::Message(_))
            && connection.to_other.is_empty();
        let Some(mut latency) = self.network.stream_latency(node, to, size) else {
            return;
        };
        if first {
            latency += self.network.latency() * 4;
        }
        if let Some(connection) = self.network.connections.get_mut(&id) {
            let queue = if from_opener {
                &mut connection.to_other
            } else {
                &mut connection.to_opener
            };
            queue.push(piece);
        }
        let at = self.now + latency;
        self.network.push(at, Event::Arrive { connection: id, to });
    }

    /// The oldest piece on its way to `to` arrives. Pieces keep their order, as TCP does.
    pub(super) fn arrive(&mut self, id: u64, to: usize) {
        let Some(connection) = self.network.connections.get_mut(&id) else {
            return;
        };
        let (end, queue) = if connection.other.node == to {
            (&connection.other, &mut connection.to_other)
        } else {
            (&connection.opener, &mut connection.to_opener)
        };
        if queue.is_empty() {
            return;
        }
        let (node, life, stream) = (end.node, end.life, end.stream);
        let input = match queue.remove(0) {
            Piece::Message(bytes) => Input::Message { stream, bytes },
            Piece::End => {
                if let Some(ended) = self.network.connections.remove(&id) {
                    let End { node, life, stream } = ended.opener;
                    self.network.by_opener.remove(&(node, life, stream));
                }
                Input::Closed { stream }
            }
        };
        let event = Event::Deliver {
            node,
            life: Some(life),
            input,
        };
        self.handle(event);
    }
}
