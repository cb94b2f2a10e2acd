//! Each program by itself (`BPF_PROG_TEST_RUN`): a packet in, and out come a verdict, a packet with right checksums,
//! and entries in the maps. Needs root. Each test has a network namespace and a BPF file system of its own.

mod agent;
mod bytes;
mod callers;
mod changes;
mod choices;
mod collisions;
mod compilers;
mod cost;
mod fragments;
mod ingress;
mod ipv6;
mod ipv6_bytes;
mod networks;
mod policies;
mod sizes;
mod tracing;
mod upgrade;
mod vlan;

use std::{path::Path, sync::Arc, thread, time::Duration};

use aya::{
    TestRunOptions,
    programs::{SchedClassifier, TestRun},
};
use portolan_model::{MacAddress, NetworkName, NodeId, Protocol};
use portolan_plane::{FrontendAddress, FrontendSpec, contract};
use rustix::{
    mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount},
    thread::{UnshareFlags, unshare_unsafe},
};

use self::bytes::{
    ACK, End, FIN, IP, RST, SYN, assert_checksums, ends, inner_ends, octets, tcp, too_big, udp,
};
use super::*;
use crate::{
    Mesh, TaskLink,
    layout::{FLOW_DELIVER, FLOW_FORWARD, Flow, Tuple, address, host_order},
};

const NEXT: u32 = u32::MAX;
const DROP: u32 = 2;
const REDIRECT: u32 = 7;

const CLIENT: End = ([10, 77, 0, 99], 40_000);
const FRONTEND: End = ([10, 77, 0, 11], 8080);
const REMOTE: End = ([10, 208, 2, 2], 80);
const LOCAL: End = ([10, 208, 1, 2], 80);
/// The segment size of the test's network.
const MSS: u16 = 1410;

/// A plane and its programs, on a node of whose links there is only the loopback.
struct Rig {
    plane: EbpfPlane,
}

/// Runs a test on a thread with namespaces of its own.
fn on_rig<T: Send>(test: impl FnOnce(&mut Rig) -> T + Send) -> T {
    on_rig_with(&[("flows", 4096)], test)
}

