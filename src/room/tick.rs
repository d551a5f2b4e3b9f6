//! The tick: everything accepted since the last one becomes one row, one
//! commit and one frame a socket. What is a mere rumour (presence, typing,
//! receipts) waits a little longer, so that many become one frame.

use super::log::Row;
use super::output::{CallId, ConnId, Delivery};
use crate::name::UserId;
use crate::time::Millis;
use std::collections::HashMap;

/// Bytes of events after which a tick does not wait for more. Keeps a row well
/// under the platform's 2 MB and a frame within what clients take.
pub const MAX_TICK_BYTES: usize = 256 * 1024;

/// Who does not get a line.
#[derive(Clone, Debug)]
pub enum Except {
    /// All connections of a user.
    User(UserId),
    /// One connection.
    Conn(ConnId),
    Nobody,
}

/// What is waiting for the end of the tick.
#[derive(Debug, Default)]
pub struct Tick {
    /// Envelopes of the logged events, a line each, in order.
    body: String,
    /// How many.
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
            && self.private.is_empty()
            && self.others.is_empty()
            && self.calls.is_empty()
    }

    /// How many things wait, an event and the answer to it being one: what the
    /// rule for the end of the tick looks at.
    pub fn waiting(&self) -> usize {
        (self.events as usize).max(self.private.len() + self.calls.len()) + self.others.len()
    }

    pub fn is_full(&self) -> bool {
        self.body.len() >= MAX_TICK_BYTES
    }

    /// Where the next logged event is written; a line of its own.
    pub fn next_event(&mut self, sender: &UserId, now: Millis) -> &mut String {
        if self.events == 0 {
            self.since = now;
            self.sender = Some(sender.clone());
        } else {
            self.body.push('\n');
            if self.sender.as_ref().is_some_and(|one| one != sender) {
                self.sender = None;
            }
        }
        self.events += 1;
        &mut self.body
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
        self.private.remove(&conn);
        self.acked.retain(|(one, _)| *one != conn);
        self.others
            .retain(|(except, _)| !matches!(except, Except::Conn(one) if *one == conn));
    }

    /// The row of this tick, whose first event has the number `first`.
    pub fn row(&self, first: u64, now: Millis) -> Option<Row> {
        (self.events > 0).then(|| Row {
            first,
            last: first + self.events - 1,
            at: now,
            body: self.body.clone(),
        })
    }

    /// One frame a socket. `connections` says where a user is connected,
    /// `joined` whether a connection gets what everybody gets.
    pub fn deliver(
        mut self,
        connections: impl Fn(&UserId) -> Vec<ConnId>,
        joined: impl Fn(ConnId) -> bool,
    ) -> Delivery {
        let mut shared = self.body.clone();
        // Who must not get all of the shared lines gets a frame of their own.
        let mut kept_from: HashMap<ConnId, Vec<usize>> = HashMap::new();
        for (index, (except, line)) in self.others.iter().enumerate() {
            append(&mut shared, line);
            let conns = match except {
                Except::User(user) => connections(user),
                Except::Conn(conn) => vec![*conn],
                Except::Nobody => continue,
            };
            for conn in conns {
                kept_from.entry(conn).or_default().push(index);
            }
        }
        let shared = Some(shared).filter(|frame| !frame.is_empty());
        let mut custom = Vec::with_capacity(self.private.len() + kept_from.len());
        for (conn, without) in kept_from {
            let mut frame = self.private.remove(&conn).unwrap_or_default();
            append(&mut frame, &self.body);
            for (index, (_, line)) in self.others.iter().enumerate() {
                if !without.contains(&index) {
                    append(&mut frame, line);
                }
            }
            custom.push((conn, Some(frame).filter(|frame| !frame.is_empty())));
        }
        for (conn, mut frame) in self.private {
            if let Some(shared) = shared.as_ref().filter(|_| joined(conn)) {
                append(&mut frame, shared);
            }
            custom.push((conn, Some(frame)));
        }
        Delivery {
            shared,
            custom,
            acked: self.acked,
        }
    }
}

fn append(frame: &mut String, lines: &str) {
    if !frame.is_empty() && !lines.is_empty() {
        frame.push('\n');
    }
    frame.push_str(lines);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_frame_a_socket_answers_first() {
        let (alice, bob): (UserId, UserId) = ("alice".into(), "bob".into());
        let mut tick = Tick::default();
        tick.answer(0, 7, "ack");
        tick.next_event(&alice, 5).push_str("e1");
        tick.next_event(&bob, 6).push_str("e2");
        tick.tell_others(Except::User(alice.clone()), "typing".into());
        assert_eq!(tick.row(9, 6).expect("a row").body, "e1\ne2");
        let delivery = tick.deliver(
            |user| if user == &alice { vec![0, 1] } else { vec![2] },
            |_| true,
        );
        assert_eq!(delivery.shared.as_deref(), Some("e1\ne2\ntyping"));
        let mut custom = delivery.custom;
        custom.sort();
        assert_eq!(
            custom,
            vec![
                (0, Some("ack\ne1\ne2".to_owned())),
                (1, Some("e1\ne2".to_owned()))
            ]
        );
        assert_eq!(delivery.acked, vec![(0, 7)]);
    }

    #[test]
    fn an_answer_to_one_is_no_frame_for_the_others() {
        let mut tick = Tick::default();
        tick.tell(3, "answer");
        let delivery = tick.deliver(|_| Vec::new(), |_| true);
        assert_eq!(delivery.shared, None);
        assert_eq!(delivery.custom, vec![(3, Some("answer".to_owned()))]);
    }
}
