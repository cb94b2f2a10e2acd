//! The program of the containers that the Docker tests start. `build.rs` makes it static, so that an image needs no
//! more than it; it has no dependency.
//!
//! It answers HTTP and datagrams on port 80 with its host name, who asks, and the page that is in its environment; at
//! `/page` the page comes first. `/hits` counts in the redis that it finds by that name, `/hits/NAME` by another. Told to
//! end by SIGTERM it goes on answering for a second, as a program that ends in order does.
//!
//! | in the environment | means |
//! |---|---|
//! | `PAGE` | the page; `web` if there is none |
//! | `PORT` | another port than 80 |
//! | `START_AFTER_MS` | how long it starts before it listens |

use std::env;
use std::ffi::c_int;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::exit;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

const SIGTERM: c_int = 15;
const SIGINT: c_int = 2;
const END_AFTER: Duration = Duration::from_secs(1);

static ENDS: AtomicBool = AtomicBool::new(false);

unsafe extern "C" {
    fn signal(number: c_int, handler: extern "C" fn(c_int)) -> usize;
}

extern "C" fn end(_: c_int) {
    ENDS.store(true, Ordering::Relaxed);
}

fn main() {
    // SAFETY: the handler does nothing but to store a flag.
    unsafe {
        signal(SIGTERM, end);
        signal(SIGINT, end);
    }
    thread::spawn(serve);
    while !ENDS.load(Ordering::Relaxed) {
        thread::sleep(Duration::from_millis(10));
    }
    thread::sleep(END_AFTER);
}

fn serve() {
    let port = number("PORT").unwrap_or(80) as u16;
    let start_after = number("START_AFTER_MS").unwrap_or(0);
    thread::sleep(Duration::from_millis(start_after));
    let at = SocketAddr::from(([0, 0, 0, 0], port));
    let (tcp, udp) = match (TcpListener::bind(at), UdpSocket::bind(at)) {
        (Ok(tcp), Ok(udp)) => (tcp, udp),
        (Err(error), _) | (_, Err(error)) => {
            eprintln!("port {port}: {error}");
            exit(1);
        }
    };
    thread::spawn(move || {
        let mut question = [0; 2048];
        while let Ok((_, client)) = udp.recv_from(&mut question) {
            udp.send_to(who(client).as_bytes(), client).ok();
        }
    });
    for stream in tcp.incoming().flatten() {
        thread::spawn(move || answer(&stream));
    }
}

/// Answers what is asked on one connection, until it is closed.
fn answer(mut stream: &TcpStream) -> Option<()> {
    let client = stream.peer_addr().ok()?;
    let mut lines = BufReader::new(stream).lines();
    loop {
        let request = lines.next()?.ok()?;
        let mut closes = false;
        loop {
            let header = lines.next()?.ok()?.to_ascii_lowercase();
            closes |= header == "connection: close";
            if header.is_empty() {
                break;
            }
        }
        let path = request.split(' ').nth(1)?;
        let (status, body) = match path.strip_prefix("/hits") {
            Some(name) => match hit(name.trim_start_matches('/')) {
                Ok(count) => ("200 OK", format!("hits: {count}\n") + &who(client)),
                Err(error) => ("503 Service Unavailable", format!("redis: {error}\n")),
            },
            None if path == "/page" => ("200 OK", page() + &who(client)),
            None => ("200 OK", who(client) + &page()),
        };
        let length = body.len();
        write!(
            stream,
            "HTTP/1.1 {status}\r\nContent-Length: {length}\r\n\r\n{body}"
        )
        .ok()?;
        if closes {
            return Some(());
        }
    }
}

fn who(client: SocketAddr) -> String {
    let host = fs::read_to_string("/etc/hostname").unwrap_or_default();
    format!("hostname: {}\nclient: {client}\n", host.trim())
}

fn page() -> String {
    let page = env::var("PAGE").unwrap_or_else(|_| "web".to_owned());
    format!("page: {page}\n")
}

/// Counts one up in the redis of this name, in its own protocol.
fn hit(name: &str) -> Result<u64, String> {
    let name = if name.is_empty() { "redis" } else { name };
    let count = || -> std::io::Result<String> {
        let mut redis = TcpStream::connect((name, 6379))?;
        redis.set_read_timeout(Some(Duration::from_secs(2)))?;
        redis.write_all(b"INCR hits\r\n")?;
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n") {
            let mut byte = [0];
            redis.read_exact(&mut byte)?;
            answer.push(byte[0]);
        }
        Ok(String::from_utf8_lossy(&answer).into_owned())
    };
    let answer = count().map_err(|error| error.to_string())?;
    let count = answer
        .trim()
        .strip_prefix(':')
        .and_then(|count| count.parse().ok());
    count.ok_or(answer)
}

fn number(name: &str) -> Option<u64> {
    env::var(name).ok()?.parse().ok()
}
