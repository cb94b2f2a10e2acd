//! Health checks of this node's tasks: a probe at an interval, `rise` successes to be healthy, `fall`
//! failures not to be. A container of which nobody says when it is ready is tried until it listens.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use portolan_model::{
    HealthCheck, HealthProbe, INGRESS_NETWORK, Protocol, ProxyProtocol, Service, TaskId,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::mpsc,
    task::{AbortHandle, JoinSet},
    time::{Instant, timeout},
};

use super::{node::Node, state::LocalTask};

/// The longest status line that is read.
const STATUS_LINE: u64 = 512;
/// How soon a task that did not accept a connection is tried again, and how long it may take.
const LISTENS_AGAIN: Duration = Duration::from_millis(50);
const LISTENS_PATIENCE: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Target {
    address: IpAddr,
    question: Question,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Question {
    /// Whether it is healthy, again and again.
    Healthy {
        port: u16,
        check: HealthCheck,
        /// What the task expects before the request.
        proxy_protocol: Option<ProxyProtocol>,
    },
    /// Whether it accepts connections at one of these ports, until it does.
    Listening(Vec<u16>),
}

/// The checks that run.
#[derive(Debug)]
pub(super) struct HealthChecks {
    running: BTreeMap<TaskId, (Target, AbortHandle)>,
    /// Owns the checks, so that they end with it.
    checks: JoinSet<()>,
    report: mpsc::Sender<(TaskId, bool)>,
    found: mpsc::Receiver<(TaskId, bool)>,
}

impl HealthChecks {
    /// No checks yet.
    pub(super) fn new() -> Self {
        let (report, found) = mpsc::channel(64);
        Self {
            running: BTreeMap::new(),
            checks: JoinSet::new(),
            report,
            found,
        }
    }

    /// Checks exactly the tasks of this node whose services ask for it, and those of which nobody else says when
    /// they are ready.
    pub(super) fn set(&mut self, node: &Node) {
        let tasks = node.state().tasks.values();
        // Before it is attached a failure would say nothing of the task.
        let attached = tasks.filter(|task| node.is_attached(&task.id));
        let wanted: BTreeMap<TaskId, Target> = attached
            .filter_map(|task| Some((task.id.clone(), target(node, task)?)))
            .collect();
        self.running.retain(|id, (target, check)| {
            let stays = wanted.get(id) == Some(target);
            if !stays {
                check.abort();
            }
            stays
        });
        for (id, target) in wanted {
            if !self.running.contains_key(&id) {
                let found = self.report.clone();
                let check = self.checks.spawn(ask(id.clone(), target.clone(), found));
                self.running.insert(id, (target, check));
            }
        }
        while self.checks.try_join_next().is_some() {}
    }

    /// The next change of a task's health.
    pub(super) async fn next(&mut self) -> (TaskId, bool) {
        match self.found.recv().await {
            Some(found) => found,
            // Not reached: this side holds a sender.
            None => std::future::pending().await,
        }
    }
}

fn target(node: &Node, task: &LocalTask) -> Option<Target> {
    let service = &node
        .snapshot()
        .services
        .get(task.service.as_ref()?)?
        .service;
    let mut endpoints = task.endpoints.iter();
    let endpoint = endpoints
        .find(|e| e.network.as_str() == INGRESS_NETWORK)
        .or_else(|| task.endpoints.first())?;
    let question = match &service.health {
        Some(check) => Question::Healthy {
            port: port(service, &check.probe)?,
            proxy_protocol: proxy_protocol(service, &check.probe),
            check: check.clone(),
        },
        None => {
            Question::Listening(Some(node.awaited_ports(task)).filter(|ports| !ports.is_empty())?)
        }
    };
    Some(Target {
        address: endpoint.ip,
        question,
    })
}

/// The port to be asked: the probe's own, or the first TCP port that the service publishes.
fn port(service: &Service, probe: &HealthProbe) -> Option<u16> {
    let (HealthProbe::Tcp { port } | HealthProbe::Http { port, .. }) = probe;
    match port {
        0 => service
            .ports
            .iter()
            .find(|p| p.protocol == Protocol::Tcp)
            .map(|p| p.target),
        port => Some(*port),
    }
}

/// The PROXY protocol that the port to be asked speaks. One that takes none of the service's traffic, such
/// as a port for checks alone, is taken to speak none.
fn proxy_protocol(service: &Service, probe: &HealthProbe) -> Option<ProxyProtocol> {
    let asked = port(service, probe)?;
    let mut ports = service.ports.iter();
    let served = ports.any(|p| {
        p.protocol == Protocol::Tcp && (p.target..p.target.saturating_add(p.count)).contains(&asked)
    });
    service.proxy_protocol.filter(|_| served)
}

/// The header of a connection that carries no one else's: UNKNOWN of version 1, LOCAL of version 2.
/// See <https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt>, section 2.
fn own_connection(version: ProxyProtocol) -> &'static [u8] {
    match version {
        ProxyProtocol::V1 => b"PROXY UNKNOWN\r\n",
        ProxyProtocol::V2 => b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0",
    }
}

