//! A gateway: the protocol layers and the application on them.

use crate::chat::Chat;
use crate::engine::EngineServer;
use crate::host::{IsRevoked, LastSeen, Stored};
use crate::ids::{ClientId, SocketId};
use crate::output::{AuthRequest, Output};
use crate::socketio::{Attachments, ConnectionEvent, SocketIoServer};
use roomcast_proto::access::Identity;
use roomcast_proto::error::Result;
use roomcast_proto::id::{RoomName, UserId};
use roomcast_proto::link::{Command as ToRoom, Push, Pushed};
use roomcast_proto::time::Millis;

/// Time in milliseconds up to which the host waits for a deadline with a timer. An alarm
/// costs a row of storage, and a gateway hibernates only after 10 s without events. So an
/// alarm for a near deadline has no advantage.
const MAX_TIMER: Millis = 1_500;

/// The connections of a gateway and the clients on them. The crate documentation has the
/// order of calls.
pub struct Gateway {
    /// The sockets, sessions and namespaces.
    pub server: SocketIoServer,
    pub(crate) chat: Chat,
    application: Application,
}

/// The receiver of the events of connections.
enum Application {
    Chat,
    #[cfg(feature = "conformance")]
    Echo,
}

impl Gateway {
    /// Returns a gateway without connections.
    pub fn new(engine: EngineServer) -> Self {
        Gateway {
            server: SocketIoServer::new(engine, Attachments::Drop),
            chat: Chat::default(),
            application: Application::Chat,
        }
    }

    /// Returns a gateway without connections whose application is an echo instead of the
    /// chat.
    #[cfg(feature = "conformance")]
    pub fn echo(engine: EngineServer) -> Self {
        Gateway {
            server: SocketIoServer::new(engine, Attachments::Keep),
            chat: Chat::default(),
            application: Application::Echo,
        }
    }

    /// Passes the queued events to the application until none is left. Returns the
    /// outputs since the last call.
    pub fn settle(&mut self, now: Millis) -> Vec<Output> {
        while let Some(event) = self.server.next_event(now) {
            self.handle_event(event, now);
        }
        self.chat.resume_clients(&mut self.server);
        self.server.engine.take_outputs()
    }

    fn handle_event(&mut self, event: ConnectionEvent, now: Millis) {
        match self.application {
            Application::Chat => self.chat.handle_event(&mut self.server, event, now),
            #[cfg(feature = "conformance")]
            Application::Echo => crate::echo::handle_event(&mut self.server, event),
        }
    }

    /// Returns the time at which [`Gateway::advance`] must be called next: for a ping, a
    /// timeout, a token that expires, or a retry.
    pub fn deadline(&self) -> Option<Millis> {
        let deadlines = [self.server.deadline(), self.chat.deadline()];
        deadlines.into_iter().flatten().min()
    }

    /// Returns the deadline if it is so near that the host must use a timer, which keeps
    /// the gateway awake.
    pub fn timer_at(&self, now: Millis) -> Option<Millis> {
        self.deadline().filter(|at| *at <= now + MAX_TIMER)
    }

    /// Returns the deadline if the host must use an alarm, so that the gateway can
    /// hibernate until then.
    pub fn alarm_at(&self, now: Millis) -> Option<Millis> {
        self.deadline().filter(|at| *at > now + MAX_TIMER)
    }

    /// Called when the alarm fires. If the gateway has hibernated since the alarm was set, the
    /// deadline of the alarm is lost. So the next [`Gateway::advance`], which must follow,
    /// checks everything.
    pub fn alarm_fired(&mut self, now: Millis) {
        self.server.engine.alarm_fired(now);
        self.chat.alarm_fired(now);
    }

    /// Handles all deadlines up to `now`.
    pub fn advance(&mut self, last_seen: LastSeen<'_>, now: Millis) {
        self.server.advance(last_seen, now);
        self.chat.advance(&mut self.server, last_seen, now);
    }

    /// Restores a socket that is still open after hibernation; see
    /// [`SocketIoServer::restore_socket`].
    pub fn restore_socket(&mut self, record: &str, now: Millis) -> Option<SocketId> {
        self.server.restore_socket(record, now)
    }

