//! Starting an agent inside this process, and speaking HTTP with it.

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    os::unix::{fs::PermissionsExt, net::UnixStream},
    path::PathBuf,
    sync::Arc,
    thread::JoinHandle,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use portolan_agent::config::{Config, DockerChoice, LogFormat};
use portolan_model::PlaneChoice;
use portolan_testbed::{Lab, Node, wait_until};
use serde_json::{Value, json};

/// How long anything may take that only has to happen at some time.
pub(crate) const PATIENCE: Duration = Duration::from_secs(15);
const HTTP: ([u8; 4], u16) = ([127, 0, 0, 1], 7947);

/// An agent that runs, alone in its cluster.
pub(crate) struct Agent {
    thread: Option<JoinHandle<Result<()>>>,
    config: Config,
    pub(crate) node: Arc<Node>,
    pub(crate) lab: Lab,
}

/// What it answered.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Answer {
    /// The body, of an answer that is no refusal.
    pub(crate) fn ok(&self) -> Result<Value> {
        ensure!(self.status == 200, "{} {}", self.status, self.body);
        Ok(serde_json::from_str(&self.body)?)
    }

    /// The errors, of a refusal with this status.
    pub(crate) fn refused(&self, status: u16) -> Result<String> {
        ensure!(
            self.status == status,
            "not {status} but {} {}",
            self.status,
            self.body
        );
        let body: Value = serde_json::from_str(&self.body)?;
        let errors = body
            .get("errors")
            .and_then(Value::as_array)
            .context("no errors")?;
        let lines: Option<Vec<&str>> = errors.iter().map(Value::as_str).collect();
        let lines = lines.context("errors are no text")?;
        ensure!(
            !lines.is_empty() && body.as_object().is_some_and(|o| o.len() == 1),
            "{body}"
        );
        Ok(lines.join("\n"))
    }
}

impl Agent {
    /// Starts one and waits until it is ready.
    pub(crate) fn start() -> Result<Self> {
        let agent = Self::start_with(|_, _| Ok(()))?;
        agent.ready()?;
        Ok(agent)
    }

    /// Starts one with another configuration.
    pub(crate) fn start_with(
        change: impl FnOnce(&Node, &mut Config) -> Result<()>,
    ) -> Result<Self> {
        let lab = Lab::unique("agent")?;
        let node = Arc::new(lab.node("n1")?);
        let mut config = Config {
            name: "n1".to_owned(),
            advertise: node.ipv4().into(),
            gossip_port: 7946,
            join: Vec::new(),
            key_file: None,
            insecure: true,
            cluster: "portolan".to_owned(),
            state_dir: node.dir().join("state"),
            socket: node.dir().join("run/agent.sock"),
            http: HTTP.into(),
            data_path_port: 4789,
            stacks: Vec::new(),
            docker: DockerChoice::Off,
            plane: PlaneChoice::Auto,
            fast_path_flows: 4096,
            bpf_dir: node.dir().join("bpf"),
            dns_upstream: Vec::new(),
            dns_port: 53,
            dns_address: None,
            log_format: LogFormat::Text,
            log: "info".to_owned(),
            max_connections: 1000,
        };
        change(&node, &mut config)?;
        Ok(Self {
            thread: Some(run(&node, &config)),
            config,
            node,
            lab,
        })
    }

    /// Waits until it is ready.
    pub(crate) fn ready(&self) -> Result<()> {
        wait_until(PATIENCE, "the agent is ready", || {
            let answer = self.get("/readyz")?;
            ensure!(answer.status == 200, "{}", answer.body);
            Ok(Some(()))
        })
    }

    /// Has it leave with what it made left in the kernel, and starts it again as one that remembers nothing.
    pub(crate) fn begin_anew(&mut self) -> Result<()> {
        self.end(false)?;
        fs::remove_dir_all(&self.config.state_dir)?;
        self.thread = Some(run(&self.node, &self.config));
        self.ready()
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.node.dir().join("run/agent.sock")
    }

    /// Asks the admin API.
    pub(crate) fn ask(&self, method: &str, path: &str, body: &Value) -> Result<Answer> {
        let body = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        let stream = UnixStream::connect(self.socket())?;
        stream.set_read_timeout(Some(PATIENCE))?;
        exchange(stream, &request(method, path, &body))
            .with_context(|| format!("{method} {path} {body}"))
    }

    /// Asks the pages.
    pub(crate) fn get(&self, path: &str) -> Result<Answer> {
        self.send(&request("GET", path, ""))
    }

    /// Sends the pages these bytes.
    pub(crate) fn send(&self, request: &str) -> Result<Answer> {
        let stream = self
            .node
            .enter(|| Ok(TcpStream::connect(SocketAddr::from(HTTP))?))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        exchange(stream, request)
    }

    /// Has it leave, with all that it has made, and waits for its end.
    pub(crate) fn leave(mut self) -> Result<()> {
        self.end(true)
    }

    fn end(&mut self, clean: bool) -> Result<()> {
        let answer = self.ask("POST", "/v1/leave", &json!({ "clean": clean }))?;
        ensure!(answer.ok()? == json!({}), "{}", answer.body);
        let thread = self.thread.take().context("it has ended")?;
        thread
            .join()
            .map_err(|_| anyhow::anyhow!("the agent panicked"))?
    }
}

fn run(node: &Arc<Node>, config: &Config) -> JoinHandle<Result<()>> {
    let (inside, config) = (Arc::clone(node), config.clone());
    std::thread::spawn(move || {
        // The threads of the runtime, and those of the agent, are made inside and so belong there.
        inside.enter(|| {
            tokio::runtime::Runtime::new()?
                .block_on(portolan_agent::agent::run(config))
                .map(drop)
        })
    })
}

/// Writes a gossip key that only its owner may read.
pub(crate) fn write_key(path: &PathBuf, digits: &str) -> Result<()> {
    fs::write(path, digits.repeat(32))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(())
}

pub(crate) fn request(method: &str, path: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "{method} {path} HTTP/1.1\r\nHost: n1\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
    )
}

fn exchange(mut stream: impl Read + Write, request: &str) -> Result<Answer> {
    // An agent that refuses a request before its end closes the connection: what it says comes all the same.
    let sent = stream.write_all(request.as_bytes());
    let mut text = Vec::new();
    let received = stream.read_to_end(&mut text);
    let text = String::from_utf8(text)?;
    let Some((head, body)) = text.split_once("\r\n\r\n") else {
        sent?;
        received?;
        anyhow::bail!("no answer but {text:?}");
    };
    let status = head.split(' ').nth(1).context("no status")?.parse()?;
    Ok(Answer {
        status,
        head: head.to_ascii_lowercase(),
        body: body.to_owned(),
    })
}
