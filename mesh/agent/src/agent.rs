//! The running agent: every part put together, and taken down in order.
//!
//! Parts talk through channels that hold the latest state: gossip and users reach the runner, which is the
//! only one to write the catalog; planes, overlay, DNS and pages follow its snapshots. A part that ends
//! takes the agent down, with the reason.

mod admin;
mod askers;
mod bpf_fs;
mod cgroup;
mod command;
mod docker;
mod driver;
mod fast_path;
mod health;
mod heard;
mod http;
mod join;
mod metrics;
mod node;
mod overlay_thread;
mod plane_thread;
mod runner;
mod shared;
mod state;
mod supervise;
mod swarm_mesh;
mod trace;
mod views;

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::Context;
use portolan_dns::{DnsConfig, DnsServer, Upstreams};
use portolan_gossip::{Gossip, Keyring, Limits, Timing};
use portolan_model::{NodeId, PlaneChoice, Snapshot};
use portolan_relay::{Relay, RelayConfig};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use node::{Identity, Node};
use runner::{Reasons, Runner, Wires};
use shared::Shared;
use state::StateDir;
pub use supervise::End;
use supervise::Parts;

/// The version of this build.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Runs the agent until it is told to stop: by SIGTERM, SIGINT or `portolan leave` for good, by SIGQUIT or SIGHUP
/// for another that follows.
///
/// # Errors
/// It could not start, or one of its parts died.
pub async fn run(config: Config) -> anyhow::Result<End> {
    let config = Arc::new(config);
    let open_files = portolan_relay::raise_open_files().unwrap_or_else(|error| {
        tracing::warn!(%error, "the limit of open files stays as it is");
        u64::MAX
    });
    let state_dir = StateDir::open(&config.state_dir)?;
    let _exclusive = state_dir.lock()?;
    let state = state_dir.load()?;
    let admin = admin::bind(&config.socket)?;
    let pages = tokio::net::TcpListener::bind(config.http)
        .await
        .with_context(|| {
            format!(
                "http: cannot listen on {}; give another one with --http",
                config.http
            )
        })?;
    let keyring = config.key_file.as_deref().map(Keyring::load).transpose()?;
    let gossip_addr = SocketAddr::new(config.advertise, config.gossip_port);
    let (seeds, unresolved) = join::look_up(&config.join).await;
    let (gossip, driver) = Gossip::start(portolan_gossip::Config {
        node: NodeId::of_name(&config.name),
        name: config.name.clone(),
        bind: gossip_addr,
        advertise: gossip_addr,
        cluster: config.cluster.clone(),
        join: seeds.into_iter().collect(),
        keyring,
        state_dir: config.state_dir.join("gossip"),
        limits: Limits::default(),
        timing: Timing::default(),
    })
    .await?;
    let identity = Identity {
        id: NodeId::of_name(&config.name),
        name: config.name.clone(),
        underlay: config.advertise,
        version: VERSION.to_owned(),
    };
    let node = Node::new(identity, state);
    let empty = Arc::new(Snapshot::empty(NodeId::of_name(&config.name)));
    let (overlay, overlay_thread) = overlay_thread::start(overlay_config(&config))?;
    let relay_config = RelayConfig {
        tcp_connections: config.max_connections,
        ..RelayConfig::default()
    }
    .within(open_files);
    if relay_config.tcp_connections < config.max_connections {
        tracing::warn!(
            open_files,
            connections = relay_config.tcp_connections,
            "fewer connections than max_connections; raise the limit of open files (LimitNOFILE)"
        );
    }
    let relay = Relay::new(relay_config, tokio::runtime::Handle::current());
    let (plane, plane_thread) = plane_thread::start(
        Arc::clone(&config),
        relay,
        Arc::clone(&empty),
        overlay.standing(),
    );
    let dns = Arc::new(DnsServer::new(dns_config(&config))?);
    let (commands, command_inbox) = mpsc::channel(64);
    let (leave, leave_inbox) = mpsc::channel(4);
    let (snapshot_sender, snapshots) = watch::channel(empty);
    let (reason_sender, reasons) = watch::channel(Reasons::default());
    let (beat_sender, beat) = watch::channel(());
    let (docker_watcher, docker) = docker::watcher(&config).unzip();
    let shared = Shared {
        config: Arc::clone(&config),
        gossip: gossip.clone(),
        snapshots: snapshots.clone(),
        reasons,
        overlay: overlay.clone(),
        plane: plane.clone(),
        dns: Arc::clone(&dns),
        commands,
        leave,
        started: Instant::now(),
        beat: beat.clone(),
        docker: docker.clone(),
        tracing: trace::Tracing::default(),
    };
    let wires = Wires {
        commands: command_inbox,
        snapshots: snapshot_sender,
        docker: docker.clone(),
        reasons: reason_sender,
        beat: beat_sender,
    };
    let left_at_work = config.plane != PlaneChoice::Relay && fast_path::at_work(&config.bpf_dir);
    let mut runner = Runner::new(
        node,
        state_dir,
        gossip.clone(),
        overlay.clone(),
        plane.clone(),
        left_at_work,
        wires,
    );
    runner.take_stack_files(&config.stacks)?;

    tracing::info!(node = config.name, advertise = %config.advertise, version = VERSION, "portolan starts");
    let ends = CancellationToken::new();
    let mut parts = Parts::new(ends.clone());
    parts.add("gossip", {
        let ends = ends.clone();
        async move { Ok(driver.run(ends).await?) }
    });
    parts.add(
        "joining",
        join::follow(gossip.clone(), unresolved, ends.clone()),
    );
    parts.add(
        "Docker",
        docker::follow(
            docker_watcher,
            docker,
            gossip.clone(),
            config.gossip_port,
            ends.clone(),
        ),
    );
    parts.add("the runner", runner.run());
    parts.add(
        "the admin API",
        admin::serve(shared.clone(), admin, ends.clone()),
    );
    parts.add(
        "the pages",
        http::serve(shared.clone(), pages, ends.clone()),
    );
    parts.add("DNS", {
        let (ends, snapshots) = (ends.clone(), snapshots.clone());
        async move { Ok(dns.run(snapshots, ends).await?) }
    });
    parts.add(
        "who asks for names",
        askers::follow(Arc::clone(&shared.dns), overlay.standing(), ends.clone()),
    );
    parts.add(
        "the planes",
        plane_thread::follow(plane.clone(), snapshots, overlay.standing()),
    );
    parts.add(
        "systemd",
        supervise::notify(shared.clone(), beat, ends.clone()),
    );
    let ended = parts.run_until_told(shared, leave_inbox).await;
    drop((overlay, plane));
    let joined =
        tokio::task::spawn_blocking(move || (overlay_thread.join(), plane_thread.join())).await;
    if joined.is_err() {
        tracing::warn!("a thread of the agent had died");
    }
    ended
}

