//! Programs that are run to their end, and programs that stay.

use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, kill_process_group, pidfd_open, pidfd_send_signal};

use crate::forward::Protocol;
use crate::namespace::Netns;
use crate::programs::start_error;
use crate::wait_until;

pub use rustix::process::Signal;

const LISTEN_DEADLINE: Duration = Duration::from_secs(10);
const TAIL_LINES: usize = 25;

/// What a program that has ended left.
#[derive(Debug, Clone)]
pub struct Output {
    /// The command line, for messages.
    pub command: String,
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output; bytes that are no UTF-8 are replaced.
    pub stdout: String,
    /// Its standard error; bytes that are no UTF-8 are replaced.
    pub stderr: String,
}

impl Output {
    /// The output, if the exit status is zero.
    ///
    /// # Errors
    /// Otherwise: the command, its status and both outputs.
    pub fn success(self) -> Result<Self> {
        if self.status.success() {
            return Ok(self);
        }
        bail!(
            "`{}` failed, {}\nstdout: {}\nstderr: {}",
            self.command,
            self.status,
            self.stdout.trim_end(),
            self.stderr.trim_end()
        );
    }
}

/// Runs a command to its end, whatever its exit status; past `within` it is killed.
///
/// # Errors
/// When it cannot be started, or does not end in time.
pub fn output_within(command: &mut Command, within: Duration) -> Result<Output> {
    complete(command, "", within)
}

/// As [`output_within`], with `input` as standard input.
pub(crate) fn complete(command: &mut Command, input: &str, within: Duration) -> Result<Output> {
    // Files, not pipes: nothing has to be read while the program runs, and a grandchild that
    // keeps an output open holds nobody up.
    let mut stdin = tempfile::tempfile()?;
    stdin.write_all(input.as_bytes())?;
    stdin.rewind()?;
    let (stdout, stderr) = (tempfile::tempfile()?, tempfile::tempfile()?);
    command
        .stdin(stdin)
        .stdout(stdout.try_clone()?)
        .stderr(stderr.try_clone()?);
    let line = line_of(command);
    let mut running = Running::start(command)?;
    let ended = running.wait(within)?;
    running.kill()?;
    let output = Output {
        command: line,
        status: running.reap()?,
        stdout: text_of(stdout)?,
        stderr: text_of(stderr)?,
    };
    if !ended {
        bail!(
            "`{}` did not end within {within:?}\nstdout: {}\nstderr: {}",
            output.command,
            output.stdout.trim_end(),
            output.stderr.trim_end()
        );
    }
    Ok(output)
}

/// A program that stays, in a process group of its own, both its outputs in one log file.
///
/// Drop kills the group and reaps the program; in a panic it shows the end of the log.
#[derive(Debug)]
pub struct Process {
    running: Running,
    line: String,
    log: PathBuf,
    netns: Netns,
}

