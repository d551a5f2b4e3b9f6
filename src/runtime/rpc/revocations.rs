//! Requests to the revocation registry, and its notices to rooms and gateways.

use super::{CallError, REVOCATIONS, Repeat, ask};
use crate::runtime::Result;
use crate::runtime::ids::fresh_id;
use crate::runtime::log::log_error;
use crate::runtime::time::now;
use roomcast_auth::registration::RETRY_DELAYS;
use roomcast_auth::revocation::{
    RefreshStep, Revocation, RevocationCache, RevocationDelta, RevocationTarget,
};
use roomcast_proto::error::Error as ClientError;
use roomcast_proto::reader;
use roomcast_proto::retry::Failure;
use roomcast_proto::time::Millis;
use serde::{Deserialize, Serialize};
use std::time::Duration;
use worker::{Delay, Env, Error};

/// The name of the registry, which is one object.
pub(super) const NAME: &str = "all";

/// Interval at which a request checks whether another request has refreshed a copy that is not
/// usable.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// A request to the registry.
#[derive(Serialize, Deserialize)]
pub(crate) enum RegistryRequest {
    /// Revoke tokens. The answer is a [`Revocation`].
    Revoke {
        /// The tokens.
        #[serde(rename = "whose")]
        target: RevocationTarget,
        /// The end of the revocation, in seconds since 1970.
        until: u64,
    },
    /// Return the first page of the revocations after a number. The answer is a
    /// [`RevocationDelta`].
    #[serde(rename = "News")]
    Delta {
        /// The number of the newest revocation that the sender has.
        after: u64,
    },
    /// Deliver revocations to an object. The answer is a [`RevocationDelta`].
    Register {
        /// The object.
        #[serde(rename = "place")]
        object: RegisteredObject,
        /// The id of this registration.
        #[serde(rename = "life")]
        id: String,
        /// The end of the registration.
        until: Millis,
        /// The number of the newest revocation that the object has.
        after: u64,
    },
    /// List registered objects, in the order of their JSON. The answer is a list of strings, the
    /// [`RegisteredObject`]s as JSON. It is empty after the last one.
    List {
        /// The object after which the list starts; empty for the first page.
        after: String,
    },
}

/// An object that has sockets. The registry stores it as JSON.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum RegisteredObject {
    /// The room with this name.
    Room(String),
    /// The gateway with this name.
    Gateway(String),
}

/// The answer of an object to a notice of revocations.
#[derive(Serialize, Deserialize)]
pub(crate) struct NoticeAnswer {
    /// `true` if the object still has sockets. Otherwise the registry removes it.
    #[serde(rename = "here")]
    pub has_sockets: bool,
}

/// Revokes tokens.
///
/// # Errors
///
/// Returns `conflict` if the list is full, `rateLimited` if the registry is overloaded, and
/// `internal` if it fails.
pub(crate) async fn revoke(
    env: &Env,
    revoked: &RevocationCache,
    target: RevocationTarget,
    until: u64,
) -> Result<Revocation, ClientError> {
    let failed = |error: serde_json::Error| CallError::from(error).into_client_error();
    let request = RegistryRequest::Revoke { target, until };
    let request = serde_json::to_string(&request).map_err(failed)?;
    // A repetition replaces the revocation by the same one.
    let (status, answer) = ask(env, REVOCATIONS, NAME, &[], request, Repeat::IfTransient)
        .await
        .map_err(CallError::into_client_error)?;
    if status != 200 {
        return Err(reader::from_str(&answer).unwrap_or_else(|_| ClientError::internal()));
    }
    let revocation: Revocation = reader::from_str(&answer).map_err(failed)?;
    revoked.learn(std::slice::from_ref(&revocation));
    Ok(revocation)
}

/// Refreshes the isolate's copy of the list if it is not fresh. If that fails, the last copy
/// stays in use, if it is not too old.
pub(crate) async fn catch_up(env: &Env, revoked: &RevocationCache) {
    while let Some(step) = revoked.step(true, now()) {
        match step {
            RefreshStep::Wait => Delay::from(POLL_INTERVAL).await,
            RefreshStep::Fetch => {
                if let Err(error) = fetch_pages(env, revoked, None).await {
                    log_error(format!("revocations not refreshed: {error}"));
                    revoked.failed(now());
                }
                return;
            }
        }
    }
}

/// Adds pages of the list to the isolate's copy until it is complete. `page` is the first of
/// them, if it was received already.
async fn fetch_pages(
    env: &Env,
    revoked: &RevocationCache,
    mut page: Option<RevocationDelta>,
) -> Result<(), CallError> {
    loop {
        let delta = match page.take() {
            Some(delta) => delta,
            None => {
                let after = revoked.head();
                let request = RegistryRequest::Delta { after };
                send(env, &request, Repeat::IfTransient).await?
            }
        };
        let random = getrandom::u32().unwrap_or_default();
        // Another request may have refreshed the copy meanwhile. The copy keeps the newer state.
        if revoked.add(delta, random, now()) {
            return Ok(());
        }
    }
}

/// Registers an object until a time, and refreshes the isolate's copy of the list. Retries
/// after [`RETRY_DELAYS`], and an overloaded registry only after the longest of them.
///
/// # Errors
///
/// Fails if every attempt has failed.
pub(crate) async fn register(
    env: &Env,
    revoked: &RevocationCache,
    object: RegisteredObject,
    until: Millis,
) -> Result<()> {
    let request = RegistryRequest::Register {
        object,
        id: fresh_id(),
        until,
        after: revoked.head(),
    };
    let mut delays = RETRY_DELAYS.into_iter();
    loop {
        let registered = match send(env, &request, Repeat::Never).await {
            Ok(delta) => fetch_pages(env, revoked, Some(delta)).await,
            Err(error) => Err(error),
        };
        let Err(error) = registered else {
            return Ok(());
        };
        let delay = match error.failure {
            Failure::Overloaded => delays.by_ref().last(),
            Failure::Transient | Failure::Other => delays.next(),
        };
        match delay {
            Some(delay) => Delay::from(Duration::from_millis(delay)).await,
            None => return Err(error.into()),
        }
    }
}

async fn send(
    env: &Env,
    request: &RegistryRequest,
    repeat: Repeat,
) -> Result<RevocationDelta, CallError> {
    let request = serde_json::to_string(request)?;
    match ask(env, REVOCATIONS, NAME, &[], request, repeat).await? {
        (200, answer) => Ok(reader::from_str(&answer)?),
        (status, _) => {
            let error = format!("the revocation registry answered with status {status}");
            Err(Error::RustError(error).into())
        }
    }
}
