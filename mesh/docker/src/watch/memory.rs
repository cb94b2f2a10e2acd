//! What has been heard of an engine, by answers and by events. Nothing here waits or connects.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use serde_json::Value;
use tokio::time::Instant;

use super::{
    reading::{Asked, Question},
    signal,
};
use crate::{
    Observed,
    engine::{Change, EngineError, Event},
    observed::{
        Container, DockerNetwork, Engine, Kind, Listed, Readable, SwarmNode, SwarmService,
        SwarmTask, Unreadable, read, read_list,
    },
};

/// For how long a container that has got its stop signal is taken to be about to end, unless it has a time
/// to do so configured. Docker does not show the one of a Swarm's service on workers.
const STOPPING: Duration = Duration::from_mins(10);
/// Docker's own lag behind the time that is configured.
const GRACE: Duration = Duration::from_secs(10);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Memory {
    engine: Option<Engine>,
    networks: Option<Vec<DockerNetwork>>,
    services: Option<Vec<SwarmService>>,
    tasks: Option<Vec<SwarmTask>>,
    nodes: Option<Vec<SwarmNode>>,
    containers: BTreeMap<String, Container>,
    /// Whether it is known which containers there are, and those of them that have not been looked at yet.
    listed: bool,
    unseen: BTreeSet<String>,
    /// Containers that are about to end, and until when that is believed.
    stopping: BTreeMap<String, Instant>,
    /// How often a container has ended: an answer from before that says nothing.
    ages: BTreeMap<String, u64>,
    unreadable: BTreeMap<(Kind, String), Unreadable>,
    /// Questions without an answer, and why.
    failing: BTreeMap<Question, String>,
    last_event_ns: Option<u64>,
    /// The Swarm's networks as a worker has them, each with its age, by which [`Self::take_role`] goes.
    on_swarm: Option<BTreeSet<(String, u64)>>,
    /// Whether anything may have changed since [`Self::news`] was asked last.
    touched: bool,
    /// What was told last.
    told: Option<Observed>,
}

/// The questions that only a manager answers.
const OF_SWARM: [Question; 3] = [Question::Services, Question::Tasks, Question::Nodes];

impl Memory {
    /// Where to resume the events.
    pub(super) fn last_event_ns(&self) -> Option<u64> {
        self.last_event_ns
    }

    /// The Swarm's name for this node.
    pub(super) fn node_id(&self) -> String {
        let swarm = self.engine.as_ref().and_then(|e| e.swarm.as_ref());
        swarm.map(|swarm| swarm.node_id.clone()).unwrap_or_default()
    }

    fn is_manager(&self) -> bool {
        let swarm = self.engine.as_ref().and_then(|e| e.swarm.as_ref());
        swarm.is_some_and(|swarm| swarm.manager)
    }

    /// What [`Asked`] is to hold.
    pub(super) fn age(&self, question: &Question) -> u64 {
        match question {
            Question::Container(id) => self.ages.get(id).copied().unwrap_or_default(),
            _ => 0,
        }
    }

    /// The questions that find out everything.
    pub(super) fn everything(&self) -> Vec<Question> {
        let mut all = vec![Question::Engine, Question::Networks, Question::Containers];
        if self.is_manager() {
            all.extend(OF_SWARM);
        }
        all
    }

    /// What has to be asked time and again, as no event tells of it, or none for sure: whether a worker was
    /// promoted, or has left, whether a manager that refuses is one still, and whether a Swarm that is being joined is.
    pub(super) fn pulse(&self) -> Option<Question> {
        let swarm = self.engine.as_ref()?.swarm.as_ref()?;
        let refuses = || OF_SWARM.iter().any(|of| self.failing.contains_key(of));
        match swarm.state.as_str() {
            "active" if swarm.manager => refuses().then_some(Question::Engine),
            "active" => Some(Question::Role),
            _ => Some(Question::Engine),
        }
    }

    /// Whether there is anyone to answer a question.
    pub(super) fn has_answer(&self, question: &Question) -> bool {
        self.is_manager() || !OF_SWARM.contains(question)
    }

