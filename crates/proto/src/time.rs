//! Points in time and durations. The core never reads a clock: the host passes the
//! current time to every call.

use chrono::{DateTime, SecondsFormat, Utc};

/// A point in time in milliseconds since 1970-01-01T00:00:00Z, or a duration in
/// milliseconds.
pub type Millis = u64;

/// One second.
pub const SECOND: Millis = 1_000;
/// One minute.
pub const MINUTE: Millis = 60 * SECOND;
/// One hour.
pub const HOUR: Millis = 60 * MINUTE;
/// One day of 24 hours.
pub const DAY: Millis = 24 * HOUR;

/// Formats a time by RFC 3339 in UTC with milliseconds:
/// `2026-11-23T08:00:00.000Z`. A time after the year 9999, which the format cannot
/// express, is formatted as the last millisecond of that year.
pub fn rfc3339(at: Millis) -> String {
    const LAST: i64 = 253_402_300_799_999; // 9999-12-31T23:59:59.999Z
    let at = i64::try_from(at).unwrap_or(LAST).min(LAST);
    DateTime::<Utc>::from_timestamp_millis(at)
        .unwrap_or_default()
        .to_rfc3339_opts(SecondsFormat::Millis, true)
}

/// Parses a time by RFC 3339. Returns `None` if `text` is malformed or before 1970.
pub fn parse_rfc3339(text: &str) -> Option<Millis> {
    let at = DateTime::parse_from_rfc3339(text).ok()?;
    u64::try_from(at.timestamp_millis()).ok()
}

/// Sets `deadline` to `at` if it is unset or later than `at`.
pub fn sooner(deadline: &mut Option<Millis>, at: Millis) {
    *deadline = Some(deadline.map_or(at, |deadline| deadline.min(at)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps_are_rfc3339_with_milliseconds() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(rfc3339(1_795_420_800_123), "2026-11-23T08:00:00.123Z");
        assert_eq!(
            parse_rfc3339("2026-11-23T08:00:00.123Z"),
            Some(1_795_420_800_123)
        );
        assert_eq!(rfc3339(u64::MAX), "9999-12-31T23:59:59.999Z");
    }
}
