//! The relay keeps the clauses about traffic.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket},
    thread,
    time::Duration,
};

use portolan_model::Protocol;
use portolan_plane::{
    DataPlane, FlowView, FrontendSpec, FrontendStats, Plan,
    contract::traffic::{self, Traffic},
};
use socket2::{Domain, Socket, Type};

use crate::support::{self, Rig};

/// A relay with tasks and clients on the loopback.
struct Loopback {
    rig: Rig,
    specs: [FrontendSpec; 2],
    tasks: Vec<Option<TcpListener>>,
}

impl Loopback {
    fn new() -> Self {
        let tasks: Vec<TcpListener> = (0..3).map(|_| listener()).collect();
        let accepting = tasks.iter().map(|task| task.local_addr().unwrap());
        let answering: Vec<SocketAddr> = (0..3).map(numbered).collect();
        Self {
            rig: Rig::new(),
            specs: [
                support::spec(Protocol::Tcp, &accepting.collect::<Vec<_>>()),
                support::spec(Protocol::Udp, &answering),
            ],
            tasks: tasks.into_iter().map(Some).collect(),
        }
    }
}

fn listener() -> TcpListener {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    listener
}

/// A task that answers each datagram by its number, until the test program ends.
fn numbered(number: u8) -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    thread::spawn(move || {
        while let Ok((_, from)) = socket.recv_from(&mut [0; 16]) {
            let _ = socket.send_to(&[number], from);
        }
    });
    address
}

impl Traffic for Loopback {
    type Stream = TcpStream;
    type Socket = UdpSocket;

    fn spec(&self, protocol: Protocol) -> FrontendSpec {
        let mut specs = self.specs.iter();
        let of = |spec: &&FrontendSpec| spec.frontend.protocol == protocol;
        let mut spec = specs.find(of).unwrap().clone();
        for (number, backend) in spec.backends.iter_mut().enumerate() {
            backend.local = number == 0;
        }
        spec
    }

    fn client(&self, client: usize) -> IpAddr {
        Ipv4Addr::new(127, 0, 1, client as u8 + 1).into()
    }

    fn apply(&mut self, plan: &Plan) {
        let failures = self.rig.relay.apply(plan);
        assert!(failures.is_empty(), "{failures:?}");
    }

    fn connect(&mut self, client: usize) -> io::Result<TcpStream> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.bind(&SocketAddr::new(self.client(client), 0).into())?;
        socket.connect(&support::at(&self.specs[0]).into())?;
        let stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        Ok(stream)
    }

    fn accept(&mut self) -> Option<(usize, TcpStream)> {
        let mut tasks = self.tasks.iter().enumerate();
        let accept =
            |(at, task): (usize, &Option<TcpListener>)| Some((at, task.as_ref()?.accept().ok()?.0));
        let (at, stream) = tasks.find_map(accept)?;
        stream.set_nonblocking(false).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(5)))
            .unwrap();
        Some((at, stream))
    }

    fn refuse(&mut self, task: usize) {
        self.tasks[task] = None;
    }

    fn finish(stream: &TcpStream) {
        stream.shutdown(Shutdown::Write).unwrap();
    }

    fn is_reset(stream: &TcpStream) -> bool {
        stream.set_nonblocking(true).unwrap();
        let read = stream.peek(&mut [0]);
        stream.set_nonblocking(false).unwrap();
        support::is_reset(&read)
    }

    fn socket(&mut self, client: usize) -> UdpSocket {
        let socket = UdpSocket::bind((self.client(client), 0)).unwrap();
        socket.connect(support::at(&self.specs[1])).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_secs(1)))
            .unwrap();
        socket
    }

    fn ask(&mut self, socket: &UdpSocket) -> Option<usize> {
        socket.send(b"x").unwrap();
        let mut answer = [0];
        socket.recv(&mut answer).ok()?;
        Some(answer[0].into())
    }

    fn stats(&mut self) -> FrontendStats {
        self.rig.stats()
    }

    fn flows(&mut self) -> Vec<FlowView> {
        self.rig.relay.flows(100)
    }

    fn attend(&mut self) {}
}

#[test]
fn the_relay_keeps_the_clauses_about_traffic() {
    traffic::check(&mut Loopback::new());
}
