//! What takes time before a token can be judged: the keys of `JWT_JWKS_URL`, and
//! signatures of public keys, which the platform checks (WebCrypto). What comes of
//! it is kept for the whole isolate, in [`Keys`]; what is under way is never
//! shared, for what one request began another cannot await.

use super::{complain, now};
use crate::config::Config;
use base64ct::{Base64UrlUnpadded, Encoding};
use futures_util::StreamExt;
use futures_util::future::{Either, select};
use js_sys::futures::JsFuture;
use js_sys::{Array, JSON, Promise, Uint8Array};
use roomcast_auth::Keys;
use roomcast_auth::jwk::{Algorithm, MAX_JWKS, PublicKey};
use roomcast_auth::keys::{KeyStep, RETRY_AFTER};
use roomcast_proto::error::Error as ClientError;
use std::pin::pin;
use std::time::Duration;
use wasm_bindgen::prelude::*;
use worker::{AbortController, CacheMode, Delay, Env, Error, Request, RequestInit, Result};

/// How often it is looked whether somebody else's fetch has come.
const LOOK: Duration = Duration::from_millis(20);

#[wasm_bindgen]
extern "C" {
    #[wasm_bindgen(catch, js_namespace = ["crypto", "subtle"], js_name = importKey)]
    fn import_key(
        format: &str,
        key: &JsValue,
        algorithm: &JsValue,
        extractable: bool,
        usages: &Array,
    ) -> std::result::Result<Promise, JsValue>;

    #[wasm_bindgen(catch, js_namespace = ["crypto", "subtle"], js_name = verify)]
    fn verify(
        algorithm: &JsValue,
        key: &JsValue,
        signature: &Uint8Array,
        data: &Uint8Array,
    ) -> std::result::Result<Promise, JsValue>;
}

/// Sees to it that `token` can be judged, by what there is where something
/// fails. There is a fault where nothing is.
pub async fn prepare(
    env: &Env,
    config: &Config,
    token: &str,
) -> std::result::Result<(), ClientError> {
    look_at_signature(config, token).await;
    crate::objects::revocations::catch_up(env, &config.auth.revoked).await
}

async fn look_at_signature(config: &Config, token: &str) {
    let keys = &config.auth.keys;
    let mut fetched = false;
    while let Some(task) = keys.step(token, !fetched, now()) {
        match task {
            // A key that is not even in the newest set is not there.
            KeyStep::Fetch if fetched => return,
            KeyStep::Fetch => {
                fetch(keys).await;
                fetched = true;
            }
            // Ends, for a fetch that is not heard of for a while is given up.
            KeyStep::Wait => Delay::from(LOOK).await,
            KeyStep::Check(candidates) => {
                for key in candidates {
                    match check(&key, token).await {
                        Ok(true) => return keys.mark_verified(token, key),
                        Ok(false) => {}
                        Err(error) => complain(format!("a public key is no good: {error}")),
                    }
                }
                return;
            }
        }
    }
}

/// Whether the signature of `token` is that of `key`.
async fn check(key: &PublicKey, token: &str) -> Result<bool> {
    // Both times in the words of the Web Cryptography API; an algorithm for
    // `verify` may have more than it needs.
    let algorithm = JSON::parse(match key.algorithm {
        Algorithm::EdDsa => r#"{"name":"Ed25519"}"#,
        Algorithm::Es256 => r#"{"name":"ECDSA","namedCurve":"P-256","hash":"SHA-256"}"#,
        Algorithm::Rs256 => r#"{"name":"RSASSA-PKCS1-v1_5","hash":"SHA-256"}"#,
    })?;
    let Some((signed, signature)) = token.rsplit_once('.') else {
        return Ok(false);
    };
    let Ok(signature) = Base64UrlUnpadded::decode_vec(signature) else {
        return Ok(false);
    };
    let jwk = JSON::parse(&key.jwk)?;
    let usages = Array::of1(&"verify".into());
    let imported = import_key("jwk", &jwk, &algorithm, false, &usages)?;
    let imported = JsFuture::from(imported).await?;
    let (signature, signed) = (
        Uint8Array::from(signature.as_slice()),
        Uint8Array::from(signed.as_bytes()),
    );
    let good = verify(&algorithm, &imported, &signature, &signed)?;
    Ok(JsFuture::from(good).await?.is_truthy())
}

async fn fetch(keys: &Keys) {
    let Some(url) = keys.url() else {
        return;
    };
    let controller = AbortController::default();
    let signal = controller.signal();
    let got = {
        let getting = pin!(get(&url, &signal));
        let patience = pin!(Delay::from(Duration::from_millis(RETRY_AFTER)));
        match select(getting, patience).await {
            Either::Left((got, _)) => got,
            Either::Right(_) => Err(Error::RustError("no answer in time".into())),
        }
    };
    controller.abort();
    let (body, cache_control) = match got {
        Ok((body, cache_control)) => (Some(body), cache_control),
        Err(error) => {
            complain(format!("JWT_JWKS_URL could not be fetched: {error}"));
            (None, None)
        }
    };
    if let Err(error) = keys.fetched(body.as_deref(), cache_control.as_deref(), now()) {
        complain(format!("what JWT_JWKS_URL gave was not taken: {error}"));
    }
}

/// The set, and what it says of how long it is good.
async fn get(url: &str, signal: &worker::AbortSignal) -> Result<(String, Option<String>)> {
    let mut init = RequestInit::new();
    // Asked for because what is known will not do, so a cache's word is no use.
    init.with_cache(CacheMode::NoStore);
    init.headers
        .set("accept", "application/jwk-set+json, application/json")?;
    let request = Request::new_with_init(url, &init)?;
    let mut response = worker::Fetch::Request(request)
        .send_with_signal(signal)
        .await?;
    if response.status_code() != 200 {
        let status = response.status_code();
        return Err(Error::RustError(format!("it answered {status}")));
    }
    let cache_control = response.headers().get("cache-control")?;
    let mut body = Vec::new();
    let mut chunks = response.stream()?;
    while let Some(chunk) = chunks.next().await {
        body.extend_from_slice(&chunk?);
        if body.len() > MAX_JWKS {
            return Err(Error::RustError("it is too long".into()));
        }
    }
    let body = String::from_utf8(body).map_err(|_| Error::RustError("it is no text".into()))?;
    Ok((body, cache_control))
}