/// Asks one task for as long as it runs, or until it has answered, and reports each change.
async fn ask(id: TaskId, target: Target, found: mpsc::Sender<(TaskId, bool)>) {
    match target.question {
        Question::Healthy {
            port,
            check,
            proxy_protocol,
        } => {
            let address = SocketAddr::new(target.address, port);
            watch(id, address, check, proxy_protocol, found).await;
        }
        Question::Listening(ports) => {
            while !accepts(target.address, &ports).await {
                tokio::time::sleep(LISTENS_AGAIN).await;
            }
            // The runner may have ended; then nobody wants to know.
            drop(found.send((id, true)).await);
        }
    }
}

async fn accepts(address: IpAddr, ports: &[u16]) -> bool {
    for port in ports {
        let connect = TcpStream::connect((address, *port));
        if matches!(timeout(LISTENS_PATIENCE, connect).await, Ok(Ok(_))) {
            return true;
        }
    }
    false
}

async fn watch(
    id: TaskId,
    address: SocketAddr,
    check: HealthCheck,
    proxy_protocol: Option<ProxyProtocol>,
    found: mpsc::Sender<(TaskId, bool)>,
) {
    let interval = Duration::from_millis(u64::from(check.interval_ms.max(10)));
    let patience = Duration::from_millis(u64::from(check.timeout_ms.max(1)));
    let (mut healthy, mut run) = (None, (false, 0_u8));
    let mut at = Instant::now();
    loop {
        let probe = probe(address, &check.probe, proxy_protocol);
        let passed = matches!(timeout(patience, probe).await, Ok(Ok(true)));
        run = if run.0 == passed {
            (passed, run.1.saturating_add(1))
        } else {
            (passed, 1)
        };
        let enough = if passed { check.rise } else { check.fall };
        if run.1 >= enough.max(1) && healthy != Some(passed) {
            healthy = Some(passed);
            if found.send((id.clone(), passed)).await.is_err() {
                return;
            }
        }
        at = (at + interval).max(Instant::now());
        tokio::time::sleep_until(at).await;
    }
}

/// Whether the task answers as it should.
async fn probe(
    address: SocketAddr,
    probe: &HealthProbe,
    proxy_protocol: Option<ProxyProtocol>,
) -> std::io::Result<bool> {
    let mut stream = TcpStream::connect(address).await?;
    let HealthProbe::Http { path, status, .. } = probe else {
        return Ok(true);
    };
    if let Some(version) = proxy_protocol {
        stream.write_all(own_connection(version)).await?;
    }
    let host = match address.ip() {
        IpAddr::V6(ip) => format!("[{ip}]"),
        IpAddr::V4(ip) => ip.to_string(),
    };
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {host}:{}\r\nUser-Agent: portolan\r\nConnection: close\r\n\r\n",
        address.port()
    );
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    let mut limited = stream.take(STATUS_LINE);
    while !answer.contains(&b'\n') {
        if limited.read_buf(&mut answer).await? == 0 {
            break;
        }
    }
    Ok(status_of(&answer).is_some_and(|found| match status {
        0 => (200..400).contains(&found),
        wanted => found == *wanted,
    }))
}

