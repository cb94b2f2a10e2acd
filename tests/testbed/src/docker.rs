//! Docker engines on the nodes of a lab, each with mounts, network and host name of its own.

mod cgroup;
mod image;

use std::ffi::OsStr;
use std::fs;
use std::net::Ipv4Addr;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::process::{Output, Process, output_within};
use crate::programs::require;
use crate::{Lab, Node, wait_until};

const START: Duration = Duration::from_secs(20);
const STOP: Duration = Duration::from_secs(30);
const COMMAND: Duration = Duration::from_secs(30);

const CONTAINERD_PID: &str = "/run/docker/containerd/containerd.pid";

/// What an engine's mounts are, seen from inside: a `/run` and a `/var/lib/docker` of its own, as two
/// engines would otherwise share their sockets and `/var/lib/docker/network`. `/sys/fs/cgroup` stays the
/// machine's. `/run` is shared as systemd makes it, and lookups of names fail at once, as there is no
/// server: without that each service would wait for a registry.
const MOUNTS: &str = "\
set -e
mount --make-rprivate /
mount -t tmpfs tmpfs /run
mount --make-shared /run
mkdir -p /run/lock /run/docker/plugins /var/lib/docker /etc/docker
mount --bind \"$1/etc\" /etc/docker
mount --bind \"$1/lib\" /var/lib/docker
mount --bind \"$1/resolv.conf\" /etc/resolv.conf
touch \"$1/mounted\"
exec sleep infinity
";

/// A Docker engine on a node of a lab. Its containers, files and mounts go on drop.
///
/// Images come from no registry: there is one, [`Engine::IMAGE`], of busybox, with the same identity on all
/// engines.
#[derive(Debug)]
pub struct Engine {
    // Ended in this order.
    daemon: Option<Process>,
    containers: cgroup::Parent,
    holder: Process,
    node: Node,
    dir: tempfile::TempDir,
}

impl Engine {
    /// An image of busybox, with all its programs in `/bin`.
    pub const IMAGE: &str = "busybox:testbed";

    /// Starts an engine on a node, and waits until it answers.
    ///
    /// # Errors
    /// It needs root, dockerd, iptables and a static busybox, and says which is missing.
    pub fn start(node: Node) -> Result<Self> {
        require(&[
            "dockerd", "docker", "busybox", "iptables", "nsenter", "unshare",
        ])?;
        let dir = tempfile::Builder::new()
            .prefix(&format!("{}-", node.name()))
            .tempdir()?;
        for sub in ["etc", "lib", "data", "config", "files"] {
            fs::create_dir(dir.path().join(sub))?;
        }
        // The node itself, on which nothing listens.
        fs::write(dir.path().join("resolv.conf"), "nameserver 127.0.0.1\n")?;
        let mut mounts = node.command("unshare");
        mounts.args([
            "--mount",
            "--propagation",
            "private",
            "sh",
            "-c",
            MOUNTS,
            "sh",
        ]);
        let holder = node.spawn(mounts.arg(dir.path()))?;
        let mounted = dir.path().join("mounted");
        wait_until(START, "the engine's mounts are made", || {
            ensure!(holder.is_running(), "{}", holder.log_tail());
            Ok(mounted.exists().then_some(()))
        })?;
        let mut engine = Self {
            daemon: None,
            containers: cgroup::Parent::new(node.name())?,
            holder,
            dir,
            node,
        };
        engine.start_again()?;
        image::import(&engine)?;
        Ok(engine)
    }

    /// Starts so many engines, on new nodes `n1`, `n2` and so on of a lab.
    pub fn start_many(lab: &Lab, engines: u32) -> Result<Vec<Self>> {
        let nodes: Vec<Node> = (1..=engines)
            .map(|number| lab.node(&format!("n{number}")))
            .collect::<Result<_>>()?;
        for_each(nodes, Self::start)
    }

