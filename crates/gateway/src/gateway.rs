//! The connection of the protocol layers and the application.

use crate::app::{App, LastSeen};
use crate::engine::EngineServer;
use crate::output::Output;
use roomcast_proto::time::Millis;

/// An [`EngineServer`] and the [`App`] on it. The crate documentation has the order of
/// calls.
pub struct Gateway<A> {
    /// The sockets and sessions.
    pub engine: EngineServer,
    /// The application.
    pub app: A,
}

impl<A: App> Gateway<A> {
    /// Returns a gateway without connections.
    pub fn new(mut engine: EngineServer, app: A) -> Self {
        engine.keeps_attachments = A::KEEPS_ATTACHMENTS;
        Gateway { engine, app }
    }

    /// Passes the queued events to the application until none is left. Returns the
    /// outputs since the last call.
    pub fn settle(&mut self, now: Millis) -> Vec<Output> {
        while let Some(event) = self.engine.next_event() {
            self.app.handle_event(&mut self.engine, event, now);
        }
        self.engine.take_outputs()
    }

    /// Returns the time at which [`Gateway::advance`] has to be called next.
    pub fn deadline(&self) -> Option<Millis> {
        [self.engine.deadline(), self.app.deadline()]
            .into_iter()
            .flatten()
            .min()
    }

    /// An alarm woke the gateway from hibernation. [`Gateway::advance`] has to follow.
    pub fn woken_by_alarm(&mut self, now: Millis) {
        self.engine.woken_by_alarm(now);
        self.app.woken_by_alarm(now);
    }

    /// Does everything that is due at `now`: pings, timeouts, retries.
    pub fn advance(&mut self, last_seen: LastSeen, now: Millis) {
        self.engine.advance(last_seen, now);
        self.app.advance(&mut self.engine, last_seen, now);
    }
}
