//! Real drivers on loopback addresses: sockets, encryption and disk included.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking, in its helpers too"
)]

mod support;

use std::time::Duration;

use portolan_gossip::{DriverError, Key, Keyring, MemberState, View};
use support::{Node, Setup, records};
use tokio::task::JoinSet;

#[tokio::test]
async fn records_reach_everybody_and_go_with_their_owner() {
    let setup = Setup::new();
    let one = setup.node("one", 1).start().await;
    let two = setup.node("two", 2).joining(&[&one]).start().await;
    let three = setup.node("three", 3).joining(&[&one]).start().await;
    one.gossip.set_records(records(&[("a", "1")])).unwrap();
    two.gossip.set_records(records(&[("b", "2")])).unwrap();
    three.gossip.set_records(records(&[("c", "3")])).unwrap();
    for node in [&one, &two, &three] {
        node.sees(&one, &[("a", "1")]).await;
        node.sees(&two, &[("b", "2")]).await;
        node.sees(&three, &[("c", "3")]).await;
        node.until("names", |view| {
            let mut names: Vec<_> = view.members.values().map(|m| m.name.as_str()).collect();
            names.sort_unstable();
            names == ["one", "three", "two"]
        })
        .await;
    }

    two.gossip
        .set_records(records(&[("b", "4"), ("d", "5")]))
        .unwrap();
    one.sees(&two, &[("b", "4"), ("d", "5")]).await;
    two.gossip.set_records(records(&[("d", "5")])).unwrap();
    three.sees(&two, &[("d", "5")]).await;

    two.gossip.leave().await;
    for node in [&one, &three] {
        node.until("the leaver to be gone", |view| {
            !view.owners.contains_key(&two.id) && view.members[&two.id].state == MemberState::Left
        })
        .await;
    }
    two.ended().await.unwrap();
}

#[tokio::test]
async fn a_killed_node_is_down_within_five_seconds_and_its_records_are_hidden() {
    let setup = Setup::new();
    let one = setup.node("one", 11).start().await;
    let two = setup.node("two", 12).joining(&[&one]).start().await;
    let three = setup.node("three", 13).joining(&[&one]).start().await;
    two.gossip.set_records(records(&[("b", "2")])).unwrap();
    for node in [&one, &three] {
        node.sees(&two, &[("b", "2")]).await;
    }
    let id = two.id;
    two.kill().await;
    let since = std::time::Instant::now();
    for node in [&one, &three] {
        node.until("the killed node to be down", |view| {
            view.members[&id].state == MemberState::Down && !view.owners[&id].visible
        })
        .await;
    }
    assert!(
        since.elapsed() < Duration::from_secs(5),
        "{:?}",
        since.elapsed()
    );
}

#[tokio::test]
async fn a_node_that_says_so_counts_while_it_is_down() {
    let setup = Setup::new();
    let one = setup.node("one", 14).start().await;
    let two = setup.node("two", 15).joining(&[&one]).start().await;
    let three = setup.node("three", 16).joining(&[&one]).start().await;
    two.gossip.set_records(records(&[("b", "2")])).unwrap();
    for node in [&one, &three] {
        node.sees(&two, &[("b", "2")]).await;
    }
    let mut views = one.gossip.view();
    let id = two.id;
    // Not before it has come back and gone for good.
    let mut hidden = JoinSet::new();
    hidden.spawn(async move {
        let hidden = views.wait_for(|view| !view.owners[&id].visible);
        hidden.await.unwrap().members[&id].boot
    });
    two.gossip.pause(Duration::from_mins(1)).await;
    two.ended().await.unwrap();
    let is_down = |view: &View| view.members[&id].state == MemberState::Down;
    for node in [&one, &three] {
        node.until("the node to be down, and to count", |view| {
            is_down(view) && view.owners[&id].visible
        })
        .await;
    }
    let two = setup.node("two", 15).joining(&[&one]).start().await;
    two.gossip.set_records(records(&[("b", "3")])).unwrap();
    for node in [&one, &three] {
        node.sees(&two, &[("b", "3")]).await;
    }
    let boot = one.view().members[&id].boot;
    two.gossip.pause(Duration::from_millis(1)).await;
    two.ended().await.unwrap();
    one.until("the node to be down, and not to count", |view| {
        is_down(view) && !view.owners[&id].visible
    })
    .await;
    let hidden = hidden.join_next().await.unwrap().unwrap();
    assert_eq!(hidden, boot, "not in its first life");
}

