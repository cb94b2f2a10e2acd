//! What users ask of the running agent, and how it answers.

use std::path::PathBuf;

use anyhow::Context;
use portolan_model::TaskId;
use sha2::{Digest, Sha256};
use tokio::sync::oneshot;

use super::{
    node::{DriverChange, Joined},
    runner::{PendingStack, Runner},
};
use crate::api::{AddTask, Applied, Apply, Attach, Place, Removed};

/// Lines for the user: what is wrong, each with its remedy.
pub(super) type Refusal = Vec<String>;
/// The way back to who asked.
pub(super) type Reply<T> = oneshot::Sender<Result<T, Refusal>>;

/// A request, with the way back.
#[derive(Debug)]
pub(super) enum Command {
    Apply(Apply, Reply<Applied>),
    Remove(String, Reply<Removed>),
    /// Answers the task's id once it is attached.
    AddTask(AddTask, Reply<TaskId>),
    Attach(Attach, Reply<TaskId>),
    RemoveTask(String, Reply<TaskId>),
    DrainTask(String, Reply<TaskId>),
    SetDraining(bool, Reply<()>),
    /// Docker speaks to its network driver.
    Driver(DriverChange, Reply<()>),
    /// Of an endpoint, where its container will be.
    DriverJoin {
        id: TaskId,
        netns: PathBuf,
        reply: Reply<Joined>,
    },
    /// Announces that the node leaves; answers for how long, in milliseconds, its tasks drain.
    Leave(oneshot::Sender<u32>),
}

impl Runner {
    pub(super) fn command(&mut self, command: Command) {
        // A reply that cannot be delivered is one that no one waits for any more.
        match command {
            Command::Apply(apply, reply) => drop(reply.send(self.change(|r| r.apply(&apply)))),
            Command::Remove(name, reply) => {
                drop(
                    reply.send(self.change(|r| r.node.remove(&name, super::now_ms()).map_err(one))),
                );
            }
            Command::AddTask(add, reply) => self.add_task(add, reply),
            Command::Attach(attach, reply) => self.attach(attach, reply),
            Command::RemoveTask(name, reply) => drop(reply.send(self.change(|r| {
                let id = r.node.find_task(&name).map_err(one)?;
                r.node.end_task(&id).map_err(one)?;
                Ok(id)
            }))),
            Command::DrainTask(name, reply) => drop(reply.send(self.change(|r| {
                let id = r.node.find_task(&name).map_err(one)?;
                r.node.drain_task(&id, super::now_ms()).map_err(one)?;
                Ok(id)
            }))),
            Command::SetDraining(draining, reply) => drop(reply.send(self.change(|r| {
                r.node.set_draining(draining, super::now_ms());
                Ok(())
            }))),
            Command::Driver(change, reply) => drop(
                reply.send(self.change(|r| r.node.driver(change, super::now_ms()).map_err(one))),
            ),
            Command::DriverJoin { id, netns, reply } => drop(
                reply.send(self.change(|r| r.node.join_driver_endpoint(&id, netns).map_err(one))),
            ),
            Command::Leave(reply) => {
                self.node.set_leaving();
                let _unheard = reply.send(self.node.longest_drain_ms());
            }
        }
    }

    /// Makes a change that counts only once the disk has it.
    fn change<T>(
        &mut self,
        change: impl FnOnce(&mut Self) -> Result<T, Refusal>,
    ) -> Result<T, Refusal> {
        let before = self.node.state().clone();
        let result = change(self).and_then(|result| {
            self.node.refresh(super::now_ms());
            let saved = self.save().map(|()| result);
            saved.map_err(|error| vec![format!("{error}; nothing was changed")])
        });
        if result.is_err() {
            self.node.restore(before);
            self.node.refresh(super::now_ms());
        }
        result
    }

    /// Takes the stack files of the configuration, of which those are applied that changed since they last
    /// were: an older text must not overrule what was declared later.
    pub(super) fn take_stack_files(&mut self, paths: &[PathBuf]) -> anyhow::Result<()> {
        for path in paths {
            let text = std::fs::read_to_string(path)
                .with_context(|| format!("stack: cannot read {}", path.display()))?;
            let source = path.display().to_string();
            if let Err(problems) = portolan_provider::parse(&text, &source, None) {
                let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
                anyhow::bail!("stack: {}", lines.join("\n"));
            }
            let hash = hash_of(&text);
            if self.node.state().stack_files.get(&source) != Some(&hash) {
                let apply = Apply {
                    text,
                    source,
                    name: None,
                    prune: false,
                };
                self.pending_stacks.push(PendingStack {
                    apply,
                    hash,
                    problems: Vec::new(),
                });
            }
        }
        Ok(())
    }

