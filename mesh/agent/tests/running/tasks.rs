//! Tasks whose beginning or end is not the usual one.

use anyhow::{Context, Result, ensure};
use portolan_testbed::wait_until;
use serde_json::{Value, json};

use crate::agent::{Agent, Answer, PATIENCE};

const STACK: &str = "services:\n  web:\n    ports: ['8080:80']\n";

fn apply(agent: &Agent, text: &str) -> Result<Answer> {
    let body = json!({ "text": text, "source": "stack.yml", "name": null });
    agent.ask("POST", "/v1/apply", &body)
}

fn services(agent: &Agent) -> Result<Value> {
    agent.ask("GET", "/v1/services", &Value::Null)?.ok()
}

#[test]
fn a_stack_with_a_task_that_cannot_be_leaves_nothing_behind() -> Result<()> {
    let agent = Agent::start()?;
    apply(&agent, STACK)?.ok()?;
    let address = agent.node.ipv4();
    let place = json!({ "service": "web", "place": { "address": address } });
    agent.ask("POST", "/v1/tasks", &place)?.ok()?;
    let tasks = format!("    x-portolan: {{ tasks: [{{ node: n1, address: {address} }}] }}\n");
    let more = "  more:\n    ports: ['8081:80']\n";
    let refused = apply(&agent, &format!("{STACK}{tasks}{more}"))?.refused(409)?;
    ensure!(refused.contains("already is in"), "{refused}");
    // An agent that kept some of it would have it by its next answer.
    apply(&agent, STACK)?.ok()?;
    let services = services(&agent)?;
    ensure!(
        services.as_array().is_some_and(|all| all.len() == 1),
        "{services}"
    );
    agent.leave()
}

#[test]
fn what_no_agent_answers_for_any_more_is_detached() -> Result<()> {
    let mut agent = Agent::start()?;
    apply(&agent, STACK)?.ok()?;
    let netns = agent.lab.task("orphan")?;
    let place = json!({ "service": "web", "place": { "netns": netns.path() } });
    let row = agent.ask("POST", "/v1/tasks", &place)?.ok()?;
    let address = row["endpoints"][0][1].as_str().context("no address")?;
    let has = || -> Result<bool> {
        let addresses = netns.run(["ip", "-brief", "address"])?.stdout;
        Ok(addresses.contains(address))
    };
    ensure!(has()?, "{row}");
    agent.begin_anew()?;
    wait_until(PATIENCE, "the orphan is detached", || {
        Ok((!has()?).then_some(()))
    })?;
    agent.leave()
}
