//! Points in time as the engine writes them (RFC 3339).

/// The Unix milliseconds of `2026-11-21T03:36:56.645057991Z`, also with an offset (`+01:00`). `None` is what
/// is no time, or one before 1970: the engine writes the year 1 for "never".
pub(super) fn unix_ms(text: &str) -> Option<u64> {
    let (date, rest) = text.split_once('T')?;
    let mut date = date.splitn(3, '-');
    let (year, month, day): (i64, i64, i64) = (
        number(date.next()?)?,
        number(date.next()?)?,
        number(date.next()?)?,
    );
    let zone_at = rest.find(['Z', '+', '-'])?;
    let (clock, zone) = rest.split_at(zone_at);
    let (clock, fraction) = clock.split_once('.').unwrap_or((clock, "0"));
    let mut clock = clock.splitn(3, ':');
    let (hour, minute, second): (i64, i64, i64) = (
        number(clock.next()?)?,
        number(clock.next()?)?,
        number(clock.next()?)?,
    );
    let fits = (1970..=9999).contains(&year)
        && (1..=12).contains(&month)
        && (1..=31).contains(&day)
        && hour < 24
        && minute < 60
        && second <= 60;
    if !fits {
        return None;
    }
    let millis: i64 = number(
        &format!("{fraction:0<3}")
            .chars()
            .take(3)
            .collect::<String>(),
    )?;
    let seconds = ((days(year, month, day) * 24 + hour) * 60 + minute) * 60 + second;
    u64::try_from((seconds - offset_s(zone)?) * 1000 + millis).ok()
}

fn number(digits: &str) -> Option<i64> {
    let all = !digits.is_empty() && digits.len() <= 4 && digits.bytes().all(|b| b.is_ascii_digit());
    all.then(|| digits.parse().ok()).flatten()
}

fn offset_s(zone: &str) -> Option<i64> {
    let sign = match zone.chars().next()? {
        'Z' => return Some(0),
        '+' => 1,
        _ => -1,
    };
    let (hours, minutes) = zone.get(1..)?.split_once(':')?;
    Some(sign * (number(hours)? * 60 + number(minutes)?) * 60)
}

/// Days from 1970-01-01 to a date of the Gregorian calendar, whose years are taken to start in March, so
/// that the leap day is the last one of a year.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    year * 365 + year / 4 - year / 100 + year / 400 + day_of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::unix_ms;

    #[test]
    fn times_of_the_engine_are_unix_time() {
        for (text, ms) in [
            ("1970-01-01T00:00:00Z", Some(0)),
            ("2000-02-29T12:00:00Z", Some(951_825_600_000)),
            ("2026-11-21T03:36:56.645057991Z", Some(1_795_232_216_645)),
            ("2026-11-21T04:36:56.6+01:00", Some(1_795_232_216_600)),
            ("0001-01-01T00:00:00Z", None),
            ("2026-13-21T03:36:56Z", None),
            ("2026-11-21", None),
            ("", None),
        ] {
            assert_eq!(unix_ms(text), ms, "{text}");
        }
    }
}
