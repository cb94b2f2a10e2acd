//! Real engines, each in namespaces of its own. These tests need root, dockerd and busybox (`make deps`).
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "what a test calls fails the test, as the test itself would"
)]

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use portolan_docker::{Link, Place, Seen, ServiceWanted, TaskWanted, watch};
use portolan_model::TaskState;
use portolan_testbed::{Engine, Lab, Swarm};
use tokio::{sync::watch::Receiver, task::JoinSet};

const SOON: Duration = Duration::from_secs(15);
/// What is seen follows the engine within this time, on a machine that is busy with other tests.
const AT_ONCE: Duration = Duration::from_secs(3);

/// Ends by itself on SIGTERM, after a second in which it still answers.
const WEB: [&str; 3] = [
    "sh",
    "-c",
    "mkdir /www; httpd -p 80 -h /www; trap 'sleep 1; exit 0' TERM; while :; do sleep 1000 & wait; done",
];

/// What a watcher tells of an engine, while it runs.
struct Followed {
    seen: Receiver<Seen>,
    _running: JoinSet<()>,
}

impl Followed {
    fn new(engine: &Engine) -> Self {
        let (watcher, seen) = watch(&engine.socket());
        let mut running = JoinSet::new();
        running.spawn(watcher.run());
        Self {
            seen,
            _running: running,
        }
    }

    async fn until(
        &mut self,
        within: Duration,
        what: &str,
        wanted: impl Fn(&Seen) -> bool,
    ) -> Seen {
        let found = {
            let found = self.seen.wait_for(|seen| wanted(seen));
            let found = tokio::time::timeout(within, found).await.ok();
            found.map(|seen| seen.unwrap().clone())
        };
        found.unwrap_or_else(|| panic!("waited in vain until {what}: {:#?}", *self.seen.borrow()))
    }
}

fn tasks<'a>(seen: &'a Seen, name: &'a str) -> impl Iterator<Item = &'a TaskWanted> {
    let tasks = seen.known.iter().flat_map(|known| &known.wanted.tasks);
    tasks.filter(move |task| task.name.starts_with(name))
}

fn count(seen: &Seen, name: &str, state: TaskState) -> usize {
    tasks(seen, name).filter(|task| task.state == state).count()
}

fn service<'a>(seen: &'a Seen, name: &str) -> Option<&'a ServiceWanted> {
    let mut services = seen.known.iter().flat_map(|known| &known.wanted.services);
    services.find(|wanted| wanted.service.name == name)
}

