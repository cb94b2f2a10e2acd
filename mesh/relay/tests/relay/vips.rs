//! Virtual addresses, in a namespace that stands for a node.

use std::{
    collections::BTreeSet,
    io::Write,
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    time::Duration,
};

use portolan_model::Protocol;
use portolan_plane::{FrontendAddress, FrontendSpec, contract};
use portolan_testbed::Namespace;

use crate::support::{Rig, ask, is_reset};

const VIP: Ipv4Addr = Ipv4Addr::new(10, 224, 0, 200);
const BACKENDS: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 224, 0, 2), Ipv4Addr::new(10, 224, 0, 3)];

/// A node with two networks, 10.224.0.0/24 and 10.225.0.0/24, and a task on each.
struct Lab {
    node: Namespace,
    task: Namespace,
    stranger: Namespace,
}

impl Lab {
    fn new(name: &str) -> Self {
        let namespace = |role: &str| Namespace::create(&format!("pt-rl-{name}-{role}")).unwrap();
        let (node, task, stranger) = (namespace("n"), namespace("t"), namespace("s"));
        node.set_sysctl("net.ipv4.ip_forward", "1").unwrap();
        for (number, task) in [(224, &task), (225, &stranger)] {
            let bridge = format!("br{number}");
            let port = format!("v{number}");
            let run = |words: &str| node.run(words.split_whitespace()).unwrap();
            run(&format!("ip link add {bridge} type bridge"));
            run(&format!("ip addr add 10.{number}.0.1/24 dev {bridge}"));
            run(&format!(
                "ip link add {port} type veth peer name eth0 netns {}",
                task.name()
            ));
            run(&format!("ip link set {port} master {bridge} up"));
            run(&format!("ip link set {bridge} up"));
            let run = |words: &str| task.run(words.split_whitespace()).unwrap();
            run(&format!("ip addr add 10.{number}.0.10/24 dev eth0"));
            run("ip link set eth0 up");
            run(&format!("ip route add default via 10.{number}.0.1"));
        }
        for ip in BACKENDS.iter().chain([&VIP]) {
            let add = format!("ip addr add {ip}/32 dev br224");
            node.run(add.split_whitespace()).unwrap();
        }
        Self {
            node,
            task,
            stranger,
        }
    }

    /// Runs the test where the relay is, with a server for each backend and port that answers with its
    /// address, by TCP and UDP.
    fn run(&self, test: impl FnOnce(Rig) + Send) {
        let inside = || {
            for ip in BACKENDS {
                for port in [80, 6379] {
                    serve((ip, port).into());
                }
            }
            test(Rig::new());
            Ok(())
        };
        self.node.enter(inside).unwrap();
    }

    /// With `br_netfilter`, if it is loaded, and without; the rules have to do in both cases.
    fn with_and_without_bridge_filter(&self, test: impl Fn()) {
        let key = "net.bridge.bridge-nf-call-iptables";
        for value in ["1", "0"] {
            // The key is there with the module only.
            let _ = self.node.set_sysctl(key, value);
            test();
        }
    }

    fn tables(&self) -> String {
        self.node.run(["nft", "list", "tables"]).unwrap().stdout
    }
}

fn serve(address: SocketAddr) {
    let tcp = TcpListener::bind(address).unwrap();
    std::thread::spawn(move || {
        for mut stream in tcp.incoming().flatten() {
            let _ = stream.write_all(address.to_string().as_bytes());
        }
    });
    let udp = UdpSocket::bind(address).unwrap();
    std::thread::spawn(move || {
        let mut bytes = [0; 4000];
        while let Ok((_, from)) = udp.recv_from(&mut bytes) {
            let _ = udp.send_to(address.to_string().as_bytes(), from);
        }
    });
}

fn vip(protocol: Protocol) -> FrontendSpec {
    let mut spec = contract::spec(0, protocol, &BACKENDS);
    spec.frontend.address = FrontendAddress::Vip("back".parse().unwrap(), VIP.into());
    for backend in &mut spec.backends {
        backend.port = 0;
    }
    spec
}

fn ask_tcp(port: u16) -> String {
    ask((VIP, port).into()).unwrap()
}

