//! A trace over HTTP: an answer without an end.

use axum::{
    body::Body,
    extract::{Query, State, rejection::QueryRejection},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Deserialize;

use super::refusal::Refusal;
use crate::{
    agent::{
        shared::Shared,
        trace::{self, Untraceable},
        with_causes,
    },
    api::TraceSyntax,
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TraceQuery {
    client: String,
    frontend: Option<String>,
}

pub(super) async fn trace(
    State(shared): State<Shared>,
    query: Result<Query<TraceQuery>, QueryRejection>,
) -> Result<Response, Refusal> {
    let Query(query) = query.map_err(|e| Refusal::bad_input(e.body_text()))?;
    let client = query.client.parse()?;
    let frontend = query.frontend.map(|text| text.parse()).transpose()?;
    let lines = trace::start(shared, client, frontend)?;
    let kind = [(header::CONTENT_TYPE, "application/x-ndjson")];
    Ok((kind, Body::from_stream(lines)).into_response())
}

impl From<TraceSyntax> for Refusal {
    fn from(error: TraceSyntax) -> Self {
        Self::bad_input(error.to_string())
    }
}

impl From<Untraceable> for Refusal {
    fn from(error: Untraceable) -> Self {
        let status = match &error {
            Untraceable::Busy(_) => StatusCode::CONFLICT,
            Untraceable::NoFastPath(_) => StatusCode::SERVICE_UNAVAILABLE,
            Untraceable::Failed(_) | Untraceable::Wait(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::new(status, with_causes(&error))
    }
}
