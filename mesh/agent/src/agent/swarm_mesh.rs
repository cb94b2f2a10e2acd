//! Swarm's own mesh, where it lives: its dockerd listens on the ports that the Swarm publishes, and IPVS forwards
//! them. Nothing can be bound there; but packets reach the fast path first, and what that lets pass is served by
//! Docker as it was before.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
};

use portolan_docker::is_of_swarm;
use portolan_model::{Protocol, Snapshot};
use portolan_plane::{Actual, Frontend, FrontendAddress};

/// `/proc/net` of the calling thread's namespace.
const NET: &str = "/proc/thread-self/net";
/// Who holds the ports.
const DAEMON: &str = "dockerd";
/// `TCP_LISTEN` and, of UDP, `TCP_CLOSE`, as `/proc/net` shows them (`include/net/tcp_states.h`).
const LISTENS: [&str; 2] = ["0A", "07"];

/// Those of some frontends which Docker itself serves for the same services: a process with another purpose that has
/// the port of a Swarm's service keeps it.
pub(super) fn held<'a>(
    frontends: impl IntoIterator<Item = &'a Frontend>,
    told: &Actual,
    snapshot: &Snapshot,
) -> BTreeSet<Frontend> {
    let mut published = frontends.into_iter().filter(|frontend| {
        let spec = told.get(frontend);
        let view = spec.and_then(|spec| snapshot.services.get(&spec.service));
        frontend.address == FrontendAddress::Node
            && view.is_some_and(|view| is_of_swarm(view.service.spec_version))
    });
    let Some(first) = published.next() else {
        return BTreeSet::new();
    };
    let sockets = Sockets::of_docker();
    let all = [first].into_iter().chain(published);
    let held = all.filter(|frontend| sockets.have(frontend.protocol, frontend.port));
    held.cloned().collect()
}

/// What is to be known of Docker's sockets.
enum Sockets {
    /// Their inodes.
    Known(BTreeSet<u64>),
    /// Its process cannot be seen, from within a container say, and IPVS is there.
    Unseen,
}

impl Sockets {
    fn of_docker() -> Self {
        let daemons = processes_called(DAEMON);
        if daemons.is_empty() && Path::new(NET).join("ip_vs").exists() {
            return Self::Unseen;
        }
        Self::Known(daemons.iter().flat_map(|dir| sockets_of(dir)).collect())
    }

    fn have(&self, protocol: Protocol, port: u16) -> bool {
        match self {
            Self::Known(inodes) => listeners(protocol, port).any(|inode| inodes.contains(&inode)),
            Self::Unseen => true,
        }
    }
}

/// The directories in `/proc` of the processes of a name.
fn processes_called(name: &str) -> Vec<PathBuf> {
    let all = fs::read_dir("/proc").into_iter().flatten().flatten();
    let all = all.map(|entry| entry.path());
    let called = |dir: &PathBuf| {
        fs::read_to_string(dir.join("comm")).is_ok_and(|comm| comm.trim_end() == name)
    };
    all.filter(called).collect()
}

/// The inodes of a process's sockets.
fn sockets_of(process: &Path) -> impl Iterator<Item = u64> {
    let files = fs::read_dir(process.join("fd")).into_iter().flatten();
    let targets = files.filter_map(|file: io::Result<_>| fs::read_link(file.ok()?.path()).ok());
    targets.filter_map(|target| {
        let inode = target.to_str()?.strip_prefix("socket:[")?;
        inode.strip_suffix(']')?.parse().ok()
    })
}

/// The inodes of the sockets that listen on a port, at whichever address.
fn listeners(protocol: Protocol, port: u16) -> impl Iterator<Item = u64> {
    ["", "6"].into_iter().flat_map(move |family| {
        let table = fs::read_to_string(format!("{NET}/{protocol}{family}")).unwrap_or_default();
        let inodes: Vec<u64> = table
            .lines()
            .filter_map(|line| listener(line, port))
            .collect();
        inodes
    })
}

/// The inode in a line of `/proc/net/tcp` and its like (proc(5)), if it is one of a socket that listens on the port.
fn listener(line: &str, port: u16) -> Option<u64> {
    let mut fields = line.split_whitespace();
    let (_, local) = fields.nth(1)?.rsplit_once(':')?;
    let state = fields.nth(1)?;
    let listens = u16::from_str_radix(local, 16) == Ok(port) && LISTENS.contains(&state);
    // After the queues, the timer, the retransmissions, the user and the timeout.
    listens.then(|| fields.nth(5)?.parse().ok())?
}

#[cfg(test)]
mod tests {
    use std::{net::TcpListener, process::Command};

    use super::*;

    #[test]
    fn a_listener_is_told_from_a_connection() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   \
            0: 00000000:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 41 1 0 100 0 0 10 0\n   \
            1: 0100007F:1F90 0100007F:C350 01 00000000:00000000 00:00000000 00000000     0        0 42 1 0 20 4 30 10 -1\n   \
            2: 00000000:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 43 1 0 100 0 0 10 0\n";
        let found: Vec<u64> = table.lines().filter_map(|l| listener(l, 8080)).collect();
        assert_eq!(found, [41]);
    }

    #[test]
    fn a_port_is_its_holders() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let inodes: BTreeSet<u64> = listeners(Protocol::Tcp, port).collect();
        assert_eq!(inodes.len(), 1);
        let own: BTreeSet<u64> = sockets_of(Path::new("/proc/self")).collect();
        assert!(own.is_superset(&inodes));
        let mut other = Command::new("sleep").arg("60").spawn().unwrap();
        let theirs =
            Sockets::Known(sockets_of(Path::new(&format!("/proc/{}", other.id()))).collect());
        assert!(!theirs.have(Protocol::Tcp, port) && Sockets::Known(own).have(Protocol::Tcp, port));
        other.kill().unwrap();
        other.wait().unwrap();
    }
}
