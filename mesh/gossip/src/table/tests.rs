use std::collections::BTreeMap;

use bytes::Bytes;
use portolan_model::NodeId;
use proptest::{collection::vec, prelude::*};

use super::*;

const NOW: Duration = Duration::from_secs(1);
const KEEP: Keep = Keep {
    gone: Duration::from_mins(1),
    previous: Duration::from_secs(10),
};

fn table(name: &str, boot: u64) -> Table {
    Table::new(NodeId::of_name(name), boot, Limits::default(), KEEP)
}

fn records(records: &[(&'static str, &'static str)]) -> BTreeMap<Bytes, Bytes> {
    let owned = records.iter().map(|(k, v)| {
        (
            Bytes::from_static(k.as_bytes()),
            Bytes::from_static(v.as_bytes()),
        )
    });
    owned.collect()
}

fn owner() -> NodeId {
    NodeId::of_name("owner")
}

/// A viewer that holds the owner for alive.
fn viewer() -> Table {
    let mut viewer = table("viewer", 1);
    viewer.show(owner(), 1, NOW);
    viewer
}

/// What one side of a pull sends the other.
fn pull(from: &Table, to: &mut Table) -> usize {
    let parts = from.parts(&to.digests(u64::MAX), u64::MAX, usize::MAX);
    let owned = from.me;
    let count = parts.len();
    for part in parts {
        let owner = part.owner;
        to.merge(part, owner == owned, NOW);
    }
    count
}

fn shown(table: &mut Table) -> BTreeMap<Bytes, Bytes> {
    let owners = table.owners();
    owners
        .get(&owner())
        .filter(|owner| owner.visible)
        .into_iter()
        .flat_map(|owner| owner.records.clone())
        .collect()
}

#[test]
fn an_old_delta_does_not_bring_back_what_was_deleted_and_forgotten() {
    let mut one = table("owner", 1);
    one.set_own("owner", records(&[("a", "1")]), NOW);
    let key = Bytes::from_static(b"a");
    let (boot, old) = one.latest(owner(), &key).unwrap();
    let mut viewer = viewer();
    pull(&one, &mut viewer);
    one.set_own("owner", records(&[]), NOW);
    pull(&one, &mut viewer);
    assert!(shown(&mut viewer).is_empty());
    viewer.expire(NOW + KEEP.gone);
    let delta = Delta {
        owner: owner(),
        boot,
        change: old,
    };
    assert_eq!(viewer.apply(delta, NOW), Applied::Stale);
    assert!(shown(&mut viewer).is_empty());
}

#[test]
fn a_peer_behind_forgotten_deletes_gets_a_snapshot() {
    let mut one = table("owner", 1);
    one.set_own("owner", records(&[("a", "1"), ("b", "1")]), NOW);
    let mut viewer = viewer();
    pull(&one, &mut viewer);
    one.set_own("owner", records(&[("b", "1")]), NOW);
    one.expire(NOW + KEEP.gone);
    pull(&one, &mut viewer);
    assert_eq!(shown(&mut viewer), records(&[("b", "1")]));
    assert_eq!(pull(&one, &mut viewer), 0);
}

#[test]
fn a_part_that_is_cut_by_its_budget_is_continued() {
    let mut one = table("owner", 1);
    let many: BTreeMap<Bytes, Bytes> = (0..500u32)
        .map(|n| (Bytes::from(format!("k{n}")), Bytes::from(vec![7; 200])))
        .collect();
    one.set_own("owner", many.clone(), NOW);
    let mut viewer = viewer();
    let mut pulls = 0;
    loop {
        let parts = one.parts(&viewer.digests(u64::MAX), u64::MAX, 20_000);
        if parts.is_empty() {
            break;
        }
        pulls += 1;
        for part in parts {
            viewer.merge(part, true, NOW);
        }
    }
    assert!(pulls > 3, "{pulls}");
    assert_eq!(shown(&mut viewer), many);
}

#[test]
fn a_member_down_is_hidden_and_shown_again_as_it_was() {
    let mut one = table("owner", 1);
    one.set_own("owner", records(&[("a", "1")]), NOW);
    let mut viewer = viewer();
    pull(&one, &mut viewer);
    let hash = viewer.hash();
    viewer.hide(owner(), NOW);
    assert!(shown(&mut viewer).is_empty());
    assert_eq!(viewer.owners()[&owner()].records.len(), 1);
    assert_ne!(viewer.hash(), hash);
    viewer.show(owner(), 1, NOW);
    assert_eq!(viewer.hash(), hash);
    assert_eq!(shown(&mut viewer), records(&[("a", "1")]));
    viewer.hide(owner(), NOW);
    viewer.expire(NOW + KEEP.gone);
    assert!(!viewer.owners().contains_key(&owner()));
}

