//! The plugin as Docker sees it, and an agent as the plugin sees it.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that fails may panic"
)]

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use portolan_plugin::{Agent, Call, Plugin, Scope, serve};
use proptest::prelude::*;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
    task::JoinSet,
};

/// A running plugin, and where the agent is to be.
struct Running {
    plugin: PathBuf,
    agent: PathBuf,
    _serves: JoinSet<()>,
    _dir: tempfile::TempDir,
}

fn start() -> Running {
    let dir = tempfile::tempdir().unwrap();
    let (plugin, agent) = (
        dir.path().join("plugin.sock"),
        dir.path().join("agent.sock"),
    );
    let listener = UnixListener::bind(&plugin).unwrap();
    let mut serves = JoinSet::new();
    serves.spawn(serve(
        listener,
        Plugin {
            agent: Agent::new(&agent),
            scope: Scope::Global,
        },
    ));
    Running {
        plugin,
        agent,
        _serves: serves,
        _dir: dir,
    }
}

/// Says something, and gives the status and the answer.
async fn post(socket: &Path, path: &str, accept: &str, body: &str) -> (u16, Value) {
    let mut stream = UnixStream::connect(socket).await.unwrap();
    let length = body.len();
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: x\r\nAccept: {accept}\r\nContent-Length: {length}\r\n\
         Connection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(body.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.contains("application/vnd.docker.plugins.v1.2+json"));
    (status, serde_json::from_str(body).unwrap())
}

const DOCKERS: &str = "application/vnd.docker.plugins.v1.2+json";

/// An agent that gives each connection one answer, and tells what it was asked.
async fn agent(socket: PathBuf, answers: Vec<(&'static str, &'static str)>) -> Vec<String> {
    let listener = UnixListener::bind(socket).unwrap();
    let mut asked = Vec::new();
    for (status, body) in answers {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = Vec::new();
        while !request.ends_with(b"}") {
            request.push(stream.read_u8().await.unwrap());
        }
        asked.push(String::from_utf8(request).unwrap());
        let length = body.len();
        let answer = format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\n\r\n{body}");
        stream.write_all(answer.as_bytes()).await.unwrap();
    }
    asked
}

#[tokio::test]
async fn what_needs_no_agent_is_answered_without_one() {
    let running = start();
    for (path, answer) in [
        (
            "/Plugin.Activate",
            json!({ "Implements": ["NetworkDriver"] }),
        ),
        (
            "/NetworkDriver.GetCapabilities",
            json!({ "Scope": "global", "ConnectivityScope": "global" }),
        ),
        ("/NetworkDriver.DiscoverNew", json!({})),
        ("/NetworkDriver.EndpointOperInfo", json!({ "Value": {} })),
    ] {
        assert_eq!(
            post(&running.plugin, path, DOCKERS, "{}").await,
            (200, answer),
            "{path}"
        );
    }
}

#[tokio::test]
async fn what_is_the_agents_goes_there_and_its_answer_comes_back() {
    let running = start();
    let answers = vec![
        ("200 OK", r#"{"Options":{"portolan.vni":"5000"}}"#),
        (
            "409 Conflict",
            r#"{"errors":["subnet 10.0.0.0/8 overlaps"]}"#,
        ),
    ];
    let questions = async {
        let path = "/NetworkDriver.AllocateNetwork";
        let first = post(&running.plugin, path, DOCKERS, r#"{"NetworkID":"a"}"#).await;
        let path = "/NetworkDriver.CreateNetwork";
        let second = post(&running.plugin, path, DOCKERS, r#"{"NetworkID":"b"}"#).await;
        [first, second]
    };
    let (asked, [first, second]) = tokio::join!(agent(running.agent.clone(), answers), questions);
    let allocated = json!({ "Options": { "portolan.vni": "5000" } });
    assert_eq!(first, (200, allocated));
    let refused = json!({ "Err": "subnet 10.0.0.0/8 overlaps" });
    assert_eq!(second, (500, refused));
    assert!(asked[0].starts_with("POST /v1/driver/AllocateNetwork "));
    assert!(asked[0].ends_with(r#"{"NetworkID":"a"}"#));
    assert!(asked[1].starts_with("POST /v1/driver/CreateNetwork "));
}

#[tokio::test]
async fn an_agent_that_starts_again_is_waited_for() {
    let running = start();
    let socket = running.agent.clone();
    // The first one is ending, and there is none for a moment.
    let ending = r#"{"errors":["the agent is ending; start it again first"]}"#;
    let agents = async {
        agent(socket.clone(), vec![("503 Service Unavailable", ending)]).await;
        std::fs::remove_file(&socket).unwrap();
        agent(socket.clone(), vec![("200 OK", "{}")]).await
    };
    let create = "/NetworkDriver.CreateNetwork";
    let (_, answer) = tokio::join!(agents, post(&running.plugin, create, DOCKERS, "{}"));
    assert_eq!(answer, (200, json!({})));
}

#[tokio::test]
async fn without_an_agent_it_says_so_and_keeps_nobody_waiting_who_takes_down() {
    let running = start();
    let start = Instant::now();
    let (status, answer) = post(&running.plugin, "/NetworkDriver.Leave", DOCKERS, "{}").await;
    assert!(start.elapsed() < Duration::from_secs(5));
    let error = answer["Err"].as_str().unwrap().to_owned();
    assert_eq!(status, 500);
    assert!(error.contains("no Portolan agent answers at"), "{error}");
}

#[tokio::test]
async fn what_it_does_not_know_is_refused_with_a_remedy() {
    let running = start();
    for (path, accept) in [
        ("/VolumeDriver.Create", DOCKERS),
        (
            "/NetworkDriver.Join",
            "application/vnd.docker.plugins.v2+json",
        ),
    ] {
        let (status, answer) = post(&running.plugin, path, accept, "{}").await;
        let error = answer["Err"].as_str().unwrap();
        assert_eq!(status, 404);
        assert!(error.contains("20.10 or later"), "{error}");
    }
}

proptest! {
    #[test]
    fn no_call_panics(path in "/?[A-Za-z.]{0,30}", accept in "[a-z/*.+0-9]{0,30}") {
        let _ = Call::of(&path, Some(&accept), Scope::Local);
    }
}
