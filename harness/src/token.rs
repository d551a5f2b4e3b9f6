//! Tokens with any claims, valid and invalid.

use jwt_compact::alg::{Hs256, Hs256Key, Hs512, Hs512Key};
use jwt_compact::{Algorithm, AlgorithmExt, Claims, Header};
use serde_json::{Value, json};
use std::time::{SystemTime, UNIX_EPOCH};

/// The claims of a token, not yet signed. A claim can have any value.
#[derive(Clone, Debug)]
pub struct Token(Value);

impl Token {
    /// Returns a user token that is valid for an hour.
    pub fn user(user: &str) -> Self {
        Token(json!({ "sub": user, "exp": now() + 3600 }))
    }

    /// Returns a service token that is valid for an hour.
    pub fn service(name: &str) -> Self {
        Token::user(name).claim("role", "service")
    }

    /// Sets a claim to any value. `null` removes the claim.
    pub fn claim(mut self, name: &str, value: impl Into<Value>) -> Self {
        match value.into() {
            Value::Null => {
                if let Some(claims) = self.0.as_object_mut() {
                    claims.remove(name);
                }
            }
            value => self.0[name] = value,
        }
        self
    }

    /// Sets `exp` to this many seconds from now. A negative value makes an expired
    /// token.
    pub fn ttl(self, seconds: i64) -> Self {
        self.claim("exp", now() + seconds)
    }

    /// Signs with HS256.
    pub fn sign(&self, secret: &str) -> String {
        self.signed(&Hs256, &Hs256Key::new(secret.as_bytes()))
    }

    /// Signs with HS256, with an optional `kid` in the header.
    pub fn sign_as(&self, secret: &str, kid: Option<&str>) -> String {
        self.signed_by(&Hs256, &Hs256Key::new(secret.as_bytes()), kid)
    }

    /// Signs with HS512, which roomcast does not accept.
    pub fn sign_hs512(&self, secret: &str) -> String {
        self.signed(&Hs512, &Hs512Key::new(secret.as_bytes()))
    }

    /// Returns an unsigned token with the header `{"alg":"none"}`.
    pub fn unsigned(&self) -> String {
        let signed = self.sign("any");
        let claims = signed.split('.').nth(1).expect("a JWT has three parts");
        format!("eyJhbGciOiJub25lIn0.{claims}.")
    }

    fn signed<A: Algorithm>(&self, algorithm: &A, key: &A::SigningKey) -> String {
        self.signed_by(algorithm, key, None)
    }

    /// Signs with any algorithm, with an optional `kid` in the header.
    pub(crate) fn signed_by<A: Algorithm>(
        &self,
        algorithm: &A,
        key: &A::SigningKey,
        kid: Option<&str>,
    ) -> String {
        let mut header = Header::empty();
        header.key_id = kid.map(str::to_owned);
        algorithm
            .token(&header, &Claims::new(&self.0), key)
            .expect("claims are JSON")
    }
}

/// Returns the seconds since 1970, the unit of `exp`, `nbf` and `iat`.
pub fn now() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs() as i64)
}
