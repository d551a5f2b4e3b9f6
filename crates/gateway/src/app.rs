//! The interface of the clients layer.

use crate::engine::EngineServer;
use crate::event::EngineEvent;
use crate::ids::{ClientId, SocketId};
use crate::output::AuthRequest;
use roomcast_proto::access::{Identity, TokenId};
use roomcast_proto::error::Result;
use roomcast_proto::link;
use roomcast_proto::time::Millis;
use std::collections::HashMap;

/// Returns `true` if this token of this user was revoked.
pub type IsRevoked<'a> = &'a dyn Fn(&str, &TokenId) -> bool;

/// Returns the time of the last ping of a socket that the runtime answered by itself,
/// without waking the gateway.
pub type LastSeen<'a> = &'a dyn Fn(SocketId) -> Option<Millis>;

/// The state that survived a hibernation or a panic. Input of [`App::restore`].
#[derive(Debug, Default)]
pub struct Stored {
    /// The records of [`crate::Output::Save`] that are not marked `gone`.
    pub clients: Vec<String>,
    /// The positions of [`crate::Output::TrackPosition`] after a panic, otherwise those
    /// of [`crate::Output::StorePosition`].
    pub positions: HashMap<String, u64>,
    /// The instance panicked: commands and deliveries that were in memory are lost.
    pub panicked: bool,
}

/// An application on an [`EngineServer`]. It receives the events of connections and
/// answers by methods of the [`EngineServer`]. All methods but
/// [`App::handle_event`] have a default that does nothing.
pub trait App {
    /// The application reads the attachments of events. If `false`, their contents are
    /// dropped.
    const KEEPS_ATTACHMENTS: bool = false;

    /// Handles an event of a socket, a session or a namespace.
    fn handle_event(&mut self, engine: &mut EngineServer, event: EngineEvent, now: Millis);

    /// Returns the time at which [`App::advance`] has to be called next.
    fn deadline(&self) -> Option<Millis> {
        None
    }

    /// Does everything that is due at `now`.
    fn advance(&mut self, _engine: &mut EngineServer, _last_seen: LastSeen, _now: Millis) {}

    /// An alarm woke the gateway from hibernation. The deadlines that were in memory
    /// are lost, so all clients are checked by the next [`App::advance`].
    fn woken_by_alarm(&mut self, _now: Millis) {}

    /// Returns `true` if more commands for the room are likely to arrive in this turn
    /// of the event loop, so that the host waits before it calls
    /// [`App::take_commands`].
    fn is_batching(&self, _room: &str) -> bool {
        false
    }

    /// Returns the commands that wait for a room, for one request. Returns `None` if
    /// there are none; then the next one causes another [`crate::Output::Forward`].
    ///
    /// Commands that were taken before count as delivered, unless
    /// [`App::forward_failed`] was called.
    fn take_commands(
        &mut self,
        _engine: &mut EngineServer,
        _room: &str,
    ) -> Option<Vec<link::Command>> {
        None
    }

    /// The request with these commands to a room failed. The room may have received
    /// them.
    fn forward_failed(
        &mut self,
        _engine: &mut EngineServer,
        _room: &str,
        _commands: Vec<link::Command>,
    ) {
    }

    /// Handles a delivery of a room and returns the answer. `texts` has one text per
    /// item.
    fn handle_push(
        &mut self,
        _engine: &mut EngineServer,
        _push: link::Push,
        _texts: &[&str],
        _now: Millis,
    ) -> link::Pushed {
        link::Pushed::default()
    }

    /// The host has verified the credentials of [`crate::Output::Authenticate`].
    fn authenticated(
        &mut self,
        _engine: &mut EngineServer,
        _request: AuthRequest,
        _identity: Result<Identity>,
        _now: Millis,
    ) {
    }

    /// Closes the connections whose token was revoked.
    fn close_revoked(&mut self, _engine: &mut EngineServer, _is_revoked: IsRevoked) {}

    /// The host has looked for the record of [`crate::Output::Find`]; `record` is
    /// `None` if there is none.
    fn found(
        &mut self,
        _engine: &mut EngineServer,
        _client: ClientId,
        _pid: &str,
        _record: Option<String>,
        _now: Millis,
    ) {
    }

    /// The client with this `pid` and user resumes on another connection, here or at
    /// another gateway. Closes its connection if it is still open. Called before the
    /// host takes the record of the client out of the storage.
    fn evict(&mut self, _engine: &mut EngineServer, _pid: &str, _user: &str) {}

    /// Restores the clients after hibernation or a panic. Called once, after
    /// [`EngineServer::restore_socket`] for all sockets.
    fn restore(&mut self, _engine: &mut EngineServer, _stored: Stored, _now: Millis) {}
}