    /// Takes note of a new connection, on which everything will be asked anew.
    pub(super) fn reconnected(&mut self) {
        self.failing.clear();
        self.on_swarm = None;
    }

    /// Takes note of an event, and says what is to be asked now.
    pub(super) fn event(&mut self, event: &Event, now: Instant) -> Vec<Question> {
        // Events come nearly in the order of their times. After a new connection the last one comes again,
        // which does no harm.
        self.last_event_ns = self
            .last_event_ns
            .max(Some(event.at_ns).filter(|ns| *ns > 0));
        let mut questions = match &event.change {
            Change::Signal { container, signal } => {
                self.signal(container, *signal, now);
                return Vec::new();
            }
            Change::Died { container } => {
                self.end(container);
                Vec::new()
            }
            Change::Started { container } => {
                self.stopping.remove(container);
                self.touched = true;
                vec![Question::Container(container.clone())]
            }
            Change::Container {
                container,
                labelled,
            } => {
                if !labelled && !self.containers.contains_key(container) {
                    return Vec::new();
                }
                return vec![Question::Container(container.clone())];
            }
            Change::Service => vec![Question::Services],
            Change::Node => vec![Question::Engine, Question::Nodes],
            // No event tells of a Swarm that is joined or left; its networks come and go with it.
            Change::Network => vec![Question::Engine, Question::Networks],
            Change::Daemon => vec![Question::Engine],
            Change::Nothing => return Vec::new(),
        };
        if self.is_manager() {
            questions.push(Question::Tasks);
        } else {
            questions.retain(|question| self.has_answer(question));
        }
        questions
    }

    /// A container whose stop signal this is ends soon, and a drain that begins now is one that helps.
    fn signal(&mut self, id: &str, signal: i32, now: Instant) {
        let container = self.containers.get(id);
        let configured = container.and_then(|c| signal::number(&c.stop_signal));
        if ![Some(signal::KILL), Some(signal::TERM), configured].contains(&Some(signal)) {
            return;
        }
        let timeout = container.and_then(|c| c.stop_timeout_s);
        let until = timeout.map_or(STOPPING, |s| Duration::from_secs(s.into()) + GRACE);
        self.stopping.entry(id.to_owned()).or_insert(now + until);
        self.touched = true;
    }

    fn end(&mut self, id: &str) {
        self.containers.remove(id);
        self.unseen.remove(id);
        self.stopping.remove(id);
        self.failing.remove(&Question::Container(id.to_owned()));
        self.unreadable.remove(&(Kind::Container, id.to_owned()));
        *self.ages.entry(id.to_owned()).or_default() += 1;
        self.touched = true;
    }

    /// Takes containers that have outlived their stop signal for what they are, and forgets the age of those
    /// that are long gone.
    pub(super) fn forget_survivors(&mut self, now: Instant) {
        self.stopping.retain(|_, until| now < *until);
        self.touched = true;
        // Ages matter while an answer is under way, which is not for long.
        if self.ages.len() > 10_000 {
            self.ages.clear();
        }
    }

    /// Takes an answer, and says what is to be asked now.
    pub(super) fn answer(
        &mut self,
        asked: &Asked,
        answer: Result<Value, EngineError>,
    ) -> Vec<Question> {
        let question = &asked.question;
        self.touched = true;
        if !self.has_answer(question) {
            return Vec::new();
        }
        if *question == Question::Role {
            return self.take_role(answer);
        }
        let json = match answer {
            Ok(json) => json,
            Err(error) => return self.no_answer(asked, &error),
        };
        self.failing.remove(question);
        match question {
            Question::Engine => return self.take_engine(json),
            Question::Role => {}
            Question::Networks => {
                take(&mut self.networks, &mut self.unreadable, json, |network| {
                    &network.id
                });
            }
            Question::Services => {
                take(&mut self.services, &mut self.unreadable, json, |service| {
                    &service.id
                });
            }
            Question::Tasks => {
                take(&mut self.tasks, &mut self.unreadable, json, |task| &task.id);
            }
            Question::Nodes => {
                take(&mut self.nodes, &mut self.unreadable, json, |node| &node.id);
            }
            Question::Containers => return self.take_list(json),
            Question::Container(id) => {
                if self.age(question) != asked.age {
                    return vec![question.clone()];
                }
                self.take_container(id, json);
            }
        }
        Vec::new()
    }

