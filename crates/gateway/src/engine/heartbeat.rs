//! Heartbeats, and what else is due of sessions. With intervals of seconds all are
//! pinged together, by one alarm, between which the gateway sleeps.

use super::{Session, Transport};
use crate::socketio::SECOND_LOOK;
use crate::{Heard, Hub, SETTLES, SessionId};
use engineioxide_core::Packet;
use roomcast_proto::time::{Millis, SECOND, sooner};
use roomcast_proto::wire::native::Close;

/// Below this interval each session is pinged when its own time has come (a
/// timer is needed for it anyway); from there on all together, by one alarm.
const PINGS_BY_ALARM_FROM: Millis = 5 * SECOND;

impl Hub {
    /// When a session that begins or was pinged now is to be pinged.
    pub(super) fn ping_after(&self, now: Millis) -> Option<Millis> {
        match self.config.ping_interval {
            0 => None,
            interval if interval < PINGS_BY_ALARM_FROM => Some(now + interval),
            interval => Some((now / interval + 1) * interval),
        }
    }

    /// Whether pings are so seldom that the gateway may sleep between them.
    pub fn pings_by_alarm(&self) -> bool {
        let interval = self.config.ping_interval;
        interval == 0 || interval >= PINGS_BY_ALARM_FROM
    }

    /// Nothing is due before this.
    pub(crate) fn deadline(&self) -> Option<Millis> {
        self.due
    }

