//! Pings, timeouts and the deadline of sessions.
//!
//! With a ping interval of at least [`PINGS_BY_ALARM_FROM`], one alarm pings all sessions
//! together, and the gateway can hibernate between two alarms. With a shorter interval each
//! session has its own ping times, and the host uses timers.

use super::server::EngineServer;
use super::sessions::{Session, Transport};
use crate::host::LastSeen;
use crate::ids::SessionId;
use engineioxide_core::Packet;
use roomcast_proto::disconnect::Disconnect;
use roomcast_proto::time::{Millis, SECOND, sooner};

/// Shortest ping interval at which sessions are pinged by one alarm.
const PINGS_BY_ALARM_FROM: Millis = 5 * SECOND;

/// Delay after which a new handshake, upgrade or recovery is checked, before an alarm is set
/// for its timeout. Most are complete by then, and the alarm would wake the gateway
/// unnecessarily.
pub(crate) const RECHECK_DELAY: Millis = SECOND;

/// Extension of a timeout. A frame that the client sent in time may not be delivered yet: the
/// gateway may be busy, or its alarm may have woken it before the frame. The extension is so
/// short that the host uses a timer, which the runtime runs after it has delivered all frames
/// that have arrived.
pub(crate) const TIMEOUT_EXTENSION: Millis = 100;

impl EngineServer {
    /// Returns the time of the next ping of a session that was opened or pinged at `now`.
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

    /// Returns a time before which no session has a deadline.
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

    /// Pings a session on a WebSocket in addition to its regular pings, for a sign of life.
    /// Does nothing on long-polling.
    pub(crate) fn ping(&mut self, id: SessionId) {
        if let Some(socket) = self.socket_of(id) {
            self.send_to_socket(socket, Packet::Ping);
        }
    }

    /// Schedules the deadline of this session.
    pub(super) fn schedule(&mut self, id: SessionId) {
        let session = self.sessions.get(id);
        if let Some(at) = session.and_then(|session| self.deadline_of(session)) {
            sooner(&mut self.next_deadline, at);
        }
    }

    /// Schedules a check of this session after [`RECHECK_DELAY`], for an operation that
    /// begins at `now`.
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
        match by_alarm {
            true => session.pinged_at = Some(now),
            false => {
                session.pinged_at.get_or_insert(now);
            }
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
            // The answers to pings are forgotten in hibernation, and the runtime sometimes
            // reports a pong late (observed with workerd). So one missed ping is tolerated.
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

    /// Called when the alarm fires, at its time or later. Makes the pings due, because most
    /// alarms are set for pings. If the gateway has hibernated since the alarm was set, the
    /// time of the pings is lost, even if another event has woken the gateway just before the
    /// alarm. An additional ping is harmless; a missing ping ends connections.
    pub fn alarm_fired(&mut self, now: Millis) {
        let interval = self.config.ping_interval;
        if !self.pings_by_alarm() || interval == 0 {
            return;
        }
        for session in self.sessions.values_mut() {
            // The gateway is busy and has sent the ping by a timer.
            let is_pinged = session.pinged_at.is_some_and(|at| at + interval / 2 > now);
            if !is_pinged {
                session.next_ping = Some(now);
                self.next_deadline = Some(now);
            }
        }
    }
}
