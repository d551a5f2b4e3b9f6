//! The Durable Object that keeps the list of revocations, one for the whole
//! server, and what others ask of it.
//!
//! Isolates ask what is new. Where open sockets are it knows by object, not by
//! user: a room says so once, when it has sockets of its own, and then again a
//! day later at the earliest; a gateway once for good. So a connect costs
//! nothing, and a revocation, which is seldom, is told to all that said so. They
//! close what it concerns and go back to sleep; who has no sockets any more says
//! that, and is told nothing until it has.

use super::refuse;
use crate::runtime::alarm_clock;
use crate::runtime::headers;
use crate::runtime::sql::{Db, js, number, text};
use crate::runtime::{self, GATEWAYS, REVOCATIONS, ROOMS, complain, now};
use futures_util::{StreamExt, stream};
use roomcast_auth::revocation::{
    MAX_REVOCATIONS, RefreshStep, Revocation, RevocationCache, RevocationDelta, RevocationList,
    RevocationTarget,
};
use roomcast_proto::error::{Error as ClientError, ErrorCode};
use roomcast_proto::time::{DAY, Millis, SECOND};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::cell::RefCell;
use std::time::Duration;
use worker::{
    Delay, DurableObject, Env, Error, Request, Response, ResponseBuilder, Result, State,
    durable_object,
};

/// The name of the one object.
const NAME: &str = "all";

const SCHEMA: &[&str] = &[
    "CREATE TABLE IF NOT EXISTS revocations (whose TEXT PRIMARY KEY, record TEXT NOT NULL) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS places (
        place TEXT PRIMARY KEY, life TEXT NOT NULL, until INTEGER NOT NULL,
        told INTEGER NOT NULL) WITHOUT ROWID",
];

/// Objects that are told at a time: the platform's limit of outgoing connections
/// is 6. And rows of them that are read at a time.
const MAX_CALLS: usize = 6;
const PAGE: u32 = 60;

/// How long after somebody could not be told it is tried again.
const RETRY_AFTER: Millis = 2 * SECOND;

/// How often and after what times a place says again that it has sockets, when
/// the registry does not answer.
const REGISTER_AGAIN: [u64; 5] = [250, 1_000, 4_000, 16_000, 60_000];

/// How long a place says at the least that it has sockets.
const REGISTERED: Millis = DAY;

/// Where sockets are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Place {
    Room(String),
    Gateway(String),
}

#[derive(Serialize, Deserialize)]
enum Ask {
    Revoke {
        whose: RevocationTarget,
        until: u64,
    },
    /// What came after this number.
    News {
        after: u64,
    },
    /// Has sockets, until then; and likewise.
    Register {
        place: Place,
        life: String,
        until: Millis,
        after: u64,
    },
}

/// What a place answers when it is told.
#[derive(Serialize, Deserialize)]
pub struct Told {
    /// Whether it still has sockets.
    pub here: bool,
}

/// Under what a place keeps in its table `meta` that it said so.
pub const REGISTERED_KEY: &str = "registered";

async fn ask<T: DeserializeOwned>(env: &Env, ask: &Ask) -> Result<T> {
    let ask = serde_json::to_string(ask)?;
    match runtime::ask(env, REVOCATIONS, NAME, &[], ask).await? {
        (200, answer) => Ok(serde_json::from_str(&answer)?),
        (status, _) => Err(Error::RustError(format!("the registry answered {status}"))),
    }
}

/// Revokes. The fault is for the service that asked.
pub async fn revoke(
    env: &Env,
    revoked: &RevocationCache,
    whose: RevocationTarget,
    until: u64,
) -> std::result::Result<Revocation, ClientError> {
    let failed = |error: Error| {
        complain(error);
        ClientError::internal()
    };
    let ask = Ask::Revoke { whose, until };
    let ask = serde_json::to_string(&ask).map_err(|error| failed(error.into()))?;
    let (status, answer) = runtime::ask(env, REVOCATIONS, NAME, &[], ask)
        .await
        .map_err(failed)?;
    if status != 200 {
        return Err(serde_json::from_str(&answer).unwrap_or_else(|_| ClientError::internal()));
    }
    let revocation: Revocation =
        serde_json::from_str(&answer).map_err(|error| failed(error.into()))?;
    revoked.learn(std::slice::from_ref(&revocation));
    Ok(revocation)
}

