//! Authentication: an [`Authenticator`] turns tokens into
//! [`Identity`](roomcast_proto::access::Identity) values.
//!
//! Nothing here does I/O. Keys and revocations are fetched by the host, which asks
//! [`Authenticator::is_ready`] first; rooms and gateways never judge tokens. Nothing
//! of a token is ever logged.
//!
//! - [`token`]: JSON Web Tokens; [`keys`] and [`jwk`]: the keys they are signed with
//! - [`revoked`]: token revocation
//! - [`ticket`]: single-use tickets for URLs
//! - [`origin`]: origins of browsers' pages

#![forbid(unsafe_code)]

pub mod jwk;
pub mod keys;
pub mod origin;
pub mod revoked;
pub mod ticket;
pub mod token;

pub use keys::Keys;
pub use revoked::Revoked;

use roomcast_proto::access::{Identity, Patterns};
use roomcast_proto::fault::{Fault, Result};
use roomcast_proto::time::Millis;

/// Judges tokens. One per isolate: what was fetched counts for the Worker and all
/// its objects.
#[derive(Debug)]
pub struct Authenticator {
    pub keys: Keys,
    pub revoked: Revoked,
    /// `JWT_ISSUER`: the `iss` that tokens must have. Unset: any.
    pub issuer: Option<String>,
    /// `JWT_AUDIENCE`: what `aud` of tokens must contain. Unset: any.
    pub audience: Option<String>,
    /// `DEFAULT_ROOMS`: the room patterns of a token without `rooms`. Empty.
    pub default_rooms: Patterns,
}

impl Authenticator {
    /// Judges tokens by one secret and nothing else.
    pub fn of_secret(secret: &str) -> Self {
        Authenticator {
            keys: Keys::new(&[secret.to_owned()], jwk::KeySet::default(), None),
            revoked: Revoked::new(false),
            issuer: None,
            audience: None,
            default_rooms: Patterns::default(),
        }
    }

    /// Returns `true` if [`Authenticator::verify`] can judge `token` by what is
    /// here. If not, the host has to fetch something first.
    pub fn is_ready(&self, token: &str, now: Millis) -> bool {
        self.keys.task(token, false, now).is_none() && self.revoked.task(false, now).is_none()
    }

    /// Returns the identity of a valid token. The algorithm is that of the key,
    /// whatever the token says.
    pub fn verify(&self, token: &str, now: Millis) -> Result<Identity> {
        token::verify(self, token, now)
    }

    /// Checks an identity again that was verified before: its token may have
    /// expired or been revoked since.
    pub fn recheck(&self, identity: Identity, now: Millis) -> Result<Identity> {
        if identity.expires <= now {
            return Err(Fault::unauthorized("the token has expired"));
        }
        if self.is_revoked(&identity, now) {
            return Err(Fault::unauthorized("the token was revoked"));
        }
        Ok(identity)
    }

    /// Returns `true` if the identity's token was revoked.
    pub fn is_revoked(&self, identity: &Identity, now: Millis) -> bool {
        self.revoked.covers(&identity.user, &identity.token, now)
    }
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
