//! Presence: the roster, and the ephemeral events that wait to be sent together.
//!
//! Presence updates, typing indicators, receipts, joins and leaves wait longer than
//! messages, because n users cause n² frames if each event is sent alone. None of these
//! events is stored. After hibernation the roster is restored from the connections.

use crate::departed::Departed;
use crate::ephemeral::{EphemeralEvent, Except};
use crate::ids::ConnId;
use crate::presence_log::PresenceLog;
use crate::roster::Roster;
use crate::timers::{Timer, TimerTable};
use roomcast_proto::id::{GatewayName, UserId};
use roomcast_proto::link::{PresenceVersion, UNKNOWN_PRESENCE};
use roomcast_proto::time::{DAY, Millis};
use std::collections::{HashSet, VecDeque};

/// Bounds of the delay after which queued ephemeral events are sent. The delay is a
/// millisecond for each connection, so that the number of frames grows linearly.
const MIN_PRESENCE_FLUSH_DELAY: Millis = 50;
const MAX_PRESENCE_FLUSH_DELAY: Millis = 1_000;

/// Additional delay of the flush for each join. While a thousand clients connect,
/// accepting them is more important.
const JOIN_BURST_DELAY: Millis = 2;

/// The longest delay of a flush, including the delays for joins.
const MAX_JOIN_BURST_DELAY: Millis = 4_000;

/// Time in milliseconds after which a receiver can no longer show a user as present who has left
/// the room, or whose last connection has ended: clients can resume at a gateway for a day.
pub(crate) const SHOWN_FOR: Millis = DAY;

/// The roster and the queue of ephemeral events.
#[derive(Debug, Default)]
pub(crate) struct PresenceTracker {
    pub(crate) roster: Roster,
    pub(crate) log: PresenceLog,
    pub(crate) departed: Departed,
    /// The receivers that may have missed ephemeral events.
    pub(crate) feeds: VecDeque<PresenceFeed>,
    queue: Vec<EphemeralEvent>,
    /// The latest time of the flush. Valid while [`Timer::PresenceFlush`] is set.
    flush_by: Millis,
}

/// A receiver that is told the presence that has changed since a version.
#[derive(Clone, Debug)]
pub(crate) struct PresenceFeed {
    pub(crate) receiver: FeedReceiver,
    pub(crate) since: PresenceVersion,
    /// The last user of the previous text, if the presence of all members is sent.
    pub(crate) after: Option<UserId>,
}

/// The receiver of a feed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum FeedReceiver {
    /// A connection with its own socket.
    Own(ConnId),
    /// Connections at a gateway.
    Remote(GatewayName, Vec<ConnId>),
}

impl FeedReceiver {
    /// Keeps the first `n` connections, and returns the others as a receiver if there are any.
    pub(crate) fn split_off(&mut self, n: usize) -> Option<FeedReceiver> {
        match self {
            FeedReceiver::Remote(gateway, conns) if conns.len() > n => {
                let rest = conns.split_off(n);
                Some(FeedReceiver::Remote(gateway.clone(), rest))
            }
            _ => None,
        }
    }
}

impl PresenceFeed {
    /// Returns `true` if the next text of both feeds is the same.
    pub(crate) fn has_same_text(&self, other: &PresenceFeed) -> bool {
        self.since == other.since && self.after == other.after
    }
}

impl PresenceTracker {
    pub(crate) fn new(departed: Departed) -> Self {
        PresenceTracker {
            departed,
            ..PresenceTracker::default()
        }
    }

    /// Adds a feed. The earlier feeds of connections at the same gateway end.
    pub(crate) fn add_feed(&mut self, receiver: FeedReceiver, since: PresenceVersion) {
        // Receivers of all members share a text.
        let since = match self.log.knows(since) {
            true => since,
            false => UNKNOWN_PRESENCE,
        };
        let mut feed = PresenceFeed {
            receiver,
            since,
            after: None,
        };
        if let FeedReceiver::Remote(gateway, conns) = &mut feed.receiver {
            let again: HashSet<ConnId> = conns.iter().copied().collect();
            self.feeds.retain_mut(|other| match &mut other.receiver {
                FeedReceiver::Remote(at, others) if at == gateway => {
                    others.retain(|conn| !again.contains(conn));
                    if other.since == since && other.after.is_none() {
                        conns.append(others);
                    }
                    !others.is_empty()
                }
                _ => true,
            });
        }
        self.feeds.push_back(feed);
    }

    /// Queues an event about `user` for all other users, and schedules the flush.
    pub(crate) fn queue(
        &mut self,
        user: &UserId,
        line: String,
        connections: usize,
        timers: &mut TimerTable,
        now: Millis,
    ) {
        let except = Except::User(user.clone());
        self.queue.push(EphemeralEvent { except, line });
        self.schedule_flush(connections, timers, now);
    }

    /// Schedules the flush if the status of a user may have changed.
    pub(crate) fn schedule_changes(
        &mut self,
        connections: usize,
        timers: &mut TimerTable,
        now: Millis,
    ) {
        if self.roster.has_changes() {
            self.schedule_flush(connections, timers, now);
        }
    }

    fn schedule_flush(&mut self, connections: usize, timers: &mut TimerTable, now: Millis) {
        if timers.get(Timer::PresenceFlush).is_none() {
            let delay = connections as Millis;
            let delay = delay.clamp(MIN_PRESENCE_FLUSH_DELAY, MAX_PRESENCE_FLUSH_DELAY);
            timers.start(Timer::PresenceFlush, now + delay);
            self.flush_by = now + MAX_JOIN_BURST_DELAY;
        }
    }

    /// Postpones a scheduled flush because a connection has joined.
    pub(crate) fn postpone_flush(&self, timers: &mut TimerTable) {
        if let Some(at) = timers.get(Timer::PresenceFlush) {
            let at = (at + JOIN_BURST_DELAY).min(self.flush_by);
            timers.set(Timer::PresenceFlush, Some(at));
        }
    }

    /// Removes the queued events and returns them.
    pub(crate) fn take_queue(&mut self) -> Vec<EphemeralEvent> {
        std::mem::take(&mut self.queue)
    }
}
