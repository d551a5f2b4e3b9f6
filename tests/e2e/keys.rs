//! Keys of tokens: secrets, public keys and their rotation.

use super::token;
use roomcast_harness::{Client, KeyPair, KeyServer, SECRET, Server, Token};
use serde_json::{Value, json};
use std::sync::LazyLock;

/// Generated once, because the generation of an RSA key is slow.
static RSA: LazyLock<KeyPair> = LazyLock::new(|| KeyPair::rs256("rsa"));

fn alice() -> Token {
    Token::user("alice")
}

/// Returns the status of an upgrade with this token, 101 if it is accepted.
async fn status(server: &Server, token: &str) -> u16 {
    let path = format!("/rooms/keys/ws?token={token}");
    match Client::open(server, &path, &[]).await {
        Ok(_) => 101,
        Err(refused) => refused.0,
    }
}

fn with_keys(set: &str) -> Server {
    Server::start(&[("JWT_SECRET", ""), ("JWT_JWKS", set)])
}

fn with_url(keys: &KeyServer) -> Server {
    Server::start(&[("JWT_SECRET", ""), ("JWT_JWKS_URL", &keys.url())])
}

#[tokio::test]
async fn eddsa_es256_and_rs256_tokens_are_verified_by_the_key_of_their_kid() {
    let (ed, es) = (KeyPair::ed25519("ed"), KeyPair::es256("es"));
    let server = with_keys(&KeyPair::set(&[&ed, &es, &RSA]));
    for key in [&ed, &es, &*RSA] {
        for _ in 0..2 {
            assert_eq!(
                status(&server, &key.sign(&alice())).await,
                101,
                "{}",
                key.kid
            );
        }
        // A token without `kid` is verified by the only key of its algorithm.
        assert_eq!(status(&server, &key.sign_as(&alice(), None)).await, 101);
        let service = key.sign(&Token::service("backend"));
        let published = json!({ "room": "keys", "event": "x", "data": 1 });
        server.post("/publish", &service, published).await.ok();
    }
    let kind = |kid: &str| match kid {
        "ed" => KeyPair::ed25519("ed"),
        _ => KeyPair::es256("es"),
    };
    for key in [&ed, &es] {
        let good = key.sign(&alice());
        let (signed, signature) = good.rsplit_once('.').expect("three parts");
        let other = key.sign(&Token::user("bob"));
        for (what, bad) in [
            (
                "a different key with this kid",
                kind(&key.kid).sign(&alice()),
            ),
            ("an unknown kid", key.sign_as(&alice(), Some("other"))),
            (
                "the kid of another algorithm",
                key.sign_as(&alice(), Some("rsa")),
            ),
            ("expired", key.sign(&alice().ttl(-100))),
            ("no signature", format!("{signed}.")),
            ("half a signature", format!("{signed}.{}", &signature[..40])),
            (
                "claims of another token",
                format!("{}.{signature}", other.rsplit_once('.').expect("parts").0),
            ),
        ] {
            assert_eq!(status(&server, &bad).await, 401, "{what} ({})", key.kid);
        }
    }
}

#[tokio::test]
async fn the_key_determines_the_algorithm_not_the_token() {
    let ed = KeyPair::ed25519("ed");
    let set = KeyPair::set(&[&ed]);
    let x = ed.jwk()["x"].as_str().expect("x").to_owned();
    let server = with_keys(&set);
    for secret in [set.as_str(), x.as_str(), "", SECRET] {
        assert_eq!(status(&server, &alice().sign(secret)).await, 401, "HS256");
    }
    assert_eq!(status(&server, &alice().unsigned()).await, 401, "none");
    // A symmetric key in a JWK Set is ignored.
    let oct = json!({ "kty": "oct", "kid": "k", "k": "c2VjcmV0", "alg": "HS256" });
    let server = with_keys(&json!({ "keys": [ed.jwk(), oct] }).to_string());
    assert_eq!(status(&server, &alice().sign("secret")).await, 401);
    assert_eq!(status(&server, &ed.sign(&alice())).await, 101);
}

#[tokio::test]
async fn a_token_without_kid_is_refused_if_several_keys_match() {
    let (one, two) = (KeyPair::es256("one"), KeyPair::es256("two"));
    let server = with_keys(&KeyPair::set(&[&one, &two]));
    let path = format!("/rooms/keys/ws?token={}", one.sign_as(&alice(), None));
    let answer = server.request_upgrade(&path, &[]).await;
    answer.problem(401, "unauthorized");
    let detail = answer.json["detail"].as_str().expect("a detail");
    assert!(detail.contains("kid"), "{detail}");
    assert_eq!(status(&server, &one.sign(&alice())).await, 101);
}

