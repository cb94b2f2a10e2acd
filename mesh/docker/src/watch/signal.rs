//! Signals by name and number.

/// SIGKILL, on which any container ends.
pub(super) const KILL: i32 = 9;
/// SIGTERM, with which Docker ends those that have nothing else configured.
pub(super) const TERM: i32 = 15;

/// The number of a signal as it is configured: `SIGQUIT`, `QUIT`, `3`, `SIGRTMIN+3` (signal(7), on x86 and ARM).
pub(super) fn number(signal: &str) -> Option<i32> {
    if let Ok(number) = signal.parse() {
        return Some(number);
    }
    let name = signal.to_ascii_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    if let Some(above) = name.strip_prefix("RTMIN") {
        let above = above.strip_prefix('+').unwrap_or("0");
        return Some(34 + above.parse::<i32>().ok()?);
    }
    Some(match name {
        "HUP" => 1,
        "INT" => 2,
        "QUIT" => 3,
        "KILL" => KILL,
        "USR1" => 10,
        "USR2" => 12,
        "TERM" => TERM,
        "WINCH" => 28,
        "PWR" => 30,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::number;

    #[test]
    fn signals_have_names_and_numbers() {
        for (text, signal) in [
            ("SIGTERM", Some(15)),
            ("quit", Some(3)),
            ("28", Some(28)),
            ("SIGRTMIN+3", Some(37)),
            ("RTMIN", Some(34)),
            ("", None),
            ("SIGNONE", None),
        ] {
            assert_eq!(number(text), signal, "{text}");
        }
    }
}
