//! The preparation of a token check: fetches `JWT_JWKS_URL`, checks signatures of public keys
//! with the platform's WebCrypto, and refreshes the revocations.
//!
//! The results are kept for the isolate, in [`Keys`] and in the revocation cache. Requests do
//! not share a fetch in progress, because the runtime does not let a request wait for the I/O
//! of another one.

use super::Result;
use super::body::read_body;
use super::deadline::Deadline;
use super::log::log_error;
use super::rpc::revocations;
use super::time::now;
use crate::config::Config;
use base64ct::{Base64UrlUnpadded, Encoding};
use js_sys::futures::JsFuture;
use js_sys::{Array, JSON, Object, Promise, Reflect, Uint8Array};
use roomcast_auth::Keys;
use roomcast_auth::jwk::{ALGORITHMS, Algorithm, MAX_JWKS, PublicKey, SkippedKey};
use roomcast_auth::keys::{KeyStep, RETRY_AFTER};
use roomcast_proto::log_record::{Level, LogRecord};
use serde_json::{Value, json};
use std::time::Duration;
use wasm_bindgen::prelude::*;
use worker::{Delay, Env, Error};

/// Interval at which a request checks whether the fetch of another request has ended.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// The options of a fetch from the cache: it keeps the answer for
/// [`CACHE_TIME`](roomcast_auth::keys::CACHE_TIME), whatever the headers say, and keeps no error.
/// <https://developers.cloudflare.com/workers/runtime-apis/request/#the-cf-property-requestinitcfproperties>
const CACHE_OPTIONS: &str = r#"{"cacheTtlByStatus":{"200-299":60,"300-599":-1}}"#;

#[wasm_bindgen]
extern "C" {
    #[wasm_bindgen(catch, js_name = fetch)]
    fn fetch_url(url: &str, options: &Object) -> Result<Promise, JsValue>;

    #[wasm_bindgen(catch, js_namespace = ["crypto", "subtle"], js_name = importKey)]
    fn import_key(
        format: &str,
        key: &JsValue,
        algorithm: &JsValue,
        extractable: bool,
        usages: &Array,
    ) -> Result<Promise, JsValue>;

    #[wasm_bindgen(catch, js_namespace = ["crypto", "subtle"], js_name = verify)]
    fn verify(
        algorithm: &JsValue,
        key: &JsValue,
        signature: &Uint8Array,
        data: &Uint8Array,
    ) -> Result<Promise, JsValue>;
}

/// Prepares the check of `token`. If keys or revocations cannot be fetched, the last ones
/// stay in use, if they are not too old.
pub(crate) async fn prepare(env: &Env, config: &Config, token: &str) {
    revocations::catch_up(env, &config.auth.revoked).await;
    // Last, because the caller verifies the token at once: nothing can remove the token from the
    // verified ones in between.
    check_signature(config, token).await;
}

/// Does the steps that [`Keys::step`] returns.
async fn check_signature(config: &Config, token: &str) {
    let keys = &config.auth.keys;
    let mut is_newest = false;
    while let Some(step) = keys.step(token, !is_newest, now()) {
        match step {
            // The newest set does not have the key either.
            KeyStep::Fetch { .. } if is_newest => return,
            KeyStep::Fetch { cached } => {
                fetch(keys, cached, config.worker.log_level).await;
                is_newest = !cached;
            }
            // The loop ends, because `Keys` treats a fetch that takes too long as failed.
            KeyStep::Wait => Delay::from(POLL_INTERVAL).await,
            KeyStep::Check(candidates) => {
                for key in candidates {
                    match has_signature_of(&key, token).await {
                        Ok(true) => return keys.mark_verified(token, key),
                        Ok(false) => {}
                        Err(error) => log_error(format!("public key not usable: {error}")),
                    }
                }
                return;
            }
        }
    }
}

/// Logs the keys of `JWT_JWKS` that cannot be used. Called once for each isolate.
pub(crate) fn log_skipped_settings(config: &Config) {
    let (level, skipped) = (config.worker.log_level, config.auth.keys.skipped());
    log_skipped(level, "JWT_JWKS", skipped);
}

/// Returns `true` if `token` is signed with `key`.
async fn has_signature_of(key: &PublicKey, token: &str) -> Result<bool> {
    // Used for `importKey` and for `verify`, which ignores the fields that it does not need.
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

/// Fetches `JWT_JWKS_URL`, or takes a cached answer if `cached` is `true`.
async fn fetch(keys: &Keys, cached: bool, log_level: Level) {
    let Some(url) = keys.url() else {
        return;
    };
    let (body, cache_control) = match get(&url, cached).await {
        Ok((body, cache_control)) => (Some(body), cache_control),
        Err(error) => {
            log_error(format!("JWT_JWKS_URL not fetched: {error}"));
            (None, None)
        }
    };
    let (body, cache_control) = (body.as_deref(), cache_control.as_deref());
    let random = getrandom::u32().unwrap_or_default();
    match keys.fetched(body, cache_control, random, now()) {
        Ok(skipped) => log_skipped(log_level, "JWT_JWKS_URL", &skipped),
        Err(error) => log_error(format!(
            "the answer of JWT_JWKS_URL is not a valid key set: {error}"
        )),
    }
}

/// Logs the keys of a set that cannot be used, if there are any. `setting` is the name of the
/// setting of the set.
fn log_skipped(log_level: Level, setting: &str, skipped: &[SkippedKey]) {
    if skipped.is_empty() || log_level > Level::Warn {
        return;
    }
    let keys = skipped.iter();
    let keys: Vec<Value> = keys
        .map(|key| json!({ "kid": key.kid, "reason": key.reason }))
        .collect();
    let record = LogRecord::new(Level::Warn, "keys")
        .with("setting", setting)
        .with("skipped", keys)
        .with("supported", ALGORITHMS);
    worker::console_log!("{}", record.line(now()));
}

/// Returns the key set and its `Cache-Control` header.
async fn get(url: &str, cached: bool) -> Result<(String, Option<String>)> {
    let failed = |error: String| Err(Error::RustError(error));
    let options = Object::new();
    let accept = Object::new();
    Reflect::set(
        &accept,
        &"accept".into(),
        &"application/jwk-set+json, application/json".into(),
    )?;
    Reflect::set(&options, &"headers".into(), &accept)?;
    let (option, value) = match cached {
        true => ("cf", JSON::parse(CACHE_OPTIONS)?),
        false => ("cache", "no-store".into()),
    };
    Reflect::set(&options, &option.into(), &value)?;
    // Applies to the body as well, so it is dropped at the end.
    let deadline = Deadline::after(RETRY_AFTER)?;
    Reflect::set(&options, &"signal".into(), deadline.signal())?;
    let response = JsFuture::from(fetch_url(url, &options)?).await;
    let late = |error: JsValue| deadline.exceeded().unwrap_or_else(|| error.into());
    let response = response.map_err(late)?;
    let response: web_sys::Response = response.unchecked_into();
    if response.status() != 200 {
        let status = response.status();
        return failed(format!("the server answered with status {status}"));
    }
    let cache_control = response.headers().get("cache-control")?;
    let Some(body) = read_body(response.body(), MAX_JWKS, 0).await? else {
        return failed(format!("the key set is longer than {MAX_JWKS} bytes"));
    };
    match String::from_utf8(body) {
        Ok(body) => Ok((body, cache_control)),
        Err(_) => failed("the key set is not UTF-8".into()),
    }
}
