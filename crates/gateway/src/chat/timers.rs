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

/// Time in milliseconds within which a room must answer `joinRoom` and `leaveRoom`: the request
/// to the room and the delivery with the answer take up to [`REQUEST_DEADLINE`] each. A room
/// that is restarted can lose a command that it has received.
const ANSWER_TIMEOUT: Millis = 2 * REQUEST_DEADLINE;

impl Chat {
    /// Returns the time at which [`Chat::advance`] must be called next.
    pub(crate) fn deadline(&self) -> Option<Millis> {
        let deadlines = [
            self.next_deadline,
            self.positions.deadline(),
            self.cleaning.deadline(),
            self.next_answer,
        ];
        deadlines.into_iter().flatten().min()
    }

    /// See [`crate::Gateway::woken_by_alarm`].
    pub(crate) fn woken_by_alarm(&mut self, now: Millis) {
        // The times of frames before hibernation are lost, so only pings show which
        // clients are alive. A gateway that a client has woken need not check the
        // timeouts yet.
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
        self.check_answers(server, now);
        if self.next_deadline.is_none_or(|at| at > now) {
            return;
        }
        self.next_deadline = None;
        self.run_retries(server, now);
        for key in self.clients.keys() {
            self.check_client(server, key, last_seen, now);
        }
    }

    /// Expects an answer of a room to the `joinRoom` or `leaveRoom` of a client. Without an
    /// answer the command fails.
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
                self.send(server, key, &framing::error(id, &Error::internal()));
                self.leave_failed(server, key, room);
            }
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
            && let Some(pinged) = last_seen(*socket)
        {
            let last_activity = pinged.max(server.engine.last_frame_at(*socket));
            let timeout = last_activity + server.engine.config.limits.ghost_timeout;
            if timeout <= now {
                return self.close(server, key, Disconnect::Stale);
            }
            due = due.min(timeout);
        }
        self.schedule(due);
    }
}
