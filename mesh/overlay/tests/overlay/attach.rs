//! Attaching and detaching.

use std::{net::UdpSocket, time::Duration};

use anyhow::{Result, ensure};
use portolan_overlay::{NetnsRef, Overlay, OverlayError};
use portolan_testbed::wait_until;

use crate::{
    cluster::{Cluster, pings},
    lifecycle::{assert_same, state},
};

#[test]
fn twice_is_once() -> Result<()> {
    let cluster = Cluster::new("ov", 1)?;
    cluster.reconcile()?;
    let node = &cluster.nodes[0];
    let task = cluster.task(1, "t1", &[("ingress", "10.208.1.2")])?;
    let both = || -> Result<String> { Ok(state(node)? + &state(&task)?) };
    let before = both()?;
    let request = cluster.attachment(1, &task, "t1", &[("ingress", "10.208.1.2")]);
    let again = request.clone();
    cluster.overlays[0].run(move |overlay| overlay.attach(&again))?;
    assert_same(&before, &both()?);

    for _ in 0..2 {
        let id = request.id.clone();
        cluster.overlays[0].run(move |overlay| overlay.detach(&id))?;
        ensure!(!task.run(["ip", "-br", "link"])?.stdout.contains("pt0"));
        ensure!(!node.run(["ip", "-br", "link"])?.stdout.contains("ptv0"));
    }
    Ok(())
}

#[test]
fn what_someone_broke_is_mended() -> Result<()> {
    let cluster = Cluster::new("ov", 1)?;
    cluster.reconcile()?;
    let task = cluster.task(1, "t1", &[("ingress", "10.208.1.2")])?;
    task.run(["ip", "addr", "flush", "dev", "pt0"])?;
    task.run(["ip", "link", "set", "pt0", "down"])?;
    ensure!(!pings(&task, "10.208.1.0")?);
    let request = cluster.attachment(1, &task, "t1", &[("ingress", "10.208.1.2")]);
    cluster.overlays[0].run(move |overlay| overlay.attach(&request))?;
    ensure!(pings(&task, "10.208.1.0")?);
    Ok(())
}

#[test]
fn a_link_of_another_name_is_the_tasks_own_still() -> Result<()> {
    let cluster = Cluster::new("ov", 1)?;
    cluster.reconcile()?;
    let task = cluster.task(1, "t1", &[("ingress", "10.208.1.2")])?;
    // As older agents called it.
    for command in ["pt0 down", "pt0 name eth1", "eth1 up"] {
        let words = ["ip", "link", "set"].into_iter();
        task.run(words.chain(command.split(' ')))?;
    }
    let request = cluster.attachment(1, &task, "t1", &[("ingress", "10.208.1.2")]);
    cluster.overlays[0].run(move |overlay| overlay.attach(&request))?;
    let links = task.run(["ip", "-br", "link"])?.stdout;
    ensure!(links.contains("eth1") && !links.contains("pt0"), "{links}");
    ensure!(pings(&task, "10.208.1.0")?);
    Ok(())
}

#[test]
fn a_namespace_by_process_and_a_name_that_is_taken() -> Result<()> {
    let cluster = Cluster::new("ov", 1)?;
    cluster.reconcile()?;
    let task = cluster.lab.task("t1")?;
    task.run(["ip", "link", "add", "pt0", "type", "bridge"])?;
    let sleeper = task.spawn(task.command("sleep").arg("60"))?;
    let mut request = cluster.attachment(1, &task, "t1", &[("ingress", "10.208.1.2")]);
    request.netns = NetnsRef::Pid(sleeper.pid());
    cluster.overlays[0].run(move |overlay| overlay.attach(&request))?;
    let links = task.run(["ip", "-br", "addr"])?.stdout;
    ensure!(
        links
            .lines()
            .any(|line| line.starts_with("pt1") && line.contains("10.208.1.2")),
        "{links}"
    );
    ensure!(pings(&task, "10.208.1.0")?);
    Ok(())
}

#[test]
fn all_or_nothing() -> Result<()> {
    let mut cluster = Cluster::new("ov", 1)?;
    cluster.add_network("red", 5001, "10.224.1.0/24");
    cluster.slice("red", 1, "10.224.1.16/28");
    cluster.reconcile()?;
    let task = cluster.lab.task("t1")?;
    let on = [("ingress", "10.208.1.2"), ("red", "10.224.1.17")];
    let mut request = cluster.attachment(1, &task, "t1", &on);
    // The kernel refuses a multicast address for a link.
    request.endpoints[1].mac.0[0] = 1;
    let error = cluster.overlays[0].run(move |overlay| overlay.attach(&request));
    let error = error.unwrap_err();
    ensure!(matches!(error, OverlayError::Kernel { .. }), "{error:?}");
    ensure!(error.to_string().contains("t1"), "{error}");
    ensure!(!task.run(["ip", "-br", "link"])?.stdout.contains("pt0"));
    // Again, as it should be.
    let request = cluster.attachment(1, &task, "t1", &on);
    cluster.overlays[0].run(move |overlay| overlay.attach(&request))?;
    ensure!(pings(&task, "10.208.1.0")? && pings(&task, "10.224.1.16")?);
    Ok(())
}

