//! What a core tells of itself.

#[cfg(feature = "sim")]
use bytes::Bytes;
use portolan_model::NodeId;

use super::Core;
use crate::{
    stats::Stats,
    view::{Member, MemberState, View},
};

impl Core {
    /// What readers see, if it changed since the last call.
    pub(crate) fn view(&mut self) -> Option<View> {
        if !std::mem::take(&mut self.dirty) {
            return None;
        }
        self.learn_names();
        let members = self.membership.known().iter().map(|(node, known)| {
            let member = Member {
                name: self.name_of(*node),
                addr: known.identity.addr,
                boot: known.identity.boot,
                state: known.state,
                since: self.epoch + known.since,
            };
            (*node, member)
        });
        let members = members.collect();
        Some(View {
            me: self.membership.me().node,
            members,
            owners: self.table.owners(),
            synced: self.synced,
            table_hash: self.hashes.0,
            membership_hash: self.hashes.1,
        })
    }

    fn learn_names(&mut self) {
        let known = self.membership.known();
        self.names.retain(|node, _| known.contains_key(node));
        for node in known.keys() {
            if let Some(name) = self.table.name(*node) {
                let name = String::from_utf8_lossy(name);
                if self.names.get(node).is_none_or(|known| *known != name) {
                    self.names.insert(*node, name.into_owned());
                }
            }
        }
    }

    /// A member's name; its id until the name has arrived.
    pub(super) fn name_of(&self, node: NodeId) -> String {
        let name = self.names.get(&node);
        name.map_or_else(|| node.to_string(), Clone::clone)
    }

    /// What is shown under a key of an owner.
    #[cfg(feature = "sim")]
    pub(crate) fn record(&self, owner: NodeId, key: &Bytes) -> Option<&Bytes> {
        self.table.visible(owner, key)
    }

    /// Whether a member is held for alive.
    #[cfg(feature = "sim")]
    pub(crate) fn holds_alive(&self, member: NodeId) -> bool {
        let known = self.membership.known().get(&member);
        known.is_some_and(|known| known.state.is_active())
    }

    /// The hashes of table and membership.
    #[cfg(feature = "sim")]
    pub(crate) fn hashes(&self) -> (u64, u64) {
        self.hashes
    }

    /// Messages that could not be read.
    #[cfg(feature = "sim")]
    pub(crate) fn malformed(&self) -> u64 {
        self.stats.drops.malformed
    }

    /// Changes that wait to be passed on.
    #[cfg(feature = "sim")]
    pub(crate) fn queued(&self) -> usize {
        self.queue.len()
    }

    /// The counters, with the sizes as they are now.
    pub(crate) fn stats(&self) -> Stats {
        let mut stats = self.stats;
        for known in self.membership.known().values() {
            match known.state {
                MemberState::Alive => stats.members_alive += 1,
                MemberState::Suspect => stats.members_suspect += 1,
                MemberState::Down => stats.members_down += 1,
                MemberState::Left => stats.members_left += 1,
            }
        }
        (stats.owners, stats.records, stats.record_bytes) = self.table.size();
        stats.queue = self.queue.len();
        stats.queue_overflows = self.queue.overflows();
        stats.health = self.membership.health();
        stats.refutations = self.membership.refutations();
        stats.protocol_errors = self.membership.protocol_errors;
        stats
    }
}
