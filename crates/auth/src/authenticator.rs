//! The [`Authenticator`], which combines keys, claims and revocation.

use crate::jwk::KeySet;
use crate::keys::Keys;
use crate::revocation::RevocationCache;
use crate::signer::Signer;
use crate::token::{self, ClaimRules};
use roomcast_proto::access::{Identity, RoomPatterns};
use roomcast_proto::error::{Error, Result};
use roomcast_proto::time::Millis;

/// Verifies tokens. There is one per isolate: the Worker and all its objects share the
/// fetched keys and revocations.
#[derive(Debug)]
pub struct Authenticator {
    /// The keys that tokens are signed with.
    pub keys: Keys,
    /// Signs session ids and tickets.
    pub signer: Signer,
    /// The revoked tokens.
    pub revoked: RevocationCache,
    /// `JWT_ISSUER`: the `iss` that tokens must have. Unset: any.
    pub issuer: Option<String>,
    /// `JWT_AUDIENCE`: a value that the `aud` of tokens must contain. Unset: any.
    pub audience: Option<String>,
    /// `DEFAULT_ROOMS`: the room patterns of a token without `rooms`. Default: none.
    pub default_rooms: RoomPatterns,
}

impl Authenticator {
    /// Creates an authenticator with one HS256 secret, without revocation.
    pub fn of_secret(secret: &str) -> Self {
        Authenticator {
            keys: Keys::new(&[secret.to_owned()], KeySet::default(), None),
            signer: Signer::new([&secret.to_owned()]),
            revoked: RevocationCache::new(false),
            issuer: None,
            audience: None,
            default_rooms: RoomPatterns::default(),
        }
    }

    /// Returns `true` if `token` can be verified now. Otherwise the host must first do
    /// the steps of [`Authenticator::keys`] and [`Authenticator::revoked`].
    pub fn is_ready(&self, token: &str, now: Millis) -> bool {
        self.keys.step(token, false, now).is_none() && self.revoked.step(false, now).is_none()
    }

    /// Verifies a token and returns its identity. The key determines the algorithm. The
    /// `alg` of the token is not trusted.
    ///
    /// # Errors
    ///
    /// Returns `unauthorized` if the token is not valid, and `internal` if it cannot be
    /// verified because no keys could be fetched yet.
    pub fn verify(&self, token: &str, now: Millis) -> Result<Identity> {
        let identity = token::verify(&self.keys, &self.rules(), token, now)?;
        self.check_revoked(&identity, now)?;
        Ok(identity)
    }

    /// Checks an identity that was verified earlier. Its token may have expired or been
    /// revoked since then.
    ///
    /// # Errors
    ///
    /// Returns `unauthorized` if the token is no longer valid.
    pub fn recheck(&self, identity: Identity, now: Millis) -> Result<Identity> {
        if identity.expires <= now {
            return Err(Error::unauthorized("the token has expired"));
        }
        self.check_revoked(&identity, now)?;
        Ok(identity)
    }

    /// Returns `true` if the identity's token was revoked.
    pub fn is_revoked(&self, identity: &Identity, now: Millis) -> bool {
        self.revoked.covers(&identity.user, &identity.token, now)
    }

    /// Signs a token for the demo page. Only in development builds.
    ///
    /// # Errors
    ///
    /// Returns `notFound` if no secret is set.
    #[cfg(feature = "dev-tokens")]
    pub fn issue(&self, user: &str, rooms: Option<&[String]>, expires: Millis) -> Result<String> {
        token::issue(&self.keys, &self.rules(), user, rooms, expires)
    }

    fn check_revoked(&self, identity: &Identity, now: Millis) -> Result<()> {
        match self.is_revoked(identity, now) {
            true => Err(Error::unauthorized("the token was revoked")),
            false => Ok(()),
        }
    }

    fn rules(&self) -> ClaimRules<'_> {
        ClaimRules {
            issuer: self.issuer.as_deref(),
            audience: self.audience.as_deref(),
            default_rooms: &self.default_rooms,
        }
    }
}