    /// Who has left a Swarm has its networks no more. A manager knows them as the Swarm created them, a worker
    /// as it got them itself, which is later. To ask what only a manager answers would be surer, and each refusal
    /// would be an error in the engine's log; to ask for its part costs the engine ten times as much.
    fn take_role(&mut self, answer: Result<Value, EngineError>) -> Vec<Question> {
        // What does not answer at all is told of by other questions.
        let Some(Ok((networks, _))) = answer.ok().map(read_list::<DockerNetwork>) else {
            return Vec::new();
        };
        let of_swarm = networks.into_iter().filter(|network| network.swarm);
        let now = Some(of_swarm.map(|n| (n.id, n.created_ms)).collect());
        // The first answer too: the node's part may have changed since it was asked for.
        let is_news = self.on_swarm != now;
        self.on_swarm = now;
        if is_news && !self.is_manager() {
            return vec![Question::Engine];
        }
        Vec::new()
    }

    fn no_answer(&mut self, asked: &Asked, error: &EngineError) -> Vec<Question> {
        match &asked.question {
            Question::Container(id) if error.is_absent() => {
                if self.age(&asked.question) == asked.age {
                    self.end(id);
                }
                Vec::new()
            }
            question => {
                self.failing.insert(question.clone(), super::reason(error));
                // A manager that has become a worker refuses.
                if OF_SWARM.contains(question) && matches!(error, EngineError::Refused { .. }) {
                    return vec![Question::Engine];
                }
                Vec::new()
            }
        }
    }

    fn take_engine(&mut self, json: Value) -> Vec<Question> {
        let key = (Kind::Engine, String::new());
        match read(json) {
            Ok(engine) => {
                self.unreadable.remove(&key);
                let before = (self.is_manager(), self.node_id());
                self.engine = Some(engine);
                if self.is_manager() && before != (true, self.node_id()) {
                    return OF_SWARM.to_vec();
                }
            }
            Err(unreadable) => {
                self.unreadable.insert(key, unreadable);
            }
        }
        if !self.is_manager() {
            (self.services, self.tasks, self.nodes) = (None, None, None);
            let of_swarm = [Kind::Service, Kind::Task, Kind::Node];
            self.unreadable
                .retain(|(kind, _), _| !of_swarm.contains(kind));
            let of_swarm = [Question::Services, Question::Tasks, Question::Nodes];
            self.failing
                .retain(|question, _| !of_swarm.contains(question));
        }
        Vec::new()
    }

    /// Which containers run: each of them is looked at, and so is each that is not in the list, as it may
    /// have started since.
    fn take_list(&mut self, json: Value) -> Vec<Question> {
        let list = match read_list::<Listed>(json) {
            // A container that cannot be read here is looked at too, and told of then.
            Ok((list, bad)) => {
                let bad = bad.into_iter().map(|unreadable| unreadable.id);
                let ours = list.into_iter().filter(|listed| self.is_ours(listed));
                let ids = ours.map(|listed| listed.id).chain(bad);
                ids.filter(|id| !id.is_empty())
                    .collect::<BTreeSet<String>>()
            }
            Err(unreadable) => {
                let key = (Kind::Container, String::new());
                self.unreadable.insert(key, unreadable);
                return Vec::new();
            }
        };
        if !self.listed || !self.unseen.is_empty() {
            self.listed = true;
            let unseen = list.iter().filter(|id| !self.containers.contains_key(*id));
            self.unseen = unseen.cloned().collect();
        }
        let containers = &self.containers;
        self.unreadable.retain(|(kind, id), _| {
            *kind != Kind::Container || containers.contains_key(id) || list.contains(id)
        });
        let known = self.containers.keys().cloned();
        let all: BTreeSet<String> = list.into_iter().chain(known).collect();
        all.into_iter().map(Question::Container).collect()
    }