    /// Restores the clients after hibernation or a panic. Called once, after
    /// [`Gateway::restore_socket`] for all sockets.
    pub fn restore(&mut self, stored: Stored, now: Millis) {
        self.chat.restore_clients(&mut self.server, stored, now);
    }

    /// Closes the sessions that hold the most memory, until they have held `bytes` bytes
    /// together. The host calls it when it is short of memory.
    pub fn shed(&mut self, bytes: usize) {
        self.chat.shed(&mut self.server, bytes);
    }

    /// Sets whether the host is short of memory. The gateway then refuses the commands of
    /// clients for rooms, except `leaveRoom`, because they wait until the room has taken them.
    pub fn set_overloaded(&mut self, is_overloaded: bool) {
        self.chat.is_overloaded = is_overloaded;
    }

    /// Returns `true` if more commands for the room are likely to arrive. The host waits
    /// for the next turn of the event loop and asks again, before it calls
    /// [`Gateway::take_commands`]. Returns `false` after a few turns at the latest.
    pub fn awaits_turn(&mut self, room: &RoomName) -> bool {
        self.chat.awaits_turn(room)
    }

    /// Returns the commands for one request to a room: at most 1,000 and about 1 MiB. The host
    /// calls it again after the request. Returns `None` if no command
    /// waits; the next command then causes another [`Output::Forward`].
    ///
    /// Commands that an earlier call returned count as delivered, unless
    /// [`Gateway::forward_failed`] was called.
    pub fn take_commands(&mut self, room: &RoomName) -> Option<Vec<ToRoom>> {
        self.chat.take_commands(&mut self.server, room)
    }

    /// Handles a failed request to a room. The room may have received the commands.
    pub fn forward_failed(&mut self, room: &RoomName, commands: Vec<ToRoom>) {
        self.chat.request_failed(&mut self.server, room, commands);
    }

    /// Handles a delivery of a room and returns the answer. `texts` has one text per
    /// item.
    pub fn handle_push(&mut self, push: Push, texts: &[&str], now: Millis) -> Pushed {
        let active = self.chat.activity(&self.server, &push);
        let pushed = self.chat.deliver(&mut self.server, push, texts, now);
        Pushed { active, ..pushed }
    }

    /// Returns the sockets whose last activity a room asks for with a delivery. The host passes
    /// the times of their last pings to [`EngineServer::saw`] before [`Gateway::handle_push`].
    ///
    /// [`EngineServer::saw`]: crate::EngineServer::saw
    pub fn asked_sockets(&self, push: &Push) -> Vec<SocketId> {
        self.chat.asked_sockets(&self.server, push)
    }

    /// Sends an event for all connections: a line of the native framing without a position.
    /// Clients that do not read lack it.
    pub fn broadcast(&mut self, line: &str) {
        self.chat.broadcast(&mut self.server, line);
    }

    /// Takes the number of records that the host has deleted: for [`Output::Clean`], or when
    /// it restored the gateway.
    pub fn cleaned(&mut self, deleted: usize, now: Millis) {
        self.chat.cleaned(deleted, now);
    }

    /// Handles the result of [`Output::Authenticate`].
    pub fn authenticated(&mut self, request: AuthRequest, identity: Result<Identity>, now: Millis) {
        self.chat
            .token_verified(&mut self.server, request, identity, now);
    }

    /// Closes the connections whose token was revoked.
    pub fn close_revoked(&mut self, is_revoked: IsRevoked<'_>) {
        self.chat.close_revoked(&mut self.server, is_revoked);
    }

    /// Handles the result of [`Output::Find`]. `record` is `None` if no record is saved.
    pub fn found(&mut self, client: ClientId, pid: &str, record: Option<String>, now: Millis) {
        self.chat
            .record_found(&mut self.server, client, pid, record, now);
    }

    /// Closes the connection of the client with this `pid` and user, if it is open,
    /// because the client resumes on another connection, here or at another gateway.
    /// Called before the host removes the record of the client from storage.
    pub fn evict(&mut self, pid: &str, user: &UserId) {
        self.chat.evict_client(&mut self.server, pid, user);
    }
}
