//! Which packets are of the flow that is followed, and when it is over.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use portolan_model::Protocol;

use crate::api::{TraceClient, TraceHop, TraceVerdict};

/// Follows the next flow of a client to its end, or all of them.
#[derive(Debug)]
pub(super) struct Follow {
    client: TraceClient,
    all: bool,
    flow: Option<Flow>,
}

#[derive(Debug)]
struct Flow {
    /// The client's end.
    end: String,
    protocol: Option<Protocol>,
    /// The directions that are not finished.
    open: BTreeSet<Way>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Way {
    FromClient,
    ToClient,
}

impl Follow {
    pub(super) fn new(client: TraceClient, all: bool) -> Self {
        Self {
            client,
            all,
            flow: None,
        }
    }

    /// Whether a packet is to be shown.
    pub(super) fn takes(&mut self, hop: &TraceHop) -> bool {
        if self.all {
            return true;
        }
        let (end, way) = self.client_end(hop);
        let flow = match &mut self.flow {
            Some(flow) => flow,
            // Connections under way are not the next one, unless it is this one that is asked for.
            None if self.client.port.is_none() && is_under_way(hop) => return false,
            None => self.flow.insert(Flow {
                end: end.to_owned(),
                protocol: hop.protocol,
                open: BTreeSet::from([Way::FromClient, Way::ToClient]),
            }),
        };
        // A later fragment has no port.
        let same = flow.end == end || end.parse::<IpAddr>().is_ok();
        if !same || flow.protocol != hop.protocol {
            return false;
        }
        flow.note(hop, way);
        true
    }

    /// Whether the flow that is followed has ended.
    pub(super) fn is_over(&self) -> bool {
        self.flow.as_ref().is_some_and(|flow| flow.open.is_empty())
    }

    /// The client's end of a packet, and which way it goes.
    fn client_end<'a>(&self, hop: &'a TraceHop) -> (&'a str, Way) {
        if address(&hop.from) == Some(self.client.ip) {
            (&hop.from, Way::FromClient)
        } else {
            (&hop.to, Way::ToClient)
        }
    }
}

impl Flow {
    fn note(&mut self, hop: &TraceHop, way: Way) {
        if hop.icmp_error {
            return;
        }
        let has = |flag: &str| hop.flags.iter().any(|name| name == flag);
        if has("FIN") {
            self.open.remove(&way);
        }
        // The relay's replies do not meet the fast path.
        if matches!(hop.verdict, TraceVerdict::Relayed | TraceVerdict::Left) {
            self.open.remove(&Way::ToClient);
        }
        if has("RST") || hop.reason.as_deref() == Some("ended") {
            self.open.clear();
        }
    }
}

/// The address of an end, which has a port or none.
fn address(end: &str) -> Option<IpAddr> {
    let with_port = end.parse().map(|end: SocketAddr| end.ip());
    with_port.or_else(|_| end.parse()).ok()
}

/// Whether a packet belongs to a connection that began before.
fn is_under_way(hop: &TraceHop) -> bool {
    let goes_on = !matches!(hop.verdict, TraceVerdict::Dropped | TraceVerdict::Left);
    hop.protocol == Some(Protocol::Tcp)
        && goes_on
        && !hop.first
        && !hop.flags.iter().any(|flag| flag == "SYN")
}

#[cfg(test)]
mod tests {
    use super::{super::words::tests::hop, *};

    fn follow(client: &str) -> Follow {
        Follow::new(client.parse().unwrap(), false)
    }

    fn sent(flags: &[&str], port: u16) -> TraceHop {
        TraceHop {
            from: format!("10.77.0.100:{port}"),
            flags: flags.iter().map(|flag| (*flag).to_owned()).collect(),
            first: flags == ["SYN"],
            ..hop()
        }
    }

    fn answered(flags: &[&str], port: u16) -> TraceHop {
        TraceHop {
            from: "10.208.2.3:80".to_owned(),
            to: format!("10.77.0.100:{port}"),
            verdict: TraceVerdict::GivenBack,
            ..sent(flags, port)
        }
    }

    #[test]
    fn the_next_connection_is_followed_to_its_end_and_no_other() {
        let mut follow = follow("10.77.0.100");
        assert!(!follow.takes(&sent(&["ACK"], 1)), "it was there before");
        assert!(follow.takes(&sent(&["SYN"], 2)));
        assert!(follow.takes(&answered(&["SYN", "ACK"], 2)));
        assert!(!follow.takes(&sent(&["SYN"], 3)), "the one after the next");
        assert!(follow.takes(&sent(&["ACK", "FIN"], 2)) && !follow.is_over());
        assert!(follow.takes(&answered(&["ACK", "FIN"], 2)) && follow.is_over());
    }

    #[test]
    fn one_that_is_named_is_followed_from_anywhere_until_it_is_reset() {
        let mut follow = follow("10.77.0.100:1");
        assert!(follow.takes(&sent(&["ACK"], 1)) && !follow.is_over());
        assert!(follow.takes(&answered(&["RST"], 1)) && follow.is_over());
    }

    #[test]
    fn of_a_flow_of_the_relay_only_the_clients_half_is_to_be_seen() {
        let mut follow = follow("10.77.0.100");
        let left = |flags: &[&str]| TraceHop {
            verdict: TraceVerdict::Left,
            ..sent(flags, 1)
        };
        assert!(follow.takes(&left(&["SYN"])));
        assert!(follow.takes(&left(&["FIN", "ACK"])) && follow.is_over());
    }

    #[test]
    fn all_is_all_and_has_no_end() {
        let mut follow = Follow::new("10.77.0.100".parse().unwrap(), true);
        assert!(follow.takes(&sent(&["ACK"], 1)) && follow.takes(&sent(&["RST"], 2)));
        assert!(!follow.is_over());
    }

    #[test]
    fn a_fragment_without_ports_is_shown() {
        let mut follow = follow("10.77.0.100");
        assert!(follow.takes(&sent(&["SYN"], 1)));
        let fragment = TraceHop {
            from: "10.77.0.100".to_owned(),
            ..sent(&[], 1)
        };
        assert!(follow.takes(&fragment));
    }

    #[test]
    fn a_client_of_ipv6_is_followed_too() {
        let mut follow = follow("fd77::100");
        let sent = |flags: &[&str], port: u16| TraceHop {
            from: format!("[fd77::100]:{port}"),
            ..sent(flags, port)
        };
        assert!(follow.takes(&sent(&["SYN"], 2)));
        assert!(!follow.takes(&sent(&["SYN"], 3)), "the one after the next");
        assert!(follow.takes(&sent(&["RST"], 2)) && follow.is_over());
    }
}
