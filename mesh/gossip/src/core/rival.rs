//! Two nodes of one name, and a node that forgot its boot number.
//!
//! Whoever hears from a superseded identity answers with the one that it holds. If that is at the
//! same address, the sender forgot its boot number and takes a higher one. If it is elsewhere, the
//! sender asks there: only a rival that is alive itself can make a node stop, so that a node which
//! moved to another address is not mistaken for two. Of two living ones the later start gives way.

use std::{net::SocketAddr, time::Duration};

use portolan_model::NodeId;

use super::{Core, Output};
use crate::{codec::datagram, identity::Identity};

#[derive(Debug, Default)]
pub(super) struct Rivalry {
    /// Since when, and when last, another address was reported.
    reported: Option<(Duration, Duration)>,
    /// When a rival was last asked.
    asked: Option<Duration>,
    /// Since when seeds refuse this node, because its name is alive elsewhere.
    refused: Option<Duration>,
}

/// A rival is asked no more often than this.
const ASK: Duration = Duration::from_millis(500);
/// A rival that has not answered for this long does not live.
const SILENCE: Duration = Duration::from_secs(3);

impl Rivalry {
    /// Whether seeds refuse this node, so that it must not think that it is alone.
    pub(super) fn is_refused(&self) -> bool {
        self.refused.is_some()
    }
}

impl Core {
    /// Somebody holds `known` for this node.
    pub(super) fn notice(&mut self, sender: NodeId, known: Identity, now: Duration) {
        let me = self.membership.me();
        if known.node != me.node {
            self.stats.drops.misdirected += 1;
        } else if sender == me.node {
            // The rival itself. An own datagram that was thrown back has the own address.
            if known.addr != me.addr {
                self.contest(known, now);
            }
        } else if known.addr != me.addr {
            self.rival(known, now);
        } else {
            self.surpassed(known.boot, now);
        }
    }

    /// Somebody holds a life of this node at another address for alive: ask there.
    pub(super) fn rival(&mut self, known: Identity, now: Duration) {
        let me = self.membership.me();
        let (since, _) = self
            .rivalry
            .reported
            .filter(|(_, last)| now.saturating_sub(*last) < SILENCE)
            .unwrap_or((now, now));
        self.rivalry.reported = Some((since, now));
        if now.saturating_sub(since) >= SILENCE && known.boot >= me.boot {
            self.rivalry.reported = None;
            self.surpassed(known.boot, now);
        } else {
            self.ask(known.addr, now);
        }
    }

    /// A rival lives, for it spoke.
    fn contest(&mut self, rival: Identity, now: Duration) {
        let me = self.membership.me();
        if (rival.boot, rival.addr) < (me.boot, me.addr) {
            self.give_way(rival.addr);
        } else {
            self.ask(rival.addr, now);
        }
    }

    fn ask(&mut self, addr: SocketAddr, now: Duration) {
        let recent = |at: Duration| now.saturating_sub(at) < ASK;
        if !self.rivalry.asked.is_some_and(recent) {
            self.rivalry.asked = Some(now);
            let me = self.membership.me();
            self.send(addr, datagram::notice(self.header(now), &me));
        }
    }

    /// A seed refuses this node, because its name is alive elsewhere. Returns once patience is over.
    pub(super) fn refused(&mut self, known: Identity, now: Duration) {
        if self.rivalry.refused.is_none() {
            tracing::warn!(
                theirs = %known.addr,
                patience = ?self.timing.clone_patience,
                "a node of this name is alive elsewhere; waiting in case it is this one before it moved"
            );
        }
        let since = *self.rivalry.refused.get_or_insert(now);
        if now.saturating_sub(since) >= self.timing.clone_patience {
            self.give_way(known.addr);
        }
    }

    /// A pull went through: the name is this node's.
    pub(super) fn welcome(&mut self) {
        self.rivalry.refused = None;
    }

    fn give_way(&mut self, theirs: SocketAddr) {
        self.leaving = true;
        self.outputs.push(Output::NameTaken { theirs });
    }

    /// Somebody knows a life of this node, at its place, with this boot number: be above it.
    pub(super) fn surpassed(&mut self, boot: u64, now: Duration) -> bool {
        if boot <= self.membership.me().boot {
            return false;
        }
        let boot = boot.saturating_add(1);
        tracing::warn!(
            boot,
            "other members know a later start of this node; its boot number was lost or its clock went back. Going on above it"
        );
        self.outputs.push(Output::Boot(boot));
        self.table.reboot(boot, now);
        self.membership.reboot(boot, now);
        self.queue.clear_own();
        self.publish_all(now);
        true
    }
}
