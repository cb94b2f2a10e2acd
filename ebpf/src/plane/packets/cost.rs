//! What a packet costs. Run by hand, as figures on a busy machine say little:
//! `cargo nextest run -p portolan-ebpf --run-ignored only --no-capture`.

use std::time::{Duration, Instant};

use aya::programs::TestRun;

use super::{
    ACK, CLIENT, End, FRONTEND, Flow, LOCAL, NEXT, REDIRECT, REMOTE, Rig, SchedClassifier,
    TestRunOptions, on_rig, on_rig_with, tcp,
};
use crate::{
    TraceFilter, Tracer,
    layout::{FLOW_FORWARD, address},
    links::{FROM_MESH, FROM_OUTSIDE, FROM_TASK},
};

const PACKETS: u32 = 1_000_000;

/// The median of seven runs, in ns per packet.
fn cost(rig: &mut Rig, program: &str, packet: &[u8], verdict: u32) -> u128 {
    let program: &mut SchedClassifier = rig.program(program);
    let mut runs: Vec<u128> = (0..7)
        .map(|_| {
            let options = TestRunOptions {
                data_in: Some(packet),
                repeat: PACKETS,
                ..TestRunOptions::new()
            };
            let result = program.test_run(options).unwrap();
            assert_eq!(result.return_value, verdict);
            result.duration.as_nanos()
        })
        .collect();
    runs.sort_unstable();
    runs[3]
}

/// A flow from one address to another that a second one brings back, as the kernel runs the program on the same
/// packet again and again.
fn there_and_back(
    rig: &mut Rig,
    kind: u8,
    ways: [(End, End); 2],
    fixed: End,
    other: fn(End, End) -> (End, End),
) {
    let delta = |from: End, to: End| {
        let word = |bytes: [u8; 4]| u32::from_ne_bytes(bytes);
        let sum = u64::from(!word(from.0)) + u64::from(word(to.0));
        ((sum & 0xffff_ffff) + (sum >> 32)) as u32
    };
    let ports = |from: End, to: End| {
        let word = |port: u16| u32::from(u16::from_ne_bytes(port.to_be_bytes()));
        let sum = u64::from(!word(from.1)) + u64::from(word(to.1));
        ((sum & 0xffff_ffff) + (sum >> 32)) as u32
    };
    for (from, to) in ways {
        let (source, destination) = other(fixed, from);
        let flow = Flow {
            kind,
            ip: address(to.0),
            port: to.1.to_be_bytes(),
            ip_delta: delta(from, to),
            port_delta: ports(from, to),
            node: 1,
            network: 1,
            ifindex: 1,
            // A place that no backend has, and so of generation 0, as the flow is.
            backend: 9,
            ..Flow::default()
        };
        rig.put(source, destination, 6, flow);
    }
}

#[test]
#[ignore = "measures, and takes half a minute"]
fn what_a_packet_costs() {
    on_rig(|rig| {
        rig.serve(portolan_model::Protocol::Udp, &[REMOTE]);
        let show = |rig: &mut Rig, what: &str, program: &str, packet: &[u8]| {
            let verdict = if what.ends_with("not ours") {
                NEXT
            } else {
                REDIRECT
            };
            let cost = cost(rig, program, packet, verdict);
            println!("{what:<50} {cost:>5} ns");
        };
        there_and_back(
            rig,
            FLOW_FORWARD,
            [(FRONTEND, REMOTE), (REMOTE, FRONTEND)],
            CLIENT,
            |fixed, end| (fixed, end),
        );
        let data = [0; 1000];
        show(
            rig,
            "from_outside: established, to a remote task",
            FROM_OUTSIDE,
            &tcp(CLIENT, FRONTEND, ACK, &[], &data),
        );
        show(
            rig,
            "from_outside: not ours",
            FROM_OUTSIDE,
            &tcp(CLIENT, (FRONTEND.0, 22), ACK, &[], &data),
        );
        there_and_back(
            rig,
            2,
            [(FRONTEND, REMOTE), (REMOTE, FRONTEND)],
            CLIENT,
            |fixed, end| (end, fixed),
        );
        show(
            rig,
            "from_mesh: established, reply to the client",
            FROM_MESH,
            &tcp(REMOTE, CLIENT, ACK, &[], &data),
        );
        rig.put(
            LOCAL,
            CLIENT,
            6,
            Flow {
                kind: 4,
                node: 1,
                network: 1,
                ifindex: 1,
                ..Flow::default()
            },
        );
        show(
            rig,
            "from_task: established, reply into the tunnel",
            FROM_TASK,
            &tcp(LOCAL, CLIENT, ACK, &[], &data),
        );
        show(
            rig,
            "from_task: not ours",
            FROM_TASK,
            &tcp(LOCAL, REMOTE, ACK, &[], &data),
        );
        let seen = [
            (CLIENT, FRONTEND),
            (CLIENT, REMOTE),
            (REMOTE, CLIENT),
            (FRONTEND, CLIENT),
        ];
        for (from, to) in seen {
            let packets = rig.flow(from, to, 6).unwrap().packets;
            assert_eq!(
                packets,
                u64::from(PACKETS) * 7 / 2,
                "every packet was one of its flow"
            );
        }
    });
}

