//! A node on one screen.

use std::fmt::Write as _;

use super::table::{Paint, Table, duration, shorten};
use crate::api::{DockerRow, PortRow, Status};

/// How many ports and problems are shown; the rest is counted. The lists have them all.
const SHOWN: usize = 15;
/// How many pins are shown.
const PINS: usize = 4;

pub(crate) fn screen(status: &Status, paint: Paint) -> String {
    let mut text = String::new();
    let mut line = |label: &str, value: String| {
        let _ = writeln!(text, "{}{value}", paint.title(&format!("{label:<12}")));
    };
    let state = match status.state.as_str() {
        "up" => paint.good("up"),
        other => paint.bad(other),
    };
    line(
        "Node",
        format!(
            "{} at {}, {state} for {}, version {}",
            status.node,
            status.advertise,
            duration(status.uptime_s),
            status.version
        ),
    );
    line(
        "Ready",
        if status.waiting_for.is_empty() {
            paint.good("yes")
        } else {
            paint.bad(&format!(
                "no, waiting for {}",
                status.waiting_for.join(", ")
            ))
        },
    );
    let members: Vec<_> = status
        .members
        .iter()
        .filter(|(_, count)| *count > 0)
        .map(|(state, count)| {
            let shown = format!("{count} {state}");
            if state == "alive" || state == "left" {
                shown
            } else {
                paint.bad(&shown)
            }
        })
        .collect();
    line("Members", members.join(", "));
    line("Encryption", status.encryption.clone());
    line("Table", status.table_hash.clone());
    let counts = status.counts;
    line(
        "Cluster",
        format!(
            "{}, {}, {}, {}",
            count(counts.nodes, "node"),
            count(counts.networks, "network"),
            count(counts.services, "service"),
            count(counts.tasks, "task")
        ),
    );
    if let Some(docker) = &status.docker {
        line("Docker", self::docker(docker, paint));
    }
    line("Overlay", format!("MTU {}", status.overlay_mtu));
    for plane in &status.planes {
        let standing = if plane.serving {
            paint.good(&format!("serves {}", count(plane.frontends, "frontend")))
        } else {
            "does not serve".to_owned()
        };
        let reason = if plane.reason.is_empty() {
            String::new()
        } else {
            format!(": {}", plane.reason)
        };
        line("Plane", format!("{} {standing}{reason}", plane.plane));
    }
    if !status.pins.is_empty() {
        let pins = count(status.pins.len(), "pin");
        line("Pinned", format!("{pins}: {}", shorten(&status.pins, PINS)));
    }
    ports(&mut text, &status.ports, paint);
    problems(&mut text, &status.problems, paint);
    text
}

fn docker(docker: &DockerRow, paint: Paint) -> String {
    let socket = docker.socket.display();
    let version = match docker.version.as_str() {
        "" => String::new(),
        version => format!(" {version}"),
    };
    let swarm = match docker.swarm.as_str() {
        "" => String::new(),
        part => format!(", {part} of a Swarm"),
    };
    let engine = format!("engine{version} at {socket}{swarm}");
    match docker.state.as_str() {
        "up" => format!("{engine}, {}", paint.good("up")),
        "absent" => "none".to_owned(),
        "connecting" => format!("{engine}, connecting"),
        state => format!("{engine}, {}: {}", paint.bad(state), docker.reason),
    }
}

fn ports(text: &mut String, ports: &[PortRow], paint: Paint) {
    if ports.is_empty() {
        let _ = writeln!(text, "\n{}", paint.title("No ports are published here"));
        return;
    }
    // What does not work must not be what is cut off.
    let (mut shown, served): (Vec<_>, Vec<_>) =
        ports.iter().partition(|port| port.problem.is_some());
    shown.extend(served);
    let mut table = Table::new(["PORT", "SERVICE", "ACTIVE", "DRAINING", "PLANE", "PROBLEM"]);
    for port in shown.iter().take(SHOWN) {
        table.row([
            port.frontend.clone(),
            port.service.clone(),
            port.active.to_string(),
            port.draining.to_string(),
            plane(port),
            port.problem.clone().unwrap_or_default(),
        ]);
    }
    let _ = write!(text, "\n{}", table.render());
    if ports.len() > SHOWN {
        let _ = writeln!(text, "and {} more: portolan services", ports.len() - SHOWN);
    }
}