    /// Applies the stack files that wait, once the cluster is known. One that cannot be applied now is
    /// tried again: what stands against it may go.
    pub(super) fn apply_pending_stacks(&mut self) {
        if !self.node.snapshot().synced {
            return;
        }
        for mut stack in std::mem::take(&mut self.pending_stacks) {
            let applied = self.change(|r| {
                r.apply(&stack.apply)?;
                let (path, hash) = (stack.apply.source.clone(), stack.hash.clone());
                r.node.note_stack_file(path, hash);
                Ok(())
            });
            match applied {
                Ok(()) => tracing::info!(file = stack.apply.source, "stack file applied"),
                Err(problems) => {
                    if problems != stack.problems {
                        tracing::warn!(
                            file = stack.apply.source,
                            ?problems,
                            "stack file not applied; it is tried again"
                        );
                    }
                    stack.problems = problems;
                    self.pending_stacks.push(stack);
                }
            }
        }
    }

    fn add_task(&mut self, add: AddTask, reply: Reply<TaskId>) {
        let AddTask {
            service,
            place,
            slot,
            weight,
        } = add;
        let result = self.change(|r| {
            let (id, started) = (new_task_id().map_err(|e| vec![e])?, pid_started(&place));
            r.node
                .add_task(id.clone(), &service, place, slot, weight, None)
                .map_err(one)?;
            r.node.set_pid_started(&id, started);
            Ok(id)
        });
        match result {
            Ok(id) => {
                self.node.settle_attachments();
                self.answer_when_attached(id, reply);
            }
            Err(refusal) => drop(reply.send(Err(refusal))),
        }
    }

    fn attach(&mut self, attach: Attach, reply: Reply<TaskId>) {
        let result = self.change(|r| {
            let (id, started) = (
                new_task_id().map_err(|e| vec![e])?,
                pid_started(&attach.place),
            );
            r.node
                .attach(id.clone(), &attach.network, attach.place)
                .map_err(one)?;
            r.node.set_pid_started(&id, started);
            Ok(id)
        });
        match result {
            Ok(id) => {
                self.node.settle_attachments();
                self.answer_when_attached(id, reply);
            }
            Err(refusal) => drop(reply.send(Err(refusal))),
        }
    }

    /// Applies a stack file, and makes its tasks for this node follow it.
    fn apply(&mut self, apply: &Apply) -> Result<Applied, Refusal> {
        let stack = portolan_provider::parse(&apply.text, &apply.source, apply.name.as_deref())
            .map_err(|problems| problems.iter().map(ToString::to_string).collect::<Vec<_>>())?;
        let now_ms = super::now_ms();
        let mut applied = self
            .node
            .apply(&stack, apply.prune, now_ms)
            .map_err(|errors| {
                errors
                    .iter()
                    .map(|e| super::with_causes(e))
                    .collect::<Vec<_>>()
            })?;
        self.node.refresh(now_ms);
        let file = stack.name.clone().unwrap_or_else(|| apply.source.clone());
        self.node
            .set_static_tasks(&file, &stack.tasks, now_ms)
            .map_err(|errors| errors.iter().map(ToString::to_string).collect::<Vec<_>>())?;
        self.node.refresh(now_ms);
        let snapshot = self.node.snapshot();
        let state = self.node.state();
        let here = state
            .tasks
            .values()
            .filter(|task| task.file.as_deref() == Some(&file));
        applied.tasks = here
            .filter_map(|task| snapshot.tasks.get(&task.id))
            .map(|view| snapshot.task_name(&view.task))
            .collect();
        let named =
            |service: &portolan_model::Service| stack.services.iter().any(|s| s.id == service.id);
        applied.problems = snapshot
            .services
            .values()
            .filter(|view| named(&view.service))
            .flat_map(|view| {
                view.problems
                    .iter()
                    .map(|p| format!("service {}: {p}", view.service.name))
            })
            .collect();
        Ok(applied)
    }
}

fn one(error: impl std::error::Error) -> Refusal {
    vec![super::with_causes(&error)]
}

/// When the process of a place started, in clock ticks since boot (proc(5), stat, field 22).
pub(super) fn pid_started(place: &Place) -> Option<u64> {
    let Place::Pid(pid) = place else { return None };
    let process = portolan_overlay::processes().join(pid.to_string());
    let stat = std::fs::read_to_string(process.join("stat")).ok()?;
    // The second field is the program's name in parentheses, and may hold anything.
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_whitespace().nth(19)?.parse().ok()
}

/// A new identity for a task: 60 random bits, letters and digits as other engines show them.
fn new_task_id() -> Result<TaskId, String> {
    const ALPHABET: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";
    let mut random = [0_u8; 12];
    getrandom::fill(&mut random).map_err(|e| format!("the kernel gives no random numbers: {e}"))?;
    let id: String = random
        .iter()
        .filter_map(|byte| ALPHABET.get(usize::from(byte % 32)))
        .map(|letter| char::from(*letter))
        .collect();
    id.parse().map_err(|e| format!("{e}"))
}

/// The SHA-256 of a text, hexadecimal.
fn hash_of(text: &str) -> String {
    Sha256::digest(text)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}
