use std::{
    collections::BTreeSet,
    io::Write,
    process::{Command, Stdio},
};

use portolan_dns::QueryCount;
use portolan_model::{NetworkName, Protocol};
use portolan_plane::{BackendStats, PlaneKind, PlaneStats};

use super::{
    definitions::{ALL, Kind},
    *,
};
use crate::agent::views::testing;

const DOCS: &str = include_str!("../../../../../docs/metrics.md");

fn backend(flows: u64) -> BackendStats {
    BackendStats {
        flows,
        active: 1,
        bytes_in: 10,
        bytes_out: 20,
        connect_failures: 2,
    }
}

fn frontend(address: FrontendAddress, port: u16, flows: u64) -> FrontendStats {
    FrontendStats {
        frontend: Frontend {
            address,
            port,
            protocol: Protocol::Tcp,
        },
        service: "web".parse().unwrap(),
        service_name: "web".to_owned(),
        backends: vec![("t1".parse().unwrap(), "web.1".to_owned(), backend(flows))],
        retries: 3,
        refused: vec![("no_backend", 4), ("limit", 1)],
        idle_timeouts: 5,
    }
}

fn counted() -> Counted {
    let at = |last| FrontendAddress::Ip([10, 0, 0, last].into());
    let vip = FrontendAddress::Vip(NetworkName::ingress(), [10, 9, 0, 2].into());
    Counted {
        facts: testing::facts(),
        plane: PlanesStats {
            planes: vec![
                (
                    PlaneKind::Relay,
                    PlaneStats {
                        frontends: vec![
                            frontend(at(1), 8080, 100),
                            frontend(at(2), 8080, 11),
                            frontend(vip, 0, 7),
                        ],
                    },
                ),
                (
                    PlaneKind::Ebpf,
                    PlaneStats {
                        frontends: vec![frontend(at(1), 8080, 50)],
                    },
                ),
            ],
            packets: portolan_ebpf::COUNTERS.into_iter().zip(1..).collect(),
        },
        gossip: Stats {
            members_alive: 2,
            udp_bytes_in: 1234,
            ..Stats::default()
        },
        dns: DnsStats {
            queries: vec![QueryCount {
                qtype: "A",
                rcode: "NOERROR",
                count: 9,
            }],
            ..DnsStats::default()
        },
        process: Process::read(),
    }
}

fn exposed() -> String {
    TextEncoder::new()
        .encode_to_string(&counted().expose().families())
        .unwrap()
}

/// The rows of the tables of metrics in the docs: name, type, labels, meaning.
fn documented() -> Vec<(String, String, Vec<String>, String)> {
    let cells = |line: &str| -> Vec<String> {
        line.trim_matches('|')
            .split(" | ")
            .map(|cell| cell.trim().to_owned())
            .collect()
    };
    let metrics = DOCS.split("## Labels").next().unwrap();
    let rows = metrics.lines().filter(|line| line.starts_with("| `"));
    rows.map(|line| {
        let row: [String; 4] = cells(line)
            .try_into()
            .unwrap_or_else(|row| panic!("{line}: {row:?}"));
        let [name, kind, labels, meaning] = row;
        let labels = labels
            .split(", ")
            .map(|l| l.trim_matches('`').to_owned())
            .filter(|l| !l.is_empty());
        (
            name.trim_matches('`').to_owned(),
            kind,
            labels.collect(),
            meaning,
        )
    })
    .collect()
}

#[test]
fn the_docs_list_exactly_what_the_code_defines() {
    let defined: Vec<_> = ALL
        .iter()
        .map(|metric| {
            let kind = match metric.kind {
                Kind::Counter => "counter",
                Kind::Gauge => "gauge",
            };
            let labels: Vec<String> = metric
                .labels
                .iter()
                .map(|&label| label.to_owned())
                .collect();
            (
                metric.name.to_owned(),
                kind.to_owned(),
                labels,
                metric.help.to_owned(),
            )
        })
        .collect();
    let (defined, documented): (BTreeSet<_>, BTreeSet<_>) = (
        defined.into_iter().collect(),
        documented().into_iter().collect(),
    );
    let missing: Vec<_> = defined.difference(&documented).collect();
    let stale: Vec<_> = documented.difference(&defined).collect();
    assert!(
        missing.is_empty() && stale.is_empty(),
        "not in docs/metrics.md: {missing:#?}\nnot in the code: {stale:#?}"
    );
}

