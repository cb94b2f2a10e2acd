//! Following one engine for as long as the agent runs.

mod memory;
mod reading;
mod signal;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior},
};

use crate::{
    Observed, Wanted,
    engine::{Client, EngineError},
    translate,
};
use memory::Memory;
use reading::Reading;

/// Events are a way to be quick; what they do not tell is found by reading everything this often.
const RESYNC: Duration = Duration::from_secs(30);
/// For what no event tells, and a user expects within a second.
const PULSE: Duration = Duration::from_millis(500);
const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(5);

/// How things stand with the engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Link {
    /// Nothing has been heard of it yet.
    Connecting,
    /// It answers.
    Up,
    /// It answers, but not to everything; the rest is what was known last. The reason is for the user.
    Troubled(String),
    /// There is nothing at its socket. The reason is for the user.
    Absent(String),
    /// It does not answer; everything is what was known last. The reason is for the user.
    Down(String),
}

/// What is known of an engine.
#[derive(Debug, Clone)]
pub struct Seen {
    /// How things stand with it.
    pub link: Link,
    /// What it says, and what follows; `None` until everything has been read once. What is known stays while
    /// the engine is away: containers may well run without it.
    pub known: Option<Arc<Known>>,
}

/// What an engine says, and what follows from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// What it says.
    pub observed: Observed,
    /// What follows.
    pub wanted: Wanted,
}

/// Follows an engine.
#[derive(Debug)]
pub struct Watcher {
    socket: PathBuf,
    resync: Duration,
    seen: watch::Sender<Seen>,
}

/// A watcher of the engine at a unix socket, and where it tells what it sees. Nothing is connected yet.
pub fn watch(socket: &Path) -> (Watcher, watch::Receiver<Seen>) {
    let (seen, receiver) = watch::channel(Seen {
        link: Link::Connecting,
        known: None,
    });
    let socket = socket.to_owned();
    let resync = RESYNC;
    let watcher = Watcher {
        socket,
        resync,
        seen,
    };
    (watcher, receiver)
}

impl Watcher {
    /// Reads everything anew this often, and not every 30 s.
    #[must_use]
    pub fn with_resync(mut self, resync: Duration) -> Self {
        self.resync = resync;
        self
    }

    /// Follows the engine until no one listens any more. An engine that is away, or not there yet, is tried
    /// again and again. Dropping the future ends it; it holds nothing that has to be given back.
    pub async fn run(self) {
        let mut memory = Memory::default();
        let mut retry = FIRST_RETRY;
        let follow = async {
            loop {
                let lost = self.follow(&mut memory, &mut retry).await;
                let reason = reason(&lost);
                tracing::debug!(reason, "the Docker engine is away");
                self.set_link(if lost.finds_no_socket() {
                    Link::Absent(reason)
                } else {
                    Link::Down(reason)
                });
                tokio::time::sleep(retry).await;
                retry = (retry * 2).min(LAST_RETRY);
            }
        };
        tokio::select! {
            () = follow => {}
            () = self.seen.closed() => {}
        }
    }

    /// Follows the engine from one connection to its end.
    async fn follow(&self, memory: &mut Memory, retry: &mut Duration) -> EngineError {
        let client = match Client::connect(&self.socket).await {
            Ok(client) => client,
            Err(error) => return error,
        };
        // Before anything is read, so that no change falls between.
        let mut events = match client.events(memory.last_event_ns()).await {
            Ok(events) => events,
            Err(error) => return error,
        };
        memory.reconnected();
        let mut reading = Reading::new(client);
        let mut resync = tokio::time::interval(self.resync);
        resync.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut pulse = tokio::time::interval(PULSE);
        pulse.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                event = events.next() => match event {
                    Ok(event) => {
                        tracing::trace!(?event, "the Docker engine tells");
                        for question in memory.event(&event, Instant::now()) {
                            reading.ask(question);
                        }
                    }
                    Err(error) => return error,
                },
                (question, answer) = reading.next(memory) => {
                    if answer.is_ok() {
                        *retry = FIRST_RETRY;
                    }
                    for question in memory.answer(&question, answer) {
                        reading.ask(question);
                    }
                }
                _ = pulse.tick() => {
                    if let Some(question) = memory.pulse() {
                        reading.ask(question);
                    }
                }
                _ = resync.tick() => {
                    memory.forget_survivors(Instant::now());
                    for question in memory.everything() {
                        reading.ask(question);
                    }
                }
            }
            self.publish(memory);
        }
    }

    fn publish(&self, memory: &mut Memory) {
        let link = memory.trouble().map_or(Link::Up, Link::Troubled);
        let known = memory.news().map(|observed| {
            let wanted = translate(&observed);
            Arc::new(Known { observed, wanted })
        });
        self.seen.send_if_modified(|seen| {
            let changed = seen.link != link || known.is_some();
            seen.link = link;
            if known.is_some() {
                seen.known = known;
            }
            changed
        });
    }

    fn set_link(&self, link: Link) {
        self.seen.send_if_modified(|seen| {
            let changed = seen.link != link;
            seen.link = link;
            changed
        });
    }
}

/// An error with its causes.
fn reason(error: &EngineError) -> String {
    // Why the socket cannot be reached is in the error's own words.
    if matches!(error, EngineError::Unreachable { .. }) {
        return error.to_string();
    }
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
