//! What a node has to serve, how it gets there, and what happens when a plane refuses.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that cannot set up has failed"
)]

#[path = "plane/following.rs"]
mod following;
#[path = "plane/frontends.rs"]
mod frontends;
#[path = "plane/planning.rs"]
mod planning;
#[path = "plane/reconciling.rs"]
mod reconciling;
#[path = "plane/two_planes.rs"]
mod two_planes;
#[path = "plane/world.rs"]
mod world;

use portolan_plane::{FakePlane, FaultyPlane, contract};

#[test]
fn the_fake_plane_keeps_the_contract() {
    contract::check(&mut FakePlane::default(), [80, 81, 82]);
}

fn failing_every(nth: u64) -> FaultyPlane {
    let mut plane = FaultyPlane::default();
    plane.nth = nth;
    plane
}

#[test]
fn a_plane_that_fails_now_and_then_keeps_it_when_asked_again() {
    contract::check(&mut failing_every(3), [80, 81, 82]);
}

#[test]
#[should_panic(expected = "a plan can be applied in 8 tries")]
fn a_plane_that_never_does_what_it_is_told_breaks_it() {
    contract::check(&mut failing_every(1), [80, 81, 82]);
}
