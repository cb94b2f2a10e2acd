//! Probes: their repetition, and what their failures say about this node.

use std::time::Duration;

use bytes::Bytes;
use portolan_model::NodeId;

use super::{Effect, Membership};
use crate::identity::Identity;

/// How much an ill node lengthens the time of suspects at most: 1 + this / 2.
const MAX_HEALTH: u32 = 6;
/// Probes of different members that fail in a row before this node thinks itself ill.
const ILL: usize = 3;
/// When a ping is repeated by datagram, once it is overdue.
const REPEATS: [Duration; 2] = [Duration::ZERO, Duration::from_millis(40)];

/// A member that is being probed.
#[derive(Debug, Clone)]
pub(super) struct Probe {
    pub(super) target: Identity,
    pub(super) ping: Bytes,
    pub(super) answered: bool,
}

impl Membership {
    /// The process stood still, or is too busy to be trusted with judging others.
    pub(crate) fn stalled(&mut self) {
        self.health = (self.health + 2).min(MAX_HEALTH);
    }

    /// A member answered.
    pub(super) fn acked(&mut self, node: NodeId) {
        if let Some(probe) = &mut self.probe
            && probe.target.node == node
            && !probe.answered
        {
            probe.answered = true;
            self.failing.clear();
            self.health = self.health.saturating_sub(1);
        }
    }

    /// The probe's time is up. Failing to reach one member says something about that member;
    /// failing to reach several in a row, and none in between, says something about this node.
    pub(super) fn close_probe(&mut self) {
        if let Some(probe) = self.probe.take()
            && !probe.answered
        {
            let node = probe.target.node;
            if !self.failing.contains(&node) {
                self.failing.push(node);
            }
            if self.failing.len() >= ILL {
                self.health = (self.health + 1).min(MAX_HEALTH);
                self.failing.truncate(MAX_HEALTH as usize);
            }
        }
    }

    /// The ping is overdue. It may only have been lost, so it goes out again, by both ways.
    pub(super) fn insist(&mut self, target: Identity) {
        let Some(probe) = &self.probe else {
            return;
        };
        if probe.answered || probe.target != target {
            return;
        }
        let (to, message) = (probe.target, probe.ping.clone());
        for after in REPEATS {
            let message = message.clone();
            self.effects.push(Effect::Repeat { to, message, after });
        }
        self.effects.push(Effect::Stream { to, message });
    }
}