/// The same with maps of these sizes.
fn on_rig_with<T: Send>(
    sizes: &[(&'static str, u32)],
    test: impl FnOnce(&mut Rig) -> T + Send,
) -> T {
    let inside = || {
        let dir = tempfile::tempdir().unwrap();
        // SAFETY: no file descriptor table is unshared, which is what this call is unsafe for.
        #[expect(unsafe_code, reason = "the change is for this thread alone")]
        unsafe { unshare_unsafe(UnshareFlags::NEWNS | UnshareFlags::NEWNET) }
            .expect("root is needed");
        mount_change(
            c"/",
            MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC,
        )
        .unwrap();
        mount("bpf", dir.path(), "bpf", MountFlags::empty(), None).unwrap();
        let result = test(&mut Rig::new(&dir.path().join("portolan"), sizes));
        unmount(dir.path(), UnmountFlags::DETACH).unwrap();
        result
    };
    thread::scope(|scope| scope.spawn(inside).join().unwrap())
}

fn ingress() -> NetworkName {
    portolan_model::INGRESS_NETWORK.parse().unwrap()
}

fn mesh(link: &str, vni: u32, subnet: [u8; 4], prefix: u8) -> Mesh {
    let [a, b, c, _] = subnet;
    Mesh {
        link: link.into(),
        vni,
        subnet: subnet.into(),
        prefix,
        gateway: Ipv4Addr::new(a, b, c, 1),
        underlay: FRONTEND.0.into(),
        mtu: 1450,
    }
}

fn spec(protocol: Protocol, backends: &[End]) -> FrontendSpec {
    let addresses: Vec<Ipv4Addr> = backends.iter().map(|(ip, _)| Ipv4Addr::from(*ip)).collect();
    let mut spec = contract::spec(FRONTEND.1, protocol, &addresses);
    for backend in &mut spec.backends {
        backend.local = backend.ip == IpAddr::from(LOCAL.0);
        backend.node = NodeId::of_name(if backend.local { "n1" } else { "n2" });
    }
    spec
}

impl Rig {
    fn new(pins: &Path, sizes: &[(&'static str, u32)]) -> Self {
        let mut plane = EbpfPlane::open_with(pins, sizes).unwrap();
        let mac = |last| MacAddress([2, 0, 0, 0, 0, last]);
        plane.surroundings = Surroundings {
            networks: BTreeMap::from([(ingress(), mesh("lo", 4096, [10, 208, 0, 0], 12))]),
            outside: BTreeSet::new(),
            own: BTreeSet::from([IpAddr::from(FRONTEND.0)]),
            peers: BTreeMap::from([(NodeId::of_name("n2"), Ipv4Addr::new(10, 77, 0, 12))]),
            tasks: BTreeMap::from([(
                LOCAL.0.into(),
                TaskLink {
                    network: ingress(),
                    link: "lo".into(),
                    mac: mac(1),
                    gateway_mac: mac(2),
                },
            )]),
            ..Surroundings::default()
        };
        plane.write_surroundings().unwrap();
        Self { plane }
    }

    fn serve(&mut self, protocol: Protocol, backends: &[End]) {
        self.plane
            .upsert(&Arc::new(spec(protocol, backends)))
            .unwrap();
    }

    fn program(&mut self, name: &str) -> &mut SchedClassifier {
        self.plane
            .object
            .program_mut(name)
            .unwrap()
            .try_into()
            .unwrap()
    }

    /// The verdict on a packet, and what it has become.
    fn run(&mut self, program: &str, packet: &[u8]) -> (u32, Vec<u8>) {
        self.run_by("lo", program, packet)
    }

    /// The same for a packet that comes by this link.
    fn run_by(&mut self, link: &str, program: &str, packet: &[u8]) -> (u32, Vec<u8>) {
        let mut out = vec![0; packet.len()];
        // `struct __sk_buff`; the kernel refuses what it has no use for.
        let mut context = [0_u8; 192];
        let ifindex = links::index(link).unwrap().to_ne_bytes();
        context[40..44].copy_from_slice(&ifindex);
        let options = TestRunOptions {
            data_in: Some(packet),
            ctx_in: Some(&context),
            data_out: Some(&mut out),
            ..TestRunOptions::new()
        };
        let result = self.program(program).test_run(options).unwrap();
        (result.return_value, out)
    }

    /// The packet that a program redirects, its checksums judged.
    fn redirected(&mut self, program: &str, packet: &[u8]) -> Vec<u8> {
        let (verdict, out) = self.run(program, packet);
        assert_eq!(verdict, REDIRECT, "{program}");
        assert_checksums(&out);
        out
    }

    /// That a packet gets this verdict, is left as it is, and is counted under this name.
    fn judged(&mut self, program: &str, packet: &[u8], verdict: u32, counter: &str) {
        self.judged_by("lo", program, packet, verdict, counter);
    }

    fn judged_by(&mut self, link: &str, program: &str, packet: &[u8], verdict: u32, counter: &str) {
        let before = self.count(counter);
        let (found, out) = self.run_by(link, program, packet);
        assert_eq!(
            (found, out.as_slice()),
            (verdict, packet),
            "{program}: {counter}"
        );
        assert_eq!(self.count(counter), before + 1, "{counter}");
    }

    fn count(&self, name: &str) -> u64 {
        let counters = self.plane.counters().unwrap();
        counters
            .iter()
            .find(|(counter, _)| counter.name == name)
            .unwrap()
            .1
    }

    fn flow(&self, from: impl At, to: impl At, proto: u8) -> Option<Flow> {
        self.plane.maps.flows.get(&tuple(from, to, proto), 0).ok()
    }

    fn put(&mut self, from: impl At, to: impl At, proto: u8, flow: Flow) {
        self.plane
            .maps
            .flows
            .insert(tuple(from, to, proto), flow, 0)
            .unwrap();
    }
}

/// A link of the test's namespace.
fn link(name: &str) {
    ip(&format!("link add {name} type bridge"));
}

/// A pair of links that are up.
fn cable(end: &str, other: &str) {
    ip(&format!("link add {end} type veth peer name {other}"));
    for name in [end, other] {
        ip(&format!("link set {name} up"));
    }
    for name in [end, other] {
        // The kernel lets packets through a little later.
        let mut show = std::process::Command::new("ip");
        show.args(["-o", "link", "show", name]);
        portolan_testbed::wait_until(Duration::from_secs(5), format!("{name} is up"), || {
            let shown = String::from_utf8(show.output()?.stdout)?;
            Ok(shown.contains(" state UP ").then_some(()))
        })
        .unwrap();
    }
}

/// Runs `ip` in the test's namespace.
fn ip(args: &str) {
    let done = std::process::Command::new("ip")
        .args(args.split(' '))
        .status();
    assert!(done.unwrap().success(), "ip {args}");
}

/// One end of a flow, of either family.
trait At: Into<std::net::SocketAddr> {}

impl<E: Into<std::net::SocketAddr>> At for E {}

fn tuple(from: impl At, to: impl At, proto: u8) -> Tuple {
    let (from, to) = (from.into(), to.into());
    Tuple {
        saddr: address(from.ip()),
        daddr: address(to.ip()),
        sport: from.port().to_be_bytes(),
        dport: to.port().to_be_bytes(),
        proto,
        pad: [0; 3],
    }
}

/// MSS 1460 behind `before` bytes of no operation, filled up to whole words.
fn mss_after(before: usize) -> Vec<u8> {
    let mut options = vec![1; before];
    options.extend([2, 4, 0x05, 0xb4]);
    options.resize(options.len().next_multiple_of(4), 0);
    options
}

fn mss_in(frame: &[u8], before: usize) -> u16 {
    let at = bytes::L4 + 20 + before + 2;
    u16::from_be_bytes([frame[at], frame[at + 1]])
}
