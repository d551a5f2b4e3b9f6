//! The batch: everything that the room has accepted since the last flush. It becomes one
//! row, one commit and one frame for each socket.

use crate::connection::Receives;
use crate::dedupe::{DedupeKey, Seen, push_key};
use crate::delivery::{CustomFrame, Delivery, utf16_length};
use crate::ephemeral::{EphemeralEvent, Except};
use crate::event_log::Start;
use crate::ids::{CallId, ConnId};
use crate::log::LogBatch;
use crate::member::Cursor;
use crate::output::Change;
use crate::seq_range::SeqRange;
use roomcast_proto::id::UserId;
use roomcast_proto::time::Millis;
use std::collections::HashMap;
use std::ops::Range;
use std::rc::Rc;

/// Size of the logged events in bytes at which the batch ends without waiting. If a large
/// publication adds further events, they go into another row. This keeps a row below the
/// platform's limit of 2 MB: an event has at most 1 MiB and its envelope.
const MAX_ROW_BYTES: usize = 256 * 1024;

/// A connection that has joined and waits for its welcome.
#[derive(Debug)]
pub(crate) struct Arrival {
    pub(crate) conn: ConnId,
    pub(crate) start: Start,
    pub(crate) welcome: Welcome,
}

/// The first message to a connection that has joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Welcome {
    /// The event `connected`, on the room's own sockets.
    Connected,
    /// The answer to the `joinRoom` with this id, at gateways. `None` if the command has
    /// no id.
    JoinAnswer(Option<u32>),
}

/// The answers of a call of a service.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) call: CallId,
    /// A JSON list.
    pub(crate) answers: String,
}

/// An acknowledgement of a logged event in the batch. The cursor moves when the batch is
/// stored.
#[derive(Debug)]
pub(crate) struct Acknowledgement {
    pub(crate) conn: ConnId,
    /// The id of the command.
    pub(crate) id: Option<u32>,
    pub(crate) cursor: Cursor,
    pub(crate) seq: u64,
}

/// A row that is being filled.
#[derive(Debug, Default)]
struct Row {
    events: u64,
    body: String,
    /// The hashes of events, each with the index of its event and the time of acceptance.
    keys: Vec<(u64, Millis, DedupeKey)>,
}

/// Everything that waits for the next flush.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    /// Changes of the members, stored with the events.
    changes: Vec<Change>,
    arrivals: Vec<Arrival>,
    /// The envelopes of the logged events.
    rows: Vec<Row>,
    /// The number of logged events.
    events: u64,
    /// The time at which the first event of the batch was accepted.
    since: Millis,
    /// The sender of the events, if all events have the same sender.
    sender: Option<UserId>,
    /// Lines for single connections. They are sent before the events.
    private: HashMap<ConnId, String>,
    /// Acknowledgements of logged events in the batch.
    acknowledgements: Vec<Acknowledgement>,
    /// Connections of the room's own sockets whose record changes with the members.
    attached: Vec<ConnId>,
    ephemeral: Vec<EphemeralEvent>,
    /// The batch announces all changes of the presence so far.
    pub(crate) announces: bool,
    replies: Vec<Reply>,
}

impl Batch {
    pub(crate) fn is_empty(&self) -> bool {
        self.events == 0
            && self.changes.is_empty()
            && self.arrivals.is_empty()
            && self.private.is_empty()
            && self.ephemeral.is_empty()
            && self.replies.is_empty()
    }

    /// Returns the number of items that wait. An event and the answer to it count as one.
    pub(crate) fn waiting(&self) -> usize {
        (self.events as usize).max(self.private.len() + self.replies.len())
            + self.ephemeral.len()
            + self.arrivals.len()
    }

    /// Returns `true` if the batch should end without waiting for more items.
    pub(crate) fn is_full(&self) -> bool {
        self.rows
            .last()
            .is_some_and(|row| row.body.len() >= MAX_ROW_BYTES)
    }

    /// Returns the number of logged events.
    pub(crate) fn events(&self) -> u64 {
        self.events
    }

    /// Returns the time at which the first event was accepted.
    pub(crate) fn since(&self) -> Millis {
        self.since
    }

    /// Returns the sender of the events, if all have the same.
    pub(crate) fn sender(&self) -> Option<&UserId> {
        self.sender.as_ref()
    }

    /// Sets the start of an empty batch.
    pub(crate) fn begin(&mut self, now: Millis) {
        if self.is_empty() {
            self.since = now;
        }
    }

