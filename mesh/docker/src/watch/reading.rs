//! Questions to the engine: each asked once at a time, some at once, and not more often than needed.

use std::{collections::BTreeSet, future::Future, pin::Pin, time::Duration};

use futures_util::{StreamExt, stream::FuturesUnordered};
use serde_json::Value;
use tokio::time::Instant;

use super::memory::Memory;
use crate::engine::{Client, EngineError};

/// So many questions are asked at once: an inspect takes up to a second while its container starts, and must
/// not hold up the others, nor may a hundred of them hold up the engine.
const AT_ONCE: usize = 8;
/// What happens in this time leads to one question: a deployment is a burst of events.
const TOGETHER: Duration = Duration::from_millis(5);
/// The time from one round of questions to the next.
const APART: Duration = Duration::from_millis(50);
/// After how long a question without an answer is asked again.
const AGAIN: Duration = Duration::from_secs(1);

/// A question to the engine. First those on which what others mean depends.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Question {
    /// The engine and its part in the Swarm.
    Engine,
    /// Whether the node's part in the Swarm may have changed, cheaply: no event tells of a worker that has left.
    Role,
    /// The networks.
    Networks,
    /// The Swarm's services.
    Services,
    /// The Swarm's tasks on this node.
    Tasks,
    /// The Swarm's nodes.
    Nodes,
    /// Which containers run.
    Containers,
    /// One container.
    Container(String),
}

/// A question as it was asked: the container's age tells whether it has ended since.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Asked {
    pub(super) question: Question,
    pub(super) age: u64,
}

type Answer = Result<Value, EngineError>;
type Asking = Pin<Box<dyn Future<Output = (Asked, Answer)> + Send>>;

/// The questions that wait, and those that are asked.
pub(super) struct Reading {
    client: Client,
    /// Those that wait for others to be asked together with them.
    waiting: BTreeSet<Question>,
    /// Those that wait only until fewer are asked, or until their own last answer is there.
    ready: BTreeSet<Question>,
    asked: BTreeSet<Question>,
    asking: FuturesUnordered<Asking>,
    /// When those that wait may be asked.
    at: Option<Instant>,
    last: Option<Instant>,
    /// Those that failed, and when they are asked again.
    failed: BTreeSet<Question>,
    again: Option<Instant>,
}

impl Reading {
    pub(super) fn new(client: Client) -> Self {
        Self {
            client,
            waiting: BTreeSet::new(),
            ready: BTreeSet::new(),
            asked: BTreeSet::new(),
            asking: FuturesUnordered::new(),
            at: None,
            last: None,
            failed: BTreeSet::new(),
            again: None,
        }
    }

    /// Has a question asked soon; one that is asked just now is asked once more, as its answer may be older
    /// than what the question is asked for.
    pub(super) fn ask(&mut self, question: Question) {
        self.waiting.insert(question);
        let now = Instant::now();
        let next = self.last.map_or(now, |last| last + APART);
        self.at.get_or_insert(next.max(now + TOGETHER));
    }

    /// Asks what waits, and gives the next answer. Pending for ever while there is nothing to ask. Nothing is
    /// lost when this is dropped half-way.
    pub(super) async fn next(&mut self, memory: &Memory) -> (Asked, Answer) {
        loop {
            let (at, again) = (self.at, self.again);
            tokio::select! {
                biased;
                Some((asked, answer)) = self.asking.next() => {
                    self.asked.remove(&asked.question);
                    let is_role = asked.question == Question::Role;
                    if answer.as_ref().is_err_and(|error| !is_role && !error.is_absent()) {
                        self.failed.insert(asked.question.clone());
                        self.again.get_or_insert_with(|| Instant::now() + AGAIN);
                    }
                    self.start(memory);
                    return (asked, answer);
                }
                () = until(at) => {
                    self.at = None;
                    self.last = Some(Instant::now());
                    let waiting = std::mem::take(&mut self.waiting).into_iter();
                    self.ready.extend(waiting.filter(|question| memory.has_answer(question)));
                    self.start(memory);
                }
                () = until(again) => {
                    self.again = None;
                    for question in std::mem::take(&mut self.failed) {
                        self.ask(question);
                    }
                }
            }
        }
    }

    /// Asks as many as may be asked at once. The others follow when there are answers.
    fn start(&mut self, memory: &Memory) {
        let free = AT_ONCE.saturating_sub(self.asked.len());
        let ready = self.ready.difference(&self.asked).take(free);
        let ready: Vec<Question> = ready.cloned().collect();
        for question in ready {
            self.ready.remove(&question);
            self.asked.insert(question.clone());
            self.failed.remove(&question);
            let asked = Asked {
                age: memory.age(&question),
                question,
            };
            let (client, node) = (self.client.clone(), memory.node_id());
            self.asking.push(Box::pin(async move {
                let answer = put(&client, &asked.question, &node).await;
                (asked, answer)
            }));
        }
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

async fn put(client: &Client, question: &Question, node: &str) -> Answer {
    match question {
        Question::Engine => client.get("/info").await,
        Question::Role => client.swarm_networks().await,
        Question::Networks => client.get("/networks").await,
        Question::Services => client.get("/services").await,
        Question::Tasks => client.tasks_of(node).await,
        Question::Nodes => client.get("/nodes").await,
        Question::Containers => client.get("/containers/json").await,
        Question::Container(id) => client.get(&format!("/containers/{id}/json")).await,
    }
}
