//! Requests that change something.

use std::time::Duration;

use axum::{
    Json,
    extract::{Path, State},
    http::StatusCode,
};
use portolan_gossip::{KeyEntry, KeyId};
use portolan_model::{NodeState, Snapshot, TaskId, TaskState};
use tokio::{sync::oneshot, time::timeout};

use super::refusal::{Body, Refusal};
use crate::{
    agent::{
        command::{Command, Reply},
        shared::{LeaveRequest, Shared},
        views::Facts,
    },
    api::{
        AddTask, Applied, Apply, Attach, Key, Keys, Leave, NodeRow, Place, Remove, Removed, TaskRow,
    },
};

/// How long a change may take to show. It is made by then, and what is answered is at worst a little old.
const SHOWS: Duration = Duration::from_secs(1);

pub(super) type Answer<T> = Result<Json<T>, Refusal>;

pub(super) async fn apply(
    State(shared): State<Shared>,
    Body(apply): Body<Apply>,
) -> Answer<Applied> {
    portolan_provider::parse(&apply.text, &apply.source, apply.name.as_deref()).map_err(
        |wrong| Refusal {
            status: StatusCode::BAD_REQUEST,
            errors: wrong.iter().map(ToString::to_string).collect(),
        },
    )?;
    let mut beat = shared.beat.clone();
    beat.mark_unchanged();
    let applied = ask(&shared, |reply| Command::Apply(apply, reply)).await?;
    let applied = applied.map_err(|errors| Refusal {
        status: StatusCode::CONFLICT,
        errors,
    })?;
    // An agent that ends meanwhile has applied it all the same.
    drop(timeout(SHOWS, beat.changed()).await);
    Ok(Json(applied))
}

pub(super) async fn remove(
    State(shared): State<Shared>,
    Body(remove): Body<Remove>,
) -> Answer<Removed> {
    let status = {
        let snapshot = shared.snapshot();
        found(has_named(&snapshot, &remove.name))
    };
    let removed = ask(&shared, |reply| Command::Remove(remove.name, reply)).await?;
    let removed = removed.map_err(|errors| Refusal { status, errors })?;
    let gone = |snapshot: &Snapshot| {
        removed
            .services
            .iter()
            .all(|name| snapshot.services.values().all(|v| v.service.name != *name))
            && removed
                .networks
                .iter()
                .all(|name| snapshot.networks.keys().all(|n| n.as_str() != name))
    };
    shows(&shared, gone).await;
    Ok(Json(removed))
}

pub(super) async fn add_task(
    State(shared): State<Shared>,
    Body(add): Body<AddTask>,
) -> Answer<TaskRow> {
    let status = match &add.place {
        Place::Address(ip) if ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() => {
            StatusCode::BAD_REQUEST
        }
        _ => found(
            shared
                .snapshots
                .borrow()
                .find_service(&add.service)
                .is_some(),
        ),
    };
    let id = ask(&shared, |reply| Command::AddTask(add, reply)).await?;
    added(&shared, id.map_err(|errors| Refusal { status, errors })?).await
}

pub(super) async fn attach(
    State(shared): State<Shared>,
    Body(attach): Body<Attach>,
) -> Answer<TaskRow> {
    let status = if matches!(attach.place, Place::Address(_)) {
        StatusCode::BAD_REQUEST
    } else {
        let snapshot = shared.snapshot();
        found(
            snapshot
                .networks
                .keys()
                .any(|name| name.as_str() == attach.network),
        )
    };
    let id = ask(&shared, |reply| Command::Attach(attach, reply)).await?;
    added(&shared, id.map_err(|errors| Refusal { status, errors })?).await
}

pub(super) async fn remove_task(
    State(shared): State<Shared>,
    Path(name): Path<String>,
) -> Answer<TaskRow> {
    let before = Facts::gather(&shared).await;
    let id = ask(&shared, |reply| Command::RemoveTask(name.clone(), reply)).await?;
    let id = id.map_err(|errors| no_task(&before.snapshot, &name, errors))?;
    shows(&shared, |snapshot| !snapshot.tasks.contains_key(&id)).await;
    before.task(&id).map(Json).ok_or_else(|| not_shown(&id))
}

pub(super) async fn drain_task(
    State(shared): State<Shared>,
    Path(name): Path<String>,
) -> Answer<TaskRow> {
    let before = shared.snapshot();
    let id = ask(&shared, |reply| Command::DrainTask(name.clone(), reply)).await?;
    let id = id.map_err(|errors| no_task(&before, &name, errors))?;
    shows(&shared, |s| {
        s.tasks
            .get(&id)
            .is_none_or(|task| task.state == TaskState::Draining)
    })
    .await;
    Facts::gather(&shared)
        .await
        .task(&id)
        .map(Json)
        .ok_or_else(|| not_shown(&id))
}

pub(super) async fn drain_node(State(shared): State<Shared>) -> Answer<NodeRow> {
    set_draining(&shared, true).await
}

pub(super) async fn activate_node(State(shared): State<Shared>) -> Answer<NodeRow> {
    set_draining(&shared, false).await
}

async fn set_draining(shared: &Shared, draining: bool) -> Answer<NodeRow> {
    let done = ask(shared, |reply| Command::SetDraining(draining, reply)).await?;
    done.map_err(|errors| Refusal {
        status: StatusCode::CONFLICT,
        errors,
    })?;
    let state = |s: &Snapshot| s.nodes.get(&s.me).map(|node| node.state);
    shows(shared, |snapshot| match state(snapshot) {
        Some(NodeState::Up) => !draining,
        Some(NodeState::Draining) => draining,
        Some(NodeState::Leaving) | None => true,
    })
    .await;
    Ok(Json(Facts::gather(shared).await.own_node()))
}

