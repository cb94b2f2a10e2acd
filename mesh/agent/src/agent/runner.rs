//! The one task that writes the catalog: it takes in what gossip, health checks, namespaces and users say,
//! lets [`Node`] draw the conclusions, and hands them on.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use portolan_docker::{Known, Seen};
use portolan_gossip::{Gossip, View};
use portolan_model::{Record, ServiceId, Snapshot, TaskId};
use portolan_overlay::{AttachEndpoint, Attachment, NetnsRef};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
};

use super::{
    command::{self, Command, Reply},
    health::HealthChecks,
    heard::Heard,
    node::{AttachState, Node, Wanted},
    overlay_thread::OverlayHandle,
    plane_thread::PlaneHandle,
    state::{LocalState, LocalTask, StateDir},
};
use crate::api::{Apply, Place};

/// How soon an attachment that failed is tried again.
const ATTACH_RETRY: Duration = Duration::from_millis(500);

/// What the runner tells the rest of the agent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Reasons {
    /// Why tasks of this node are not in rotation.
    pub tasks: BTreeMap<TaskId, String>,
    /// Why tasks of this node's Docker engine are not in rotation, which need not be wrong.
    pub containers: BTreeMap<TaskId, String>,
    /// What is wrong with services as Docker asks for them.
    pub services: BTreeMap<ServiceId, Vec<String>>,
    /// What else is wrong.
    pub problems: Vec<String>,
}

/// The ends of the runner's channels.
pub(super) struct Wires {
    pub commands: mpsc::Receiver<Command>,
    /// What is seen of the Docker engine; `None` if none is followed.
    pub docker: Option<watch::Receiver<Seen>>,
    pub snapshots: watch::Sender<Arc<Snapshot>>,
    pub reasons: watch::Sender<Reasons>,
    pub beat: watch::Sender<()>,
}

type Attached = BTreeMap<TaskId, (Place, Vec<Wanted>)>;

pub(super) struct Runner {
    pub(super) node: Node,
    state_dir: StateDir,
    saved: LocalState,
    gossip: Gossip,
    overlay: OverlayHandle,
    plane: PlaneHandle,
    wires: Wires,
    heard: Heard,
    /// Whether an earlier agent left its fast path at work: that counts until it is known how it is now.
    left_at_work: bool,
    published: Option<Vec<Record>>,
    health: HealthChecks,
    /// What the overlay was asked for, and has.
    attached: Attached,
    /// Why tasks that serve are not on all of their networks.
    incomplete: BTreeMap<TaskId, String>,
    /// Attaching and detaching under way: at most one for a task.
    work: JoinSet<(TaskId, Done)>,
    busy: BTreeSet<TaskId>,
    /// Users that wait for a task to be attached, or to fail.
    waiting: BTreeMap<TaskId, Reply<TaskId>>,
    save_problem: Option<String>,
    /// Why some records of this node are not published.
    publish_problems: Vec<String>,
    /// Stack files of the configuration that wait to be applied, with their hashes and what kept them.
    pub(super) pending_stacks: Vec<PendingStack>,
}

/// A stack file of the configuration that waits to be applied.
pub(super) struct PendingStack {
    pub apply: Apply,
    pub hash: String,
    pub problems: Vec<String>,
}

enum Done {
    Attached((Place, Vec<Wanted>), Result<(), String>),
    Detached(Result<(), String>),
    /// The pause after a failure is over.
    Rested,
}

impl Runner {
    pub(super) fn new(
        node: Node,
        state_dir: StateDir,
        gossip: Gossip,
        overlay: OverlayHandle,
        plane: PlaneHandle,
        left_at_work: bool,
        wires: Wires,
    ) -> Self {
        Self {
            saved: node.state().clone(),
            node,
            state_dir,
            gossip,
            overlay,
            plane,
            wires,
            heard: Heard::default(),
            left_at_work,
            published: None,
            health: HealthChecks::new(),
            attached: BTreeMap::new(),
            incomplete: BTreeMap::new(),
            work: JoinSet::new(),
            busy: BTreeSet::new(),
            waiting: BTreeMap::new(),
            save_problem: None,
            publish_problems: Vec::new(),
            pending_stacks: Vec::new(),
        }
    }

