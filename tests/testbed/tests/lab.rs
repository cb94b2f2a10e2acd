//! Nodes, faults, processes and their removal, on the real kernel. Needs root.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;
use portolan_testbed::{Lab, Namespace, Node, Signal, nginx, wait_until};

fn pings(from: &Node, to: impl Into<IpAddr>) -> bool {
    let to = to.into().to_string();
    from.run(["ping", "-c1", "-W1", "-i0.2", &to]).is_ok()
}

#[test]
fn nodes_reach_each_other_as_soon_as_they_are_there() -> Result<()> {
    let lab = Lab::unique("reach")?.with_mtu(1400);
    let (n1, c1) = (lab.node("n1")?, lab.client("c1")?);
    assert_eq!(n1.ipv4(), Ipv4Addr::new(10, 77, 0, 11));
    assert_eq!(c1.at_v6(80).to_string(), "[fd77::101]:80");
    assert!(pings(&c1, n1.ipv4()));
    assert!(pings(&c1, n1.ipv6()));
    assert_eq!(n1.run(["hostname"])?.stdout, "n1\n");
    let link = n1.run(["ip", "link", "show", n1.underlay()])?;
    assert!(link.stdout.contains("mtu 1400"), "{}", link.stdout);
    Ok(())
}

#[test]
fn two_labs_do_not_see_each_other() -> Result<()> {
    let (one, two) = (Lab::unique("apart")?, Lab::unique("apart")?);
    let (n1, _also_n1) = (one.node("n1")?, two.node("n1")?);
    let n2 = two.node("n2")?;
    assert!(!pings(&n1, n2.ipv4()));
    assert!(Lab::new(one.prefix()).is_err(), "the prefix is in use");
    Ok(())
}

#[test]
fn a_label_can_be_used_again_at_once() -> Result<()> {
    let lab = Lab::unique("again")?;
    let n2 = lab.node("n2")?;
    for _ in 0..3 {
        let n1 = lab.node("n1")?;
        assert!(pings(&n2, n1.ipv4()) && pings(&n2, n1.ipv6()));
        let mut process = n1.spawn(n1.command("sleep").arg("60"))?;
        drop(n1);
        process.wait(Duration::from_secs(1))?;
    }
    Ok(())
}

#[test]
fn a_cut_node_is_alone_until_it_is_healed() -> Result<()> {
    let lab = Lab::unique("cut")?;
    let (n1, n2, n3) = (lab.node("n1")?, lab.node("n2")?, lab.node("n3")?);
    lab.cut(&n1)?;
    assert!(!pings(&n1, n2.ipv4()) && !pings(&n2, n1.ipv6()));
    assert!(pings(&n1, Ipv4Addr::LOCALHOST) && pings(&n2, n3.ipv4()));
    lab.heal(&n1)?;
    assert!(pings(&n1, n2.ipv4()));

    lab.cut_between(&n1, &n2)?;
    assert!(!pings(&n1, n2.ipv4()) && !pings(&n2, n1.ipv4()));
    assert!(pings(&n1, n3.ipv4()) && pings(&n2, n3.ipv4()));
    lab.heal_all()?;
    assert!(pings(&n1, n2.ipv4()));
    let rules = lab.switch().run(["nft", "list", "ruleset"])?;
    assert_eq!(rules.stdout, "");
    Ok(())
}

#[test]
fn packets_are_lost_as_asked() -> Result<()> {
    let lab = Lab::unique("loss")?;
    let (n1, n2) = (lab.node("n1")?, lab.node("n2")?);
    assert!(pings(&n1, n2.ipv4()));
    lab.loss(&n2, 50.0)?;
    let to = n2.ipv4().to_string();
    let ping = n1.output(["ping", "-q", "-f", "-c200", "-W1", &to])?.stdout;
    let lost = ping.split("% packet loss").next();
    let lost = lost.and_then(|text| text.rsplit(' ').next());
    let lost: f64 = lost.unwrap_or_default().parse()?;
    // Each direction loses a half: three quarters in all.
    assert!((60.0..90.0).contains(&lost), "{ping}");
    assert!(lab.loss(&n2, 101.0).is_err());
    Ok(())
}

#[test]
fn a_pulled_cable_takes_the_carrier_and_keeps_the_addresses() -> Result<()> {
    let lab = Lab::unique("cable")?;
    let (n1, n2) = (lab.node("n1")?, lab.node("n2")?);
    lab.link_down(&n1)?;
    let carrier = |state: &str| {
        wait_until(Duration::from_secs(3), format!("{state} is shown"), || {
            let shown = n1.run(["ip", "link", "show", "eth0"])?.stdout;
            Ok(shown.contains(state).then_some(()))
        })
    };
    carrier("NO-CARRIER")?;
    assert!(!pings(&n1, n2.ipv4()));
    lab.link_up(&n1)?;
    wait_until(Duration::from_secs(3), "n1 reaches n2 again", || {
        Ok((pings(&n1, n2.ipv4()) && pings(&n1, n2.ipv6())).then_some(()))
    })
}

#[test]
fn sockets_made_inside_stay_inside() -> Result<()> {
    let lab = Lab::unique("inside")?;
    let (n1, c1) = (lab.node("n1")?, lab.client("c1")?);
    let listener = n1.enter(|| Ok(TcpListener::bind(n1.at(80))?))?;
    let stream = c1.enter(|| Ok(TcpStream::connect(n1.at(80))?))?;
    let (_, from) = listener.accept()?;
    assert_eq!(from, stream.local_addr()?);
    assert_eq!(from.ip(), c1.ipv4());
    Ok(())
}

