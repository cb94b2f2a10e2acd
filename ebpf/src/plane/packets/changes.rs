//! Changes, and what packets meet in the middle of them or after them.

use super::*;
use crate::layout::{Chunk, ChunkKey, FrontendValue, SlotKey};

const FAR: [End; 3] = [REMOTE, ([10, 208, 2, 3], 80), ([10, 208, 2, 4], 80)];

impl Rig {
    fn frontend(&self) -> FrontendValue {
        let served = self.plane.served.values().next().unwrap();
        let key = served::key(&served.spec.frontend).unwrap();
        self.plane.maps.frontends.get(&key, 0).unwrap()
    }

    fn slots(&self) -> usize {
        self.plane.maps.slots.keys().count()
    }

    fn chunks(&self) -> usize {
        self.plane.maps.chunks.keys().count()
    }
}

/// A program may have read the frontend before it changed.
#[test]
fn the_old_choice_stays_until_no_program_can_be_on_its_way_there() {
    on_rig(|rig| {
        rig.serve(Protocol::Tcp, &FAR);
        let before = rig.frontend();
        rig.serve(Protocol::Tcp, &FAR[..2]);
        let slot = SlotKey {
            frontend: before.id,
            generation: before.generation,
            slot: 0,
        };
        assert!(rig.plane.maps.slots.get(&slot, 0).is_ok());
        rig.plane.sweep().unwrap();
        assert!(rig.plane.maps.slots.get(&slot, 0).is_err());
        assert_eq!(rig.slots(), 2);
    });
}

#[test]
fn a_removed_frontend_leaves_nothing_that_the_next_one_could_lose() {
    on_rig(|rig| {
        rig.serve(Protocol::Tcp, &FAR);
        rig.serve(Protocol::Tcp, &FAR[..2]);
        let frontend = spec(Protocol::Tcp, &[]).frontend;
        rig.plane.remove(&frontend).unwrap();
        assert_eq!((rig.slots(), rig.chunks()), (0, 0));
        rig.serve(Protocol::Tcp, &FAR);
        rig.plane.sweep().unwrap();
        assert_eq!(rig.slots(), 3);
    });
}

/// An earlier agent may have been killed between writing a choice and removing the one before.
#[test]
fn what_no_frontend_leads_to_goes_with_the_next_agent() {
    on_rig(|rig| {
        rig.serve(Protocol::Tcp, &FAR);
        let kept = (rig.slots(), rig.chunks());
        let FrontendValue { id, generation, .. } = rig.frontend();
        for (frontend, generation) in [(id, generation + 1), (id + 7, 1)] {
            let slot = SlotKey {
                frontend,
                generation,
                slot: 0,
            };
            rig.plane.maps.slots.insert(slot, 0, 0).unwrap();
            let chunk = ChunkKey {
                frontend,
                generation,
                number: 0,
            };
            let chunks = &mut rig.plane.maps.chunks;
            chunks
                .insert(chunk, Chunk { backends: [0; 64] }, 0)
                .unwrap();
        }
        rig.plane.served.clear();
        rig.plane.adopt().unwrap();
        assert_eq!((rig.slots(), rig.chunks()), kept);
    });
}

/// Else it would be one for everyone.
#[test]
fn a_virtual_address_of_a_network_that_this_node_is_not_on_is_reached_from_none() {
    on_rig(|rig| {
        let vip = [10, 9, 0, 9];
        let mut served = spec(Protocol::Tcp, &[REMOTE]);
        served.frontend.port = 0;
        served.frontend.address = FrontendAddress::Vip("back".parse().unwrap(), IpAddr::from(vip));
        rig.plane.upsert(&Arc::new(served)).unwrap();
        let (verdict, _) = rig.run(FROM_OUTSIDE, &tcp(CLIENT, (vip, 0), SYN, &[], b""));
        assert_eq!((verdict, rig.count("to_relay_no_backend")), (NEXT, 0));
    });
}

/// Anyone can send a RST with a client's address.
#[test]
fn a_connection_that_goes_on_was_not_reset() {
    on_rig(|rig| {
        rig.serve(Protocol::Tcp, &[REMOTE]);
        for flags in [SYN, ACK, RST] {
            rig.redirected(FROM_OUTSIDE, &tcp(CLIENT, FRONTEND, flags, &[], b""));
        }
        let closing = |rig: &Rig| rig.flow(CLIENT, FRONTEND, 6).unwrap().closing;
        assert_eq!(closing(rig), RST);
        rig.redirected(FROM_OUTSIDE, &tcp(CLIENT, FRONTEND, ACK, &[], b"on"));
        assert_eq!(closing(rig), 0);
    });
}

#[test]
fn datagrams_whose_way_there_was_forgotten_keep_their_task() {
    on_rig(|rig| {
        rig.serve(Protocol::Udp, &FAR);
        let ask = udp(CLIENT, FRONTEND, b"ask", true);
        let to = ends(&rig.redirected(FROM_OUTSIDE, &ask)).1;
        for _ in 0..4 {
            rig.plane
                .maps
                .flows
                .remove(&tuple(CLIENT, FRONTEND, 17))
                .unwrap();
            assert_eq!(ends(&rig.redirected(FROM_OUTSIDE, &ask)).1, to);
        }
        let answered = rig.flow(CLIENT, FRONTEND, 17).unwrap().answered;
        assert_eq!(
            (rig.count("recovered"), rig.count("new_flow"), answered),
            (4, 1, 0)
        );
        // That its task has answered is not forgotten.
        rig.redirected(FROM_MESH, &udp(to, CLIENT, b"answer", true));
        let there = tuple(CLIENT, FRONTEND, 17);
        rig.plane.maps.flows.remove(&there).unwrap();
        assert_eq!(ends(&rig.redirected(FROM_OUTSIDE, &ask)).1, to);
        assert_eq!(rig.flow(CLIENT, FRONTEND, 17).unwrap().answered, 1);
        // After its time it is another flow.
        let back = rig.flow(to, CLIENT, 17).unwrap();
        let seen = back.seen - u64::from(back.idle_ms) * 1_000_000 - 1_000_000_000;
        rig.put(to, CLIENT, 17, Flow { seen, ..back });
        rig.plane
            .maps
            .flows
            .remove(&tuple(CLIENT, FRONTEND, 17))
            .unwrap();
        assert_ne!(ends(&rig.redirected(FROM_OUTSIDE, &ask)).1, to);
    });
}
