//! The lists, for people.

use serde::Deserialize;
use serde_json::Value;

use super::table::{Table, bytes, duration, shorten};
use crate::api::{Keys, NetworkRow, NodeRow, ServiceRow, TaskRow};

/// How many entries a cell shows of a list.
const SHOWN: usize = 3;

pub(crate) fn nodes(rows: &[NodeRow]) -> String {
    let mut table = Table::new([
        "NAME",
        "ADDRESS",
        "MEMBERSHIP",
        "STATE",
        "TASKS",
        "VERSION",
        "ID",
    ]);
    for row in rows {
        table.row([
            format!("{}{}", row.name, if row.me { " *" } else { "" }),
            row.address.clone(),
            row.membership.clone(),
            row.state.clone(),
            row.tasks.to_string(),
            row.version.clone(),
            row.id.chars().take(12).collect(),
        ]);
    }
    table.render()
}

pub(crate) fn networks(rows: &[NetworkRow]) -> String {
    let mut table = Table::new([
        "NAME",
        "VNI",
        "SUBNET",
        "INTERNAL",
        "NODES",
        "ENDPOINTS",
        "PROBLEMS",
    ]);
    for row in rows {
        let nodes: Vec<_> = row.slices.iter().map(|(node, _)| node).collect();
        table.row([
            row.name.clone(),
            row.vni.to_string(),
            row.subnet.clone(),
            if row.internal { "yes" } else { "no" }.to_owned(),
            shorten(&nodes, SHOWN),
            row.endpoints.to_string(),
            row.problems.join("; "),
        ]);
    }
    table.render()
}

pub(crate) fn services(rows: &[ServiceRow]) -> String {
    let mut table = Table::new([
        "NAME", "STACK", "HEALTHY", "PORTS", "IPV6", "MODE", "VIPS", "PROBLEMS",
    ]);
    for row in rows {
        let vips: Vec<_> = row
            .vips
            .iter()
            .map(|(network, ip)| format!("{ip} ({network})"))
            .collect();
        table.row([
            row.name.clone(),
            row.stack.clone().unwrap_or_default(),
            format!("{}/{}", row.healthy, row.tasks),
            shorten(&row.ports, SHOWN),
            ipv6(row).to_owned(),
            row.endpoint_mode.clone(),
            shorten(&vips, SHOWN),
            row.problems.join("; "),
        ]);
    }
    table.render()
}

/// Where IPv6 clients are to be served: at the tasks' own addresses, or by the relay.
fn ipv6(row: &ServiceRow) -> &'static str {
    match (row.ports.is_empty(), row.ipv6) {
        (true, _) => "",
        (false, true) => "tasks",
        (false, false) => "relay",
    }
}

pub(crate) fn tasks(rows: &[TaskRow]) -> String {
    let mut table = Table::new([
        "ID",
        "NAME",
        "NODE",
        "STATE",
        "WEIGHT",
        "ENDPOINTS",
        "REASON",
    ]);
    for row in rows {
        table.row([
            row.id.clone(),
            row.name.clone(),
            row.node.clone(),
            row.state.clone(),
            row.weight.to_string(),
            shorten(&endpoints(row), SHOWN),
            row.reason.clone(),
        ]);
    }
    table.render()
}

/// A task that was just added: the id alone on its line, for scripts, then its addresses, and where it may ask for
/// names.
pub(crate) fn added(row: &TaskRow) -> String {
    let resolver = row
        .resolver
        .map(|resolver| format!("names: nameserver {resolver}"));
    let lines = [row.id.clone()]
        .into_iter()
        .chain(endpoints(row))
        .chain(resolver);
    lines.map(|line| line + "\n").collect()
}

fn endpoints(row: &TaskRow) -> Vec<String> {
    let shown = row.endpoints.iter().map(|(network, ip)| {
        if network.is_empty() {
            ip.to_string()
        } else {
            format!("{ip} ({network})")
        }
    });
    shown.collect()
}

