//! The Durable Objects that store tickets. All tickets of a user are in one of them.
//!
//! A ticket is a row. Redeeming it deletes the row, and the runtime sends the answer only after
//! the deletion is stored, so a ticket can be used once. An alarm deletes expired tickets.

use crate::config::Config;
use crate::runtime::Result;
use crate::runtime::alarm_clock::set_alarm;
use crate::runtime::host::{Active, Host, promise, promise_response};
use crate::runtime::rpc::tickets::TicketRequest;
use crate::runtime::rpc::{RequestError, respond};
use crate::runtime::settings;
use crate::runtime::sql::{Db, js, text};
use crate::runtime::time::now;
use js_sys::Promise;
use roomcast_proto::limits::KeyedRateLimiter;
use roomcast_proto::reader;
use roomcast_proto::time::{MINUTE, Millis};
use std::rc::Rc;
use wasm_bindgen::prelude::*;
use worker::worker_sys::DurableObjectState;
use worker::{Env, Error, Request, Response, State};

const SCHEMA: &[&str] = &["CREATE TABLE IF NOT EXISTS tickets (
    ticket TEXT PRIMARY KEY, until INTEGER NOT NULL, identity TEXT NOT NULL) WITHOUT ROWID"];

/// Interval at which expired tickets are deleted.
const CLEAN_INTERVAL: Millis = MINUTE;

/// The class of the object. The runtime calls its methods.
#[wasm_bindgen]
pub struct Tickets {
    host: Rc<Host<ActiveTickets>>,
}

#[wasm_bindgen]
impl Tickets {
    /// Constructs the object.
    #[wasm_bindgen(constructor)]
    pub fn new(state: DurableObjectState, env: Env) -> Self {
        Tickets {
            host: Rc::new(Host::new(state, env)),
        }
    }

    /// Handles a [`TicketRequest`].
    pub fn fetch(&self, request: web_sys::Request) -> Promise {
        promise_response(handle(Rc::clone(&self.host), request.into()))
    }

    /// Deletes expired tickets.
    pub fn alarm(&self) -> Promise {
        promise(clean(Rc::clone(&self.host)))
    }
}

async fn handle(host: Rc<Host<ActiveTickets>>, mut request: Request) -> Result<Response> {
    let request: TicketRequest = reader::from_str(&request.text().await?)?;
    let config = settings::of_object(&host.env)?;
    let mut set_clean_alarm = false;
    let answer = host.try_with_active(|active| {
        let answer = active.handle(request, &config);
        set_clean_alarm = !std::mem::replace(&mut active.alarm_is_set, true);
        answer
    });
    if set_clean_alarm {
        set_alarm(&host.state, now() + CLEAN_INTERVAL).await?;
    }
    respond(answer)
}

async fn clean(host: Rc<Host<ActiveTickets>>) -> Result<()> {
    let more = host.with_active(None, |active, _| {
        active.alarm_is_set = active.delete_expired()?;
        Ok::<_, Error>(active.alarm_is_set)
    })??;
    if more {
        set_alarm(&host.state, now() + CLEAN_INTERVAL).await?;
    }
    Ok(())
}

/// The memory of the object.
struct ActiveTickets {
    db: Db,
    /// Limits the tickets of each user.
    limiter: KeyedRateLimiter,
    /// The alarm that deletes expired tickets is set.
    alarm_is_set: bool,
}

impl Active for ActiveTickets {
    type Carried = ();

    fn restore(state: &State, _env: &Env, _name: Option<String>, (): ()) -> Result<Self> {
        Ok(ActiveTickets {
            db: Db::open(&state.storage(), SCHEMA)?,
            limiter: KeyedRateLimiter::default(),
            alarm_is_set: false,
        })
    }
}

impl ActiveTickets {
    fn handle(&mut self, request: TicketRequest, config: &Config) -> Result<Vec<u8>, RequestError> {
        match request {
            TicketRequest::Issue {
                ticket,
                until,
                identity,
            } => {
                // A ticket allows one connect, so the limit of connects applies.
                let limit = config.room.limits.connects;
                self.limiter
                    .admit(&identity.user, "tickets", limit, now())?;
                // The Worker repeats a request whose answer was lost.
                self.db.write(
                    "INSERT OR REPLACE INTO tickets (ticket, until, identity) VALUES (?, ?, ?)",
                    &[
                        ticket.into(),
                        js(until),
                        serde_json::to_string(&identity)?.into(),
                    ],
                )?;
                Ok(Vec::new())
            }
            TicketRequest::Redeem { ticket } => {
                let rows = self.db.query(
                    "DELETE FROM tickets WHERE ticket = ? AND until > ? RETURNING identity",
                    &[ticket.into(), js(now())],
                )?;
                let identity = rows.first().map(|row| text(row, 0));
                Ok(identity.unwrap_or_default().into_bytes())
            }
        }
    }

    /// Deletes expired tickets. Returns `true` if others are left.
    fn delete_expired(&mut self) -> Result<bool> {
        self.db
            .write("DELETE FROM tickets WHERE until <= ?", &[js(now())])?;
        Ok(!self
            .db
            .query("SELECT 1 FROM tickets LIMIT 1", &[])?
            .is_empty())
    }
}