#[test]
fn the_docs_list_every_reason_of_the_fast_path_with_its_meaning() {
    let after = DOCS.split("## Reasons of the fast path").nth(1).unwrap();
    let table = after.split("## ").next().unwrap();
    let listed: Vec<&str> = table.lines().filter(|l| l.starts_with("| `")).collect();
    let defined: Vec<String> = portolan_ebpf::COUNTERS
        .iter()
        .map(|counter| format!("| `{}` | {} |", counter.name, counter.meaning))
        .collect();
    assert_eq!(
        listed, defined,
        "docs/metrics.md is to repeat ebpf/bpf/counters.h"
    );
}

#[test]
fn every_label_is_documented() {
    let labels = DOCS.split("## Labels").nth(1).unwrap();
    for label in ALL.iter().flat_map(|metric| metric.labels) {
        assert!(labels.contains(&format!("`{label}`")), "{label}");
    }
}

#[test]
fn every_metric_that_is_defined_is_exposed_and_no_other() {
    let exposed: BTreeSet<String> = counted()
        .expose()
        .families()
        .iter()
        .map(|family| family.name().to_owned())
        .collect();
    let defined: BTreeSet<String> = ALL.iter().map(|metric| metric.name.to_owned()).collect();
    assert_eq!(exposed, defined);
    assert_eq!(ALL.len(), defined.len(), "a name is defined twice");
}

#[test]
fn frontends_of_one_port_are_one_series_and_vips_another() {
    let text = exposed();
    for line in [
        r#"portolan_plane_flows_total{plane="relay",service="web",port="8080",protocol="tcp",task="web.1"} 111"#,
        r#"portolan_plane_flows_total{plane="relay",service="web",port="vip",protocol="tcp",task="web.1"} 7"#,
        r#"portolan_plane_refused_total{plane="relay",service="web",port="8080",protocol="tcp",reason="no_backend"} 8"#,
        r#"portolan_plane_traffic_bytes_total{plane="relay",service="web",port="8080",protocol="tcp",task="web.1",direction="out"} 40"#,
        r#"portolan_dns_queries_total{type="A",rcode="NOERROR"} 9"#,
        r#"portolan_gossip_bytes_total{direction="in",transport="udp"} 1234"#,
        r#"portolan_gossip_members{state="alive"} 2"#,
        r#"portolan_node_tasks{state="healthy"} 1"#,
        r#"portolan_cluster_tasks{state="draining"} 1"#,
        "portolan_node_ready 1",
        "portolan_node_problems 1",
        "portolan_overlay_mtu_bytes 1450",
    ] {
        assert!(
            text.lines().any(|found| found == line),
            "no line {line} in\n{text}"
        );
    }
}

#[test]
fn no_series_is_there_twice() {
    let text = exposed();
    let mut seen = BTreeSet::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let series = line.rsplit_once(' ').unwrap().0;
        assert!(seen.insert(series), "{series}");
    }
}

#[test]
fn a_node_that_waits_is_not_ready() {
    let mut counted = counted();
    counted.facts.waiting_for = vec!["gossip".to_owned()];
    counted.facts.planes = None;
    let text = TextEncoder::new()
        .encode_to_string(&counted.expose().families())
        .unwrap();
    assert!(text.contains("\nportolan_node_ready 0\n"));
    assert!(text.contains("\nportolan_plane_serving{plane=\"relay\"} 0\n"));
}

#[test]
fn promtool_has_nothing_to_say() {
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool is needed: apt-get install prometheus");
    promtool
        .stdin
        .take()
        .unwrap()
        .write_all(exposed().as_bytes())
        .unwrap();
    let output = promtool.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "{said}");
}
