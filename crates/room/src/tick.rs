//! The tick: everything accepted since the last one becomes one row, one
//! commit and one frame a socket. What is a mere rumour (presence, typing,
//! receipts) waits a little longer, so that many become one frame.

use super::log::Row;
use super::output::{CallId, Change, ConnId, Custom, Delivery};
use roomcast_proto::name::UserId;
use roomcast_proto::time::Millis;
use std::collections::HashMap;
use std::ops::Range;

/// Bytes of events after which a tick does not wait for more, and after which
/// what comes all the same (a large publication) goes into another row. Keeps a
/// row under the platform's 2 MB: an event has 1 MiB and its envelope at most.
pub const MAX_ROW_BYTES: usize = 256 * 1024;

/// Who does not get a line.
#[derive(Clone, Debug)]
pub enum Except {
    /// All connections of a user.
    User(UserId),
    /// One connection.
    Conn(ConnId),
    Nobody,
}

/// A connection that came: where it starts to read.
#[derive(Debug)]
pub struct Arrival {
    pub conn: ConnId,
    pub after: u64,
    /// Its `since` made no sense any more.
    pub reset: bool,
    pub greeting: Greeting,
}

/// How somebody who came is told where it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Greeting {
    /// A socket of the room's own: by `connected`.
    Connected,
    /// A socket at a gateway: by the answer to its `joinRoom`, if it wants one.
    Joined(Option<u32>),
}

/// The part of the shared frame that a connection gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gets {
    All,
    /// All but the logged events: a connection that catches up gets those from the log.
    Ephemeral,
    Nothing,
}

/// What is waiting for the end of the tick.
#[derive(Debug, Default)]
pub struct Tick {
    /// Changes of membership, stored with the events.
    pub changes: Vec<Change>,
    /// Connections that came and wait to be welcomed.
    pub arrivals: Vec<Arrival>,
    /// Envelopes of the logged events, a line each, in order, by rows: how many
    /// events a row has, and its body.
    rows: Vec<(u64, String)>,
    /// How many events there are.
    pub events: u64,
    /// When the first of them was accepted.
    pub since: Millis,
    /// Who sent them, as long as it was one.
    pub sender: Option<UserId>,
    /// Lines for single connections, which come before the events.
    private: HashMap<ConnId, String>,
    /// Of those the answers that wait for the store.
    acked: Vec<(ConnId, u32)>,
    /// Ephemeral lines for everybody else.
    others: Vec<(Except, String)>,
    /// Calls and their answers.
    pub calls: Vec<(CallId, String)>,
}

impl Tick {
    pub fn is_empty(&self) -> bool {
        self.events == 0
            && self.changes.is_empty()
            && self.arrivals.is_empty()
            && self.private.is_empty()
            && self.others.is_empty()
            && self.calls.is_empty()
    }

    /// How many things wait, an event and the answer to it being one: what the
    /// rule for the end of the tick looks at.
    pub fn waiting(&self) -> usize {
        (self.events as usize).max(self.private.len() + self.calls.len())
            + self.others.len()
            + self.arrivals.len()
    }

    pub fn is_full(&self) -> bool {
        self.rows
            .last()
            .is_some_and(|(_, body)| body.len() >= MAX_ROW_BYTES)
    }

    /// Where the next logged event is written; a line of its own.
    pub fn next_event(&mut self, sender: &UserId, now: Millis) -> &mut String {
        if self.events == 0 {
            self.since = now;
            self.sender = Some(sender.clone());
        } else if self.sender.as_ref().is_some_and(|one| one != sender) {
            self.sender = None;
        }
        self.events += 1;
        if self.rows.is_empty() || self.is_full() {
            self.rows.push((0, String::new()));
        }
        let last = self.rows.len() - 1;
        let (events, body) = &mut self.rows[last];
        if *events > 0 {
            body.push('\n');
        }
        *events += 1;
        body
    }

    /// A line for one connection.
    pub fn tell(&mut self, conn: ConnId, line: &str) {
        append(self.private.entry(conn).or_default(), line);
    }

