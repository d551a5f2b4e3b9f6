//! The Worker's entry point: who is it, may it, and on to the room's object.
//!
//! A request from outside never goes to an object as it is: the object gets a
//! request made here, so that no header or path from outside reaches it.
//!
//! Here the route is found. It is carried out in `native` or `engine` (sockets),
//! `rooms` or `publish` (what is asked of rooms without one) or `tokens`; `door`
//! (who is it), `body`, `objects` (requests to them) and `answer` are what these
//! have in common.

mod answer;
mod body;
mod door;
mod engine;
mod native;
mod objects;
mod openapi;
mod publish;
mod rooms;
mod tokens;

use super::problem::Problem;
use super::route::{self, Address, Query, Route};
use crate::config::Config;
use crate::runtime::log::log_error;
use crate::runtime::settings::settings;
use crate::runtime::time::now;
use answer::{Handled, answer_json, answer_problem};
use roomcast_proto::error::Error;
use roomcast_proto::log_record::LogRecord;
use roomcast_proto::time::Millis;
use serde_json::json;
use std::rc::Rc;
use worker::{Context, Env, Result, event};

#[event(fetch)]
async fn fetch(request: web_sys::Request, env: Env, _ctx: Context) -> Result<web_sys::Response> {
    console_error_panic_hook::set_once();
    match handle(request, &env).await {
        Ok(response) => Ok(response),
        Err(problem) => answer_problem(&problem),
    }
}

/// A request with what every route needs of it.
struct Call<'a> {
    /// As it came: `worker` would read all kinds of things of it beforehand.
    request: web_sys::Request,
    headers: web_sys::Headers,
    method: String,
    env: &'a Env,
    config: Rc<Config>,
    query: Query,
    now: Millis,
}

async fn handle(request: web_sys::Request, env: &Env) -> Handled {
    let url = request.url();
    let url = Address::of(&url);
    let method = request.method();
    #[cfg(feature = "failpoints")]
    if url.path == "/failpoints" {
        let planned = crate::runtime::failpoint::plan(&request).await;
        return answer_json(planned.map_or(400, |()| 200), b"{}".to_vec());
    }
    let route = route::find(&method, url.path)?;
    if route == Route::Health {
        let health = json!({ "status": "ok", "version": env!("CARGO_PKG_VERSION") });
        return answer_json(200, health.to_string().into_bytes());
    }
    if route == Route::OpenApi {
        return answer_json(200, openapi::text().into_bytes());
    }
    let config = settings(env).map_err(|error| {
        log_error(&error);
        Problem::new(500, "misconfigured", error.to_string())
    })?;
    let call = Call {
        query: Query::read(url.query),
        now: now(),
        headers: request.headers(),
        method,
        request,
        env,
        config,
    };
    match route {
        Route::Health | Route::OpenApi => Err(Problem::not_found()),
        Route::DevToken => tokens::dev_token(call).await,
        Route::Socket { room } => call.upgrade(&room, url.authority).await,
        Route::Gateway => call.gateway(url.authority).await,
        Route::Engine(protocol) => call.engine(protocol, url.authority).await,
        Route::Publish => call.publish().await,
        Route::Revoke => call.revoke().await,
        Route::Tickets => call.ticket(url.authority).await,
        Route::Messages { room } => call.messages(&room).await,
        Route::Presence { room } => call.presence(&room).await,
        Route::Members { room } => call.members(&room).await,
        Route::Member { room, user } => call.member(&room, user).await,
        Route::Connections { room } => call.kick(&room).await,
        Route::Room { room } => call.delete(&room).await,
    }
}

impl Call<'_> {
    fn header(&self, name: &str) -> Option<String> {
        self.headers.get(name).ok().flatten()
    }

    fn is_upgrade(&self) -> bool {
        self.header("upgrade")
            .is_some_and(|upgrade| upgrade.eq_ignore_ascii_case("websocket"))
    }

    fn log(&self, entry: LogRecord) {
        if entry.level >= self.config.worker.log_level {
            let now = now();
            worker::console_log!("{}", entry.took(now.saturating_sub(self.now)).line(now));
        }
    }

    /// Refuses, with a line in the event log.
    fn reject(&self, ground: &str, room: &str, error: Error) -> Problem {
        self.log(
            LogRecord::reject(ground)
                .room(room)
                .with("code", error.code.as_str()),
        );
        error.into()
    }
}
