//! The admin API.

use std::{fs, os::unix::fs::PermissionsExt, time::Duration};

use anyhow::{Context, Result, ensure};
use portolan_testbed::wait_until;
use serde_json::{Value, json};

use crate::agent::{Agent, Answer, write_key};

const STACK: &str = "
services:
  web:
    ports: ['8080:80']
networks:
  back: {}
";

fn apply(agent: &Agent, text: &str) -> Result<Answer> {
    agent.ask(
        "POST",
        "/v1/apply",
        &json!({ "text": text, "source": "stack.yml", "name": null }),
    )
}

fn add(agent: &Agent, service: &str, place: &Value) -> Result<Answer> {
    agent.ask(
        "POST",
        "/v1/tasks",
        &json!({ "service": service, "place": place }),
    )
}

/// What a GET lists.
fn list(agent: &Agent, path: &str) -> Result<Vec<Value>> {
    let answer = agent.ask("GET", path, &Value::Null)?.ok()?;
    Ok(answer.as_array().context("no list")?.clone())
}

fn text<'a>(row: &'a Value, field: &str) -> &'a str {
    row[field].as_str().unwrap_or_default()
}

#[test]
fn wrong_requests_are_told_what_is_wrong() -> Result<()> {
    let agent = Agent::start()?;
    let mode = fs::metadata(agent.socket())?.permissions().mode();
    ensure!(mode & 0o777 == 0o600, "{mode:o}");

    let unknown = agent.ask("GET", "/v2/status", &Value::Null)?.refused(404)?;
    ensure!(unknown.contains("/v2/status"), "{unknown}");
    let method = agent.ask("PUT", "/v1/status", &Value::Null)?.refused(405)?;
    ensure!(
        method.contains("PUT") && method.contains("/v1/status"),
        "{method}"
    );

    let place = add(&agent, "web", &json!({ "pid": "one" }))?.refused(400)?;
    ensure!(
        place.contains("place.pid") && place.contains("invalid type"),
        "{place}"
    );
    let field = agent
        .ask("POST", "/v1/rm", &json!({ "nmae": "web" }))?
        .refused(400)?;
    ensure!(field.contains("nmae"), "{field}");
    let empty = agent.ask("POST", "/v1/rm", &Value::Null)?.refused(400)?;
    ensure!(empty.contains("EOF"), "{empty}");
    let limit = agent
        .ask("GET", "/v1/flows?limit=many", &Value::Null)?
        .refused(400)?;
    ensure!(limit.contains("limit"), "{limit}");
    apply(&agent, &"#".repeat(9 << 20))?.refused(413)?;

    let all_at_once = "services:\n  web:\n    ports: ['99999:80', '80:x']\n";
    let stack = apply(&agent, all_at_once)?.refused(400)?;
    ensure!(
        stack.contains("stack.yml") && stack.lines().count() >= 2,
        "{stack}"
    );

    let version = agent.ask("GET", "/v1/version", &Value::Null)?.ok()?;
    ensure!(
        version == json!({ "version": env!("CARGO_PKG_VERSION") }),
        "{version}"
    );
    agent.leave()
}

#[test]
fn a_service_and_its_task_come_and_go() -> Result<()> {
    let agent = Agent::start()?;
    let applied = apply(&agent, STACK)?.ok()?;
    ensure!(
        applied["created"] == json!(["network back", "network default", "service web"]),
        "{applied}"
    );
    let again = apply(&agent, STACK)?.ok()?;
    ensure!(
        again["created"] == json!([]) && again["unchanged"] == applied["created"],
        "{again}"
    );
    let taken = apply(&agent, "services: { other: { ports: ['8080:80'] } }")?.refused(409)?;
    ensure!(
        taken.contains("already published by service web"),
        "{taken}"
    );

    add(&agent, "nobody", &json!({ "address": "10.77.0.11" }))?.refused(404)?;
    add(&agent, "web", &json!({ "address": "127.0.0.1" }))?.refused(400)?;
    let own = json!({ "address": agent.node.ipv4() });
    let task = add(&agent, "web", &own)?.ok()?;
    let id = text(&task, "id");
    ensure!(
        text(&task, "state") == "healthy" && text(&task, "reason").is_empty(),
        "{task}"
    );
    ensure!(task["endpoints"][0][1] == own["address"], "{task}");
    add(&agent, "web", &own)?.refused(409)?;
    ensure!(list(&agent, "/v1/tasks")? == std::slice::from_ref(&task));
    let service = list(&agent, "/v1/services")?.remove(0);
    ensure!(
        service["healthy"] == 1 && service["ports"] == json!(["8080:80/tcp"]),
        "{service}"
    );
    wait_until(
        Duration::from_secs(10),
        "the port leads to the task",
        || {
            let status = agent.ask("GET", "/v1/status", &Value::Null)?.ok()?;
            let served = status["ports"][0]["active"] == 1 && status["problems"] == json!([]);
            Ok(served.then_some(()))
        },
    )?;

    let drained = agent
        .ask("POST", "/v1/tasks/web.1/drain", &Value::Null)?
        .ok()?;
    ensure!(
        text(&drained, "state") == "draining" && text(&drained, "reason") == "draining",
        "{drained}"
    );
    let removed = agent
        .ask("DELETE", &format!("/v1/tasks/{id}"), &Value::Null)?
        .ok()?;
    ensure!(text(&removed, "id") == id, "{removed}");
    ensure!(list(&agent, "/v1/tasks")?.is_empty());
    let gone = agent
        .ask("DELETE", &format!("/v1/tasks/{id}"), &Value::Null)?
        .refused(404)?;
    ensure!(gone.contains(id), "{gone}");

    agent
        .ask("POST", "/v1/rm", &json!({ "name": "nothing" }))?
        .refused(404)?;
    let removed = agent
        .ask("POST", "/v1/rm", &json!({ "name": "web" }))?
        .ok()?;
    ensure!(removed["services"] == json!(["web"]), "{removed}");
    ensure!(list(&agent, "/v1/services")?.is_empty());
    agent.leave()
}

