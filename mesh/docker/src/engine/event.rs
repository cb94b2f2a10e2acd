//! The engine's events: a line of JSON for each, on a connection that stays.

use std::path::Path;

use bytes::BytesMut;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    EngineError,
    http::{self, Connection},
};

/// The longest event; real ones have a few KiB of labels.
const MAX_LINE: usize = 1 << 20;

/// What is not asked for does not come: each probe of a HEALTHCHECK would be three events (`exec_*`).
const TYPES: [&str; 5] = ["container", "daemon", "network", "node", "service"];
const ACTIONS: [&str; 17] = [
    "connect",
    "create",
    "destroy",
    "die",
    "disconnect",
    "health_status",
    "kill",
    "oom",
    "pause",
    "reload",
    "remove",
    "rename",
    "restart",
    "start",
    "stop",
    "unpause",
    "update",
];

/// Something that has happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Event {
    /// When, Unix nanoseconds by the engine's clock.
    pub(crate) at_ns: u64,
    pub(crate) change: Change,
}

/// What has happened, as far as it leads to something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    /// A container has got a signal.
    Signal { container: String, signal: i32 },
    /// A container has ended.
    Died { container: String },
    /// A container has begun to run.
    Started { container: String },
    /// Something else of a container has changed; `labelled`: one that its labels make interesting.
    Container { container: String, labelled: bool },
    /// A service has changed.
    Service,
    /// A node has changed.
    Node,
    /// A network has come, gone or changed.
    Network,
    /// The engine has changed.
    Daemon,
    /// Nothing that leads to anything.
    Nothing,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Wire {
    #[serde(rename = "Type")]
    kind: String,
    #[serde(rename = "Action")]
    action: String,
    #[serde(rename = "Actor")]
    actor: Actor,
    #[serde(rename = "timeNano")]
    time_nano: u64,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Actor {
    #[serde(rename = "ID")]
    id: String,
    #[serde(rename = "Attributes")]
    attributes: serde_json::Map<String, Value>,
}

impl Event {
    /// The event of a line. A line that makes no sense is none.
    pub(crate) fn of_line(line: &[u8]) -> Option<Self> {
        let wire: Wire = serde_json::from_slice(line).ok()?;
        let Wire { actor, action, .. } = wire;
        let attribute = |name: &str| actor.attributes.get(name).and_then(Value::as_str);
        let container = actor.id.clone();
        let change = match (wire.kind.as_str(), action.as_str()) {
            ("container", "kill") => Change::Signal {
                container,
                signal: attribute("signal")?.parse().ok()?,
            },
            ("container", "die" | "destroy") => Change::Died { container },
            ("container", "start") => Change::Started { container },
            ("container", action) if is_of_interest(action) => Change::Container {
                container,
                labelled: actor.attributes.keys().any(|name| crate::concerns_us(name)),
            },
            ("network", "connect" | "disconnect") => Change::Container {
                container: attribute("container")?.to_owned(),
                labelled: false,
            },
            ("service", _) => Change::Service,
            ("node", _) => Change::Node,
            ("network", _) => Change::Network,
            ("daemon", _) => Change::Daemon,
            _ => Change::Nothing,
        };
        Some(Self {
            at_ns: wire.time_nano,
            change,
        })
    }
}

/// The rest of the actions is `create`, after which nothing runs yet, and what follows others.
fn is_of_interest(action: &str) -> bool {
    matches!(action, "pause" | "unpause" | "rename" | "update")
        || action.starts_with("health_status")
}

/// A stream of events.
pub(crate) struct Events {
    body: Incoming,
    connection: Option<Connection>,
    buffer: BytesMut,
    /// How much of the buffer is known to hold no end of a line.
    searched: usize,
}

impl Events {
    pub(super) async fn open(
        socket: &Path,
        prefix: &str,
        since_ns: Option<u64>,
    ) -> Result<Self, EngineError> {
        let filters = json!({ "type": TYPES, "event": ACTIONS }).to_string();
        let mut path = format!("{prefix}/events?filters={}", http::escape(&filters));
        if let Some(ns) = since_ns {
            use std::fmt::Write;
            // Writing to a string does not fail.
            let _ = write!(
                path,
                "&since={}.{:09}",
                ns / 1_000_000_000,
                ns % 1_000_000_000
            );
        }
        let (answer, connection) = http::open(socket, &path).await?;
        Ok(Self {
            body: answer.into_body(),
            connection: Some(connection),
            buffer: BytesMut::new(),
            searched: 0,
        })
    }

    /// The next event. What makes no sense is passed over. Nothing is lost when this is dropped half-way.
    ///
    /// # Errors
    /// The stream has ended, or broken.
    pub(crate) async fn next(&mut self) -> Result<Event, EngineError> {
        loop {
            while let Some(line) = self.line()? {
                if let Some(event) = Event::of_line(&line) {
                    return Ok(event);
                }
            }
            let frame = match &mut self.connection {
                None => self.body.frame().await,
                Some(connection) => tokio::select! {
                    biased;
                    frame = self.body.frame() => frame,
                    _ended = connection => {
                        // What has arrived is in the body still, and so is the error, if there was one.
                        self.connection = None;
                        continue;
                    }
                },
            };
            let frame = frame.ok_or(EngineError::Ended)?;
            let frame = frame.map_err(|_| EngineError::Ended)?;
            if let Some(bytes) = frame.data_ref() {
                self.buffer.extend_from_slice(bytes);
            }
        }
    }

    fn line(&mut self) -> Result<Option<BytesMut>, EngineError> {
        let unsearched = self.buffer.get(self.searched..).unwrap_or_default();
        if let Some(at) = unsearched.iter().position(|byte| *byte == b'\n') {
            let line = self.buffer.split_to(self.searched + at + 1);
            self.searched = 0;
            return Ok(Some(line));
        }
        self.searched = self.buffer.len();
        if self.searched > MAX_LINE {
            return Err(EngineError::Broken {
                path: "/events".into(),
                source: format!("an event of more than {MAX_LINE} bytes").into(),
            });
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changes(recording: &str) -> Vec<Change> {
        let lines = recording.lines().map(str::as_bytes);
        let events = lines.map(|line| Event::of_line(line).unwrap());
        events.map(|event| event.change).collect()
    }

    #[test]
    fn the_events_of_a_worker() {
        let changes = changes(include_str!("../../tests/data/worker-events.jsonl"));
        let of = |change: &Change| match change {
            Change::Signal { container, signal } => format!("{} {signal}", &container[..4]),
            Change::Died { container } => format!("{} died", &container[..4]),
            Change::Started { container } => format!("{} started", &container[..4]),
            Change::Container {
                container,
                labelled,
            } => {
                format!(
                    "{} changed{}",
                    &container[..4],
                    if *labelled { "!" } else { "" }
                )
            }
            other => format!("{other:?}"),
        };
        let seen: Vec<String> = changes.iter().map(of).filter(|c| c != "Nothing").collect();
        // `docker restart` of a task, the end of the task that replaced it, pause, unpause, a signal that
        // ends nothing, `docker stop`, a new name, and the end of the orphan.
        assert_eq!(
            seen.join(", "),
            "2757 15, 2757 9, 2757 died, 2757 changed, 2757 changed, 2757 changed, 2757 changed, \
             2757 started, 2757 15, 82f7 died, 01a4 changed!, 01a4 changed!, 4aaa 1, 92f1 15, 92f1 9, \
             92f1 died, 92f1 changed, 01a4 changed!, \
             2757 9, 2757 died, 2757 changed, 2757 changed, Network, 2757 died"
        );
    }

    #[test]
    fn the_events_of_a_manager() {
        let changes = changes(include_str!("../../tests/data/manager-events.jsonl"));
        let services = changes.iter().filter(|c| **c == Change::Service).count();
        assert!(services >= 5, "{changes:?}");
        assert!(changes.contains(&Change::Node) && changes.contains(&Change::Network));
    }

    #[test]
    fn a_line_that_makes_no_sense_is_no_event() {
        for line in [
            "",
            "{}x",
            "7",
            "null",
            r#"{"Type":1}"#,
            r#"{"Type":"container","Action":"kill"}"#,
        ] {
            assert_eq!(Event::of_line(line.as_bytes()), None, "{line}");
        }
        let unknown = Event::of_line(br#"{"Type":"image","Action":"pull"}"#).unwrap();
        assert_eq!(unknown.change, Change::Nothing);
    }

    proptest::proptest! {
        #[test]
        fn no_line_makes_it_panic(
            line in "\\PC{0,60}",
            event in 0..29_usize,
            cut in 0..400_usize,
            put in "[\\[\\]{}:,\"0-9a-z]{0,6}",
        ) {
            let _ = Event::of_line(line.as_bytes());
            let recorded = include_str!("../../tests/data/worker-events.jsonl").lines().nth(event);
            let mut changed = recorded.unwrap().to_owned();
            let cut = cut.min(changed.len());
            changed.replace_range(cut..(cut + 3).min(changed.len()), &put);
            let _ = Event::of_line(changed.as_bytes());
        }
    }
}
