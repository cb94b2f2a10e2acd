//! An engine that is played: HTTP on a unix socket, answers that a test sets, and events that it sends.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use portolan_docker::{Seen, TaskWanted, Watcher};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
    sync::{broadcast, watch},
    task::JoinSet,
};

/// As long as anything here is waited for.
const SOON: Duration = Duration::from_secs(20);

/// What the engine answers, and what it was asked.
pub(crate) struct State {
    /// A recording, to be changed.
    pub(crate) engine: Value,
    /// How long answers take to paths that hold this.
    pub(crate) delays: Vec<(String, Duration)>,
    /// Status and body instead of the answer, by the path without version and query.
    pub(crate) instead: BTreeMap<String, (u16, String)>,
    /// Every path that was asked for.
    pub(crate) asked: Vec<String>,
}

/// An engine that runs until it is dropped.
pub(crate) struct Fake {
    dir: tempfile::TempDir,
    state: Arc<Mutex<State>>,
    events: broadcast::Sender<String>,
    running: JoinSet<()>,
}

impl Fake {
    pub(crate) fn new(recording: &str) -> Self {
        let mut fake = Self {
            dir: tempfile::tempdir().unwrap(),
            state: Arc::new(Mutex::new(State {
                engine: serde_json::from_str(recording).unwrap(),
                delays: Vec::new(),
                instead: BTreeMap::new(),
                asked: Vec::new(),
            })),
            events: broadcast::channel(1024).0,
            running: JoinSet::new(),
        };
        fake.start();
        fake
    }

    pub(crate) fn manager() -> Self {
        Self::new(include_str!("../data/manager.json"))
    }

    pub(crate) fn worker() -> Self {
        Self::new(include_str!("../data/worker.json"))
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("docker.sock")
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Ends the engine, and with it every connection.
    pub(crate) async fn stop(&mut self) {
        self.running.shutdown().await;
        std::fs::remove_file(self.socket()).unwrap();
    }

    pub(crate) fn start(&mut self) {
        let listener = UnixListener::bind(self.socket()).unwrap();
        let (state, events) = (Arc::clone(&self.state), self.events.clone());
        self.running.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (state, events) = (Arc::clone(&state), events.subscribe());
                connections.spawn(async move {
                    // The other side may go away at any time.
                    let _ = serve(stream, &state, events).await;
                });
            }
        });
    }

    /// Tells an event of a container.
    pub(crate) fn container_event(&self, action: &str, id: &str, attributes: &Value) {
        self.event("container", action, id, attributes);
    }

    /// Tells what is no event, or one with more in it.
    pub(crate) fn raw_event(&self, text: &str) {
        self.events.send(text.to_owned()).unwrap();
    }

    pub(crate) fn event(&self, kind: &str, action: &str, id: &str, attributes: &Value) {
        let event = json!({
            "Type": kind, "Action": action, "Actor": {"ID": id, "Attributes": attributes},
        });
        self.raw_event(&format!("{event}\n"));
    }

    /// The identity of the container of this name.
    pub(crate) fn id_of(&self, name: &str) -> String {
        let state = self.state();
        let mut containers = state.engine["inspect"].as_object().unwrap().iter();
        let named = |c: &Value| {
            c["Name"]
                .as_str()
                .unwrap()
                .trim_start_matches('/')
                .starts_with(name)
        };
        containers.find(|(_, c)| named(c)).unwrap().0.clone()
    }

    /// How often a path that holds this was asked for.
    pub(crate) fn asked(&self, part: &str) -> usize {
        let state = self.state();
        state
            .asked
            .iter()
            .filter(|path| path.contains(part))
            .count()
    }

    /// Waits until a path that holds this was asked for more often than so.
    pub(crate) async fn asked_more(&self, part: &str, than: usize) {
        let asked = async {
            while self.asked(part) <= than {
                tokio::task::yield_now().await;
            }
        };
        let asked = tokio::time::timeout(SOON, asked).await;
        assert!(asked.is_ok(), "waited in vain for a question of {part}");
    }
}

