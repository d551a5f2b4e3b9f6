//! The settings of authentication.

use crate::authenticator::Authenticator;
use crate::jwk::KeySet;
use crate::keys::{Keys, MIN_SECRET};
use crate::revocation::{MAX_AGE, RevocationCache};
use crate::signer::Signer;
use roomcast_proto::access::RoomPatterns;
use roomcast_proto::settings::{Duration, Flag, Kind, List, SettingError, Text, Variables};
use roomcast_proto::time::Millis;

roomcast_proto::settings! {
    /// The settings of authentication. Not `Debug`, because secrets must not reach the log.
    pub struct AuthConfig {
        given {}
        /// The HS256 key that verifies tokens.
        pub secret: Option<String> = None, ["JWT_SECRET"], Secret;
        /// A second HS256 key that is accepted as well, for
        /// [rotation](protocol.md#keys).
        pub previous_secret: Option<String> = None, ["JWT_SECRET_PREVIOUS"], Secret;
        /// Public keys: a JWK Set (RFC 7517) for EdDSA, ES256, RS256.
        pub jwks: Option<KeySet> = None, ["JWT_JWKS"], Jwks;
        /// The URL of a JWK Set, which may be set in addition to `JWT_JWKS`.
        pub jwks_url: Option<String> = None, ["JWT_JWKS_URL"], JwksUrl;
        /// The key that signs session ids and tickets, so that invented ones are refused without
        /// a request to an object. If not set, `JWT_SECRET` signs them. With neither, they have
        /// no signature. See [what strangers cost](security.md#what-strangers-cost).
        pub signing_key: Option<String> = None, ["SIGNING_KEY"], Secret;
        /// The `iss` that tokens must have. If not set, `iss` is not checked.
        pub issuer: Option<String> = None, ["JWT_ISSUER"], Text;
        /// The value that `aud` of tokens must contain. If not set, `aud` is not checked.
        pub audience: Option<String> = None, ["JWT_AUDIENCE"], Text;
        /// The name of the claim that has the user id, for example `email`. A string at the top
        /// level of the token. Tokens of services need it as well.
        pub user_claim: String = "sub".to_owned(), ["USER_CLAIM"], ClaimName;
        /// Room patterns of tokens without `rooms`. They grant all rights but `admin`.
        pub default_rooms: RoomPatterns = RoomPatterns::default(), ["DEFAULT_ROOMS"], ROOMS;
        /// Whether `POST /revoke` works. With `false`, isolates do not fetch revocations.
        pub revocation: bool = true, ["REVOCATION"], Flag;
        /// Time for which the last list of revocations is used if no newer one can be fetched.
        /// After it, requests with tokens are answered 503. With a longer time clients can
        /// connect during a failure of the registry, but tokens that were revoked shortly
        /// before it are accepted as well. Less than 5 s counts as 5 s.
        pub revocation_max_age: Millis = MAX_AGE, ["REVOCATION_MAX_AGE"], Duration { min: 0 };
        /// Longest time until `exp` of a token. Tokens that expire later are refused. A
        /// revocation without `until` lasts for this time. With 0 the time is not limited, and
        /// such a revocation lasts 400 days.
        pub max_token_lifetime: Millis = 0, ["MAX_TOKEN_LIFETIME"], Duration { min: 0 };
    }
}

impl AuthConfig {
    /// Creates the authenticator.
    ///
    /// # Errors
    ///
    /// Fails if there is no key.
    pub fn authenticator(self) -> Result<Authenticator, SettingError> {
        let secrets: Vec<String> = [self.secret, self.previous_secret]
            .into_iter()
            .flatten()
            .collect();
        if secrets.is_empty() && self.jwks.is_none() && self.jwks_url.is_none() {
            return Err(SettingError::Missing {
                name: "JWT_SECRET",
                hint: "run `npx wrangler secret put JWT_SECRET`, or add it to .dev.vars for \
                       `wrangler dev`; or set JWT_JWKS or JWT_JWKS_URL",
            });
        }
        let signer = Signer::new(self.signing_key.iter().chain(&secrets));
        Ok(Authenticator {
            signer,
            keys: Keys::new(&secrets, self.jwks.unwrap_or_default(), self.jwks_url),
            revoked: RevocationCache::new(self.revocation, self.revocation_max_age),
            max_lifetime: self.max_token_lifetime,
            issuer: self.issuer,
            audience: self.audience,
            user_claim: self.user_claim,
            default_rooms: self.default_rooms,
        })
    }
}

const ROOMS: List<RoomPatterns> = List {
    parse: RoomPatterns::from_list,
    #[cfg(not(target_arch = "wasm32"))]
    bounds: "a list",
    #[cfg(not(target_arch = "wasm32"))]
    show: |_| "none".to_owned(),
};

/// An HS256 key of at least [`MIN_SECRET`] bytes.
struct Secret;

impl Kind for Secret {
    type Value = Option<String>;

    fn read(
        &self,
        variables: &Variables<'_>,
        names: &[&'static str],
        default: Self::Value,
    ) -> Result<Self::Value, SettingError> {
        variables.parse(names[0], default, |secret| {
            let is_long = secret.len() >= MIN_SECRET;
            is_long
                .then_some(Some(secret))
                .ok_or_else(|| format!("at least {MIN_SECRET} bytes"))
        })
    }

    #[cfg(not(target_arch = "wasm32"))]
    fn bounds(&self) -> String {
        format!("at least {MIN_SECRET} bytes")
    }

    #[cfg(not(target_arch = "wasm32"))]
    fn show(&self, _: &Self::Value) -> String {
        "none".to_owned()
    }
}

/// The name of a claim.
struct ClaimName;

impl Kind for ClaimName {
    type Value = String;