#[tokio::test]
async fn a_secret_under_32_bytes_or_an_invalid_key_set_answers_500_with_its_name() {
    let weak = json!({ "keys": [{ "kty": "RSA", "kid": "w", "e": "AQAB", "n": "_".repeat(171) }] });
    let weak = weak.to_string();
    for (name, value) in [
        ("JWT_SECRET", "thirty-one bytes are not enough"),
        ("JWT_SECRET_PREVIOUS", "short"),
        ("JWT_JWKS", "{}"),
        ("JWT_JWKS", &weak),
        ("JWT_JWKS_URL", "http://keys.example/jwks.json"),
    ] {
        let server = Server::start(&[(name, value)]);
        let path = format!("/rooms/keys/ws?token={}", token("alice"));
        let answer = server.request_upgrade(&path, &[]).await;
        answer.problem(500, "misconfigured");
        assert!(answer.text.contains(name), "{}", answer.text);
        assert!(
            !answer.text.contains(value),
            "the response must not contain the value"
        );
    }
}

#[tokio::test]
async fn two_secrets_and_public_keys_are_accepted_together() {
    let previous = "the secret that was in use until yesterday";
    let ed = KeyPair::ed25519("ed");
    let server = Server::start(&[
        ("JWT_SECRET_PREVIOUS", previous),
        ("JWT_JWKS", &KeyPair::set(&[&ed])),
    ]);
    for good in [token("alice"), alice().sign(previous), ed.sign(&alice())] {
        assert_eq!(status(&server, &good).await, 101);
    }
    let other = alice().sign("a secret that the server does not have");
    assert_eq!(status(&server, &other).await, 401);
}

#[tokio::test]
async fn keys_are_fetched_once_and_rotate_without_a_restart() {
    let (old, new) = (KeyPair::ed25519("old"), KeyPair::es256("new"));
    let keys = KeyServer::start(KeyPair::set(&[&old]));
    let server = with_url(&keys);
    for _ in 0..3 {
        assert_eq!(status(&server, &old.sign(&alice())).await, 101);
    }
    assert_eq!(keys.requests(), 1, "the key set is cached for its max-age");
    keys.set_response(200, KeyPair::set(&[&new]));
    assert_eq!(status(&server, &new.sign(&alice())).await, 101);
    assert_eq!(keys.requests(), 2, "an unknown kid fetches the key set");
    assert_eq!(keys.uncached_requests(), 1, "only for the unknown kid");
    assert_eq!(
        status(&server, &old.sign(&alice())).await,
        401,
        "removed key"
    );
    // Unknown kids cause few requests.
    for n in 0..20 {
        let forged = new.sign_as(&alice(), Some(&format!("made-up-{n}")));
        assert_eq!(status(&server, &forged).await, 401);
    }
    assert!(keys.requests() <= 4, "{}", keys.requests());
    // An HS256 token causes no request.
    assert_eq!(status(&server, &token("alice")).await, 401);
}

#[tokio::test]
async fn concurrent_connects_wait_for_one_fetch() {
    let key = KeyPair::ed25519("k");
    let keys = KeyServer::start(KeyPair::set(&[&key]));
    let server = with_url(&keys);
    let token = key.sign(&alice());
    let all = (0..8).map(|_| status(&server, &token));
    let all = futures_util::future::join_all(all).await;
    assert_eq!(all, [101; 8]);
    assert_eq!(keys.requests(), 1);
}

