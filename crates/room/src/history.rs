//! Pages of the log, for `sync` and `GET …/messages`.

use serde::{Deserialize, Serialize};

/// A request for a page of the log: at most `limit` events after `after` and before
/// `before`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryQuery {
    /// Sequence number after which the page starts.
    pub after: u64,
    /// Sequence number before which the page ends; `u64::MAX` for no end.
    pub before: u64,
    /// The maximum number of events.
    pub limit: u64,
    /// `true` for the last events of the range instead of the first.
    pub newest: bool,
}

/// The largest page in bytes. A larger page ends early with `more`. This limits the memory
/// for the answers to a burst of requests if the client does not read them.
pub const MAX_PAGE_BYTES: usize = 256 * 1024;

/// A page that is being filled from the rows of the log.
#[derive(Debug)]
pub struct HistoryPage {
    query: HistoryQuery,
    /// Events up to this one have expired and are not on the page.
    floor: u64,
    lines: Vec<String>,
    bytes: usize,
    more: bool,
}

impl HistoryPage {
    /// Creates an empty page. Events up to `floor` have expired.
    pub fn new(query: HistoryQuery, floor: u64) -> Self {
        HistoryPage {
            query,
            floor,
            lines: Vec::new(),
            bytes: 0,
            more: false,
        }
    }

    /// Adds the events of a row that belong on the page. `first` is the sequence number of
    /// the row's first event. Rows come in ascending order, or in descending order with
    /// [`HistoryQuery::newest`]. Returns `false` if no further row is needed.
    pub fn add(&mut self, first: u64, body: &str) -> bool {
        let lines = || (first..).zip(body.split('\n'));
        if self.query.newest {
            let mut all: Vec<_> = lines().collect();
            all.reverse();
            all.into_iter().all(|(seq, line)| self.add_line(seq, line))
        } else {
            lines().all(|(seq, line)| self.add_line(seq, line))
        }
    }

    fn add_line(&mut self, seq: u64, line: &str) -> bool {
        if seq <= self.query.after.max(self.floor) || seq >= self.query.before {
            // Before the range: continue. After it: done.
            return (seq >= self.query.before) == self.query.newest;
        }
        let full = self.lines.len() as u64 >= self.query.limit
            || (self.bytes + line.len() > MAX_PAGE_BYTES && !self.lines.is_empty());
        if full {
            self.more = true;
            return false;
        }
        self.bytes += line.len();
        self.lines.push(line.to_owned());
        true
    }

    /// Returns the page as JSON: `{ events, head, epoch, more, gap? }`. `gap` names the
    /// requested events that have expired. It ends where the requested range ends.
    pub fn finish(mut self, head: u64, epoch: &str) -> String {
        let gap_end = self.floor.min(self.query.before.saturating_sub(1));
        if self.query.newest {
            self.lines.reverse();
        }
        let gap = if !self.query.newest && self.query.after < gap_end {
            let from = self.query.after + 1;
            format!(r#","gap":{{"from":{from},"to":{gap_end}}}"#)
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
    use serde_json::{Value, json};

    const BODY: &str = "e5\ne6\ne7\ne8";

    fn events(page: HistoryPage) -> (Vec<String>, bool) {
        (page.lines.clone(), page.more)
    }

    #[test]
    fn a_page_ends_at_the_limit_with_more() {
        let all = HistoryQuery {
            after: 0,
            before: u64::MAX,
            limit: 10,
            newest: false,
        };
        let mut page = HistoryPage::new(
            HistoryQuery {
                after: 5,
                limit: 2,
                ..all
            },
            0,
        );
        assert!(!page.add(5, BODY));
        assert_eq!(events(page), (vec!["e6".into(), "e7".into()], true));

        let mut page = HistoryPage::new(
            HistoryQuery {
                before: 8,
                limit: 2,
                newest: true,
                ..all
            },
            0,
        );
        assert!(!page.add(5, BODY));
        assert_eq!(events(page), (vec!["e7".into(), "e6".into()], true));

        let mut page = HistoryPage::new(
            HistoryQuery {
                after: 5,
                before: 7,
                ..all
            },
            0,
        );
        page.add(5, BODY);
        assert_eq!(events(page), (vec!["e6".into()], false));
    }

    #[test]
    fn a_page_names_the_gap_of_expired_events() {
        for (after, before, floor, gap) in [
            (2, u64::MAX, 4, json!({ "from": 3, "to": 4 })),
            // The gap ends where the requested range ends.
            (5, 20, 45, json!({ "from": 6, "to": 19 })),
            (5, 6, 45, Value::Null),
            (45, 50, 45, Value::Null),
        ] {
            let query = HistoryQuery {
                after,
                before,
                limit: 1,
                newest: false,
            };
            let page = HistoryPage::new(query, floor).finish(90, "e");
            let page: Value = serde_json::from_str(&page).expect("JSON");
            assert_eq!(page["gap"], gap, "{query:?}");
        }
    }
}