#[test]
#[ignore = "measures, and fills the table"]
fn what_a_sweep_costs() {
    on_rig_with(&[("flows", 524_288)], |rig| {
        rig.serve(portolan_model::Protocol::Tcp, &[REMOTE]);
        let mut flows = 0_u32;
        for wanted in [0, 10_000, 100_000, 250_000] {
            for number in flows..wanted {
                let client = (
                    [10, 99, (number >> 8) as u8, number as u8],
                    (number >> 16) as u16 + 1,
                );
                let seen = crate::plane::sweep::now();
                let there = Flow {
                    kind: FLOW_FORWARD,
                    ip: address(REMOTE.0),
                    port: REMOTE.1.to_be_bytes(),
                    generation: 1,
                    created: seen,
                    seen,
                    ..Flow::default()
                };
                rig.put(client, FRONTEND, 6, there);
                rig.put(REMOTE, client, 6, Flow { kind: 2, ..there });
            }
            flows = wanted;
            let (mut calls, mut total, mut longest) = (0, Duration::ZERO, Duration::ZERO);
            loop {
                let begun = Instant::now();
                let swept = rig.plane.sweep().unwrap();
                let took = begun.elapsed();
                (calls, total, longest) = (calls + 1, total + took, longest.max(took));
                if swept.next > Duration::from_millis(500) {
                    break;
                }
            }
            let active = rig.plane.backend_stats(0).active;
            println!(
                "{flows:>7} flows: {total:?} in {calls} calls of at most {longest:?}; {active} active"
            );
        }
    });
}

#[test]
#[ignore = "measures, and takes half a minute"]
fn what_tracing_costs() {
    on_rig(|rig| {
        rig.serve(portolan_model::Protocol::Tcp, &[LOCAL]);
        there_and_back(
            rig,
            FLOW_FORWARD,
            [(FRONTEND, REMOTE), (REMOTE, FRONTEND)],
            CLIENT,
            |fixed, end| (fixed, end),
        );
        let packet = tcp(CLIENT, FRONTEND, ACK, &[], &[0; 1000]);
        let show = |rig: &mut Rig, what: &str| {
            let cost = cost(rig, FROM_OUTSIDE, &packet, REDIRECT);
            println!("established, to a remote task, {what:<30} {cost:>5} ns");
        };
        show(rig, "nobody listens");
        for (what, client) in [
            ("another client is traced", [10, 77, 0, 98]),
            ("told, and lost", CLIENT.0),
        ] {
            let filter = TraceFilter {
                client: client.into(),
                client_port: None,
                frontend: None,
                frontend_port: None,
                protocol: None,
            };
            let pins = rig.plane.pins.parent().unwrap();
            let mut tracer = Tracer::start(pins, filter).unwrap();
            // As long as it takes.
            tracer.set(u64::MAX).unwrap();
            show(rig, what);
        }
    });
}