    /// An answer that is true only once the tick is stored.
    pub fn answer(&mut self, conn: ConnId, id: u32, line: &str) {
        self.tell(conn, line);
        self.acked.push((conn, id));
    }

    /// An ephemeral line for everybody but.
    pub fn tell_others(&mut self, except: Except, line: String) {
        self.others.push((except, line));
    }

    /// What waits for a connection that is gone is dropped.
    pub fn forget(&mut self, conn: ConnId) {
        self.arrivals.retain(|arrival| arrival.conn != conn);
        self.private.remove(&conn);
        self.acked.retain(|(one, _)| *one != conn);
        self.others
            .retain(|(except, _)| !matches!(except, Except::Conn(one) if *one == conn));
    }

    /// The rows of this tick, whose first event has the number `first`: one, but
    /// for large publications.
    pub fn rows(&self, mut first: u64, now: Millis) -> Vec<Row> {
        self.rows
            .iter()
            .map(|(events, body)| {
                let row = Row {
                    first,
                    last: first + events - 1,
                    at: now,
                    body: body.clone(),
                };
                first = row.last + 1;
                row
            })
            .collect()
    }

    /// One frame a socket, of tick `number`. `connections` says where a user is
    /// connected, `gets` which part of the shared frame a connection gets, and `behind`
    /// which connections get [`Gets::Ephemeral`].
    pub fn deliver(
        mut self,
        number: u64,
        events: (u64, u64),
        connections: impl Fn(&UserId) -> Vec<ConnId>,
        gets: impl Fn(ConnId) -> Gets,
        behind: impl IntoIterator<Item = ConnId>,
    ) -> Delivery {
        let mut shared = String::new();
        for (_, body) in std::mem::take(&mut self.rows) {
            if shared.is_empty() {
                shared = body;
            } else {
                append(&mut shared, &body);
            }
        }
        // Where each line begins and ends in UTF-16 units, by which JavaScript
        // cuts; the events are one piece.
        let mut pieces: Vec<Range<usize>> = Vec::new();
        let mut kept_from: HashMap<ConnId, Vec<usize>> = HashMap::new();
        let mut end = 0;
        if !shared.is_empty() {
            end = utf16_length(&shared);
            pieces.push(0..end);
        }
        for (except, line) in &self.others {
            let start = if shared.is_empty() { 0 } else { end + 1 };
            append(&mut shared, line);
            end = start + utf16_length(line);
            let conns = match except {
                Except::User(user) => connections(user),
                Except::Conn(conn) => vec![*conn],
                Except::Nobody => Vec::new(),
            };
            for conn in conns {
                kept_from.entry(conn).or_default().push(pieces.len());
            }
            pieces.push(start..end);
        }
        let shared = Some(shared).filter(|frame| !frame.is_empty());
        // They get a custom frame even without private lines.
        if shared.is_some() {
            for conn in behind {
                kept_from.entry(conn).or_default();
            }
        }
        let has_events = events.1 > events.0;
        let part = |conn: ConnId, mut without: Vec<usize>| match gets(conn) {
            Gets::All => (Some(runs(&pieces, &without)), has_events),
            Gets::Ephemeral => {
                if has_events {
                    without.push(0);
                }
                (Some(runs(&pieces, &without)), false)
            }
            Gets::Nothing => (None, false),
        };
        let mut custom = Vec::with_capacity(self.private.len() + kept_from.len());
        for (conn, without) in kept_from {
            let (shared, with_events) = part(conn, without);
            custom.push(Custom {
                conn,
                private: self.private.remove(&conn).unwrap_or_default(),
                with_events,
                shared,
            });
        }
        for (conn, private) in self.private {
            let (shared, with_events) = part(conn, Vec::new());
            custom.push(Custom {
                conn,
                private,
                with_events,
                shared,
            });
        }
        Delivery {
            tick: number,
            shared,
            custom,
            acked: self.acked,
            events,
        }
    }
}

/// The length in UTF-16 units, by which JavaScript cuts.
pub(super) fn utf16_length(text: &str) -> usize {
    if text.is_ascii() {
        text.len()
    } else {
        text.encode_utf16().count()
    }
}

