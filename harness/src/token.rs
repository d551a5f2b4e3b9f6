//! Tokens, good and bad.

use jwt_compact::alg::{Hs256, Hs256Key};
use jwt_compact::{AlgorithmExt, Claims, Header};
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
        Hs256
            .token(
                &Header::empty(),
                &Claims::new(&self.0),
                &Hs256Key::new(secret.as_bytes()),
            )
            .expect("claims are JSON")
    }
}

/// Seconds since 1970.
fn now() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs() as i64)
}
