//! Progress on standard error: a line per step, and below it what the step waits for.

use std::{
    io::{self, IsTerminal, Write},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

/// Past a terminal, what is awaited is repeated no more often than this.
const NOTE_INTERVAL: Duration = Duration::from_secs(1);
/// How much of it a terminal shows, beside the indent.
const NOTE_WIDTH: usize = 68;

/// The steps so far.
#[derive(Debug)]
pub(super) struct Progress {
    started: Instant,
    terminal: bool,
}

/// What a step waits for.
#[derive(Debug)]
pub(super) struct Notes {
    terminal: bool,
    shown: Option<(Instant, String)>,
}

impl Progress {
    pub(super) fn start() -> Self {
        Self {
            started: Instant::now(),
            terminal: io::stderr().is_terminal(),
        }
    }

    pub(super) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Says what is done, and does it.
    ///
    /// # Errors
    /// Those of the work, with the step's name.
    pub(super) fn step<T>(
        &mut self,
        name: &str,
        work: impl FnOnce(&mut Notes) -> Result<T>,
    ) -> Result<T> {
        self.say(name);
        // A wait that is over soon is not worth a line.
        let mut notes = Notes {
            terminal: self.terminal,
            shown: Some((Instant::now(), String::new())),
        };
        let result = work(&mut notes);
        notes.clear();
        result.with_context(|| name.to_owned())
    }

    /// One line, with the time since the start.
    pub(super) fn say(&self, text: &str) {
        write(&format!(
            "[{:5.1} s] {text}\n",
            self.elapsed().as_secs_f64()
        ));
    }
}

impl Notes {
    /// Shows what is awaited now; on a terminal in place of what was shown before.
    pub(super) fn show(&mut self, text: &str) {
        let text = text.replace('\n', "; ");
        let now = Instant::now();
        if let Some((at, shown)) = &self.shown {
            let soon = now.duration_since(*at) < NOTE_INTERVAL;
            if *shown == text || (soon && !self.terminal) {
                return;
            }
        }
        if self.terminal {
            // A line that is wrapped could not be replaced.
            let text: String = text.chars().take(NOTE_WIDTH).collect();
            write(&format!("\r\x1b[K          {text}"));
        } else {
            write(&format!("          {text}\n"));
        }
        self.shown = Some((now, text));
    }

    fn clear(&mut self) {
        if self.terminal {
            write("\r\x1b[K");
        }
    }
}

fn write(text: &str) {
    let mut stderr = io::stderr().lock();
    // There is nobody left to be told that standard error is gone.
    stderr
        .write_all(text.as_bytes())
        .and_then(|()| stderr.flush())
        .ok();
}
