//! Plain counters, for metrics.

/// Datagrams and stream messages that were not taken, by reason.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Drops {
    /// Not of this version's format, before or after decryption.
    pub malformed: u64,
    /// A format or kind of another version.
    pub version: u64,
    /// Encrypted under a key that is not in the ring.
    pub unknown_key: u64,
    /// Not encrypted by a holder of the key, or for another cluster.
    pub decrypt: u64,
    /// Seen before, or too old to tell.
    pub replay: u64,
    /// Too many from one source.
    pub rate_limited: u64,
    /// Beyond a limit on members, owners or records.
    pub limit: u64,
    /// From an earlier life of its sender, or from a clone.
    pub stale: u64,
    /// Meant for somebody else, or of a sender that it is not from.
    pub misdirected: u64,
}

/// Pulls over TCP.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pulls {
    /// Begun here.
    pub started: u64,
    /// Answered here.
    pub served: u64,
    /// Begun here, and broken off.
    pub failed: u64,
    /// Begun here, and brought something.
    pub useful: u64,
    /// Refused here because too many were being answered.
    pub busy: u64,
}

/// What a node has counted since its start, and some sizes as they are now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Members alive now, this node included.
    pub members_alive: usize,
    /// Members suspected now.
    pub members_suspect: usize,
    /// Members down now.
    pub members_down: usize,
    /// Members that left, and are not forgotten yet.
    pub members_left: usize,
    /// Datagrams received.
    pub udp_packets_in: u64,
    /// Datagrams sent.
    pub udp_packets_out: u64,
    /// Bytes of datagrams received.
    pub udp_bytes_in: u64,
    /// Bytes of datagrams sent.
    pub udp_bytes_out: u64,
    /// Datagrams that the kernel did not take.
    pub udp_send_errors: u64,
    /// Streams accepted.
    pub tcp_streams_in: u64,
    /// Streams opened.
    pub tcp_streams_out: u64,
    /// Bytes received over streams.
    pub tcp_bytes_in: u64,
    /// Bytes sent over streams.
    pub tcp_bytes_out: u64,
    /// What was not taken.
    pub drops: Drops,
    /// Pulls.
    pub pulls: Pulls,
    /// Datagrams whose hashes were not ours while both sides were quiet.
    pub hash_mismatches: u64,
    /// Owners in the table now.
    pub owners: usize,
    /// Records in the table now, recent deletes included.
    pub records: usize,
    /// Bytes of keys and values in the table now.
    pub record_bytes: usize,
    /// Own records that were refused as too big, reserved or too many.
    pub records_rejected: u64,
    /// Changes waiting to be passed on now.
    pub queue: usize,
    /// Changes that were not queued because the queue was full; pulls bring them.
    pub queue_overflows: u64,
    /// Suspicions of this node that it objected to, and times that it was declared down wrongly.
    pub refutations: u64,
    /// 0 is well; each point lengthens the time that suspects get.
    pub health: u32,
    /// Members that came up.
    pub joins: u64,
    /// Members that went down.
    pub downs: u64,
    /// Errors of the membership protocol that change nothing.
    pub protocol_errors: u64,
}

impl Stats {
    /// Adds what the driver counts to what the core counts.
    pub(crate) fn with_traffic(mut self, traffic: &Self) -> Self {
        let drops = self.drops;
        let theirs = traffic.drops;
        self.drops = Drops {
            malformed: drops.malformed + theirs.malformed,
            version: drops.version + theirs.version,
            unknown_key: theirs.unknown_key,
            decrypt: theirs.decrypt,
            replay: theirs.replay,
            rate_limited: theirs.rate_limited,
            limit: drops.limit,
            stale: drops.stale,
            misdirected: drops.misdirected,
        };
        self.udp_packets_in = traffic.udp_packets_in;
        self.udp_packets_out = traffic.udp_packets_out;
        self.udp_bytes_in = traffic.udp_bytes_in;
        self.udp_bytes_out = traffic.udp_bytes_out;
        self.udp_send_errors = traffic.udp_send_errors;
        self.tcp_streams_in = traffic.tcp_streams_in;
        self.tcp_streams_out = traffic.tcp_streams_out;
        self.tcp_bytes_in = traffic.tcp_bytes_in;
        self.tcp_bytes_out = traffic.tcp_bytes_out;
        self
    }
}
