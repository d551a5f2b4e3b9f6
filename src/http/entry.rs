//! The entry point of the Worker: finds the route of each request and calls its handler.

use super::address::Address;
use super::problem::Problem;
use super::query::Query;
use super::response::{HandlerResult, problem_response};
use super::rooms::Resource;
use super::route::{self, Readers, Route};
use super::{health, openapi};
use crate::config::Config;
use crate::runtime::abort::OnAbort;
use crate::runtime::log::log_error;
use crate::runtime::settings::settings;
use crate::runtime::time::now;
use futures_channel::oneshot;
use futures_util::future::{Either, select};
use roomcast_proto::error::Error;
use roomcast_proto::log_record::LogRecord;
use roomcast_proto::time::Millis;
use std::pin::pin;
use std::rc::Rc;
use worker::{Context, Env, Response, Result, event};

/// Maximum number of bytes of `Origin` in a log record. The origin of a page on the web is
/// shorter: `https://`, a host of at most 253 characters (RFC 1035, 2.3.4) and a port.
const MAX_LOGGED_ORIGIN: usize = 300;

#[event(fetch)]
async fn fetch(request: web_sys::Request, env: Env, ctx: Context) -> Result<web_sys::Response> {
    console_error_panic_hook::set_once();
    let (sender, aborted) = oneshot::channel::<()>();
    let mut sender = Some(sender);
    let _on_abort = OnAbort::new(&request, move || drop(sender.take()));
    // The answers that the work waits for do not arrive after an abort, so the work would
    // never end and keep its memory.
    match select(pin!(handle(request, &env, &ctx)), aborted).await {
        Either::Left((Ok(response), _)) => Ok(response),
        Either::Left((Err(problem), _)) => problem_response(&problem),
        // The client does not receive this response.
        Either::Right(_) => Ok(Response::empty()?.into()),
    }
}

/// Handles one request. Each route is a method, in its own file.
pub(super) struct Handler<'a> {
    /// The request. It is the runtime's object, because `worker::Request` reads parts that most
    /// routes do not need.
    pub(super) request: web_sys::Request,
    pub(super) headers: web_sys::Headers,
    pub(super) method: String,
    /// `host` or `host:port` of the URL.
    pub(super) host: &'a str,
    pub(super) query: Query,
    /// The path of the route, such as `/rooms/{room}/ws`.
    pub(super) route: &'static str,
    pub(super) env: &'a Env,
    pub(super) config: Rc<Config>,
    /// The time at which the request arrived.
    pub(super) now: Millis,
}

async fn handle(request: web_sys::Request, env: &Env, ctx: &Context) -> HandlerResult {
    let url = request.url();
    let url = Address::of(&url);
    let method = request.method();
    #[cfg(feature = "failpoints")]
    if url.path == "/failpoints" && method == "GET" {
        let budget = settings(env).map_or(0, |config| config.worker.max_object_bytes);
        let account = crate::runtime::memory::json(budget);
        return super::response::json_response(200, account.into_bytes());
    }
    #[cfg(feature = "failpoints")]
    if url.path == "/failpoints" {
        let planned = crate::runtime::failpoint::plan(&request).await;
        let status = planned.map_or(400, |()| 200);
        return super::response::json_response(status, b"{}".to_vec());
    }
    let found = route::find(&method, url.path);
    let config = match settings(env) {
        Ok(config) => config,
        // This route does not depend on the settings.
        Err(_) if matches!(found, Ok(Route::OpenApi)) => return openapi::respond(),
        Err(error) => {
            let route = found?;
            log_error(&error);
            // With 503, load balancers send requests to other servers (RFC 9110, 15.6.4).
            let status = match route {
                Route::Health => 503,
                _ => 500,
            };
            return Err(Problem::new(status, "misconfigured", &error.to_string()));
        }
    };
    let handler = Handler {
        headers: request.headers(),
        request,
        method,
        host: url.authority,
        query: Query::read(url.query),
        route: found.as_ref().map_or("", Route::path),
        env,
        config,
        now: now(),
    };
    let readers = route::readers(url.path);
    let result = match found {
        Ok(route) => handler.respond(route).await,
        // If the preflight fails, the page cannot read the problem of the request itself.
        Err(_) if handler.method == "OPTIONS" && readers == Readers::AllowedOrigins => {
            handler.check_origin("").and_then(|()| handler.preflight())
        }
        Err(problem) => Err(problem),
    };
    let result = match (result, route::socket_kind(url.path)) {
        (Err(problem), Some(kind)) => handler.refuse_socket(kind, problem, ctx),
        (result, _) => result,
    };
    match readers {
        Readers::OwnOrigin => result,
        readers => handler.with_cors(readers, result),
    }
}

impl Handler<'_> {
    async fn respond(&self, route: Route) -> HandlerResult {
        match route {
            Route::Health => health::respond(),
            Route::OpenApi => openapi::respond(),
            #[cfg(feature = "dev-tokens")]
            Route::DevToken => self.issue_dev_token().await,
            Route::RoomSocket { room } => self.connect_to_room(&room).await,
            Route::GatewaySocket => self.connect_native().await,
            Route::EngineIo(protocol) => self.engineio(protocol).await,
            Route::Publish => self.publish().await,
            Route::Broadcast => self.broadcast().await,
            Route::Revoke => self.revoke().await,
            Route::Tickets => self.issue_ticket().await,
            Route::Messages { room } => self.read(&room, Resource::Messages).await,
            Route::Presence { room } => self.read(&room, Resource::Presence).await,
            Route::Members { room } => self.read(&room, Resource::Members).await,
            Route::Member { room, user } => self.change_member(&room, user).await,
            Route::Connections { room } => self.kick(&room).await,
            Route::Room { room } => self.delete_room(&room).await,
        }
    }

    /// Returns the value of a header.
    pub(super) fn header(&self, name: &str) -> Option<String> {
        self.headers.get(name).ok().flatten()
    }

    /// Returns `true` if the request asks to upgrade to a WebSocket.
    pub(super) fn is_upgrade(&self) -> bool {
        self.header("upgrade")
            .is_some_and(|upgrade| upgrade.eq_ignore_ascii_case("websocket"))
    }

    /// Writes a log record, if `LOG_LEVEL` includes its level.
    pub(super) fn log(&self, record: LogRecord) {
        if record.level >= self.config.worker.log_level {
            let now = now();
            let record = record.took(now.saturating_sub(self.now));
            worker::console_log!("{}", record.line(now));
        }
    }

    /// Refuses the request: logs the error and returns it as a problem. `reason` is the reason of
    /// the log record, see [`LogRecord::reject`]. `room` is empty if the route does not belong to
    /// a single room.
    pub(super) fn reject(&self, reason: &str, room: &str, error: Error) -> Problem {
        self.log_reject(LogRecord::reject(reason).room(room).cause(&error));
        error.into()
    }

    /// Writes the log record of a refusal, with the route and the origin.
    pub(super) fn log_reject(&self, record: LogRecord) {
        let record = record.with("route", self.route);
        self.log(match self.header("origin") {
            Some(origin) => {
                let end = origin.floor_char_boundary(MAX_LOGGED_ORIGIN);
                record.with("origin", &origin[..end])
            }
            None => record,
        });
    }
}
