//! The [`Authenticator`], which combines keys, claims and revocation.

use crate::jwk::KeySet;
use crate::keys::Keys;
use crate::revocation::{MAX_LIFE, RevocationCache};
use crate::signer::Signer;
use crate::token::{self, ClaimRules, LEEWAY_SECONDS};
use roomcast_proto::access::{Identity, RoomPatterns};
use roomcast_proto::error::{Error, Result};
use roomcast_proto::time::{Millis, SECOND};
#[cfg(feature = "dev-tokens")]
use roomcast_proto::user_info::UserInfo;

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
    /// `USER_CLAIM`: the name of the claim with the user id. Default: `sub`.
    pub user_claim: String,
    /// `DEFAULT_ROOMS`: the room patterns of a token without `rooms`. Default: none.
    pub default_rooms: RoomPatterns,
    /// `MAX_TOKEN_LIFETIME`: the longest time until `exp` of a token. 0: any.
    pub max_lifetime: Millis,
}

/// Time after which a client may repeat a request that was answered `unavailable`.
const UNAVAILABLE_PAUSE: Millis = 2 * SECOND;

/// [`LEEWAY_SECONDS`] in milliseconds.
const LEEWAY: Millis = LEEWAY_SECONDS as u64 * SECOND;

impl Authenticator {
    /// Creates an authenticator with one HS256 secret, without revocation.
    pub fn of_secret(secret: &str) -> Self {
        Authenticator {
            keys: Keys::new(&[secret.to_owned()], KeySet::default(), None),
            signer: Signer::new([&secret.to_owned()]),
            revoked: RevocationCache::new(false, 0),
            issuer: None,
            audience: None,
            user_claim: "sub".to_owned(),
            default_rooms: RoomPatterns::default(),
            max_lifetime: 0,
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
    /// Returns `unauthorized` if the token is not valid, `internal` if it cannot be verified
    /// because no keys could be fetched yet, and `unavailable` if the list of revocations is
    /// missing or too old.
    pub fn verify(&self, token: &str, now: Millis) -> Result<Identity> {
        let identity = token::verify(&self.keys, &self.rules(), token, now)?;
        let latest = now.saturating_add(self.max_lifetime + LEEWAY);
        if self.max_lifetime > 0 && identity.expires > latest {
            return Err(Error::unauthorized(
                "the token expires too late: see MAX_TOKEN_LIFETIME",
            ));
        }
        self.check_revoked(&identity, now)?;
        Ok(identity)
    }

    /// Checks an identity that was verified earlier. Its token may have expired or been
    /// revoked since then.
    ///
    /// # Errors
    ///
    /// Returns `unauthorized` if the token is no longer valid, and `unavailable` if the list of
    /// revocations is missing or too old.
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
    pub fn issue(
        &self,
        user: &str,
        info: Option<&UserInfo>,
        rooms: Option<&[String]>,
        expires: Millis,
    ) -> Result<String> {
        token::issue(&self.keys, &self.rules(), user, info, rooms, expires)
    }

    /// Returns the end of a revocation for which none is given, in seconds since 1970. No
    /// token that is valid now is accepted after it, if `MAX_TOKEN_LIFETIME` is set.
    pub fn default_until(&self, now: Millis) -> u64 {
        let lifetime = match self.max_lifetime {
            0 => MAX_LIFE,
            // A token may expire that much later than the limit.
            lifetime => lifetime.div_ceil(SECOND) + LEEWAY_SECONDS as u64,
        };
        now / SECOND + lifetime.min(MAX_LIFE)
    }

    fn check_revoked(&self, identity: &Identity, now: Millis) -> Result<()> {
        if self.is_revoked(identity, now) {
            return Err(Error::unauthorized("the token was revoked"));
        }
        match self.revoked.is_usable(now) {
            true => Ok(()),
            false => Err(Error::unavailable(
                "it is not known yet whether the token was revoked, try again",
                UNAVAILABLE_PAUSE,
            )),
        }
    }

    fn rules(&self) -> ClaimRules<'_> {
        ClaimRules {
            issuer: self.issuer.as_deref(),
            audience: self.audience.as_deref(),
            user_claim: &self.user_claim,
            default_rooms: &self.default_rooms,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::revocation::{MAX_AGE, RevocationDelta};
    use roomcast_harness::{SECRET, Token, now as unix_time};
    use roomcast_proto::error::ErrorCode;

    fn now() -> Millis {
        unix_time() as Millis * SECOND
    }

    fn code(result: Result<Identity>) -> Option<ErrorCode> {
        result.err().map(|error| error.code)
    }

    #[test]
    fn a_token_is_unavailable_while_the_list_is_missing_or_too_old() {
        let mut authenticator = Authenticator::of_secret(SECRET);
        authenticator.revoked = RevocationCache::new(true, 0);
        let (token, now) = (Token::user("alice").sign(SECRET), now());
        let verify = |now| authenticator.verify(&token, now);
        assert_eq!(code(verify(now)), Some(ErrorCode::Unavailable));
        let retry_after = verify(now).expect_err("no list").retry_after;
        assert_eq!(retry_after, Some(UNAVAILABLE_PAUSE));
        // The retry after a failed refresh is not due yet, so there is no step.
        assert!(authenticator.revoked.step(true, now).is_some());
        authenticator.revoked.failed(now);
        assert!(authenticator.is_ready(&token, now));
        assert_eq!(code(verify(now)), Some(ErrorCode::Unavailable));
        let refreshed = authenticator
            .revoked
            .add(RevocationDelta::default(), 0, now);
        assert!(refreshed);
        let identity = verify(now + MAX_AGE).expect("accepted");
        let old = now + MAX_AGE + 1;
        assert_eq!(code(verify(old)), Some(ErrorCode::Unavailable));
        let checked = authenticator.recheck(identity, old);
        assert_eq!(code(checked), Some(ErrorCode::Unavailable));
        // An invalid token is refused in any case.
        let invalid = authenticator.verify("x", old);
        assert_eq!(code(invalid), Some(ErrorCode::Unauthorized));
    }

    #[test]
    fn a_token_that_expires_after_the_longest_lifetime_is_refused() {
        let mut authenticator = Authenticator::of_secret(SECRET);
        let (hour, now) = (3_600 * SECOND, now());
        let year = Token::user("alice").ttl(365 * 24 * 3_600).sign(SECRET);
        assert!(authenticator.verify(&year, now).is_ok());
        authenticator.max_lifetime = hour;
        let verified = authenticator.verify(&year, now);
        assert_eq!(code(verified), Some(ErrorCode::Unauthorized));
        let short = Token::user("alice").ttl(3_600).sign(SECRET);
        assert!(authenticator.verify(&short, now).is_ok());
    }

    #[test]
    fn a_revocation_without_until_lasts_as_long_as_any_token() {
        let mut authenticator = Authenticator::of_secret(SECRET);
        let now = 1_000 * SECOND;
        assert_eq!(authenticator.default_until(now), 1_000 + MAX_LIFE);
        authenticator.max_lifetime = 3_600 * SECOND;
        let leeway = LEEWAY_SECONDS as u64;
        assert_eq!(authenticator.default_until(now), 1_000 + 3_600 + leeway);
        authenticator.max_lifetime = Millis::MAX / 2;
        assert_eq!(authenticator.default_until(now), 1_000 + MAX_LIFE);
    }
}
