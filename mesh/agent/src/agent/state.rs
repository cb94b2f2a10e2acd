//! What a node has to remember over a restart: what was declared on it, its tasks, and its claims.
//! Kept as one JSON file in the state directory, replaced as a whole and synced before the change counts.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{self, Write},
    net::Ipv4Addr,
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixListener},
    },
    path::{Path, PathBuf},
};

use ipnetwork::Ipv4Network;
use portolan_model::{
    Endpoint, MacAddress, Network, NetworkName, Service, ServiceId, Slice, TaskId, TaskState,
};
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use crate::api::Place;

const FILE: &str = "node.json";
const FORMAT: u32 = 1;

/// A task that runs on this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LocalTask {
    pub id: TaskId,
    /// The service; `None` for a namespace that is only attached.
    pub service: Option<ServiceId>,
    pub slot: u32,
    pub weight: u16,
    pub place: Place,
    /// When the process of [`Place::Pid`] started, in clock ticks since boot: the number may be another's later.
    #[serde(default)]
    pub pid_started: Option<u64>,
    /// The networks that it is on, in the order of its interfaces.
    pub networks: Vec<NetworkName>,
    /// Its addresses, as far as they are given.
    pub endpoints: Vec<Endpoint>,
    /// The stack file that holds it; such a task waits for its namespace, others go with it.
    pub file: Option<String>,
    /// What Docker says of it; `None` if Docker does not run it.
    #[serde(default)]
    pub docker: Option<DockerTask>,
    /// What its health checks found last, which holds over a restart of the agent; `None` before the first.
    #[serde(default)]
    pub healthy: Option<bool>,
    /// When its drain ends, Unix milliseconds; it is removed then.
    pub drain_until_ms: Option<u64>,
}

/// What Docker says of a task that is a container of its.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct DockerTask {
    /// The container's name.
    pub name: String,
    /// When it was started last, Unix milliseconds.
    pub started_ms: u64,
    /// The endpoints that Docker has given addresses and interfaces; they are not attached once more.
    pub given: Vec<Endpoint>,
    /// Whether it may get flows, as far as Docker knows.
    pub state: TaskState,
    /// Whether a HEALTHCHECK stands behind the state.
    pub checked: bool,
    /// Why it is not in rotation.
    pub reason: Option<String>,
}

/// What this node's Docker engine has declared, by name: the identity of the engine in its Swarm, `None` for what it
/// declares alone. What is not wanted any more is removed by who declared it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct DockerDeclared {
    pub services: BTreeMap<ServiceId, Option<String>>,
    pub networks: BTreeMap<NetworkName, Option<String>>,
}

/// What Docker has asked of its network driver on this node, by Docker's identities.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Driver {
    pub networks: BTreeMap<String, DriverNetwork>,
    /// By the first digits of the endpoint's identity.
    pub endpoints: BTreeMap<TaskId, DriverEndpoint>,
}

/// A network of Docker's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DriverNetwork {
    pub subnet: Ipv4Network,
    /// The VNI, if it was given one when it was created: in a Swarm by its manager.
    pub vni: Option<u32>,
}

/// An address that Docker has given on one of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct DriverEndpoint {
    /// Docker's identity of the network.
    pub network: String,
    pub address: Ipv4Addr,
    pub mac: MacAddress,
    /// Since when it is there, Unix milliseconds.
    pub since_ms: u64,
    /// Where the container is; `None` before it is joined and after it has left.
    pub place: Option<DriverPlace>,
}

/// A container's place on a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct DriverPlace {
    pub network: NetworkName,
    pub netns: PathBuf,
}

/// The slices held on one network.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct HeldSlices {
    pub slices: Vec<Slice>,
    /// Since when no task of this node is on the network, Unix milliseconds.
    pub unused_since_ms: Option<u64>,
}

/// Everything that a node remembers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LocalState {
    format: u32,
    /// Since when the node drains, Unix milliseconds.
    pub draining_since_ms: Option<u64>,
    /// The declarations that this node publishes: its own, and those of others of which it has tasks.
    pub services: BTreeMap<ServiceId, Service>,
    pub networks: BTreeMap<NetworkName, Network>,
    /// Since when a removal is published, Unix milliseconds, by kind and name.
    pub removals: BTreeMap<String, u64>,
    pub tasks: BTreeMap<TaskId, LocalTask>,
    pub slices: BTreeMap<NetworkName, HeldSlices>,
    /// The names of the members of the cluster, this node among them.
    #[serde(default)]
    pub nodes: BTreeSet<String>,
    /// What the Docker engine of this node has declared.
    #[serde(default)]
    pub docker: DockerDeclared,
    /// What Docker has asked of its network driver.
    #[serde(default)]
    pub driver: Driver,
    /// Stack files applied at the start, by path: the SHA-256 of what was applied.
    pub stack_files: BTreeMap<String, String>,
}

impl Default for LocalState {
    fn default() -> Self {
        Self {
            format: FORMAT,
            draining_since_ms: None,
            services: BTreeMap::new(),
            networks: BTreeMap::new(),
            removals: BTreeMap::new(),
            tasks: BTreeMap::new(),
            slices: BTreeMap::new(),
            nodes: BTreeSet::new(),
            docker: DockerDeclared::default(),
            driver: Driver::default(),
            stack_files: BTreeMap::new(),
        }
    }
}

/// Why the state cannot be read or kept.
#[derive(Debug, thiserror::Error)]
pub(super) enum StateError {
    /// The disk refuses; what was on it is still there.
    #[error("{operation} {path}")]
    Io {
        operation: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The file is not ours, or damaged.
    #[error("{path} does not hold the state of a node; move it away to begin anew, or restore it")]
    Damaged {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    /// Another agent runs on this directory, or in this network namespace.
    #[error(
        "another agent {0}; stop it first, or give this one a state directory and a network namespace of its own"
    )]
    Busy(String),
    /// Written by a later version.
    #[error(
        "{path} was written by a later version of portolan (format {found}, this one knows {FORMAT}); install that version, or move the file away"
    )]
    Newer { path: PathBuf, found: u32 },
}