#[test]
fn an_owner_that_comes_back_counts_until_its_time_is_over() {
    let away = Duration::from_secs(30);
    let nearly = NOW + Duration::from_secs(29);
    let a = records(&[("a", "1")]);
    let mut one = table("owner", 1);
    one.set_own("owner", a.clone(), NOW);
    let [mut viewer, mut late] = [viewer(), viewer()];
    pull(&one, &mut viewer);
    pull(&one, &mut late);
    one.pause(away);
    pull(&one, &mut viewer);
    for table in [&mut viewer, &mut late] {
        table.hide(owner(), NOW);
    }
    assert_eq!(shown(&mut viewer), a);
    assert!(shown(&mut late).is_empty());
    // Who has not heard of it in time hears of it from others.
    pull(&viewer, &mut late);
    for table in [&mut viewer, &mut late] {
        table.expire(nearly);
        assert_eq!(shown(table), a);
    }
    assert_eq!(viewer.hash(), late.hash());
    late.expire(NOW + away);
    assert!(shown(&mut late).is_empty());

    // The next life begins before others hold it for alive.
    let mut two = table("owner", 2);
    let b = records(&[("b", "2")]);
    two.set_own("owner", b.clone(), NOW);
    let keys = two.own_keys();
    let (boot, change) = two.latest(owner(), &keys[0]).unwrap();
    let delta = Delta {
        owner: owner(),
        boot,
        change,
    };
    viewer.apply(delta, NOW);
    assert_eq!(shown(&mut viewer), a, "not complete");
    viewer.show(owner(), 2, NOW);
    pull(&two, &mut viewer);
    viewer.expire(NOW + away);
    assert_eq!(shown(&mut viewer), b);
    viewer.hide(owner(), NOW);
    assert!(
        shown(&mut viewer).is_empty(),
        "of this life nothing was said"
    );
}

#[test]
fn the_life_before_stands_in_until_the_new_one_is_complete() {
    let mut one = table("owner", 1);
    one.set_own("owner", records(&[("a", "1"), ("b", "1")]), NOW);
    let mut viewer = viewer();
    pull(&one, &mut viewer);

    let mut two = table("owner", 2);
    two.set_own("owner", records(&[("a", "2")]), NOW);
    viewer.show(owner(), 2, NOW);
    let changes: Vec<Bytes> = two.own_keys();
    for key in &changes {
        assert_eq!(shown(&mut viewer), records(&[("a", "1"), ("b", "1")]));
        let (boot, change) = two.latest(owner(), key).unwrap();
        let delta = Delta {
            owner: owner(),
            boot,
            change,
        };
        viewer.apply(delta, NOW);
    }
    assert_eq!(shown(&mut viewer), records(&[("a", "2")]));

    // If it never is complete, the old one goes all the same.
    viewer.show(owner(), 3, NOW);
    assert_eq!(shown(&mut viewer), records(&[("a", "2")]));
    viewer.expire(NOW + KEEP.previous);
    assert!(shown(&mut viewer).is_empty());
}

#[test]
fn an_owner_that_left_is_gone_at_once_and_for_good() {
    let mut one = table("owner", 1);
    one.set_own("owner", records(&[("a", "1")]), NOW);
    let mut viewer = viewer();
    pull(&one, &mut viewer);
    let mut behind = table("behind", 1);
    behind.show(owner(), 1, NOW);
    pull(&one, &mut behind);
    one.leave();
    pull(&one, &mut viewer);
    assert!(!viewer.owners().contains_key(&owner()));
    // Somebody who has not heard does not bring it back, and is told.
    pull(&behind, &mut viewer);
    assert!(!viewer.owners().contains_key(&owner()));
    pull(&viewer, &mut behind);
    assert!(!behind.owners().contains_key(&owner()));
}

#[test]
fn an_owner_repairs_a_log_that_differs() {
    let mut one = table("owner", 1);
    one.set_own("owner", records(&[("a", "1")]), NOW);
    let mut other = table("owner", 1);
    other.set_own("owner", records(&[("a", "2")]), NOW);
    let mut viewer = viewer();
    pull(&other, &mut viewer);
    pull(&one, &mut viewer);
    assert_eq!(shown(&mut viewer), records(&[("a", "1")]));
}

#[test]
fn limits_hold() {
    let limits = Limits {
        records_per_owner: 10,
        owners: 5,
        ..Limits::default()
    };
    let mut viewer = Table::new(NodeId::of_name("viewer"), 1, limits, KEEP);
    for n in 0..20 {
        let name = format!("n{n}");
        let mut one = table(&name, 1);
        let many = (0..20u32).map(|n| (Bytes::from(format!("k{n}")), Bytes::new()));
        one.set_own(&name, many.collect(), NOW);
        pull(&one, &mut viewer);
    }
    let (owners, records, _) = viewer.size();
    assert!(owners <= 5 && records <= 50, "{owners} {records}");
}