/// Sees to it that the list is not old. Where that fails the last one has to do;
/// without any there is a fault.
pub async fn catch_up(
    env: &Env,
    revoked: &RevocationCache,
) -> std::result::Result<(), ClientError> {
    while let Some(look) = revoked.step(true, now()) {
        match look {
            RefreshStep::Wait => Delay::from(Duration::from_millis(20)).await,
            RefreshStep::Ask => {
                let after = revoked.head();
                match ask::<RevocationDelta>(env, &Ask::News { after }).await {
                    Ok(news) => revoked.caught_up(news, now()),
                    Err(error) => {
                        complain(format!("what was revoked is not known: {error}"));
                        revoked.failed(now());
                    }
                }
                break;
            }
        }
    }
    match revoked.is_known() {
        true => Ok(()),
        false => Err(ClientError::internal()),
    }
}

/// For how long a place should say that it has a socket that may be there until
/// `expires`.
pub fn registration(expires: Millis) -> Millis {
    expires.max(now() + REGISTERED)
}

/// Says that a place has sockets. What was revoked is known then.
pub async fn register(
    env: &Env,
    revoked: &RevocationCache,
    place: Place,
    until: Millis,
) -> Result<()> {
    let after = revoked.head();
    let register = Ask::Register {
        place,
        life: runtime::fresh_id(),
        until,
        after,
    };
    let mut answer = ask::<RevocationDelta>(env, &register).await;
    for wait in REGISTER_AGAIN {
        if answer.is_ok() {
            break;
        }
        Delay::from(Duration::from_millis(wait)).await;
        answer = ask::<RevocationDelta>(env, &register).await;
    }
    let news = answer?;
    // Somebody else may have asked for the rest meanwhile, or for more.
    revoked.caught_up(news, now());
    Ok(())
}

#[durable_object(alarm)]
pub struct Revocations {
    state: State,
    env: Env,
    live: RefCell<Option<Live>>,
}

struct Live {
    db: Db,
    registry: RevocationList,
}

impl DurableObject for Revocations {
    fn new(state: State, env: Env) -> Self {
        console_error_panic_hook::set_once();
        Revocations {
            state,
            env,
            live: RefCell::new(None),
        }
    }

    async fn fetch(&self, mut request: Request) -> Result<Response> {
        let ask: Ask = serde_json::from_slice(&request.bytes().await?)?;
        let revokes = matches!(ask, Ask::Revoke { .. });
        let answer = match self.with(|live| live.answer(ask))? {
            Ok(answer) => answer,
            Err(error) => return refuse(&error),
        };
        if revokes {
            // By an alarm, which is tried again whatever happens to this object.
            alarm_clock::set_alarm(&self.state, now()).await?;
        }
        Ok(ResponseBuilder::new().fixed(answer))
    }

    async fn alarm(&self) -> Result<Response> {
        let mut last = String::new();
        let mut all = true;
        loop {
            let (head, page) = self.with(|live| live.untold(&last))?;
            let Some((end, ..)) = page.last() else {
                break;
            };
            last = end.clone();
            let mut calls = stream::iter(page)
                .map(|(key, life, news)| async move {
                    let told = self.tell(&key, &news).await;
                    (key, life, told)
                })
                .buffer_unordered(MAX_CALLS);
            while let Some((key, life, told)) = calls.next().await {
                match told {
                    Ok(told) => self.with(|live| live.told(&key, &life, told.here, head))?,
                    Err(error) => {
                        complain(format!("somebody could not be told: {error}"));
                        all = false;
                    }
                }
            }
        }
        if !all {
            alarm_clock::set_alarm(&self.state, now() + RETRY_AFTER).await?;
        }
        Response::empty()
    }
}

impl Revocations {
    fn with<T>(&self, what: impl FnOnce(&mut Live) -> Result<T>) -> Result<T> {
        let mut slot = self.live.borrow_mut();
        let live = match &mut *slot {
            Some(live) => live,
            empty => empty.insert(Live::wake(&self.state)?),
        };
        let done = what(live);
        if done.is_err() {
            // What is in memory may not be what is stored.
            *slot = None;
        }
        done
    }

