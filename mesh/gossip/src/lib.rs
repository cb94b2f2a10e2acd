//! Membership and record replication: which nodes there are, and what each of them says.
//!
//! A node hands its own records to [`Gossip::set_records`] and reads everybody's from
//! [`Gossip::view`]. Records are opaque bytes here, so that kinds and fields of later versions are
//! kept and passed on. Only the owner of a record writes it, hence there are no conflicts.
//!
//! Beneath are a pure core, a step function `(now, input) -> outputs`, and a [`Driver`] that runs it
//! on UDP and TCP. The core knows no socket, no clock and no hash map's order; the simulator runs
//! hundreds of them on a virtual clock.
//!
//! What this crate does *not* do: it does not interpret records, elect anybody or agree on anything,
//! and it does not protect against a holder of the key, who is trusted wholly.

mod boot;
mod codec;
mod config;
mod core;
mod driver;
mod handle;
mod identity;
mod keyring;
mod membership;
mod queue;
mod seal;
#[cfg(feature = "sim")]
pub mod sim;
mod stats;
mod table;
mod view;

pub use codec::records::{MAX_KEY, MAX_VALUE};
pub use config::{Config, Limits, Timing};
pub use driver::{Driver, DriverError, StartError};
pub use handle::{Gossip, RecordError, Rejection};
pub use keyring::{Key, KeyEntry, KeyError, KeyId, Keyring, MAX_KEYS};
pub use stats::{Drops, Pulls, Stats};
pub use view::{Member, MemberState, Owner, View};

/// Decodes what a datagram carries beneath the encryption, for a fuzz target: no bytes may panic.
#[cfg(feature = "fuzzing")]
pub fn fuzz_datagram(bytes: &[u8]) {
    let _ = codec::datagram::decode(bytes::Bytes::copy_from_slice(bytes));
    let _ = codec::stream::Message::decode(bytes::Bytes::copy_from_slice(bytes));
}