    /// Runs until every sender of commands is gone, or gossip or the overlay have ended.
    pub(super) async fn run(mut self) -> anyhow::Result<()> {
        let mut views = self.gossip.view();
        let mut overlay = self.overlay.standing();
        let mut planes = self.plane.standing();
        views.mark_changed();
        self.forget_ended_processes();
        self.detach_orphans();
        self.settle();
        loop {
            let deadline = self.node.next_deadline_ms();
            let until = deadline.map_or(Duration::from_secs(1), |at| {
                Duration::from_millis(at.saturating_sub(super::now_ms()))
                    .min(Duration::from_secs(1))
            });
            tokio::select! {
                changed = views.changed() => {
                    changed.map_err(|_| anyhow::anyhow!("gossip has ended"))?;
                    let view = Arc::clone(&views.borrow_and_update());
                    self.take_view(&view);
                }
                command = self.wires.commands.recv() => match command {
                    Some(command) => self.command(command),
                    None => return Ok(()),
                },
                known = news(&mut self.wires.docker) => self.node.set_docker(known),
                changed = overlay.changed() => {
                    changed.map_err(|_| anyhow::anyhow!("the overlay's thread has ended"))?;
                }
                changed = planes.changed() => {
                    changed.map_err(|_| anyhow::anyhow!("the planes' thread has ended"))?;
                }
                Some(done) = self.work.join_next() => {
                    let (id, done) = done.map_err(|e| anyhow::anyhow!("attaching died: {e}"))?;
                    self.done(id, done);
                }
                (id, healthy) = self.health.next() => {
                    if !self.node.set_health(&id, healthy) {
                        continue;
                    }
                    tracing::info!(task = %id, healthy, "health changed");
                }
                () = tokio::time::sleep(until) => {}
            }
            self.settle();
        }
    }

    /// Removes the tasks of processes that ended while no agent ran: their numbers may be others' by now.
    fn forget_ended_processes(&mut self) {
        let tasks: Vec<_> = self.node.state().tasks.values().cloned().collect();
        // Of a container's process Docker tells.
        let others = |task: &&LocalTask| task.file.is_none() && task.docker.is_none();
        for task in tasks.iter().filter(others) {
            if matches!(task.place, Place::Pid(_))
                && command::pid_started(&task.place) != task.pid_started
            {
                tracing::info!(task = %task.id, "its process is gone");
                self.node.remove_task(&task.id);
            }
        }
    }

    /// Detaches what an earlier agent attached and did not live to detach: its addresses may be given again.
    fn detach_orphans(&mut self) {
        let adopted = self.overlay.standing().borrow().adopted.clone();
        self.node.forget_driver_endpoints(&adopted, super::now_ms());
        for id in adopted {
            if !self.node.state().tasks.contains_key(&id) && !self.node.is_driver_endpoint(&id) {
                tracing::info!(task = %id, "still attached, and no task any more");
                self.detach(id);
            }
        }
    }

    /// Lets everything follow from what has just become known.
    pub(super) fn settle(&mut self) {
        self.let_go_of_vanished();
        let fast_path = self.fast_path();
        self.node
            .set_fast_path(fast_path.unwrap_or(self.left_at_work));
        let no_ipv6 = self.overlay.standing().borrow().no_ipv6.is_some();
        self.node.set_ipv6(!no_ipv6);
        self.node.settle_attachments();
        self.node.refresh(super::now_ms());
        self.apply_pending_stacks();
        self.answer_waiting();
        self.save_problem = self.save().err();
        self.publish();
        self.attach_and_detach();
        self.health.set(&self.node);
        self.tell_reasons();
        self.wires.beat.send_replace(());
    }

    /// Saves what has to be remembered, if it changed.
    pub(super) fn save(&mut self) -> Result<(), String> {
        if *self.node.state() == self.saved {
            return Ok(());
        }
        self.state_dir
            .save(self.node.state())
            .map_err(|e| super::with_causes(&e))?;
        self.saved = self.node.state().clone();
        Ok(())
    }

    /// Answers a user once a new task is attached, or cannot be.
    pub(super) fn answer_when_attached(&mut self, id: TaskId, reply: Reply<TaskId>) {
        self.waiting.insert(id, reply);
    }

    /// Answers those who wait for a task that is attached by now, is gone, or can have no address; the
    /// last is removed again. [`Self::done`] answers for the others.
    fn answer_waiting(&mut self) {
        let waiting: Vec<TaskId> = self.waiting.keys().cloned().collect();
        for id in waiting {
            let attached = self.node.attach_states().get(&id) == Some(&AttachState::Attached);
            let answer = match self.node.state().tasks.get(&id) {
                None => Err(format!("task {id} was removed before it was attached")),
                Some(_) if attached => Ok(id.clone()),
                Some(_) if !self.node.snapshot().synced => continue,
                Some(task) => match self.node.lacks_address(task) {
                    Some(reason) => Err(reason),
                    None => continue,
                },
            };
            if answer.is_err() {
                self.node.remove_task(&id);
            }
            if let Some(reply) = self.waiting.remove(&id) {
                drop(reply.send(answer.map_err(|reason| vec![reason])));
            }
        }
    }