impl Process {
    pub(crate) fn spawn(command: &mut Command, log: PathBuf, netns: Netns) -> Result<Self> {
        let file = File::options().create(true).append(true).open(&log)?;
        command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file);
        Ok(Self {
            line: line_of(command),
            running: Running::start(command)?,
            log,
            netns,
        })
    }

    /// Waits up to 10 s until something in the namespace listens on this TCP port.
    ///
    /// # Errors
    /// When the program ends before, or the time is over: with the end of its log.
    pub fn listening(self, port: u16) -> Result<Self> {
        self.bound(Protocol::Tcp, port)
    }

    /// As [`Process::listening`], for either protocol.
    pub fn bound(self, protocol: Protocol, port: u16) -> Result<Self> {
        let what = format!("`{}` has opened port {port}/{protocol}", self.line);
        let open = wait_until(LISTEN_DEADLINE, what, || {
            let open = self.netns.has_open_port(protocol, port)?;
            Ok((open || !self.is_running()).then_some(open))
        });
        let error = match open {
            Ok(true) => return Ok(self),
            Ok(false) => anyhow!("`{}` has ended already", self.line),
            Err(error) => error,
        };
        Err(error.context(self.log_tail()))
    }

    /// Its process id; that of its process group too.
    pub fn pid(&self) -> u32 {
        self.running.child.id()
    }

    /// Whether it has not ended.
    pub fn is_running(&self) -> bool {
        !self.running.has_ended()
    }

    /// Sends a signal to the program itself; nothing happens when it has ended.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        match pidfd_send_signal(&self.running.pidfd, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error).with_context(|| format!("signal to `{}`", self.line)),
        }
    }

    /// Asks it to end by SIGTERM, and waits for that.
    ///
    /// # Errors
    /// When it has not ended in time: with the end of its log. It goes on running then.
    pub fn terminate(&mut self, within: Duration) -> Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        self.wait(within)
    }

    /// Waits until it ends of itself.
    ///
    /// # Errors
    /// When it has not ended in time: with the end of its log. It goes on running then.
    pub fn wait(&mut self, within: Duration) -> Result<ExitStatus> {
        if !self.running.wait(within)? {
            bail!(
                "`{}` did not end within {within:?}\n{}",
                self.line,
                self.log_tail()
            );
        }
        self.kill()
    }

    /// Kills it and its process group by SIGKILL, and reaps it.
    pub fn kill(&mut self) -> Result<ExitStatus> {
        self.running.kill()?;
        Ok(self.running.reap()?)
    }

    /// The file with its standard output and standard error.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// All that it has written so far.
    pub fn log_text(&self) -> Result<String> {
        let bytes = fs::read(&self.log).with_context(|| self.log.display().to_string())?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The last lines of the log under a heading, for messages.
    pub fn log_tail(&self) -> String {
        let text = match self.log_text() {
            Ok(text) => text,
            Err(error) => return format!("no log of `{}`: {error:#}", self.line),
        };
        let lines: Vec<&str> = text.lines().collect();
        let tail = lines.len().saturating_sub(TAIL_LINES);
        let tail = lines.get(tail..).unwrap_or_default().join("\n");
        format!("the log of `{}` ends with:\n{tail}", self.line)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if thread::panicking() {
            #[expect(
                clippy::print_stderr,
                reason = "the log goes with the namespace, and a failed test needs it"
            )]
            {
                eprintln!("{}", self.log_tail());
            }
        }
    }
}

/// A child with its group. It is only reaped by [`Running::reap`], after its group was killed:
/// until then its id, and with it that of the group, can belong to nobody else.
#[derive(Debug)]
struct Running {
    child: Child,
    pidfd: OwnedFd,
    reaped: bool,
}

impl Running {
    fn start(command: &mut Command) -> Result<Self> {
        command.process_group(0);
        let mut child = command
            .spawn()
            .map_err(|error| start_error(command.get_program(), error))?;
        match pidfd_open(Pid::from_child(&child), PidfdFlags::empty()) {
            Ok(pidfd) => Ok(Self {
                child,
                pidfd,
                reaped: false,
            }),
            Err(error) => {
                child.kill()?;
                child.wait()?;
                Err(error).context("pidfd_open")
            }
        }
    }

    /// Whether it has ended, waiting for that as long as `within`.
    fn wait(&self, within: Duration) -> Result<bool> {
        if self.reaped {
            return Ok(true);
        }
        let deadline = Instant::now() + within;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = Timespec::try_from(left).context("too long a time")?;
            // A pidfd is readable from the end of the process on (pidfd_open(2)).
            let mut fds = [PollFd::new(&self.pidfd, PollFlags::IN)];
            match poll(&mut fds, Some(&timeout)) {
                Ok(ready) => return Ok(ready > 0),
                // A signal to the caller, such as Ctrl-C to the demo.
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error).context("poll"),
            }
        }
    }

    fn has_ended(&self) -> bool {
        self.wait(Duration::ZERO).unwrap_or(true)
    }

    fn kill(&self) -> io::Result<()> {
        if self.reaped {
            return Ok(());
        }
        match kill_process_group(Pid::from_child(&self.child), Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn reap(&mut self) -> io::Result<ExitStatus> {
        let status = self.child.wait()?;
        self.reaped = true;
        Ok(status)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Nothing can be done about an error here; a process that stays is found by the sweep.
        if self.kill().is_ok() {
            self.reap().ok();
        }
    }
}

fn line_of(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let words: Vec<_> = words.map(|word| word.to_string_lossy()).collect();
    words.join(" ")
}

fn text_of(mut file: File) -> io::Result<String> {
    file.rewind()?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