/// Answers when the node has left, with what could not be cleaned up.
pub(super) async fn leave(
    State(shared): State<Shared>,
    Body(Leave { clean }): Body<Leave>,
) -> Answer<serde_json::Value> {
    let (done, left) = oneshot::channel();
    shared
        .leave
        .send(LeaveRequest { clean, done })
        .await
        .map_err(|_| Refusal::ending())?;
    match left.await {
        Ok(failed) if failed.is_empty() => Ok(Json(serde_json::json!({}))),
        Ok(errors) => Err(Refusal {
            status: StatusCode::INTERNAL_SERVER_ERROR,
            errors,
        }),
        Err(_) => Err(Refusal::ending()),
    }
}

pub(super) async fn keys(State(shared): State<Shared>) -> Answer<Keys> {
    listed(shared.gossip.keyring_list().await?)
}

pub(super) async fn install_key(
    State(shared): State<Shared>,
    Body(key): Body<Key>,
) -> Answer<Keys> {
    listed(shared.gossip.keyring_install(key.key.parse()?).await?)
}

pub(super) async fn use_key(State(shared): State<Shared>, Body(key): Body<Key>) -> Answer<Keys> {
    listed(shared.gossip.keyring_use(key_id(&key)?).await?)
}

pub(super) async fn remove_key(State(shared): State<Shared>, Body(key): Body<Key>) -> Answer<Keys> {
    listed(shared.gossip.keyring_remove(key_id(&key)?).await?)
}

fn key_id(key: &Key) -> Result<KeyId, Refusal> {
    Ok(key.key.parse()?)
}

#[expect(clippy::unnecessary_wraps, reason = "the shape of every answer")]
fn listed(mut keys: Vec<KeyEntry>) -> Answer<Keys> {
    keys.sort_by_key(|key| !key.primary);
    Ok(Json(Keys {
        ids: keys.iter().map(|key| key.id.to_string()).collect(),
    }))
}

/// Asks the runner.
pub(super) async fn ask<T>(
    shared: &Shared,
    command: impl FnOnce(Reply<T>) -> Command,
) -> Result<Result<T, Vec<String>>, Refusal> {
    let (reply, answer) = oneshot::channel();
    shared
        .commands
        .send(command(reply))
        .await
        .map_err(|_| Refusal::ending())?;
    answer.await.map_err(|_| Refusal::ending())
}

/// Waits until a change shows in the snapshot.
async fn shows(shared: &Shared, change: impl Fn(&Snapshot) -> bool) {
    let mut snapshots = shared.snapshots.clone();
    // Neither a snapshot that comes late nor an agent that ends takes the change back.
    drop(timeout(SHOWS, snapshots.wait_for(|snapshot| change(snapshot))).await);
}

/// The row of a task that has just been added and attached.
async fn added(shared: &Shared, id: TaskId) -> Answer<TaskRow> {
    shows(shared, |snapshot| {
        snapshot.tasks.get(&id).is_some_and(|view| {
            let service = view
                .task
                .service
                .as_ref()
                .and_then(|id| snapshot.services.get(id));
            let checked = service.is_some_and(|view| view.service.health.is_some());
            !view.task.endpoints.is_empty() && (checked || view.state != TaskState::Starting)
        })
    })
    .await;
    Facts::gather(shared)
        .await
        .task(&id)
        .map(Json)
        .ok_or_else(|| not_shown(&id))
}

/// The status of a refusal about an object that is there or not.
const fn found(there: bool) -> StatusCode {
    if there {
        StatusCode::CONFLICT
    } else {
        StatusCode::NOT_FOUND
    }
}

fn has_named(snapshot: &Snapshot, name: &str) -> bool {
    let services = snapshot.services.values().map(|view| &view.service.stack);
    let networks = snapshot.networks.values().map(|view| &view.network.stack);
    snapshot.find_service(name).is_some()
        || snapshot
            .networks
            .keys()
            .any(|network| network.as_str() == name)
        || services
            .chain(networks)
            .any(|stack| stack.as_deref() == Some(name))
}

/// A task of this node was refused; if the name is that of another node's task, that is said.
fn no_task(snapshot: &Snapshot, name: &str, errors: Vec<String>) -> Refusal {
    let named = |id: &TaskId, task_name: &str| id.as_str() == name || task_name == name;
    let mut tasks = snapshot.tasks.iter().filter(|(id, view)| {
        let task_name = snapshot.task_name(&view.task);
        named(id, &task_name) || (view.node == snapshot.me && id.as_str().starts_with(name))
    });
    match tasks.next().map(|(_, view)| view.node) {
        None => Refusal {
            status: StatusCode::NOT_FOUND,
            errors,
        },
        Some(node) if node == snapshot.me => Refusal {
            status: StatusCode::CONFLICT,
            errors,
        },
        Some(node) => Refusal::new(
            StatusCode::CONFLICT,
            format!(
                "task {name} runs on node {}; ask the agent there",
                snapshot.node_name(&node)
            ),
        ),
    }
}

fn not_shown(id: &TaskId) -> Refusal {
    let error = format!("task {id} is gone again; `portolan status` may show why");
    Refusal::new(StatusCode::SERVICE_UNAVAILABLE, error)
}