/// The pieces but `without`, those that stand side by side as one.
fn runs(pieces: &[Range<usize>], without: &[usize]) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::with_capacity(without.len() + 1);
    for (index, piece) in pieces.iter().enumerate() {
        if without.contains(&index) {
            continue;
        }
        match runs.last_mut() {
            Some(run) if run.end + 1 == piece.start => run.end = piece.end,
            _ => runs.push(piece.clone()),
        }
    }
    runs
}

fn append(frame: &mut String, lines: &str) {
    if !frame.is_empty() && !lines.is_empty() {
        frame.push('\n');
    }
    frame.push_str(lines);
}

#[cfg(test)]
mod tests {
    use super::super::output::conn;
    use super::*;

    #[test]
    fn one_frame_a_socket_answers_first() {
        let (alice, bob): (UserId, UserId) = ("alice".into(), "bob".into());
        let mut tick = Tick::default();
        tick.answer(conn(0), 7, "ack");
        tick.next_event(&alice, 5).push_str("é1");
        tick.next_event(&bob, 6).push_str("e2");
        tick.tell_others(Except::User(alice.clone()), "typing".into());
        tick.tell_others(Except::Nobody, "wave".into());
        assert_eq!(tick.rows(9, 6)[0].body, "é1\ne2");
        let delivery = tick.deliver(
            1,
            (0, 0),
            |user| match user == &alice {
                true => vec![conn(0), conn(1)],
                false => vec![conn(2)],
            },
            |_| Gets::All,
            [],
        );
        assert_eq!(delivery.shared.as_deref(), Some("é1\ne2\ntyping\nwave"));
        let frames = delivery.frames();
        assert_eq!(frames[&conn(0)].as_deref(), Some("ack\né1\ne2\nwave"));
        assert_eq!(frames[&conn(1)].as_deref(), Some("é1\ne2\nwave"));
        assert!(!frames.contains_key(&conn(2)), "gets what everybody gets");
        assert_eq!(delivery.acked, vec![(conn(0), 7)]);
    }

    #[test]
    fn an_answer_to_one_is_no_frame_for_the_others() {
        let mut tick = Tick::default();
        tick.tell(conn(3), "answer");
        let delivery = tick.deliver(1, (0, 0), |_| Vec::new(), |_| Gets::All, []);
        assert_eq!(delivery.shared, None);
        assert_eq!(delivery.frames()[&conn(3)].as_deref(), Some("answer"));
    }

    #[test]
    fn the_sender_gets_its_answer_and_the_event() {
        let alice: UserId = "alice".into();
        let mut tick = Tick::default();
        tick.next_event(&alice, 5).push_str("e1");
        tick.answer(conn(0), 1, "ack");
        let delivery = tick.deliver(1, (0, 0), |_| Vec::new(), |_| Gets::All, []);
        assert_eq!(delivery.frames()[&conn(0)].as_deref(), Some("ack\ne1"));
    }

    #[test]
    fn a_row_does_not_grow_without_end() {
        let alice: UserId = "alice".into();
        let mut tick = Tick::default();
        let large = "x".repeat(MAX_ROW_BYTES / 2);
        for _ in 0..5 {
            tick.next_event(&alice, 5).push_str(&large);
        }
        let rows = tick.rows(1, 5);
        let numbers: Vec<_> = rows.iter().map(|row| (row.first, row.last)).collect();
        assert_eq!(numbers, [(1, 2), (3, 4), (5, 5)]);
        let bodies: Vec<_> = rows.into_iter().map(|row| row.body).collect();
        let delivery = tick.deliver(1, (0, 0), |_| Vec::new(), |_| Gets::All, []);
        assert_eq!(delivery.shared, Some(bodies.join("\n")));
    }

    #[test]
    fn who_may_get_nothing_gets_nothing() {
        let alice: UserId = "alice".into();
        let mut tick = Tick::default();
        tick.tell_others(Except::User(alice.clone()), "a".into());
        tick.tell_others(Except::User(alice), "b".into());
        let delivery = tick.deliver(1, (0, 0), |_| vec![conn(0)], |_| Gets::All, []);
        assert_eq!(delivery.frames()[&conn(0)], None);
    }
}