#[tokio::test]
async fn the_last_valid_key_set_is_kept_if_the_url_fails() {
    let key = KeyPair::ed25519("k");
    let keys = KeyServer::start(KeyPair::set(&[&key]));
    let server = with_url(&keys);
    assert_eq!(status(&server, &key.sign(&alice())).await, 101);
    let unknown = |n: u8| key.sign_as(&alice(), Some(&format!("unknown-{n}")));
    for (n, (code, body)) in [(500, "down"), (200, "<html>"), (200, r#"{"keys":[]}"#)]
        .into_iter()
        .enumerate()
    {
        keys.set_response(code, body);
        assert_eq!(status(&server, &unknown(n as u8)).await, 401);
        assert_eq!(keys.requests(), n + 2, "an unknown kid fetches the key set");
        // A new token of a known key is still accepted.
        let fresh = key.sign(&alice().claim("n", n));
        assert_eq!(status(&server, &fresh).await, 101);
    }
    // Without any fetched key set the error is 500, not 401.
    let down = with_url(&keys);
    let path = format!("/rooms/keys/ws?token={}", key.sign(&alice()));
    down.request_upgrade(&path, &[])
        .await
        .problem(500, "internal");
}

#[tokio::test]
async fn a_refresh_accepts_a_token_of_a_new_key() {
    let old = KeyPair::ed25519("old");
    let keys = KeyServer::start(KeyPair::set(&[&old]));
    let server = with_url(&keys);
    let token = old.sign(&alice().ttl(60));
    let gateway = format!("/ws?token={token}");
    let mut sockets = [
        Client::join(&server, "keys", &token).await,
        Client::open(&server, &gateway, &[])
            .await
            .expect("accepted"),
    ];
    for (n, socket) in sockets.iter_mut().enumerate() {
        let new = KeyPair::es256(&format!("new-{n}"));
        keys.set_response(200, KeyPair::set(&[&old, &new]));
        let was = socket.connected["expiresAt"].clone();
        let refreshed = json!({ "token": new.sign(&alice()) });
        // Later commands on the socket do not wait for the key set.
        let refresh = socket.start("refreshToken", refreshed).await;
        let status = json!({ "status": "busy" });
        socket
            .request("setPresence", status)
            .await
            .expect("accepted");
        let answer = socket.answer(refresh).await.expect("accepted");
        assert!(answer["expiresAt"].as_str() > was.as_str(), "{answer}");
        for bad in [
            KeyPair::es256(&new.kid).sign(&alice()),
            new.sign(&alice().ttl(-100)),
        ] {
            let answer = socket
                .request("refreshToken", json!({ "token": bad }))
                .await;
            assert_eq!(
                answer.expect_err("an invalid token")["code"],
                "unauthorized"
            );
        }
        let other = new.sign(&Token::user("bob"));
        socket
            .start("refreshToken", json!({ "token": other }))
            .await;
        assert_eq!(socket.closed().await, 4403);
    }
}

/// Connects to `/chat` over long-polling, with a token in `auth` or in `query`. Returns
/// the packet that answers the CONNECT.
pub(crate) async fn socketio_connect(server: &Server, query: &str, auth: Value) -> String {
    let path = format!("/socket.io/?EIO=4&transport=polling{query}");
    let open = server.call("GET", &path, &[], "").await;
    let open: Value = serde_json::from_str(&open.text[1..]).expect("an open packet");
    let path = format!("{path}&sid={}", open["sid"].as_str().expect("a sid"));
    let packet = format!("40{auth}");
    let posted = server.call("POST", &path, &[], packet).await;
    assert_eq!(posted.text, "ok");
    server.call("GET", &path, &[], "").await.text
}

#[tokio::test]
async fn a_socketio_connect_accepts_a_token_of_a_new_key() {
    let (old, new) = (KeyPair::ed25519("old"), KeyPair::es256("new"));
    let keys = KeyServer::start(KeyPair::set(&[&old]));
    let server = with_url(&keys);
    let auth = |token: String| json!({ "token": token });
    let first = socketio_connect(&server, "", auth(old.sign(&alice()))).await;
    assert!(first.starts_with("40"), "{first}");
    keys.set_response(200, KeyPair::set(&[&new]));
    let second = socketio_connect(&server, "", auth(new.sign(&alice()))).await;
    assert!(second.starts_with("40"), "{second}");
    let third = socketio_connect(&server, "", auth(old.sign(&alice()))).await;
    assert!(third.starts_with("44"), "{third}");
    assert!(third.contains("unauthorized"), "{third}");
}

#[tokio::test]
async fn skipped_keys_and_the_supported_algorithms_are_logged() {
    let es = KeyPair::es256("es");
    let set = json!({ "keys": [
        es.jwk(),
        { "kty": "EC", "crv": "P-384", "alg": "ES384", "use": "sig", "kid": "es384", "x": "AA", "y": "AA" },
        { "kty": "RSA", "alg": "PS256", "kid": "ps256", "n": "AA", "e": "AQAB" },
        { "kty": "RSA", "alg": "RS512", "kid": "rs512", "n": "AA", "e": "AQAB" },
    ]});
    let keys = KeyServer::start(set.to_string());
    for (server, setting) in [
        (with_keys(&set.to_string()), "JWT_JWKS"),
        (with_url(&keys), "JWT_JWKS_URL"),
    ] {
        assert_eq!(status(&server, &es.sign(&alice())).await, 101);
        let record = server
            .wait_for_log("the skipped keys", |record| record["event"] == "keys")
            .await;
        assert_eq!(record["level"], "warn");
        assert_eq!(record["setting"], setting);
        assert_eq!(
            record["skipped"],
            json!([
                { "kid": "es384", "reason": "ES384 is not supported" },
                { "kid": "ps256", "reason": "PS256 is not supported" },
                { "kid": "rs512", "reason": "RS512 is not supported" },
            ])
        );
        let supported = "EdDSA (Ed25519), ES256 and RS256";
        assert_eq!(record["supported"], supported);
        // The error of a token names the reason, too.
        let token = alice().sign_hs512(SECRET);
        let refused = server.get("/rooms/keys/members", &token).await;
        let reason = "has an `alg` that is not supported";
        assert!(refused.text.contains(reason), "{}", refused.text);
    }
}
