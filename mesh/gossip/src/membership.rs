//! foca behind a narrow interface: who is a member, and what is believed of it.
//!
//! What foca alone does not do is here: hearsay does not take down a member that is well as far as
//! this node knows, pings are repeated and tried over TCP, an ill node gives suspects more time.

mod hearsay;
mod probing;
mod runtime;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use bytes::Bytes;
use foca::{Foca, Message, NoCustomBroadcast, State, Timer};
use portolan_model::NodeId;
use rand::rngs::SmallRng;

use crate::{
    codec::members::{FocaCodec, Membership as Packet, Update},
    config::{Limits, Timing},
    identity::Identity,
    table::log::hash_member,
    view::MemberState,
};
use probing::Probe;
pub(crate) use runtime::transmissions;
use runtime::{Runtime, foca_config};

/// What membership wants done.
#[derive(Debug)]
pub(crate) enum Effect {
    /// Send a message of membership.
    Send { to: Identity, message: Bytes },
    /// Send a ping again by datagram, now or a little later.
    Repeat {
        to: Identity,
        message: Bytes,
        after: Duration,
    },
    /// Try a ping over a stream.
    Stream { to: Identity, message: Bytes },
    /// Give back a timer after a while.
    Timer { timer: Due, after: Duration },
    /// A member came up.
    Up(Identity),
    /// A member that is up has another identity now.
    Renamed(Identity),
    /// A member went down.
    Down(Identity),
    /// This node has another identity now, because it was declared down.
    Renewed,
    /// Another one of this node's name was seen.
    Rival(Identity),
}

/// A timer of membership.
#[derive(Debug, Clone)]
pub(crate) enum Due {
    /// One of foca's own.
    Foca(Timer<Identity>),
    /// Others say that a member is down which is well as far as this node knows: look after it.
    Hearsay { member: Identity, step: u32 },
}

impl Due {
    /// Of timers due at one time, the order in which they must fire.
    pub(crate) fn rank(&self) -> u8 {
        match self {
            Self::Foca(Timer::SendIndirectProbe { .. }) => 0,
            Self::Foca(Timer::ProbeRandomMember(_)) => 1,
            _ => 2,
        }
    }
}

/// Why a message of membership was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refused {
    /// Its sender is superseded by the identity given.
    Superseded(Identity),
    /// It speaks of more members than the limits allow.
    Limit,
    /// It is not from its sender, or not for this node.
    Misdirected,
    /// foca did not like it; nothing of note changed.
    Protocol,
}

/// A member as this node knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Known {
    pub(crate) identity: Identity,
    pub(crate) incarnation: u16,
    pub(crate) state: MemberState,
    /// Since when.
    pub(crate) since: Duration,
}

/// The members, as foca and this node together see them.
pub(crate) struct Membership {
    foca: Foca<Identity, FocaCodec, SmallRng, NoCustomBroadcast>,
    timing: Timing,
    limits: Limits,
    known: BTreeMap<NodeId, Known>,
    /// Members that others say are down, and that are being called.
    hearsay: BTreeSet<NodeId>,
    /// Lives that ended by leaving.
    left: BTreeMap<NodeId, u64>,
    peers: Vec<Identity>,
    stale: bool,
    refreshed: Duration,
    hash: u64,
    effects: Vec<Effect>,
    probe: Option<Probe>,
    /// The members whose last probes failed in a row.
    failing: Vec<NodeId>,
    health: u32,
    refutations: u64,
    pub(crate) protocol_errors: u64,
}

impl Membership {
    pub(crate) fn new(me: Identity, timing: Timing, limits: Limits, rng: SmallRng) -> Self {
        let config = foca_config(&timing, 1);
        let mut membership = Self {
            foca: Foca::new(me, config, rng, FocaCodec),
            timing,
            limits,
            known: BTreeMap::new(),
            hearsay: BTreeSet::new(),
            left: BTreeMap::new(),
            peers: Vec::new(),
            stale: true,
            refreshed: Duration::ZERO,
            hash: 0,
            effects: Vec::new(),
            probe: None,
            failing: Vec::new(),
            health: 0,
            refutations: 0,
            protocol_errors: 0,
        };
        membership.refresh(Duration::ZERO);
        membership
    }

    pub(crate) fn me(&self) -> Identity {
        *self.foca.identity()
    }