    fn is_ours(&self, listed: &Listed) -> bool {
        listed.labelled || listed.networks.iter().any(|id| self.is_our_network(id))
    }

    /// Whether a network is of Portolan's driver, or may be: before they are known any may.
    fn is_our_network(&self, id: &str) -> bool {
        let Some(networks) = &self.networks else {
            return true;
        };
        let network = networks.iter().find(|network| network.id == *id);
        network.is_none_or(|network| crate::translate::is_our_driver(&network.driver))
    }

    fn take_container(&mut self, id: &str, json: Value) {
        self.unseen.remove(id);
        let key = (Kind::Container, id.to_owned());
        match read::<Container>(json) {
            Ok(container) => {
                self.unreadable.remove(&key);
                let labelled = container.labels.keys().any(|name| crate::concerns_us(name));
                let ours = labelled
                    || container
                        .networks
                        .iter()
                        .any(|n| self.is_our_network(&n.id));
                if ours && container.id == *id {
                    self.containers.insert(id.to_owned(), container);
                } else {
                    self.containers.remove(id);
                }
            }
            // It is what it was before.
            Err(unreadable) => {
                self.unreadable.insert(key, unreadable);
            }
        }
    }

    /// Everything that is known; `None` until all has been read once.
    fn observed(&self) -> Option<Observed> {
        let engine = self.engine.clone()?;
        let networks = self.networks.clone()?;
        let (services, tasks, nodes) = if self.is_manager() {
            (
                self.services.clone()?,
                self.tasks.clone()?,
                self.nodes.clone()?,
            )
        } else {
            Default::default()
        };
        if !(self.listed && self.unseen.is_empty()) {
            return None;
        }
        let containers = self
            .containers
            .values()
            .cloned()
            .map(|container| Container {
                stopping: self.stopping.contains_key(&container.id),
                ..container
            });
        Some(Observed {
            engine,
            services,
            tasks,
            nodes,
            networks,
            containers: containers.collect(),
            unreadable: self.unreadable.values().cloned().collect(),
        })
    }

    /// What is known, if that is everything and differs from what was told last.
    pub(super) fn news(&mut self) -> Option<Observed> {
        if !std::mem::take(&mut self.touched) {
            return None;
        }
        let observed = self.observed()?;
        if self.told.as_ref() == Some(&observed) {
            return None;
        }
        self.told = Some(observed.clone());
        Some(observed)
    }

    /// Why not all is known as it is now.
    pub(super) fn trouble(&self) -> Option<String> {
        let no_list = |((kind, id), bad): (&(Kind, String), &Unreadable)| {
            id.is_empty().then(|| {
                format!(
                    "what the Docker engine says of its {kind}s makes no sense: {}",
                    bad.reason
                )
            })
        };
        let Some((_, reason)) = self.failing.first_key_value() else {
            return self.unreadable.iter().find_map(no_list);
        };
        let others = self.failing.len() - 1;
        Some(match others {
            0 => reason.clone(),
            1 => format!("{reason}; and one more question has no answer"),
            _ => format!("{reason}; and {others} more questions have no answer"),
        })
    }
}

/// Takes a list anew. An object that cannot be read is what it was before.
fn take<T: Readable + Clone>(
    known: &mut Option<Vec<T>>,
    unreadable: &mut BTreeMap<(Kind, String), Unreadable>,
    json: Value,
    id: impl Fn(&T) -> &String,
) {
    unreadable.retain(|(kind, _), _| *kind != T::KIND);
    match read_list::<T>(json) {
        Ok((mut objects, bad)) => {
            for bad in bad {
                let old = known.iter().flatten().find(|old| *id(old) == bad.id);
                objects.extend(old.cloned());
                unreadable.insert((T::KIND, bad.id.clone()), bad);
            }
            *known = Some(objects);
        }
        Err(bad) => {
            unreadable.insert((T::KIND, String::new()), bad);
        }
    }
}
