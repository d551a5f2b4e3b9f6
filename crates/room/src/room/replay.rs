//! Catch-up of the room's own connections, and slow consumers.

use super::Room;
use crate::catch_up::{CatchUp, LogRead};
use crate::delivery::Delivery;
use crate::ids::ConnId;
use crate::output::Output;
use crate::presence::FeedReceiver;
use crate::seq_range::SeqRange;
use crate::timers::Timer;
use roomcast_proto::disconnect::Disconnect;
use roomcast_proto::event;
use roomcast_proto::link::UNKNOWN_PRESENCE;
use roomcast_proto::log_record::LogRecord;
use roomcast_proto::time::Millis;

/// Interval at which stalled connections are checked for pings. The runtime answers pings
/// without waking the object, so the room must ask for their times.
const STALL_CHECK_INTERVAL: Millis = 500;

impl Room {
    /// Returns the number of the room's own connections that wait for a portion of the log.
    /// While there are any, the host calls [`Room::next_replay`] in each turn of the event
    /// loop.
    pub fn portions_waiting(&self) -> usize {
        self.catch_ups.waiting()
    }

    /// Starts the catch-up of a connection with its own socket that has received the events
    /// up to `after`. Does nothing if the connection already catches up.
    pub(super) fn start_replay(&mut self, conn: ConnId, after: u64) {
        if let Some(connection) = self.connections.get_mut(conn)
            && connection.catch_up.is_none()
        {
            connection.catch_up = Some(CatchUp::new(after));
            if connection.stalled_at.is_none() {
                self.catch_ups.push(conn);
            }
        }
    }

    /// Ends the catch-up of a connection, because it has left the room or has closed.
    pub(super) fn end_replay(&mut self, conn: ConnId) {
        if let Some(connection) = self.connections.get_mut(conn)
            && connection.catch_up.take().is_some()
            && connection.stalled_at.is_none()
        {
            self.catch_ups.remove(conn);
        }
    }

    /// Returns the part of the log that the host must read next for one of the room's own
    /// connections. The connections take turns. Adds `gap` to the outputs for events that
    /// have expired. The host carries the outputs out. Unless the connection is
    /// stalled then ([`Room::is_stalled`]), it reads the log, calls [`Room::replayed`], and
    /// sends the events as one frame. If reading fails, it calls [`Room::replay_failed`]
    /// instead. No other input may come in between.
    pub fn next_replay(&mut self, out: &mut Vec<Output>) -> Option<LogRead> {
        let (head, floor) = (self.log.head(), self.floor());
        while let Some(conn) = self.catch_ups.pop() {
            while let Some(portion) = self.connections.next_portion(conn, head) {
                let SeqRange { after, upto } = portion.range;
                let floor = floor.min(upto);
                if after < floor {
                    let frame = event::gap(&self.name, after + 1, floor);
                    out.push(Output::Send { conn, frame });
                    self.connections.portion_sent(conn, floor, head);
                } else if portion.range.is_empty() {
                    self.connections.portion_sent(conn, upto, head);
                } else {
                    return Some(LogRead { conn, portion });
                }
            }
            self.caught_up(conn, out);
        }
        None
    }

    /// Records that the host sends the part of the log that [`Room::next_replay`] returned, up
    /// to the event `last`.
    pub fn replayed(&mut self, read: LogRead, last: u64, out: &mut Vec<Output>) {
        let conn = read.conn;
        self.connections.portion_sent(conn, last, self.log.head());
        let Some(connection) = self.connections.get(conn) else {
            return;
        };
        if connection.catch_up.is_none() {
            return self.caught_up(conn, out);
        }
        if connection.stalled_at.is_none() {
            self.catch_ups.push(conn);
        }
        out.push(Output::Attach { conn });
    }

    /// Closes a connection because the log cannot be read. Its client resumes.
    pub fn replay_failed(&mut self, conn: ConnId, now: Millis, out: &mut Vec<Output>) {
        self.close(conn, Disconnect::Failed, now, out);
    }

    /// Handles a connection that has become live at the head of the log.
    fn caught_up(&mut self, conn: ConnId, out: &mut Vec<Output>) {
        let Some(connection) = self.connections.get_mut(conn) else {
            return;
        };
        out.push(Output::Attach { conn });
        if let Some(version) = connection.take_lost_presence() {
            out.push(Output::Log(
                LogRecord::info("resume")
                    .user(&connection.attachment.user)
                    .connection(&connection.attachment.id),
            ));
            self.feed_presence(FeedReceiver::Own(conn), version);
        }
    }

