//! Durations as Compose writes them: `10s`, `1m30s`, `500ms`, `1.5h`.

/// Why a text is no duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DurationError {
    /// It is no number with a unit.
    #[error("{0} is no duration; write a number and its unit, such as 500ms, 10s or 1m30s")]
    Form(String),
    /// It is a number alone.
    #[error("{0} has no unit; write {1}s for seconds, or use ms, m or h")]
    NoUnit(String, String),
    /// It is not a whole number of milliseconds.
    #[error("{0} is finer than a millisecond; use whole milliseconds")]
    TooFine(String),
    /// It is longer than anyone waits.
    #[error("{0} is too long; at most 1000h are possible")]
    TooLong(String),
}

/// 1000 hours, a round number below the 49 days that 32 bits of milliseconds hold.
const MAX_US: u64 = 1000 * 3_600_000_000;

/// The milliseconds of a duration. `0` needs no unit.
///
/// # Errors
/// It is none; see [`DurationError`].
pub fn parse_duration(text: &str) -> Result<u32, DurationError> {
    let quoted = || crate::diagnostic::quoted(text);
    if text == "0" {
        return Ok(0);
    }
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(DurationError::NoUnit(quoted(), text.to_owned()));
    }
    let form = || DurationError::Form(quoted());
    let mut rest = text;
    let mut total_us: u64 = 0;
    while !rest.is_empty() {
        let digits_end = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .ok_or_else(form)?;
        let (number, after) = rest.split_at(digits_end);
        let unit_end = after
            .find(|c: char| !c.is_ascii_alphabetic())
            .unwrap_or(after.len());
        let (unit, after) = after.split_at(unit_end);
        let unit_us = match unit {
            "us" => 1,
            "ms" => 1000,
            "s" => 1_000_000,
            "m" => 60_000_000,
            "h" => 3_600_000_000,
            _ => return Err(form()),
        };
        let part = scaled(number, unit_us).ok_or_else(form)?;
        total_us = total_us.saturating_add(part);
        rest = after;
    }
    if text.is_empty() {
        return Err(form());
    }
    if total_us > MAX_US {
        return Err(DurationError::TooLong(quoted()));
    }
    if !total_us.is_multiple_of(1000) {
        return Err(DurationError::TooFine(quoted()));
    }
    u32::try_from(total_us / 1000).map_err(|_| DurationError::TooLong(quoted()))
}

/// `number * unit` for a decimal fraction, exact to the microsecond; saturates, as what is too long is
/// refused anyway.
fn scaled(number: &str, unit_us: u64) -> Option<u64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let whole: u64 = match whole.parse() {
        Ok(whole) => whole,
        Err(e) if *e.kind() == std::num::IntErrorKind::PosOverflow => u64::MAX,
        Err(_) => return None,
    };
    let scale = 10_u64.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    let fraction: u64 = fraction.parse().ok()?;
    let part =
        u64::try_from(u128::from(fraction) * u128::from(unit_us) / u128::from(scale)).ok()?;
    Some(whole.saturating_mul(unit_us).saturating_add(part))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_those_of_compose() {
        for (text, ms) in [
            ("0", 0),
            ("0s", 0),
            ("500ms", 500),
            ("10s", 10_000),
            ("1m30s", 90_000),
            ("1h5m30s20ms", 3_930_020),
            ("1.5s", 1500),
            ("2000us", 2),
            ("1000h", 3_600_000_000),
        ] {
            assert_eq!(parse_duration(text), Ok(ms), "{text}");
        }
    }

    #[test]
    fn what_is_none_says_how_to_write_one() {
        for (text, message) in [
            (
                "",
                "'' is no duration; write a number and its unit, such as 500ms, 10s or 1m30s",
            ),
            (
                "10",
                "'10' has no unit; write 10s for seconds, or use ms, m or h",
            ),
            (
                "5d",
                "'5d' is no duration; write a number and its unit, such as 500ms, 10s or 1m30s",
            ),
            (
                "-5s",
                "'-5s' is no duration; write a number and its unit, such as 500ms, 10s or 1m30s",
            ),
            (
                "1..5s",
                "'1..5s' is no duration; write a number and its unit, such as 500ms, 10s or 1m30s",
            ),
            (
                "1500us",
                "'1500us' is finer than a millisecond; use whole milliseconds",
            ),
            ("1001h", "'1001h' is too long; at most 1000h are possible"),
            (
                "99999999999999999999h",
                "'99999999999999999999h' is too long; at most 1000h are possible",
            ),
        ] {
            assert_eq!(
                parse_duration(text).unwrap_err().to_string(),
                message,
                "{text}"
            );
        }
    }
}
