//! What the agent serves over TCP: metrics, probes, and a status page. All of it only tells; nothing can be
//! changed here.
//!
//! | path | answer |
//! |---|---|
//! | `/` | the status page |
//! | `/metrics` | Prometheus' text format, as docs/metrics.md lists it |
//! | `/healthz` | 200 while the agent's loop moves |
//! | `/readyz` | 200 when the node serves as it should, else 503 and what it waits for |
//! | `/api/all.json` | [`All`] |
//! | `/api/status.json`, `/api/nodes.json`, ... | as the admin API's GET of that name |

pub(super) mod connections;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::{
    Json, Router,
    extract::{Request, State},
    http::{HeaderName, HeaderValue, Method, StatusCode, header},
    middleware::{self, Next},
    response::{Html, IntoResponse, Response},
    routing::get,
};
use portolan_model::NodeState;
use serde::Serialize;
use tokio::{net::TcpListener, sync::watch};
use tokio_util::sync::CancellationToken;

use super::{metrics, shared::Shared, views::Facts};
use crate::api::{NetworkRow, NodeRow, ServiceRow, Status, TaskRow};
use connections::Limits;

const PAGE: &str = include_str!("http/page.html");
/// The runner's heart beats at least once a second; past this it is taken for stuck.
const STUCK: Duration = Duration::from_secs(5);
const LIMITS: Limits = Limits {
    connections: 256,
    lifetime: Some(Duration::from_mins(5)),
};
/// The page brings all that it needs, and speaks with this agent alone.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; \
                      connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; \
                      frame-ancestors 'none'";

/// Everything that the page shows, of one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct All {
    status: Status,
    nodes: Vec<NodeRow>,
    networks: Vec<NetworkRow>,
    services: Vec<ServiceRow>,
    tasks: Vec<TaskRow>,
}

/// Answers until cancelled.
///
/// # Errors
/// None at present.
pub(super) async fn serve(
    shared: Shared,
    listener: TcpListener,
    cancel: CancellationToken,
) -> anyhow::Result<()> {
    let pages = Pages {
        shared: shared.clone(),
        last_beat_ms: Arc::default(),
    };
    let beats = pages.clone().follow_beats(shared.beat);
    tokio::select! {
        () = connections::serve(listener, router(pages), LIMITS, &cancel) => Ok(()),
        () = beats => Ok(()),
    }
}

#[derive(Clone)]
struct Pages {
    shared: Shared,
    /// When the runner's heart beat last, in milliseconds after the agent's start.
    last_beat_ms: Arc<AtomicU64>,
}

impl Pages {
    /// Notes each beat, and never ends: a heart that has stopped is to be seen.
    async fn follow_beats(self, mut beat: watch::Receiver<()>) {
        loop {
            self.last_beat_ms.store(self.age_ms(), Ordering::Relaxed);
            if beat.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    fn age_ms(&self) -> u64 {
        u64::try_from(self.shared.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn since_beat(&self) -> Duration {
        Duration::from_millis(
            self.age_ms()
                .saturating_sub(self.last_beat_ms.load(Ordering::Relaxed)),
        )
    }
}

fn router(pages: Pages) -> Router {
    Router::new()
        .route("/", get(async || Html(PAGE)))
        .route("/metrics", get(metrics))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/api/all.json", get(all))
        .route(
            "/api/status.json",
            get(async |s: State<Pages>| Json(facts(&s).await.status())),
        )
        .route(
            "/api/nodes.json",
            get(async |s: State<Pages>| Json(facts(&s).await.nodes())),
        )
        .route(
            "/api/networks.json",
            get(async |s: State<Pages>| Json(facts(&s).await.networks())),
        )
        .route(
            "/api/services.json",
            get(async |s: State<Pages>| Json(facts(&s).await.services())),
        )
        .route(
            "/api/tasks.json",
            get(async |s: State<Pages>| Json(facts(&s).await.tasks())),
        )
        .fallback(async || (StatusCode::NOT_FOUND, "not found\n"))
        .layer(middleware::from_fn(guard))
        .with_state(pages)
}

/// Lets only reading pass, and tells browsers what the answers may do.
async fn guard(request: Request, next: Next) -> Response {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let allow = [(header::ALLOW, "GET, HEAD")];
        return (StatusCode::METHOD_NOT_ALLOWED, allow, "only GET and HEAD\n").into_response();
    }
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CACHE_CONTROL, "no-store"),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (
            HeaderName::from_static("cross-origin-resource-policy"),
            "same-origin",
        ),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

async fn facts(State(pages): &State<Pages>) -> Facts {
    Facts::gather(&pages.shared).await
}

async fn all(state: State<Pages>) -> Json<All> {
    let facts = facts(&state).await;
    Json(All {
        status: facts.status(),
        nodes: facts.nodes(),
        networks: facts.networks(),
        services: facts.services(),
        tasks: facts.tasks(),
    })
}

async fn healthz(State(pages): State<Pages>) -> (StatusCode, String) {
    health(pages.since_beat())
}

fn health(since_beat: Duration) -> (StatusCode, String) {
    if since_beat < STUCK {
        return (StatusCode::OK, "ok\n".to_owned());
    }
    let seconds = since_beat.as_secs();
    let text = format!("the agent's loop has not moved for {seconds} s\n");
    (StatusCode::SERVICE_UNAVAILABLE, text)
}

async fn readyz(State(pages): State<Pages>) -> (StatusCode, String) {
    let snapshot = pages.shared.snapshot();
    let own = snapshot.nodes.get(&snapshot.me);
    let leaving = own.is_some_and(|node| node.state == NodeState::Leaving);
    let waits = pages.shared.waiting_for();
    if leaving {
        return (
            StatusCode::SERVICE_UNAVAILABLE,
            "the node leaves\n".to_owned(),
        );
    }
    if waits.is_empty() {
        return (StatusCode::OK, "ready\n".to_owned());
    }
    let lines: String = waits
        .iter()
        .map(|what| format!("waiting for {what}\n"))
        .collect();
    (StatusCode::SERVICE_UNAVAILABLE, lines)
}

async fn metrics(State(pages): State<Pages>) -> Response {
    match metrics::text(&pages.shared).await {
        Ok(text) => ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error:#}\n")).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_heart_that_stops_is_seen() {
        assert_eq!(health(Duration::from_secs(1)).0, StatusCode::OK);
        let (status, text) = health(Duration::from_secs(61));
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        assert!(text.contains("61 s"), "{text}");
    }
}
