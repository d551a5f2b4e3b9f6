//! Tokens, good and bad.

use jwt_compact::alg::{Hs256, Hs256Key, Hs512, Hs512Key};
use jwt_compact::{Algorithm, AlgorithmExt, Claims, Header};
use serde_json::{Value, json};
use std::time::{SystemTime, UNIX_EPOCH};

/// A token to be: claims that can be anything.
#[derive(Clone, Debug)]
pub struct Token(Value);

impl Token {
    /// For a user, valid for an hour.
    pub fn user(user: &str) -> Self {
        Token(json!({ "sub": user, "exp": now() + 3600 }))
    }

    /// For a service.
    pub fn service(name: &str) -> Self {
        Token::user(name).claim("role", "service")
    }

    /// Sets a claim, to whatever; `null` removes it.
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

    /// Valid for this many seconds from now; negative: expired.
    pub fn ttl(self, seconds: i64) -> Self {
        self.claim("exp", now() + seconds)
    }

    /// Signed with HS256.
    pub fn sign(&self, secret: &str) -> String {
        self.signed(&Hs256, &Hs256Key::new(secret.as_bytes()))
    }

    /// Signed with HS256, with a `kid` in the header.
    pub fn sign_as(&self, secret: &str, kid: Option<&str>) -> String {
        self.signed_by(&Hs256, &Hs256Key::new(secret.as_bytes()), kid)
    }

    /// Signed with HS512, which no server here takes.
    pub fn sign_hs512(&self, secret: &str) -> String {
        self.signed(&Hs512, &Hs512Key::new(secret.as_bytes()))
    }

    /// Not signed: `{"alg":"none"}`.
    pub fn unsigned(&self) -> String {
        let signed = self.sign("any");
        let claims = signed.split('.').nth(1).expect("a JWT has three parts");
        format!("eyJhbGciOiJub25lIn0.{claims}.")
    }

    fn signed<A: Algorithm>(&self, algorithm: &A, key: &A::SigningKey) -> String {
        self.signed_by(algorithm, key, None)
    }

    /// With a `kid` in the header.
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

/// Seconds since 1970: what `exp`, `nbf` and `iat` count.
pub fn now() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs() as i64)
}