/// The plane that has a port, and why, if it could be expected to be another.
fn plane(port: &PortRow) -> String {
    match (&port.plane_reason, &port.ipv6_reason) {
        (Some(reason), _) => format!("{}: {reason}", port.plane),
        (None, Some(reason)) => format!("{}, but IPv6 by the relay: {reason}", port.plane),
        (None, None) => port.plane.clone(),
    }
}

fn problems(text: &mut String, problems: &[String], paint: Paint) {
    if problems.is_empty() {
        let _ = writeln!(text, "\n{}", paint.good("No problems"));
        return;
    }
    let _ = writeln!(text, "\n{}", paint.bad(&count(problems.len(), "problem")));
    for problem in problems.iter().take(SHOWN) {
        let _ = writeln!(text, "  {problem}");
    }
    if problems.len() > SHOWN {
        let _ = writeln!(
            text,
            "  and {} more: portolan status --format json",
            problems.len() - SHOWN
        );
    }
}

fn count(number: usize, noun: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {noun}{plural}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{Counts, PlaneRow};

    #[test]
    fn the_screen_shows_what_is_wrong_first() {
        let port = |number: u16, problem: Option<&str>| PortRow {
            frontend: format!("*:{number}/tcp"),
            service: "web".into(),
            active: 2,
            draining: 0,
            plane: "relay".into(),
            plane_reason: Some("PROXY protocol".into()),
            ipv6: Some("relay".into()),
            ipv6_reason: None,
            problem: problem.map(Into::into),
        };
        let mut ports: Vec<_> = (1000..1020).map(|number| port(number, None)).collect();
        ports.push(port(80, Some("held by another process")));
        let status = Status {
            node: "n1".into(),
            advertise: [10, 0, 0, 1].into(),
            version: "0.1.0".into(),
            state: "up".into(),
            uptime_s: 5,
            waiting_for: vec![],
            members: vec![
                ("alive".into(), 2),
                ("suspect".into(), 1),
                ("down".into(), 0),
            ],
            encryption: "key 0a1b2c3d".into(),
            table_hash: "ff00".into(),
            planes: vec![PlaneRow {
                plane: "relay".into(),
                serving: true,
                reason: "chosen".into(),
                frontends: 21,
            }],
            pins: ["v1/flows", "v1/from_mesh-3"].map(Into::into).into(),
            docker: None,
            overlay_mtu: 1450,
            ports,
            counts: Counts {
                nodes: 3,
                networks: 1,
                services: 1,
                tasks: 2,
            },
            problems: vec!["port 80/tcp is held".into()],
        };
        let screen = screen(&status, Paint::never());
        let lines: Vec<_> = screen.lines().collect();
        assert_eq!(
            lines[0],
            "Node        n1 at 10.0.0.1, up for 5 s, version 0.1.0"
        );
        assert!(
            lines.contains(&"Members     2 alive, 1 suspect"),
            "{screen}"
        );
        assert!(
            lines.contains(&"Cluster     3 nodes, 1 network, 1 service, 2 tasks"),
            "{screen}"
        );
        assert!(
            lines.contains(&"Plane       relay serves 21 frontends: chosen"),
            "{screen}"
        );
        assert!(
            lines.contains(&"Pinned      2 pins: v1/flows, v1/from_mesh-3"),
            "{screen}"
        );
        let header = lines
            .iter()
            .position(|line| line.starts_with("PORT"))
            .unwrap();
        assert!(lines[header + 1].starts_with("*:80/tcp"), "{screen}");
        assert!(
            lines[header + 1].contains("relay: PROXY protocol"),
            "{screen}"
        );
        assert!(lines.contains(&"and 6 more: portolan services"), "{screen}");
        assert!(
            screen.ends_with("\n1 problem\n  port 80/tcp is held\n"),
            "{screen}"
        );
    }
}
