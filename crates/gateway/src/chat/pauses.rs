//! Paused clients: clients that do not read what is sent to them.
//!
//! A client with too much output that it has not read receives no further events of its
//! rooms, while its positions stay. The answer to the delivery informs the room
//! ([`roomcast_proto::link::Pushed::paused`]). When the client has shown that it reads, the
//! gateway asks its rooms for the log after its positions. Answers to commands are sent in any
//! case, because a client that sends commands is alive.

use super::client::{Client, Framing, HeldText, Phase};
use super::state::Chat;
use crate::host::LastSeen;
use crate::ids::ClientId;
use crate::socketio::SocketIoServer;
use roomcast_proto::disconnect::Disconnect;
use roomcast_proto::id::RoomName;
use roomcast_proto::link::Command as ToRoom;
use roomcast_proto::log_record::LogRecord;
use roomcast_proto::time::{Millis, SECOND, sooner};
use std::collections::HashSet;

/// Interval in which the pings of paused clients are read. The runtime answers the pings of
/// native clients itself, so they cause no event. So short that the host uses a timer: the
/// gateway does not hibernate while a client is paused.
const CHECK_INTERVAL: Millis = SECOND;

/// Maximum size in bytes of the texts that are held back for one client during its recovery.
const MAX_HELD: usize = 64 * 1024;

/// Size in bytes of the texts for all clients that recover, which they share evenly. With more
/// clients the share of a client becomes smaller; those that recover later hold less.
const MAX_HELD_OF_ALL: usize = 4 << 20;

/// The paused clients.
#[derive(Default)]
pub(super) struct Pauses {
    clients: HashSet<ClientId>,
    check_at: Option<Millis>,
}

impl Pauses {
    /// Returns the time at which [`Chat::check_paused`] must be called next.
    pub(super) fn deadline(&self) -> Option<Millis> {
        self.check_at
    }
}

impl Chat {
    /// Returns `true` if a client must receive no events of rooms at present.
    pub(super) fn is_congested(&self, server: &SocketIoServer, client: &Client) -> bool {
        match (&client.phase, &client.framing) {
            (Phase::Recovering { held, .. }, _) => {
                let share = MAX_HELD_OF_ALL / self.recovering.len().max(1);
                let held: usize = held.iter().map(|HeldText { text, .. }| text.len()).sum();
                held > share.min(MAX_HELD)
            }
            (_, Framing::Native(socket)) => server.engine.is_socket_congested(*socket),
            (_, Framing::SocketIo { session, .. }) => server.engine.is_session_congested(*session),
        }
    }

    /// Returns `true` if a text of a room must be dropped, because the client is paused. If
    /// the client has to be paused now, pauses it and adds it to `lagging`.
    pub(super) fn drops_text(
        &mut self,
        server: &SocketIoServer,
        lagging: &mut HashSet<ClientId>,
        key: ClientId,
        room: &RoomName,
    ) -> bool {
        let Some(client) = self.clients.get(key) else {
            return true;
        };
        let is_paused = client.subscription(room).is_some_and(|one| one.is_paused);
        if is_paused || !self.is_congested(server, client) {
            return is_paused;
        }
        let now = server.engine.now();
        self.positions.mark_lagging(room, &client.id);
        if let Some(client) = self.clients.get_mut(key) {
            client.paused_at.get_or_insert(now);
            if let Some(subscription) = client.subscription_mut(room) {
                subscription.is_paused = true;
            }
        }
        self.lacks_presence(key, room);
        lagging.insert(key);
        self.pauses.clients.insert(key);
        sooner(&mut self.pauses.check_at, now + CHECK_INTERVAL);
        true
    }

    /// Resumes the paused clients that can receive events again.
    pub(crate) fn resume_clients(&mut self, server: &mut SocketIoServer) {
        if self.pauses.clients.is_empty() {
            return;
        }
        for key in self.pauses.clients.iter().copied().collect::<Vec<_>>() {
            let is_ready = self.clients.get(key).is_none_or(|client| {
                matches!(client.phase, Phase::Connected) && !self.is_congested(server, client)
            });
            if is_ready {
                self.pauses.clients.remove(&key);
                self.resume_client(server, key);
            }
        }
        if self.pauses.clients.is_empty() {
            self.pauses.check_at = None;
        }
    }

    fn resume_client(&mut self, server: &mut SocketIoServer, key: ClientId) {
        let Some(client) = self.clients.get_mut(key) else {
            return;
        };
        client.paused_at = None;
        let subscriptions = client.subscriptions.iter_mut();
        let paused = subscriptions
            .filter_map(|one| std::mem::take(&mut one.is_paused).then(|| one.room.clone()));
        for room in paused.collect::<Vec<_>>() {
            self.request_log(server, key, &room);
        }
    }

    /// Asks a room for the events that a subscription lacks.
    pub(super) fn request_log(
        &mut self,
        server: &mut SocketIoServer,
        key: ClientId,
        room: &RoomName,
    ) {
        let subscription = self.clients.subscription_mut(key, room);
        if let Some(subscription) = subscription.filter(|one| one.receives_events()) {
            let command = ToRoom::Resume {
                connection: subscription.id.clone(),
                after: subscription.delivered,
            };
            self.forward(server, room, command);
        }
    }

    /// Reads the pings of paused clients. Closes those that have shown no sign of life for
    /// `CATCH_UP_TIMEOUT`; they can resume on a new connection.
    pub(super) fn check_paused(
        &mut self,
        server: &mut SocketIoServer,
        last_seen: LastSeen<'_>,
        now: Millis,
    ) {
        if self.pauses.check_at.is_none_or(|at| at > now) {
            return;
        }
        self.pauses.check_at = Some(now + CHECK_INTERVAL);
        for key in self.pauses.clients.iter().copied().collect::<Vec<_>>() {
            let Some(client) = self.clients.get(key) else {
                continue;
            };
            let socket = match client.framing {
                Framing::Native(socket) => Some(socket),
                Framing::SocketIo { session, .. } => server.engine.socket_of(session),
            };
            if let Some(socket) = socket {
                server.engine.check_slow(socket, last_seen(socket), now);
            }
            let timeout = server.engine.config.limits.catch_up_timeout;
            let is_overdue = client.paused_at.is_some_and(|at| at + timeout <= now);
            if is_overdue && self.is_congested(server, client) {
                let record = client.log_record(LogRecord::reject("slow"));
                server.engine.log(record);
                self.close(server, key, Disconnect::TooSlow);
            }
        }
        self.resume_clients(server);
    }
}
