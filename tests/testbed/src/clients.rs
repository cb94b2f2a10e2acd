//! Many clients on one machine, all at once.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use socket2::{Domain, Socket, Type};

use crate::forward::Protocol;
use crate::http::Response;
use crate::lab::Node;
use crate::namespace::Namespace;
use crate::programs::ip_batch;

/// How long one connection, or one answer, may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// After how long, and how often, a datagram without an answer is sent again.
const REPEAT: Duration = Duration::from_secs(1);
const REPEATS: u32 = 2;
/// How many ask at once by UDP.
const ASKING: usize = 4;
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: many\r\nConnection: close\r\n\r\n";

/// What a client was told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// Its address and port, as its socket has them.
    pub client: SocketAddr,
    /// Who was asked.
    pub to: SocketAddr,
    /// The body, or the datagram.
    pub answer: String,
    /// How often it had to ask again.
    pub repeats: u32,
}

impl Node {
    /// Makes one machine the home of this many clients, 10.79.0.1 and on; `nodes` get a route to them.
    pub fn add_clients<'a>(
        &self,
        count: u16,
        nodes: impl IntoIterator<Item = &'a Self>,
    ) -> Result<Vec<Ipv4Addr>> {
        let first = u32::from(Ipv4Addr::new(10, 79, 0, 1));
        let addresses = (first..).take(count.into()).map(Ipv4Addr::from);
        let addresses: Vec<_> = addresses.collect();
        let line =
            |address: &Ipv4Addr| format!("address add {address}/32 dev {}\n", self.underlay());
        let script: String = addresses.iter().map(line).collect();
        ip_batch(self.name(), &script)?;
        let route = format!("route add 10.79.0.0/16 via {}\n", self.ipv4());
        for node in nodes {
            ip_batch(node.name(), &route)?;
        }
        Ok(addresses)
    }
}

/// Asks from each of these addresses; port 0 is any. Connections are all made before the first is asked over, and
/// so are open at the same time.
///
/// # Errors
/// The first question that was not answered within 10 s.
pub fn ask_from(
    from: &Namespace,
    clients: &[SocketAddr],
    to: SocketAddr,
    protocol: Protocol,
) -> Result<Vec<Asked>> {
    match protocol {
        Protocol::Tcp => from.enter(|| ask_by_tcp(clients, to)),
        Protocol::Udp => UdpClients::bind(from, clients)?.ask(&[to]),
    }
}

fn ask_by_tcp(clients: &[SocketAddr], to: SocketAddr) -> Result<Vec<Asked>> {
    let connect = |client: &SocketAddr| {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
        socket.bind(&(*client).into())?;
        let connected = socket.connect_timeout(&to.into(), TIMEOUT);
        connected.with_context(|| format!("{client}: connect {to}"))?;
        socket.set_read_timeout(Some(TIMEOUT))?;
        Ok(TcpStream::from(socket))
    };
    let streams: Vec<TcpStream> = clients.iter().map(connect).collect::<Result<_>>()?;
    for mut stream in &streams {
        stream.write_all(REQUEST)?;
    }
    streams
        .into_iter()
        .map(|stream| answer(stream, to))
        .collect()
}

fn answer(mut stream: TcpStream, to: SocketAddr) -> Result<Asked> {
    let client = stream.local_addr()?;
    let mut received = Vec::new();
    let read = stream.read_to_end(&mut received);
    read.with_context(|| format!("{client}: no answer of {to}"))?;
    let Some(response) = Response::parse(client, &received, true)? else {
        bail!("{client}: half an answer of {to}");
    };
    ensure!(
        response.status == 200,
        "{client}: status {}",
        response.status
    );
    Ok(Asked {
        client,
        to,
        answer: response.body,
        repeats: 0,
    })
}

/// Sockets that ask again and again from the same addresses and ports.
#[derive(Debug)]
pub struct UdpClients(Vec<UdpSocket>);

impl UdpClients {
    /// Binds a socket to each address.
    pub fn bind(from: &Namespace, clients: &[SocketAddr]) -> Result<Self> {
        let bind = |client: &SocketAddr| {
            let socket = UdpSocket::bind(client).with_context(|| format!("bind {client}"))?;
            Ok(socket)
        };
        let sockets = from.enter(|| clients.iter().map(bind).collect::<Result<_>>())?;
        Ok(Self(sockets))
    }

    /// Asks every target from every socket; each answer has to come from the very address asked. A few sockets ask at
    /// a time, so that no buffer overflows. What is not answered within a second is asked again, twice at most.
    ///
    /// # Errors
    /// The first socket that did not get all of its answers.
    pub fn ask(&self, targets: &[SocketAddr]) -> Result<Vec<Asked>> {
        let share = self.0.len().div_ceil(ASKING).max(1);
        thread::scope(|scope| {
            let ask = |sockets: &'_ [UdpSocket]| -> Result<Vec<Asked>> {
                let each = sockets.iter().map(|socket| ask_by_udp(socket, targets));
                Ok(each.collect::<Result<Vec<_>>>()?.concat())
            };
            let threads: Vec<_> = self
                .0
                .chunks(share)
                .map(|part| scope.spawn(move || ask(part)))
                .collect();
            let mut all = Vec::new();
            for thread in threads {
                let asked = thread
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
                all.extend(asked?);
            }
            Ok(all)
        })
    }
}

fn ask_by_udp(socket: &UdpSocket, targets: &[SocketAddr]) -> Result<Vec<Asked>> {
    let mut asked = Vec::new();
    for repeats in 0..=REPEATS {
        let silent: Vec<_> = targets
            .iter()
            .filter(|to| !has(&asked, to))
            .copied()
            .collect();
        ask_once(socket, &silent, repeats, &mut asked)?;
    }
    let silent = targets.iter().find(|to| !has(&asked, to));
    let client = socket.local_addr()?;
    silent.map_or(Ok(asked), |to| {
        bail!("{client}: no answer of {to}, asked {} times", REPEATS + 1)
    })
}

fn has(asked: &[Asked], to: &SocketAddr) -> bool {
    asked.iter().any(|asked| asked.to == *to)
}

/// Asks these, and takes answers for a second at most.
fn ask_once(
    socket: &UdpSocket,
    targets: &[SocketAddr],
    repeats: u32,
    asked: &mut Vec<Asked>,
) -> Result<()> {
    let client = socket.local_addr()?;
    for to in targets {
        socket
            .send_to(b"who?", to)
            .with_context(|| format!("{client}: ask {to}"))?;
    }
    let (deadline, mut buffer) = (Instant::now() + REPEAT, [0; 2048]);
    while targets.iter().any(|to| !has(asked, to)) {
        let left = deadline.saturating_duration_since(Instant::now());
        socket.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
        let (length, to) = match socket.recv_from(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            received => received.with_context(|| format!("{client}: receive"))?,
        };
        // The answer to a question that was asked again may come after all.
        ensure!(
            repeats > 0 || targets.contains(&to) && !has(asked, &to),
            "{client}: an answer too many, of {to}"
        );
        if !has(asked, &to) {
            let answer = buffer.get(..length).unwrap_or_default();
            let answer = String::from_utf8_lossy(answer).into_owned();
            asked.push(Asked {
                client,
                to,
                answer,
                repeats,
            });
        }
    }
    Ok(())
}
