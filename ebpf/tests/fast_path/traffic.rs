//! The fast path, with the relay behind it as on any node, keeps the clauses about traffic. One task is on the node that
//! the clients come to, two are on another.

use std::{
    io::{self, ErrorKind},
    net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket},
    thread,
    time::Duration,
};

use anyhow::Result;
use portolan_model::Protocol;
use portolan_plane::{
    DataPlane, FlowView, FrontendSpec, FrontendStats, Plan,
    contract::traffic::{self, Traffic},
};
use portolan_relay::{Relay, RelayConfig};
use portolan_testbed::{Namespace, Node};
use tokio::runtime::{Builder, Runtime};

use crate::cluster::{Cluster, spec};

const PORT: u16 = 8080;
const TASKS: [(usize, &str); 3] = [(1, "10.208.1.2"), (2, "10.208.2.2"), (2, "10.208.2.3")];
const PATIENCE: Duration = Duration::from_secs(5);

/// A relay in a node's namespace.
struct Behind {
    relay: Relay,
    _runtime: Runtime,
}

impl Behind {
    fn start(node: &Node) -> Result<Self> {
        node.enter(|| {
            // Its threads are born in the namespace.
            let runtime = Builder::new_multi_thread()
                .worker_threads(1)
                .enable_all()
                .build()?;
            let relay = Relay::new(RelayConfig::default(), runtime.handle().clone());
            Ok(Self {
                relay,
                _runtime: runtime,
            })
        })
    }
}

struct Rig {
    behind: Behind,
    accepting: Vec<Option<TcpListener>>,
    clients: Vec<Node>,
    _tasks: Vec<Namespace>,
    cluster: Cluster,
}

impl Rig {
    fn new() -> Result<Self> {
        let cluster = Cluster::new(2)?;
        let (mut tasks, mut accepting) = (Vec::new(), Vec::new());
        for (number, (node, address)) in TASKS.into_iter().enumerate() {
            let task = cluster.task(node, &format!("t{number}"), address)?;
            let (listener, socket) = task.enter(|| {
                let listener = TcpListener::bind((address, 80))?;
                listener.set_nonblocking(true)?;
                Ok((listener, UdpSocket::bind((address, 80))?))
            })?;
            accepting.push(Some(listener));
            // It ends with the test's process.
            thread::spawn(move || {
                while let Ok((_, from)) = socket.recv_from(&mut [0; 16]) {
                    let _ = socket.send_to(&[number as u8], from);
                }
            });
            tasks.push(task);
        }
        Ok(Self {
            behind: Behind::start(&cluster.nodes[0])?,
            accepting,
            clients: vec![cluster.lab.client("c1")?, cluster.lab.client("c2")?],
            _tasks: tasks,
            cluster,
        })
    }

    fn at(&self) -> SocketAddr {
        self.cluster.nodes[0].at(PORT)
    }

    fn relayed(&self) -> FrontendStats {
        self.behind.relay.stats().frontends.remove(0)
    }
}

impl Traffic for Rig {
    type Stream = TcpStream;
    type Socket = UdpSocket;

    fn spec(&self, protocol: Protocol) -> FrontendSpec {
        spec(1, PORT, protocol, &TASKS)
    }

    fn client(&self, client: usize) -> IpAddr {
        self.clients[client].ipv4().into()
    }

    fn apply(&mut self, plan: &Plan) {
        let relay = &mut self.behind.relay;
        let failures = self.cluster.nodes[0].enter(|| Ok(relay.apply(plan)));
        assert!(failures.unwrap().is_empty());
        let plan = plan.clone();
        let failures = self.cluster.threads[0].run(move |inside| inside.plane().apply(&plan));
        assert!(failures.is_empty(), "{failures:?}");
    }

    fn connect(&mut self, client: usize) -> io::Result<TcpStream> {
        let to = self.at();
        let connected =
            self.clients[client].enter(|| Ok(TcpStream::connect_timeout(&to, PATIENCE)));
        let stream = connected.unwrap()?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(stream)
    }

    fn accept(&mut self) -> Option<(usize, TcpStream)> {
        let mut tasks = self.accepting.iter().enumerate();
        let accept =
            |(at, task): (usize, &Option<TcpListener>)| Some((at, task.as_ref()?.accept().ok()?.0));
        let (at, stream) = tasks.find_map(accept)?;
        stream.set_nonblocking(false).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Some((at, stream))
    }

    fn refuse(&mut self, task: usize) {
        self.accepting[task] = None;
    }

    fn finish(stream: &TcpStream) {
        stream.shutdown(Shutdown::Write).unwrap();
    }

    fn is_reset(stream: &TcpStream) -> bool {
        stream.set_nonblocking(true).unwrap();
        let read = stream.peek(&mut [0]);
        stream.set_nonblocking(false).unwrap();
        matches!(read, Err(error) if error.kind() == ErrorKind::ConnectionReset)
    }

    fn socket(&mut self, client: usize) -> UdpSocket {
        let to = self.at();
        let socket = self.clients[client].enter(|| {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.connect(to)?;
            socket.set_read_timeout(Some(Duration::from_secs(1)))?;
            Ok(socket)
        });
        socket.unwrap()
    }

    fn ask(&mut self, socket: &UdpSocket) -> Option<usize> {
        socket.send(b"x").unwrap();
        let mut answer = [0];
        socket.recv(&mut answer).ok()?;
        Some(answer[0].into())
    }

    fn stats(&mut self) -> FrontendStats {
        let relayed = self.relayed();
        let flows: u64 = relayed.backends.iter().map(|row| row.2.flows).sum();
        assert_eq!(flows, 0, "the relay carries nothing");
        let stats = self.cluster.threads[0].run(|inside| inside.plane().stats());
        FrontendStats {
            refused: relayed.refused,
            ..stats.frontends[0].clone()
        }
    }

    fn flows(&mut self) -> Vec<FlowView> {
        self.cluster.threads[0].run(|inside| inside.plane().flows(100))
    }

    fn attend(&mut self) {
        self.cluster.threads[0].run(|inside| inside.plane().sweep().unwrap());
    }
}

#[test]
fn the_fast_path_keeps_the_clauses_about_traffic() -> Result<()> {
    traffic::check(&mut Rig::new()?);
    Ok(())
}