    fn take_view(&mut self, view: &View) {
        if view.synced {
            self.node.set_synced(super::now_ms());
        }
        self.heard.take(view, self.node.catalog());
    }

    /// Whether others may rely on this node's fast path; `None` until that is known.
    fn fast_path(&self) -> Option<bool> {
        let standing = self.plane.standing();
        let standing = standing.borrow();
        standing.as_ref()?.fast.reliable
    }

    fn publish(&mut self) {
        let snapshot = self.node.snapshot();
        let news = self.wires.snapshots.send_if_modified(|present| {
            let changed = !Arc::ptr_eq(present, snapshot);
            *present = Arc::clone(snapshot);
            changed
        });
        if news {
            self.overlay.reconcile(Arc::clone(snapshot));
        }
        if !self.node.is_synced() {
            return;
        }
        let records = self.node.records(super::now_ms());
        if self.published.as_ref() == Some(&records) {
            return;
        }
        let mut encoded: BTreeMap<Bytes, Bytes> = BTreeMap::new();
        let mut problems = Vec::new();
        for record in &records {
            match record.encode() {
                Ok(value) => drop(encoded.insert(record.key().encode().into(), value.into())),
                Err(error) => problems.push(super::with_causes(&error)),
            }
        }
        if let Err(error) = self.gossip.set_records(encoded) {
            problems.push(super::with_causes(&error));
        }
        if problems != self.publish_problems {
            tracing::error!(?problems, "what of this node is not published");
        }
        (self.published, self.publish_problems) = (Some(records), problems);
    }

    fn attach_and_detach(&mut self) {
        let wanted = self.node.wanted_attachments();
        for (id, place) in &wanted {
            if self.busy.contains(id) || self.attached.get(id) == Some(place) {
                continue;
            }
            self.busy.insert(id.clone());
            let (overlay, plane) = (self.overlay.clone(), self.plane.clone());
            let (id, place) = (id.clone(), place.clone());
            self.work.spawn(async move {
                let result = match attachment(&id, &place) {
                    Some(attachment) => {
                        let attached = overlay.attach(attachment).await;
                        // Before others hear of the task: the fast path would not know what to do with their
                        // packets.
                        plane.surrounded().await;
                        attached
                    }
                    None => Ok(()),
                };
                (id, Done::Attached(place, result))
            });
        }
        let gone = self
            .attached
            .keys()
            .filter(|id| !wanted.contains_key(id) && !self.busy.contains(id));
        for id in gone.cloned().collect::<Vec<_>>() {
            self.detach(id);
        }
    }

    fn done(&mut self, id: TaskId, done: Done) {
        let result = match done {
            Done::Rested => {
                self.busy.remove(&id);
                return;
            }
            Done::Attached(place, Ok(())) => {
                self.attached.insert(id.clone(), place);
                self.incomplete.remove(&id);
                self.node.set_attached(&id, AttachState::Attached);
                Ok(())
            }
            // Nothing was undone: the task serves as before where it was.
            Done::Attached(place, Err(error)) if self.was_part_of(&id, &place) => {
                let before = self.incomplete.insert(id.clone(), error.clone());
                if before.as_ref() != Some(&error) {
                    tracing::warn!(task = %id, error, "not on all of its networks; it is tried again");
                }
                Err(error)
            }
            Done::Attached(_, Err(error)) => {
                self.attached.remove(&id);
                let pending = AttachState::Pending(error.clone());
                let news = self.node.set_attached(&id, pending);
                // Whoever waits for it gets the error, and the task is given up.
                if news && !self.waiting.contains_key(&id) {
                    tracing::warn!(task = %id, error, "not attached; it is tried again");
                }
                Err(error)
            }
            Done::Detached(Ok(())) => {
                self.attached.remove(&id);
                Ok(())
            }
            Done::Detached(Err(error)) => {
                tracing::warn!(task = %id, error, "not detached; it is tried again");
                Err(error)
            }
        };
        if result.is_ok() {
            self.busy.remove(&id);
        } else {
            let id = id.clone();
            self.work.spawn(async move {
                tokio::time::sleep(ATTACH_RETRY).await;
                (id, Done::Rested)
            });
        }
        if let Some(reply) = self.waiting.remove(&id) {
            if result.is_err() {
                self.node.remove_task(&id);
            }
            // Whoever asked may have gone; then no one needs the answer.
            drop(reply.send(result.map(|()| id).map_err(|error| vec![error])));
        }
    }

