//! Policies of services on the fast path, as the agent keeps them.

use std::{
    io::{ErrorKind, Read, Write},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use portolan_e2e::{
    Cluster, Options, Plane,
    stream::{both_ends, connect, listen},
};
use portolan_testbed::wait_until;

/// A service `raw` with these options on n2, its task being the test itself, reached by n1.
fn started(
    prefix: &str,
    options: &str,
) -> Result<(Cluster, std::net::TcpListener, portolan_e2e::Task)> {
    let cluster = Cluster::start(prefix, Options::nodes(2).plane(Plane::Ebpf))?;
    let stack =
        format!("services:\n  raw:\n    ports: ['9000:90']\n    x-portolan: {{{options}}}\n");
    cluster.apply(0, &stack)?;
    let netns = cluster.lab.task("r1")?;
    let listener = listen(&netns, 90)?;
    let task = cluster.add_task(netns, 1, "raw")?;
    cluster.wait_served("raw", 1)?;
    Ok((cluster, listener, task))
}

#[test]
fn an_idle_connection_is_reset_at_both_ends_and_counted() -> Result<()> {
    let (cluster, listener, _task) = started("fp-idle", "idle_timeout: 800ms")?;
    let (mut client, mut task) = both_ends(&cluster.client, cluster.node(0).at(9000), &listener)?;
    client.write_all(b"ping")?;
    task.read_exact(&mut [0; 4])?;
    ensure!(
        task.peer_addr()?.ip() == cluster.client.ipv4(),
        "not by the fast path"
    );
    for (end, stream) in [("client", &mut client), ("task", &mut task)] {
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        let error = stream
            .read(&mut [0])
            .err()
            .with_context(|| format!("{end}: no error"))?;
        ensure!(error.kind() == ErrorKind::ConnectionReset, "{end}: {error}");
    }
    wait_until(Duration::from_secs(5), "it is counted", || {
        let labels = ["plane=\"ebpf\"", "service=\"raw\""];
        let count = cluster.metric(0, "portolan_plane_idle_timeouts_total", &labels)?;
        Ok((count >= 1.0).then_some(()))
    })
}

#[test]
fn a_client_who_is_not_on_the_list_is_refused_and_counted() -> Result<()> {
    let (cluster, _listener, _task) = started("fp-list", "allow: [192.0.2.0/24]")?;
    let to = cluster.node(0).at(9000);
    let refused = connect(&cluster.client, to).and_then(|mut stream| Ok(stream.read(&mut [0])?));
    ensure!(refused.is_err(), "served");
    let counted = cluster.fast_path_counters(0)?;
    ensure!(
        counted.get("to_relay_not_allowed").is_some_and(|n| *n > 0),
        "{counted:?}"
    );
    let labels = ["plane=\"relay\"", "reason=\"not_allowed\""];
    wait_until(Duration::from_secs(5), "it is counted", || {
        let count = cluster.metric(0, "portolan_plane_refused_total", &labels)?;
        Ok((count >= 1.0).then_some(()))
    })
}
