//! The Durable Object of the revocation registry. There is one for the whole server.
//!
//! Isolates request the revocations that they lack, in pages. Rooms and gateways with sockets
//! register. The registry stores objects and not users, so a connect causes no request to it.
//!
//! Alarms deliver each revocation to every registered object, at least once: see
//! [`NoticePass`]. An alarm ends after [`SLICE`] and the next one continues, because the
//! runtime ends an alarm after 15 minutes and repeats it only six times. The objects close the
//! sockets of the revoked tokens. An object without sockets reports this in its answer and is
//! removed; it registers again with its next socket.
//!
//! `POST /broadcast` lists the registered objects.
//!
//! If nothing is to be delivered, an alarm removes the registrations and the revocations that
//! have ended, once a day.

use crate::runtime::Result;
use crate::runtime::alarm_clock::set_alarm;
use crate::runtime::failpoint::{self, Point};
use crate::runtime::headers;
use crate::runtime::host::{Active, Host, promise, promise_response};
use crate::runtime::log::log_error;
use crate::runtime::room_header;
use crate::runtime::rpc::revocations::{NoticeAnswer, RegisteredObject, RegistryRequest};
use crate::runtime::rpc::{GATEWAYS, ROOMS, Repeat, RequestError, ask, respond};
use crate::runtime::sql::{Db, js, number, text};
use crate::runtime::time::now;
use futures_util::{StreamExt, stream};
use js_sys::Promise;
use roomcast_auth::revocation::{NoticePass, Page, RevocationList};
use roomcast_proto::error::{Error as ClientError, ErrorCode};
use roomcast_proto::raw_object::MAX_SAFE_INTEGER;
use roomcast_proto::reader;
use roomcast_proto::retry::MAX_REQUESTS;
use roomcast_proto::time::{DAY, Millis, SECOND};
use std::rc::Rc;
use wasm_bindgen::prelude::*;
use worker::worker_sys::DurableObjectState;
use worker::{Env, Error, Request, Response, State};

/// The names of the columns are earlier terms and must not change: `whose` is the target,
/// `place` the object, `life` the id of the registration, `told` the newest delivered
/// revocation.
const SCHEMA: &[&str] = &[
    "CREATE TABLE IF NOT EXISTS revocations (whose TEXT PRIMARY KEY, record TEXT NOT NULL) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS places (
        place TEXT PRIMARY KEY, life TEXT NOT NULL, until INTEGER NOT NULL,
        told INTEGER NOT NULL) WITHOUT ROWID",
];

/// The key in `meta` of the number of the newest revocation.
const HEAD_KEY: &str = "head";

/// The key in `meta` of the cursor of the pass.
const PASS_KEY: &str = "pass";

/// Time in milliseconds after which an alarm begins no further page and leaves the rest to the
/// next one. A page whose objects are all unreachable takes five times
/// [`REQUEST_DEADLINE`](roomcast_proto::retry::REQUEST_DEADLINE).
const SLICE: Millis = 20 * SECOND;

/// Time in milliseconds after which a pass continues if its alarm has failed.
const RESUME_DELAY: Millis = 2 * SECOND;

/// Interval at which ended registrations and revocations are removed. A registration lasts at
/// least as long.
const PRUNE_INTERVAL: Millis = DAY;

/// Number of registrations that are read at a time: five rounds of [`MAX_REQUESTS`] notices.
const PAGE: u32 = 25;

/// Number of registrations in the answer to [`RegistryRequest::List`].
const LIST_PAGE: u32 = 200;

/// The class of the object. The runtime calls its methods.
#[wasm_bindgen]
pub struct Revocations {
    host: Rc<Host<ActiveRegistry>>,
}

#[wasm_bindgen]
impl Revocations {
    /// Constructs the object.
    #[wasm_bindgen(constructor)]
    pub fn new(state: DurableObjectState, env: Env) -> Self {
        Revocations {
            host: Rc::new(Host::new(state, env)),
        }
    }

    /// Handles a [`RegistryRequest`].
    pub fn fetch(&self, request: web_sys::Request) -> Promise {
        promise_response(handle(Rc::clone(&self.host), request.into()))
    }

    /// Delivers revocations to the registered objects.
    pub fn alarm(&self) -> Promise {
        promise(deliver(Rc::clone(&self.host)))
    }
}

async fn handle(host: Rc<Host<ActiveRegistry>>, mut request: Request) -> Result<Response> {
    let request: RegistryRequest = reader::from_str(&request.text().await?)?;
    failpoint::fails(Point::Registry)?;
    let mut alarm = None;
    let answer = host.try_with_active(|registry| {
        let answer = registry.handle(request)?;
        alarm = registry.alarm.take();
        Ok(answer)
    });
    // Nothing is awaited before this, so the alarm is stored together with the change, and a
    // later event cannot set its alarm earlier.
    if let Some(at) = alarm {
        set_alarm(&host.state, at).await?;
    }
    respond(answer)
}