#[tokio::test]
async fn a_node_restarted_with_its_state_replaces_its_records() {
    let setup = Setup::new();
    let one = setup.node("one", 21).start().await;
    let two = setup.node("two", 22).joining(&[&one]).start().await;
    two.gossip
        .set_records(records(&[("old", "1"), ("kept", "1")]))
        .unwrap();
    one.sees(&two, &[("kept", "1"), ("old", "1")]).await;
    let boot = one.view().members[&two.id].boot;
    two.kill().await;
    let two = setup.node("two", 22).joining(&[&one]).start().await;
    one.until("the new life", |view| view.members[&two.id].boot > boot)
        .await;
    // Until it has published, what it had stays.
    assert!(one.view().owners[&two.id].records.contains_key(&b"old"[..]));
    two.gossip.set_records(records(&[("kept", "1")])).unwrap();
    one.sees(&two, &[("kept", "1")]).await;
    assert!(one.view().owners[&two.id].boot > boot);
}

#[tokio::test]
async fn whoever_has_not_the_key_stays_outside_and_is_counted() {
    let setup = Setup::new();
    let one = setup.node("one", 31).start().await;
    let other = Keyring::new(Key::generate().unwrap());
    let two = setup
        .node("two", 32)
        .keys(Some(other))
        .joining(&[&one])
        .start()
        .await;
    let three = setup
        .node("three", 33)
        .keys(None)
        .joining(&[&one])
        .start()
        .await;
    let four = setup
        .node("four", 34)
        .cluster("another")
        .joining(&[&one])
        .start()
        .await;
    one.until_stats("refusals", |stats| {
        stats.drops.unknown_key >= 2 && stats.drops.decrypt >= 1
    })
    .await;
    for node in [&one, &two, &three, &four] {
        assert_eq!(node.view().members.len(), 1);
    }
}

#[tokio::test]
async fn keys_are_rotated_while_the_cluster_runs() {
    let setup = Setup::new();
    let one = setup.node("one", 41).start().await;
    let two = setup.node("two", 42).joining(&[&one]).start().await;
    one.gossip.set_records(records(&[("a", "1")])).unwrap();
    two.sees(&one, &[("a", "1")]).await;
    let old = one.gossip.keyring_list().await.unwrap()[0].id;
    let new = Key::generate().unwrap();
    for node in [&one, &two] {
        node.gossip.keyring_install(new.clone()).await.unwrap();
    }
    for node in [&one, &two] {
        node.gossip.keyring_use(new.id()).await.unwrap();
    }
    for node in [&one, &two] {
        let keys = node.gossip.keyring_remove(old).await.unwrap();
        assert_eq!(keys.len(), 1);
    }
    one.gossip.set_records(records(&[("a", "2")])).unwrap();
    two.sees(&one, &[("a", "2")]).await;
    let fresh = Keyring::new(new);
    let three = setup
        .node("three", 43)
        .keys(Some(fresh))
        .joining(&[&two])
        .start()
        .await;
    three.sees(&one, &[("a", "2")]).await;
    assert_eq!(one.gossip.stats().drops.unknown_key, 0);
}