fn ports(seen: &Seen, name: &str) -> String {
    let ports = service(seen, name)
        .into_iter()
        .flat_map(|wanted| &wanted.service.ports);
    ports.map(|port| format!("{port} ")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_verbs_of_a_swarm_are_followed() -> Result<()> {
    let lab = Lab::unique("dkw")?;
    let swarm = Swarm::start(&lab, 2)?;
    let manager = swarm.manager()?;
    let worker = swarm.engines.get(1).context("two engines")?;
    let mut on_manager = Followed::new(manager);
    let mut on_worker = Followed::new(worker);
    on_manager
        .until(SOON, "the manager is known", |seen| seen.known.is_some())
        .await;
    let seen = on_worker
        .until(SOON, "the worker is known", |seen| seen.known.is_some())
        .await;
    let known = seen.known.unwrap();
    ensure!(
        !known.wanted.knows_swarm && known.wanted.peers.contains(&manager.node().ipv4().into())
    );

    // Create: declared by the manager, a task on each, of the same service.
    let options = [
        "--replicas",
        "2",
        "--replicas-max-per-node",
        "1",
        "-p",
        "8080:80",
    ];
    let id = manager.create_service("web", &options, &WEB)?;
    on_manager
        .until(AT_ONCE, "the port is seen", |seen| {
            ports(seen, "web") == "8080:80/tcp "
        })
        .await;
    let running = |seen: &Seen| count(seen, "web", TaskState::Healthy) == 1;
    on_manager
        .until(SOON, "the manager's task runs", running)
        .await;
    let seen = on_worker
        .until(SOON, "the worker's task runs", running)
        .await;
    let task = tasks(&seen, "web").next().context("a task")?;
    ensure!(
        task.service
            .as_ref()
            .is_some_and(|service| service.as_str() == id)
    );
    let Place::Netns(sandbox) = &task.place else {
        anyhow::bail!("no sandbox: {:?}", task.place);
    };
    let mut list = worker.command("nsenter");
    list.arg(format!("--net={}", sandbox.display()))
        .args(["ip", "-4", "address"]);
    let links = portolan_testbed::output_within(&mut list, SOON)?
        .success()?
        .stdout;
    ensure!(links.contains("eth0"), "the sandbox is there: {links}");

    // Update of the ports, which ends no task.
    manager.docker(&[
        "service",
        "update",
        "-d",
        "-q",
        "--publish-add",
        "8081:80",
        "web",
    ])?;
    on_manager
        .until(AT_ONCE, "the other port is seen", |seen| {
            ports(seen, "web") == "8080:80/tcp 8081:80/tcp "
        })
        .await;

    // Scale down: the task that goes drains before it is gone.
    on_worker
        .until(SOON, "the worker's task runs", running)
        .await;
    on_manager
        .until(SOON, "the manager's task runs", running)
        .await;
    manager.docker(&["service", "scale", "-d", "web=0"])?;
    let draining = |seen: &Seen| count(seen, "web", TaskState::Draining) == 1;
    on_worker
        .until(SOON, "the worker's task drains", draining)
        .await;
    let gone = |seen: &Seen| tasks(seen, "web").next().is_none();
    on_worker
        .until(SOON, "the worker's task is gone", gone)
        .await;
    on_manager
        .until(SOON, "the manager's task is gone", gone)
        .await;

    // `docker restart` of a task's container leaves it beside the task that replaces it.
    let one = ["--constraint", "node.role==worker"];
    manager.create_service("one", &one, &WEB)?;
    on_worker
        .until(SOON, "it runs", |seen| {
            count(seen, "one", TaskState::Healthy) == 1
        })
        .await;
    let container = worker.docker(&["ps", "-q", "--filter", "name=one"])?;
    worker.docker(&["restart", "-t", "0", &container])?;
    on_worker
        .until(
            SOON,
            "the orphan is told, and its replacement runs",
            |seen| {
                let told = seen
                    .known
                    .iter()
                    .flat_map(|known| &known.wanted.diagnostics);
                let mut told = told.map(|finding| finding.diagnostic.to_string());
                told.any(|text| text.contains("behind the Swarm's back"))
                    && count(seen, "one", TaskState::Healthy) == 1
                    && tasks(seen, "one").all(|task| !task.container.starts_with(&container))
            },
        )
        .await;

    // Whether a worker's part has changed is asked time and again, which is no error in its log.
    let log = worker.log_tail();
    ensure!(!log.contains("not a swarm manager"), "{log}");

    // A worker that becomes a manager declares the same as the other, and no longer once it is a worker.
    manager.docker(&["node", "promote", "n2"])?;
    let start = Instant::now();
    on_worker
        .until(SOON, "it is a manager", |seen| {
            service(seen, "web").is_some()
        })
        .await;
    ensure!(start.elapsed() < AT_ONCE, "{:?}", start.elapsed());
    let same = |one: &Seen, other: &Seen| {
        let services = |seen: &Seen| seen.known.as_ref().map(|k| k.wanted.services.clone());
        services(one) == services(other)
    };
    let of_manager = on_manager.seen.borrow().clone();
    on_worker
        .until(AT_ONCE, "both declare the same", |seen| {
            same(seen, &of_manager)
        })
        .await;
    manager.docker(&["node", "demote", "n2"])?;
    // The engine takes its time to change, and refuses questions meanwhile.
    portolan_testbed::wait_until(SOON, "the engine says so itself", || {
        let says = worker.docker(&["info", "-f", "{{.Swarm.ControlAvailable}}"])?;
        Ok((says == "false").then_some(()))
    })?;
    let is_worker = |seen: &Seen| !seen.known.as_ref().unwrap().wanted.knows_swarm;
    on_worker.until(AT_ONCE, "it is a worker", is_worker).await;

    manager.docker(&["service", "rm", "web"])?;
    on_manager
        .until(AT_ONCE, "the service is gone", |seen| {
            service(seen, "web").is_none()
        })
        .await;

    worker.docker(&["swarm", "leave"])?;
    let has_left = |seen: &Seen| seen.known.as_ref().unwrap().observed.engine.swarm.is_none();
    on_worker.until(AT_ONCE, "it has left", has_left).await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn containers_are_followed_over_the_engines_restart() -> Result<()> {
    let lab = Lab::unique("dkr")?;
    let mut engine = Engine::start(lab.node("n1")?)?;
    let mut followed = Followed::new(&engine);
    followed
        .until(SOON, "the engine is known", |seen| seen.known.is_some())
        .await;

    let label = [
        "run",
        "-d",
        "--name",
        "web",
        "--label",
        "portolan.publish=8080:80",
        "--restart",
        "always",
    ];
    let words: Vec<&str> = label
        .into_iter()
        .chain([Engine::IMAGE])
        .chain(WEB)
        .collect();
    engine.docker(&words)?;
    let healthy = |seen: &Seen| count(seen, "web", TaskState::Healthy) == 1;
    let seen = followed.until(SOON, "it runs", healthy).await;
    assert_eq!(ports(&seen, "web"), "8080:80/tcp ");
    let before = tasks(&seen, "web").next().context("a task")?.place.clone();

    // A HEALTHCHECK, and its change.
    let check = [
        "run",
        "-d",
        "--name",
        "checked",
        "--label",
        "portolan.publish=8081:80",
    ];
    let probe = [
        "--health-cmd",
        "test -e /ok",
        "--health-interval",
        "200ms",
        "--health-retries",
        "1",
    ];
    let words: Vec<&str> = check
        .into_iter()
        .chain(probe)
        .chain([Engine::IMAGE])
        .chain(WEB)
        .collect();
    engine.docker(&words)?;
    let is = |state| move |seen: &Seen| count(seen, "checked", state) == 1;
    let seen = followed
        .until(SOON, "it fails its check", is(TaskState::Unhealthy))
        .await;
    ensure!(tasks(&seen, "checked").all(|task| task.checked && task.reason.is_some()));
    engine.docker(&["exec", "checked", "touch", "/ok"])?;
    followed
        .until(SOON, "it passes", is(TaskState::Healthy))
        .await;
    engine.docker(&["pause", "checked"])?;
    followed
        .until(SOON, "it is paused", is(TaskState::Unhealthy))
        .await;
    engine.docker(&["unpause", "checked"])?;
    followed
        .until(SOON, "it is back", is(TaskState::Healthy))
        .await;
    let ended = engine.docker(&["rm", "-f", "checked"])?;
    followed
        .until(AT_ONCE, "it is gone", |seen| {
            tasks(seen, &ended).next().is_none()
        })
        .await;

    // `docker stop`: the drain begins with the signal, a second before the end.
    let start = Instant::now();
    let mut stop = std::process::Command::new("docker");
    stop.args([
        "-H",
        &format!("unix://{}", engine.socket().display()),
        "stop",
        "web",
    ]);
    let stopping =
        tokio::task::spawn_blocking(move || portolan_testbed::output_within(&mut stop, SOON));
    followed
        .until(SOON, "it drains", |seen| {
            count(seen, "web", TaskState::Draining) == 1
        })
        .await;
    ensure!(
        start.elapsed() < Duration::from_millis(900),
        "{:?}",
        start.elapsed()
    );
    followed
        .until(SOON, "it is gone", |seen| {
            tasks(seen, "web").next().is_none()
        })
        .await;
    stopping.await??.success()?;
    engine.docker(&["start", "web"])?;
    let seen = followed.until(SOON, "it runs again", healthy).await;
    ensure!(
        tasks(&seen, "web").all(|task| task.place != before),
        "at another place"
    );
    let before = tasks(&seen, "web").next().context("a task")?.place.clone();

    // The engine is killed: what is known stays, and what has changed is found when it is back.
    engine.kill()?;
    let down = |seen: &Seen| matches!(seen.link, Link::Down(_));
    let seen = followed.until(SOON, "the engine is away", down).await;
    assert_eq!(count(&seen, "web", TaskState::Healthy), 1);
    engine.start_again()?;
    followed
        .until(SOON, "it runs at its new place", |seen| {
            seen.link == Link::Up && healthy(seen) && tasks(seen, "web").all(|t| t.place != before)
        })
        .await;
    Ok(())
}