pub(crate) fn keys(keys: &Keys) -> String {
    let mut table = Table::new(["ID", "USE"]);
    for (at, id) in keys.ids.iter().enumerate() {
        let usage = if at == 0 { "sends and takes" } else { "takes" };
        table.row([id.clone(), usage.to_owned()]);
    }
    table.render()
}

/// A flow, as far as it is shown.
#[derive(Deserialize)]
struct Flow {
    client: String,
    frontend: Frontend,
    service: String,
    task: String,
    backend: String,
    plane: String,
    age: Age,
    bytes_in: u64,
    bytes_out: u64,
}

#[derive(Deserialize)]
struct Frontend {
    address: Value,
    port: u16,
    protocol: String,
}

#[derive(Deserialize)]
struct Age {
    secs: u64,
}

impl Frontend {
    /// `*:8080/tcp`, `10.0.0.5:8080/tcp`, or a VIP with every port: `10.1.0.2:*/tcp`.
    fn shown(&self) -> String {
        let address = match &self.address {
            Value::Object(fields) => fields.values().next().map(|value| match value {
                Value::Array(vip) => vip.last().map_or(String::new(), plain),
                other => plain(other),
            }),
            _ => None,
        };
        let address = address.unwrap_or_else(|| "*".to_owned());
        let address = if address.contains(':') {
            format!("[{address}]")
        } else {
            address
        };
        match self.port {
            0 => format!("{address}:*/{}", self.protocol),
            port => format!("{address}:{port}/{}", self.protocol),
        }
    }
}

fn plain(value: &Value) -> String {
    value
        .as_str()
        .map_or_else(|| value.to_string(), str::to_owned)
}

pub(crate) fn flows(rows: &[Value]) -> String {
    let mut table = Table::new([
        "CLIENT", "FRONTEND", "SERVICE", "TASK", "BACKEND", "PLANE", "AGE", "IN", "OUT",
    ]);
    for row in rows {
        match Flow::deserialize(row) {
            Ok(flow) => table.row([
                flow.client,
                flow.frontend.shown(),
                flow.service,
                flow.task,
                flow.backend,
                flow.plane,
                duration(flow.age.secs),
                bytes(flow.bytes_in),
                bytes(flow.bytes_out),
            ]),
            // A flow of another version still is one, and is counted among the rows.
            Err(_) => table.row([row.to_string()]),
        }
    }
    table.render()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use portolan_model::{NetworkName, Protocol};
    use portolan_plane::{FlowView, Frontend, FrontendAddress, PlaneKind};

    use super::*;

    fn flow(address: FrontendAddress, port: u16) -> Value {
        let mut row = serde_json::to_value(FlowView {
            client: "192.0.2.1:5".parse().unwrap(),
            frontend: Frontend {
                address,
                port,
                protocol: Protocol::Tcp,
            },
            task: "t1".parse().unwrap(),
            backend: "10.1.0.2:80".parse().unwrap(),
            age: Duration::from_secs(5),
            bytes_in: 10,
            bytes_out: 2000,
            packets_in: None,
            packets_out: None,
            plane: PlaneKind::Ebpf,
        })
        .unwrap();
        row["service"] = "web".into();
        row
    }

    #[test]
    fn flows_are_shown_as_the_planes_give_them() {
        let vip = FrontendAddress::Vip(NetworkName::ingress(), "10.1.0.9".parse().unwrap());
        let rows = [
            flow(FrontendAddress::Node, 8080),
            flow(FrontendAddress::Ip("::1".parse().unwrap()), 1),
            flow(vip, 0),
        ];
        let shown = flows(&rows);
        let lines: Vec<_> = shown
            .lines()
            .map(|l| l.split_whitespace().collect::<Vec<_>>())
            .collect();
        assert_eq!(
            lines[1],
            [
                "192.0.2.1:5",
                "*:8080/tcp",
                "web",
                "t1",
                "10.1.0.2:80",
                "ebpf",
                "5",
                "s",
                "10",
                "B",
                "2.0",
                "kB"
            ]
        );
        assert_eq!(
            (lines[2][1], lines[3][1]),
            ("[::1]:1/tcp", "10.1.0.9:*/tcp")
        );
    }
}
