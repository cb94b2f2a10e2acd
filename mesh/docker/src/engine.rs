//! A client of the engine's API: HTTP over its unix socket, of which this reads and never writes.

mod event;
mod http;

use std::{
    io,
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::Value;

use crate::observed::{Engine, read};
pub(crate) use event::{Change, Event, Events};

/// The version of the API that is spoken where the engine can: that of Docker 20.10, from December 2020.
const API: (u32, u32) = (1, 41);
/// An answer takes a millisecond, and a second while a container starts.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Why the engine cannot be asked, or gives no answer.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// There is no engine at the socket, or it is not for this user.
    #[error("no Docker engine at {}: {}", .socket.display(), unreachable_because(.source))]
    Unreachable {
        /// The socket.
        socket: PathBuf,
        /// What connecting to it said.
        source: io::Error,
    },
    /// It speaks no version of the API that is understood here.
    #[error(
        "the Docker engine at {} is too old: it speaks version {api} of the API, and {}.{} is needed; install Docker 20.10 or later",
        .socket.display(), API.0, API.1
    )]
    TooOld {
        /// The socket.
        socket: PathBuf,
        /// The latest version that it speaks.
        api: String,
    },
    /// What answers is no Docker engine.
    #[error(
        "what answers at {} is no Docker engine; name its socket by --docker PATH",
        .0.display()
    )]
    NoEngine(PathBuf),
    /// It refused a question.
    #[error("the Docker engine refuses {path} ({status}): {message}")]
    Refused {
        /// What was asked.
        path: String,
        /// The status of HTTP.
        status: u16,
        /// The engine's words.
        message: String,
    },
    /// No answer in time.
    #[error(
        "the Docker engine has not answered {path} for {} s; if that goes on, restart it", .after.as_secs()
    )]
    Silent {
        /// What was asked.
        path: String,
        /// How long was waited.
        after: Duration,
    },
    /// The connection broke, or what came over it was not understood.
    #[error("the Docker engine broke off its answer to {path}")]
    Broken {
        /// What was asked.
        path: String,
        /// What was wrong.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The stream of events has ended, as it does with the engine.
    #[error("the Docker engine has ended its events; it is being restarted, or has ended")]
    Ended,
}

impl EngineError {
    /// Whether there is no socket.
    pub(crate) fn finds_no_socket(&self) -> bool {
        matches!(self, Self::Unreachable { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }

    /// Whether the engine says that there is no such object.
    pub(crate) fn is_absent(&self) -> bool {
        matches!(self, Self::Refused { status: 404, .. })
    }
}

/// The address that the engine at a unix socket has in its Swarm. `None`: it is in none, or does not say.
///
/// # Errors
/// It cannot be asked, or gives no answer.
pub async fn swarm_address(socket: &Path) -> Result<Option<IpAddr>, EngineError> {
    let info = Client::connect(socket).await?.get("/info").await?;
    let engine = read::<Engine>(info).ok();
    Ok(engine.and_then(|engine| engine.swarm?.address))
}

fn unreachable_because(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => {
            "the socket does not exist; start Docker, or name its socket by --docker PATH"
                .to_owned()
        }
        io::ErrorKind::ConnectionRefused => {
            "nothing listens on the socket; start Docker (`systemctl start docker`)".to_owned()
        }
        io::ErrorKind::PermissionDenied => {
            "permission denied; run the agent as root, or as a member of the group docker"
                .to_owned()
        }
        _ => error.to_string(),
    }
}

/// One engine. Each question has a connection of its own, so that a slow answer holds no other up.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    socket: PathBuf,
    /// What goes before the paths: `/v1.41`.
    prefix: String,
}

impl Client {
    /// Asks the engine which versions of the API it speaks.
    pub(crate) async fn connect(socket: &Path) -> Result<Self, EngineError> {
        let mut client = Self {
            socket: socket.to_owned(),
            prefix: String::new(),
        };
        let answer = client.get("/version").await?;
        let version = |key: &str| {
            let (major, minor) = answer.get(key)?.as_str()?.split_once('.')?;
            Some((major.parse().ok()?, minor.parse().ok()?))
        };
        let Some(latest) = version("ApiVersion") else {
            return Err(EngineError::NoEngine(client.socket));
        };
        if latest < API {
            return Err(EngineError::TooOld {
                socket: client.socket,
                api: format!("{}.{}", latest.0, latest.1),
            });
        }
        let (major, minor) = version("MinAPIVersion").unwrap_or(API).max(API);
        client.prefix = format!("/v{major}.{minor}");
        Ok(client)
    }

    /// What the engine answers to a path of its API.
    pub(crate) async fn get(&self, path: &str) -> Result<Value, EngineError> {
        let full = format!("{}{path}", self.prefix);
        let answer = tokio::time::timeout(TIMEOUT, http::get(&self.socket, &full));
        match answer.await {
            Ok(answer) => answer,
            Err(_) => Err(EngineError::Silent {
                path: path.to_owned(),
                after: TIMEOUT,
            }),
        }
    }

    /// The tasks of one node of the Swarm.
    pub(crate) async fn tasks_of(&self, node: &str) -> Result<Value, EngineError> {
        let filters = serde_json::json!({ "node": [node] }).to_string();
        self.get(&format!("/tasks?filters={}", http::escape(&filters)))
            .await
    }

    /// The Swarm's networks, as far as this node knows them. It costs the engine as little as a question can, and
    /// no engine writes to its log that it was asked.
    pub(crate) async fn swarm_networks(&self) -> Result<Value, EngineError> {
        let filters = serde_json::json!({ "scope": ["swarm"] }).to_string();
        self.get(&format!("/networks?filters={}", http::escape(&filters)))
            .await
    }

    /// Follows the events from now on, or from a time that the last one had, in nanoseconds.
    pub(crate) async fn events(&self, since_ns: Option<u64>) -> Result<Events, EngineError> {
        let opened = Events::open(&self.socket, &self.prefix, since_ns);
        match tokio::time::timeout(TIMEOUT, opened).await {
            Ok(opened) => opened,
            Err(_) => Err(EngineError::Silent {
                path: "/events".into(),
                after: TIMEOUT,
            }),
        }
    }
}
