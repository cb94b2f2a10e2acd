//! What changes is seen, and seen once.

use std::time::{Duration, Instant};

use portolan_docker::{Link, watch};
use portolan_model::TaskState;
use serde_json::json;

use crate::fake::{Fake, Followed, task};

fn state_of(seen: &portolan_docker::Seen, name: &str) -> Option<TaskState> {
    task(seen, name).map(|task| task.state)
}

#[tokio::test]
async fn everything_is_read_before_anything_is_told() {
    for (fake, services, tasks) in [(Fake::manager(), 8, 4), (Fake::worker(), 3, 9)] {
        let mut followed = Followed::new(&fake.socket());
        let seen = followed
            .until("something is known", |seen| seen.known.is_some())
            .await;
        let known = seen.known.unwrap();
        assert_eq!(
            (known.wanted.services.len(), known.wanted.tasks.len()),
            (services, tasks)
        );
        assert_eq!(seen.link, Link::Up);
        // `attached` and others without a label are looked at by no one.
        assert_eq!(
            fake.asked(&fake.id_of(if tasks == 9 { "attached" } else { "idle" })),
            usize::from(tasks == 4)
        );
        assert_eq!(fake.asked("/services"), usize::from(services == 8));
    }
}

#[tokio::test]
async fn a_stop_signal_begins_the_drain_though_the_engine_answers_nothing() {
    let fake = Fake::worker();
    let mut followed = Followed::new(&fake.socket());
    followed.known().await;
    let stalled = Duration::from_mins(1);
    fake.state().delays.push(("/".into(), stalled));
    let (web, hostnet) = (fake.id_of("web.2"), fake.id_of("hostnet"));
    // SIGHUP, which ends nothing, is one that a container may get for another reason.
    fake.container_event("kill", &hostnet, &json!({"signal": "1"}));
    let start = Instant::now();
    fake.container_event("kill", &web, &json!({"signal": "15"}));
    let seen = followed
        .until("web.2 drains", |seen| {
            state_of(seen, "web.2") == Some(TaskState::Draining)
        })
        .await;
    assert!(
        start.elapsed() < Duration::from_millis(500),
        "{:?}",
        start.elapsed()
    );
    assert_eq!(state_of(&seen, "hostnet"), Some(TaskState::Healthy));
    assert_eq!(seen.link, Link::Up);
    fake.container_event("die", &web, &json!({"exitCode": "137"}));
    followed
        .until("web.2 is gone", |seen| task(seen, "web.2").is_none())
        .await;
}

#[tokio::test]
async fn a_containers_own_stop_signal_counts() {
    let fake = Fake::worker();
    let plain = fake.id_of("plain");
    fake.state().engine["inspect"][&plain]["Config"]["StopSignal"] = json!("SIGQUIT");
    let mut followed = Followed::new(&fake.socket());
    followed.known().await;
    fake.container_event("kill", &plain, &json!({"signal": "3"}));
    followed
        .until("it drains", |seen| {
            state_of(seen, "plain") == Some(TaskState::Draining)
        })
        .await;
    // `docker restart`: it has ended, and runs again at another place.
    let before = followed.known().await;
    fake.container_event("die", &plain, &json!({}));
    followed
        .until("it is gone", |seen| task(seen, "plain").is_none())
        .await;
    let sandbox = json!("/run/docker/netns/another");
    fake.state().engine["inspect"][&plain]["NetworkSettings"]["SandboxKey"] = sandbox;
    fake.container_event("start", &plain, &json!({}));
    let seen = followed
        .until("it is back", |seen| {
            state_of(seen, "plain") == Some(TaskState::Healthy)
        })
        .await;
    let place = |seen| task(seen, "plain").unwrap().place.clone();
    assert_ne!(place(&seen), place(&before));
}

