//! The admin API on a unix socket, as [`crate::api`] describes it.
//!
//! Reading is answered from [`Facts`]; what changes anything goes to the runner, and is answered when it
//! shows in what others read.

mod commands;
mod driver;
mod refusal;
mod socket;
mod trace;

use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, Query, State, rejection::QueryRejection},
    http::{Method, StatusCode, Uri},
    routing::{delete, get, post},
};
use serde::Deserialize;
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;

pub(super) use socket::bind;

use super::{
    http::connections::{self, Limits},
    plane_thread::{FlowFilter, ServiceFlow},
    shared::Shared,
    views::Facts,
};
use crate::api::{Joining, NetworkRow, NodeRow, ServiceRow, Status, TaskRow};
use refusal::Refusal;

/// The longest request body: a stack file of the 4 MiB that one may have, with its characters escaped.
const MAX_BODY: usize = 8 << 20;
/// Answers of `/v1/flows` if no limit is given, and at most.
const FLOWS: (usize, usize) = (100, 100_000);
/// Requests may last as long as draining does.
const LIMITS: Limits = Limits {
    connections: 128,
    lifetime: None,
};

/// Answers until cancelled, then removes the socket.
///
/// # Errors
/// The socket cannot be removed.
pub(super) async fn serve(
    shared: Shared,
    listener: UnixListener,
    cancel: CancellationToken,
) -> anyhow::Result<()> {
    let path = shared.config.socket.clone();
    connections::serve(listener, router(shared), LIMITS, &cancel).await;
    socket::remove(&path)
}

fn router(shared: Shared) -> Router {
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/nodes", get(nodes))
        .route("/v1/networks", get(networks))
        .route("/v1/services", get(services))
        .route("/v1/tasks", get(tasks).post(commands::add_task))
        .route("/v1/tasks/{id}", delete(commands::remove_task))
        .route("/v1/tasks/{id}/drain", post(commands::drain_task))
        .route("/v1/apply", post(commands::apply))
        .route("/v1/rm", post(commands::remove))
        .route("/v1/attach", post(commands::attach))
        .route("/v1/node/drain", post(commands::drain_node))
        .route("/v1/node/activate", post(commands::activate_node))
        .route("/v1/leave", post(commands::leave))
        .route("/v1/keys", get(commands::keys))
        .route("/v1/keys/install", post(commands::install_key))
        .route("/v1/keys/use", post(commands::use_key))
        .route("/v1/keys/remove", post(commands::remove_key))
        .route("/v1/driver/{call}", post(driver::driver))
        .route("/v1/flows", get(flows))
        .route("/v1/trace", get(trace::trace))
        .route("/v1/join", get(join))
        .route("/v1/version", get(version))
        .method_not_allowed_fallback(wrong_method)
        .fallback(unknown)
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(shared)
}

async fn status(State(shared): State<Shared>) -> Json<Status> {
    Json(Facts::gather(&shared).await.status())
}

async fn nodes(State(shared): State<Shared>) -> Json<Vec<NodeRow>> {
    Json(Facts::gather(&shared).await.nodes())
}

async fn networks(State(shared): State<Shared>) -> Json<Vec<NetworkRow>> {
    Json(Facts::gather(&shared).await.networks())
}

async fn services(State(shared): State<Shared>) -> Json<Vec<ServiceRow>> {
    Json(Facts::gather(&shared).await.services())
}

async fn tasks(State(shared): State<Shared>) -> Json<Vec<TaskRow>> {
    Json(Facts::gather(&shared).await.tasks())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FlowsQuery {
    limit: Option<usize>,
    service: Option<String>,
}

async fn flows(
    State(shared): State<Shared>,
    query: Result<Query<FlowsQuery>, QueryRejection>,
) -> Result<Json<Vec<ServiceFlow>>, Refusal> {
    let Query(FlowsQuery { limit, service }) =
        query.map_err(|e| Refusal::bad_input(e.body_text()))?;
    if let Some(name) = &service {
        let snapshot = shared.snapshot();
        let mut services = snapshot.services.values();
        if !services.any(|view| view.service.name == *name) {
            let error = format!("there is no service '{name}'; `portolan services` lists them");
            return Err(Refusal::bad_input(error));
        }
    }
    let (usual, most) = FLOWS;
    let limit = limit.unwrap_or(usual).min(most);
    let filter = FlowFilter { limit, service };
    Ok(Json(shared.plane.flows(filter).await))
}

async fn join(State(shared): State<Shared>) -> Json<Joining> {
    Json(Facts::gather(&shared).await.joining())
}

async fn version() -> Json<serde_json::Value> {
    Json(serde_json::json!({ "version": super::VERSION }))
}

async fn unknown(uri: Uri) -> Refusal {
    Refusal::new(
        StatusCode::NOT_FOUND,
        format!(
            "there is no {} in the admin API of {}",
            uri.path(),
            super::VERSION
        ),
    )
}

async fn wrong_method(method: Method, uri: Uri) -> Refusal {
    Refusal::new(
        StatusCode::METHOD_NOT_ALLOWED,
        format!("{} does not take {method}", uri.path()),
    )
}
