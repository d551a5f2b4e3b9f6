//! The memory that sessions hold in the engine.

use super::server::EngineServer;
use super::sessions::Transport;
use crate::ids::SessionId;

impl EngineServer {
    /// Returns the sessions that hold memory, with the number of bytes: the packets that wait
    /// for a poll, and the messages that wait for a token check.
    pub(crate) fn holders(&self) -> Vec<(usize, SessionId)> {
        let ids = self.sessions.ids().into_iter();
        let held = ids.filter_map(|id| {
            let session = self.sessions.get(id)?;
            let waiting = match &session.transport {
                Transport::Polling { bytes, .. } => *bytes,
                Transport::Socket(_) => 0,
            };
            Some((waiting + session.held_bytes(), id))
        });
        held.filter(|(bytes, _)| *bytes > 0).collect()
    }
}
