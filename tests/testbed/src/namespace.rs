//! One network namespace, what runs in it, and its removal.

mod netns;
mod pids;
mod registry;

use std::ffi::{CString, OsStr};
use std::fs;
use std::net::IpAddr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::forward::Protocol;
use crate::process::{Output, Process, output_within};
use crate::programs::{ip, ip_batch};
use crate::wait_until;

pub(crate) use netns::Netns;
pub use registry::sweep;

const RUN_LIMIT: Duration = Duration::from_mins(1);

/// A network namespace that is removed on drop, with all that runs in it.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    netns: Netns,
    dir: PathBuf,
    hostname: Option<String>,
    started: AtomicU32,
    removed: bool,
}

impl Namespace {
    /// Makes a namespace in which only the loopback is up.
    ///
    /// Names are `pt-` and then lower-case letters, digits and `-`. What is left of one of this
    /// name whose owner is gone is removed first.
    ///
    /// # Errors
    /// A bad name, one that is in use, no root, or no `ip`.
    pub fn create(name: &str) -> Result<Self> {
        check_name(name)?;
        let dir = registry::claim(name)?;
        match Self::build(name, &dir) {
            Ok(namespace) => Ok(namespace),
            Err(error) => match registry::remove(name) {
                Ok(()) => Err(error),
                Err(removal) => Err(error.context(format!("and then: {removal:#}"))),
            },
        }
    }

    fn build(name: &str, dir: &Path) -> Result<Self> {
        ip(&["netns", "add", name])?;
        ip_batch(name, "link set lo up\n")?;
        Ok(Self {
            name: name.to_owned(),
            netns: Netns::open(name)?,
            dir: dir.to_owned(),
            hostname: None,
            started: AtomicU32::new(0),
            removed: false,
        })
    }

    /// Gives commands that are made from now on a host name of their own.
    #[must_use]
    pub fn with_hostname(mut self, hostname: &str) -> Self {
        self.hostname = Some(hostname.to_owned());
        self
    }

    /// Its name, as in `ip netns`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// `/run/netns/NAME`, which other programs open to enter it.
    pub fn path(&self) -> PathBuf {
        netns::path(&self.name)
    }

