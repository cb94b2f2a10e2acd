//! An engine that is not there, not for us, or not there any more.

use std::time::Duration;

use portolan_docker::{EngineError, Link};
use serde_json::json;
use tokio::net::UnixListener;

use crate::fake::{Fake, Followed, task};

fn down(seen: &portolan_docker::Seen) -> Option<&str> {
    match &seen.link {
        Link::Down(reason) | Link::Absent(reason) => Some(reason),
        _ => None,
    }
}

async fn reason(socket: &std::path::Path) -> String {
    let mut followed = Followed::new(socket);
    let seen = followed
        .until("it is down", |seen| down(seen).is_some())
        .await;
    down(&seen).unwrap().to_owned()
}

#[tokio::test]
async fn why_there_is_no_engine_is_told_with_the_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("docker.sock");
    let shown = socket.display();
    assert_eq!(
        reason(&socket).await,
        format!(
            "no Docker engine at {shown}: the socket does not exist; start Docker, or name its socket by --docker PATH"
        )
    );
    drop(UnixListener::bind(&socket).unwrap());
    assert_eq!(
        reason(&socket).await,
        format!(
            "no Docker engine at {shown}: nothing listens on the socket; start Docker (`systemctl start docker`)"
        )
    );
    let denied = EngineError::Unreachable {
        socket: "/run/docker.sock".into(),
        source: std::io::ErrorKind::PermissionDenied.into(),
    };
    assert_eq!(
        denied.to_string(),
        "no Docker engine at /run/docker.sock: permission denied; run the agent as root, or as a member of the group docker"
    );
}

#[tokio::test]
async fn an_engine_that_is_too_old_or_none_is_told() {
    let fake = Fake::worker();
    let shown = fake.socket().display().to_string();
    fake.state().engine["version"]["ApiVersion"] = json!("1.40");
    assert_eq!(
        reason(&fake.socket()).await,
        format!(
            "the Docker engine at {shown} is too old: it speaks version 1.40 of the API, and 1.41 is needed; install Docker 20.10 or later"
        )
    );
    fake.state().engine["version"] = json!({"hello": "world"});
    assert_eq!(
        reason(&fake.socket()).await,
        format!("what answers at {shown} is no Docker engine; name its socket by --docker PATH")
    );
}

#[tokio::test]
async fn an_engine_of_later_years_is_spoken_to_in_the_oldest_version_that_it_knows() {
    let fake = Fake::worker();
    fake.state().engine["version"]["ApiVersion"] = json!("1.52");
    fake.state().engine["version"]["MinAPIVersion"] = json!("1.44");
    let _followed = Followed::new(&fake.socket());
    fake.asked_more("/v1.44/events", 0).await;
}

#[tokio::test]
async fn what_is_known_outlives_the_engine_and_is_brought_up_to_date_when_it_is_back() {
    let mut fake = Fake::worker();
    let mut followed = Followed::new(&fake.socket());
    let before = followed.known().await.known.unwrap();
    fake.stop().await;
    let seen = followed
        .until("it is down", |seen| down(seen).is_some())
        .await;
    assert_eq!(
        seen.known.unwrap().wanted,
        before.wanted,
        "tasks may well run"
    );
    // While it is away a container ends, and another one is started anew.
    let (web, plain) = (fake.id_of("web.2"), fake.id_of("plain"));
    {
        let mut state = fake.state();
        state.engine["inspect"]
            .as_object_mut()
            .unwrap()
            .remove(&web);
        state.engine["inspect"][&plain]["State"]["StartedAt"] = json!("2026-11-21T05:00:00Z");
    }
    fake.start();
    let seen = followed
        .until("it is up to date", |seen| {
            seen.link == Link::Up && task(seen, "web.2").is_none()
        })
        .await;
    assert!(seen.known.is_some());
    let restarted =
        |seen: &portolan_docker::Seen| task(seen, "plain").unwrap().started_ms == 1_795_237_200_000;
    followed.until("the new start is seen", restarted).await;
}

#[tokio::test]
async fn a_container_that_goes_with_the_engine_before_it_was_seen_is_not_waited_for() {
    let mut fake = Fake::worker();
    let web = fake.id_of("web.2");
    fake.state()
        .delays
        .push((web.clone(), Duration::from_mins(1)));
    let mut followed = Followed::new(&fake.socket());
    fake.asked_more(&web, 0).await;
    fake.stop().await;
    fake.state().engine["inspect"]
        .as_object_mut()
        .unwrap()
        .remove(&web);
    fake.start();
    let seen = followed.known().await;
    assert!(task(&seen, "web.2").is_none() && task(&seen, "plain").is_some());
}

#[tokio::test]
async fn events_are_resumed_where_they_broke_off() {
    let mut fake = Fake::worker();
    let mut followed = Followed::new(&fake.socket());
    followed.known().await;
    let web = fake.id_of("web.2");
    let attributes = json!({"signal": "15"});
    let event = json!({
        "Type": "container", "Action": "kill", "timeNano": 1_795_232_286_381_124_120_u64,
        "Actor": {"ID": web, "Attributes": attributes},
    });
    fake.raw_event(&format!("{event}\n"));
    let drains = |seen: &portolan_docker::Seen| {
        task(seen, "web.2").is_some_and(|t| t.state == portolan_model::TaskState::Draining)
    };
    followed.until("it drains", drains).await;
    fake.stop().await;
    followed
        .until("it is down", |seen| down(seen).is_some())
        .await;
    fake.start();
    followed
        .until("it is up", |seen| seen.link == Link::Up)
        .await;
    assert_eq!(fake.asked("since=1795232286.381124120"), 1);
    let seen = followed.known().await;
    assert!(drains(&seen), "it still is about to end");
}

#[tokio::test]
async fn an_event_that_was_overtaken_by_a_later_one_counts() {
    let fake = Fake::worker();
    let mut followed = Followed::new(&fake.socket());
    followed.known().await;
    let web = fake.id_of("web.2");
    let event = |action: &str, id: &str, at: u64| {
        let actor = json!({"ID": id, "Attributes": {"signal": "15"}});
        json!({"Type": "container", "Action": action, "timeNano": at, "Actor": actor})
    };
    let (plain, at) = (fake.id_of("plain"), 1_795_232_286_381_124_120);
    fake.raw_event(&format!("{}\n", event("kill", &plain, at)));
    fake.raw_event(&format!("{}\n", event("die", &web, at - 1000)));
    followed
        .until("it is gone", |seen| task(seen, "web.2").is_none())
        .await;
}

#[tokio::test]
async fn garbage_between_events_is_passed_over() {
    let fake = Fake::worker();
    let mut followed = Followed::new(&fake.socket());
    followed.known().await;
    fake.raw_event(
        "\n\n{\"Type\":7}\nnonsense\n[[[[[[\n{\"Type\":\"container\",\"Action\":\"kill\"}\n",
    );
    let web = fake.id_of("web.2");
    fake.container_event("die", &web, &json!({}));
    followed
        .until("it is gone", |seen| task(seen, "web.2").is_none())
        .await;
    assert_eq!(followed.known().await.link, Link::Up);
}

#[tokio::test]
async fn a_watcher_ends_when_no_one_listens() {
    let fake = Fake::worker();
    let (watcher, seen) = portolan_docker::watch(&fake.socket());
    drop(seen);
    tokio::time::timeout(Duration::from_secs(10), watcher.run())
        .await
        .unwrap();
}
