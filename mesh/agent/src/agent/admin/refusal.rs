//! How the admin API says no, and the request bodies that it says no to.

use axum::{
    Json,
    body::Bytes,
    extract::{FromRequest, Request},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use portolan_gossip::KeyError;
use serde::de::DeserializeOwned;

use super::MAX_BODY;
use crate::{agent::with_causes, api::ErrorBody};

/// An error for the client: a status, and lines with what is wrong and the remedy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    pub status: StatusCode,
    pub errors: Vec<String>,
}

impl Refusal {
    pub(super) fn new(status: StatusCode, error: impl Into<String>) -> Self {
        Self {
            status,
            errors: vec![error.into()],
        }
    }

    /// The request itself is wrong.
    pub(super) fn bad_input(error: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, error)
    }

    /// The agent is about to end and takes no commands any more.
    pub(super) fn ending() -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "the agent is ending; start it again first",
        )
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (
            self.status,
            Json(ErrorBody {
                errors: self.errors,
            }),
        )
            .into_response()
    }
}

impl From<KeyError> for Refusal {
    fn from(error: KeyError) -> Self {
        let status = match &error {
            KeyError::Format | KeyError::Zero | KeyError::Id => StatusCode::BAD_REQUEST,
            KeyError::Missing(_) => StatusCode::NOT_FOUND,
            KeyError::TooMany
            | KeyError::Duplicate(_)
            | KeyError::Primary(_)
            | KeyError::Insecure => StatusCode::CONFLICT,
            KeyError::Ended => return Self::ending(),
            KeyError::Line { .. }
            | KeyError::Empty
            | KeyError::File { .. }
            | KeyError::Random(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::new(status, with_causes(&error))
    }
}

/// A JSON body, whatever content type it is sent as.
pub(super) struct Body<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = Refusal;

    async fn from_request(request: Request, state: &S) -> Result<Self, Refusal> {
        let bytes = Bytes::from_request(request, state)
            .await
            .map_err(|rejection| {
                let error = match rejection.status() {
                    StatusCode::PAYLOAD_TOO_LARGE => {
                        format!("the request is longer than {MAX_BODY} bytes")
                    }
                    _ => rejection.body_text(),
                };
                Refusal::new(rejection.status(), error)
            })?;
        match Json::from_bytes(&bytes) {
            Ok(Json(body)) => Ok(Self(body)),
            Err(rejection) => Err(Refusal::bad_input(rejection.body_text())),
        }
    }
}