    /// Whether a task was attached before to some of this, and to nothing else; with or without IPv6.
    fn was_part_of(&self, id: &TaskId, (place, wanted): &(Place, Vec<Wanted>)) -> bool {
        let same = |had: &Wanted, now: &Wanted| {
            let ipv6 = now.ipv6.clone();
            *now == Wanted {
                ipv6,
                ..had.clone()
            }
        };
        let had = self.attached.get(id);
        had.is_some_and(|(there, had)| {
            there == place
                && had
                    .iter()
                    .all(|had| wanted.iter().any(|now| same(had, now)))
        })
    }

    /// Detaches what the overlay says to have lost its namespace. It says so until that is done.
    fn let_go_of_vanished(&mut self) {
        let vanished = self.overlay.standing().borrow().vanished.clone();
        for id in vanished.difference(&self.busy.clone()) {
            tracing::info!(task = %id, "its network namespace is gone");
            self.attached.remove(id);
            self.node.namespace_gone(id);
            self.detach(id.clone());
        }
    }

    fn detach(&mut self, id: TaskId) {
        self.busy.insert(id.clone());
        let overlay = self.overlay.clone();
        self.work.spawn(async move {
            let result = overlay.detach(id.clone()).await;
            (id, Done::Detached(result))
        });
    }

    fn tell_reasons(&mut self) {
        let tasks = &self.node.state().tasks;
        self.incomplete.retain(|id, _| tasks.contains_key(id));
        let synced = self.node.snapshot().synced;
        let tasks = self.node.state().tasks.values().filter(|_| synced);
        let lacking = tasks.filter_map(|t| Some((t.id.clone(), self.node.lacks_address(t)?)));
        let states = self.node.attach_states().iter();
        let pending = states.filter_map(|(id, state)| match state {
            AttachState::Pending(reason) => Some((id.clone(), reason.clone())),
            AttachState::Attached => None,
        });
        let stacks = self.pending_stacks.iter().flat_map(|stack| &stack.problems);
        let own = self.save_problem.iter().chain(&self.publish_problems);
        let mut services: BTreeMap<ServiceId, Vec<String>> = BTreeMap::new();
        let mut engine = Vec::new();
        for finding in self.node.docker_findings() {
            match finding.service {
                Some(id) => services.entry(id).or_default().push(finding.text),
                None => engine.push(finding.text),
            }
        }
        let tasks = self.node.state().tasks.keys();
        let containers = tasks.filter_map(|id| Some((id.clone(), self.node.why_waiting(id)?)));
        let reasons = Reasons {
            tasks: lacking
                .chain(self.incomplete.clone())
                .chain(pending)
                .collect(),
            containers: containers.collect(),
            services,
            problems: own.chain(stacks).chain(&engine).cloned().collect(),
        };
        self.wires.reasons.send_if_modified(|present| {
            let changed = *present != reasons;
            *present = reasons;
            changed
        });
    }
}

/// What the Docker engine says next. Pending for ever if none is followed, or if it is not followed any more.
async fn news(docker: &mut Option<watch::Receiver<Seen>>) -> Arc<Known> {
    if let Some(docker) = docker {
        while docker.changed().await.is_ok() {
            if let Some(known) = docker.borrow_and_update().known.clone() {
                return known;
            }
        }
    }
    std::future::pending().await
}

fn attachment(id: &TaskId, (place, wanted): &(Place, Vec<Wanted>)) -> Option<Attachment> {
    let netns = match place {
        Place::Netns(path) => NetnsRef::Path(path.clone()),
        Place::Pid(pid) => NetnsRef::Pid(*pid),
        Place::Address(_) => return None,
    };
    let endpoints = wanted.iter().map(|w| AttachEndpoint {
        network: w.network.clone(),
        vni: w.vni,
        subnet: w.subnet,
        own_range: w.own_range,
        address: w.address,
        mac: w.mac,
        gateway: w.gateway,
        ipv6: w.ipv6.clone(),
    });
    Some(Attachment {
        id: id.clone(),
        netns,
        endpoints: endpoints.collect(),
    })
}
