//! The relay passes the suite that every plane has to pass.

use portolan_plane::contract;

use crate::support;

#[test]
fn the_relay_keeps_the_contract() {
    let mut rig = support::Rig::new();
    contract::check(
        &mut rig.relay,
        [
            support::free_port(),
            support::free_port(),
            support::free_port(),
        ],
    );
}
