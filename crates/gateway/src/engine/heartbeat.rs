//! Pings, timeouts and the deadline of sessions.
//!
//! With an interval of at least [`PINGS_BY_ALARM_FROM`], all sessions are pinged
//! together by one alarm, and the gateway can hibernate in between. With a shorter
//! interval each session has its own times and the host uses timers.

use super::server::EngineServer;
use super::sessions::{Session, Transport};
use crate::host::LastSeen;
use crate::ids::SessionId;
use engineioxide_core::Packet;
use roomcast_proto::disconnect::Disconnect;
use roomcast_proto::time::{Millis, SECOND, sooner};

/// Shortest ping interval at which sessions are pinged by one alarm.
const PINGS_BY_ALARM_FROM: Millis = 5 * SECOND;

/// A handshake, an upgrade or a recovery that begins is checked after this time, before
/// an alarm is set for its timeout. Most are complete by then, and the alarm would wake
/// the gateway for nothing.
pub(crate) const RECHECK_DELAY: Millis = SECOND;

/// Extension of a timeout. A frame that the client sent in time may still wait to be
/// read: the gateway may be busy, or its alarm may have woken it before the frame. Short enough
/// that the host waits by a timer, which the runtime runs after it has delivered
/// everything that has arrived.
pub(crate) const TIMEOUT_EXTENSION: Millis = 100;

impl EngineServer {
    /// Returns the time of the next ping of a session that begins, or was pinged, at
    /// `now`.
    pub(super) fn ping_after(&self, now: Millis) -> Option<Millis> {
        match self.config.ping_interval {
            0 => None,
            interval if interval < PINGS_BY_ALARM_FROM => Some(now + interval),
            interval => Some((now / interval + 1) * interval),
        }
    }

    /// Returns `true` if pings are so rare that the gateway can hibernate in between.
    pub fn pings_by_alarm(&self) -> bool {
        let interval = self.config.ping_interval;
        interval == 0 || interval >= PINGS_BY_ALARM_FROM
    }

    /// Returns the time before which no session has anything due.
    pub(crate) fn deadline(&self) -> Option<Millis> {
        self.next_deadline
    }

    fn deadline_of(&self, session: &Session) -> Option<Millis> {
        let pong = session.pinged_at.filter(|_| !self.pings_by_alarm());
        [
            session.next_ping,
            pong.map(|at| at + self.config.ping_timeout),
            session.candidate.map(|candidate| candidate.deadline),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Takes a deadline of this session into account that was set.
    pub(super) fn schedule(&mut self, id: SessionId) {
        let session = self.sessions.get(id);
        if let Some(at) = session.and_then(|session| self.deadline_of(session)) {
            sooner(&mut self.next_deadline, at);
        }
    }

    /// Does the same for a deadline of something that begins at `now`; see
    /// [`RECHECK_DELAY`].
    pub(super) fn schedule_recheck(&mut self, id: SessionId, now: Millis) {
        sooner(&mut self.next_deadline, now + RECHECK_DELAY);
        self.schedule(id);
    }

    /// Pings the sessions that are due and ends those that have timed out.
    pub(crate) fn advance(&mut self, last_seen: LastSeen<'_>, now: Millis) {
        if self.next_deadline.is_none_or(|at| at > now) {
            return;
        }
        for id in self.sessions.ids() {
            self.advance_session(id, last_seen, now);
        }
        let sessions = self.sessions.values();
        self.next_deadline = sessions
            .filter_map(|session| self.deadline_of(session))
            .min();
    }

    fn advance_session(&mut self, id: SessionId, last_seen: LastSeen<'_>, now: Millis) {
        self.check_candidate(id, now);
        if self.has_missed_ping(id, last_seen, now) {
            return self.end_session(id, Packet::Close, Disconnect::Stale);
        }
        self.ping_if_due(id, now);
    }

    fn check_candidate(&mut self, id: SessionId, now: Millis) {
        let session = self.sessions.get_mut(id);
        match session.and_then(|session| session.candidate.as_mut()) {
            Some(candidate) if candidate.deadline > now => {}
            Some(candidate) if !candidate.extended => {
                candidate.extended = true;
                candidate.deadline = now + TIMEOUT_EXTENSION;
            }
            Some(_) => self.drop_candidate(id),
            None => {}
        }
    }

    fn ping_if_due(&mut self, id: SessionId, now: Millis) {
        let by_alarm = self.pings_by_alarm();
        let session = self.sessions.get_mut(id);
        let due = session.filter(|session| session.next_ping.is_some_and(|at| at <= now));
        let Some(session) = due else {
            return;
        };
        if !by_alarm {
            session.pinged_at.get_or_insert(now);
        }
        self.send_packet(id, Packet::Ping);
        let next = self.ping_after(now);
        if let Some(session) = self.sessions.get_mut(id) {
            session.next_ping = next;
        }
    }

    /// Returns `true` if the client of a session has not answered a ping in time.
    fn has_missed_ping(&mut self, id: SessionId, last_seen: LastSeen<'_>, now: Millis) -> bool {
        let by_alarm = self.pings_by_alarm();
        let config = &self.config;
        let (interval, timeout) = (config.ping_interval, config.ping_timeout);
        let Some(session) = self.sessions.get_mut(id) else {
            return false;
        };
        if let Transport::Socket(socket) = session.transport {
            session.last_activity = session.last_activity.max(last_seen(socket).unwrap_or(0));
        }
        if by_alarm {
            // The memory of which pings were answered does not survive hibernation. The
            // runtime was seen to report a pong late, so one ping may be missed.
            let is_due = session.next_ping.is_some_and(|at| at <= now);
            return is_due && session.last_activity + interval + interval.max(timeout) < now;
        }
        let timed_out = |pinged: &Millis| pinged + timeout <= now;
        match session.pinged_at.filter(timed_out) {
            Some(pinged) if session.last_activity < pinged => true,
            Some(_) => {
                session.pinged_at = None;
                false
            }
            None => false,
        }
    }

    /// An alarm woke the gateway from hibernation, at its time or later. Most alarms are
    /// set for pings, so pings are due now, whatever the clock says. An extra ping does
    /// no harm; a missing one ends connections.
    pub fn woken_by_alarm(&mut self, now: Millis) {
        if !self.pings_by_alarm() || self.config.ping_interval == 0 {
            return;
        }
        for session in self.sessions.values_mut() {
            session.next_ping = Some(now);
            self.next_deadline = Some(now);
        }
    }
}
