//! The Durable Object of the revocation registry. There is one for the whole server.
//!
//! Isolates request the revocations that they lack. Rooms and gateways with sockets register.
//! The registry stores objects and not users, so a connect causes no request to it. An alarm
//! delivers each revocation to every registered object. The runtime repeats an alarm that
//! fails, so a revocation is delivered at least once. The objects close the sockets of the
//! revoked tokens. An object without sockets reports this in its answer and is removed; it
//! registers again with its next socket.

use crate::runtime::Result;
use crate::runtime::alarm_clock::set_alarm;
use crate::runtime::headers;
use crate::runtime::host::{Active, Host, promise, promise_response};
use crate::runtime::log::log_error;
use crate::runtime::rpc::revocations::{NoticeAnswer, RegisteredObject, RegistryRequest};
use crate::runtime::rpc::{GATEWAYS, ROOMS, Repeat, RequestError, ask, respond};
use crate::runtime::sql::{Db, js, number, text};
use crate::runtime::time::now;
use futures_util::{StreamExt, stream};
use js_sys::Promise;
use roomcast_auth::registration::notice_retry_delay;
use roomcast_auth::revocation::{MAX_REVOCATIONS, RevocationDelta, RevocationList};
use roomcast_proto::error::{Error as ClientError, ErrorCode};
use roomcast_proto::raw_object::MAX_SAFE_INTEGER;
use roomcast_proto::retry::MAX_REQUESTS;
use roomcast_proto::time::SECOND;
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

/// Number of registrations that are read at a time: ten rounds of [`MAX_REQUESTS`] notices.
const PAGE: u32 = 50;

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
    let request: RegistryRequest = serde_json::from_str(&request.text().await?)?;
    let revokes = matches!(request, RegistryRequest::Revoke { .. });
    let answer = host.try_with_active(|registry| registry.handle(request));
    if revokes && answer.is_ok() {
        // The runtime repeats an alarm that fails, so the notices are sent in any case.
        set_alarm(&host.state, now()).await?;
    }
    respond(answer)
}

async fn deliver(host: Rc<Host<ActiveRegistry>>) -> Result<()> {
    let mut last = String::new();
    let mut failed = false;
    loop {
        let (head, page) = host.with_active(None, |registry, _| registry.next_notices(&last))??;
        let Some(end) = page.last() else {
            break;
        };
        last = end.object.clone();
        let env = &host.env;
        let mut calls = stream::iter(page)
            .map(|notice| async move {
                let answer = notice.send(env).await;
                (notice, answer)
            })
            .buffer_unordered(MAX_REQUESTS);
        while let Some((notice, answer)) = calls.next().await {
            match answer {
                Ok(answer) => {
                    host.with_active(None, |registry, _| {
                        registry.delivered(&notice, answer.has_sockets, head)
                    })??;
                }
                Err(error) => {
                    log_error(format!(
                        "revocation notice not delivered, will retry: {error}"
                    ));
                    failed = true;
                }
            }
        }
    }
    let retry = host.with_active(None, |registry, _| {
        registry.failures = if failed {
            registry.failures.saturating_add(1)
        } else {
            0
        };
        failed.then(|| now() + notice_retry_delay(registry.failures))
    })?;
    if let Some(at) = retry {
        set_alarm(&host.state, at).await?;
    }
    Ok(())
}

/// A notice for a registered object.
struct Notice {
    /// The [`RegisteredObject`] as JSON.
    object: String,
    /// The id of its registration.
    registration: String,
    /// The revocations that were not delivered to it yet.
    delta: RevocationDelta,
}

impl Notice {
    async fn send(&self, env: &Env) -> Result<NoticeAnswer> {
        let object: RegisteredObject = serde_json::from_str(&self.object)?;
        let (binding, name, header) = match &object {
            RegisteredObject::Room(name) => (ROOMS, name, headers::ROOM),
            RegisteredObject::Gateway(name) => (GATEWAYS, name, headers::GATEWAY),
        };
        let headers = [(header, name.as_str()), (headers::REVOKED, "1")];
        let delta = serde_json::to_string(&self.delta)?;
        // The alarm repeats notices that fail.
        match ask(env, binding, name, &headers, delta, Repeat::Never).await? {
            (200, answer) => Ok(serde_json::from_str(&answer)?),
            (status, _) => Err(Error::RustError(format!(
                "{} answered with status {status}",
                self.object
            ))),
        }
    }
}

/// The memory of the object.
struct ActiveRegistry {
    db: Db,
    list: RevocationList,
    /// Number of consecutive alarms with a notice that was not delivered.
    failures: u32,
}

impl Active for ActiveRegistry {
    type Carried = ();

    fn restore(state: &State, _env: &Env, _name: Option<String>, (): ()) -> Result<Self> {
        let db = Db::open(&state.storage(), SCHEMA)?;
        let rows = db.query("SELECT record FROM revocations", &[])?;
        let list = rows
            .iter()
            .filter_map(|row| serde_json::from_str(&text(row, 0)).ok())
            .collect();
        let head = db.meta(HEAD_KEY).and_then(|head| head.parse().ok());
        Ok(ActiveRegistry {
            list: RevocationList::restore(head.unwrap_or(0), list),
            failures: 0,
            db,
        })
    }
}

impl ActiveRegistry {
    fn handle(&mut self, request: RegistryRequest) -> Result<Vec<u8>, RequestError> {
        match request {
            RegistryRequest::Revoke { target, until } => {
                let at = now() / SECOND;
                self.list.prune(at);
                let key = serde_json::to_string(&target)?;
                let Ok(revocation) = self.list.revoke(target, at, until) else {
                    let error = format!("the list is full: {MAX_REVOCATIONS} revocations");
                    return Err(ClientError::new(ErrorCode::Conflict, error).into());
                };
                self.db.set_meta(HEAD_KEY, &revocation.n.to_string())?;
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
                Ok(record.into_bytes())
            }
            RegistryRequest::Delta { after } => Ok(serde_json::to_vec(&self.list.after(after))?),
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
                Ok(serde_json::to_vec(&self.list.after(after))?)
            }
        }
    }

    /// Returns the number of the newest revocation, and the next notices: for objects after
    /// `last` that do not have all revocations.
    fn next_notices(&self, last: &str) -> Result<(u64, Vec<Notice>)> {
        let head = self.list.head();
        let rows = self.db.query(
            "SELECT place, life, told FROM places
             WHERE place > ? AND told < ? AND until > ? ORDER BY place LIMIT ?",
            &[last.into(), js(head), js(now()), PAGE.into()],
        )?;
        let notices = rows.iter().map(|row| Notice {
            object: text(row, 0),
            registration: text(row, 1),
            delta: self.list.after(number(row, 2)),
        });
        Ok((head, notices.collect()))
    }

    /// Records that a notice was delivered. An object that has registered again meanwhile has
    /// another registration, which stays as it is.
    fn delivered(&mut self, notice: &Notice, has_sockets: bool, head: u64) -> Result<()> {
        let (object, registration) = (
            notice.object.as_str().into(),
            notice.registration.as_str().into(),
        );
        match has_sockets {
            true => self.db.write(
                "UPDATE places SET told = ? WHERE place = ? AND life = ?",
                &[js(head), object, registration],
            ),
            false => self.db.write(
                "DELETE FROM places WHERE place = ? AND life = ?",
                &[object, registration],
            ),
        }
    }
}