    /// Adds a change of the members.
    pub(crate) fn store(&mut self, change: Change) {
        self.changes.push(change);
    }

    /// Removes the changes of the members and returns them.
    pub(crate) fn take_changes(&mut self) -> Vec<Change> {
        std::mem::take(&mut self.changes)
    }

    /// Adds a connection that has joined.
    pub(crate) fn welcome(&mut self, arrival: Arrival) {
        self.arrivals.push(arrival);
    }

    /// Returns `true` if the connection waits for its welcome.
    pub(crate) fn is_arriving(&self, conn: ConnId) -> bool {
        self.arrivals.iter().any(|arrival| arrival.conn == conn)
    }

    /// Removes the arrivals and returns them.
    pub(crate) fn take_arrivals(&mut self) -> Vec<Arrival> {
        std::mem::take(&mut self.arrivals)
    }

    /// Adds the answers of a call.
    pub(crate) fn reply(&mut self, call: CallId, answers: String) {
        self.replies.push(Reply { call, answers });
    }

    /// Removes the answers of calls and returns them.
    pub(crate) fn take_replies(&mut self) -> Vec<Reply> {
        std::mem::take(&mut self.replies)
    }

    /// Starts a new line for a logged event. The caller appends the envelope.
    pub(crate) fn next_event(&mut self, sender: &UserId, now: Millis) -> &mut String {
        if self.events == 0 {
            self.since = now;
            self.sender = Some(sender.clone());
        } else if self.sender.as_ref().is_some_and(|one| one != sender) {
            self.sender = None;
        }
        self.events += 1;
        if self.rows.is_empty() || self.is_full() {
            self.rows.push(Row::default());
        }
        let last = self.rows.len() - 1;
        let row = &mut self.rows[last];
        if row.events > 0 {
            row.body.push('\n');
        }
        row.events += 1;
        &mut row.body
    }

    /// Adds the hash of the event that [`Batch::next_event`] has started.
    pub(crate) fn add_key(&mut self, key: DedupeKey, now: Millis) {
        if let Some(row) = self.rows.last_mut() {
            row.keys.push((row.events - 1, now, key));
        }
    }

    /// Adds a line for one connection.
    pub(crate) fn send(&mut self, conn: ConnId, line: &str) {
        let frame = self.private.entry(conn).or_default();
        if !frame.is_empty() {
            frame.push('\n');
        }
        frame.push_str(line);
    }

    /// Adds an acknowledgement of an event in the batch.
    pub(crate) fn acknowledge(&mut self, acknowledgement: Acknowledgement) {
        self.acknowledgements.push(acknowledgement);
    }

    /// Removes the acknowledgements and returns them.
    pub(crate) fn take_acknowledgements(&mut self) -> Vec<Acknowledgement> {
        std::mem::take(&mut self.acknowledgements)
    }

    /// Adds a connection whose record is attached to its socket after the changes of the
    /// members are stored.
    pub(crate) fn attach(&mut self, conn: ConnId) {
        self.attached.push(conn);
    }

    /// Removes the connections whose records are attached and returns them.
    pub(crate) fn take_attached(&mut self) -> Vec<ConnId> {
        std::mem::take(&mut self.attached)
    }

    /// Adds an ephemeral event.
    pub(crate) fn broadcast(&mut self, event: EphemeralEvent) {
        self.ephemeral.push(event);
    }

    /// Adds an event of the presence. The caller adds all of those that wait.
    pub(crate) fn announce(&mut self, event: EphemeralEvent) {
        self.announces = true;
        self.broadcast(event);
    }

    /// Drops the items for a closed connection, and the ephemeral events from it. Logged
    /// events stay.
    pub(crate) fn forget(&mut self, conn: ConnId) {
        self.arrivals.retain(|arrival| arrival.conn != conn);
        self.private.remove(&conn);
        self.acknowledgements.retain(|one| one.conn != conn);
        self.ephemeral.retain(|event| !event.is_from(conn));
    }

    /// Removes the rows and returns them: one, unless there are large publications. The
    /// first event gets the sequence number `first`. `total` is that of the previous row.
    pub(crate) fn take_rows(
        &mut self,
        mut first: u64,
        at: Millis,
        mut total: u64,
    ) -> Vec<LogBatch> {
        let rows = std::mem::take(&mut self.rows).into_iter();
        let number = |row: Row| {
            total += row.body.len() as u64;
            let mut keys = Vec::new();
            for (index, accepted_at, key) in row.keys {
                let seen = Seen {
                    seq: first + index,
                    at: accepted_at,
                };
                push_key(&mut keys, first, (key, seen));
            }
            let row = LogBatch {
                first,
                last: first + row.events - 1,
                at,
                body: Rc::new(row.body),
                keys,
                total,
            };
            first = row.last + 1;
            row
        };
        rows.map(number).collect()
    }

