//! What is served over TCP.

use std::{
    io::Write,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use portolan_agent::config::Seed;
use portolan_testbed::wait_until;
use serde_json::Value;

use crate::agent::{Agent, PATIENCE, request};

#[test]
fn the_pages_show_what_the_admin_api_shows() -> Result<()> {
    let agent = Agent::start()?;
    let all: Value = agent.get("/api/all.json")?.ok()?;
    for what in ["nodes", "networks", "services", "tasks"] {
        let admin = agent
            .ask("GET", &format!("/v1/{what}"), &Value::Null)?
            .ok()?;
        ensure!(all[what] == admin, "{what}: {} and {admin}", all[what]);
        ensure!(
            agent.get(&format!("/api/{what}.json"))?.ok()? == admin,
            "{what}"
        );
    }
    ensure!(all["status"]["node"] == "n1" && agent.get("/api/status.json")?.ok()?["node"] == "n1");

    let page = agent.get("/")?;
    ensure!(
        page.status == 200 && page.head.contains("text/html"),
        "{}",
        page.head
    );
    ensure!(
        page.head
            .contains("content-security-policy: default-src 'none'"),
        "{}",
        page.head
    );
    ensure!(page.body.contains("api/all.json"));
    let outside = ["http://", "https://"].map(|scheme| page.body.matches(scheme).count());
    // The one address is the name of the format of its icon.
    ensure!(outside == [1, 0] && page.body.contains("xmlns='http://www.w3.org/2000/svg'"));
    ensure!(agent.get("/healthz")?.body == "ok\n" && agent.get("/nothing")?.status == 404);
    agent.leave()
}

#[test]
fn nothing_can_be_changed_and_no_client_takes_too_much() -> Result<()> {
    let agent = Agent::start()?;
    for method in ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"] {
        for path in ["/", "/metrics", "/api/all.json", "/v1/leave"] {
            let answer = agent.send(&request(method, path, "{}"))?;
            ensure!(
                answer.status == 405 && answer.head.contains("allow: get, head"),
                "{method} {path}"
            );
        }
    }
    let head = agent.send(&request("HEAD", "/metrics", ""))?;
    ensure!(head.status == 200 && head.body.is_empty(), "{head:?}");
    let long = format!("GET / HTTP/1.1\r\nHost: {}\r\n\r\n", "x".repeat(64 << 10));
    ensure!(agent.send(&long)?.status == 431);
    let many = format!(
        "GET / HTTP/1.1\r\nHost: n1\r\n{}\r\n",
        "X-A: b\r\n".repeat(100)
    );
    ensure!(agent.send(&many)?.status == 431);
    ensure!(agent.send("no http\r\n\r\n")?.status == 400);
    agent.leave()
}

#[test]
fn a_node_that_waits_says_for_what() -> Result<()> {
    let agent = Agent::start_with(|_, config| {
        // Nobody is there: gossip waits a while before it goes on alone.
        config.join = vec![Seed::Address(([10, 77, 0, 99], 7946).into())];
        Ok(())
    })?;
    wait_until(PATIENCE, "it says what it waits for", || {
        let answer = agent.get("/readyz")?;
        ensure!(answer.status == 503, "{answer:?}");
        ensure!(answer.body.contains("waiting for gossip: "), "{answer:?}");
        Ok(Some(()))
    })?;
    ensure!(agent.get("/healthz")?.status == 200);
    let metrics = agent.get("/metrics")?.body;
    ensure!(metrics.contains("\nportolan_node_ready 0\n"), "{metrics}");
    wait_until(PATIENCE, "it is ready", || {
        Ok((agent.get("/readyz")?.body == "ready\n").then_some(()))
    })?;
    agent.leave()
}

#[test]
fn promtool_understands_the_metrics() -> Result<()> {
    let agent = Agent::start()?;
    let metrics = agent.get("/metrics")?;
    ensure!(
        metrics
            .head
            .contains("content-type: text/plain; version=0.0.4"),
        "{}",
        metrics.head
    );
    for line in [
        "portolan_node_ready 1",
        "portolan_gossip_members{state=\"alive\"} 1",
        "portolan_cluster_nodes 1",
    ] {
        ensure!(
            metrics.body.lines().any(|found| found == line),
            "no {line} in {}",
            metrics.body
        );
    }
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("promtool is needed: apt-get install prometheus")?;
    promtool
        .stdin
        .take()
        .context("no stdin")?
        .write_all(metrics.body.as_bytes())?;
    let output = promtool.wait_with_output()?;
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    agent.leave()
}