    /// Returns `true` if nothing but answers may be sent to the connection.
    pub fn is_stalled(&self, conn: ConnId) -> bool {
        let connection = self.connections.get(conn);
        connection.is_some_and(|connection| connection.stalled_at.is_some())
    }

    /// Records that the host has sent this number of bytes to a socket. Returns `true` if
    /// the client may be a slow consumer; the host must then call [`Room::check_slow`].
    pub fn sent(&mut self, conn: ConnId, bytes: usize) -> bool {
        let limit = self.config.limits.max_unacked_bytes;
        self.connections
            .get_mut(conn)
            .is_some_and(|connection| connection.slow_consumer.on_sent(bytes, limit))
    }

    /// Stalls a slow consumer. `pinged` is the time of the last ping on its socket. The
    /// connection does not stall if this ping came after its last activity.
    pub fn check_slow(
        &mut self,
        conn: ConnId,
        pinged: Option<Millis>,
        now: Millis,
        out: &mut Vec<Output>,
    ) {
        let head = self.log.head();
        let Some(connection) = self.connections.get_mut(conn) else {
            return;
        };
        if connection.slow_consumer.check_ping(pinged, now) {
            return self.resume(conn);
        }
        if connection.stalled_at.is_some() {
            return;
        }
        // The answer to its join may have shown changes that were not announced.
        let is_fresh = connection.live_from > self.sent_announcement;
        let told = if is_fresh {
            UNKNOWN_PRESENCE
        } else {
            self.sent_presence
        };
        connection.stall(told, now);
        let attachment = &connection.attachment;
        if attachment.joined {
            // A live connection has received every delivery since it joined. It may have
            // joined by an output that follows.
            let at = self.sent_upto.max(attachment.from).min(head);
            connection.catch_up.get_or_insert_with(|| CatchUp::new(at));
        }
        let record = LogRecord::info("pause")
            .user(&attachment.user)
            .connection(&attachment.id)
            .with("unackedBytes", connection.slow_consumer.unacked());
        out.push(Output::Log(record));
        out.push(Output::Attach { conn });
        self.catch_ups.stall(conn);
        self.timers
            .start(Timer::StallCheck, now + STALL_CHECK_INTERVAL);
    }

    /// Removes the shared parts from custom frames of connections that have stalled since the
    /// batch ended. They receive the events from the log.
    pub(super) fn cut_frames_of_stalled(&self, delivery: &mut Delivery) {
        for custom in &mut delivery.custom {
            if self.is_stalled(custom.conn) {
                custom.shared.clear();
                custom.with_events = false;
            }
        }
    }

    /// Continues a connection that has shown a sign of life, if it is stalled.
    pub(super) fn resume(&mut self, conn: ConnId) {
        if let Some(connection) = self.connections.get_mut(conn)
            && connection.stalled_at.take().is_some()
        {
            self.catch_ups.remove(conn);
            if connection.catch_up.is_some() {
                self.catch_ups.push(conn);
            }
        }
    }

    /// Continues the stalled connections that have pinged, and closes those that have shown no
    /// sign of life for `CATCH_UP_TIMEOUT`. `pinged` returns the time of the last ping on a
    /// socket. The host calls it with each [`Room::flush`]. It does nothing if no check is
    /// due.
    pub fn check_stalled(
        &mut self,
        pinged: impl Fn(ConnId) -> Option<Millis>,
        now: Millis,
        out: &mut Vec<Output>,
    ) {
        if !self.timers.is_due(Timer::StallCheck, now) {
            return;
        }
        for conn in self.catch_ups.stalled().to_vec() {
            let Some(connection) = self.connections.get_mut(conn) else {
                continue;
            };
            let timeout = self.config.limits.catch_up_timeout;
            if connection.slow_consumer.check_ping(pinged(conn), now) {
                self.resume(conn);
            } else if connection
                .stalled_at
                .is_some_and(|at| at.saturating_add(timeout) <= now)
            {
                let record = LogRecord::reject("slow")
                    .user(&connection.attachment.user)
                    .connection(&connection.attachment.id)
                    .with("unackedBytes", connection.slow_consumer.unacked());
                out.push(Output::Log(record));
                self.close_silent(conn, Disconnect::TooSlow, None, now, out);
            }
        }
        let is_any_stalled = !self.catch_ups.stalled().is_empty();
        let next = is_any_stalled.then_some(now + STALL_CHECK_INTERVAL);
        self.timers.set(Timer::StallCheck, next);
    }
}