#[test]
fn a_failed_command_tells_all() -> Result<()> {
    let ns = Namespace::create("pt-tb-tells")?;
    let script = "echo out; echo err >&2; exit 3";
    let error = ns.run(["sh", "-c", script]).unwrap_err().to_string();
    for part in ["sh -c echo", "exit status: 3", "stdout: out", "stderr: err"] {
        assert!(error.contains(part), "{error}");
    }
    let error = format!("{:#}", ns.run(["pt-absent"]).unwrap_err());
    assert_eq!(error, "in pt-tb-tells: not installed: pt-absent");
    Ok(())
}

#[test]
fn a_process_that_fails_to_listen_shows_its_log() -> Result<()> {
    let ns = Namespace::create("pt-tb-log")?;
    let start = Instant::now();
    let process = ns.spawn(ns.command("sh").args(["-c", "echo no such luck; exit 1"]))?;
    let error = format!("{:#}", process.listening(80).unwrap_err());
    assert!(error.contains("no such luck"), "{error}");
    assert!(error.contains("has ended already"), "{error}");
    assert!(start.elapsed() < Duration::from_secs(5));
    Ok(())
}

#[test]
fn processes_stop_when_asked_and_when_dropped() -> Result<()> {
    let ns = Namespace::create("pt-tb-stop")?;
    let mut polite = ns.spawn(ns.command("sleep").arg("60"))?;
    polite.terminate(Duration::from_secs(5))?;
    assert!(!polite.is_running());

    let script = "trap '' TERM; echo ready; sleep 60";
    let mut deaf = ns.spawn(ns.command("sh").args(["-c", script]))?;
    wait_until(Duration::from_secs(5), "it ignores SIGTERM", || {
        Ok(deaf.log_text()?.contains("ready").then_some(()))
    })?;
    let error = deaf.terminate(Duration::from_millis(50)).unwrap_err();
    assert!(error.to_string().contains("ends with:\nready"), "{error}");
    assert!(deaf.is_running());
    assert_eq!(deaf.kill()?.signal(), Some(Signal::KILL.as_raw()));

    let web = nginx(&ns, 80, "hello")?;
    let web_pid = web.pid();
    drop(web);
    assert!(!Path::new(&format!("/proc/{web_pid}")).exists());
    wait_until(Duration::from_secs(1), "the worker is gone too", || {
        let pids = ns.run(["ip", "netns", "pids", ns.name()])?.stdout;
        // The `ip` that asks is inside itself.
        Ok((pids.lines().count() == 1).then_some(()))
    })
}

#[test]
fn nothing_is_left_of_a_namespace() -> Result<()> {
    let ns = Namespace::create("pt-tb-gone")?;
    ns.set_resolver([127, 0, 0, 53].into(), &["test"], &[])?;
    // One that its own process group does not hold.
    let script = "setsid sleep 61 & setsid sleep 62 & echo $!";
    let escaped = ns.run(["sh", "-c", script])?.stdout;
    let proc = Path::new("/proc").join(escaped.trim());
    assert!(proc.exists());
    let (path, dir) = (ns.path(), ns.dir().to_owned());
    ns.remove()?;
    for left in [&proc, &path, &dir, Path::new("/etc/netns/pt-tb-gone")] {
        // A killed process is there until its new parent reaps it.
        wait_until(Duration::from_secs(2), left.display(), || {
            Ok((!left.exists() || is_zombie(left)).then_some(()))
        })?;
    }
    Ok(())
}

fn is_zombie(proc: &Path) -> bool {
    fs::read_to_string(proc.join("stat")).is_ok_and(|stat| stat.contains(") Z "))
}

#[test]
fn a_namespace_has_its_own_resolver() -> Result<()> {
    let ns = Namespace::create("pt-tb-dns")?;
    let read = || ns.run(["cat", "/etc/resolv.conf"]);
    let outside = fs::read_to_string("/etc/resolv.conf")?;
    assert_eq!(read()?.stdout, outside);
    ns.set_resolver([10, 0, 0, 1].into(), &["web.test"], &["ndots:0"])?;
    let inside = "nameserver 10.0.0.1\nsearch web.test\noptions ndots:0\n";
    assert_eq!(read()?.stdout, inside);
    assert_eq!(fs::read_to_string("/etc/resolv.conf")?, outside);

    // A process that runs since before another namespace was made can open that one.
    let script = "read _; head -c1 /run/netns/pt-tb-dns2 2>&1 | grep -v Invalid; \
                  stat -fc %T /run/netns/pt-tb-dns2";
    let fifo = ns.dir().join("go");
    ns.run(["mkfifo".as_ref(), fifo.as_os_str()])?;
    let script = format!("exec <{}; {script}", fifo.display());
    let mut process = ns.spawn(ns.command("sh").args(["-c", &script]))?;
    let _later = Namespace::create("pt-tb-dns2")?;
    fs::write(&fifo, "\n")?;
    process.wait(Duration::from_secs(5))?;
    assert_eq!(process.log_text()?.trim(), "nsfs");
    Ok(())
}
