//! The fast path and many clients: each is seen as itself, and each flow keeps its task.

use std::{collections::BTreeMap, net::SocketAddr, ops::Range, panic::resume_unwind, thread};

use anyhow::{Context, Result, ensure};
use portolan_e2e::{
    Cluster, Options, Plane, Task,
    answers::{Answers, seen_as_they_are},
    stream::{PacedStream, echo_server},
};
use portolan_testbed::{Asked, Protocol, UdpClients, UdpWho, ask_from};

/// A cluster of three nodes and a task on each.
fn started(prefix: &str, ports: &str) -> Result<(Cluster, Vec<Task>)> {
    let mut cluster = Cluster::start(prefix, Options::nodes(3).plane(Plane::Ebpf))?;
    cluster.apply(0, &format!("services: {{web: {{ports: [{ports}]}}}}\n"))?;
    let tasks = (0..3)
        .map(|node| cluster.whoami(&format!("a{}", node + 1), node, "web"))
        .collect::<Result<_>>()?;
    cluster.wait_served("web", 3)?;
    Ok((cluster, tasks))
}

/// So many clients on the client's machine, of as many addresses as a node of a few thousand ports needs.
fn clients(cluster: &Cluster, addresses: u16, ports: u16) -> Result<Vec<SocketAddr>> {
    let nodes = (0..cluster.len()).map(|i| cluster.node(i));
    let addresses = cluster.client.add_clients(addresses, nodes)?;
    let all = addresses
        .into_iter()
        .flat_map(|ip| (0..ports).map(move |port| (ip, 20_000 + port).into()));
    Ok(all.collect())
}

/// The tasks take turns, whatever the number is divided by: none has more than one answer more than another.
fn is_fair(answers: &Answers, tasks: usize) -> bool {
    let (least, most) = (answers.values().min(), answers.values().max());
    answers.len() == tasks
        && most
            .zip(least)
            .is_some_and(|(most, least)| most - least <= 1)
}

#[test]
fn a_thousand_clients_through_every_node_at_once_are_seen_as_themselves() -> Result<()> {
    let (cluster, _tasks) = started("thousand", "'8080:80', '8080:80/udp'")?;
    let clients: Vec<SocketAddr> = clients(&cluster, 1000, 1)?;
    // Any port: the same one through two nodes at once would be one connection to the task.
    let clients: Vec<_> = clients.iter().map(|at| (at.ip(), 0).into()).collect();
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        let by_node = thread::scope(|scope| {
            let ask = |node| ask_from(&cluster.client, &clients, node, protocol);
            let nodes: Vec<_> = (0..3).map(|i| cluster.node(i).at(8080)).collect();
            let threads: Vec<_> = nodes
                .into_iter()
                .map(|to| scope.spawn(move || ask(to)))
                .collect();
            let joined = threads
                .into_iter()
                .map(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic)));
            joined.collect::<Result<Vec<Vec<Asked>>>>()
        })?;
        for asked in by_node {
            ensure!(asked.len() == clients.len(), "{} answers", asked.len());
            let seen = seen_as_they_are(&asked)?;
            ensure!(is_fair(&seen, 3), "{protocol}: {seen:?}");
        }
    }
    Ok(())
}

/// Which task each flow has, if no datagram was lost and all see their clients as they are.
fn asked_once(asked: &[Asked]) -> Result<BTreeMap<(SocketAddr, SocketAddr), String>> {
    seen_as_they_are(asked)?;
    let lost = asked.iter().filter(|one| one.repeats > 0).count();
    ensure!(lost == 0, "{lost} datagrams were lost");
    let task = |asked: &Asked| asked.answer.lines().next().unwrap_or_default().to_owned();
    Ok(asked
        .iter()
        .map(|one| ((one.client, one.to), task(one)))
        .collect())
}

/// Three nodes, and on each a task that answers on twelve ports; how to ask for each of them at the first node.
struct ManyPorts {
    targets: Vec<SocketAddr>,
    _servers: Vec<UdpWho>,
    _tasks: Vec<Task>,
    cluster: Cluster,
}

impl ManyPorts {
    fn start(prefix: &str, args: &[&str]) -> Result<Self> {
        const PORTS: Range<u16> = 1..13;
        let options = Options::nodes(3).plane(Plane::Ebpf).args(args);
        let cluster = Cluster::start(prefix, options)?;
        // Each to a port of its own: two published ports of one client's would be one flow to the task.
        let published: Vec<_> = PORTS
            .map(|i| format!("'{}:{}/udp'", 9000 + i, 80 + i))
            .collect();
        let stack = format!("services: {{web: {{ports: [{}]}}}}\n", published.join(", "));
        cluster.apply(0, &stack)?;
        let (mut servers, mut tasks) = (Vec::new(), Vec::new());
        for node in 0..3 {
            let label = format!("a{}", node + 1);
            let netns = cluster.lab.task(&label)?;
            servers.push(UdpWho::start(&netns, &label, PORTS.map(|i| 80 + i))?);
            tasks.push(cluster.add_task(netns, node, "web")?);
        }
        cluster.wait_served("web", 3)?;
        Ok(Self {
            targets: PORTS.map(|i| cluster.node(0).at(9000 + i)).collect(),
            _servers: servers,
            _tasks: tasks,
            cluster,
        })
    }

    /// What the nodes have counted, for messages.
    fn counted(&self) -> String {
        let counters = (0..3).map(|node| self.cluster.fast_path_counters(node));
        format!("{:?}", counters.collect::<Vec<_>>())
    }
}

#[test]
fn a_hundred_thousand_flows_through_one_node_each_keep_their_task() -> Result<()> {
    let many = ManyPorts::start("flows", &[])?;
    let sockets = clients(&many.cluster, 1000, 9)?;
    let sockets: Vec<_> = sockets.into_iter().take(8400).collect();
    let sockets = UdpClients::bind(&many.cluster.client, &sockets)?;
    let ask = || asked_once(&sockets.ask(&many.targets).with_context(|| many.counted())?);
    let first = ask()?;
    ensure!(first.len() == 100_800, "{} flows", first.len());
    // All are known still: none was forgotten for another.
    let again = ask()?;
    let moved = first
        .iter()
        .filter(|(flow, task)| again.get(flow) != Some(task))
        .count();
    ensure!(
        moved == 0,
        "{moved} flows have another task than before: {}",
        many.counted()
    );
    Ok(())
}

#[test]
fn a_full_table_leaves_no_client_unanswered_and_forgets_no_busy_connection() -> Result<()> {
    let many = ManyPorts::start("full", &["--fast-path-flows", "4096"])?;
    let cluster = &many.cluster;
    cluster.apply(0, "services: {echo: {ports: ['9100:90']}}\n")?;
    let netns = cluster.lab.task("e1")?;
    let _echo = echo_server(&netns, 90)?;
    let _task = cluster.add_task(netns, 1, "echo")?;
    cluster.wait_served("echo", 1)?;
    let stream = PacedStream::start(&cluster.client, cluster.node(0).at(9100))?;
    let sockets = UdpClients::bind(&cluster.client, &clients(cluster, 1000, 1)?)?;
    // 12,000 flows of two entries each, where there are 4,096 at a time. A flow may be forgotten before its answer is
    // there; its next datagram begins it anew.
    let asked = sockets.ask(&many.targets).with_context(|| many.counted())?;
    seen_as_they_are(&asked).with_context(|| many.counted())?;
    stream.goes_on(20).with_context(|| many.counted())?;
    stream.stop().with_context(|| many.counted())?;
    Ok(())
}
