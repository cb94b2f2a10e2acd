//! The signals that end the demo.

use std::{
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use portolan_testbed::wait_until;
use tokio::signal::unix::{SignalKind, signal};

/// Whether somebody has asked for the end, by Ctrl-C, SIGTERM or closing the terminal.
#[derive(Debug, Clone, Default)]
pub(super) struct Stop(Arc<(Mutex<bool>, Condvar)>);

impl Stop {
    /// Takes the signals over, for as long as the process lives.
    pub(super) fn on_signals() -> Result<Self> {
        let stop = Self::default();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build()
            .context("cannot start a runtime for signals")?;
        let (mut interrupt, mut terminate, mut hangup) = {
            let _inside = runtime.enter();
            let take = |kind| signal(kind).context("cannot take a signal over");
            (
                take(SignalKind::interrupt())?,
                take(SignalKind::terminate())?,
                take(SignalKind::hangup())?,
            )
        };
        let requested = stop.clone();
        let wait = move || {
            runtime.block_on(async {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                    _ = hangup.recv() => {}
                }
            });
            requested.request();
        };
        thread::Builder::new()
            .name("signals".to_owned())
            .spawn(wait)
            .context("cannot start a thread")?;
        Ok(stop)
    }

    /// Whether the end was asked for.
    pub(super) fn is_requested(&self) -> bool {
        *self.lock()
    }

    /// Waits until the end is asked for, but no longer than `within`; whether it was.
    pub(super) fn wait(&self, within: Duration) -> bool {
        let waited = self
            .0
            .1
            .wait_timeout_while(self.lock(), within, |requested| !*requested);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }

    /// As [`wait_until`], but over at once when the end is asked for.
    pub(super) fn wait_until<T>(
        &self,
        within: Duration,
        what: &str,
        mut probe: impl FnMut() -> Result<Option<T>>,
    ) -> Result<T> {
        let value = wait_until(within, what, || {
            if self.is_requested() {
                Ok(Some(None))
            } else {
                Ok(probe()?.map(Some))
            }
        })?;
        match value {
            Some(value) => Ok(value),
            None => bail!("stopped by a signal"),
        }
    }

    fn request(&self) {
        *self.lock() = true;
        self.0.1.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, bool> {
        // No code that could panic runs under the lock.
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_is_over_when_the_end_is_asked_for() {
        let stop = Stop::default();
        assert!(!stop.wait(Duration::from_millis(1)));
        let mut probes = 0;
        let waited = stop.wait_until::<()>(Duration::from_mins(1), "forever", || {
            probes += 1;
            stop.request();
            Ok(None)
        });
        assert_eq!(waited.unwrap_err().to_string(), "stopped by a signal");
        assert_eq!(probes, 1);
        assert!(stop.wait(Duration::from_mins(1)));
    }
}
