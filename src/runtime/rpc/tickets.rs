//! Requests to the objects that store tickets.

use super::{CallError, Repeat, TICKETS, ask};
use crate::runtime::ids::fresh_id;
use crate::runtime::time::now;
use roomcast_auth::{Signer, ticket};
use roomcast_proto::access::Identity;
use roomcast_proto::error::{Error as ClientError, Result};
use roomcast_proto::reader;
use roomcast_proto::time::Millis;
use serde::{Deserialize, Serialize};
use worker::Env;

/// A request to an object that stores tickets.
#[derive(Serialize, Deserialize)]
pub(crate) enum TicketRequest {
    /// Store a new ticket. The answer is empty.
    Issue {
        /// The ticket.
        ticket: String,
        /// The time at which it expires.
        until: Millis,
        /// The identity to which it is issued.
        identity: Identity,
    },
    /// Delete a ticket. The answer is its identity, or empty if there is no such ticket.
    Redeem {
        /// The ticket.
        ticket: String,
    },
}

/// Issues a ticket. Returns the ticket and the time at which it expires.
///
/// # Errors
///
/// Returns `rateLimited` if the user requests too many tickets or the object is overloaded, and
/// `internal` if the object fails.
pub(crate) async fn issue(
    env: &Env,
    signer: &Signer,
    identity: Identity,
) -> Result<(String, Millis)> {
    let shard = ticket::shard_of_user(&identity.user);
    let secret = format!("{}{}", fresh_id(), fresh_id());
    let ticket = ticket::compose(signer, shard, &secret);
    let until = now() + ticket::LIFE;
    let request = TicketRequest::Issue {
        ticket: ticket.clone(),
        until,
        identity,
    };
    // A repetition stores the same ticket.
    send(env, shard, &request, Repeat::IfTransient).await?;
    Ok((ticket, until))
}

/// Redeems a ticket, which then cannot be used again. Returns the identity to which it was
/// issued. Sends no request for an invented ticket.
///
/// # Errors
///
/// Returns `unauthorized` if the ticket is invalid, used or expired, `rateLimited` if the object
/// is overloaded, and `internal` if it fails.
pub(crate) async fn redeem(env: &Env, signer: &Signer, ticket: &str) -> Result<Identity> {
    let refused = || ClientError::unauthorized("invalid, used or expired ticket");
    let shard = ticket::shard_of(signer, ticket).ok_or_else(refused)?;
    let request = TicketRequest::Redeem {
        ticket: ticket.to_owned(),
    };
    // Not repeated: the first attempt may have used the ticket.
    let identity = send(env, shard, &request, Repeat::Never).await?;
    reader::from_str(&identity).map_err(|_| refused())
}

async fn send(env: &Env, shard: usize, request: &TicketRequest, repeat: Repeat) -> Result<String> {
    let request = serde_json::to_string(request)
        .map_err(|error| CallError::from(error).into_client_error())?;
    match ask(env, TICKETS, &shard.to_string(), &[], request, repeat).await {
        Ok((200, answer)) => Ok(answer),
        Ok((_, error)) => Err(reader::from_str(&error).unwrap_or_else(|_| ClientError::internal())),
        Err(error) => Err(error.into_client_error()),
    }
}