    /// When something of a session is due.
    fn due_of(&self, session: &Session) -> Option<Millis> {
        let pong = session.pinged_at.filter(|_| !self.pings_by_alarm());
        [
            session.next_ping,
            pong.map(|at| at + self.config.ping_timeout),
            session.candidate.map(|candidate| candidate.until),
            session.io.deadline(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Something of a session is due that was not.
    pub(super) fn expect(&mut self, place: SessionId) {
        let due = self.session(place).and_then(|session| self.due_of(session));
        if let Some(at) = due {
            sooner(&mut self.due, at);
        }
    }

    /// The same, of what has just begun.
    pub(crate) fn begun(&mut self, place: SessionId, now: Millis) {
        sooner(&mut self.due, now + SETTLES);
        self.expect(place);
    }

    /// Pings what is to be pinged, closes what did not answer.
    pub(crate) fn advance(&mut self, heard: Heard, now: Millis) {
        if self.due.is_none_or(|at| at > now) {
            return;
        }
        let by_alarm = self.pings_by_alarm();
        for place in self.sessions.keys().collect::<Vec<_>>() {
            let Some(session) = self.session_mut(place) else {
                continue;
            };
            match &mut session.candidate {
                // The `5` that the client sent in time may still wait to be read:
                // the gateway may be busy, or woken by its alarm ahead of it.
                Some(candidate) if candidate.until <= now && !candidate.late => {
                    candidate.late = true;
                    candidate.until = now + SECOND_LOOK;
                }
                Some(candidate) if candidate.until <= now => self.drop_candidate(place),
                _ => {}
            }
            if self.is_overdue(place, now) {
                self.end(place, Packet::Close, Close::NoHandshake);
                continue;
            }
            if self.is_silent(place, heard, now) {
                self.end(place, Packet::Close, Close::Ghost);
                continue;
            }
            let Some(session) = self.session_mut(place) else {
                continue;
            };
            if session.next_ping.is_some_and(|at| at <= now) {
                if !by_alarm {
                    session.pinged_at.get_or_insert(now);
                }
                self.packet(place, Packet::Ping);
                let next = self.ping_after(now);
                if let Some(session) = self.session_mut(place) {
                    session.next_ping = next;
                }
            }
        }
        let open = self.sessions.values();
        self.due = open.filter_map(|session| self.due_of(session)).min();
    }

    /// Whether a session that was pinged has not answered.
    fn is_silent(&mut self, place: SessionId, heard: Heard, now: Millis) -> bool {
        let by_alarm = self.pings_by_alarm();
        let config = &self.config;
        let (interval, timeout) = (config.ping_interval, config.ping_timeout);
        let Some(session) = self.session_mut(place) else {
            return false;
        };
        if let Transport::Socket(socket) = session.transport {
            session.heard_at = session.heard_at.max(heard(socket).unwrap_or(0));
        }
        if by_alarm {
            // Which pings were answered is forgotten in between. What the runtime
            // heard by itself it has been seen to tell late: one may go by.
            let is_due = session.next_ping.is_some_and(|at| at <= now);
            return is_due && session.heard_at + interval + interval.max(timeout) < now;
        }
        let late = |pinged: &Millis| pinged + timeout <= now;
        match session.pinged_at.filter(late) {
            Some(pinged) if session.heard_at < pinged => true,
            Some(_) => {
                session.pinged_at = None;
                false
            }
            None => false,
        }
    }

    /// The alarm has woken the gateway, at its time or later: it was set for the
    /// pings, mostly, so they are due whatever the clock says by now. One ping
    /// too many does no harm, one too few ends connections.
    pub fn woken_by_alarm(&mut self, now: Millis) {
        if !self.pings_by_alarm() || self.config.ping_interval == 0 {
            return;
        }
        for session in self.sessions.values_mut() {
            session.next_ping = Some(now);
            self.due = Some(now);
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::{Door, Frame, Output, Protocol};
    use std::rc::Rc;

    pub fn hub() -> Hub {
        Hub::new("0".into(), Rc::default(), || "id".into())
    }

    fn pings(hub: &mut Hub) -> usize {
        let is_ping = |output: &Output| match output {
            Output::Send {
                frame: Frame::Text(text),
                ..
            } => text == "2",
            _ => false,
        };
        std::mem::take(&mut hub.out)
            .iter()
            .filter(|output| is_ping(output))
            .count()
    }

    /// Lets the client of the only session into a namespace.
    pub fn join(hub: &mut Hub) {
        let session = hub.sessions.keys().next().expect("a session");
        hub.message(session, Frame::Text("0".to_owned()), NOW);
        assert!(hub.accept(session, "/", None, "{}".to_owned()));
    }

    pub const NOW: Millis = 1_800_000_000_000;

    pub fn door() -> Door {
        Door {
            protocol: Protocol::SocketIo,
            identity: None,
            fault: None,
            address: None,
            recovers: false,
        }
    }

    /// What the socket of a session carries that was opened at [`NOW`], and when
    /// the gateway is to be woken; in a namespace, or in none yet.
    fn carried(introduced: bool) -> (String, Millis) {
        let mut awake = hub();
        awake.open_socket(door(), None, NOW).expect("a socket");
        if introduced {
            join(&mut awake);
        }
        let settled = awake.deadline().expect("to be looked at again");
        awake.advance(&|_| None, settled);
        let due = awake.deadline().expect("a ping");
        let record = awake.out.into_iter().rev().find_map(|output| match output {
            Output::Attach { record, .. } => Some(record),
            _ => None,
        });
        (record.expect("what it carries"), due)
    }

    /// Sleeps but for its alarms, of a session whose pongs the runtime hears as
    /// `heard` says, by the time: when and by which code the socket is closed.
    fn closed(introduced: bool, heard: fn(Millis) -> Option<Millis>) -> Option<(Millis, u16)> {
        let (record, mut due) = carried(introduced);
        while due < NOW + 300 * SECOND {
            let mut woken = hub();
            woken.recall(&record, due).expect("its socket");
            woken.woken_by_alarm(due);
            woken.advance(&|_| heard(due), due);
            // What is due within a second keeps it awake.
            while let Some(soon) = woken.deadline().filter(|at| *at < due + SECOND) {
                due = soon;
                woken.advance(&|_| heard(due), due);
            }
            let code = woken.out.iter().find_map(|output| match output {
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
    fn a_sleeping_gateway_pings_however_late_its_alarm_rings() {
        let (record, due) = carried(false);
        for late in [0, 3, 15_000] {
            let mut woken = hub();
            woken.recall(&record, due + late).expect("its socket");
            woken.woken_by_alarm(due + late);
            woken.advance(&|_| None, due + late);
            assert_eq!(pings(&mut woken), 1, "{late} ms late");
            woken.advance(&|_| None, due + late);
            assert_eq!(pings(&mut woken), 0, "once");
            assert!(woken.deadline().is_some_and(|next| next > due + late));
        }
    }

    #[test]
    fn a_sleeping_gateway_closes_who_does_not_say_who_it_is() {
        let second_look = 10 * SECOND + SECOND_LOOK;
        assert_eq!(closed(false, Some), Some((second_look, 4408)));
    }

    #[test]
    fn a_sleeping_gateway_closes_who_answers_no_pings() {
        assert_eq!(closed(true, |_| None), Some((75 * SECOND, 4408)));
        // It answered the first two, some milliseconds after each.
        let twice = |at: Millis| {
            let pong = |n: Millis| Some(NOW + n * 25 * SECOND + 5).filter(|pong| *pong <= at);
            pong(2).or(pong(1))
        };
        assert_eq!(closed(true, twice), Some((125 * SECOND, 4408)));
        assert_eq!(closed(true, Some), None, "who answers stays");
    }
}