async fn deliver(host: Rc<Host<ActiveRegistry>>) -> Result<()> {
    let end = now() + SLICE;
    if host.with_active(None, |registry, _| registry.pass.resume())? {
        // Set before the work, so that the pass continues however this alarm ends. The runtime
        // does not start it before this one has ended.
        set_alarm(&host.state, now() + RESUME_DELAY).await?;
    }
    while now() < end
        && let Some(page) = host.with_active(None, |registry, _| registry.next_page())??
    {
        let (env, delta) = (&host.env, page.delta.json.as_str());
        let mut notices = stream::iter(page.objects)
            .map(|object| async move {
                let answer = notify(env, &object.json, delta.to_owned()).await;
                (object, answer)
            })
            .buffer_unordered(MAX_REQUESTS);
        while let Some((object, answer)) = notices.next().await {
            failpoint::panics(Point::Notice);
            let answer = answer.map_err(|error| {
                log_error(format!(
                    "revocation notice not delivered, will retry: {error}"
                ));
            });
            let answer = answer.ok();
            host.with_active(None, |registry, _| {
                registry.notified(&object, answer, page.delta.head)
            })??;
        }
    }
    if let Some(at) = host.with_active(None, |registry, _| registry.end_slice())?? {
        set_alarm(&host.state, at).await?;
    }
    Ok(())
}

/// Objects that do not have all revocations.
struct NoticePage {
    objects: Vec<RegisteredRow>,
    /// The revocations for all of them, of which each may have some already.
    delta: Page,
}

/// A registration, as it is stored.
struct RegisteredRow {
    /// The [`RegisteredObject`] as JSON.
    json: String,
    /// The id of the registration.
    id: String,
}

/// Delivers a [`RevocationDelta`](roomcast_auth::revocation::RevocationDelta) to a
/// [`RegisteredObject`].
async fn notify(env: &Env, object: &str, delta: String) -> Result<NoticeAnswer> {
    let (binding, name, header) = match reader::from_str(object)? {
        RegisteredObject::Room(name) => (ROOMS, name, headers::ROOM),
        RegisteredObject::Gateway(name) => (GATEWAYS, name, headers::GATEWAY),
    };
    let encoded = room_header::encode(&name);
    let headers = [(header, &*encoded), (headers::REVOKED, "1")];
    // The alarm repeats notices that fail.
    match ask(env, binding, &name, &headers, delta, Repeat::Never).await? {
        (200, answer) => Ok(reader::from_str(&answer)?),
        (status, _) => Err(Error::RustError(format!(
            "{object} answered with status {status}"
        ))),
    }
}

/// The memory of the object.
struct ActiveRegistry {
    db: Db,
    list: RevocationList,
    pass: NoticePass,
    /// The alarm to set after this event.
    alarm: Option<Millis>,
    /// An alarm was set since the registry woke. One may be set even if this is `false`.
    has_alarm: bool,
}

impl Active for ActiveRegistry {
    type Carried = ();

    fn restore(state: &State, _env: &Env, _name: Option<String>, (): ()) -> Result<Self> {
        let db = Db::open(&state.storage(), SCHEMA)?;
        let rows = db.query("SELECT record FROM revocations", &[])?;
        let list = rows
            .iter()
            .filter_map(|row| reader::from_str(&text(row, 0)).ok())
            .collect();
        let head = db.meta(HEAD_KEY).and_then(|head| head.parse().ok());
        Ok(ActiveRegistry {
            list: RevocationList::restore(head.unwrap_or(0), list),
            pass: NoticePass::restore(db.meta(PASS_KEY)),
            alarm: None,
            has_alarm: false,
            db,
        })
    }
}

