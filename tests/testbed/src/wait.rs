//! The one place where waiting is done by polling.

use std::fmt::Display;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

const INTERVAL: Duration = Duration::from_millis(15);

/// Polls `probe` every 15 ms until it returns a value, and returns that.
///
/// `Ok(None)` and `Err` both mean "not yet"; the last `Err` is told as the state last seen when
/// `within` has passed. The probe is always tried once more at the end.
///
/// # Errors
/// When the time is over: what was awaited, for how long, and the state last seen.
pub fn wait_until<T>(
    within: Duration,
    what: impl Display,
    mut probe: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let start = Instant::now();
    loop {
        let last_try = start.elapsed() >= within;
        let seen = match probe() {
            Ok(Some(value)) => return Ok(value),
            Ok(None) => None,
            Err(error) => Some(error),
        };
        if last_try {
            let waited = format!("waited {within:?} in vain until {what}");
            return Err(match seen {
                Some(last) => last.context(waited),
                None => anyhow!(waited),
            });
        }
        pause();
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the polling primitive by which all others wait for a condition with a deadline"
)]
fn pause() {
    thread::sleep(INTERVAL);
}

#[cfg(test)]
mod tests {
    use anyhow::bail;

    use super::*;

    #[test]
    fn returns_the_value_as_soon_as_there_is_one() {
        let mut tries = 0;
        let value = wait_until(Duration::from_secs(5), "three tries", || {
            tries += 1;
            Ok((tries == 3).then_some(tries))
        });
        assert_eq!(value.unwrap(), 3);
    }

    #[test]
    fn tells_what_was_awaited_how_long_and_what_was_seen() {
        let error = wait_until::<()>(Duration::from_millis(20), "the port answers", || {
            bail!("connection refused")
        });
        let message = format!("{:#}", error.unwrap_err());
        assert_eq!(
            message,
            "waited 20ms in vain until the port answers: connection refused"
        );
    }

    #[test]
    fn a_probe_that_is_late_gets_its_last_chance() {
        let value = wait_until(Duration::ZERO, "once", || Ok(Some(1)));
        assert_eq!(value.unwrap(), 1);
    }
}
