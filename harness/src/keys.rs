//! Public keys: pairs to sign with, and a server that gives out a JWK Set.

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

/// A key pair and the `kid` that it goes by.
#[derive(Clone)]
pub struct KeyPair {
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
    /// For EdDSA.
    pub fn ed25519(kid: &str) -> Self {
        let (secret, _) = Ed25519::generate(&mut OsRng);
        KeyPair::new(kid, Secret::Ed25519(secret))
    }

    /// For ES256.
    pub fn es256(kid: &str) -> Self {
        let mut bytes = [0; 32];
        OsRng.fill_bytes(&mut bytes);
        let secret = SigningKey::<Es256>::from_slice(&bytes).expect("32 bytes make a key");
        KeyPair::new(kid, Secret::Es256(secret))
    }

    /// For RS256, with 2048 bits.
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

    /// The public half as a JWK.
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

    /// A set of the public halves of these.
    pub fn set(keys: &[&KeyPair]) -> String {
        let keys: Vec<Value> = keys.iter().map(|key| key.jwk()).collect();
        json!({ "keys": keys }).to_string()
    }

    pub fn sign(&self, token: &Token) -> String {
        self.sign_as(token, Some(&self.kid))
    }

    /// Signs, with any `kid` in the header or none.
    pub fn sign_as(&self, token: &Token, kid: Option<&str>) -> String {
        match &self.secret {
            Secret::Ed25519(key) => token.signed_by(&Ed25519, key, kid),
            Secret::Es256(key) => token.signed_by(&Es256, key, kid),
            Secret::Rs256(key) => token.signed_by(&Rsa::rs256(), key, kid),
        }
    }
}

/// What a [`KeyServer`] answers, and how often it was asked.
#[derive(Debug)]
struct Shelf {
    status: u16,
    body: String,
    cache_control: String,
    asked: usize,
}

/// A server that gives out a JWK Set. Ends with the process.
#[derive(Clone, Debug)]
pub struct KeyServer {
    address: SocketAddr,
    shelf: Arc<Mutex<Shelf>>,
}

impl KeyServer {
    /// Begins with this set, which is good for an hour.
    pub fn start(set: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let server = KeyServer {
            address: listener.local_addr().expect("an address"),
            shelf: Arc::new(Mutex::new(Shelf {
                status: 200,
                body: set,
                cache_control: "public, max-age=3600".into(),
                asked: 0,
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

    pub fn url(&self) -> String {
        format!("http://{}/.well-known/jwks.json", self.address)
    }

    /// Answers this from now on.
    pub fn set(&self, status: u16, body: impl Into<String>) {
        let mut shelf = self.shelf();
        shelf.status = status;
        shelf.body = body.into();
    }

    /// How often it was asked.
    pub fn asked(&self) -> usize {
        self.shelf().asked
    }

    fn shelf(&self) -> MutexGuard<'_, Shelf> {
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answer(&self, mut stream: TcpStream) {
        // A connection that is kept open and silent is not waited for.
        let _ = stream.set_read_timeout(Some(Duration::from_secs(5)));
        let mut request = BufReader::new((&stream).take(64 * 1024)).lines();
        while request
            .next()
            .is_some_and(|line| line.is_ok_and(|line| !line.is_empty()))
        {}
        let response = {
            let mut shelf = self.shelf();
            shelf.asked += 1;
            format!(
                "HTTP/1.1 {} Set\r\ncontent-type: application/json\r\ncache-control: {}\r\n\
                 content-length: {}\r\nconnection: close\r\n\r\n{}",
                shelf.status,
                shelf.cache_control,
                shelf.body.len(),
                shelf.body
            )
        };
        // Who went away needs no answer.
        let _ = stream.write_all(response.as_bytes());
    }
}