    /// A directory of its own for logs, configuration and state; it goes with the namespace, and so
    /// does what is mounted there.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A command that will run inside.
    ///
    /// It shares the caller's mounts, `/sys` included, with one exception: after
    /// [`Namespace::set_resolver`] it has its own `/etc/resolv.conf`. Its host name is the
    /// caller's too, unless [`Namespace::with_hostname`] gave one.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        let (netns, hostname) = (self.netns.clone(), self.hostname.clone());
        let resolver = self.resolver_file();
        let resolver = resolver
            .exists()
            .then(|| CString::new(resolver.as_os_str().as_bytes()).ok())
            .flatten();
        // SAFETY: after the fork, before the exec, only system calls are made; nothing is
        // allocated and no lock is taken.
        #[expect(unsafe_code, reason = "only the child itself can enter the namespace")]
        unsafe {
            command.pre_exec(move || {
                netns.enter()?;
                if let Some(hostname) = &hostname {
                    netns::set_hostname(hostname)?;
                }
                match &resolver {
                    Some(file) => netns::mount_resolver(file),
                    None => Ok(()),
                }
            });
        }
        command
    }

    /// Runs a program inside to its end, which must come within 60 s and be a success. What it
    /// leaves in its process group is killed; [`output_within`] takes another time.
    ///
    /// # Errors
    /// Otherwise: the command, its status and both outputs.
    pub fn run(&self, args: impl IntoIterator<Item: AsRef<OsStr>>) -> Result<Output> {
        self.output(args)?.success()
    }

    /// As [`Namespace::run`], but with any exit status.
    pub fn output(&self, args: impl IntoIterator<Item: AsRef<OsStr>>) -> Result<Output> {
        let mut args = args.into_iter();
        let program = args.next().context("no program given")?;
        output_within(self.command(program).args(args), RUN_LIMIT)
            .with_context(|| format!("in {}", self.name))
    }

    /// Starts a program that stays, made by [`Namespace::command`].
    ///
    /// # Errors
    /// When it cannot be started; names the Debian package when it is not installed.
    pub fn spawn(&self, command: &mut Command) -> Result<Process> {
        let program = Path::new(command.get_program());
        let program = program.file_name().unwrap_or_default().to_string_lossy();
        let number = self.started.fetch_add(1, Ordering::Relaxed);
        let log = self.dir.join(format!("{program}-{number}.log"));
        Process::spawn(command, log, self.netns.clone())
            .with_context(|| format!("in {}", self.name))
    }

    /// Runs a closure on a thread inside the namespace; the sockets it makes belong there, also
    /// when it returns them. A panic in it goes on in the caller.
    ///
    /// # Errors
    /// Those of the closure, and when the namespace cannot be entered.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        self.netns.run(work)
    }

    /// Waits up to 10 s until something inside listens on this TCP port or has bound this UDP
    /// port, on whatever address.
    pub fn wait_listening(&self, protocol: Protocol, port: u16) -> Result<()> {
        let what = format!("port {port}/{protocol} is open in {}", self.name);
        wait_until(Duration::from_secs(10), what, || {
            let open = self.netns.has_open_port(protocol, port)?;
            Ok(open.then_some(()))
        })
    }

    /// Gives commands that are made from now on, and those of `ip netns exec`, a resolver of
    /// their own. Called again it also changes that of the programs that run already.
    pub fn set_resolver(&self, server: IpAddr, search: &[&str], options: &[&str]) -> Result<()> {
        let file = self.resolver_file();
        if let Some(dir) = file.parent() {
            fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
        }
        fs::write(&file, resolver_text(server, search, options))
            .with_context(|| file.display().to_string())
    }

    /// Sets a kernel parameter of the network, such as `net.ipv4.ip_forward`, inside.
    pub fn set_sysctl(&self, key: &str, value: &str) -> Result<()> {
        let file = Path::new("/proc/sys").join(key.replace('.', "/"));
        self.enter(|| fs::write(&file, value).with_context(|| format!("{key} = {value}")))
    }

    /// Removes it, as drop does, and tells what went wrong.
    pub fn remove(mut self) -> Result<()> {
        self.removed = true;
        registry::remove(&self.name)
    }

    pub(crate) fn netns(&self) -> &Netns {
        &self.netns
    }

    fn resolver_file(&self) -> PathBuf {
        registry::etc_dir(&self.name).join("resolv.conf")
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if !self.removed {
            // Nothing can be done about an error here; what stays is removed by a later sweep.
            registry::remove(&self.name).ok();
        }
    }
}

fn check_name(name: &str) -> Result<()> {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let rest = name.strip_prefix("pt-").unwrap_or_default();
    if rest.is_empty() || name.len() > 64 || !rest.chars().all(allowed) {
        bail!("namespace name {name:?}: must be pt- and then a-z, 0-9 and -, at most 64 in all");
    }
    Ok(())
}

fn resolver_text(server: IpAddr, search: &[&str], options: &[&str]) -> String {
    let lines = [("search", search), ("options", options)];
    let given = lines.iter().filter(|(_, words)| !words.is_empty());
    given.fold(format!("nameserver {server}\n"), |text, (key, words)| {
        text + key + " " + &words.join(" ") + "\n"
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        assert!(check_name("pt-demo-n1").is_ok());
        for bad in ["", "pt-", "demo", "pt-../x", "pt-a b", "pt-A"] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn resolver_text_has_only_what_is_given() {
        let server = "10.0.0.1".parse().unwrap();
        assert_eq!(resolver_text(server, &[], &[]), "nameserver 10.0.0.1\n");
        assert_eq!(
            resolver_text(server, &["a", "b"], &["ndots:0"]),
            "nameserver 10.0.0.1\nsearch a b\noptions ndots:0\n"
        );
    }
}
