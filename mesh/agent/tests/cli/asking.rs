//! The commands against an agent that answers from memory and notes what it was asked.

use std::sync::{Arc, Mutex};

use axum::{
    Json, Router,
    body::Bytes,
    extract::State,
    http::{Method, StatusCode, Uri},
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::run::{Ran, ended, file, portolan};

/// The requests, each as method and path with its body.
type Asked = Arc<Mutex<Vec<(String, Value)>>>;

/// An agent on a socket of its own, with what it was asked.
pub(super) struct Fake {
    dir: TempDir,
    asked: Asked,
    _runtime: tokio::runtime::Runtime,
}

impl Fake {
    pub(super) fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let asked = Asked::default();
        let listener = {
            let _entered = runtime.enter();
            tokio::net::UnixListener::bind(dir.path().join("s")).unwrap()
        };
        let app = Router::new().fallback(answer).with_state(asked.clone());
        runtime.spawn(async move { axum::serve(listener, app).await });
        Self {
            dir,
            asked,
            _runtime: runtime,
        }
    }

    pub(super) fn run(&self, args: &[&str]) -> Ran {
        let socket = self.dir.path().join("s");
        ended(portolan().arg("--socket").arg(socket).args(args))
    }

    /// What was asked last: method and path, and the body.
    pub(super) fn last(&self) -> (String, Value) {
        self.asked
            .lock()
            .unwrap()
            .last()
            .cloned()
            .expect("it was asked")
    }
}

fn task(id: &str) -> Value {
    json!({
        "id": id, "name": "web.1", "service": "web", "slot": 1, "node": "n1", "state": "healthy",
        "reason": "", "weight": 1, "endpoints": [["ingress", "10.208.1.2"], ["shop", "10.1.0.2"]], "resolver": "10.1.0.0",
    })
}

fn node() -> Value {
    json!({
        "id": "00112233445566778899aabbccddeeff", "name": "n1", "address": "10.0.0.1:7946",
        "membership": "alive", "state": "draining", "tasks": 2, "version": "0.1.0", "me": true,
    })
}

async fn answer(State(asked): State<Asked>, method: Method, uri: Uri, body: Bytes) -> Response {
    let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
    let request = format!("{method} {uri}");
    asked.lock().unwrap().push((request.clone(), body));
    let answer = match request.as_str() {
        "GET /v1/nodes" => json!([node()]),
        "GET /v1/tasks" => json!([task("t1"), task("t2")]),
        "POST /v1/tasks"
        | "POST /v1/attach"
        | "POST /v1/tasks/t1/drain"
        | "DELETE /v1/tasks/t1" => task("t1"),
        "POST /v1/apply" => json!({
            "created": ["web"], "updated": [], "unchanged": [], "removed": [], "tasks": [],
            "ignored": ["image"], "chosen_ports": ["web: 30123:80/tcp"], "problems": [],
        }),
        "POST /v1/node/drain" => node(),
        "POST /v1/leave" => json!({}),
        "GET /v1/keys" | "POST /v1/keys/install" | "POST /v1/keys/use" => {
            json!({"ids": ["0a0b0c0d", "01020304"]})
        }
        request if request.starts_with("GET /v1/trace?client=10.0.0.5") => {
            return super::trace::answer().into_response();
        }
        "GET /v1/networks" => json!("not a list"),
        "GET /v1/services" => return (StatusCode::NOT_FOUND, "no such page").into_response(),
        _ => {
            let errors =
                json!({"errors": ["no service 'x'; see `portolan services`", "and one more"]});
            return (StatusCode::BAD_REQUEST, Json(errors)).into_response();
        }
    };
    Json(answer).into_response()
}

#[test]
fn lists_are_tables_for_people_and_the_api_for_programs() {
    let fake = Fake::start();
    let table = fake.run(&["tasks"]);
    assert_eq!((table.code, table.stderr.as_str()), (0, ""));
    let lines: Vec<_> = table.stdout.lines().collect();
    assert_eq!(lines[0].split_whitespace().next(), Some("ID"));
    assert!(
        lines[1].contains("10.208.1.2 (ingress), 10.1.0.2 (shop)"),
        "{}",
        lines[1]
    );
    assert!(!table.stdout.contains('\x1b'), "colours are for terminals");
    let json = fake.run(&["tasks", "--format", "json"]);
    let rows: Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!(rows, json!([task("t1"), task("t2")]));
    assert!(
        fake.run(&["nodes"]).stdout.contains("n1 *"),
        "the node asked is marked"
    );
}