#[test]
fn a_namespace_is_attached_and_detached() -> Result<()> {
    let agent = Agent::start()?;
    apply(&agent, STACK)?.ok()?;
    let netns = agent.lab.task("box")?;
    let place = json!({ "netns": netns.path() });
    let attach = |network: &str, place: &Value| {
        agent.ask(
            "POST",
            "/v1/attach",
            &json!({ "network": network, "place": place }),
        )
    };
    let network = list(&agent, "/v1/networks")?
        .into_iter()
        .find(|n| text(n, "name") != "ingress");
    let network = network.context("the stack's network is not there")?;
    let name = text(&network, "name");
    attach("nowhere", &place)?.refused(404)?;
    attach(name, &json!({ "address": "10.77.0.11" }))?.refused(400)?;
    let missing = attach(name, &json!({ "netns": "/run/netns/pt-none" }))?.refused(409)?;
    ensure!(missing.contains("pt-none"), "{missing}");
    ensure!(
        list(&agent, "/v1/tasks")?.is_empty(),
        "a task that cannot be attached stays"
    );

    let row = attach(name, &place)?.ok()?;
    let address = row["endpoints"][0][1].as_str().context("no address")?;
    ensure!(
        netns
            .run(["ip", "-brief", "address"])?
            .stdout
            .contains(address),
        "{row}"
    );
    ensure!(
        text(&row, "service").is_empty() && text(&row, "reason").is_empty(),
        "{row}"
    );
    let path = format!("/v1/tasks/{}", text(&row, "id"));
    agent
        .ask("POST", &format!("{path}/drain"), &Value::Null)?
        .refused(409)?;
    agent.ask("DELETE", &path, &Value::Null)?.ok()?;
    agent.leave()
}

#[test]
fn a_node_drains_and_leaves() -> Result<()> {
    let agent = Agent::start()?;
    let post = |path: &str| agent.ask("POST", path, &Value::Null)?.ok();
    let node = post("/v1/node/drain")?;
    ensure!(
        text(&node, "state") == "draining" && node["me"] == true,
        "{node}"
    );
    ensure!(text(&post("/v1/node/activate")?, "state") == "up");
    let refused = agent.ask("GET", "/v1/keys", &Value::Null)?.refused(409)?;
    ensure!(refused.contains("without keys"), "{refused}");
    let socket = agent.socket();
    // The directory goes with the namespace, the socket with the agent.
    let node = std::sync::Arc::clone(&agent.node);
    agent.leave()?;
    ensure!(!socket.exists());
    drop(node);
    Ok(())
}

#[test]
fn a_key_is_rotated() -> Result<()> {
    let agent = Agent::start_with(|node, config| {
        let file = node.dir().join("key");
        write_key(&file, "6b")?;
        (config.key_file, config.insecure) = (Some(file), false);
        Ok(())
    })?;
    wait_until(crate::agent::PATIENCE, "the agent answers", || {
        Ok(agent.ask("GET", "/v1/keys", &Value::Null).ok())
    })?;
    let change = |what: &str, key: &str| {
        agent.ask("POST", &format!("/v1/keys/{what}"), &json!({ "key": key }))
    };
    let ids = |answer: Answer| -> Result<Vec<String>> {
        Ok(serde_json::from_value(answer.ok()?["ids"].clone())?)
    };
    let before = ids(agent.ask("GET", "/v1/keys", &Value::Null)?)?;
    let [old] = before.as_slice() else {
        anyhow::bail!("{before:?}")
    };
    change("install", "no key")?.refused(400)?;
    change("install", &"6b".repeat(32))?.refused(409)?;
    let both = ids(change("install", &"7c".repeat(32))?)?;
    let [first, new] = both.as_slice() else {
        anyhow::bail!("{both:?}")
    };
    ensure!(first == old, "{both:?}");
    change("use", "00000000")?.refused(404)?;
    change("remove", old)?.refused(409)?;
    let used = ids(change("use", new)?)?;
    ensure!(used == [new.clone(), old.clone()], "{used:?}");
    let status = agent.ask("GET", "/v1/status", &Value::Null)?.ok()?;
    ensure!(
        text(&status, "encryption") == format!("on, key {new}"),
        "{status}"
    );
    ensure!(ids(change("remove", old)?)? == std::slice::from_ref(new));
    agent.leave()
}
