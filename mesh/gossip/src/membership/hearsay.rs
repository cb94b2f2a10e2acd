//! What others say of members, and whether to believe it.

use std::time::Duration;

use foca::State;

use super::{Due, Effect, Membership, Update};
use crate::identity::Identity;

/// How many members that are said to be down are called at one time. What is said of others then is
/// not believed yet; it is said again.
const MAX_HEARSAY: usize = 16;
/// How often such a member is called.
const CALLS: u32 = 3;
/// The time between two calls.
const CALL: Duration = Duration::from_millis(150);

impl Membership {
    /// What to believe of what others say.
    pub(super) fn judge(&mut self, update: Update) -> Option<Update> {
        let me = self.me();
        let id = *update.id();
        if id.node == me.node {
            if id == me {
                return Some(update);
            }
            if id.addr != me.addr && !matches!(update.state(), State::Down) {
                self.effects.push(Effect::Rival(id));
            }
            // An earlier life of this node, or a rival: foca would declare it down by itself, and
            // two of one name would do so to each other for ever.
            return None;
        }
        if !self.known.contains_key(&id.node) {
            let room = self.foca.iter_membership_state().len() < self.limits.members;
            return room.then_some(update);
        }
        if update.state() != State::Down || self.left.get(&id.node) == Some(&id.boot) {
            return Some(update);
        }
        let known = self.state_of(id.node)?;
        if *known.id() != id || known.state() != State::Alive {
            return Some(update);
        }
        // Whoever was cut off holds everybody for down. Had the member failed, its suspicion would
        // most likely be known here. So it is called first.
        if self.hearsay.len() < MAX_HEARSAY && self.hearsay.insert(id.node) {
            self.effects.push(Effect::Timer {
                timer: Due::Hearsay {
                    member: id,
                    step: 0,
                },
                after: Duration::ZERO,
            });
        }
        None
    }

    /// Calls a member that others say is down. If it does not answer it is suspected, and given a
    /// moment to object, like any other.
    pub(super) fn look_after(&mut self, member: Identity, step: u32, now: Duration) {
        let state = self.state_of(member.node).filter(|m| *m.id() == member);
        let (state, incarnation) = match state {
            Some(known) => (known.state(), known.incarnation()),
            None => (State::Down, 0),
        };
        let waits = self.hearsay.contains(&member.node);
        let after = match state {
            State::Alive if waits && step < CALLS => {
                self.call(member, now);
                CALL
            }
            State::Alive if waits && step == CALLS => {
                self.suppose(member, incarnation, State::Suspect, now);
                self.timing.hearsay
            }
            State::Suspect if step > CALLS => {
                self.suppose(member, incarnation, State::Down, now);
                self.hearsay.remove(&member.node);
                return;
            }
            _ => {
                self.hearsay.remove(&member.node);
                return;
            }
        };
        let timer = Due::Hearsay {
            member,
            step: step + 1,
        };
        self.effects.push(Effect::Timer { timer, after });
    }

    /// Puts a belief into the world.
    pub(super) fn suppose(
        &mut self,
        member: Identity,
        incarnation: u16,
        state: State,
        now: Duration,
    ) {
        let update = Update::new(member, incarnation, state);
        let _ = self.drive(now, |foca, runtime| {
            foca.apply_many([update].into_iter(), true, runtime)
        });
    }
}