#[tokio::test]
async fn a_container_that_survives_its_stop_signal_is_taken_for_what_it_is() {
    let fake = Fake::worker();
    let plain = fake.id_of("plain");
    fake.state().engine["inspect"][&plain]["Config"]["StopTimeout"] = json!(0);
    let (watcher, seen) = watch(&fake.socket());
    let mut followed = Followed::with((watcher.with_resync(Duration::from_millis(100)), seen));
    followed.known().await;
    fake.container_event("kill", &plain, &json!({"signal": "15"}));
    followed
        .until("it drains", |seen| {
            state_of(seen, "plain") == Some(TaskState::Draining)
        })
        .await;
    let start = Instant::now();
    let back = followed
        .seen
        .wait_for(|seen| state_of(seen, "plain") == Some(TaskState::Healthy));
    drop(
        tokio::time::timeout(Duration::from_secs(20), back)
            .await
            .unwrap()
            .unwrap(),
    );
    assert!(
        start.elapsed() > Duration::from_secs(8),
        "Docker's own lag is granted"
    );
}

#[tokio::test]
async fn an_answer_from_before_the_end_brings_nothing_back() {
    let fake = Fake::worker();
    let mut followed = Followed::new(&fake.socket());
    followed.known().await;
    let web = fake.id_of("web.2");
    fake.state()
        .delays
        .push((web.clone(), Duration::from_millis(300)));
    fake.container_event(
        "health_status: healthy",
        &web,
        &json!({"com.docker.swarm.task": ""}),
    );
    let asked = fake.asked(&web);
    fake.asked_more(&web, asked).await;
    // The answer is made, and on its way.
    fake.state().engine["inspect"]
        .as_object_mut()
        .unwrap()
        .remove(&web);
    fake.container_event("die", &web, &json!({}));
    followed
        .until("it is gone", |seen| task(seen, "web.2").is_none())
        .await;
    let back = followed.seen.wait_for(|seen| task(seen, "web.2").is_some());
    assert!(
        tokio::time::timeout(Duration::from_millis(700), back)
            .await
            .is_err()
    );
}

#[tokio::test]
async fn health_and_new_containers_are_seen_and_a_burst_of_events_is_one_question() {
    let fake = Fake::worker();
    let web = fake.id_of("web.2");
    let container = fake.state().engine["inspect"]
        .as_object_mut()
        .unwrap()
        .remove(&web)
        .unwrap();
    let mut followed = Followed::new(&fake.socket());
    let seen = followed.known().await;
    assert!(task(&seen, "web.2").is_none());
    fake.state().engine["inspect"][&web] = container;
    for _ in 0..200 {
        fake.container_event("start", &web, &json!({"com.docker.swarm.task": ""}));
    }
    followed
        .until("it is there", |seen| task(seen, "web.2").is_some())
        .await;
    fake.state().engine["inspect"][&web]["State"]["Health"] = json!({"Status": "unhealthy"});
    fake.container_event(
        "health_status: unhealthy",
        &web,
        &json!({"com.docker.swarm.task": ""}),
    );
    let seen = followed
        .until("it fails", |seen| {
            state_of(seen, "web.2") == Some(TaskState::Unhealthy)
        })
        .await;
    assert!(task(&seen, "web.2").unwrap().checked);
    assert!(fake.asked(&web) < 12, "asked {} times", fake.asked(&web));
}

#[tokio::test]
async fn services_follow_the_swarms_events() {
    let fake = Fake::manager();
    let mut followed = Followed::new(&fake.socket());
    followed.known().await;
    let publishes = |seen: &portolan_docker::Seen, port: &str| {
        let services = &seen.known.as_ref().unwrap().wanted.services;
        let mut ports = services.iter().flat_map(|s| &s.service.ports);
        ports.any(|p| p.to_string() == port)
    };
    {
        let mut state = fake.state();
        let services = state.engine["services"].as_array_mut().unwrap();
        let web = services
            .iter_mut()
            .find(|s| s["Spec"]["Name"] == "web")
            .unwrap();
        web["Spec"]["EndpointSpec"]["Ports"][0]["PublishedPort"] = json!(8099);
    }
    fake.event("service", "update", "x", &json!({"name": "web"}));
    followed
        .until("the port is another", |seen| publishes(seen, "8099:80/tcp"))
        .await;
    fake.state().engine["services"]
        .as_array_mut()
        .unwrap()
        .retain(|s| s["Spec"]["Name"] != "web");
    fake.event("service", "remove", "x", &json!({"name": "web"}));
    followed
        .until("the service is gone", |seen| {
            !publishes(seen, "8099:80/tcp")
        })
        .await;
}

