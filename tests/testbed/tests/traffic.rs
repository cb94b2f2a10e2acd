//! Servers, load and forwarding through the real kernel. Needs root.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::Result;
use portolan_testbed::{
    Lab, Load, LoadOptions, Protocol, http_get, nginx, redis, udp_ask, wait_until,
};

const ANY_PORT: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, 0);

#[test]
fn real_servers_answer() -> Result<()> {
    let lab = Lab::unique("serve")?;
    let (n1, c1) = (lab.node("n1")?, lab.client("c1")?);
    let _web = nginx(&n1, 80, "hello $host \"you\"\nsecond line")?;
    let _redis = redis(&n1, 6379)?;
    for addr in [n1.at(80), n1.at_v6(80)] {
        let answer = http_get(&c1, &format!("http://{addr}/any/path"))?;
        assert_eq!(answer.status, 200);
        assert_eq!(answer.first_line(), "hello $host \"you\"");
    }
    let host = n1.ipv4().to_string();
    assert_eq!(c1.run(["redis-cli", "-h", &host, "ping"])?.stdout, "PONG\n");
    let refused = format!("{:#}", http_get(&c1, "10.77.0.11:81").unwrap_err());
    assert!(refused.contains("Connection refused"), "{refused}");
    Ok(())
}

#[test]
fn load_sees_every_failure_and_none_that_was_not() -> Result<()> {
    let lab = Lab::unique("load")?;
    let (n1, c1) = (lab.node("n1")?, lab.client("c1")?);
    let mut web = nginx(&n1, 80, "hello")?;
    let steady = Load::start(&c1, "10.77.0.11:80", LoadOptions::per_second(100))?;
    let hard = Load::start(&c1, "10.77.0.11:80", LoadOptions::workers(2))?;
    wait_until(Duration::from_secs(10), "a second's load", || {
        Ok((steady.requests() >= 100 && hard.requests() > 100).then_some(()))
    })?;
    let took = steady.elapsed();
    let report = steady.stop()?.without_failures()?;
    let rate = report.requests as f64 / took.as_secs_f64();
    assert!((80.0..=110.0).contains(&rate), "{rate}/s: {report}");
    assert_eq!(report.by_body.get("hello"), Some(&report.requests));

    let (killed, before) = (hard.elapsed(), hard.requests());
    web.kill()?;
    wait_until(Duration::from_secs(5), "failures", || {
        Ok((hard.requests() >= before + 10).then_some(()))
    })?;
    let report = hard.stop()?;
    let mut failures = report.failures.iter();
    assert!(failures.all(|f| f.at + f.took >= killed), "{report}");
    assert!(report.failures.len() > 1, "{report}");
    assert!(report.without_failures().is_err());
    Ok(())
}

#[test]
fn a_cut_is_a_timeout_to_the_load() -> Result<()> {
    let lab = Lab::unique("slow")?;
    let (n1, c1) = (lab.node("n1")?, lab.client("c1")?);
    let _web = nginx(&n1, 80, "hello")?;
    lab.cut(&n1)?;
    let options = LoadOptions::workers(1).connect_timeout(Duration::from_millis(100));
    let load = Load::start(&c1, "10.77.0.11:80", options)?;
    wait_until(Duration::from_secs(5), "two timeouts", || {
        Ok((load.requests() >= 2).then_some(()))
    })?;
    lab.heal(&n1)?;
    wait_until(Duration::from_secs(5), "ten answers", || {
        Ok((load.answers() >= 10).then_some(()))
    })?;
    let report = load.stop()?;
    let first = report
        .failures
        .first()
        .map(|failure| failure.error.as_str());
    assert!(
        first.is_some_and(|error| error.contains("timed out")),
        "{report}"
    );
    assert!(report.slowest < Duration::from_secs(1), "{report}");
    assert!(report.by_body.get("hello") >= Some(&10), "{report}");
    Ok(())
}

#[test]
fn a_load_does_not_run_out_of_source_ports() -> Result<()> {
    let lab = Lab::unique("ports")?;
    let (n1, c1) = (lab.node("n1")?, lab.client("c1")?);
    let _web = nginx(&n1, 80, "hello")?;
    // 500 ports, used more than twice.
    c1.set_sysctl("net.ipv4.ip_local_port_range", "20000 20499")?;
    let load = Load::start(&c1, "10.77.0.11:80", LoadOptions::per_second(350))?;
    wait_until(Duration::from_secs(10), "1100 requests", || {
        Ok((load.requests() >= 1100).then_some(()))
    })?;
    load.stop()?.without_failures()?;
    Ok(())
}

#[test]
fn udp_is_answered_by_the_address_asked() -> Result<()> {
    let lab = Lab::unique("udp")?;
    let (n1, c1) = (lab.node("n1")?, lab.client("c1")?);
    let mut socat = n1.command("socat");
    socat.args(["-T5", "UDP4-RECVFROM:53,fork", "EXEC:cat"]);
    let _echo = n1.spawn(&mut socat)?.bound(Protocol::Udp, 53)?;
    let second = Duration::from_secs(1);
    assert_eq!(udp_ask(&c1, n1.at(53), b"who?", second)?, b"who?");
    assert!(udp_ask(&c1, n1.at(54), b"who?", second).is_err());

    let forward = lab.forward(ANY_PORT.into(), &c1, n1.at(53), Protocol::Udp)?;
    let client = UdpSocket::bind(ANY_PORT)?;
    client.set_read_timeout(Some(Duration::from_secs(5)))?;
    client.connect(forward.local_addr())?;
    for question in [b"one", b"two"] {
        client.send(question)?;
        let mut answer = [0; 16];
        let length = client.recv(&mut answer)?;
        assert_eq!(&answer[..length], question);
    }
    Ok(())
}

#[test]
fn a_forward_leads_into_the_namespace_until_it_is_dropped() -> Result<()> {
    let lab = Lab::unique("forward")?;
    let n1 = lab.node("n1")?;
    let _web = nginx(&n1, 80, "hello")?;
    let inside: SocketAddr = (Ipv4Addr::LOCALHOST, 80).into();
    let forward = lab.forward(ANY_PORT.into(), &n1, inside, Protocol::Tcp)?;
    let outside = forward.local_addr();
    assert_eq!(get(outside)?, "hello");

    let mut idle = TcpStream::connect(outside)?;
    idle.set_read_timeout(Some(Duration::from_secs(5)))?;
    // Bytes have gone through: the forward carries it.
    idle.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")?;
    idle.read_exact(&mut [0; 8])?;
    drop(forward);
    assert!(TcpStream::connect(outside).is_err());
    idle.read_to_end(&mut Vec::new()).ok();
    Ok(())
}

#[test]
fn a_forward_keeps_half_closed_connections() -> Result<()> {
    let lab = Lab::unique("half")?;
    let n1 = lab.node("n1")?;
    let mut socat = n1.command("socat");
    // It answers only after the end of what it is sent.
    socat.args(["TCP-LISTEN:90,fork,reuseaddr", "SYSTEM:wc -c"]);
    let _count = n1.spawn(&mut socat)?.listening(90)?;
    let forward = lab.forward(ANY_PORT.into(), &n1, n1.at(90), Protocol::Tcp)?;
    let mut stream = TcpStream::connect(forward.local_addr())?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(&vec![b'x'; 100_000])?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    assert_eq!(answer.trim(), "100000");
    Ok(())
}

fn get(addr: SocketAddr) -> Result<String> {
    let mut stream = TcpStream::connect(addr)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer.rsplit('\n').next().unwrap_or_default().to_owned())
}
