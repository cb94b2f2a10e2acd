//! Following an engine: one that is played here, with what a real one said, and does as it is told.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "what a test calls fails the test, as the test itself would"
)]

mod away;
mod changes;
mod fake;
mod slow;