/// The status code of an HTTP/1 response.
fn status_of(answer: &[u8]) -> Option<u16> {
    let line = answer.split(|byte| *byte == b'\n').next()?;
    let line = str::from_utf8(line).ok()?.strip_prefix("HTTP/1.")?;
    line.split(' ').nth(1)?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use portolan_model::PublishedPort;
    use tokio::net::TcpListener;

    use super::*;

    #[test]
    fn the_status_is_read_from_the_first_line() {
        assert_eq!(status_of(b"HTTP/1.1 204 No Content\r\n\r\n"), Some(204));
        assert_eq!(status_of(b"HTTP/1.0 503\r\n"), Some(503));
        assert_eq!(status_of(b"SSH-2.0-x\r\n"), None);
        assert_eq!(status_of(b""), None);
    }

    #[tokio::test]
    async fn a_task_is_healthy_after_rise_and_not_after_fall() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let check = HealthCheck {
            probe: HealthProbe::Http {
                port: address.port(),
                path: "/".into(),
                status: 200,
            },
            interval_ms: 10,
            timeout_ms: 500,
            rise: 2,
            fall: 3,
        };
        let (found, mut news) = mpsc::channel(8);
        let id: TaskId = "t1".parse().unwrap();
        let mut checks = JoinSet::new();
        checks.spawn(watch(id.clone(), address, check, None, found));
        let mut asked = 0;
        let mut answer = async |text: &str| {
            let (mut stream, _) = listener.accept().await.unwrap();
            asked += 1;
            let mut request = [0; 256];
            let n = stream.read(&mut request).await.unwrap();
            assert!(request[..n].starts_with(b"GET / HTTP/1.1\r\n"));
            stream.write_all(text.as_bytes()).await.unwrap();
        };
        answer("HTTP/1.1 200 OK\r\n\r\n").await;
        answer("HTTP/1.1 200 OK\r\n\r\n").await;
        assert_eq!(news.recv().await, Some((id.clone(), true)));
        for _ in 0..2 {
            answer("HTTP/1.1 500 No\r\n\r\n").await;
        }
        answer("HTTP/1.1 200 OK\r\n\r\n").await;
        for _ in 0..3 {
            answer("HTTP/1.1 500 No\r\n\r\n").await;
        }
        assert_eq!(news.recv().await, Some((id, false)));
        assert_eq!(asked, 8);
    }

    #[tokio::test]
    async fn a_port_that_expects_the_proxy_protocol_is_told_of_no_client() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let check = HealthCheck {
            probe: HealthProbe::Http {
                port: address.port(),
                path: "/".into(),
                status: 200,
            },
            interval_ms: 10,
            timeout_ms: 500,
            rise: 1,
            fall: 1,
        };
        let mut service = Service::new("web".parse().unwrap());
        service.proxy_protocol = Some(ProxyProtocol::V2);
        assert_eq!(proxy_protocol(&service, &check.probe), None);
        service.ports = vec![PublishedPort::new(8080, address.port(), Protocol::Tcp)];
        for (version, header) in [
            (ProxyProtocol::V1, &b"PROXY UNKNOWN\r\nGET /"[..]),
            (
                ProxyProtocol::V2,
                b"\x0D\x0A\x0D\x0A\x00\x0D\x0AQUIT\x0A\x20\x00\x00\x00GET /",
            ),
        ] {
            service.proxy_protocol = Some(version);
            let expected = proxy_protocol(&service, &check.probe);
            let task = async {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut begin = vec![0; header.len()];
                stream.read_exact(&mut begin).await.unwrap();
                assert_eq!(begin, header);
                stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
            };
            let (passed, ()) = tokio::join!(probe(address, &check.probe, expected), task);
            assert!(passed.unwrap());
        }
    }
}
