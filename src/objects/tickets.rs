//! The Durable Objects that keep tickets, by user. A ticket is a row; who redeems
//! it deletes the row, and the answer waits until that is stored, so it is good
//! once, whatever happens in between.

use super::refuse;
use crate::config::Config;
use crate::runtime::sql::{Db, js, text};
use crate::runtime::{self, TICKETS, fresh_id, now};
use crate::runtime::{alarm_clock, settings};
use roomcast_auth::ticket;
use roomcast_proto::access::Identity;
use roomcast_proto::error::Error as ClientError;
use roomcast_proto::limits::KeyedRateLimiter;
use roomcast_proto::time::{MINUTE, Millis};
use serde::{Deserialize, Serialize};
use std::cell::RefCell;
use worker::{
    DurableObject, Env, Error, Request, Response, ResponseBuilder, Result, State, durable_object,
};

const SCHEMA: &[&str] = &["CREATE TABLE IF NOT EXISTS tickets (
    ticket TEXT PRIMARY KEY, until INTEGER NOT NULL, identity TEXT NOT NULL) WITHOUT ROWID"];

/// How long tickets that nobody redeemed may lie around.
const CLEAN_AFTER: Millis = MINUTE;

#[derive(Serialize, Deserialize)]
enum Ask {
    Issue {
        ticket: String,
        until: Millis,
        identity: Identity,
    },
    Redeem {
        ticket: String,
    },
}

async fn ask(env: &Env, shard: usize, ask: &Ask) -> std::result::Result<String, ClientError> {
    let failed = |error: Error| {
        runtime::complain(error);
        ClientError::internal()
    };
    let ask = serde_json::to_string(ask).map_err(|error| failed(error.into()))?;
    let shard = shard.to_string();
    match runtime::ask(env, TICKETS, &shard, &[], ask).await {
        Ok((200, answer)) => Ok(answer),
        Ok((_, error)) => {
            Err(serde_json::from_str(&error).unwrap_or_else(|_| ClientError::internal()))
        }
        Err(error) => Err(failed(error)),
    }
}

/// A new ticket, and until when it is good.
pub async fn issue(
    env: &Env,
    identity: Identity,
) -> std::result::Result<(String, Millis), ClientError> {
    let shard = ticket::shard_of_user(&identity.user);
    let secret = format!("{}{}", fresh_id(), fresh_id());
    let (ticket, until) = (ticket::compose(shard, &secret), now() + ticket::LIFE);
    let issue = Ask::Issue {
        ticket: ticket.clone(),
        until,
        identity,
    };
    ask(env, shard, &issue).await?;
    Ok((ticket, until))
}

/// Whose ticket it was: it is none any more.
pub async fn redeem(env: &Env, ticket: &str) -> std::result::Result<Identity, ClientError> {
    let refused = || ClientError::unauthorized("the ticket is none, was used, or is too old");
    let shard = ticket::shard_of(ticket).ok_or_else(refused)?;
    let redeem = Ask::Redeem {
        ticket: ticket.to_owned(),
    };
    let identity = ask(env, shard, &redeem).await?;
    serde_json::from_str(&identity).map_err(|_| refused())
}

#[durable_object(alarm)]
pub struct Tickets {
    state: State,
    env: Env,
    live: RefCell<Option<Live>>,
}

struct Live {
    db: Db,
    /// Tickets of each user a minute.
    doors: KeyedRateLimiter,
    /// Whether the alarm is set that cleans up.
    armed: bool,
}

impl DurableObject for Tickets {
    fn new(state: State, env: Env) -> Self {
        console_error_panic_hook::set_once();
        Tickets {
            state,
            env,
            live: RefCell::new(None),
        }
    }

    async fn fetch(&self, mut request: Request) -> Result<Response> {
        let ask: Ask = serde_json::from_slice(&request.bytes().await?)?;
        let config = settings::of_object(&self.env)?;
        let (answer, arm) = self.with(|live| {
            let answer = live.answer(ask, &config)?;
            Ok((answer, !std::mem::replace(&mut live.armed, true)))
        })?;
        if arm {
            alarm_clock::set_alarm(&self.state, now() + CLEAN_AFTER).await?;
        }
        match answer {
            Ok(body) => Ok(ResponseBuilder::new().fixed(body)),
            Err(error) => refuse(&error),
        }
    }

    async fn alarm(&self) -> Result<Response> {
        let more = self.with(|live| {
            live.armed = live.clean()?;
            Ok(live.armed)
        })?;
        if more {
            alarm_clock::set_alarm(&self.state, now() + CLEAN_AFTER).await?;
        }
        Response::empty()
    }
}

impl Tickets {
    fn with<T>(&self, what: impl FnOnce(&mut Live) -> Result<T>) -> Result<T> {
        let mut slot = self.live.borrow_mut();
        let live = match &mut *slot {
            Some(live) => live,
            empty => empty.insert(Live {
                db: Db::open(&self.state.storage(), SCHEMA)?,
                doors: KeyedRateLimiter::default(),
                armed: false,
            }),
        };
        what(live)
    }
}

impl Live {
    fn answer(
        &mut self,
        ask: Ask,
        config: &Config,
    ) -> Result<std::result::Result<Vec<u8>, ClientError>> {
        match ask {
            Ask::Issue {
                ticket,
                until,
                identity,
            } => {
                // As many as there may be connects.
                let connects = config.room.limits.connects;
                let taken = self.doors.admit(&identity.user, "tickets", connects, now());
                if let Err(error) = taken {
                    return Ok(Err(error));
                }
                self.db.write(
                    "INSERT INTO tickets (ticket, until, identity) VALUES (?, ?, ?)",
                    &[
                        ticket.into(),
                        js(until),
                        serde_json::to_string(&identity)?.into(),
                    ],
                )?;
                Ok(Ok(Vec::new()))
            }
            Ask::Redeem { ticket } => {
                let rows = self.db.query(
                    "DELETE FROM tickets WHERE ticket = ? AND until > ? RETURNING identity",
                    &[ticket.into(), js(now())],
                )?;
                let identity = rows.first().map(|row| text(row, 0));
                Ok(Ok(identity.unwrap_or_default().into_bytes()))
            }
        }
    }

    /// Forgets what is too old. Whether there is more to forget later.
    fn clean(&mut self) -> Result<bool> {
        self.db
            .write("DELETE FROM tickets WHERE until <= ?", &[js(now())])?;
        Ok(!self
            .db
            .query("SELECT 1 FROM tickets LIMIT 1", &[])?
            .is_empty())
    }
}