/// What one agent alone may hold: its state directory, and the links, rules and ports of its network
/// namespace. Let go when the process ends, however it ends.
#[derive(Debug)]
pub(super) struct Exclusive {
    _directory: File,
    _namespace: UnixListener,
}

/// The state directory.
#[derive(Debug, Clone)]
pub(super) struct StateDir(PathBuf);

impl StateDir {
    /// Opens a state directory, and makes it if it is not there.
    pub(super) fn open(path: &Path) -> Result<Self, StateError> {
        fs::create_dir_all(path).map_err(io_error("create", path))?;
        Ok(Self(path.to_owned()))
    }

    /// Makes sure that no other agent uses the directory or the network namespace.
    pub(super) fn lock(&self) -> Result<Exclusive, StateError> {
        let path = self.0.join("lock");
        let directory = File::create(&path).map_err(io_error("create", &path))?;
        rustix::fs::flock(&directory, FlockOperation::NonBlockingLockExclusive).map_err(|_| {
            StateError::Busy(format!("runs on the state directory {}", self.0.display()))
        })?;
        // An abstract socket belongs to its network namespace (unix(7)), and goes with its process.
        let namespace = SocketAddr::from_abstract_name("portolan agent")
            .and_then(|name| UnixListener::bind_addr(&name))
            .map_err(|_| StateError::Busy("runs in this network namespace".to_owned()))?;
        Ok(Exclusive {
            _directory: directory,
            _namespace: namespace,
        })
    }

    /// Removes what an agent keeps in its state directory, and the directory if nothing else is in it.
    pub(super) fn remove(path: &Path) -> Result<(), StateError> {
        for (file, removed) in [
            (path.join(FILE), fs::remove_file(path.join(FILE))),
            (path.join("lock"), fs::remove_file(path.join("lock"))),
            (path.join("gossip"), fs::remove_dir_all(path.join("gossip"))),
        ] {
            if let Err(error) = removed
                && error.kind() != io::ErrorKind::NotFound
            {
                return Err(io_error("remove", &file)(error));
            }
        }
        // Something of the user's may be in it; then it stays.
        drop(fs::remove_dir(path));
        Ok(())
    }

    /// What was saved last; the default if nothing ever was.
    pub(super) fn load(&self) -> Result<LocalState, StateError> {
        let path = self.0.join(FILE);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(LocalState::default()),
            Err(e) => return Err(io_error("read", &path)(e)),
        };
        let format = serde_json::from_slice::<FormatOnly>(&text);
        if let Ok(FormatOnly { format: found }) = format
            && found > FORMAT
        {
            return Err(StateError::Newer { path, found });
        }
        serde_json::from_slice(&text).map_err(|source| StateError::Damaged { path, source })
    }

    /// Saves the state; when it returns, the disk has it.
    pub(super) fn save(&self, state: &LocalState) -> Result<(), StateError> {
        let (path, new) = (self.0.join(FILE), self.0.join("node.json.new"));
        let text = serde_json::to_vec_pretty(state).map_err(|source| StateError::Damaged {
            path: path.clone(),
            source,
        })?;
        let mut file = File::create(&new).map_err(io_error("create", &new))?;
        file.write_all(&text).map_err(io_error("write", &new))?;
        file.sync_all().map_err(io_error("sync", &new))?;
        fs::rename(&new, &path).map_err(io_error("replace", &path))?;
        let dir = File::open(&self.0).map_err(io_error("open", &self.0))?;
        dir.sync_all().map_err(io_error("sync", &self.0))
    }
}

#[derive(Deserialize)]
struct FormatOnly {
    format: u32,
}

fn io_error(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StateError {
    let path = path.to_owned();
    move |source| StateError::Io {
        operation,
        path,
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_saved_is_loaded() {
        let dir = tempfile::tempdir().unwrap();
        let state_dir = StateDir::open(&dir.path().join("deep/er")).unwrap();
        assert_eq!(state_dir.load().unwrap(), LocalState::default());
        let mut state = LocalState::default();
        let service = Service::new("web".parse().unwrap());
        state.services.insert(service.id.clone(), service);
        state_dir.save(&state).unwrap();
        assert_eq!(state_dir.load().unwrap(), state);
    }

    #[test]
    fn a_directory_is_one_agents_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let state_dir = StateDir::open(dir.path()).unwrap();
        let first = state_dir.lock().unwrap();
        let second = state_dir.lock().unwrap_err().to_string();
        assert!(second.contains("runs on the state directory"), "{second}");
        let elsewhere = tempfile::tempdir().unwrap();
        let beside = StateDir::open(elsewhere.path()).unwrap().lock();
        let beside = beside.unwrap_err().to_string();
        assert!(
            beside.contains("runs in this network namespace"),
            "{beside}"
        );
        drop(first);
        state_dir.lock().unwrap();
    }

    #[test]
    fn a_damaged_or_newer_file_is_named_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let state_dir = StateDir::open(dir.path()).unwrap();
        let path = dir.path().join(FILE);
        fs::write(&path, "{").unwrap();
        assert!(
            state_dir
                .load()
                .unwrap_err()
                .to_string()
                .contains("node.json")
        );
        fs::write(&path, r#"{"format": 9}"#).unwrap();
        assert!(matches!(
            state_dir.load(),
            Err(StateError::Newer { found: 9, .. })
        ));
        assert!(path.exists());
    }
}
