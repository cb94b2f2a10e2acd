//! `portolan whoami`: answers HTTP and UDP with who is asked and who asks, to try a mesh with.
//!
//! The answer has three lines, `hostname: web.1`, `address: 10.208.2.5:80` (where the request arrived) and
//! `client: 192.0.2.7:40000` (where it came from, as seen here), or is one object with these keys for
//! clients that accept JSON.

mod datagram;
mod http;

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use anyhow::Context;
use serde::Serialize;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    signal::unix::{SignalKind, signal},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

/// How long requests in flight have to finish once the program is told to stop.
const GRACE: Duration = Duration::from_secs(30);

/// What `portolan whoami` is told.
#[derive(Debug, Clone, clap::Args)]
#[command(group = clap::ArgGroup::new("protocols").required(true).multiple(true).args(["http", "udp"]))]
pub struct WhoamiArgs {
    /// Answer HTTP on this port: any path; /health, /wait?ms=N, /bytes/N
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub http: Option<u16>,
    /// Answer datagrams on this port
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub udp: Option<u16>,
    /// At this address only [default: every one, IPv4 and IPv6]
    #[arg(long, value_name = "IP")]
    pub listen: Option<IpAddr>,
    /// Who to say it is [default: the host name]
    #[arg(long)]
    pub name: Option<String>,
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Answer<'a> {
    hostname: &'a str,
    address: SocketAddr,
    client: SocketAddr,
}

impl<'a> Answer<'a> {
    /// IPv4 clients of a socket for both families are shown as what they are.
    fn new(hostname: &'a str, address: SocketAddr, client: SocketAddr) -> Self {
        let plain = |at: SocketAddr| SocketAddr::new(at.ip().to_canonical(), at.port());
        Self {
            hostname,
            address: plain(address),
            client: plain(client),
        }
    }

    fn text(&self) -> String {
        let Self {
            hostname,
            address,
            client,
        } = self;
        format!("hostname: {hostname}\naddress: {address}\nclient: {client}\n")
    }
}

/// Answers until SIGTERM or SIGINT, then finishes what is in flight.
///
/// # Errors
/// A port cannot be bound.
pub fn run(args: &WhoamiArgs) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(serve(args))
}

async fn serve(args: &WhoamiArgs) -> anyhow::Result<()> {
    let name = match &args.name {
        Some(name) => name.clone(),
        None => nix::unistd::gethostname()
            .context("the host name")?
            .to_string_lossy()
            .into_owned(),
    };
    // Before anything is bound, so that whoever sees a port can rely on the signal being heard.
    let (mut terminate, mut interrupt) = (
        signal(SignalKind::terminate())?,
        signal(SignalKind::interrupt())?,
    );
    let stop = CancellationToken::new();
    let mut servers = JoinSet::new();
    if let Some(port) = args.http {
        let socket = bind(args.listen, port, Type::STREAM).with_context(|| {
            format!("port {port}/tcp cannot be bound; give another with --http")
        })?;
        let listener = tokio::net::TcpListener::from_std(socket.into())?;
        servers.spawn(http::serve(listener, name.clone().into(), stop.clone()));
    }
    if let Some(port) = args.udp {
        let socket = bind(args.listen, port, Type::DGRAM)
            .with_context(|| format!("port {port}/udp cannot be bound; give another with --udp"))?;
        let socket = tokio::net::UdpSocket::from_std(socket.into())?;
        servers.spawn(datagram::serve(socket, name, stop.clone()));
    }
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        ended = servers.join_next() => {
            if let Some(ended) = ended {
                ended.context("a server died")?;
            }
        }
    }
    stop.cancel();
    // What has not finished by then is not waited for: some clients never do.
    let _ = tokio::time::timeout(GRACE, servers.join_all()).await;
    Ok(())
}

/// Binds an address, or every address of both families, or of IPv4 where there is no IPv6.
fn bind(listen: Option<IpAddr>, port: u16, kind: Type) -> io::Result<Socket> {
    if let Some(ip) = listen {
        return bind_one(SocketAddr::new(ip, port), kind);
    }
    let every = |ip: IpAddr| bind_one(SocketAddr::new(ip, port), kind);
    match every(Ipv6Addr::UNSPECIFIED.into()) {
        Err(error) if error.kind() != io::ErrorKind::AddrInUse => {
            every(Ipv4Addr::UNSPECIFIED.into())
        }
        bound => bound,
    }
}

fn bind_one(at: SocketAddr, kind: Type) -> io::Result<Socket> {
    /// Connections that may wait to be accepted; the kernel has a limit of its own.
    const BACKLOG: i32 = 4096;
    let stream = kind == Type::STREAM;
    let protocol = if stream { Protocol::TCP } else { Protocol::UDP };
    let socket = Socket::new(Domain::for_address(at), kind, Some(protocol))?;
    if at.is_ipv6() {
        socket.set_only_v6(!at.ip().is_unspecified())?;
    }
    if stream {
        socket.set_reuse_address(true)?;
    } else {
        datagram::tell_destinations(&socket, at.is_ipv6())?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&at.into())?;
    if stream {
        socket.listen(BACKLOG)?;
    }
    Ok(socket)
}