#[test]
fn an_owner_that_did_not_change_keeps_its_arc() {
    let mut one = table("owner", 1);
    one.set_own("owner", records(&[("a", "1")]), NOW);
    let mut viewer = viewer();
    pull(&one, &mut viewer);
    let before = Arc::clone(&viewer.owners()[&owner()]);
    let mut other = table("other", 1);
    other.set_own("other", records(&[("b", "1")]), NOW);
    pull(&other, &mut viewer);
    assert!(Arc::ptr_eq(&before, &viewer.owners()[&owner()]));
    one.set_own("owner", records(&[("a", "2")]), NOW);
    pull(&one, &mut viewer);
    assert!(!Arc::ptr_eq(&before, &viewer.owners()[&owner()]));
}

/// What an owner does in a history: sets some of few keys, or forgets old deletes.
type History = Vec<(Vec<(u8, u8)>, bool)>;

fn history() -> impl Strategy<Value = History> {
    vec((vec((0..6u8, any::<u8>()), 0..6), any::<bool>()), 1..12)
}

/// All that an owner ever sent: each delta, and a part after each step from where a peer may be.
struct Sent {
    deltas: Vec<Delta>,
    parts: Vec<Part>,
    end: Table,
}

fn play(history: History) -> Sent {
    let mut end = table("owner", 1);
    let (mut deltas, mut parts) = (Vec::new(), Vec::new());
    let mut now = NOW;
    for (set, forget) in history {
        let set = set
            .into_iter()
            .map(|(key, value)| (Bytes::from(vec![b'k', key]), Bytes::from(vec![value])));
        let changed = end.set_own("owner", set.collect(), now);
        for key in changed {
            if let Some((boot, change)) = end.latest(owner(), &key) {
                deltas.push(Delta {
                    owner: owner(),
                    boot,
                    change,
                });
            }
        }
        if forget {
            now += KEEP.gone;
            end.expire(now);
        }
        for base in [0, 3, 7, 20] {
            let slot = &end.slots[&owner()];
            if base < slot.log.digest(owner()).contig {
                let mut budget = usize::MAX;
                parts.push(slot.log.part(owner(), base, &mut budget));
            }
        }
    }
    Sent { deltas, parts, end }
}

proptest! {
    /// Whatever arrives in whatever order, how often and through whom: after one pull from the
    /// owner all is as the owner has it, and nothing that arrives late changes that.
    #[test]
    fn any_order_ends_in_the_owners_truth(
        history in history(),
        order in vec((any::<prop::sample::Index>(), any::<bool>()), 0..60),
    ) {
        let mut sent = play(history);
        let mut viewer = viewer();
        let (deltas, parts) = (sent.deltas.clone(), sent.parts.clone());
        let deliver = |viewer: &mut Table| {
            for (index, delta) in &order {
                if *delta && !deltas.is_empty() {
                    viewer.apply(index.get(&deltas).clone(), NOW);
                } else if !parts.is_empty() {
                    viewer.merge(index.get(&parts).clone(), false, NOW);
                }
            }
        };
        deliver(&mut viewer);
        pull(&sent.end, &mut viewer);
        let mut end = sent.end.owners();
        let truth = end.remove(&owner()).into_iter().flat_map(|owner| owner.records.clone()).collect();
        prop_assert_eq!(&shown(&mut viewer), &truth);
        deliver(&mut viewer);
        prop_assert_eq!(&shown(&mut viewer), &truth);
    }

    /// Two that got the same in different orders agree once they have pulled from each other.
    #[test]
    fn merging_is_commutative_and_idempotent(
        history in history(),
        order in Just((0..40usize).collect::<Vec<_>>()).prop_shuffle(),
    ) {
        let sent = play(history);
        let take = |viewer: &mut Table, index: usize| {
            if let Some(delta) = sent.deltas.get(index) {
                viewer.apply(delta.clone(), NOW);
            } else if let Some(part) = sent.parts.get(index.saturating_sub(sent.deltas.len())) {
                viewer.merge(part.clone(), false, NOW);
            }
        };
        let (mut a, mut b) = (viewer(), viewer());
        for index in 0..40 {
            take(&mut a, index);
        }
        for index in order {
            take(&mut b, index);
            take(&mut b, index);
        }
        pull(&a, &mut b);
        pull(&b, &mut a);
        prop_assert_eq!(shown(&mut a), shown(&mut b));
    }
}
