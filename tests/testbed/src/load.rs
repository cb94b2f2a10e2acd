//! A load of HTTP requests, each on a connection of its own.

mod report;

use std::panic::resume_unwind;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::Namespace;
use crate::http::{Response, Target};
use crate::namespace::Netns;
pub use report::{Failure, Record, Report};

/// How long a worker rests after a failure, so that a refused port is not asked in a hot loop.
const REST_AFTER_FAILURE: Duration = Duration::from_millis(5);
/// Past this many requests under way at once, a load by rate falls behind its rate.
const MOST_AT_ONCE: u32 = 64;

/// How a load is made.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    pace: Pace,
    connect_timeout: Duration,
    total_timeout: Duration,
    check: Option<Check>,
}

/// What else an answer of status 200 has to be; otherwise why it is none.
pub type Check = fn(&Response) -> Result<(), String>;

#[derive(Debug, Clone, Copy)]
enum Pace {
    Workers(u32),
    PerSecond(u32),
}

impl LoadOptions {
    /// So many workers, each asking again as soon as it has its answer.
    pub fn workers(workers: u32) -> Self {
        Self::new(Pace::Workers(workers))
    }

    /// So many requests per second, evenly spaced, however long the answers take; at most 64
    /// are under way at once.
    pub fn per_second(rate: u32) -> Self {
        Self::new(Pace::PerSecond(rate))
    }

    /// The time for connecting; 5 s by default.
    #[must_use]
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// The time for the whole request, connecting included; 10 s by default.
    #[must_use]
    pub fn total_timeout(mut self, timeout: Duration) -> Self {
        self.total_timeout = timeout;
        self
    }

    /// Counts an answer as a failure that is not as it has to be.
    #[must_use]
    pub fn check(mut self, check: Check) -> Self {
        self.check = Some(check);
        self
    }

    fn new(pace: Pace) -> Self {
        Self {
            pace,
            connect_timeout: Duration::from_secs(5),
            total_timeout: Duration::from_secs(10),
            check: None,
        }
    }
}

/// A load that runs until it is stopped or dropped.
#[derive(Debug)]
pub struct Load {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<Result<()>>>,
}

impl Load {
    /// Starts to ask `target`, as for [`crate::http_get`], from inside a namespace.
    pub fn start(from: &Namespace, target: &str, options: LoadOptions) -> Result<Self> {
        let workers = match options.pace {
            Pace::Workers(count) => count,
            Pace::PerSecond(rate) => rate.min(MOST_AT_ONCE),
        };
        if workers == 0 {
            bail!("a load of nothing");
        }
        let shared = Arc::new(Shared {
            target: target.parse()?,
            options,
            netns: from.netns().clone(),
            start: Instant::now(),
            state: Mutex::default(),
            stop: Condvar::new(),
        });
        let mut load = Self {
            shared,
            workers: Vec::new(),
        };
        for number in 0..workers {
            let shared = Arc::clone(&load.shared);
            let worker = thread::Builder::new()
                .name(format!("load-{number}"))
                .spawn(move || shared.work())
                .context("cannot start a thread")?;
            load.workers.push(worker);
        }
        Ok(load)
    }

    /// The time since its start, the clock of [`Record::at`].
    pub fn elapsed(&self) -> Duration {
        self.shared.start.elapsed()
    }

    /// How many requests have ended so far.
    pub fn requests(&self) -> usize {
        self.shared.lock().records.len()
    }

    /// How many of them were answered with status 200.
    pub fn answers(&self) -> usize {
        let state = self.shared.lock();
        state.records.iter().filter(|r| r.outcome.is_ok()).count()
    }

    /// Stops, waits for the requests that are under way, and tells what happened.
    ///
    /// # Errors
    /// When the namespace could not be entered.
    pub fn stop(mut self) -> Result<Report> {
        self.finish()?;
        let records = std::mem::take(&mut self.shared.lock().records);
        Ok(Report::of(records))
    }

    fn finish(&mut self) -> Result<()> {
        self.shared.lock().stopped = true;
        self.shared.stop.notify_all();
        for worker in self.workers.drain(..) {
            worker.join().unwrap_or_else(|panic| resume_unwind(panic))?;
        }
        Ok(())
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        // Who drops a load without stopping it does not want its results.
        self.finish().ok();
    }
}

#[derive(Debug)]
struct Shared {
    target: Target,
    options: LoadOptions,
    netns: Netns,
    start: Instant,
    state: Mutex<State>,
    stop: Condvar,
}

#[derive(Debug, Default)]
struct State {
    stopped: bool,
    /// How many requests have been begun.
    begun: u32,
    records: Vec<Record>,
}

impl Shared {
    fn work(&self) -> Result<()> {
        self.netns.enter().context("cannot enter the namespace")?;
        while self.wait_for_turn() {
            let record = self.ask();
            let failed = record.outcome.is_err();
            self.lock().records.push(record);
            if failed && matches!(self.options.pace, Pace::Workers(_)) {
                self.wait_until(Instant::now() + REST_AFTER_FAILURE);
            }
        }
        Ok(())
    }

    fn ask(&self) -> Record {
        let begin = Instant::now();
        let options = &self.options;
        let answer = self
            .target
            .get(options.connect_timeout, options.total_timeout);
        let outcome = match answer {
            Ok(answer) if answer.status == 200 => {
                let checked = options.check.map_or(Ok(()), |check| check(&answer));
                checked.map(|()| answer.first_line().to_owned())
            }
            Ok(answer) => Err(format!("status {}", answer.status)),
            Err(error) => Err(format!("{error:#}")),
        };
        Record {
            at: begin.duration_since(self.start),
            took: begin.elapsed(),
            outcome,
        }
    }

    /// Waits until the next request is due; no when the load was stopped before.
    fn wait_for_turn(&self) -> bool {
        let due = {
            let mut state = self.lock();
            let turn = state.begun;
            state.begun += 1;
            match self.options.pace {
                Pace::Workers(_) => Duration::ZERO,
                Pace::PerSecond(rate) => Duration::from_secs(1) * turn / rate,
            }
        };
        self.wait_until(self.start + due)
    }

    /// Waits until a time; no when the load was stopped before.
    fn wait_until(&self, time: Instant) -> bool {
        let mut state = self.lock();
        while !state.stopped {
            let left = time.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return true;
            }
            let waited = self.stop.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        false
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code that could panic runs under the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