async fn serve(
    mut stream: UnixStream,
    state: &Mutex<State>,
    mut events: broadcast::Receiver<String>,
) -> std::io::Result<()> {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        if stream.read_buf(&mut request).await? == 0 {
            return Ok(());
        }
    }
    let request = String::from_utf8(request).unwrap();
    let path = request.split(' ').nth(1).unwrap().to_owned();
    let delay = {
        let mut state = state.lock().unwrap();
        state.asked.push(path.clone());
        let mut delays = state.delays.iter();
        delays.find(|(part, _)| path.contains(part)).map(|d| d.1)
    };
    // The answer is that of the time of the question, as with an engine that is slow to send it.
    let (status, body) = answer(&state.lock().unwrap(), &path);
    if let Some(delay) = delay {
        tokio::time::sleep(delay).await;
    }
    if path.contains("/events") {
        let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        stream.write_all(head.as_bytes()).await?;
        while let Ok(event) = events.recv().await {
            // In two pieces, as chunks need not end where events do.
            for piece in [&event[..7], &event[7..]] {
                let chunk = format!("{:x}\r\n{piece}\r\n", piece.len());
                stream.write_all(chunk.as_bytes()).await?;
                stream.flush().await?;
            }
        }
        return Ok(());
    }
    let head = format!(
        "HTTP/1.1 {status} X\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await
}

fn answer(state: &State, path: &str) -> (u16, String) {
    let path = path.split('?').next().unwrap();
    let path = match path.strip_prefix("/v1.41") {
        Some(rest) => rest,
        None => path,
    };
    if let Some(instead) = state.instead.get(path) {
        return instead.clone();
    }
    let engine = &state.engine;
    let json = match path {
        "/containers/json" => {
            // The list is of those that run, as it is with a real engine.
            let inspected = &engine["inspect"];
            let runs = |c: &&Value| inspected.get(c["Id"].as_str().unwrap()).is_some();
            json!(
                engine["containers"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .filter(runs)
                    .collect::<Vec<_>>()
            )
        }
        _ => match path
            .strip_prefix("/containers/")
            .and_then(|rest| rest.strip_suffix("/json"))
        {
            Some(id) => engine["inspect"].get(id).cloned().unwrap_or(Value::Null),
            None => engine
                .get(path.trim_start_matches('/'))
                .cloned()
                .unwrap_or(Value::Null),
        },
    };
    match json {
        Value::Null => (
            404,
            json!({"message": format!("no such object: {path}")}).to_string(),
        ),
        json if json.get("status").is_some_and(Value::is_number) => (503, json.to_string()),
        json => (200, json.to_string()),
    }
}

/// What a watcher tells, while it runs.
pub(crate) struct Followed {
    pub(crate) seen: watch::Receiver<Seen>,
    _running: JoinSet<()>,
}

impl Followed {
    pub(crate) fn new(socket: &Path) -> Self {
        Self::with(portolan_docker::watch(socket))
    }

    pub(crate) fn with((watcher, seen): (Watcher, watch::Receiver<Seen>)) -> Self {
        let mut running = JoinSet::new();
        running.spawn(watcher.run());
        Self {
            seen,
            _running: running,
        }
    }

    /// Waits until what is seen is as wanted.
    pub(crate) async fn until(
        &mut self,
        what: &str,
        mut wanted: impl FnMut(&Seen) -> bool,
    ) -> Seen {
        let found = {
            let seen = self.seen.wait_for(|seen| wanted(seen));
            let seen = tokio::time::timeout(SOON, seen).await.ok();
            seen.map(|seen| seen.unwrap().clone())
        };
        let link = &self.seen.borrow().link;
        found.unwrap_or_else(|| panic!("waited in vain until {what}; the link is {link:?}"))
    }

    /// Waits until everything is known.
    pub(crate) async fn known(&mut self) -> Seen {
        self.until("everything is known", |seen| seen.known.is_some())
            .await
    }
}

/// The task of a container, if it is one.
pub(crate) fn task<'a>(seen: &'a Seen, name: &str) -> Option<&'a TaskWanted> {
    let tasks = seen.known.as_ref()?.wanted.tasks.iter();
    tasks.into_iter().find(|task| task.name.starts_with(name))
}