#[tokio::test]
async fn a_replayed_datagram_is_counted_and_changes_nothing() {
    let setup = Setup::new();
    let one = setup.node("one", 51).start().await;
    // A wire tap between the two: what two sends to one passes through it.
    let tap = tokio::net::UdpSocket::bind("127.0.5.52:0").await.unwrap();
    let two = setup.node("two", 52).joining(&[&one]).start().await;
    two.gossip.set_records(records(&[("b", "2")])).unwrap();
    one.sees(&two, &[("b", "2")]).await;
    // Captured by announcing the tap as a seed: the node's own datagrams come to it.
    let mimic = setup.node("mimic", 53).advertise(tap.local_addr().unwrap());
    let mimic = mimic.joining(&[&one]).start().await;
    let mut captured = [0; 2048];
    let (len, _) = tokio::time::timeout(Duration::from_secs(10), tap.recv_from(&mut captured))
        .await
        .expect("members probe the new one")
        .unwrap();
    mimic.kill().await;
    // Sent to the one it was not meant for, twice: the second is a replay.
    let hash = one.view().table_hash;
    let packet = &captured[..len];
    let sender = tokio::net::UdpSocket::bind("127.0.5.54:0").await.unwrap();
    let before = one.gossip.stats().drops.replay;
    for _ in 0..5 {
        sender.send_to(packet, one.addr).await.unwrap();
        sender.send_to(packet, two.addr).await.unwrap();
    }
    let (a, b) = (one.gossip.clone(), two.gossip.clone());
    one.until_stats("replays", |_| {
        a.stats().drops.replay + b.stats().drops.replay >= before + 8
    })
    .await;
    assert_eq!(one.view().table_hash, hash);

    // Forged: one bit of a real one is turned.
    let mut forged = packet.to_vec();
    *forged.last_mut().unwrap() ^= 1;
    sender.send_to(&forged, one.addr).await.unwrap();
    one.until_stats("the forgery", |stats| stats.drops.decrypt >= 1)
        .await;
    assert_eq!(one.view().table_hash, hash);
}

#[tokio::test]
async fn of_two_nodes_of_one_name_the_later_refuses_to_run() {
    let setup = Setup::new();
    let one = setup.node("one", 61).start().await;
    let two = setup.node("two", 62).joining(&[&one]).start().await;
    one.until("two", |view| view.members.len() == 2).await;
    let clone = setup
        .node("two", 63)
        .fresh_disk()
        .joining(&[&one])
        .start()
        .await;
    let addr = clone.addr;
    let error = clone.ended().await.unwrap_err();
    match &error {
        DriverError::NameTaken { name, ours, theirs } => {
            assert_eq!((name.as_str(), *ours, *theirs), ("two", addr, two.addr));
        }
        other => panic!("{other}"),
    }
    assert!(error.to_string().contains("--name"), "{error}");
    assert_eq!(one.view().members[&two.id].addr, two.addr);
    assert_eq!(one.view().members[&two.id].state, MemberState::Alive);
}

#[tokio::test]
async fn a_seed_that_comes_up_later_is_found() {
    let setup = Setup::new();
    let late = setup.node("late", 72);
    let early = setup.node("early", 71).seeds(&[late.addr()]).start().await;
    early.gossip.set_records(records(&[("a", "1")])).unwrap();
    early
        .until_stats("failed tries", |stats| stats.pulls.failed >= 2)
        .await;
    let late = late.start().await;
    late.sees(&early, &[("a", "1")]).await;
}

#[tokio::test]
async fn a_lost_boot_number_is_found_again() {
    let setup = Setup::new();
    let one = setup.node("one", 81).start().await;
    let ahead = setup
        .node("two", 82)
        .boot(1 << 50)
        .joining(&[&one])
        .start()
        .await;
    ahead.gossip.set_records(records(&[("b", "1")])).unwrap();
    one.sees(&ahead, &[("b", "1")]).await;
    ahead.kill().await;
    let two = setup
        .node("two", 82)
        .fresh_disk()
        .joining(&[&one])
        .start()
        .await;
    two.gossip.set_records(records(&[("b", "2")])).unwrap();
    one.sees(&two, &[("b", "2")]).await;
    assert!(one.view().members[&two.id].boot > 1 << 50);
}

#[tokio::test]
async fn records_that_cannot_travel_are_named() {
    let setup = Setup::new();
    let one: Node = setup.node("one", 91).start().await;
    let long = "x".repeat(2000);
    let error = one
        .gossip
        .set_records(records(&[("good", "1"), ("long", &long), ("\0mine", "1")]))
        .unwrap_err();
    assert_eq!(error.rejected.len(), 2);
    assert!(error.to_string().contains("long"), "{error}");
    one.sees(&one, &[("good", "1")]).await;
    assert_eq!(one.gossip.stats().records_rejected, 2);
}