    /// The node that it is on.
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// The socket of its API, which can be reached from everywhere on the machine.
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("docker.sock")
    }

    /// A directory for files of the programs on it, which they see where everyone else does; it goes with the engine.
    /// What they mount there, only they see.
    pub fn dir(&self) -> PathBuf {
        self.dir.path().join("files")
    }

    /// A command that will run on the node with the engine's mounts: where the paths are true that the
    /// engine tells of network namespaces, and `/run/docker.sock` is the engine's.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = self.node.command("nsenter");
        command.arg(format!("--mount=/proc/{}/ns/mnt", self.holder.pid()));
        command.arg("--").arg(program);
        command
    }

    /// Starts what [`Engine::command`] has made, which stays.
    pub fn spawn(&self, command: &mut Command) -> Result<Process> {
        self.node.spawn(command)
    }

    /// Runs `docker` with these words, and gives what it prints, without the last line's end.
    ///
    /// # Errors
    /// It fails, or has not ended within 30 s: with all that it printed.
    pub fn docker(&self, words: &[&str]) -> Result<String> {
        let output = self.docker_output(words)?.success()?;
        Ok(output.stdout.trim_end().to_owned())
    }

    /// As [`Engine::docker`], with any exit status.
    pub fn docker_output(&self, words: &[&str]) -> Result<Output> {
        let mut command = Command::new("docker");
        command
            .env("DOCKER_HOST", format!("unix://{}", self.socket().display()))
            .env("DOCKER_CONFIG", self.dir.path().join("config"))
            .args(words);
        output_within(&mut command, COMMAND)
    }

    /// Imports images from one file system: busybox, and these programs with their libraries in `/bin`. Each image has a
    /// name, and changes as those of `docker import --change`. Their identities differ on each engine, as those of
    /// imported images do: a Swarm finds them by name.
    pub fn import(engines: &[&Self], programs: &[&Path], images: &[(&str, &[&str])]) -> Result<()> {
        let dir = tempfile::tempdir()?;
        let packed = image::pack(dir.path(), programs)?;
        for_each(engines, |engine| {
            for (name, changes) in images {
                let mut words = vec!["import", "-c", "ENV PATH=/bin"];
                words.extend(changes.iter().flat_map(|change| ["-c", *change]));
                let packed = packed.to_string_lossy();
                words.extend([&*packed, *name]);
                engine.docker(&words)?;
            }
            Ok(())
        })?;
        Ok(())
    }

    /// Creates a service of [`Engine::IMAGE`] and gives its identity; `options` are those of `docker service
    /// create`. It waits for no registry, nor for the tasks.
    pub fn create_service(&self, name: &str, options: &[&str], program: &[&str]) -> Result<String> {
        let mut words = vec![
            "service",
            "create",
            "-d",
            "-q",
            "--no-resolve-image",
            "--name",
            name,
        ];
        words.extend(options);
        // By its identity: a name would be asked for at a registry.
        let image = image::identity(self)?;
        words.push(&image);
        words.extend(program);
        self.docker(&words)
    }

    /// Begins a Swarm with the node's address, and gives what workers join it with.
    pub fn init_swarm(&self) -> Result<String> {
        let address = self.node.ipv4().to_string();
        // Apart from the addresses of labs.
        self.docker(&[
            "swarm",
            "init",
            "--advertise-addr",
            &address,
            "--default-addr-pool",
            "10.96.0.0/12",
        ])?;
        self.docker(&["swarm", "join-token", "-q", "worker"])
    }

    /// Joins the Swarm that was begun at an address.
    pub fn join_swarm(&self, token: &str, manager: Ipv4Addr) -> Result<()> {
        let address = self.node.ipv4().to_string();
        let manager = format!("{manager}:2377");
        self.docker(&[
            "swarm",
            "join",
            "--advertise-addr",
            &address,
            "--token",
            token,
            &manager,
        ])?;
        Ok(())
    }

    /// Ends the engine by SIGTERM, as a restart of its unit does; it ends its containers.
    pub fn stop(&mut self) -> Result<ExitStatus> {
        let mut daemon = self.daemon.take().context("the engine does not run")?;
        daemon.terminate(STOP)
    }

    /// Kills the engine, whose containers go on.
    pub fn kill(&mut self) -> Result<ExitStatus> {
        let mut daemon = self.daemon.take().context("the engine does not run")?;
        let status = daemon.kill()?;
        // The kernel kills containerd with it. Where the machine's first process does not reap what is left
        // to it, the next dockerd would take the dead one for one that runs.
        let mut read = self.command("cat");
        let pid = output_within(read.arg(CONTAINERD_PID), COMMAND)?.success()?;
        let pid = pid.stdout.trim().to_owned();
        wait_until(STOP, "containerd has ended", || {
            Ok(has_ended(&pid).then_some(()))
        })?;
        output_within(self.command("rm").args(["-f", CONTAINERD_PID]), COMMAND)?.success()?;
        Ok(status)
    }

    /// Starts the engine after [`Engine::stop`] or [`Engine::kill`], and waits until it answers.
    pub fn start_again(&mut self) -> Result<()> {
        ensure!(self.daemon.is_none(), "the engine runs");
        let host = |path: &Path| format!("unix://{}", path.display());
        let mut command = self.command("dockerd");
        command
            .arg("--data-root")
            .arg(self.dir.path().join("data"))
            .args(["--exec-root", "/run/docker", "--pidfile", "/run/docker.pid"])
            .args(["-H", &host(&self.socket()), "-H", "unix:///run/docker.sock"])
            // With systemd's driver the containers would be in a slice of the machine's.
            .args(["--exec-opt", "native.cgroupdriver=cgroupfs"])
            .args(["--cgroup-parent", &self.containers.path()]);
        let daemon = self.node.spawn(&mut command)?;
        wait_until(START, "the engine answers", || {
            if !daemon.is_running() {
                return Ok(Some(false));
            }
            let answer = self.docker_output(&["version", "--format", "{{.Server.Version}}"])?;
            Ok(answer.success().is_ok().then_some(true))
        })
        .and_then(|answers| answers.then_some(()).context("dockerd has ended"))
        .map_err(|error| error.context(daemon.log_tail()))?;
        self.daemon = Some(daemon);
        Ok(())
    }

    /// What the engine has written last.
    pub fn log_tail(&self) -> String {
        self.daemon
            .as_ref()
            .map_or_else(String::new, Process::log_tail)
    }
}