/// Removes everything of ours from the kernel and the disk, while no agent runs. All of it is tried.
///
/// # Errors
/// What could not be removed.
pub fn clean(config: &Config) -> Result<(), Vec<String>> {
    let mut errors = Vec::new();
    match portolan_overlay::Overlay::open(overlay_config(config)) {
        Ok(mut overlay) => {
            if let Err(failed) = overlay.clean() {
                errors.extend(failed.iter().map(|e| with_causes(e)));
            }
        }
        Err(error) => errors.push(with_causes(&error)),
    }
    if let Err(error) = Relay::clean() {
        errors.push(with_causes(&error));
    }
    errors.extend(fast_path::clean(&config.bpf_dir).err());
    if let Err(error) = StateDir::remove(&config.state_dir) {
        errors.push(with_causes(&error));
    }
    if errors.is_empty() {
        Ok(())
    } else {
        Err(errors)
    }
}

fn overlay_config(config: &Config) -> portolan_overlay::Config {
    portolan_overlay::Config {
        underlay: config.advertise,
        data_path_port: config.data_path_port,
        node_address: config.dns_address,
    }
}

fn dns_config(config: &Config) -> DnsConfig {
    let upstreams = if config.dns_upstream.is_empty() {
        Upstreams::default()
    } else {
        Upstreams::Explicit(config.dns_upstream.clone())
    };
    DnsConfig {
        port: config.dns_port,
        node_address: config.dns_address,
        upstreams,
        ..DnsConfig::default()
    }
}

/// Now, in milliseconds since the Unix epoch.
fn now_ms() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// An error and its causes in one line.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
