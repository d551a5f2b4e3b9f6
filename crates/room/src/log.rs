//! The log: numbered events in rows of one tick each, and how to read them.
//! Sync, replay, the offline queue and `GET …/messages` are all "log after N".

use crate::config::RoomConfig;
use roomcast_proto::time::Millis;

/// What one tick stores: the envelopes of events `first` to `last`, each on a
/// line, as they go out on the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    pub first: u64,
    pub last: u64,
    /// When it was stored; never before the row before it.
    pub at: Millis,
    pub body: String,
}

/// Where the log begins and ends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bounds {
    /// The last event that is stored; 0 where there is none.
    pub head: u64,
    /// When the last row was stored.
    pub last_at: Millis,
    /// Events up to this one are past `RETENTION_DAYS`.
    pub aged: u64,
    /// When the row after `aged` was stored: the next to pass the age.
    pub oldest_at: Option<Millis>,
    /// Events up to this one are gone from storage.
    pub trimmed: u64,
}

impl Bounds {
    /// Takes in a stored row; the oldest and the last one are enough.
    pub fn extend(&mut self, first: u64, last: u64, at: Millis) {
        if self.oldest_at.is_none() || first <= self.trimmed {
            self.trimmed = first.saturating_sub(1);
            self.aged = self.trimmed;
            self.oldest_at = Some(at);
        }
        if last >= self.head {
            self.head = last;
            self.last_at = at;
        }
    }

    /// Events up to this one are past retention, by count or by age.
    pub fn floor(&self, config: &RoomConfig) -> u64 {
        self.head
            .saturating_sub(config.retention_events)
            .max(self.aged)
    }

    /// When the next row passes the age.
    pub fn ages_at(&self, config: &RoomConfig) -> Option<Millis> {
        self.oldest_at
            .map(|at| at.saturating_add(config.retention_age))
    }

    /// How many events may be in storage past retention before it is worth
    /// deleting them, in bulk: a tenth of what is kept.
    pub fn trim_due(&self, config: &RoomConfig) -> bool {
        self.floor(config).saturating_sub(self.trimmed) > config.retention_events / 10 + 16
    }
}

/// What a reader asks for: events after `after` and before `before`, at most
/// `limit`; with `newest` the last of them instead of the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Range {
    pub after: u64,
    /// Exclusive; `u64::MAX` for no end.
    pub before: u64,
    pub limit: u64,
    pub newest: bool,
}

/// Largest page in bytes; a page that would be larger ends early with `more`. A
/// burst of requests whose answers nobody reads costs a room that many of them.
pub const MAX_PAGE_BYTES: usize = 256 * 1024;

/// A page being filled, row by row: in ascending order, or descending with
/// [`Range::newest`].
#[derive(Debug)]
pub struct Page {
    range: Range,
    /// Nothing up to this event is on the page: past retention.
    floor: u64,
    lines: Vec<String>,
    bytes: usize,
    more: bool,
}

impl Page {
    pub fn new(range: Range, floor: u64) -> Self {
        Page {
            range,
            floor,
            lines: Vec::new(),
            bytes: 0,
            more: false,
        }
    }

    /// Takes what belongs on the page from the row whose first event is
    /// `first`. `false` when no further row is needed. Rows come in the order
    /// that [`Range::newest`] asks for.
    pub fn take(&mut self, first: u64, body: &str) -> bool {
        let lines = || (first..).zip(body.split('\n'));
        if self.range.newest {
            let mut all: Vec<_> = lines().collect();
            all.reverse();
            all.into_iter().all(|(seq, line)| self.line(seq, line))
        } else {
            lines().all(|(seq, line)| self.line(seq, line))
        }
    }

    fn line(&mut self, seq: u64, line: &str) -> bool {
        if seq <= self.range.after.max(self.floor) || seq >= self.range.before {
            // Outside on the near side: go on. On the far side: done.
            return (seq >= self.range.before) == self.range.newest;
        }
        let full = self.lines.len() as u64 >= self.range.limit
            || (self.bytes + line.len() > MAX_PAGE_BYTES && !self.lines.is_empty());
        if full {
            self.more = true;
            return false;
        }
        self.bytes += line.len();
        self.lines.push(line.to_owned());
        true
    }

    /// `{ events, head, epoch, more, gap? }`. The gap tells of events that were
    /// asked for but are past retention.
    pub fn finish(mut self, head: u64, epoch: &str) -> String {
        let floor = self.floor;
        if self.range.newest {
            self.lines.reverse();
        }
        let gap = if !self.range.newest && self.range.after < floor {
            format!(r#","gap":{{"from":{},"to":{floor}}}"#, self.range.after + 1)
        } else {
            String::new()
        };
        format!(
            r#"{{"events":[{}],"head":{head},"epoch":"{epoch}","more":{}{gap}}}"#,
            self.lines.join(","),
            self.more
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BODY: &str = "e5\ne6\ne7\ne8";

    fn events(page: Page) -> (Vec<String>, bool) {
        (page.lines.clone(), page.more)
    }

    #[test]
    fn pages_end_at_the_limit_and_say_so() {
        let all = Range {
            after: 0,
            before: u64::MAX,
            limit: 10,
            newest: false,
        };
        let mut page = Page::new(
            Range {
                after: 5,
                limit: 2,
                ..all
            },
            0,
        );
        assert!(!page.take(5, BODY));
        assert_eq!(events(page), (vec!["e6".into(), "e7".into()], true));

        let mut page = Page::new(
            Range {
                before: 8,
                limit: 2,
                newest: true,
                ..all
            },
            0,
        );
        assert!(!page.take(5, BODY));
        assert_eq!(events(page), (vec!["e7".into(), "e6".into()], true));

        let mut page = Page::new(
            Range {
                after: 5,
                before: 7,
                ..all
            },
            0,
        );
        page.take(5, BODY);
        assert_eq!(events(page), (vec!["e6".into()], false));
    }

    #[test]
    fn a_gap_is_told() {
        let page = Page::new(
            Range {
                after: 2,
                before: u64::MAX,
                limit: 1,
                newest: false,
            },
            4,
        );
        let json: serde_json::Value = serde_json::from_str(&page.finish(9, "e")).expect("JSON");
        assert_eq!(json["gap"], serde_json::json!({"from": 3, "to": 4}));
    }
}