    /// The members that are not down, without this node, in the order of their ids.
    pub(crate) fn peers(&self) -> &[Identity] {
        &self.peers
    }

    /// Equal at two nodes exactly if they hold the same members for alive.
    pub(crate) fn hash(&self) -> u64 {
        self.hash
    }

    pub(crate) fn health(&self) -> u32 {
        self.health
    }

    pub(crate) fn refutations(&self) -> u64 {
        self.refutations
    }

    pub(crate) fn known(&self) -> &BTreeMap<NodeId, Known> {
        &self.known
    }

    pub(crate) fn take_effects(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.effects)
    }

    /// What to tell a peer of all members, this node first.
    pub(crate) fn updates(&self) -> Vec<Update> {
        let me = Update::alive(self.me());
        let others = self.foca.iter_membership_state().cloned();
        [me].into_iter().chain(others).collect()
    }

    /// A message of membership from `sender`, by datagram or stream.
    pub(crate) fn receive(
        &mut self,
        sender: NodeId,
        mut packet: Packet,
        now: Duration,
    ) -> Result<(), Refused> {
        let me = self.me();
        let src = packet.header.src;
        if src.node != sender || src.node == me.node {
            return Err(Refused::Misdirected);
        }
        if packet.header.dst.node != me.node {
            return Err(Refused::Misdirected);
        }
        self.vet(src)?;
        self.hearsay.remove(&src.node);
        let before = packet.updates.len();
        let from_itself = |update: &Update| update.id().node == src.node;
        packet.updates = std::mem::take(&mut packet.updates)
            .into_iter()
            .filter_map(|update| {
                if from_itself(&update) {
                    Some(update)
                } else {
                    self.judge(update)
                }
            })
            .collect();
        self.stale |= before > 0;
        match &packet.header.message {
            Message::Ack(_) => self.acked(src.node),
            Message::ForwardedAck { origin, .. } => {
                let origin = origin.node;
                self.acked(origin);
            }
            _ => {}
        }
        let incarnation = packet
            .updates
            .iter()
            .any(|update| *update.id() == me && matches!(update.state(), State::Suspect));
        if incarnation {
            self.refutations += 1;
        }
        let message = packet.encode();
        let result = self.drive(now, |foca, runtime| foca.handle_data(&message, runtime));
        result.map_err(|()| Refused::Protocol)
    }

    /// What a peer told of members over a stream.
    pub(crate) fn learn(&mut self, updates: Vec<Update>, now: Duration) {
        let updates: Vec<Update> = updates
            .into_iter()
            .filter_map(|update| self.judge(update))
            .collect();
        // The other side would take this node back if it only knew: call it.
        let lost: Vec<Identity> = updates
            .iter()
            .filter(|update| !matches!(update.state(), State::Down))
            .filter(|update| {
                self.state_of(update.id().node)
                    .is_some_and(|known| known.state() == State::Down && known.id() == update.id())
            })
            .map(|update| *update.id())
            .filter(|id| self.left.get(&id.node) != Some(&id.boot))
            .take(MAX_CALLS)
            .collect();
        self.stale = true;
        let _ = self.drive(now, |foca, runtime| {
            foca.apply_many(updates.into_iter(), true, runtime)
        });
        for id in lost {
            self.call(id, now);
        }
    }

    /// A timer came due.
    pub(crate) fn fire(&mut self, due: Due, now: Duration) {
        match due {
            Due::Foca(timer) => {
                match &timer {
                    Timer::ProbeRandomMember(_) => {
                        self.close_probe();
                        self.stale = true;
                    }
                    Timer::SendIndirectProbe { probed_id, .. } => self.insist(*probed_id),
                    _ => {}
                }
                let _ = self.drive(now, |foca, runtime| foca.handle_timer(timer, runtime));
            }
            Due::Hearsay { member, step } => self.look_after(member, step, now),
        }
    }

    /// The owner's own word that this life is over.
    pub(crate) fn departed(&mut self, node: NodeId, boot: u64, now: Duration) {
        self.left.insert(node, boot);
        self.stale = true;
        let member = self.state_of(node).filter(|m| m.id().boot == boot).cloned();
        if let Some(member) = member.filter(|m| m.state() != State::Down) {
            self.suppose(*member.id(), member.incarnation(), State::Down, now);
        }
    }

    /// Calls a member that is down: if it hears, both see to it that they are up again.
    pub(crate) fn call(&mut self, member: Identity, now: Duration) {
        let _ = self.drive(now, |foca, runtime| foca.announce(member, runtime));
    }

    /// This node goes: tells some members, and takes part no longer.
    pub(crate) fn leave(&mut self, now: Duration) {
        let _ = self.drive(now, |foca, runtime| foca.leave_cluster(runtime));
    }

    /// Takes a later boot number.
    pub(crate) fn reboot(&mut self, boot: u64, now: Duration) {
        let me = Identity {
            boot,
            bump: 0,
            ..self.me()
        };
        let _ = self.drive(now, |foca, runtime| foca.change_identity(me, runtime));
        self.stale = true;
    }

    /// Brings the copies up to date, if it is time. Returns whether anything changed.
    pub(crate) fn refresh_now_and_then(&mut self, now: Duration) -> bool {
        // foca tells of everything but suspicions, so nothing else can be late by this.
        self.stale && now.saturating_sub(self.refreshed) >= REFRESH && self.refresh(now)
    }

    fn refresh(&mut self, now: Duration) -> bool {
        self.stale = false;
        self.refreshed = now;
        let me = self.me();
        let mine = Update::alive(me);
        let mut known = BTreeMap::new();
        for update in self.foca.iter_membership_state().chain([&mine]) {
            let id = *update.id();
            let state = match update.state() {
                State::Alive => MemberState::Alive,
                State::Suspect => MemberState::Suspect,
                State::Down if self.left.get(&id.node) == Some(&id.boot) => MemberState::Left,
                State::Down => MemberState::Down,
            };
            let since = match self.known.get(&id.node) {
                Some(old) if old.state == state && old.identity.boot == id.boot => old.since,
                _ => now,
            };
            let incarnation = update.incarnation();
            known.insert(
                id.node,
                Known {
                    identity: id,
                    incarnation,
                    state,
                    since,
                },
            );
        }
        self.left.retain(|node, _| known.contains_key(node));
        let changed = known != self.known;
        if changed {
            let size = self.known.len();
            self.known = known;
            let active = self.known.values().filter(|known| known.state.is_active());
            let active: Vec<Identity> = active.map(|known| known.identity).collect();
            self.hash = active
                .iter()
                .fold(0, |hash, id| hash ^ hash_member(id.node, id.boot, id.bump));
            self.peers = active.into_iter().filter(|id| id.node != me.node).collect();
            if size != self.known.len() {
                let config = foca_config(&self.timing, self.peers.len() + 1);
                let _ = self.foca.set_config(config);
            }
        }
        changed
    }

    /// Whether foca may see an identity as a sender.
    fn vet(&self, src: Identity) -> Result<(), Refused> {
        match self.known.get(&src.node).map(|known| known.identity) {
            // Another bump of the same life and place sorts itself out within foca.
            Some(known) if known.boot == src.boot && known.addr == src.addr => Ok(()),
            Some(known) if foca::Identity::win_addr_conflict(&known, &src) => {
                Err(Refused::Superseded(known))
            }
            None if self.foca.iter_membership_state().len() >= self.limits.members => {
                Err(Refused::Limit)
            }
            Some(_) | None => Ok(()),
        }
    }

    fn state_of(&self, node: NodeId) -> Option<&Update> {
        self.foca
            .iter_membership_state()
            .find(|member| member.id().node == node)
    }

    /// Calls foca and notes what it wants done.
    fn drive(
        &mut self,
        now: Duration,
        call: impl FnOnce(
            &mut Foca<Identity, FocaCodec, SmallRng, NoCustomBroadcast>,
            &mut Runtime<'_>,
        ) -> Result<(), foca::Error>,
    ) -> Result<(), ()> {
        let mut runtime = Runtime {
            effects: &mut self.effects,
            probe: &mut self.probe,
            health: self.health,
            changed: false,
            renewed: false,
        };
        let result = call(&mut self.foca, &mut runtime);
        let (changed, renewed) = (runtime.changed, runtime.renewed);
        self.stale |= changed;
        if renewed {
            self.refutations += 1;
        }
        if changed {
            self.refresh(now);
        }
        result.map_err(|error| {
            self.protocol_errors += 1;
            tracing::debug!(?error, "membership message not taken");
        })
    }
}

/// How late suspicions may be shown.
const REFRESH: Duration = Duration::from_millis(500);
/// How many members that this node holds for down, and others do not, are called at once.
const MAX_CALLS: usize = 64;
