//! The memory that clients hold, and the end of the clients that hold the most.

use super::client::{Framing, Phase};
use super::state::Chat;
use crate::ids::SessionId;
use crate::socketio::SocketIoServer;
use roomcast_proto::disconnect::Disconnect;
use roomcast_proto::log_record::LogRecord;

/// A session that holds fewer bytes stays open: a packet that waits for the next poll is no
/// reason to close a session.
const MIN_HELD: usize = 16 * 1024;

impl Chat {
    /// Closes the sessions that hold the most memory, until they have held `bytes` bytes
    /// together. Their clients connect again and receive what they missed. Sessions that hold
    /// less than [`MIN_HELD`] stay open.
    pub(crate) fn shed(&self, server: &mut SocketIoServer, bytes: usize) {
        let mut holders = self.holders(server);
        holders.retain(|(held, _)| *held >= MIN_HELD);
        holders.sort_unstable_by_key(|(held, _)| std::cmp::Reverse(*held));
        let mut freed = 0;
        for (held, session) in holders {
            if freed >= bytes {
                return;
            }
            freed += held;
            server
                .engine
                .log(LogRecord::reject("memory").with("heldBytes", held));
            server.engine.close_session(session, Disconnect::TooSlow);
        }
    }

    /// Returns the sessions that hold memory, with the number of bytes. Native sockets hold
    /// none: their output is passed to the runtime.
    fn holders(&self, server: &SocketIoServer) -> Vec<(usize, SessionId)> {
        let mut holders = server.engine.holders();
        for key in &self.recovering {
            if let Some(client) = self.clients.get(*key)
                && let Phase::Recovering { held, .. } = &client.phase
                && let Framing::SocketIo { session, .. } = &client.framing
            {
                let bytes = held.iter().map(|one| one.text.len()).sum();
                holders.push((bytes, *session));
            }
        }
        holders
    }
}
