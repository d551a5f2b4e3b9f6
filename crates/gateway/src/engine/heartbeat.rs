//! Pings, timeouts and the deadline of sessions.
//!
//! With an interval of at least [`PINGS_BY_ALARM_FROM`], all sessions are pinged
//! together by one alarm, and the gateway can hibernate in between. With a shorter
//! interval each session has its own times and the host uses timers.

use super::{EngineServer, Session, Transport};
use crate::app::LastSeen;
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
            session.socketio.deadline(),
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
    pub(crate) fn schedule_recheck(&mut self, id: SessionId, now: Millis) {
        sooner(&mut self.next_deadline, now + RECHECK_DELAY);
        self.schedule(id);
    }

    /// Pings the sessions that are due and ends those that have timed out.
    pub(crate) fn advance(&mut self, last_seen: LastSeen, now: Millis) {
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

    fn advance_session(&mut self, id: SessionId, last_seen: LastSeen, now: Millis) {
        self.check_candidate(id, now);
        let session = self.sessions.get_mut(id);
        if session.is_some_and(|session| session.socketio.is_overdue(now)) {
            return self.end_session(id, Packet::Close, Disconnect::NoHandshake);
        }
        if self.has_missed_ping(id, last_seen, now) {
            return self.end_session(id, Packet::Close, Disconnect::Ghost);
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
    fn has_missed_ping(&mut self, id: SessionId, last_seen: LastSeen, now: Millis) -> bool {
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

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::engine::{ConnectInfo, Protocol};
    use crate::output::{Frame, Output};
    use std::rc::Rc;

    pub(in crate::engine) const NOW: Millis = 1_800_000_000_000;

    pub(in crate::engine) fn engine() -> EngineServer {
        EngineServer::new("0".into(), Rc::default(), || "id".into())
    }

    pub(in crate::engine) fn connect_info() -> ConnectInfo {
        ConnectInfo {
            protocol: Protocol::SocketIo,
            identity: None,
            error: None,
            address: None,
            recovers: false,
        }
    }

    pub(in crate::engine) fn only_session(engine: &EngineServer) -> SessionId {
        let ids = engine.sessions.ids();
        *ids.first().expect("a session")
    }

    /// Connects the only session to a namespace.
    pub(in crate::engine) fn join(engine: &mut EngineServer) {
        let session = only_session(engine);
        engine.receive_message(session, Frame::Text("0".to_owned()), NOW);
        assert!(engine.accept(session, "/", None, "{}".to_owned()));
    }

    /// Takes the outputs and returns the number of pings among them.
    fn pings(engine: &mut EngineServer) -> usize {
        let is_ping = |output: &Output| match output {
            Output::Send {
                frame: Frame::Text(text),
                ..
            } => text == "2",
            _ => false,
        };
        let outputs = engine.take_outputs();
        outputs.iter().filter(|output| is_ping(output)).count()
    }

    /// Opens a session at [`NOW`], in a namespace or not. Returns the record of its
    /// socket and the time at which the gateway is woken next.
    fn hibernated(in_namespace: bool) -> (String, Millis) {
        let mut awake = engine();
        let socket = awake.open_socket(connect_info(), None, NOW);
        socket.expect("a socket");
        if in_namespace {
            join(&mut awake);
        }
        let recheck = awake.deadline().expect("the recheck");
        awake.advance(&|_| None, recheck);
        let due = awake.deadline().expect("a ping");
        let mut outputs = awake.take_outputs().into_iter().rev();
        let record = outputs.find_map(|output| match output {
            Output::Attach { record, .. } => Some(record),
            _ => None,
        });
        (record.expect("the record of the socket"), due)
    }

    /// Hibernates between alarms; `last_seen` returns the time of the last pong that
    /// the runtime answered. Returns when, after [`NOW`], and by which code the socket
    /// is closed.
    fn closed(
        in_namespace: bool,
        last_seen: fn(Millis) -> Option<Millis>,
    ) -> Option<(Millis, u16)> {
        let (record, mut due) = hibernated(in_namespace);
        while due < NOW + 300 * SECOND {
            let mut woken = engine();
            woken.restore_socket(&record, due).expect("the socket");
            woken.woken_by_alarm(due);
            woken.advance(&|_| last_seen(due), due);
            // A deadline within a second keeps the gateway awake.
            while let Some(soon) = woken.deadline().filter(|at| *at < due + SECOND) {
                due = soon;
                woken.advance(&|_| last_seen(due), due);
            }
            let code = woken.take_outputs().iter().find_map(|output| match output {
                Output::Close { code, .. } => Some(*code),
                _ => None,
            });
            if let Some(code) = code {
                return Some((due - NOW, code));
            }
            due = woken.deadline().expect("the next ping");
        }
        None
    }

    #[test]
    fn woken_gateway_pings_once_however_late_its_alarm_is() {
        let (record, due) = hibernated(false);
        for late in [0, 3, 15_000] {
            let mut woken = engine();
            let socket = woken.restore_socket(&record, due + late);
            socket.expect("the socket");
            woken.woken_by_alarm(due + late);
            woken.advance(&|_| None, due + late);
            assert_eq!(pings(&mut woken), 1, "{late} ms late");
            woken.advance(&|_| None, due + late);
            assert_eq!(pings(&mut woken), 0, "once");
            assert!(woken.deadline().is_some_and(|next| next > due + late));
        }
    }

    #[test]
    fn hibernating_gateway_closes_session_without_valid_token() {
        let timeout = 10 * SECOND + TIMEOUT_EXTENSION;
        assert_eq!(closed(false, Some), Some((timeout, 4408)));
    }

    #[test]
    fn hibernating_gateway_closes_session_that_answers_no_pings() {
        assert_eq!(closed(true, |_| None), Some((75 * SECOND, 4408)));
        // The client answers the first two pings, 5 ms after each.
        let twice = |at: Millis| {
            let pong = |n: Millis| Some(NOW + n * 25 * SECOND + 5).filter(|pong| *pong <= at);
            pong(2).or(pong(1))
        };
        assert_eq!(closed(true, twice), Some((125 * SECOND, 4408)));
        assert_eq!(closed(true, Some), None, "a client that answers stays");
    }
}
