//! Virtual addresses: served on every port by one transparent socket per protocol, to which the kernel
//! leads what is addressed to them (TPROXY, the kernel's `networking/tproxy.rst`).

pub(crate) mod nft;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4},
    sync::Arc,
};

use arc_swap::ArcSwap;
use portolan_model::Protocol;
use portolan_plane::{Frontend, FrontendAddress, OpError};
use socket2::{Domain, Socket, Type};
use tokio::net::UdpSocket;
use tokio_util::sync::CancellationToken;

use crate::{
    engine::Engine,
    listener,
    served::Served,
    tcp,
    udp::{
        self,
        datagram::{self, Received},
    },
};

/// Who is served where.
type Table = BTreeMap<(IpAddr, Protocol), Arc<Served>>;

/// The virtual addresses of a relay.
#[derive(Debug, Default)]
pub(crate) struct Vips {
    table: Arc<ArcSwap<Table>>,
    sockets: Option<Sockets>,
    /// The addresses that the kernel leads here.
    programmed: BTreeSet<Ipv4Addr>,
    /// Whether `br_netfilter` was there when they were programmed.
    bridged: bool,
}

/// The transparent sockets, which are closed when this is dropped.
#[derive(Debug)]
struct Sockets {
    tcp_port: u16,
    udp_port: u16,
    closing: CancellationToken,
}

impl Drop for Sockets {
    fn drop(&mut self) {
        self.closing.cancel();
    }
}

/// The address, if the frontend is a virtual one.
pub(crate) fn address(frontend: &Frontend) -> Option<IpAddr> {
    match frontend.address {
        FrontendAddress::Vip(_, ip) => Some(ip),
        FrontendAddress::Node | FrontendAddress::Ip(_) => None,
    }
}

impl Vips {
    /// Serves these frontends and no others. What is left undone is done when it is called again.
    pub(crate) fn settle<'a>(
        &mut self,
        engine: &Arc<Engine>,
        frontends: impl Iterator<Item = &'a Arc<Served>>,
    ) -> Result<(), Error> {
        let table: Table = frontends
            .filter_map(|served| {
                let key = (address(&served.frontend)?, served.frontend.protocol);
                Some((key, Arc::clone(served)))
            })
            .collect();
        let wanted: BTreeSet<Ipv4Addr> = table
            .keys()
            .filter_map(|(ip, _)| match ip {
                IpAddr::V4(ip) => Some(*ip),
                IpAddr::V6(_) => None,
            })
            .collect();
        self.table.store(Arc::new(table));
        let bridged = nft::bridges_call_ip();
        if wanted == self.programmed && bridged == self.bridged {
            return Ok(());
        }
        if wanted.is_empty() {
            return self.clear();
        }
        let sockets = match self.sockets.take() {
            Some(sockets) => sockets,
            None => Sockets::open(engine, &self.table)?,
        };
        let sockets = self.sockets.insert(sockets);
        nft::program(&wanted, sockets.tcp_port, sockets.udp_port)?;
        self.programmed = wanted;
        self.bridged = bridged;
        Ok(())
    }

    /// Whether the kernel leads packets for the address here.
    pub(crate) fn leads_here(&self, ip: IpAddr) -> bool {
        matches!(ip, IpAddr::V4(ip) if self.programmed.contains(&ip))
    }

    /// Closes the sockets and takes the rules out of the kernel.
    pub(crate) fn clear(&mut self) -> Result<(), Error> {
        self.sockets = None;
        if !self.programmed.is_empty() {
            nft::remove()?;
            self.programmed.clear();
        }
        Ok(())
    }
}

impl Sockets {
    fn open(engine: &Arc<Engine>, table: &Arc<ArcSwap<Table>>) -> Result<Self, Error> {
        let (tcp, udp) = (transparent(Type::STREAM)?, transparent(Type::DGRAM)?);
        let sockets = Self {
            tcp_port: port(&tcp)?,
            udp_port: port(&udp)?,
            closing: CancellationToken::new(),
        };
        let lane = engine.lanes.next();
        let listener = {
            let _runtime = lane.runtime.enter();
            tcp::listener(tcp)?
        };
        let inlet = {
            let _runtime = engine.runtime.enter();
            UdpSocket::from_std(udp.into())?
        };
        let of = Arc::clone(table);
        let accept = tcp::accept(
            Arc::clone(engine),
            lane.clone(),
            listener,
            move |client: &Socket| {
                let asked = client.local_addr().ok()?.as_socket()?;
                find(&of, asked, Protocol::Tcp)
            },
        );
        let of = Arc::clone(table);
        let receive = udp::receive(Arc::clone(engine), inlet, move |received: &Received| {
            find(&of, received.asked?, Protocol::Udp)
        });
        let closing = sockets.closing.clone();
        engine.tasks.spawn_on(
            async move { closing.run_until_cancelled(accept).await },
            &lane.runtime,
        );
        let closing = sockets.closing.clone();
        engine.tasks.spawn_on(
            async move { closing.run_until_cancelled(receive).await },
            &engine.runtime,
        );
        Ok(sockets)
    }
}

fn find(table: &ArcSwap<Table>, asked: SocketAddr, protocol: Protocol) -> Option<Arc<Served>> {
    table.load().get(&(asked.ip(), protocol)).cloned()
}

/// A socket on a loopback port that takes packets to other addresses.
fn transparent(kind: Type) -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, kind.nonblocking(), None)?;
    socket.set_ip_transparent_v4(true)?;
    let any_port = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0);
    if kind == Type::STREAM {
        socket.bind(&any_port.into())?;
        socket.listen(listener::BACKLOG)?;
    } else {
        datagram::prepare_transparent(&socket)?;
        socket.bind(&any_port.into())?;
    }
    Ok(socket)
}

fn port(socket: &Socket) -> io::Result<u16> {
    let address = socket.local_addr()?.as_socket();
    Ok(address.map_or(0, |address| address.port()))
}

/// Why virtual addresses are not served as they should be.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("virtual addresses need the nft program; install nftables (apt-get install nftables)")]
    NoNft,
    #[error("program nft table inet {}", nft::TABLE)]
    Nft(#[source] io::Error),
    #[error("open the transparent sockets of virtual addresses")]
    Sockets(#[from] io::Error),
}

impl Error {
    /// The same for one of the frontends concerned.
    pub(crate) fn for_frontend(&self) -> OpError {
        match self {
            Self::NoNft => OpError::Unsupported(self.to_string()),
            Self::Nft(source) | Self::Sockets(source) => OpError::Kernel {
                operation: self.to_string(),
                source: match source.raw_os_error() {
                    Some(errno) => io::Error::from_raw_os_error(errno),
                    None => io::Error::new(source.kind(), source.to_string()),
                },
            },
        }
    }
}
