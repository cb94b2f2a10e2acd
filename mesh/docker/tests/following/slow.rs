//! An engine that is slow, or refuses a part.

use std::time::{Duration, Instant};

use portolan_docker::Link;
use serde_json::json;

use crate::fake::{Fake, Followed, task};

#[tokio::test]
async fn containers_are_looked_at_side_by_side_but_not_all_at_once() {
    let fake = Fake::worker();
    fake.state()
        .delays
        .push(("/json".into(), Duration::from_millis(400)));
    let start = Instant::now();
    let mut followed = Followed::new(&fake.socket());
    followed.known().await;
    // The list, then nine containers of which eight are asked for at once.
    let took = start.elapsed();
    assert!(took < Duration::from_millis(2400), "{took:?}");
    assert!(took > Duration::from_millis(1100), "{took:?}");
}

#[tokio::test]
async fn one_container_that_is_slow_holds_no_other_up() {
    let fake = Fake::worker();
    let mut followed = Followed::new(&fake.socket());
    followed.known().await;
    let (plain, web) = (fake.id_of("plain"), fake.id_of("web.2"));
    fake.state()
        .delays
        .push((plain.clone(), Duration::from_mins(1)));
    fake.container_event("update", &plain, &json!({}));
    fake.state().engine["inspect"][&web]["State"]["Status"] = json!("paused");
    fake.container_event("pause", &web, &json!({}));
    let paused = |seen: &portolan_docker::Seen| task(seen, "web.2").unwrap().reason.is_some();
    followed.until("web.2 is paused", paused).await;
    let seen = followed
        .until("it is told", |seen| matches!(seen.link, Link::Troubled(_)))
        .await;
    let told = format!(
        "the Docker engine has not answered /containers/{plain}/json for 10 s; if that goes on, restart it"
    );
    assert_eq!(seen.link, Link::Troubled(told));
    assert!(task(&seen, "plain").is_some(), "what is known stays");
    fake.state().delays.clear();
    followed
        .until("it answers", |seen| seen.link == Link::Up)
        .await;
}

#[tokio::test]
async fn a_part_that_is_refused_is_told_and_the_rest_goes_on() {
    let fake = Fake::manager();
    let mut followed = Followed::new(&fake.socket());
    let before = followed.known().await.known.unwrap();
    let refusal = json!({"message": "The swarm does not have a leader."}).to_string();
    fake.state()
        .instead
        .insert("/services".into(), (503, refusal));
    fake.event("service", "update", "x", &json!({}));
    let seen = followed
        .until("it is told", |seen| matches!(seen.link, Link::Troubled(_)))
        .await;
    assert_eq!(
        seen.link,
        Link::Troubled(
            "the Docker engine refuses /v1.41/services (503): The swarm does not have a leader."
                .into()
        )
    );
    assert_eq!(seen.known.unwrap().wanted.services, before.wanted.services);
    let checked = fake.id_of("checked");
    fake.container_event("die", &checked, &json!({}));
    followed
        .until("the rest goes on", |seen| task(seen, "checked").is_none())
        .await;
    // It is asked again without a further event.
    fake.state().instead.clear();
    followed
        .until("all is well", |seen| seen.link == Link::Up)
        .await;
}

#[tokio::test]
async fn an_answer_that_is_no_json_is_told() {
    let fake = Fake::worker();
    fake.state()
        .instead
        .insert("/networks".into(), (200, "[{".into()));
    let mut followed = Followed::new(&fake.socket());
    let seen = followed
        .until("it is told", |seen| matches!(seen.link, Link::Troubled(_)))
        .await;
    assert!(seen.known.is_none(), "half of the truth is none");
    let Link::Troubled(reason) = seen.link else {
        panic!("no reason");
    };
    assert!(reason.contains("/networks: EOF while parsing"), "{reason}");
    fake.state().instead.clear();
    followed.known().await;
}

#[tokio::test]
async fn a_list_that_is_none_is_told_before_anything_is_known() {
    let fake = Fake::worker();
    fake.state()
        .instead
        .insert("/networks".into(), (200, "7".into()));
    let mut followed = Followed::new(&fake.socket());
    let seen = followed
        .until("it is told", |seen| matches!(seen.link, Link::Troubled(_)))
        .await;
    assert!(seen.known.is_none());
}
