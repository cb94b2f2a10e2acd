//! `portolan whoami`, asked by curl and by datagrams.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream, UdpSocket},
    process::{Child, Command, ExitStatus},
    time::Duration,
};

use portolan_testbed::{output_within, wait_until};
use serde_json::Value;

use super::run::portolan;

const SOON: Duration = Duration::from_secs(10);

/// A running whoami, on the same port TCP and UDP.
struct Whoami {
    child: Child,
    port: u16,
}

impl Drop for Whoami {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Whoami {
    fn start(args: &[&str]) -> Self {
        let port = TcpListener::bind("[::]:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let shown = port.to_string();
        let child = portolan()
            .args(["whoami", "--http", &shown, "--udp", &shown])
            .args(args)
            .spawn()
            .unwrap();
        let mut whoami = Self { child, port };
        wait_until(SOON, "whoami answers", || {
            assert!(whoami.child.try_wait()?.is_none(), "it ended");
            Ok(TcpStream::connect(("127.0.0.1", port)).ok())
        })
        .unwrap();
        whoami
    }

    fn curl(args: &[&str]) -> String {
        let mut line = vec!["-sS", "--max-time", "10"];
        line.extend(args);
        let output = output_within(Command::new("curl").args(line), SOON).unwrap();
        output.success().unwrap().stdout
    }

    fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    fn terminate(&self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    }

    fn ended(&mut self) -> ExitStatus {
        wait_until(SOON, "whoami ends", || Ok(self.child.try_wait()?)).unwrap()
    }
}

#[test]
fn http_says_who_is_asked_and_who_asks() {
    let whoami = Whoami::start(&["--name", "web.1"]);
    let text = Whoami::curl(&["--local-port", "20000-29999", &whoami.url("/any/path")]);
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines[0], "hostname: web.1");
    assert_eq!(lines[1], format!("address: 127.0.0.1:{}", whoami.port));
    assert!(lines[2].starts_with("client: 127.0.0.1:2"), "{text}");
    assert_eq!(lines.len(), 3);

    let json = Whoami::curl(&["-H", "Accept: application/json", &whoami.url("/")]);
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["hostname"], "web.1");
    assert_eq!(json.as_object().unwrap().len(), 3);

    let v6 = Whoami::curl(&[&format!("http://[::1]:{}/", whoami.port)]);
    assert!(
        v6.contains(&format!("address: [::1]:{}\nclient: [::1]:", whoami.port)),
        "{v6}"
    );
}

#[test]
fn connections_are_kept_and_paths_do_what_they_say() {
    let whoami = Whoami::start(&[]);
    let code = "%{http_code} %{num_connects} %{size_download}\n";
    let url = whoami.url("/health");
    let kept = Whoami::curl(&["-o", "/dev/null", "-w", code, &url, "-o", "/dev/null", &url]);
    assert_eq!(
        kept, "200 1 3\n200 0 3\n",
        "the second request uses the connection of the first"
    );
    let bytes = Whoami::curl(&["-o", "/dev/null", "-w", code, &whoami.url("/bytes/3000000")]);
    assert_eq!(bytes, "200 1 3000000\n");
    let time = Whoami::curl(&[
        "-o",
        "/dev/null",
        "-w",
        "%{time_total}",
        &whoami.url("/wait?ms=300"),
    ]);
    assert!(time.parse::<f64>().unwrap() >= 0.3, "{time}");
    for wrong in ["/wait", "/wait?ms=x", "/bytes/-1"] {
        let code = Whoami::curl(&["-o", "/dev/null", "-w", "%{http_code}", &whoami.url(wrong)]);
        assert_eq!(code, "400", "{wrong}");
    }
}

#[test]
fn datagrams_are_answered_from_the_address_asked() {
    let whoami = Whoami::start(&["--name", "web.1"]);
    for (ip, local) in [
        ("127.0.0.1", "127.0.0.1:0"),
        ("127.9.9.9", "127.0.0.1:0"),
        ("::1", "[::1]:0"),
    ] {
        let socket = UdpSocket::bind(local).unwrap();
        socket.set_read_timeout(Some(SOON)).unwrap();
        // Connected: an answer from elsewhere would not be received.
        socket.connect((ip, whoami.port)).unwrap();
        for payload in [&b""[..], b"who is there?"] {
            socket.send(payload).unwrap();
            let mut buffer = [0; 500];
            let length = socket.recv(&mut buffer).unwrap();
            let text = std::str::from_utf8(&buffer[..length]).unwrap();
            let (asked, own) = (socket.peer_addr().unwrap(), socket.local_addr().unwrap());
            assert_eq!(
                text,
                format!("hostname: web.1\naddress: {asked}\nclient: {own}\n")
            );
        }
    }
}

#[test]
fn told_to_stop_it_finishes_what_is_in_flight() {
    let mut whoami = Whoami::start(&["--listen", "127.0.0.1"]);
    let at = ("127.0.0.1", whoami.port);
    let mut idle = TcpStream::connect(at).unwrap();
    idle.write_all(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        .unwrap();
    let mut busy = TcpStream::connect(at).unwrap();
    // The second of two pipelined requests has begun when the first is answered.
    busy.write_all(
        b"GET /health HTTP/1.1\r\nHost: x\r\n\r\nGET /wait?ms=1500 HTTP/1.1\r\nHost: x\r\n\r\n",
    )
    .unwrap();
    for stream in [&mut idle, &mut busy] {
        let mut answered = Vec::new();
        while !answered.ends_with(b"ok\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            answered.extend(byte);
        }
    }

    whoami.terminate();
    wait_until(SOON, "no new connection is taken", || {
        Ok(TcpStream::connect(at).is_err().then_some(()))
    })
    .unwrap();
    let mut text = String::new();
    busy.read_to_string(&mut text).unwrap();
    assert!(
        text.starts_with("HTTP/1.1 200 OK\r\n") && text.contains("hostname: "),
        "{text}"
    );
    assert_eq!(whoami.ended().code(), Some(0));
}

#[test]
fn a_port_in_use_is_named() {
    let taken = TcpListener::bind("[::]:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let ran = super::run::run(&["whoami", "--http", &port.to_string()]);
    assert_eq!(ran.code, 1);
    assert!(
        ran.stderr
            .contains(&format!("port {port}/tcp cannot be bound")),
        "{}",
        ran.stderr
    );
}
