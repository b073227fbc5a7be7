//! Points in time and durations as users write and read them.

use jiff::{Timestamp, civil::Date, tz::TimeZone};
use std::time::Duration;

/// In which zone times are shown, and what day it is.
#[derive(Clone, Debug)]
pub(crate) struct Clock {
    zone: TimeZone,
    today: Option<Date>,
    now: Option<Timestamp>,
}

impl Clock {
    /// The zone of the user: `TZ`, else `/etc/localtime`, else UTC.
    pub(crate) fn local() -> Self {
        Self { zone: TimeZone::system(), today: None, now: None }
    }

    /// A given zone at noon of a given day.
    #[cfg(test)]
    pub(crate) fn fixed(zone: TimeZone, today: Date) -> Self {
        let now = today.at(12, 0, 0, 0).to_zoned(zone.clone()).unwrap().timestamp();
        Self { zone, today: Some(today), now: Some(now) }
    }

    /// Seconds since an RFC 3339 time; `None` if it is none.
    pub(crate) fn since(&self, rfc3339: &str) -> Option<u64> {
        let time = rfc3339.parse::<Timestamp>().ok()?;
        let now = self.now.unwrap_or_else(Timestamp::now);
        Some(u64::try_from(now.as_second().saturating_sub(time.as_second())).unwrap_or(0))
    }

    /// An RFC 3339 time as `12:01:03.402`, with the date before it if that is not today's. What is no time is shown as
    /// it is.
    pub(crate) fn precise(&self, rfc3339: &str) -> String {
        self.format(rfc3339, "%H:%M:%S.%3f")
    }

    /// The same to the second.
    pub(crate) fn coarse(&self, rfc3339: &str) -> String {
        self.format(rfc3339, "%H:%M:%S")
    }

    fn format(&self, rfc3339: &str, format: &str) -> String {
        let Ok(time) = rfc3339.parse::<Timestamp>() else { return rfc3339.to_owned() };
        let time = time.to_zoned(self.zone.clone());
        let today = self.today.unwrap_or_else(|| Timestamp::now().to_zoned(self.zone.clone()).date());
        let clock = time.strftime(format);
        if time.date() == today { clock.to_string() } else { format!("{} {clock}", time.date()) }
    }
}

/// Reads `500ms`, `5s`, `1h30m`: the same as the daemon does.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let mut rest = text.trim();
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let (number, tail) = rest.split_at(digits);
        let end = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(end);
        let part = number.parse::<u64>().ok().and_then(|number| part(number, unit));
        total = part.and_then(|part| total.checked_add(part)).ok_or_else(|| no_duration(text))?;
        rest = tail;
    }
    if text.trim().is_empty() { Err(no_duration(text)) } else { Ok(total) }
}

/// Reads a duration that is not zero.
pub(crate) fn positive_duration(text: &str) -> Result<Duration, String> {
    duration(text)
        .and_then(|d| if d.is_zero() { Err("it must be longer than nothing".to_owned()) } else { Ok(d) })
}

/// Reads how far back to look: a duration, or a point in time. The answer is a duration for the daemon, so that it
/// need not know the user's zone.
pub(crate) fn since(text: &str) -> Result<String, String> {
    since_at(text, Timestamp::now())
}

fn since_at(text: &str, now: Timestamp) -> Result<String, String> {
    if duration(text).is_ok() {
        return Ok(text.trim().to_owned());
    }
    let time: Timestamp =
        text.parse().map_err(|_| format!("{}, or a time such as 2026-11-20T12:00:00Z", no_duration(text)))?;
    let millis = now.as_millisecond().saturating_sub(time.as_millisecond());
    if millis < 0 { Err(format!("{text} is in the future")) } else { Ok(format!("{millis}ms")) }
}

fn part(number: u64, unit: &str) -> Option<Duration> {
    let seconds = match unit {
        "ns" => return Some(Duration::from_nanos(number)),
        "us" => return Some(Duration::from_micros(number)),
        "ms" => return Some(Duration::from_millis(number)),
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return None,
    };
    number.checked_mul(seconds).map(Duration::from_secs)
}

fn no_duration(text: &str) -> String {
    format!("'{text}' is not a duration; write e.g. 30s, 5m or 1h")
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::civil::date;
    use jiff::tz::offset;

    #[test]
    fn times_are_shown_in_the_users_zone() {
        let utc = Clock::fixed(TimeZone::UTC, date(2026, 11, 20));
        assert_eq!(utc.precise("2026-11-20T12:01:03.402918044Z"), "12:01:03.402");
        assert_eq!(utc.coarse("2026-11-20T12:01:03.9Z"), "12:01:03");
        assert_eq!(utc.precise("2026-11-19T23:59:59Z"), "2026-11-19 23:59:59.000");
        let east = Clock::fixed(TimeZone::fixed(offset(9)), date(2026, 11, 20));
        assert_eq!(east.precise("2026-11-19T23:59:59.5Z"), "08:59:59.500");
        assert_eq!(east.precise("2026-11-20T21:01:03.402+09:00"), "21:01:03.402");
        assert_eq!(utc.precise("yesterday"), "yesterday");
    }

    #[test]
    fn durations_have_units() {
        for (text, millis) in [
            ("500ms", 500),
            ("5s", 5_000),
            ("10m", 600_000),
            ("1h30m", 5_400_000),
            ("2d", 172_800_000),
            ("0s", 0),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in [
            "",
            " ",
            "5",
            "s",
            "5 parsecs",
            "1h 30m",
            "-5s",
            "1.5s",
            "99999999999999999999s",
            "9999999999999999999d",
        ] {
            assert!(duration(text).is_err(), "{text}");
        }
        assert!(positive_duration("0s").is_err());
    }

    #[test]
    fn since_takes_durations_and_times() {
        let now: Timestamp = "2026-11-20T12:00:00Z".parse().unwrap();
        assert_eq!(since_at("5m", now).unwrap(), "5m");
        assert_eq!(since_at("2026-11-20T11:59:30Z", now).unwrap(), "30000ms");
        assert_eq!(since_at("2026-11-20T12:59:30+01:00", now).unwrap(), "30000ms");
        assert!(since_at("2026-11-20T12:00:01Z", now).unwrap_err().contains("future"));
        assert!(since_at("noon", now).unwrap_err().contains("2026-11-20T12:00:00Z"));
    }
}
