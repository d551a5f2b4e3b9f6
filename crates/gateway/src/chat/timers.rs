//! The deadlines of the chat: retries, stored positions, expiry of tokens, keepalive
//! timeouts, recovery timeouts.

use super::client::{Client, Framing, Phase};
use super::state::Chat;
use crate::host::LastSeen;
use crate::ids::ClientId;
use crate::socketio::SocketIoServer;
use roomcast_proto::disconnect::Disconnect;
use roomcast_proto::time::Millis;

impl Chat {
    /// Returns the time at which [`Chat::advance`] must be called next.
    pub(crate) fn deadline(&self) -> Option<Millis> {
        let deadlines = [
            self.next_deadline,
            self.positions.deadline(),
            self.pauses.deadline(),
            self.cleaning.deadline(),
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
        self.check_paused(server, last_seen, now);
        if self.next_deadline.is_none_or(|at| at > now) {
            return;
        }
        self.next_deadline = None;
        self.run_retries(server, now);
        for key in self.clients.keys() {
            self.check_client(server, key, last_seen, now);
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
