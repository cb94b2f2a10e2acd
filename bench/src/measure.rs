//! What is measured, and one run of it.

use std::time::Duration;

use anyhow::{Context, Result};
use portolan_testbed::{output_within, wait_until};
use serde_json::Value;

use crate::{
    contender::Contender,
    cpu::busy_seconds,
    datagrams,
    layout::Layout,
    load::{self, Connections},
    results::Sample,
};

/// What a frontend is for: each kind of traffic has its own server in the task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Traffic {
    /// HTTP requests, to nginx.
    Http,
    /// Streams, to iperf3.
    Bulk,
    /// UDP, to a sink that counts.
    Datagrams,
}

impl Traffic {
    pub(crate) const ALL: [Self; 3] = [Self::Http, Self::Bulk, Self::Datagrams];

    /// Where the task serves it.
    pub(crate) fn task_port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Bulk => 5201,
            Self::Datagrams => 9000,
        }
    }

    /// The contenders' ports on the entry node follow this one.
    pub(crate) fn first_port(self) -> u16 {
        match self {
            Self::Http => 8080,
            Self::Bulk => 5210,
            Self::Datagrams => 9010,
        }
    }
}

/// One column of the comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Measure {
    /// iperf3.
    Throughput { streams: u8, download: bool },
    /// HTTP requests, so many clients asking one after the other.
    Requests {
        clients: u8,
        connections: Connections,
    },
    /// UDP of 64 bytes, as fast as one sender can.
    Datagrams,
}

impl Measure {
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        let throughput = [(1, false), (1, true), (8, false), (8, true)]
            .map(|(streams, download)| Self::Throughput { streams, download });
        let requests = [
            (1, Connections::Close),
            (64, Connections::Close),
            (1, Connections::Keep),
            (64, Connections::Keep),
        ]
        .map(|(clients, connections)| Self::Requests {
            clients,
            connections,
        });
        throughput
            .into_iter()
            .chain(requests)
            .chain([Self::Datagrams])
    }

    /// Its name in the results.
    pub(crate) fn name(self) -> String {
        match self {
            Self::Throughput { streams, download } => {
                let way = if download {
                    "task to client"
                } else {
                    "client to task"
                };
                format!("throughput, {streams} TCP, {way}")
            }
            Self::Requests {
                clients,
                connections,
            } => match connections {
                Connections::Close => format!("connections, {clients} at once"),
                Connections::Keep => format!("keep-alive requests, {clients} at once"),
            },
            Self::Datagrams => "datagrams of 64 bytes".to_owned(),
        }
    }

    /// What its value counts.
    pub(crate) fn unit(self) -> &'static str {
        match self {
            Self::Throughput { .. } => "Gbit/s",
            Self::Requests { .. } | Self::Datagrams => "1/s",
        }
    }

    pub(crate) fn traffic(self) -> Traffic {
        match self {
            Self::Throughput { .. } => Traffic::Bulk,
            Self::Requests { .. } => Traffic::Http,
            Self::Datagrams => Traffic::Datagrams,
        }
    }

    /// Runs it once.
    pub(crate) fn run(
        self,
        layout: &Layout,
        contender: Contender,
        time: Duration,
    ) -> Result<Sample> {
        let to = contender.frontend(layout, self.traffic());
        match self {
            Self::Throughput { streams, download } => throughput(
                layout,
                &to.ip().to_string(),
                to.port(),
                streams,
                download,
                time,
            ),
            Self::Requests {
                clients,
                connections,
            } => {
                let before = busy_seconds()?;
                let load = load::run(layout.client(), to, clients, connections, time)?;
                let cpu = busy_seconds()? - before;
                Ok(load.sample(time, cpu))
            }
            Self::Datagrams => {
                let sink = &layout.server(contender).sink;
                let before = busy_seconds()?;
                let flood = datagrams::flood(layout.client(), to, sink, time)?;
                let cpu = busy_seconds()? - before;
                Ok(flood.sample(time, cpu))
            }
        }
    }
}

fn throughput(
    layout: &Layout,
    host: &str,
    port: u16,
    streams: u8,
    download: bool,
    time: Duration,
) -> Result<Sample> {
    let (port, streams) = (port.to_string(), streams.to_string());
    let seconds = time.as_secs().to_string();
    // The server may be busy yet with the end of the run before.
    wait_until(Duration::from_secs(10), "iperf3 ran", || {
        let mut command = layout.client().command("iperf3");
        command
            .args(["--client", host, "--port", &port, "--time", &seconds])
            .args([
                "--parallel",
                &streams,
                "--json",
                "--connect-timeout",
                "3000",
            ]);
        if download {
            command.arg("--reverse");
        }
        let before = busy_seconds()?;
        let output = output_within(&mut command, time + Duration::from_secs(15))?.success()?;
        let cpu = busy_seconds()? - before;
        let report: Value = serde_json::from_str(&output.stdout)?;
        let part = |name: &str| {
            let figure = report.pointer(&format!("/end/sum_received/{name}"));
            figure
                .and_then(Value::as_f64)
                .context("no figures of iperf3")
        };
        let (bytes, rate) = (part("bytes")?, part("bits_per_second")?);
        Ok(Some(Sample {
            value: rate / 1e9,
            cpu: cpu / (bytes / 1e9),
            ..Sample::default()
        }))
    })
}