impl ActiveRegistry {
    fn handle(&mut self, request: RegistryRequest) -> Result<Vec<u8>, RequestError> {
        match request {
            RegistryRequest::Revoke { target, until } => {
                let at = now() / SECOND;
                let key = serde_json::to_string(&target)?;
                let Ok(revocation) = self.list.revoke(target, at, until) else {
                    let error = "the list of revocations is full: set `until` or \
                                 MAX_TOKEN_LIFETIME, so that revocations end earlier";
                    return Err(ClientError::new(ErrorCode::Conflict, error).into());
                };
                self.db.set_meta(HEAD_KEY, &revocation.n.to_string())?;
                let record = serde_json::to_string(&revocation)?;
                self.db.write(
                    "INSERT OR REPLACE INTO revocations (whose, record) VALUES (?, ?)",
                    &[key.into(), record.clone().into()],
                )?;
                self.pass.begin();
                self.store_pass()?;
                self.alarm = Some(now());
                Ok(record.into_bytes())
            }
            RegistryRequest::List { after } => {
                let rows = self.db.query(
                    "SELECT place FROM places WHERE place > ? AND until > ?
                     ORDER BY place LIMIT ?",
                    &[after.into(), js(now()), LIST_PAGE.into()],
                )?;
                let places: Vec<String> = rows.iter().map(|row| text(row, 0)).collect();
                Ok(serde_json::to_vec(&places)?)
            }
            RegistryRequest::Delta { after } => Ok(self.list.page(after).json.into_bytes()),
            RegistryRequest::Register {
                object,
                id,
                until,
                after,
            } => {
                self.db.write(
                    "INSERT OR REPLACE INTO places (place, life, until, told) VALUES (?, ?, ?, ?)",
                    &[
                        serde_json::to_string(&object)?.into(),
                        id.into(),
                        js(until.min(MAX_SAFE_INTEGER)),
                        js(self.list.head()),
                    ],
                )?;
                if !self.has_alarm {
                    // An alarm that is set already is not postponed by this.
                    self.alarm = Some(match self.pass.delay() {
                        Some(_) => now(),
                        None => next_prune(),
                    });
                    self.has_alarm = true;
                }
                Ok(self.list.page(after).json.into_bytes())
            }
        }
    }

    /// Returns the next objects that do not have all revocations, or `None` if the slice must
    /// end.
    fn next_page(&mut self) -> Result<Option<NoticePage>> {
        loop {
            let cursor = self.pass.cursor();
            if cursor.is_empty() {
                return Ok(None);
            }
            let rows = self.db.query(
                "SELECT place, life, told FROM places
                 WHERE place > ? AND told < ? AND until > ? ORDER BY place LIMIT ?",
                &[cursor.into(), js(self.list.head()), js(now()), PAGE.into()],
            )?;
            // One text for all of them, because most lack the same revocations.
            if let Some(oldest) = rows.iter().map(|row| number(row, 2)).min() {
                let objects = rows.iter().map(|row| RegisteredRow {
                    json: text(row, 0),
                    id: text(row, 1),
                });
                return Ok(Some(NoticePage {
                    objects: objects.collect(),
                    delta: self.list.page(oldest),
                }));
            }
            if !self.pass.restart() {
                return Ok(None);
            }
        }
    }

    /// Records the answer to a notice with the revocations up to `head`, or `None` if it was not
    /// delivered. An object that has registered again meanwhile has another registration, which
    /// stays as it is.
    fn notified(
        &mut self,
        object: &RegisteredRow,
        answer: Option<NoticeAnswer>,
        head: u64,
    ) -> Result<()> {
        self.pass.notified(&object.json, answer.is_some());
        let (json, id) = (object.json.as_str().into(), object.id.as_str().into());
        match answer {
            None => Ok(()),
            Some(NoticeAnswer { has_sockets: true }) => self.db.write(
                "UPDATE places SET told = max(told, ?) WHERE place = ? AND life = ?",
                &[js(head), json, id],
            ),
            Some(NoticeAnswer { has_sockets: false }) => self.db.write(
                "DELETE FROM places WHERE place = ? AND life = ?",
                &[json, id],
            ),
        }
    }

    /// Stores the pass and returns the time of the next alarm, if one is needed. If there is no
    /// pass, removes the registrations and revocations that have ended.
    fn end_slice(&mut self) -> Result<Option<Millis>> {
        self.store_pass()?;
        self.has_alarm = true;
        if let Some(delay) = self.pass.delay() {
            return Ok(Some(now() + delay));
        }
        let seconds = now() / SECOND;
        self.list.prune(seconds);
        self.db.write(
            "DELETE FROM revocations WHERE json_extract(record, '$.until') <= ?",
            &[js(seconds)],
        )?;
        self.db
            .write("DELETE FROM places WHERE until <= ?", &[js(now())])?;
        let places = self.db.query("SELECT 1 FROM places LIMIT 1", &[])?;
        self.has_alarm = !(self.list.is_empty() && places.is_empty());
        Ok(self.has_alarm.then(next_prune))
    }

    /// Stores the cursor of the pass, if it has changed.
    fn store_pass(&mut self) -> Result<()> {
        let cursor = self.pass.cursor();
        match self.db.meta(PASS_KEY) == Some(cursor) {
            true => Ok(()),
            false => self.db.set_meta(PASS_KEY, cursor),
        }
    }
}

/// Returns the time of the next alarm that only removes what has ended. It does not depend on
/// the time of the call, because the registry would never reach a time that each of its wakes
/// postpones.
fn next_prune() -> Millis {
    (now() / PRUNE_INTERVAL + 1) * PRUNE_INTERVAL
}