/// From a socket that is not connected, so that the answer's address is seen.
fn ask_udp(port: u16) -> (String, SocketAddr) {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    socket
        .set_read_timeout(Some(Duration::from_secs(5)))
        .unwrap();
    // More than one packet takes.
    socket.send_to(&[b'?'; 3000], (VIP, port)).unwrap();
    let mut bytes = [0; 100];
    let (length, from) = socket.recv_from(&mut bytes).unwrap();
    (String::from_utf8_lossy(&bytes[..length]).into_owned(), from)
}

fn both_backends(port: u16) -> BTreeSet<String> {
    BACKENDS.iter().map(|ip| format!("{ip}:{port}")).collect()
}

#[test]
fn every_port_of_a_virtual_address_leads_to_that_port_of_the_tasks() {
    let lab = Lab::new("tcp");
    lab.run(|mut rig| {
        rig.serve(&vip(Protocol::Tcp));
        lab.with_and_without_bridge_filter(|| {
            for port in [80, 6379] {
                let asked = lab
                    .task
                    .enter(|| Ok([ask_tcp(port), ask_tcp(port)]))
                    .unwrap();
                assert_eq!(BTreeSet::from(asked), both_backends(port));
                let on_the_node = BTreeSet::from([ask_tcp(port), ask_tcp(port)]);
                assert_eq!(on_the_node, both_backends(port));
            }
        });
        assert!(lab.tables().contains("portolan_relay"));
        rig.remove(&vip(Protocol::Tcp));
        assert_eq!(lab.tables(), "", "the rules go with the last address");
    });
}

#[test]
fn answers_leave_from_the_virtual_address_and_port() {
    let lab = Lab::new("udp");
    lab.run(|mut rig| {
        rig.serve(&vip(Protocol::Udp));
        lab.with_and_without_bridge_filter(|| {
            for port in [80, 6379] {
                let asked = lab
                    .task
                    .enter(|| Ok([ask_udp(port), ask_udp(port)]))
                    .unwrap();
                let on_the_node = [ask_udp(port), ask_udp(port)];
                for answers in [asked, on_the_node] {
                    assert!(answers.iter().all(|(_, from)| *from == (VIP, port).into()));
                    let names = answers.map(|(name, _)| name);
                    assert_eq!(BTreeSet::from(names), both_backends(port));
                }
            }
        });
    });
}

#[test]
fn a_task_of_another_network_does_not_reach_it() {
    let lab = Lab::new("iso");
    lab.run(|mut rig| {
        rig.serve(&vip(Protocol::Tcp));
        let reach = || {
            let limit = Duration::from_millis(500);
            Ok(TcpStream::connect_timeout(&(VIP, 80).into(), limit).is_ok())
        };
        assert!(!lab.stranger.enter(reach).unwrap());
        assert!(lab.task.enter(reach).unwrap());
    });
}

#[test]
fn what_a_killed_relay_left_is_replaced_and_can_be_removed() {
    let lab = Lab::new("left");
    lab.run(|mut rig| {
        let left = "add table inet portolan_relay { set other { type ipv4_addr; }; }";
        lab.node.run(["nft", left]).unwrap();
        rig.serve(&vip(Protocol::Tcp));
        assert_eq!(
            BTreeSet::from([ask_tcp(80), ask_tcp(80)]),
            both_backends(80)
        );
        let rules = lab.node.run(["nft", "list", "ruleset"]).unwrap().stdout;
        assert!(!rules.contains("other"), "{rules}");
        portolan_relay::Relay::clean().unwrap();
        assert_eq!(lab.tables(), "");
        portolan_relay::Relay::clean().unwrap();
    });
}

#[test]
fn a_port_that_no_task_has_is_refused_and_harms_no_other() {
    let lab = Lab::new("none");
    lab.run(|mut rig| {
        rig.serve(&vip(Protocol::Tcp));
        for _ in 0..3 {
            assert!(is_reset(&ask((VIP, 9).into())));
            assert_eq!(
                BTreeSet::from([ask_tcp(80), ask_tcp(80)]),
                both_backends(80)
            );
        }
    });
}
