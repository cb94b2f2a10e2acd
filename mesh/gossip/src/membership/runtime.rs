//! What foca is given to work with.

use std::{
    num::{NonZeroU8, NonZeroUsize},
    time::Duration,
};

use bytes::Bytes;
use foca::{Notification, PeriodicParams, Timer};

use super::{Due, Effect, Packet, probing::Probe};
use crate::{
    codec::datagram::{HEAD, MAX_BODY},
    config::Timing,
    identity::Identity,
};

/// Notes what foca wants done.
pub(super) struct Runtime<'a> {
    pub(super) effects: &'a mut Vec<Effect>,
    pub(super) probe: &'a mut Option<Probe>,
    pub(super) health: u32,
    pub(super) changed: bool,
    pub(super) renewed: bool,
}

impl foca::Runtime<Identity> for Runtime<'_> {
    fn notify(&mut self, notification: Notification<'_, Identity>) {
        self.changed = true;
        match notification {
            Notification::MemberUp(id) => self.effects.push(Effect::Up(*id)),
            Notification::MemberDown(id) => self.effects.push(Effect::Down(*id)),
            Notification::Rename(_, id) => self.effects.push(Effect::Renamed(*id)),
            Notification::Rejoin(_) => {
                self.renewed = true;
                self.effects.push(Effect::Renewed);
            }
            _ => {}
        }
    }

    fn send_to(&mut self, to: Identity, data: &[u8]) {
        let message = Bytes::copy_from_slice(data);
        if Packet::is_ping(data) {
            *self.probe = Some(Probe {
                target: to,
                ping: message.clone(),
                answered: false,
            });
        }
        self.effects.push(Effect::Send { to, message });
    }

    fn submit_after(&mut self, timer: Timer<Identity>, after: Duration) {
        let after = match timer {
            Timer::ChangeSuspectToDown { .. } => after + after * self.health / 2,
            _ => after,
        };
        self.effects.push(Effect::Timer {
            timer: Due::Foca(timer),
            after,
        });
    }
}

pub(super) fn foca_config(timing: &Timing, members: usize) -> foca::Config {
    let every = |frequency, count| {
        Some(PeriodicParams {
            frequency,
            num_members: NonZeroUsize::new(count).unwrap_or(NonZeroUsize::MIN),
        })
    };
    foca::Config {
        probe_period: timing.probe,
        probe_rtt: timing.probe_rtt,
        num_indirect_probes: NonZeroUsize::new(3).unwrap_or(NonZeroUsize::MIN),
        max_transmissions: NonZeroU8::new(transmissions(members).min(255) as u8)
            .unwrap_or(NonZeroU8::MIN),
        suspect_to_down_after: timing.suspicion,
        remove_down_after: Some(timing.keep_member),
        max_packet_size: NonZeroUsize::new(MAX_BODY - HEAD).unwrap_or(NonZeroUsize::MIN),
        notify_down_members: true,
        periodic_announce: every(Duration::from_secs(30), 1),
        periodic_announce_to_down_members: every(timing.announce_to_down, 2),
        periodic_gossip: every(timing.gossip, timing.fanout),
    }
}

/// How often a change is passed on, so that it reaches all of `members`: 4 log10(n + 1), rounded up.
pub(crate) fn transmissions(members: usize) -> u32 {
    let times = (members as f64 + 1.0).log10() * 4.0;
    (times.ceil() as u32).max(1)
}