    /// Returns the frames of the batch with the number `number`. `logged` contains the
    /// bodies of its rows. `connections` returns the connections of a user, `receives` the
    /// part of the shared frame that a connection receives, and `catching_up` are the
    /// connections with [`Receives::Ephemeral`].
    pub(crate) fn into_delivery(
        mut self,
        number: u64,
        events: SeqRange,
        logged: &[Rc<String>],
        connections: impl Fn(&UserId) -> Vec<ConnId>,
        receives: impl Fn(ConnId) -> Receives,
        catching_up: impl IntoIterator<Item = ConnId>,
    ) -> Delivery {
        let shared = shared_text(logged, &self.ephemeral);
        // The start and end of each piece in UTF-16 code units. The logged events are one
        // piece, every ephemeral event is another.
        let mut pieces: Vec<Range<usize>> = Vec::with_capacity(self.ephemeral.len() + 1);
        // The pieces that a connection does not receive.
        let mut excluded: HashMap<ConnId, Vec<usize>> = HashMap::new();
        if !logged.is_empty() {
            let line_breaks = logged.len() - 1;
            let length: usize = logged.iter().map(|body| utf16_length(body)).sum();
            pieces.push(0..length + line_breaks);
        }
        for event in &self.ephemeral {
            let start = pieces.last().map_or(0, |piece| piece.end + 1);
            let conns = match &event.except {
                Except::User(user) => connections(user),
                Except::Connection(conn) => vec![*conn],
                Except::Nobody => Vec::new(),
            };
            for conn in conns {
                excluded.entry(conn).or_default().push(pieces.len());
            }
            pieces.push(start..start + utf16_length(&event.line));
        }
        // Connections that catch up need a custom frame even without private lines.
        if shared.is_some() {
            for conn in catching_up {
                excluded.entry(conn).or_default();
            }
        }
        let has_events = !events.is_empty();
        let custom_frame = |conn: ConnId, private: String, mut excluded: Vec<usize>| {
            let receives = receives(conn);
            if receives == Receives::Ephemeral && has_events {
                excluded.push(0);
            }
            CustomFrame {
                conn,
                private,
                with_events: has_events && receives == Receives::All,
                shared: match receives {
                    Receives::Nothing => Vec::new(),
                    _ => join_pieces(&pieces, &excluded),
                },
            }
        };
        let mut custom = Vec::with_capacity(self.private.len() + excluded.len());
        for (conn, excluded) in excluded {
            let private = self.private.remove(&conn).unwrap_or_default();
            custom.push(custom_frame(conn, private, excluded));
        }
        for (conn, private) in self.private {
            custom.push(custom_frame(conn, private, Vec::new()));
        }
        Delivery {
            batch: number,
            shared,
            custom,
            events,
            ..Delivery::default()
        }
    }
}

/// Returns the shared frame. The body of a single row is not copied.
fn shared_text(logged: &[Rc<String>], ephemeral: &[EphemeralEvent]) -> Option<Rc<String>> {
    match (logged, ephemeral) {
        ([], []) => None,
        ([body], []) => Some(body.clone()),
        _ => {
            let logged = logged.iter().map(|body| body.as_str());
            let ephemeral = ephemeral.iter().map(|event| event.line.as_str());
            let parts: Vec<&str> = logged.chain(ephemeral).collect();
            Some(Rc::new(parts.join("\n")))
        }
    }
}

