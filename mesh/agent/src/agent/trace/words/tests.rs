//! Events become lines with names.

use std::net::SocketAddr;

use portolan_ebpf::{Ends, Target, Way};
use portolan_model::Protocol;

use super::*;
use crate::agent::views::testing;

fn ends(from: &str, to: &str) -> Ends {
    let end = |text: &str| text.parse::<SocketAddr>().unwrap();
    Ends {
        from: end(from),
        to: end(to),
    }
}

fn event(verdict: Verdict) -> TraceEvent {
    TraceEvent {
        at: Duration::from_nanos(1_123_456_789),
        cpu: 1,
        program: Program::FromOutside,
        link: "eth0".to_owned(),
        protocol: Some(Protocol::Tcp),
        before: ends("10.77.0.100:40000", "10.77.0.1:8080"),
        after: ends("10.77.0.100:40000", "10.208.2.2:80"),
        length: 60,
        tcp_flags: 2 | 16,
        icmp_error: false,
        first: true,
        verdict,
    }
}

#[test]
fn times_are_those_of_the_day() {
    let at = |s: u64| rfc3339(SystemTime::UNIX_EPOCH + Duration::from_secs(s));
    assert_eq!(at(0), "1970-01-01T00:00:00.000000000Z");
    assert_eq!(at(951_782_399), "2000-02-28T23:59:59.000000000Z");
    assert_eq!(at(951_782_400), "2000-02-29T00:00:00.000000000Z");
    assert_eq!(at(1_709_251_199), "2024-02-29T23:59:59.000000000Z");
    assert_eq!(at(4_107_542_400), "2100-03-01T00:00:00.000000000Z");
    assert_eq!(at(1_795_219_200), "2026-11-21T00:00:00.000000000Z");
}

#[test]
fn nodes_and_tasks_have_their_names() {
    let began = SystemTime::UNIX_EPOCH + Duration::from_hours(1);
    let names = Names::of("n1".to_owned(), testing::facts().snapshot, began);
    let target = Target {
        service: "web".to_owned(),
        task: "t2".to_owned(),
        name: "web.2".to_owned(),
    };
    let n2 = Ipv4Addr::new(10, 77, 0, 2);
    let hop = names.hop(event(Verdict::Forwarded {
        target: target.clone(),
        way: Way::Tunnel(n2),
    }));
    assert_eq!(hop.time, "1970-01-01T01:00:01.123456789Z");
    assert_eq!((hop.node.as_str(), hop.side), ("n1", TraceSide::Outside));
    assert_eq!(
        (hop.task.as_deref(), hop.peer.as_deref()),
        (Some("web.2"), Some("n2"))
    );
    assert_eq!(hop.flags, ["SYN", "ACK"]);
    assert_eq!(
        (hop.to.as_str(), hop.to_after.as_str()),
        ("10.77.0.1:8080", "10.208.2.2:80")
    );

    let to = |way| {
        let target = target.clone();
        names.hop(event(Verdict::Forwarded { target, way })).peer
    };
    assert_eq!(to(Way::Here), None);
    assert_eq!(to(Way::Routed).as_deref(), Some("n2"), "where the task is");

    let hop = names.hop(event(Verdict::Delivered { node: n2 }));
    assert_eq!(hop.task.as_deref(), Some("web.2"), "by its address");
    let stranger = Ipv4Addr::new(10, 77, 0, 9);
    let hop = names.hop(event(Verdict::SentBack { node: stranger }));
    assert_eq!((hop.task, hop.peer.as_deref()), (None, Some("10.77.0.9")));
}

#[test]
fn reasons_are_told_by_code_and_in_words() {
    let names = Names::of(
        "n1".to_owned(),
        testing::facts().snapshot,
        SystemTime::UNIX_EPOCH,
    );
    let counter = portolan_ebpf::COUNTERS
        .iter()
        .find(|counter| counter.name == "drop_no_flow")
        .copied();
    let hop = names.hop(TraceEvent {
        before: ends("10.77.0.100:0", "10.77.0.1:0"),
        ..event(Verdict::Dropped(counter))
    });
    assert_eq!(hop.verdict, TraceVerdict::Dropped);
    assert_eq!(hop.reason.as_deref(), Some("drop_no_flow"));
    assert!(hop.meaning.unwrap().starts_with("dropped: "));
    assert_eq!(hop.from, "10.77.0.100", "a fragment");
    let hop = names.hop(event(Verdict::Left(None)));
    assert_eq!(
        (hop.verdict, hop.reason, hop.meaning),
        (TraceVerdict::Left, None, None)
    );
}