#[test]
fn what_is_typed_reaches_the_agent() {
    let fake = Fake::start();
    let added = fake.run(&[
        "task",
        "add",
        "web",
        "--netns",
        "/run/netns/w",
        "--slot",
        "3",
    ]);
    assert_eq!(
        added.stdout,
        "t1\n10.208.1.2 (ingress)\n10.1.0.2 (shop)\nnames: nameserver 10.1.0.0\n"
    );
    let body =
        json!({"service": "web", "place": {"netns": "/run/netns/w"}, "slot": 3, "weight": null});
    assert_eq!(fake.last(), ("POST /v1/tasks".to_owned(), body));
    for (args, path) in [
        (
            &["task", "add", "web", "--address", "fd00::1"][..],
            "POST /v1/tasks",
        ),
        (&["task", "drain", "t1"], "POST /v1/tasks/t1/drain"),
        (&["task", "rm", "t1"], "DELETE /v1/tasks/t1"),
        (&["attach", "shop", "--pid", "7"], "POST /v1/attach"),
        (&["detach", "t1"], "DELETE /v1/tasks/t1"),
        (&["node", "drain"], "POST /v1/node/drain"),
        (&["leave", "--clean"], "POST /v1/leave"),
        (&["keys"], "GET /v1/keys"),
        (&["keys", "use", "01020304"], "POST /v1/keys/use"),
    ] {
        let ran = fake.run(args);
        assert_eq!(ran.code, 0, "{args:?}: {}", ran.stderr);
        assert_eq!(fake.last().0, path);
    }
    assert_eq!(fake.last().1, json!({"key": "01020304"}));
}

#[test]
fn a_stack_file_is_read_here_and_sent_whole() {
    let fake = Fake::start();
    let text = "services:\n  web:\n    ports: ['80']\n";
    let stack = file(fake.dir.path(), "stack.yml", text);
    let ran = fake.run(&["apply", "-f", &stack, "--name", "shop"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(
        ran.stdout
            .starts_with("created web\nchosen port web: 30123:80/tcp\n"),
        "{}",
        ran.stdout
    );
    let body = json!({"text": text, "source": stack, "name": "shop", "prune": false});
    assert_eq!(fake.last(), ("POST /v1/apply".to_owned(), body));

    let bad = file(fake.dir.path(), "bad.yml", "services: 3\n");
    let ran = fake.run(&["apply", "-f", &bad]);
    assert_eq!(ran.code, 2);
    assert!(
        ran.stderr.starts_with(&format!("{bad}:1:")),
        "{}",
        ran.stderr
    );
    assert_eq!(
        fake.asked.lock().unwrap().len(),
        1,
        "a wrong file is not sent"
    );
}

#[test]
fn a_key_is_installed_from_its_file() {
    let fake = Fake::start();
    let key = super::run::run(&["keygen"]).stdout;
    let path = file(fake.dir.path(), "key", &format!("# new\n{key}"));
    let ran = fake.run(&["keys", "install", &path]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(fake.last().1, json!({"key": key.trim()}));
    assert!(
        ran.stdout.contains("0a0b0c0d   sends and takes"),
        "{}",
        ran.stdout
    );
    let several = file(
        fake.dir.path(),
        "two",
        &(key + &super::run::run(&["keygen"]).stdout),
    );
    assert_eq!(fake.run(&["keys", "install", &several]).code, 2);
    assert_eq!(fake.run(&["keys", "install", "/no/such"]).code, 2);
}

#[test]
fn a_refusal_is_shown_line_by_line() {
    let fake = Fake::start();
    let ran = fake.run(&["rm", "x"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (1, ""));
    assert_eq!(
        ran.stderr,
        "portolan: no service 'x'; see `portolan services`\nportolan: and one more\n"
    );
}

#[test]
fn answers_that_are_none_are_failures() {
    let fake = Fake::start();
    for args in [["networks"], ["services"]] {
        let ran = fake.run(&args);
        assert_eq!((ran.code, ran.stdout.as_str()), (1, ""), "{args:?}");
        assert!(
            ran.stderr.contains("did not answer as an agent does: "),
            "{}",
            ran.stderr
        );
    }
}