/// Returns the pieces without the excluded ones. Adjacent pieces are joined.
fn join_pieces(pieces: &[Range<usize>], excluded: &[usize]) -> Vec<Range<usize>> {
    let mut joined: Vec<Range<usize>> = Vec::with_capacity(excluded.len() + 1);
    for (index, piece) in pieces.iter().enumerate() {
        if excluded.contains(&index) {
            continue;
        }
        match joined.last_mut() {
            Some(last) if last.end + 1 == piece.start => last.end = piece.end,
            _ => joined.push(piece.clone()),
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::conn;

    const NO_EVENTS: SeqRange = SeqRange { after: 0, upto: 0 };

    fn bodies(batch: &mut Batch, first: u64) -> Vec<Rc<String>> {
        let rows = batch.take_rows(first, 5, 0);
        rows.into_iter().map(|row| row.body).collect()
    }

    fn event(except: Except, line: &str) -> EphemeralEvent {
        let line = line.to_owned();
        EphemeralEvent { except, line }
    }

    fn text(delivery: &Delivery) -> Option<&str> {
        delivery.shared.as_deref().map(String::as_str)
    }

    #[test]
    fn each_connection_gets_one_frame_with_answers_first() {
        let (alice, bob) = (UserId::trusted("alice"), UserId::trusted("bob"));
        let mut batch = Batch::default();
        batch.send(conn(0), "ack");
        batch.next_event(&alice, 5).push_str("é1");
        batch.next_event(&bob, 6).push_str("e2");
        batch.broadcast(event(Except::User(alice.clone()), "typing"));
        batch.broadcast(event(Except::Nobody, "wave"));
        let logged = bodies(&mut batch, 9);
        assert_eq!(*logged[0], "é1\ne2");
        let delivery = batch.into_delivery(
            1,
            NO_EVENTS,
            &logged,
            |user| match user == &alice {
                true => vec![conn(0), conn(1)],
                false => vec![conn(2)],
            },
            |_| Receives::All,
            [],
        );
        assert_eq!(text(&delivery), Some("é1\ne2\ntyping\nwave"));
        let frames = delivery.frames();
        assert_eq!(frames[&conn(0)].as_deref(), Some("ack\né1\ne2\nwave"));
        assert_eq!(frames[&conn(1)].as_deref(), Some("é1\ne2\nwave"));
        assert!(!frames.contains_key(&conn(2)), "receives the shared frame");
    }

    #[test]
    fn an_answer_is_sent_to_its_connection_only() {
        let mut batch = Batch::default();
        batch.send(conn(3), "answer");
        let delivery =
            batch.into_delivery(1, NO_EVENTS, &[], |_| Vec::new(), |_| Receives::All, []);
        assert_eq!(delivery.shared, None);
        assert_eq!(delivery.frames()[&conn(3)].as_deref(), Some("answer"));
    }

    #[test]
    fn the_sender_gets_its_answer_and_the_event() {
        let alice = UserId::trusted("alice");
        let mut batch = Batch::default();
        batch.next_event(&alice, 5).push_str("e1");
        batch.send(conn(0), "ack");
        let logged = bodies(&mut batch, 1);
        let delivery =
            batch.into_delivery(1, NO_EVENTS, &logged, |_| Vec::new(), |_| Receives::All, []);
        assert_eq!(delivery.frames()[&conn(0)].as_deref(), Some("ack\ne1"));
        let shared = delivery.shared.expect("a shared frame");
        assert!(Rc::ptr_eq(&shared, &logged[0]), "the text is not copied");
    }

    #[test]
    fn a_large_batch_is_stored_in_several_rows() {
        let alice = UserId::trusted("alice");
        let mut batch = Batch::default();
        let large = "x".repeat(MAX_ROW_BYTES / 2);
        for _ in 0..5 {
            batch.next_event(&alice, 5).push_str(&large);
        }
        let rows = batch.take_rows(1, 5, 7);
        let numbers: Vec<_> = rows.iter().map(|row| (row.first, row.last)).collect();
        assert_eq!(numbers, [(1, 2), (3, 4), (5, 5)]);
        let totals: Vec<_> = rows.iter().map(|row| row.total).collect();
        let bytes = large.len() as u64;
        assert_eq!(totals, [8 + 2 * bytes, 9 + 4 * bytes, 9 + 5 * bytes]);
        let logged: Vec<_> = rows.into_iter().map(|row| row.body).collect();
        let delivery =
            batch.into_delivery(1, NO_EVENTS, &logged, |_| Vec::new(), |_| Receives::All, []);
        let bodies: Vec<&str> = logged.iter().map(|body| body.as_str()).collect();
        assert_eq!(text(&delivery), Some(&*bodies.join("\n")));
    }

    #[test]
    fn a_connection_that_is_excluded_from_all_events_gets_no_frame() {
        let alice = UserId::trusted("alice");
        let mut batch = Batch::default();
        batch.broadcast(event(Except::User(alice.clone()), "a"));
        batch.broadcast(event(Except::User(alice), "b"));
        let delivery =
            batch.into_delivery(1, NO_EVENTS, &[], |_| vec![conn(0)], |_| Receives::All, []);
        assert_eq!(delivery.frames()[&conn(0)], None);
    }
}
