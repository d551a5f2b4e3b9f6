//! The deadlines of the chat: retries, stored positions, expiry of tokens, keepalive
//! timeouts, recovery timeouts.

use super::client::{Client, Framing, Phase, SubscriptionState};
use super::state::Chat;
use crate::engine::RECHECK_DELAY;
use crate::host::LastSeen;
use crate::ids::ClientId;
use crate::socketio::SocketIoServer;
use roomcast_proto::disconnect::Disconnect;
use roomcast_proto::error::Error;
use roomcast_proto::framing;
use roomcast_proto::id::RoomName;
use roomcast_proto::name;
use roomcast_proto::retry::REQUEST_DEADLINE;
use roomcast_proto::time::{Millis, sooner};

/// Time in milliseconds within which a room must answer a join and a leave: the request
/// to the room and the delivery with the answer take up to [`REQUEST_DEADLINE`] each. A room
/// that is restarted can lose a command that it has received.
const ANSWER_TIMEOUT: Millis = 2 * REQUEST_DEADLINE;

impl Chat {
    /// Returns the time at which [`Chat::advance`] must be called next.
    pub(crate) fn deadline(&self) -> Option<Millis> {
        let deadlines = [
            self.next_deadline,
            self.positions.deadline(),
            self.pauses.deadline(),
            self.cleaning.deadline(),
            self.next_answer,
            self.acks.deadline(),
        ];
        deadlines.into_iter().flatten().min()
    }

    /// See [`crate::Gateway::alarm_fired`].
    pub(crate) fn alarm_fired(&mut self, now: Millis) {
        // A gateway that another event wakes does not check the keepalive timeouts, and its
        // deadlines are later than those before the hibernation. The alarm of an earlier
        // deadline stays set.
        self.schedule(now);
    }

    /// Handles all deadlines up to `now`.
    pub(crate) fn advance(
        &mut self,
        server: &mut SocketIoServer,
        last_seen: LastSeen<'_>,
        now: Millis,
    ) {
        self.store_positions(server, now);
        self.clean(server, now);
        self.check_paused(server, last_seen, now);
        self.check_answers(server, now);
        self.check_acknowledgements(server, last_seen, now);
        if self.next_deadline.is_none_or(|at| at > now) {
            return;
        }
        self.next_deadline = None;
        self.run_retries(server, now);
        for key in self.clients.keys() {
            self.check_client(server, key, last_seen, now);
        }
    }

    /// Expects an answer of a room to the `joinRoom` or `leaveRoom` of a client, or to the join
    /// by which the gateway repairs a subscription. Without an answer the command fails, and the
    /// repair is sent again.
    pub(super) fn await_answer(&mut self, key: ClientId, room: &RoomName, now: Millis) {
        if let Some(subscription) = self.clients.subscription_mut(key, room) {
            subscription.answer_by = Some(now + ANSWER_TIMEOUT);
            self.awaiting.insert(key);
            // Most answers arrive before this time, so no alarm is set.
            sooner(&mut self.next_answer, now + RECHECK_DELAY);
        }
    }

    /// Fails the commands that rooms have not answered in time.
    fn check_answers(&mut self, server: &mut SocketIoServer, now: Millis) {
        if self.next_answer.is_none_or(|at| at > now) {
            return;
        }
        self.next_answer = None;
        for key in std::mem::take(&mut self.awaiting) {
            let Some(client) = self.clients.get(key) else {
                continue;
            };
            let subscriptions = client.subscriptions.iter();
            let awaited = subscriptions.filter_map(|one| Some((one.answer_by?, one.room.clone())));
            for (at, room) in awaited.collect::<Vec<_>>() {
                if at <= now {
                    self.answer_missing(server, key, &room);
                } else {
                    self.awaiting.insert(key);
                    sooner(&mut self.next_answer, at);
                }
            }
        }
    }

    fn answer_missing(&mut self, server: &mut SocketIoServer, key: ClientId, room: &RoomName) {
        let Some(subscription) = self.clients.subscription_mut(key, room) else {
            return;
        };
        subscription.answer_by = None;
        match subscription.state {
            // The gateway joins the personal room by itself.
            SubscriptionState::Joining if name::personal_room_owner(room).is_some() => {
                self.remove_subscription(key, room);
                self.join_personal_room(server, key, server.engine.now());
            }
            SubscriptionState::Joining => self.join_failed(server, key, room),
            SubscriptionState::Leaving => {
                let id = subscription.leave_command;
                if !subscription.is_leave_answered {
                    self.send(server, key, &framing::error(id, &Error::internal()));
                }
                self.leave_failed(server, key, room);
            }
            SubscriptionState::Joined if subscription.repairing => self.repair(server, key, room),
            SubscriptionState::Joined => {}
        }
    }

