//! One packet, one line.

use portolan_model::Protocol;

use crate::api::{TraceHop, TraceSide, TraceVerdict};

/// A packet in the user's words.
pub(super) fn line(hop: &TraceHop) -> String {
    let side = match hop.side {
        TraceSide::Outside => "outside",
        TraceSide::Tunnel => "tunnel",
        TraceSide::Task => "task",
    };
    format!(
        "{} {} {:<15} {side:<7} {} > {} {}, {} bytes: {}\n",
        clock(&hop.time),
        hop.node,
        hop.link,
        hop.from,
        hop.to,
        kind(hop),
        hop.length,
        became(hop)
    )
}

/// `12:00:01.123456` of a time.
fn clock(time: &str) -> &str {
    time.get(11..26).unwrap_or(time)
}

fn kind(hop: &TraceHop) -> String {
    let protocol = hop.protocol.map(|protocol| protocol.to_string());
    let protocol = protocol.unwrap_or_else(|| "ip".to_owned());
    match hop.flags.join(" ") {
        _ if hop.icmp_error => format!("{protocol} ICMP error"),
        flags if flags.is_empty() => protocol,
        flags => format!("{protocol} {flags}"),
    }
}

fn became(hop: &TraceHop) -> String {
    let task = hop.task.as_deref().unwrap_or("a task");
    let peer = hop.peer.as_deref();
    let new = match hop.first && !hop.icmp_error {
        true if is_mid_connection(hop) => "flow found again, ",
        true => "new flow ",
        false => "",
    };
    match hop.verdict {
        TraceVerdict::Forwarded => {
            let way = peer.map_or_else(
                || "on this node".to_owned(),
                |node| format!("at {node}, by the tunnel"),
            );
            format!("{new}to {task} ({}) {way}", hop.to_after)
        }
        TraceVerdict::Delivered => format!(
            "{new}from {}, handed to {task} ({})",
            peer.unwrap_or("another node"),
            hop.to_after
        ),
        TraceVerdict::SentBack => format!(
            "reply of {task}, by the tunnel to {}",
            peer.unwrap_or("another node")
        ),
        TraceVerdict::GivenBack => {
            let at = peer.map(|node| format!(" at {node}")).unwrap_or_default();
            format!(
                "reply of {task}{at}, to the client as from {}",
                hop.from_after
            )
        }
        TraceVerdict::Relayed => "the relay has this flow".to_owned(),
        TraceVerdict::Left => hop.meaning.clone().unwrap_or_else(|| {
            "left to the kernel: not addressed to a frontend of the fast path".to_owned()
        }),
        TraceVerdict::Dropped => hop
            .meaning
            .clone()
            .unwrap_or_else(|| "dropped: the kernel did not send it on".to_owned()),
        TraceVerdict::Redirected => "sent on, by a flow that was forgotten just then".to_owned(),
    }
}

/// Whether a connection must have begun before this packet.
fn is_mid_connection(hop: &TraceHop) -> bool {
    hop.protocol == Some(Protocol::Tcp) && !hop.flags.iter().any(|flag| flag == "SYN")
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A SYN from a client, forwarded to another node.
    pub(in crate::cli::trace) fn hop() -> TraceHop {
        TraceHop {
            time: "2026-11-21T12:00:01.123456789Z".to_owned(),
            node: "n1".to_owned(),
            cpu: 0,
            link: "eth0".to_owned(),
            side: TraceSide::Outside,
            protocol: Some(Protocol::Tcp),
            from: "10.77.0.100:40000".to_owned(),
            to: "10.77.0.11:8080".to_owned(),
            from_after: "10.77.0.100:40000".to_owned(),
            to_after: "10.208.2.3:80".to_owned(),
            length: 60,
            flags: vec!["SYN".to_owned()],
            icmp_error: false,
            first: true,
            verdict: TraceVerdict::Forwarded,
            reason: None,
            meaning: None,
            task: Some("web.2".to_owned()),
            peer: Some("n2".to_owned()),
        }
    }

    #[test]
    fn a_packet_is_told_in_the_words_of_the_user() {
        let said = |hop: &TraceHop| {
            line(hop)
                .split_once("bytes: ")
                .unwrap()
                .1
                .trim_end()
                .to_owned()
        };
        let forwarded = hop();
        assert_eq!(
            line(&forwarded),
            "12:00:01.123456 n1 eth0            outside 10.77.0.100:40000 > 10.77.0.11:8080 tcp SYN, 60 bytes: \
             new flow to web.2 (10.208.2.3:80) at n2, by the tunnel\n"
        );
        let here = TraceHop {
            peer: None,
            first: false,
            ..hop()
        };
        assert_eq!(said(&here), "to web.2 (10.208.2.3:80) on this node");
        let forgotten = TraceHop {
            flags: vec!["ACK".to_owned()],
            ..hop()
        };
        assert!(said(&forgotten).starts_with("flow found again, to web.2 "));
        let is = |verdict| TraceHop { verdict, ..hop() };
        assert_eq!(
            said(&is(TraceVerdict::Delivered)),
            "new flow from n2, handed to web.2 (10.208.2.3:80)"
        );
        assert_eq!(
            said(&is(TraceVerdict::SentBack)),
            "reply of web.2, by the tunnel to n2"
        );
        assert_eq!(
            said(&is(TraceVerdict::GivenBack)),
            "reply of web.2 at n2, to the client as from 10.77.0.100:40000"
        );
        let dropped = TraceHop {
            meaning: Some("dropped: for a reason".to_owned()),
            ..is(TraceVerdict::Dropped)
        };
        assert_eq!(said(&dropped), "dropped: for a reason");
        assert!(said(&is(TraceVerdict::Left)).contains("not addressed to a frontend"));
        let error = TraceHop {
            icmp_error: true,
            flags: Vec::new(),
            ..hop()
        };
        assert!(line(&error).contains(" tcp ICMP error, "));
    }
}