    fn read(
        &self,
        variables: &Variables<'_>,
        names: &[&'static str],
        default: Self::Value,
    ) -> Result<Self::Value, SettingError> {
        Ok(variables.get(names[0]).unwrap_or(default))
    }

    #[cfg(not(target_arch = "wasm32"))]
    fn bounds(&self) -> String {
        "a text".to_owned()
    }

    #[cfg(not(target_arch = "wasm32"))]
    fn show(&self, value: &Self::Value) -> String {
        format!("`{value}`")
    }
}

/// A set of public keys.
struct Jwks;

impl Kind for Jwks {
    type Value = Option<KeySet>;

    fn read(
        &self,
        variables: &Variables<'_>,
        names: &[&'static str],
        default: Self::Value,
    ) -> Result<Self::Value, SettingError> {
        variables.parse(names[0], default, |json| {
            let set = KeySet::strict(&json);
            set.map(Some)
                .map_err(|error| format!("a set of public keys, but {error}"))
        })
    }

    #[cfg(not(target_arch = "wasm32"))]
    fn bounds(&self) -> String {
        "JSON".to_owned()
    }

    #[cfg(not(target_arch = "wasm32"))]
    fn show(&self, _: &Self::Value) -> String {
        "none".to_owned()
    }
}

/// The URL of a set of public keys.
struct JwksUrl;

impl Kind for JwksUrl {
    type Value = Option<String>;

    fn read(
        &self,
        variables: &Variables<'_>,
        names: &[&'static str],
        default: Self::Value,
    ) -> Result<Self::Value, SettingError> {
        variables.parse(names[0], default, |url| {
            is_safe_url(&url).then_some(Some(url)).ok_or_else(|| {
                "an https:// URL (http:// only for localhost, 127.0.0.1 and [::1])".to_owned()
            })
        })
    }

    #[cfg(not(target_arch = "wasm32"))]
    fn bounds(&self) -> String {
        "`https://…`; `http://…` for `localhost`, `127.0.0.1` and `[::1]` only".to_owned()
    }

    #[cfg(not(target_arch = "wasm32"))]
    fn show(&self, _: &Self::Value) -> String {
        "none".to_owned()
    }
}

/// Returns `true` if a key set from this URL can be trusted: the URL uses TLS, or names the
/// local machine.
fn is_safe_url(url: &str) -> bool {
    let authority = |rest: &str| {
        let end = rest.find(['/', '?', '#', '\\']).unwrap_or(rest.len());
        rest[..end].to_owned()
    };
    if let Some(rest) = url.strip_prefix("https://") {
        let authority = authority(rest);
        return !authority.is_empty() && !authority.contains('@');
    }
    let Some(rest) = url.strip_prefix("http://") else {
        return false;
    };
    let authority = authority(rest);
    let host = match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => host,
        _ => authority.as_str(),
    };
    matches!(host, "localhost" | "127.0.0.1" | "[::1]")
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "a secret of thirty-two bytes, yes";

    fn read(vars: &[(&str, &str)]) -> Result<Authenticator, SettingError> {
        let get = |name: &str| {
            let var = vars.iter().find(|(key, _)| *key == name);
            var.map(|(_, value)| value.to_string())
        };
        AuthConfig::read(&Variables::new(&get))?.authenticator()
    }

    #[test]
    fn a_missing_key_is_an_error_that_names_the_setting() {
        let error = read(&[("JWT_SECRET", " ")]).expect_err("no key");
        assert!(error.to_string().starts_with("JWT_SECRET is not set"));
    }

    #[test]
    fn a_secret_under_32_bytes_is_rejected() {
        let short = &SECRET[..31];
        for name in ["JWT_SECRET", "JWT_SECRET_PREVIOUS", "SIGNING_KEY"] {
            let error = read(&[("JWT_JWKS_URL", "https://keys.example"), (name, short)]);
            let error = error.expect_err(name).to_string();
            assert_eq!(error, format!("{name} must be at least 32 bytes"));
            assert!(
                read(&[
                    ("JWT_JWKS_URL", "https://keys.example"),
                    (name, &SECRET[..32])
                ])
                .is_ok()
            );
        }
    }

    #[test]
    fn key_sets_are_fetched_by_https_or_from_the_local_machine() {
        for good in [
            "https://id.example/.well-known/jwks.json",
            "http://localhost:8080/jwks",
            "http://127.0.0.1",
            "http://[::1]:9/x",
        ] {
            assert!(is_safe_url(good), "{good}");
        }
        for bad in [
            "http://id.example/jwks",
            "http://localhost@id.example/",
            "http://localhost:x@id.example/",
            "http://localhost.id.example/",
            "https://",
            "file:///etc/keys",
            "keys",
        ] {
            let error = read(&[("JWT_JWKS_URL", bad)]).expect_err(bad);
            assert!(error.to_string().starts_with("JWT_JWKS_URL must be"));
        }
    }
}
