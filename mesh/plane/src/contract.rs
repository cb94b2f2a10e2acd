//! The contract suite: what every plane has to do, whatever it is made of. A plane's own tests call
//! [`check`]; it panics with the clause that was broken.
#![expect(clippy::panic, reason = "a broken clause ends the test that called")]

pub mod traffic;

use std::{collections::BTreeSet, net::Ipv4Addr, sync::Arc};

use portolan_model::{Balancing, NodeId, PlaneChoice, Protocol, Service, ServiceId};

use crate::{
    Actual, Backend, BackendState, DataPlane, Frontend, FrontendAddress, FrontendSpec, Op, Plan,
    Policy,
};

/// A frontend of this port with backends at these addresses, port 80 each.
pub fn spec(port: u16, protocol: Protocol, backends: &[Ipv4Addr]) -> FrontendSpec {
    let name = |text: String| text.parse().unwrap_or_else(|e| panic!("{e}"));
    FrontendSpec {
        frontend: Frontend {
            address: FrontendAddress::Node,
            port,
            protocol,
        },
        service: name_of_service(port),
        service_name: format!("service-{port}"),
        backends: backends
            .iter()
            .map(|ip| Backend {
                task: name(format!("task-{ip}")),
                name: format!("service-{port}.{ip}"),
                node: NodeId::of_name("n1"),
                local: true,
                ip: (*ip).into(),
                ipv6: None,
                port: 80,
                state: BackendState::Active,
                weight: 1,
            })
            .collect(),
        policy: Policy {
            balancing: Balancing::RoundRobin,
            local_first: false,
            tcp_idle_ms: None,
            udp_idle_ms: Service::DEFAULT_UDP_IDLE_MS,
            proxy_protocol: None,
            allow: Vec::new(),
            plane: PlaneChoice::Auto,
        },
        sources: None,
    }
}

fn name_of_service(port: u16) -> ServiceId {
    format!("service-{port}")
        .parse()
        .unwrap_or_else(|e| panic!("{e}"))
}

/// Runs all clauses on a plane that serves nothing yet. `ports` are free ports of this machine, at least
/// three, on which it may serve.
pub fn check(plane: &mut impl DataPlane, ports: [u16; 3]) {
    let [a, b, c] = ports;
    let ip = Ipv4Addr::LOCALHOST;
    let first = [
        spec(a, Protocol::Tcp, &[ip]),
        spec(a, Protocol::Udp, &[ip]),
        spec(b, Protocol::Tcp, &[]),
    ];
    holds(
        plane.dump().is_ok_and(|a| a.is_empty()),
        "a plane begins with nothing",
    );
    let upserts = plan(first.iter().map(upsert));
    until_applied(plane, &upserts);
    serves(plane, &first, "what was upserted is served");
    until_applied(plane, &upserts);
    serves(
        plane,
        &first,
        "an operation that is repeated changes nothing",
    );

    let mut changed = first.clone();
    if let Some(backend) = changed[0].backends.first_mut() {
        backend.state = BackendState::Draining;
    }
    let new = spec(c, Protocol::Udp, &[ip]);
    let update = plan([
        upsert(&changed[0]),
        upsert(&new),
        Op::Remove(first[2].frontend.clone()),
    ]);
    until_applied(plane, &update);
    serves(
        plane,
        &[changed[0].clone(), changed[1].clone(), new.clone()],
        "updates, additions and removals leave the rest alone",
    );
    let absent = plan([Op::Remove(first[2].frontend.clone())]);
    until_applied(plane, &absent);
    let stats = plane.stats();
    let known: BTreeSet<_> = plane
        .dump()
        .map(|a| a.keys().cloned().collect())
        .unwrap_or_default();
    holds(
        stats.frontends.iter().all(|s| known.contains(&s.frontend)),
        "counters are of frontends that are served",
    );
    let all = plan(known.into_iter().map(Op::Remove));
    until_applied(plane, &all);
    holds(
        plane.dump().is_ok_and(|a| a.is_empty()),
        "removing everything leaves nothing",
    );
    holds(plane.flows(10).is_empty(), "no frontend, no flow");
}

fn upsert(spec: &FrontendSpec) -> Op {
    Op::Upsert(Arc::new(spec.clone()))
}

fn plan(ops: impl IntoIterator<Item = Op>) -> Plan {
    Plan {
        ops: ops.into_iter().collect(),
    }
}

/// Applies a plan, and again what failed of it, as the reconciler does.
fn until_applied(plane: &mut impl DataPlane, plan: &Plan) {
    let mut left = plan.clone();
    for _ in 0..8 {
        let failed: BTreeSet<Frontend> =
            plane.apply(&left).into_iter().map(|f| f.frontend).collect();
        left.ops.retain(|op| failed.contains(op.frontend()));
        if left.is_empty() {
            return;
        }
    }
    panic!("a plan can be applied in 8 tries; left: {:?}", left.ops);
}

fn serves(plane: &impl DataPlane, specs: &[FrontendSpec], clause: &str) {
    let expected: Actual = specs
        .iter()
        .map(|spec| (spec.frontend.clone(), Arc::new(spec.clone())))
        .collect();
    match plane.dump() {
        Ok(actual) if actual == expected => {}
        other => panic!("clause broken: {clause}\nexpected {expected:#?}\nfound {other:#?}"),
    }
}

fn holds(condition: bool, clause: &str) {
    assert!(condition, "clause broken: {clause}");
}
