//! The handle that the rest of the program holds.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot, watch};

use crate::{
    codec::records::{MAX_KEY, MAX_VALUE},
    config::{Config, Limits},
    driver::{Driver, StartError},
    keyring::{Key, KeyEntry, KeyError, KeyId},
    stats::Stats,
    table::log::RESERVED,
    view::View,
};

/// Why some own records were refused. The others are published.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{} not published: {}", count(.rejected), list(.rejected))]
pub struct RecordError {
    /// The keys of those refused, with the reason.
    pub rejected: Vec<(Bytes, Rejection)>,
}

fn count(rejected: &[(Bytes, Rejection)]) -> String {
    match rejected.len() {
        1 => "1 record was".to_owned(),
        count => format!("{count} records were"),
    }
}

fn list(rejected: &[(Bytes, Rejection)]) -> String {
    let shown = rejected.iter().take(5);
    let mut text: Vec<String> = shown
        .map(|(key, why)| format!("{:?}: {why}", key.escape_ascii().to_string()))
        .collect();
    if rejected.len() > 5 {
        text.push("...".to_owned());
    }
    text.join("; ")
}

/// Why a record was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// The key is empty or begins with a zero byte, which is gossip's own.
    #[error("its key is empty or begins with a zero byte")]
    Reserved,
    /// The key is too long.
    #[error("its key has {0} bytes, more than {MAX_KEY}")]
    Key(usize),
    /// The value is too long.
    #[error("its value has {0} bytes, more than {MAX_VALUE}")]
    Value(usize),
    /// There are too many records.
    #[error("there are more than {0} records")]
    Count(usize),
}

/// What the handle asks of the driver.
#[derive(Debug)]
pub(crate) enum Command {
    Join(Vec<SocketAddr>),
    Leave(oneshot::Sender<()>),
    Pause(Duration, oneshot::Sender<()>),
    Keys(KeyChange, oneshot::Sender<Result<Vec<KeyEntry>, KeyError>>),
}

#[derive(Debug)]
pub(crate) enum KeyChange {
    None,
    Install(Key),
    Use(KeyId),
    Remove(KeyId),
}

/// What handle and driver share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) commands: mpsc::UnboundedSender<Command>,
    pub(crate) records: watch::Sender<Option<BTreeMap<Bytes, Bytes>>>,
    pub(crate) view: watch::Receiver<Arc<View>>,
    pub(crate) stats: Arc<Mutex<Stats>>,
    pub(crate) rejected: AtomicU64,
    pub(crate) limits: Limits,
    pub(crate) local: SocketAddr,
}

/// A handle to a node's gossip. Clones are the same node.
#[derive(Debug, Clone)]
pub struct Gossip {
    shared: Arc<Shared>,
}

impl Gossip {
    /// Takes the boot number and the sockets. Nothing is sent before the driver runs.
    pub async fn start(config: Config) -> Result<(Self, Driver), StartError> {
        let (shared, driver) = Driver::start(config).await?;
        let shared = Arc::new(shared);
        Ok((Self { shared }, driver))
    }

    /// Where UDP and TCP are bound.
    pub fn local_addr(&self) -> SocketAddr {
        self.shared.local
    }

    /// Makes these the own records: the whole state, from which the changes are computed. Latest
    /// wins. Those that cannot be published are named in the error, and the rest is published.
    pub fn set_records(&self, own: BTreeMap<Bytes, Bytes>) -> Result<(), RecordError> {
        // The name and the mark of completeness take two places.
        let most = self.shared.limits.records_per_owner.saturating_sub(2);
        let mut rejected = Vec::new();
        let mut records = BTreeMap::new();
        for (key, value) in own {
            let reason = if key.first().is_none_or(|first| *first == RESERVED) {
                Rejection::Reserved
            } else if key.len() > MAX_KEY {
                Rejection::Key(key.len())
            } else if value.len() > MAX_VALUE {
                Rejection::Value(value.len())
            } else if records.len() >= most {
                Rejection::Count(most)
            } else {
                records.insert(key, value);
                continue;
            };
            rejected.push((key, reason));
        }
        self.shared.records.send_replace(Some(records));
        if rejected.is_empty() {
            return Ok(());
        }
        let count = rejected.len() as u64;
        self.shared.rejected.fetch_add(count, Ordering::Relaxed);
        Err(RecordError { rejected })
    }

    /// What is known of the cluster, now and from now on. Closed when the driver ends.
    pub fn view(&self) -> watch::Receiver<Arc<View>> {
        self.shared.view.clone()
    }

    /// Joins by these addresses too, which are tried again as long as they are no members.
    pub fn join(&self, addrs: Vec<SocketAddr>) {
        // With the driver ended there is nothing to join.
        let _ = self.shared.commands.send(Command::Join(addrs));
    }

    /// Tells the others that this node leaves, so that they drop its records at once. Returns when
    /// they are told; the driver ends by itself then.
    pub async fn leave(&self) {
        let (done, told) = oneshot::channel();
        if self.shared.commands.send(Command::Leave(done)).is_ok() {
            let _ = told.await;
        }
    }

    /// Tells the others that this node ends and starts again: for so long they count its records though it is down.
    /// Returns when they are told; the driver ends by itself then.
    pub async fn pause(&self, time: Duration) {
        let (done, told) = oneshot::channel();
        if self
            .shared
            .commands
            .send(Command::Pause(time, done))
            .is_ok()
        {
            let _ = told.await;
        }
    }

    /// The keys of the ring, by fingerprint.
    pub async fn keyring_list(&self) -> Result<Vec<KeyEntry>, KeyError> {
        self.keyring(KeyChange::None).await
    }

    /// Adds a key to take packets with. Do this on every node first.
    pub async fn keyring_install(&self, key: Key) -> Result<Vec<KeyEntry>, KeyError> {
        self.keyring(KeyChange::Install(key)).await
    }

    /// Sends with another key of the ring from now on.
    pub async fn keyring_use(&self, id: KeyId) -> Result<Vec<KeyEntry>, KeyError> {
        self.keyring(KeyChange::Use(id)).await
    }

    /// Takes packets under this key no longer.
    pub async fn keyring_remove(&self, id: KeyId) -> Result<Vec<KeyEntry>, KeyError> {
        self.keyring(KeyChange::Remove(id)).await
    }

    async fn keyring(&self, change: KeyChange) -> Result<Vec<KeyEntry>, KeyError> {
        let (done, result) = oneshot::channel();
        let command = Command::Keys(change, done);
        let sent = self.shared.commands.send(command);
        sent.map_err(|_| KeyError::Ended)?;
        result.await.map_err(|_| KeyError::Ended)?
    }

    /// The counters, at most a quarter of a second old.
    pub fn stats(&self) -> Stats {
        // A poisoned lock guards plain numbers, which are good whoever panicked.
        let stats = self.shared.stats.lock();
        let mut stats = *stats.unwrap_or_else(PoisonError::into_inner);
        stats.records_rejected = self.shared.rejected.load(Ordering::Relaxed);
        stats
    }
}
