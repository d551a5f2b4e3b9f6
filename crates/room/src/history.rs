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
    /// requested events that have expired.
    pub fn finish(mut self, head: u64, epoch: &str) -> String {
        let floor = self.floor;
        if self.query.newest {
            self.lines.reverse();
        }
        let gap = if !self.query.newest && self.query.after < floor {
            format!(r#","gap":{{"from":{},"to":{floor}}}"#, self.query.after + 1)
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
        let page = HistoryPage::new(
            HistoryQuery {
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