    async fn tell(&self, key: &str, news: &RevocationDelta) -> Result<Told> {
        let place: Place = serde_json::from_str(key)?;
        let (binding, name, header) = match &place {
            Place::Room(name) => (ROOMS, name, headers::ROOM),
            Place::Gateway(name) => (GATEWAYS, name, headers::GATEWAY),
        };
        let headers = [(header, name.as_str()), (headers::REVOKED, "1")];
        let news = serde_json::to_string(news)?;
        match runtime::ask(&self.env, binding, name, &headers, news).await? {
            (200, told) => Ok(serde_json::from_str(&told)?),
            (status, _) => Err(Error::RustError(format!("{key} answered {status}"))),
        }
    }
}

/// Somebody to be told: the key and the life of the place, and what.
type Untold = (String, String, RevocationDelta);

impl Live {
    fn wake(state: &State) -> Result<Self> {
        let db = Db::open(&state.storage(), SCHEMA)?;
        let rows = db.query("SELECT record FROM revocations", &[])?;
        let list = rows
            .iter()
            .filter_map(|row| serde_json::from_str(&text(row, 0)).ok())
            .collect();
        let head = db.meta("head").and_then(|head| head.parse().ok());
        Ok(Live {
            registry: RevocationList::restore(head.unwrap_or(0), list),
            db,
        })
    }

    fn answer(&mut self, ask: Ask) -> Result<std::result::Result<Vec<u8>, ClientError>> {
        let answer = match ask {
            Ask::Revoke { whose, until } => {
                let at = now() / SECOND;
                self.registry.prune(at);
                let key = serde_json::to_string(&whose)?;
                let Ok(revocation) = self.registry.revoke(whose, at, until) else {
                    let error = format!("there may be {MAX_REVOCATIONS} revocations at a time");
                    return Ok(Err(ClientError::new(ErrorCode::Conflict, error)));
                };
                self.db.set_meta("head", &revocation.n.to_string())?;
                let record = serde_json::to_string(&revocation)?;
                self.db.write(
                    "INSERT OR REPLACE INTO revocations (whose, record) VALUES (?, ?)",
                    &[key.into(), record.clone().into()],
                )?;
                self.db.write(
                    "DELETE FROM revocations WHERE json_extract(record, '$.until') <= ?",
                    &[js(at)],
                )?;
                self.db
                    .write("DELETE FROM places WHERE until <= ?", &[js(now())])?;
                record.into_bytes()
            }
            Ask::News { after } => serde_json::to_vec(&self.registry.after(after))?,
            Ask::Register {
                place,
                life,
                until,
                after,
            } => {
                self.db.write(
                    "INSERT OR REPLACE INTO places (place, life, until, told) VALUES (?, ?, ?, ?)",
                    &[
                        serde_json::to_string(&place)?.into(),
                        life.into(),
                        js(until.min(roomcast_proto::raw_object::MAX_SAFE_INTEGER)),
                        js(self.registry.head()),
                    ],
                )?;
                serde_json::to_vec(&self.registry.after(after))?
            }
        };
        Ok(Ok(answer))
    }

    /// The next places after `last` that have not been told of everything.
    fn untold(&self, last: &str) -> Result<(u64, Vec<Untold>)> {
        let head = self.registry.head();
        let rows = self.db.query(
            "SELECT place, life, told FROM places
             WHERE place > ? AND told < ? AND until > ? ORDER BY place LIMIT ?",
            &[last.into(), js(head), js(now()), PAGE.into()],
        )?;
        let untold = rows.iter().map(|row| {
            let news = self.registry.after(number(row, 2));
            (text(row, 0), text(row, 1), news)
        });
        Ok((head, untold.collect()))
    }

    fn told(&mut self, key: &str, life: &str, here: bool, head: u64) -> Result<()> {
        // One that said again meanwhile that it has sockets is another life.
        let key_and_life = [key.into(), life.into()];
        if here {
            let [key, life] = key_and_life;
            self.db.write(
                "UPDATE places SET told = ? WHERE place = ? AND life = ?",
                &[js(head), key, life],
            )
        } else {
            self.db.write(
                "DELETE FROM places WHERE place = ? AND life = ?",
                &key_and_life,
            )
        }
    }
}