#[test]
fn a_network_that_is_no_longer_asked_for_is_left() -> Result<()> {
    let mut cluster = Cluster::new("ov", 1)?;
    cluster.add_network("red", 5001, "10.224.1.0/24");
    cluster.slice("red", 1, "10.224.1.16/28");
    cluster.reconcile()?;
    let on = [("ingress", "10.208.1.2"), ("red", "10.224.1.17")];
    let task = cluster.task(1, "t1", &on)?;
    let _other = cluster.task(1, "t2", &[("ingress", "10.208.1.3")])?;
    let request = cluster.attachment(1, &task, "t1", &on[1..]);
    cluster.overlays[0].run(move |overlay| overlay.attach(&request))?;
    let addresses = task.run(["ip", "-br", "addr"])?.stdout;
    ensure!(!addresses.contains("10.208.1.2"), "{addresses}");
    ensure!(pings(&task, "10.224.1.16")?);
    ensure!(cluster.overlays[0].run(Overlay::vanished).is_empty());
    ensure!(pings(&cluster.nodes[0], "10.208.1.3")?);
    Ok(())
}

#[test]
fn what_cannot_be_attached_is_told() -> Result<()> {
    let cluster = Cluster::new("ov", 1)?;
    cluster.reconcile()?;
    let task = cluster.lab.task("t1")?;
    let good = cluster.attachment(1, &task, "t1", &[("ingress", "10.208.1.2")]);
    let attach = |netns: NetnsRef| {
        let mut request = good.clone();
        request.netns = netns;
        cluster.overlays[0].run(move |overlay| overlay.attach(&request))
    };
    for gone in [
        NetnsRef::Path("/run/netns/pt-no-such".into()),
        NetnsRef::Path("/etc/hostname".into()),
        NetnsRef::Pid(u32::MAX),
    ] {
        let error = attach(gone).unwrap_err();
        ensure!(
            matches!(error, OverlayError::NoNamespace { .. }),
            "{error:?}"
        );
    }
    let own = attach(NetnsRef::Path(cluster.nodes[0].path())).unwrap_err();
    ensure!(matches!(own, OverlayError::OwnNamespace(_)), "{own:?}");
    let mut twice = good.clone();
    twice.endpoints.extend(good.endpoints.clone());
    let error = cluster.overlays[0].run(move |overlay| overlay.attach(&twice));
    ensure!(matches!(error, Err(OverlayError::NetworkTwice { .. })));
    Ok(())
}

#[test]
fn a_namespace_that_is_gone_is_told() -> Result<()> {
    let mut cluster = Cluster::new("ov", 1)?;
    cluster.reconcile()?;
    let stays = cluster.task(1, "stays", &[("ingress", "10.208.1.2")])?;
    let goes = cluster.task(1, "goes", &[("ingress", "10.208.1.3")])?;
    let vanished = |cluster: &Cluster| cluster.overlays[0].run(Overlay::vanished);
    ensure!(vanished(&cluster).is_empty());
    // Known again after a restart, by nothing but the kernel.
    cluster.restart(1)?;
    goes.remove()?;
    let gone = wait_until(Duration::from_secs(5), "it is seen", || {
        Ok(Some(vanished(&cluster)).filter(|gone| !gone.is_empty()))
    })?;
    assert_eq!(gone, ["goes".parse()?]);
    let id = gone[0].clone();
    cluster.overlays[0].run(move |overlay| overlay.detach(&id))?;
    ensure!(vanished(&cluster).is_empty());
    ensure!(pings(&stays, "10.208.1.0")?);
    Ok(())
}

#[test]
fn a_task_that_came_back_in_a_new_namespace_is_attached_anew() -> Result<()> {
    let cluster = Cluster::new("ov", 1)?;
    cluster.reconcile()?;
    let old = cluster.task(1, "t1", &[("ingress", "10.208.1.2")])?;
    let new = cluster.lab.task("t1b")?;
    let request = cluster.attachment(1, &new, "t1", &[("ingress", "10.208.1.2")]);
    cluster.overlays[0].run(move |overlay| overlay.attach(&request))?;
    ensure!(pings(&new, "10.208.1.0")? && !pings(&old, "10.208.1.0")?);
    Ok(())
}

#[test]
fn a_task_may_come_before_its_network() -> Result<()> {
    let cluster = Cluster::new("ov", 2)?;
    let a = cluster.task(1, "t1", &[("ingress", "10.208.1.2")])?;
    let b = cluster.task(2, "t2", &[("ingress", "10.208.2.2")])?;
    // Until then it is as isolated as after: nothing of it is routed by the node's own table.
    let asked = "ip route get 10.77.0.12 from 10.208.1.2 iif ptbr4096";
    let route = cluster.nodes[0].output(asked.split(' '))?;
    ensure!(!route.status.success(), "{}", route.stdout);
    cluster.reconcile()?;
    let socket = b.enter(|| Ok(UdpSocket::bind("10.208.2.2:9")?))?;
    socket.set_read_timeout(Some(Duration::from_secs(2)))?;
    a.enter(|| Ok(UdpSocket::bind("0.0.0.0:0")?.send_to(b"x", "10.208.2.2:9")?))?;
    let (_, from) = socket.recv_from(&mut [0; 8])?;
    assert_eq!(from.ip().to_string(), "10.208.1.2");
    Ok(())
}
