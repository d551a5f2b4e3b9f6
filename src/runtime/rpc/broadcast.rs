//! Requests for an event for all connections: one to each room and gateway that is registered
//! with the revocation registry.

use super::revocations::{RegisteredObject, RegistryRequest};
use super::{CallError, GATEWAYS, REVOCATIONS, ROOMS, Repeat, ask};
use crate::runtime::headers;
use crate::runtime::log::log_error;
use futures_util::{StreamExt, stream};
use roomcast_proto::error::Error as ClientError;
use roomcast_proto::reader;
use roomcast_proto::retry::MAX_REQUESTS;
use worker::{Env, Error};

/// The numbers of objects.
#[derive(Debug, Default)]
pub(crate) struct Sent {
    pub rooms: usize,
    pub gateways: usize,
    /// Objects that did not answer.
    pub failed: usize,
}

/// Sends a line to all open connections: the registered objects are listed page by page, and at
/// most [`MAX_REQUESTS`] of them are asked at a time. An object that fails is not asked again.
///
/// # Errors
///
/// Fails if the registry does not answer. Some objects may have sent the line.
pub(crate) async fn broadcast(env: &Env, line: String) -> Result<Sent, ClientError> {
    let mut sent = Sent::default();
    let mut after = String::new();
    loop {
        let page = page(env, after)
            .await
            .map_err(CallError::into_client_error)?;
        let Some(last) = page.last() else {
            return Ok(sent);
        };
        after = last.clone();
        let mut requests = stream::iter(page)
            .map(|object| send(env, object, line.clone()))
            .buffer_unordered(MAX_REQUESTS);
        while let Some(result) = requests.next().await {
            match result {
                Ok(RegisteredObject::Room(_)) => sent.rooms += 1,
                Ok(RegisteredObject::Gateway(_)) => sent.gateways += 1,
                Err(error) => {
                    log_error(format!("broadcast not delivered: {error}"));
                    sent.failed += 1;
                }
            }
        }
    }
}

/// Returns the next registered objects after `after`, as JSON.
async fn page(env: &Env, after: String) -> Result<Vec<String>, CallError> {
    let request = serde_json::to_string(&RegistryRequest::List { after })?;
    let name = super::revocations::NAME;
    match ask(env, REVOCATIONS, name, &[], request, Repeat::IfTransient).await? {
        (200, answer) => Ok(reader::from_str(&answer)?),
        (status, _) => {
            let error = format!("the revocation registry answered with status {status}");
            Err(Error::RustError(error).into())
        }
    }
}

async fn send(env: &Env, object: String, line: String) -> Result<RegisteredObject, CallError> {
    let object: RegisteredObject = reader::from_str(&object)?;
    let (binding, name, header) = match &object {
        RegisteredObject::Room(name) => (ROOMS, name.as_str(), headers::ROOM),
        RegisteredObject::Gateway(name) => (GATEWAYS, name.as_str(), headers::GATEWAY),
    };
    let headers = [(header, name), (headers::BROADCAST, "1")];
    match ask(env, binding, name, &headers, line, Repeat::Never).await? {
        (200, _) => Ok(object),
        (status, _) => {
            let error = format!("{name} answered with status {status}");
            Err(Error::RustError(error).into())
        }
    }
}
