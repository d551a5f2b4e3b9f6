//! The format of chat logs: one message per line in chronological order, four fields
//! separated by tabs.
//!
//! ```text
//! 2026-03-14T08:00:03.866Z <tab> team:kyiv <tab> tariq <tab> text
//! ```
//!
//! The time is RFC 3339, in UTC (`Z`) or with an offset. Room and user are valid names
//! of roomcast. In the text `\n`, `\t`, `\r`, `\\` and `\u{hex}` are escapes. Empty
//! lines and lines that begin with `#` are ignored.

/// One message of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Line {
    /// Milliseconds since 1970.
    pub at: u64,
    pub room: String,
    pub user: String,
    pub text: String,
}

/// Parses a log. The error contains the number of the first invalid line.
pub(crate) fn parse(log: &str) -> Result<Vec<Line>, String> {
    // Not `lines()`, which would remove a `\r` at the end of the text.
    log.split('\n')
        .enumerate()
        .filter(|(_, line)| !line.is_empty() && !line.starts_with('#'))
        .map(|(index, line)| parse_line(line).map_err(|e| format!("line {}: {e}", index + 1)))
        .collect()
}

fn parse_line(line: &str) -> Result<Line, &'static str> {
    let mut fields = line.split('\t');
    let mut field = || {
        fields
            .next()
            .ok_or("four fields separated by tabs are required")
    };
    let (at, room, user, text) = (field()?, field()?, field()?, field()?);
    if fields.next().is_some() {
        return Err("more than four fields");
    }
    for (name, extra) in [(room, "_.:-@"), (user, "_.:-")] {
        let fits = |c: char| c.is_ascii_alphanumeric() || extra.contains(c);
        if name.is_empty() || name.len() > 128 || !name.chars().all(fits) {
            return Err("invalid room or user name");
        }
    }
    Ok(Line {
        at: parse_rfc3339(at).ok_or("invalid RFC 3339 time")?,
        room: room.to_owned(),
        user: user.to_owned(),
        text: unescape(text).ok_or("unknown escape: only \\n \\t \\r \\\\ \\u{hex} are allowed")?,
    })
}

fn unescape(text: &str) -> Option<String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        let mut chars = rest[at + 1..].chars();
        match chars.next()? {
            'n' => out.push('\n'),
            't' => out.push('\t'),
            'r' => out.push('\r'),
            '\\' => out.push('\\'),
            'u' => {
                let (hex, after) = chars.as_str().strip_prefix('{')?.split_once('}')?;
                out.push(char::from_u32(u32::from_str_radix(hex, 16).ok()?)?);
                chars = after.chars();
            }
            _ => return None,
        }
        rest = chars.as_str();
    }
    out.push_str(rest);
    Some(out)
}

/// Returns the days from 1970-01-01 to a date of the Gregorian calendar
/// (<https://howardhinnant.github.io/date_algorithms.html#days_from_civil>).
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let of_era = year.rem_euclid(400);
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

/// Returns year, month and day of a number of days since 1970-01-01.
fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let of_era = days.rem_euclid(146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let shifted = (5 * of_year + 2) / 153;
    let month = if shifted < 10 {
        shifted + 3
    } else {
        shifted - 9
    };
    let year = year + era * 400 + i64::from(month <= 2);
    (year, month, of_year - (153 * shifted + 2) / 5 + 1)
}

/// Parses a time to milliseconds since 1970. Returns `None` for an invalid time or a
/// time before 1970.
fn parse_rfc3339(text: &str) -> Option<u64> {
    let number = |range: std::ops::Range<usize>| -> Option<i64> {
        let digits = text.get(range)?;
        let all = digits.bytes().all(|b| b.is_ascii_digit());
        if all { digits.parse().ok() } else { None }
    };
    let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
    let (hour, minute, second) = (number(11..13)?, number(14..16)?, number(17..19)?);
    let separators = [
        text.get(4..5)?,
        text.get(7..8)?,
        text.get(13..14)?,
        text.get(16..17)?,
    ];
    let in_range = (1..=12).contains(&month)
        && (1..=31).contains(&day)
        && hour < 24
        && minute < 60
        && second <= 60;
    if !in_range || separators != ["-", "-", ":", ":"] || !matches!(text.get(10..11)?, "T" | "t") {
        return None;
    }
    let mut rest = text.get(19..)?;
    let mut millis = 0;
    if let Some(fraction) = rest.strip_prefix('.') {
        let length = fraction.bytes().take_while(u8::is_ascii_digit).count();
        let digits = fraction.get(..length.min(3)).filter(|d| !d.is_empty())?;
        millis = digits.parse::<i64>().ok()? * 10_i64.pow(3 - digits.len() as u32);
        rest = &fraction[length..];
    }
    let offset = match rest {
        "Z" | "z" => 0,
        _ => {
            let sign = match rest.get(..1)? {
                "+" => 1,
                "-" => -1,
                _ => return None,
            };
            let (hours, minutes) = rest[1..].split_once(':').filter(|_| rest.len() == 6)?;
            sign * (hours.parse::<i64>().ok()? * 60 + minutes.parse::<i64>().ok()?)
        }
    };
    let minutes = (days_from_civil(year, month, day) * 24 + hour) * 60 + minute - offset;
    u64::try_from((minutes * 60 + second) * 1000 + millis).ok()
}

/// Formats milliseconds since 1970 as RFC 3339 in UTC, without the fraction.
pub(crate) fn rfc3339(millis: u64) -> String {
    let seconds = (millis / 1000) as i64;
    let (year, month, day) = civil_from_days(seconds.div_euclid(86_400));
    let of_day = seconds.rem_euclid(86_400);
    let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parse_reads_four_fields_and_rejects_invalid_lines() {
        let log =
            "# comment\n\n2026-03-14T08:00:03.866Z\tteam:kyiv\ttariq\ta\\nb\\tc\\\\n\\u{2028}\n";
        let line = &parse(log).expect("a log")[0];
        assert_eq!(line.room, "team:kyiv");
        assert_eq!(line.text, "a\nb\tc\\n\u{2028}");
        assert_eq!(line.at % 1000, 866);
        assert!(parse("x\n").unwrap_err().starts_with("line 1: four"));
        assert!(parse("2026-03-14T08:00:03Z\ta b\tc\td").is_err());
        assert!(parse("2026-03-14T08:00:03Z\ta\tc\t\\x").is_err());
        assert!(parse("2026-03-14T08:00:03Z\ta\tc\td\te").is_err());
    }

    #[test]
    fn parse_rfc3339_accepts_only_rfc3339_times() {
        assert_eq!(parse_rfc3339("1970-01-01T00:00:00Z"), Some(0));
        assert_eq!(
            parse_rfc3339("2000-02-29T12:00:00.5+02:00"),
            Some(951_818_400_500)
        );
        assert_eq!(parse_rfc3339("2026-03-14 08:00:00Z"), None);
        assert_eq!(parse_rfc3339("2026-13-14T08:00:00Z"), None);
        assert_eq!(parse_rfc3339("2026-03-14T08:00:00"), None);
        for text in [
            "1970-01-01T00:00:00Z",
            "2000-02-29T23:59:59Z",
            "2026-12-31T08:01:02Z",
        ] {
            assert_eq!(parse_rfc3339(text).map(rfc3339).as_deref(), Some(text));
        }
    }
}