    /// Closes the connection of a client if its token has expired or its keepalive has
    /// timed out, and fails a recovery that takes too long.
    fn check_client(
        &mut self,
        server: &mut SocketIoServer,
        key: ClientId,
        last_seen: LastSeen<'_>,
        now: Millis,
    ) {
        let Some(client) = self.clients.get(key) else {
            return;
        };
        let expires = client.identity.expires;
        if expires <= now {
            return self.close(server, key, Disconnect::Expired);
        }
        let mut due = expires;
        if let Phase::Recovering { deadline, .. } = client.phase {
            if deadline <= now {
                self.fail_recovery(server, key, now);
            }
            due = due.min(deadline);
        }
        // Clients that never ping have not opted in to keepalive, so they do not time
        // out.
        if let Some(Client {
            framing: Framing::Native(socket),
            ..
        }) = self.clients.get(key)
        {
            let last_activity = match last_seen(*socket) {
                Some(pinged) => pinged.max(server.engine.last_frame_at(*socket)),
                // The client can send its first ping at any time.
                None => now,
            };
            let timeout = last_activity + server.engine.config.limits.ghost_timeout;
            if timeout <= now {
                server.engine.saw(*socket, last_activity);
                return self.close(server, key, Disconnect::Stale);
            }
            due = due.min(timeout);
        }
        self.schedule(due);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::EngineServer;
    use crate::output::Output;
    use crate::{Gateway, Stored};
    use roomcast_proto::time::SECOND;
    use std::rc::Rc;

    const NOW: Millis = 1_800_000_000_000;

    const GHOST_TIMEOUT: Millis = 90 * SECOND;

    const CLIENT: &str = r#"{"id":"c","session":null,"sid":"c","pid":null,"identity":{"user":"bob","expires":1800000200000,"service":false,"patterns":[["r",1]],"token":{}},"status":"online","version":1,"tag":9,"slots":[]}"#;

    /// Returns a gateway with one native client that an event wakes at `now`.
    fn woken(now: Millis) -> Gateway {
        let engine = EngineServer::new("n0".into(), Rc::default(), || "id".into());
        let mut gateway = Gateway::new(engine);
        gateway.server.engine.set_now(now);
        let socket = gateway.restore_socket(r#"{"Native":{"id":"c"}}"#, now);
        socket.expect("a socket");
        let stored = Stored {
            clients: vec![CLIENT.to_owned()],
            ..Stored::default()
        };
        gateway.restore(stored, now);
        gateway.settle(now);
        gateway
    }

    /// Handles the deadlines at `now`. Returns the code with which the socket is closed.
    fn closed(gateway: &mut Gateway, pinged: Option<Millis>, now: Millis) -> Option<u16> {
        gateway.server.engine.set_now(now);
        gateway.advance(&|_| pinged, now);
        let mut outputs = gateway.settle(now).into_iter();
        outputs.find_map(|output| match output {
            Output::Close { code, .. } => Some(code),
            _ => None,
        })
    }

    #[test]
    fn a_keepalive_timeout_holds_at_a_gateway_that_wakes_often() {
        let pinged = Some(NOW);
        let alarm = NOW + GHOST_TIMEOUT;
        let mut gateway = woken(alarm - SECOND);
        assert_eq!(closed(&mut gateway, pinged, alarm - 1), None);
        gateway.alarm_fired(alarm);
        assert_eq!(closed(&mut gateway, pinged, alarm), Some(4408));
        // The client has sent a ping since the alarm was set.
        let pinged = Some(NOW + 5 * SECOND);
        let mut gateway = woken(alarm - SECOND);
        gateway.alarm_fired(alarm);
        assert_eq!(closed(&mut gateway, pinged, alarm), None);
        assert_eq!(gateway.deadline(), Some(alarm + 5 * SECOND));
        assert_eq!(closed(&mut gateway, pinged, alarm + 5 * SECOND), Some(4408));
    }

    #[test]
    fn a_keepalive_timeout_begins_with_the_first_ping() {
        let mut gateway = woken(NOW);
        assert_eq!(closed(&mut gateway, None, NOW + GHOST_TIMEOUT), None);
        let next = gateway.deadline();
        assert_eq!(next, Some(NOW + 2 * GHOST_TIMEOUT));
        let pinged = NOW + GHOST_TIMEOUT + SECOND;
        let now = NOW + 2 * GHOST_TIMEOUT;
        assert_eq!(closed(&mut gateway, Some(pinged), now), None);
        let now = pinged + GHOST_TIMEOUT;
        assert_eq!(gateway.deadline(), Some(now));
        assert_eq!(closed(&mut gateway, Some(pinged), now), Some(4408));
    }

    #[test]
    fn a_token_expires_at_a_gateway_that_wakes_often() {
        let expires = NOW + 200 * SECOND;
        let mut gateway = woken(expires - SECOND);
        assert_eq!(gateway.deadline(), Some(expires));
        assert_eq!(closed(&mut gateway, None, expires), Some(4401));
    }
}