/// Whether no process has this number, or none that runs (`proc_pid_stat(5)`, field 3).
fn has_ended(pid: &str) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit_once(')').map(|(_, fields)| fields.trim_start());
    state.is_none_or(|fields| fields.starts_with(['Z', 'X']))
}

impl Drop for Engine {
    fn drop(&mut self) {
        // Processes of plugins are in no cgroup of ours; an engine that is killed leaves them.
        let plugins = self.docker(&["plugin", "ls", "--quiet"]);
        for plugin in plugins.unwrap_or_default().lines() {
            self.docker(&["plugin", "disable", "--force", plugin]).ok();
        }
        // Killed first, so that it starts no container anew. What cannot be removed here is by the next
        // engine's start; mounts go with the last process that has them.
        drop(self.daemon.take());
        self.containers.remove().ok();
    }
}

/// Several engines as one Swarm, of which the first is the manager.
#[derive(Debug)]
pub struct Swarm {
    /// The engines, on the nodes `n1`, `n2` and so on.
    pub engines: Vec<Engine>,
}

impl Swarm {
    /// Starts so many engines on new nodes of a lab, and joins them; it takes some seconds.
    pub fn start(lab: &Lab, engines: u32) -> Result<Self> {
        let swarm = Self {
            engines: Engine::start_many(lab, engines)?,
        };
        let manager = swarm.manager()?;
        let token = manager.init_swarm()?;
        for worker in swarm.engines.iter().skip(1) {
            worker.join_swarm(&token, manager.node().ipv4())?;
        }
        Ok(swarm)
    }

    /// The engine that began the Swarm.
    pub fn manager(&self) -> Result<&Engine> {
        self.engines.first().context("a Swarm has an engine")
    }
}

/// Does the same for each at the same time; the results are in their order.
fn for_each<T: Send, R: Send>(
    all: impl IntoIterator<Item = T>,
    work: impl Fn(T) -> Result<R> + Sync,
) -> Result<Vec<R>> {
    let work = &work;
    thread::scope(|scope| {
        let all = all.into_iter();
        let started: Vec<_> = all.map(|one| scope.spawn(move || work(one))).collect();
        let ends = started
            .into_iter()
            .map(|one| one.join().unwrap_or_else(|panic| resume_unwind(panic)));
        ends.collect()
    })
}
