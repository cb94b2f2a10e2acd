//! The core on real sockets: UDP and TCP on one port.

mod limiter;
mod sockets;
mod streams;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use tokio::{
    net::{TcpListener, UdpSocket},
    sync::{mpsc, oneshot, watch},
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use crate::{
    boot,
    config::Config,
    core::{Core, Input, Output, Settings, StreamId},
    handle::{Command, KeyChange, Shared},
    identity::Identity,
    keyring::{KeyEntry, KeyError},
    seal::{Envelopes, Refusal, Secrets},
    stats::Stats,
    view::View,
};
use limiter::Limiter;
use streams::{Event, StreamError, Streams};

/// Why gossip could not start. Nothing was sent.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The address cannot be bound.
    #[error("cannot bind {addr}; free the port, or give another address to listen on")]
    Bind {
        /// The address.
        addr: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
    /// Others could not reach the address that would be told to them.
    #[error("{0} is no address that others can reach; advertise one of this node's own")]
    Advertise(IpAddr),
    /// The boot number cannot be kept.
    #[error("cannot keep the boot number in {}", path.display())]
    Boot {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The kernel gave no random bytes.
    #[error("no random bytes from the kernel")]
    Random(#[source] io::Error),
}

/// Why gossip ended.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// Another node of this name is alive.
    #[error(
        "the name '{name}' is taken: a node of this name is alive at {theirs}, this one is at {ours}; give this node another --name, or stop the other one"
    )]
    NameTaken {
        /// The name.
        name: String,
        /// Where this node is.
        ours: SocketAddr,
        /// Where the other one is.
        theirs: SocketAddr,
    },
    /// A higher boot number could not be kept.
    #[error("cannot keep the boot number in {}", path.display())]
    Boot {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The socket failed.
    #[error("the gossip socket failed")]
    Socket(#[source] io::Error),
}

/// The part that does the work. It does so while [`Driver::run`] is awaited.
pub struct Driver {
    core: Core,
    envelopes: Envelopes,
    name: String,
    state_dir: PathBuf,
    start: Instant,
    udp: UdpSocket,
    tcp: TcpListener,
    streams: Streams,
    limiter: Limiter,
    commands: mpsc::UnboundedReceiver<Command>,
    records: watch::Receiver<Option<BTreeMap<Bytes, Bytes>>>,
    view: watch::Sender<Arc<View>>,
    published: Duration,
    stats: Arc<Mutex<Stats>>,
    counted: Duration,
    traffic: Stats,
    /// What was said about whom, to say it once.
    said: BTreeSet<(IpAddr, &'static str)>,
    leaving: Vec<oneshot::Sender<()>>,
}

/// Datagrams taken in a row before anything else gets its turn.
const DRAIN: usize = 512;
/// Between two publications of a view, so that a storm of changes does not copy it each time.
const PUBLISH: Duration = Duration::from_millis(10);
/// Between two publications of the counters.
const COUNT: Duration = Duration::from_millis(250);
/// A datagram of ours is never longer.
const MAX_DATAGRAM: usize = 1500;
/// About how many sources something is said at most.
const MAX_SAID: usize = 1024;

impl Driver {
    pub(crate) async fn start(config: Config) -> Result<(Shared, Self), StartError> {
        let (tcp, udp, local) = sockets::bind(config.bind).await?;
        let mut advertise = config.advertise;
        if advertise.port() == 0 {
            advertise.set_port(local.port());
        }
        if advertise.ip().is_unspecified() || advertise.ip().is_multicast() {
            return Err(StartError::Advertise(advertise.ip()));
        }
        let boot = boot::next(&config.state_dir).map_err(|source| StartError::Boot {
            path: boot::path(&config.state_dir),
            source,
        })?;
        let random = |error: getrandom::Error| StartError::Random(error.into());
        let session = getrandom::u64().map_err(random)?;
        let seed = getrandom::u64().map_err(random)?;
        let me = Identity {
            node: config.node,
            addr: advertise,
            boot,
            bump: 0,
        };
        let secrets = Secrets::new(config.keyring, config.cluster);
        let core_settings = Settings {
            me,
            name: config.name.clone(),
            seeds: config.join,
            limits: config.limits,
            timing: config.timing.clone(),
            epoch: SystemTime::now(),
            seed,
        };
        let mut core = Core::new(core_settings);
        let first = core.view().unwrap_or_else(|| View::empty(me.node));
        let (view, views) = watch::channel(Arc::new(first));
        let (command_sender, commands) = mpsc::unbounded_channel();
        let (record_sender, records) = watch::channel(None);
        let stats = Arc::new(Mutex::new(core.stats()));
        let shared = Shared {
            commands: command_sender,
            records: record_sender,
            view: views,
            stats: Arc::clone(&stats),
            rejected: 0.into(),
            limits: config.limits,
            local,
        };
        let driver = Self {
            core,
            envelopes: Envelopes::new(secrets, me.node, session, config.limits.members),
            name: config.name,
            state_dir: config.state_dir,
            streams: Streams::new(config.timing.stream),
            start: Instant::now(),
            udp,
            tcp,
            limiter: Limiter::new(config.limits.datagrams_per_second),
            commands,
            records,
            view,
            published: Duration::ZERO,
            stats,
            counted: Duration::ZERO,
            traffic: Stats::default(),
            said: BTreeSet::new(),
            leaving: Vec::new(),
        };
        Ok((shared, driver))
    }

    /// Takes part in the cluster until `shutdown` is cancelled, the node has left, or it must not
    /// go on.
    pub async fn run(mut self, shutdown: CancellationToken) -> Result<(), DriverError> {
        loop {
            let wake = self.start + self.wake();
            let mut left = false;
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return Ok(()),
                Some(command) = self.commands.recv() => left = self.command(command)?,
                Ok(()) = self.records.changed() => {
                    let records = self.records.borrow_and_update().clone();
                    if let Some(records) = records {
                        left = self.step(Input::Records(records))?;
                    }
                }
                event = self.streams.next() => left = self.stream_event(event)?,
                accepted = self.tcp.accept(), if self.streams.have_room() => self.accept(accepted),
                ready = self.udp.readable() => ready.map_err(DriverError::Socket)?,
                () = sleep_until(wake) => {}
            }
            // What has arrived counts before what is due, or a process that stood still would
            // suspect everybody.
            left |= self.drain()?;
            let now = self.start.elapsed();
            if self.core.deadline().is_some_and(|deadline| deadline <= now) {
                left |= self.step(Input::Tick)?;
            }
            self.publish();
            if left {
                for told in self.leaving.drain(..) {
                    let _ = told.send(());
                }
                return Ok(());
            }
        }
    }

    /// When there is something to do, if nothing happens.
    fn wake(&self) -> Duration {
        let mut wake = self.counted + COUNT;
        if let Some(deadline) = self.core.deadline() {
            wake = wake.min(deadline);
        }
        if self.core.has_news() {
            wake = wake.min(self.published + PUBLISH);
        }
        wake
    }

    /// One step of the core, with all that it wants done. Returns whether the node has left.
    fn step(&mut self, input: Input) -> Result<bool, DriverError> {
        let outputs = self.core.step(self.start.elapsed(), input);
        let mut left = false;
        for output in outputs {
            match output {
                Output::Datagram { to, bytes } => self.send(to, &bytes),
                Output::Open { stream, to, bytes } => {
                    self.traffic.tcp_streams_out += 1;
                    let secrets = self.envelopes.secrets().clone();
                    self.streams.open(stream, to, bytes, secrets);
                }
                Output::Send { stream, bytes } => self.streams.send(stream, bytes),
                Output::Close { stream } => self.streams.close(stream),
                // The loop waits for the disk: nothing may leave under a number that is not kept.
                Output::Boot(boot) => boot::keep(&self.state_dir, boot).map_err(|source| {
                    let path = boot::path(&self.state_dir);
                    DriverError::Boot { path, source }
                })?,
                Output::NameTaken { theirs } => {
                    return Err(DriverError::NameTaken {
                        name: self.name.clone(),
                        ours: self.core.me().addr,
                        theirs,
                    });
                }
                Output::Left => left = true,
            }
        }
        Ok(left)
    }

    fn send(&mut self, to: SocketAddr, body: &[u8]) {
        let packet = self.envelopes.seal(body);
        match self.udp.try_send_to(&packet, to) {
            Ok(_) => {
                self.traffic.udp_packets_out += 1;
                self.traffic.udp_bytes_out += packet.len() as u64;
            }
            // As good as lost on the way, which the protocol is made for.
            Err(error) => {
                self.traffic.udp_send_errors += 1;
                tracing::trace!(%to, %error, "datagram not sent");
            }
        }
    }

    /// Takes the datagrams that wait.
    fn drain(&mut self) -> Result<bool, DriverError> {
        let mut left = false;
        let mut buffer = [0; MAX_DATAGRAM + 1];
        for _ in 0..DRAIN {
            let (len, from) = match self.udp.try_recv_from(&mut buffer) {
                Ok(received) => received,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // An answer of the network to an earlier datagram, not an error of the socket.
                Err(error) => {
                    tracing::trace!(%error, "datagram not received");
                    continue;
                }
            };
            self.traffic.udp_packets_in += 1;
            self.traffic.udp_bytes_in += len as u64;
            let packet = buffer.get(..len).unwrap_or_default();
            if len > MAX_DATAGRAM {
                self.traffic.drops.malformed += 1;
            } else if !self.limiter.admit(from.ip(), self.start.elapsed()) {
                self.traffic.drops.rate_limited += 1;
            } else {
                match self.envelopes.open(packet) {
                    Ok((sender, bytes)) => left |= self.step(Input::Datagram { sender, bytes })?,
                    Err(refusal) => self.refused(from, refusal),
                }
            }
        }
        Ok(left)
    }

    fn refused(&mut self, from: SocketAddr, refusal: Refusal) {
        let drops = &mut self.traffic.drops;
        match refusal {
            Refusal::Malformed => drops.malformed += 1,
            Refusal::Replay => drops.replay += 1,
            Refusal::Version(version) => {
                drops.version += 1;
                self.say(from, "version", || {
                    format!("it speaks version {version} of the protocol, this node version 1")
                });
            }
            Refusal::UnknownKey(id) => {
                drops.unknown_key += 1;
                self.say(from, "key", || {
                    format!("its key {id} is not in this node's ring")
                });
            }
            Refusal::Decrypt => {
                drops.decrypt += 1;
                let cluster = self.envelopes.secrets().cluster().to_owned();
                self.say(from, "decrypt", || {
                    format!("its packets are damaged, forged, or not of cluster '{cluster}'")
                });
            }
        }
    }

    /// Says once about each source why it is not heard.
    fn say(&mut self, from: SocketAddr, kind: &'static str, why: impl FnOnce() -> String) {
        if self.said.len() < MAX_SAID && self.said.insert((from.ip(), kind)) {
            tracing::warn!(peer = %from, "not taking part with this peer: {}", why());
        }
    }

    fn accept(&mut self, accepted: io::Result<(tokio::net::TcpStream, SocketAddr)>) {
        match accepted {
            Ok((stream, from)) => {
                self.traffic.tcp_streams_in += 1;
                let secrets = self.envelopes.secrets().clone();
                self.streams.accept(stream, from, secrets);
            }
            // Out of descriptors, or the peer is gone already: later ones may do better.
            Err(error) => tracing::debug!(%error, "stream not accepted"),
        }
    }

    fn stream_event(&mut self, event: Event) -> Result<bool, DriverError> {
        match event {
            Event::Message { stream, bytes } => self.step(Input::Message { stream, bytes }),
            Event::Moved { received, sent } => {
                self.traffic.tcp_bytes_in += received;
                self.traffic.tcp_bytes_out += sent;
                Ok(false)
            }
            Event::Failed {
                stream,
                peer,
                error,
            } => {
                self.stream_failed(stream, peer, &error);
                self.step(Input::Closed { stream })
            }
        }
    }

    fn stream_failed(&mut self, stream: StreamId, peer: SocketAddr, error: &StreamError) {
        let drops = &mut self.traffic.drops;
        let kind = match error {
            StreamError::UnknownKey(_) => {
                drops.unknown_key += 1;
                "key"
            }
            StreamError::OurKey(_) => "our key",
            StreamError::Decrypt => {
                drops.decrypt += 1;
                "decrypt"
            }
            StreamError::Version(_) => {
                drops.version += 1;
                "version"
            }
            StreamError::TooLong => {
                drops.malformed += 1;
                "length"
            }
            StreamError::Io(_) | StreamError::Timeout | StreamError::Closed => {
                tracing::debug!(?stream, %peer, %error, "stream failed");
                return;
            }
        };
        self.say(peer, kind, || error.to_string());
    }

    fn command(&mut self, command: Command) -> Result<bool, DriverError> {
        match command {
            Command::Join(addrs) => self.step(Input::Join(addrs)),
            Command::Leave(told) => {
                self.leaving.push(told);
                self.step(Input::Leave)
            }
            Command::Pause(time, told) => {
                self.leaving.push(told);
                self.step(Input::Pause(time))
            }
            Command::Keys(change, done) => {
                // Nobody waits for the answer any more: then there is none to give.
                let _ = done.send(self.change_keys(change));
                Ok(false)
            }
        }
    }

    fn change_keys(&mut self, change: KeyChange) -> Result<Vec<KeyEntry>, KeyError> {
        match change {
            KeyChange::None => {}
            KeyChange::Install(key) => self.envelopes.change_ring(|ring| ring.install(key))?,
            KeyChange::Use(id) => self.envelopes.change_ring(|ring| ring.use_key(id))?,
            KeyChange::Remove(id) => self.envelopes.change_ring(|ring| ring.remove(id))?,
        }
        // Peers that could not be heard may be heard now, and the reverse.
        self.said.clear();
        Ok(self.envelopes.secrets().ring()?.list())
    }

    fn publish(&mut self) {
        let now = self.start.elapsed();
        if self.core.has_news()
            && now >= self.published + PUBLISH
            && let Some(view) = self.core.view()
        {
            self.published = now;
            self.view.send_replace(Arc::new(view));
        }
        if now >= self.counted + COUNT {
            self.counted = now;
            let stats = self.core.stats().with_traffic(&self.traffic);
            *self.stats.lock().unwrap_or_else(PoisonError::into_inner) = stats;
        }
    }
}
