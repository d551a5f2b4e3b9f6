//! The limits of sessions without a valid token.
//!
//! The engine verifies no tokens. The layer above reports the state of a session with
//! [`EngineServer::set_authentication`]. Without a valid token, the engine applies lower
//! limits to the size and the duration of requests.

use super::server::EngineServer;
use super::sessions::Authentication;
use crate::ids::SessionId;
use roomcast_proto::access::MAX_TOKEN;

/// Maximum number of bytes that are kept for a session without a valid token, until
/// the token is verified (CONTRACT, Authentication).
pub const UNAUTHENTICATED_BYTES: usize = 4 * 1024;

/// Maximum size in bytes of one message or one polling request of a session without a
/// valid token: a CONNECT with the longest token, and [`UNAUTHENTICATED_BYTES`].
const MAX_CONNECT_BYTES: usize = MAX_TOKEN + UNAUTHENTICATED_BYTES;

impl EngineServer {
    /// Sets the state of the authentication of a session.
    pub(crate) fn set_authentication(&mut self, id: SessionId, state: Authentication) {
        if let Some(session) = self.sessions.get_mut(id) {
            session.authentication = state;
        }
    }

    /// Returns `true` if the client of a session has sent a valid token, with the
    /// request that opened the session or later.
    pub(crate) fn is_authenticated(&self, id: SessionId) -> bool {
        let session = self.sessions.get(id);
        session.is_some_and(|session| session.is_authenticated())
    }

    /// Counts a refused CONNECT of a session against its address.
    pub(crate) fn count_refused_connect(&mut self, id: SessionId) {
        let info = self.connect_info(id);
        if let Some(address) = info.and_then(|info| info.address.clone()) {
            let now = self.now();
            self.admission
                .count_refused_connect(&address, &self.config, now);
        }
    }

    /// Returns the maximum size in bytes of one message or polling request of a
    /// session.
    pub(super) fn payload_limit_of(&self, id: SessionId) -> usize {
        match self.sessions.get(id) {
            Some(session) if !session.is_authenticated() => {
                MAX_CONNECT_BYTES.min(self.config.max_payload)
            }
            _ => self.config.max_payload,
        }
    }

    /// Returns `true` if the layer above holds more than [`UNAUTHENTICATED_BYTES`] of a
    /// session without a valid token. Called before each input. It is not checked for
    /// each message, because the first messages of a payload may be answered before the
    /// others have to wait.
    pub(super) fn exceeds_held_limit(&self, id: SessionId) -> bool {
        self.sessions.get(id).is_some_and(|session| {
            !session.is_authenticated() && session.held_bytes() > UNAUTHENTICATED_BYTES
        })
    }
}
