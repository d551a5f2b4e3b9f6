//! Key pairs for tokens, and an HTTP server for a JWK Set.

use crate::Token;
use jwt_compact::Algorithm;
use jwt_compact::alg::{Ed25519, Es256, ModulusBits, Rsa, SigningKey};
use jwt_compact::jwk::JsonWebKey;
use rand_core::{OsRng, RngCore};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// A key pair with its `kid`.
#[derive(Clone)]
pub struct KeyPair {
    /// The key id.
    pub kid: String,
    secret: Secret,
}

#[derive(Clone)]
enum Secret {
    Ed25519(<Ed25519 as Algorithm>::SigningKey),
    Es256(<Es256 as Algorithm>::SigningKey),
    Rs256(Box<<Rsa as Algorithm>::SigningKey>),
}

impl KeyPair {
    /// Generates an EdDSA key.
    pub fn ed25519(kid: &str) -> Self {
        let (secret, _) = Ed25519::generate(&mut OsRng);
        KeyPair::new(kid, Secret::Ed25519(secret))
    }

    /// Generates an ES256 key.
    pub fn es256(kid: &str) -> Self {
        let mut bytes = [0; 32];
        OsRng.fill_bytes(&mut bytes);
        let secret = SigningKey::<Es256>::from_slice(&bytes).expect("32 bytes make a key");
        KeyPair::new(kid, Secret::Es256(secret))
    }

    /// Generates an RS256 key of 2048 bits.
    pub fn rs256(kid: &str) -> Self {
        let bits = ModulusBits::TwoKibibytes;
        let (secret, _) = Rsa::generate(&mut OsRng, bits).expect("a key");
        KeyPair::new(kid, Secret::Rs256(Box::new(secret.into_inner())))
    }

    fn new(kid: &str, secret: Secret) -> Self {
        KeyPair {
            kid: kid.to_owned(),
            secret,
        }
    }

    /// Returns the public key as a JWK.
    pub fn jwk(&self) -> Value {
        let jwk = match &self.secret {
            Secret::Ed25519(key) => JsonWebKey::from(key).to_verifying_key(),
            Secret::Es256(key) => JsonWebKey::from(key).to_verifying_key(),
            Secret::Rs256(key) => JsonWebKey::from(&**key).to_verifying_key(),
        };
        let mut jwk = serde_json::to_value(&jwk).expect("a JWK is JSON");
        jwk["kid"] = self.kid.as_str().into();
        jwk["use"] = "sig".into();
        jwk
    }

    /// Returns the JWK Set of the public keys.
    pub fn set(keys: &[&KeyPair]) -> String {
        let keys: Vec<Value> = keys.iter().map(|key| key.jwk()).collect();
        json!({ "keys": keys }).to_string()
    }

    /// Signs a token with the `kid` of this key.
    pub fn sign(&self, token: &Token) -> String {
        self.sign_as(token, Some(&self.kid))
    }

    /// Signs a token with the given `kid` in the header. `None` omits the field.
    pub fn sign_as(&self, token: &Token, kid: Option<&str>) -> String {
        match &self.secret {
            Secret::Ed25519(key) => token.signed_by(&Ed25519, key, kid),
            Secret::Es256(key) => token.signed_by(&Es256, key, kid),
            Secret::Rs256(key) => token.signed_by(&Rsa::rs256(), key, kid),
        }
    }
}

/// The response of a [`KeyServer`], and the number of requests that it has received.
#[derive(Debug)]
struct Response {
    status: u16,
    body: String,
    cache_control: String,
    requests: usize,
    uncached: usize,
}

/// An HTTP server that responds with a JWK Set. It runs until the process ends.
#[derive(Clone, Debug)]
pub struct KeyServer {
    address: SocketAddr,
    response: Arc<Mutex<Response>>,
}

impl KeyServer {
    /// Starts a server that responds with this set and `max-age=3600`.
    pub fn start(set: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let server = KeyServer {
            address: listener.local_addr().expect("an address"),
            response: Arc::new(Mutex::new(Response {
                status: 200,
                body: set,
                cache_control: "public, max-age=3600".into(),
                requests: 0,
                uncached: 0,
            })),
        };
        let this = server.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let this = this.clone();
                std::thread::spawn(move || this.answer(stream));
            }
        });
        server
    }

    /// Returns the URL of the JWK Set.
    pub fn url(&self) -> String {
        format!("http://{}/.well-known/jwks.json", self.address)
    }

    /// Replaces the response for all later requests.
    pub fn set_response(&self, status: u16, body: impl Into<String>) {
        let mut response = self.response();
        response.status = status;
        response.body = body.into();
    }

    /// Returns the number of requests that the server has received.
    pub fn requests(&self) -> usize {
        self.response().requests
    }

    /// Returns the number of requests that must not be answered from a cache. workerd adds
    /// `cache-control: no-cache` to them.
    pub fn uncached_requests(&self) -> usize {
        self.response().uncached
    }

    fn response(&self) -> MutexGuard<'_, Response> {
        self.response.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answer(&self, mut stream: TcpStream) {
        // A connection that stays open without a request must not block the thread
        // forever.
        let _ = stream.set_read_timeout(Some(Duration::from_secs(5)));
        let request = BufReader::new((&stream).take(64 * 1024)).lines();
        let is_uncached = request
            .map_while(Result::ok)
            .take_while(|line| !line.is_empty())
            .fold(false, |is_uncached, line| {
                is_uncached | line.eq_ignore_ascii_case("cache-control: no-cache")
            });
        let bytes = {
            let mut response = self.response();
            response.requests += 1;
            response.uncached += usize::from(is_uncached);
            format!(
                "HTTP/1.1 {} Set\r\ncontent-type: application/json\r\ncache-control: {}\r\n\
                 content-length: {}\r\nconnection: close\r\n\r\n{}",
                response.status,
                response.cache_control,
                response.body.len(),
                response.body
            )
        };
        // The client may have closed the connection.
        let _ = stream.write_all(bytes.as_bytes());
    }
}
