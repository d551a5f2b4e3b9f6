//! A token becomes an [`Identity`]; an identity answers "may it?".
//!
//! Nothing here knows of sockets or HTTP beyond the header values it is given,
//! and nothing here is ever logged.

pub mod access;
pub mod jwk;
pub mod keys;
pub mod origin;
pub mod revoked;
pub mod ticket;
pub mod token;

pub use access::{Patterns, Rights};
pub use keys::Keys;
pub use revoked::{Revoked, TokenId};
pub use token::{Identity, verify};

use crate::config::Config;
use crate::time::Millis;

/// Whether [`verify`] can judge `token` by what is here. If not the shell is to
/// see to it first.
pub fn is_ready(config: &Config, token: &str, now: Millis) -> bool {
    config.keys.task(token, false, now).is_none() && config.revoked.task(false, now).is_none()
}

/// The WebSocket subprotocol that is selected when a client offers it.
pub const SUBPROTOCOL: &str = "roomcast.v1";

/// Where a request may carry its token.
#[derive(Debug, Default)]
pub struct Credentials<'a> {
    /// The `Authorization` header.
    pub authorization: Option<&'a str>,
    /// The `Sec-WebSocket-Protocol` header.
    pub protocols: Option<&'a str>,
    /// The `token` of the query.
    pub query: Option<&'a str>,
}

impl<'a> Credentials<'a> {
    /// The token, from the first place that has one: `Authorization: Bearer`,
    /// the subprotocol `bearer.<jwt>`, the query.
    pub fn token(&self) -> Option<&'a str> {
        let bearer = self.authorization.and_then(|header| {
            let (scheme, token) = header.trim().split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
        });
        bearer
            .or_else(|| self.offered().find_map(|p| p.strip_prefix("bearer.")))
            .or(self.query)
            .filter(|token| !token.is_empty())
    }

    /// Whether the client offered [`SUBPROTOCOL`], which then must be selected
    /// in the answer: a browser closes otherwise.
    pub fn offers_subprotocol(&self) -> bool {
        self.offered().any(|protocol| protocol == SUBPROTOCOL)
    }

    fn offered(&self) -> impl Iterator<Item = &'a str> {
        self.protocols.unwrap_or_default().split(',').map(str::trim)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_place_with_a_token_wins() {
        let all = Credentials {
            authorization: Some("bearer a"),
            protocols: Some("roomcast.v1, bearer.b"),
            query: Some("c"),
        };
        assert_eq!(all.token(), Some("a"));
        assert!(all.offers_subprotocol());
        let without_header = Credentials {
            authorization: Some("Basic xyz"),
            ..all
        };
        assert_eq!(without_header.token(), Some("b"));
        let query = Credentials {
            query: Some("c"),
            ..Credentials::default()
        };
        assert_eq!(query.token(), Some("c"));
        assert_eq!(Credentials::default().token(), None);
    }
}
