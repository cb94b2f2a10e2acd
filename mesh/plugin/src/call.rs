//! Docker's calls: those that are answered here, and those that are the agent's.

use std::{fmt, str::FromStr, time::Duration};

use serde_json::{Value, json};

/// The type of what plugins say, of the version that Docker has spoken since 1.11.
pub(crate) const MEDIA_TYPE: &str = "application/vnd.docker.plugins.v1.2+json";
/// What the types of a protocol that is known here start with.
const PROTOCOL: &str = "application/vnd.docker.plugins.v1";

/// Whose networks are: of each engine, or of its Swarm. Docker asks for it once, when the plugin is enabled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// A manager of the Swarm creates a network, and it is there on every node.
    Global,
    /// Each engine creates its own.
    Local,
}

/// A scope that is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("SCOPE is '{0}'; set it to global on the nodes of a Swarm, and to local on other engines")]
pub struct UnknownScope(String);

impl FromStr for Scope {
    type Err = UnknownScope;

    fn from_str(text: &str) -> Result<Self, UnknownScope> {
        match text {
            "global" => Ok(Self::Global),
            "local" => Ok(Self::Local),
            _ => Err(UnknownScope(text.to_owned())),
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Global => "global",
            Self::Local => "local",
        })
    }
}

/// What becomes of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Call {
    /// It has this answer.
    Answer(Value),
    /// The agent has the answer to the call of this name.
    Agent {
        /// The call's name, without `NetworkDriver.`.
        name: &'static str,
        /// How long an agent that is away is waited for.
        patience: Duration,
    },
    /// This version knows no such call.
    Unknown(String),
}

/// Docker gives up a call after 30 seconds, and who typed the command after fewer.
const SETTING_UP: Duration = Duration::from_secs(10);
/// Docker goes on without us, and who takes down a node may have ended the agent first.
const TAKING_DOWN: Duration = Duration::from_secs(2);

impl Call {
    /// Decides by a request's path and the type of answer that it asks for.
    pub fn of(path: &str, accepts: Option<&str>, scope: Scope) -> Self {
        let agent = |name, patience| Self::Agent { name, patience };
        let done = || Self::Answer(json!({}));
        if let Some(other) = accepts.filter(|kind| !kind.contains(PROTOCOL) && *kind != "*/*") {
            return Self::Unknown(format!("answers of type {other}"));
        }
        match path {
            "/Plugin.Activate" => Self::Answer(json!({ "Implements": ["NetworkDriver"] })),
            "/NetworkDriver.GetCapabilities" => {
                let scope = scope.to_string();
                Self::Answer(json!({ "Scope": scope, "ConnectivityScope": "global" }))
            }
            "/NetworkDriver.AllocateNetwork" => agent("AllocateNetwork", SETTING_UP),
            "/NetworkDriver.CreateNetwork" => agent("CreateNetwork", SETTING_UP),
            "/NetworkDriver.DeleteNetwork" => agent("DeleteNetwork", TAKING_DOWN),
            "/NetworkDriver.CreateEndpoint" => agent("CreateEndpoint", SETTING_UP),
            "/NetworkDriver.Join" => agent("Join", SETTING_UP),
            "/NetworkDriver.Leave" => agent("Leave", TAKING_DOWN),
            "/NetworkDriver.DeleteEndpoint" => agent("DeleteEndpoint", TAKING_DOWN),
            "/NetworkDriver.EndpointOperInfo" => Self::Answer(json!({ "Value": {} })),
            // A VNI needs not be given back. Who is where the agents know from one another, and ports are
            // published by other means than a network's driver.
            "/NetworkDriver.FreeNetwork"
            | "/NetworkDriver.DiscoverNew"
            | "/NetworkDriver.DiscoverDelete"
            | "/NetworkDriver.ProgramExternalConnectivity"
            | "/NetworkDriver.RevokeExternalConnectivity" => done(),
            other => Self::Unknown(other.trim_start_matches('/').to_owned()),
        }
    }
}