#[tokio::test]
async fn a_manager_that_becomes_a_worker_forgets_the_swarm() {
    let fake = Fake::manager();
    let mut followed = Followed::new(&fake.socket());
    assert!(followed.known().await.known.unwrap().wanted.knows_swarm);
    {
        let mut state = fake.state();
        state.engine["info"]["Swarm"]["ControlAvailable"] = json!(false);
        for path in ["/services", "/tasks", "/nodes"] {
            let refusal = json!({"message": "This node is not a swarm manager."}).to_string();
            state.instead.insert(path.into(), (503, refusal));
        }
    }
    fake.event("service", "update", "x", &json!({}));
    let seen = followed
        .until("it is a worker", |seen| {
            !seen.known.as_ref().unwrap().wanted.knows_swarm
        })
        .await;
    assert!(seen.known.unwrap().wanted.services.is_empty());
    followed
        .until("nothing is amiss", |seen| seen.link == Link::Up)
        .await;
    // No one asks a worker what only a manager answers.
    let asked = fake.asked("/services");
    let again = followed.seen.wait_for(|seen| seen.link != Link::Up);
    assert!(
        tokio::time::timeout(Duration::from_millis(1500), again)
            .await
            .is_err()
    );
    assert_eq!(fake.asked("/services"), asked);
    // And back, of which no event tells: but the Swarm's networks are those of a manager.
    fake.state().engine["info"]["Swarm"]["ControlAvailable"] = json!(true);
    fake.state().instead.clear();
    for network in fake.state().engine["networks"].as_array_mut().unwrap() {
        network["Created"] = json!("2026-11-20T01:00:00Z");
    }
    followed
        .until("it is a manager", |seen| {
            seen.known.as_ref().unwrap().wanted.knows_swarm
        })
        .await;
}

#[tokio::test]
async fn what_no_event_tells_is_found() {
    let fake = Fake::worker();
    let (watcher, seen) = watch(&fake.socket());
    let mut followed = Followed::with((watcher.with_resync(Duration::from_millis(100)), seen));
    followed.known().await;
    let web = fake.id_of("web.2");
    let container = fake.state().engine["inspect"]
        .as_object_mut()
        .unwrap()
        .remove(&web)
        .unwrap();
    followed
        .until("it is gone", |seen| task(seen, "web.2").is_none())
        .await;
    fake.state().engine["inspect"][&web] = container;
    followed
        .until("it is back", |seen| task(seen, "web.2").is_some())
        .await;
}

#[tokio::test]
async fn what_can_no_longer_be_read_stays_as_it_was() {
    let fake = Fake::manager();
    let mut followed = Followed::new(&fake.socket());
    let before = followed.known().await.known.unwrap();
    {
        let mut state = fake.state();
        let services = state.engine["services"].as_array_mut().unwrap();
        let web = services
            .iter_mut()
            .find(|s| s["Spec"]["Name"] == "web")
            .unwrap();
        web["Spec"]["EndpointSpec"] = json!("no such thing");
        let checked = state.engine["inspect"]
            .as_object_mut()
            .unwrap()
            .values_mut();
        for container in checked {
            container["State"] = json!(7);
        }
    }
    fake.event("service", "update", "x", &json!({}));
    fake.container_event("update", &fake.id_of("checked"), &json!({}));
    let seen = followed
        .until("it is told", |seen| {
            seen.known.as_ref().unwrap().observed.unreadable.len() == 2
        })
        .await;
    let after = seen.known.unwrap();
    assert_eq!(after.wanted.services, before.wanted.services);
    assert_eq!(after.wanted.tasks, before.wanted.tasks);
    let told: Vec<String> = after
        .wanted
        .diagnostics
        .iter()
        .map(|d| d.diagnostic.to_string())
        .collect();
    assert!(
        told.iter()
            .any(|d| d.starts_with("service web: what the engine says of it makes no sense"))
    );
}

#[tokio::test]
async fn nothing_is_told_twice() {
    let fake = Fake::manager();
    let (watcher, seen) = watch(&fake.socket());
    let mut followed = Followed::with((watcher.with_resync(Duration::from_millis(50)), seen));
    followed.known().await;
    followed.seen.mark_unchanged();
    fake.asked_more("/info", fake.asked("/info") + 3).await;
    assert!(!followed.seen.has_changed().unwrap());
}
