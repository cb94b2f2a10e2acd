//! `portolan trace` against an agent that tells of one connection, made up.

use serde_json::{Value, json};

use super::{asking::Fake, run::run};

/// A packet of the client's port: its verdict, its flags, and whether it is the client's.
fn hop(port: u16, verdict: &str, flags: &[&str], sent: bool) -> Value {
    let (client, task) = (format!("10.0.0.5:{port}"), "10.208.2.2:80".to_owned());
    let (from, to) = if sent {
        (&client, &task)
    } else {
        (&task, &client)
    };
    json!({
        "line": "hop", "time": "2026-11-21T12:00:01.123456789Z", "node": "n1", "cpu": 0, "link": "eth0",
        "side": if sent { "outside" } else { "tunnel" }, "protocol": "tcp", "from": from, "to": to,
        "from_after": from, "to_after": to, "length": 52, "flags": flags, "icmp_error": false,
        "first": flags.contains(&"SYN"), "verdict": verdict, "reason": null, "meaning": null, "task": "web.1",
        "peer": "n2",
    })
}

/// A connection that was there before, and the next one to its end.
pub(super) fn answer() -> String {
    let lines = [
        json!({"line": "start", "node": "n1", "frontends": [
            {"frontend": "*:8080/tcp", "service": "web", "relay_reason": null},
            {"frontend": "*:8080/udp", "service": "dns", "relay_reason": "no backend takes new flows"},
        ]}),
        hop(1, "forwarded", &["ACK"], true),
        hop(2, "forwarded", &["SYN"], true),
        hop(2, "given_back", &["SYN", "ACK"], false),
        hop(3, "forwarded", &["SYN"], true),
        json!({"line": "lost", "packets": 7}),
        hop(2, "forwarded", &["ACK", "FIN"], true),
        hop(2, "given_back", &["ACK", "FIN"], false),
    ];
    // With signs of life in between.
    lines.map(|line| format!("{line}\n\n")).concat()
}

#[test]
fn the_next_connection_is_shown_to_its_end() {
    let fake = Fake::start();
    let ran = fake.run(&["trace", "10.0.0.5", ":8080"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(
        fake.last().0,
        "GET /v1/trace?client=10.0.0.5&frontend=:8080"
    );
    let lines: Vec<_> = ran.stdout.lines().collect();
    assert_eq!(lines.len(), 5, "{}", ran.stdout);
    assert!(
        lines[0].starts_with("12:00:01.123456 n1 eth0 ")
            && lines[0].ends_with("new flow to web.1 (10.208.2.2:80) at n2, by the tunnel"),
        "{}",
        lines[0]
    );
    assert_eq!(lines[2], "7 packets were too fast to be told");
    assert!(!ran.stdout.contains("10.0.0.5:1 ") && !ran.stdout.contains("10.0.0.5:3 "));
    for note in [
        "(*:8080/tcp of web is the fast path's)",
        "(*:8080/udp of dns is the relay's: no backend takes new flows)",
        "(n2 tells its part itself: run `portolan trace 10.0.0.5` there as well)",
    ] {
        assert!(ran.stderr.contains(note), "{}", ran.stderr);
    }
}

#[test]
fn programs_get_the_lines_as_they_are() {
    let fake = Fake::start();
    let ran = fake.run(&[
        "trace", "10.0.0.5", "--all", "--count", "2", "--format", "json",
    ]);
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""));
    let lines: Vec<Value> = ran
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines[0]["line"], "start");
    assert_eq!(
        lines[1..],
        [
            hop(1, "forwarded", &["ACK"], true),
            hop(2, "forwarded", &["SYN"], true)
        ]
    );
}

#[test]
fn what_ends_too_early_or_is_refused_is_a_failure() {
    let fake = Fake::start();
    // The only connection of this port was there before, and goes on.
    let ran = fake.run(&["trace", "10.0.0.5:1"]);
    assert_eq!(ran.code, 1);
    assert!(
        ran.stderr.contains("the agent has ended the trace"),
        "{}",
        ran.stderr
    );
    let ran = fake.run(&["trace", "10.0.0.6"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (1, ""));
    assert!(ran.stderr.contains("and one more"), "{}", ran.stderr);
}

#[test]
fn wrong_input_is_told_with_an_example() {
    for (args, why) in [
        (&["trace"][..], "CLIENT"),
        (&["trace", "web"], "10.0.0.5:40000"),
        (&["trace", "[fd00::1"], "[2001:db8::7]:40000"),
        (&["trace", "10.0.0.5", "10.0.0.11"], "10.0.0.11:8080/tcp"),
        (&["trace", "10.0.0.5", "--for", "30"], "30s"),
        (&["trace", "10.0.0.5", "--for", "0"], "30s"),
        (&["trace", "10.0.0.5", "--count", "0"], "--count"),
    ] {
        let ran = run(args);
        assert_eq!(ran.code, 2, "{args:?}");
        assert!(ran.stderr.contains(why), "{args:?}: {}", ran.stderr);
    }
}
