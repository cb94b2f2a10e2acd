//! Membership and record replication: a pure core, and its UDP/TCP driver
