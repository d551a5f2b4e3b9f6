//! The Worker's entry point: who is it, may it, and on to the room's object.
//!
//! A request from outside never goes to an object as it is: the object gets a
//! request made here, so that no header or path from outside reaches it.

use super::problem::{CONTENT_TYPE, Problem};
use super::publish::{self, Addressed};
use super::route::{self, Address, Query, Route};
use crate::auth::revoked::Whose;
use crate::auth::{self, Credentials, Identity, Rights, SUBPROTOCOL};
use crate::config::{Config, ConfigError};
use crate::durable::{
    DOOR_HEADER, GATEWAY_HEADER, GATEWAYS, HELLO_HEADER, NATIVE, ROOM_HEADER, ROOMS, Visit, call,
    catch_up, complain, fresh_id, issue_ticket, now, prepare, read, redeem_ticket, revoke,
};
use crate::eventlog::Entry;
use crate::fault::{Code, Fault};
use crate::gateway::handshake::{self, Ask, shard_of};
use crate::gateway::{Answer, Door, Protocol};
use crate::room::Hello;
use crate::room::service::{Publication, Request as ServiceRequest};
use crate::time::Millis;
use crate::wire::command::Status;
use crate::wire::event;
use futures_util::{StreamExt, stream};
use serde::Deserialize;
use serde_json::json;
use std::cell::OnceCell;
use std::rc::Rc;
use wasm_bindgen::JsValue;
use worker::{Context, Env, Headers, Request, Response, ResponseBuilder, Result, event};

/// Objects that a Worker may be talking to at once: the platform's limit of
/// outgoing connections is 6.
const MAX_CALLS: usize = 6;

/// How much of a body that is too large is read all the same, and dropped: a
/// client that is still sending when it is answered sees a broken pipe instead
/// of the answer.
const MAX_DRAIN: usize = 32 << 20;

/// The settings, read once an isolate.
pub fn config(env: &Env) -> std::result::Result<Rc<Config>, ConfigError> {
    thread_local! {
        static CONFIG: OnceCell<Rc<Config>> = const { OnceCell::new() };
    }
    CONFIG.with(|cell| {
        if let Some(config) = cell.get() {
            return Ok(config.clone());
        }
        let config = Rc::new(Config::read(|name| {
            env.var(name).ok().map(|value| value.to_string())
        })?);
        Ok(cell.get_or_init(|| config).clone())
    })
}

#[event(fetch)]
async fn fetch(request: web_sys::Request, env: Env, _ctx: Context) -> Result<web_sys::Response> {
    console_error_panic_hook::set_once();
    match handle(request, &env).await {
        Ok(response) => Ok(response),
        Err(problem) => answer_problem(&problem),
    }
}

/// What a request is refused with.
type Handled = std::result::Result<web_sys::Response, Problem>;

/// A failure of the platform, not of the request: logged, not told.
fn failed(error: impl std::fmt::Display) -> Problem {
    complain(error);
    Problem::from(Fault::internal())
}

fn answer_problem(problem: &Problem) -> Result<web_sys::Response> {
    let mut response = ResponseBuilder::new()
        .with_status(problem.status)
        .with_header("content-type", CONTENT_TYPE)?;
    for (name, value) in &problem.headers {
        response = response.with_header(name, value)?;
    }
    Ok(response.fixed(problem.json().into_bytes()).into())
}

fn answer_json(status: u16, json: Vec<u8>) -> Handled {
    Ok(ResponseBuilder::new()
        .with_status(status)
        .with_header("content-type", "application/json")
        .map_err(failed)?
        .with_header("cache-control", "no-store")
        .map_err(failed)?
        .fixed(json)
        .into())
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
    #[cfg(feature = "sabotage")]
    if url.path == "/sabotage" {
        let planned = crate::durable::plan_sabotage(&request).await;
        return answer_json(planned.map_or(400, |()| 200), b"{}".to_vec());
    }
    let route = route::find(&method, url.path)?;
    if route == Route::Health {
        let health = json!({ "status": "ok", "version": env!("CARGO_PKG_VERSION") });
        return answer_json(200, health.to_string().into_bytes());
    }
    if route == Route::OpenApi {
        return answer_json(200, route::OPENAPI.as_bytes().to_vec());
    }
    let config = config(env).map_err(|error| {
        complain(&error);
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
        Route::DevToken => dev_token(call).await,
        Route::Socket { room } => call.upgrade(&room, url.authority).await,
        Route::Gateway => call.gateway(url.authority).await,
        Route::Engine(protocol) => call.engine(protocol, url.authority).await,
        Route::Publish => call.publish().await,
        Route::Revoke => call.revoke().await,
        Route::Tickets => call.ticket(url.authority).await,
        Route::Messages { room } => {
            let identity = call.identity(&room).await?;
            let rights = identity.rights(&room).with(identity.service_rights(&room));
            if !rights.has(Rights::READ) {
                let fault = Fault::forbidden("the token does not open this room");
                return Err(call.reject("auth", &room, fault));
            }
            let range = call.query.range();
            let range = range.map_err(|fault| call.reject("malformed", &room, fault))?;
            call.serve(&room, &ServiceRequest::Messages(range)).await
        }
        Route::Presence { room } => {
            call.service(&room, Rights::READ).await?;
            call.serve(&room, &ServiceRequest::Presence).await
        }
        Route::Members { room } => {
            call.service(&room, Rights::READ).await?;
            call.serve(&room, &ServiceRequest::Members).await
        }
        Route::Member { room, user } => {
            call.service(&room, Rights::WRITE).await?;
            let request = if call.method == "PUT" {
                if crate::name::personal_room_owner(&room).is_some_and(|owner| owner != user) {
                    return Err(Fault::forbidden("a personal room has its own user alone").into());
                }
                ServiceRequest::AddMember { user }
            } else {
                ServiceRequest::RemoveMember { user }
            };
            call.serve(&room, &request).await
        }
        Route::Connections { room } => {
            call.service(&room, Rights::WRITE).await?;
            let user = call.query.user();
            let user = user.map_err(|fault| call.reject("malformed", &room, fault))?;
            call.serve(&room, &ServiceRequest::Kick { user }).await
        }
        Route::Room { room } => {
            call.service(&room, Rights::WRITE).await?;
            let epoch = fresh_id();
            call.serve(&room, &ServiceRequest::Delete { epoch }).await
        }
    }
}

impl Call<'_> {
    fn header(&self, name: &str) -> Option<String> {
        self.headers.get(name).ok().flatten()
    }

    fn log(&self, entry: Entry) {
        if entry.level >= self.config.log_level {
            let now = now();
            worker::console_log!("{}", entry.took(now.saturating_sub(self.now)).line(now));
        }
    }

    /// Refuses, with a line in the event log.
    fn reject(&self, ground: &str, room: &str, fault: Fault) -> Problem {
        self.log(
            Entry::reject(ground)
                .room(room)
                .with("code", fault.code.as_str()),
        );
        fault.into()
    }

    /// Who it is.
    async fn identity(&self, room: &str) -> std::result::Result<Identity, Problem> {
        let identity = match auth::token::require(self.token_given().as_deref()) {
            Ok(token) => self.verify(token).await,
            Err(fault) => Err(fault),
        };
        identity.map_err(|fault| self.reject("auth", room, fault))
    }

    /// Who wants a socket: by a token, or else by a ticket, which then is none
    /// any more.
    async fn visitor(&self, room: &str) -> std::result::Result<Identity, Problem> {
        let Some(ticket) = self
            .query
            .get("ticket")
            .filter(|_| self.token_given().is_none())
        else {
            return self.identity(room).await;
        };
        let redeemed = match redeem_ticket(self.env, ticket).await {
            Ok(identity) => self.recheck(identity).await,
            Err(fault) => Err(fault),
        };
        redeemed.map_err(|fault| self.reject("auth", room, fault))
    }

    /// What may have changed since the token was verified.
    async fn recheck(&self, identity: Identity) -> crate::fault::Result<Identity> {
        catch_up(self.env, &self.config.revoked).await?;
        if identity.expires <= self.now {
            return Err(Fault::unauthorized("the token has expired"));
        }
        if identity.is_revoked(&self.config.revoked, self.now) {
            return Err(Fault::unauthorized("the token was revoked"));
        }
        Ok(identity)
    }

    /// A ticket for the socket of who shows a token.
    async fn ticket(self, host: &str) -> Handled {
        self.check_origin("", host)?;
        if self.method == "OPTIONS" {
            return self.with_cors(ResponseBuilder::new().with_status(204).empty());
        }
        let made = match self.make_ticket().await {
            Ok(made) => made,
            Err(problem) => answer_problem(&problem).map_err(failed)?,
        };
        self.with_cors(made)
    }

    async fn make_ticket(&self) -> Handled {
        let authorization = self.header("authorization");
        let credentials = Credentials {
            authorization: authorization.as_deref(),
            ..Credentials::default()
        };
        let Some(token) = credentials.token() else {
            let fault = Fault::unauthorized("send a token: Authorization: Bearer");
            return Err(self.reject("auth", "", fault));
        };
        let identity = self.verify(token).await;
        let identity = identity.map_err(|fault| self.reject("auth", "", fault))?;
        let issued = issue_ticket(self.env, identity).await;
        let (ticket, until) = issued.map_err(|fault| self.reject("rate", "", fault))?;
        let answer = json!({ "ticket": ticket, "expiresAt": crate::time::rfc3339(until) });
        answer_json(201, answer.to_string().into_bytes())
    }

    async fn verify(&self, token: &str) -> crate::fault::Result<Identity> {
        prepare(self.env, &self.config, token).await?;
        auth::verify(&self.config, token, self.now)
    }

    /// A service that has `right` on `room`.
    async fn service(&self, room: &str, right: Rights) -> std::result::Result<Identity, Problem> {
        let identity = self.identity(room).await?;
        identity
            .require_service(room, right)
            .map_err(|fault| self.reject("auth", room, fault))?;
        Ok(identity)
    }

    fn is_upgrade(&self) -> bool {
        self.header("upgrade")
            .is_some_and(|upgrade| upgrade.eq_ignore_ascii_case("websocket"))
    }

    /// Whether a browser's page of this origin may connect.
    fn check_origin(&self, room: &str, host: &str) -> std::result::Result<(), Problem> {
        let origin = self.header("origin");
        if self.config.allowed_origins.allows(origin.as_deref(), host) {
            return Ok(());
        }
        let fault = Fault::forbidden("this origin may not connect; see ALLOWED_ORIGINS");
        Err(self.reject("origin", room, fault))
    }

    /// A native WebSocket to a gateway.
    async fn gateway(&self, host: &str) -> Handled {
        if !self.is_upgrade() {
            return Err(Problem::upgrade_required());
        }
        self.check_origin("", host)?;
        let door = Door {
            protocol: Protocol::Native,
            identity: Some(self.visitor("").await?),
            fault: None,
            address: self.header("cf-connecting-ip"),
            recovers: false,
        };
        let name = format!("{NATIVE}{}", self.any_shard()?);
        let response = self.visit(&name, door, None, None).await?;
        if response.status() != 101 {
            return relay(&response).await;
        }
        self.with_subprotocol(response)
    }

    /// One of the gateways; any will do.
    fn any_shard(&self) -> std::result::Result<usize, Problem> {
        let random = getrandom::u32().map_err(failed)? as usize;
        Ok(random % self.config.gateway.shards)
    }

    /// Engine.IO, with or without Socket.IO on it.
    async fn engine(self, protocol: Protocol, host: &str) -> Handled {
        self.check_origin("", host)?;
        if self.method == "OPTIONS" {
            return self.with_cors(ResponseBuilder::new().with_status(204).empty());
        }
        let upgrade = self.is_upgrade();
        let ask = match handshake::read(&self.method, &self.query, upgrade) {
            Ok(ask) => ask,
            Err(error) => return self.engine_error(error),
        };
        let sid = match &ask {
            Ask::WebSocket { sid } => sid.as_deref(),
            Ask::Poll { sid } | Ask::Post { sid } => Some(sid.as_str()),
            Ask::Open => None,
        };
        let shard = match sid.map(shard_of) {
            None => self.any_shard()?,
            Some(Some(shard)) => shard,
            Some(None) => return self.engine_error(handshake::Error::UnknownSid),
        };
        // Who it is Socket.IO asks later; what the request says counts first.
        // One that is there already has been looked at.
        let opens = matches!(ask, Ask::Open | Ask::WebSocket { sid: None });
        let (identity, fault) = match self.token_given().filter(|_| opens) {
            // A ticket that is no good ends it here: the client comes again by
            // itself, with another if it is given one.
            None if opens && self.query.get("ticket").is_some() => match self.visitor("").await {
                Ok(identity) => (Some(identity), None),
                Err(problem) => {
                    return self.with_cors(answer_problem(&problem).map_err(failed)?);
                }
            },
            None => (None, None),
            Some(token) => match self.verify(&token).await {
                Ok(identity) => (Some(identity), None),
                Err(fault) => (None, Some(fault)),
            },
        };
        let agent = self.header("user-agent").unwrap_or_default();
        let door = Door {
            protocol,
            identity,
            fault,
            address: self.header("cf-connecting-ip"),
            // Clients for Python would hand the offset to their handlers, which
            // do not expect it.
            recovers: protocol == Protocol::SocketIo && !agent.starts_with("Python"),
        };
        let body = match &ask {
            Ask::Post { .. } => match self.read_body(self.config.gateway.max_payload).await {
                Ok(body) => Some(body),
                Err(fault) if fault.code == Code::TooLarge => {
                    // The session ends: the gateway sees that it is too long.
                    Some(vec![0; self.config.gateway.max_payload + 1])
                }
                Err(fault) => return Err(fault.into()),
            },
            _ => None,
        };
        let response = self
            .visit(&shard.to_string(), door, Some(ask), body)
            .await?;
        match response.status() {
            101 => Ok(response),
            429 => relay(&response).await,
            _ => self.with_cors(response),
        }
    }

    fn engine_error(&self, error: handshake::Error) -> Handled {
        let answer = Answer::error(error);
        self.log(Entry::reject("malformed").with("code", answer.status));
        let response = ResponseBuilder::new()
            .with_status(answer.status)
            .with_header("content-type", "application/json")
            .map_err(failed)?;
        self.with_cors(response.fixed(answer.body.into_bytes()))
    }

    /// The headers by which a page of an allowed origin may read the answer.
    fn with_cors(&self, response: impl Into<Response>) -> Handled {
        let response = response.into();
        let Some(origin) = self.header("origin") else {
            return Ok(response.into());
        };
        let headers = Headers::new();
        for (name, value) in response.headers().entries() {
            headers.set(&name, &value).map_err(failed)?;
        }
        let asked = self.header("access-control-request-headers");
        for (name, value) in [
            ("access-control-allow-origin", origin.as_str()),
            ("access-control-allow-credentials", "true"),
            ("access-control-allow-methods", "GET, POST"),
            (
                "access-control-allow-headers",
                asked.as_deref().unwrap_or(""),
            ),
            ("access-control-max-age", "86400"),
            ("vary", "Origin"),
        ] {
            if !value.is_empty() {
                headers.set(name, value).map_err(failed)?;
            }
        }
        Ok(response.with_headers(headers).into())
    }

    /// Sends somebody on to a gateway.
    async fn visit(
        &self,
        gateway: &str,
        door: Door,
        ask: Option<Ask>,
        body: Option<Vec<u8>>,
    ) -> Handled {
        let upgrades = matches!(ask, None | Some(Ask::WebSocket { .. }));
        let visit = ascii_json(&Visit { door, ask }).map_err(failed)?;
        let mut headers = vec![(GATEWAY_HEADER, gateway), (DOOR_HEADER, &visit)];
        if upgrades {
            headers.push(("upgrade", "websocket"));
        }
        let body = body.map(|body| js_sys::Uint8Array::from(body.as_slice()).into());
        let response = self.object(GATEWAYS, gateway, &headers, body).await?;
        if upgrades && response.status() != 400 || response.status() >= 500 {
            return Ok(response);
        }
        let headers = Headers::new();
        let kind = match response.status() {
            200 => "text/plain; charset=UTF-8",
            _ => "application/json",
        };
        headers.set("content-type", kind).map_err(failed)?;
        headers.set("cache-control", "no-store").map_err(failed)?;
        Ok(Response::from(response).with_headers(headers).into())
    }

    /// The token of the request, wherever it stands.
    fn token_given(&self) -> Option<String> {
        let (authorization, protocols) = (
            self.header("authorization"),
            self.header("sec-websocket-protocol"),
        );
        let credentials = Credentials {
            authorization: authorization.as_deref(),
            protocols: protocols.as_deref(),
            query: self.query.get("token"),
        };
        credentials.token().map(str::to_owned)
    }

    /// Selects the subprotocol that a client offered.
    fn with_subprotocol(&self, response: web_sys::Response) -> Handled {
        let offered = self.header("sec-websocket-protocol");
        let credentials = Credentials {
            protocols: offered.as_deref(),
            ..Credentials::default()
        };
        if response.status() != 101 || !credentials.offers_subprotocol() {
            return Ok(response);
        }
        // The answer of an object cannot be changed, so it is made again.
        let socket = Response::from(response).websocket();
        let socket = socket.ok_or_else(|| failed("no socket"))?;
        let headers = Headers::new();
        headers
            .set("sec-websocket-protocol", SUBPROTOCOL)
            .map_err(failed)?;
        Ok(Response::from_websocket(socket)
            .map_err(failed)?
            .with_headers(headers)
            .into())
    }

    /// A WebSocket to a room.
    async fn upgrade(&self, room: &str, host: &str) -> Handled {
        if !self.is_upgrade() {
            return Err(Problem::upgrade_required());
        }
        self.check_origin(room, host)?;
        let identity = self.visitor(room).await?;
        let rights = identity.rights(room);
        if !rights.has(Rights::READ) {
            let fault = Fault::forbidden("the token does not open this room");
            return Err(self.reject("auth", room, fault));
        }
        let position = self
            .query
            .position()
            .map_err(|fault| self.reject("malformed", room, fault))?;
        let hello = Hello {
            connection_id: fresh_id(),
            user: identity.user,
            rights,
            expires: identity.expires,
            address: self.header("cf-connecting-ip"),
            position,
            status: Status::Online,
            token: identity.token,
        };
        let hello = ascii_json(&hello).map_err(failed)?;
        let headers = [
            ("upgrade", "websocket"),
            (ROOM_HEADER, room),
            (HELLO_HEADER, &hello),
        ];
        let response = self.object(ROOMS, room, &headers, None).await?;
        if response.status() != 101 {
            return relay(&response).await;
        }
        self.with_subprotocol(response)
    }

    /// Lets tokens count no more.
    async fn revoke(mut self) -> Handled {
        let identity = self.identity("").await?;
        if !self.config.revoked.is_on() {
            return Err(Problem::new(
                409,
                "conflict",
                "tokens cannot be revoked here: REVOCATION is false",
            ));
        }
        if !identity.is_service_of_all() {
            let fault = "this needs a token with role `service` and `admin` on `*`";
            return Err(self.reject("auth", "", Fault::forbidden(fault)));
        }
        let body = self.body().await;
        let (whose, until) = body
            .and_then(|body| super::revoke::parse(&body, self.now))
            .map_err(|fault| self.reject("malformed", "", fault))?;
        let revocation = revoke(self.env, &self.config.revoked, whose, until).await?;
        let entry = Entry::info("revoke").with("by", identity.user);
        let (entry, mut answer) = match revocation.whose {
            Whose::User(user) => (entry.user(&user), json!({ "userId": user })),
            Whose::Jti(jti) => (entry.with("jti", jti.as_str()), json!({ "jti": jti })),
        };
        self.log(entry);
        answer["revokedAt"] = revocation.at.into();
        answer["until"] = revocation.until.into();
        answer_json(200, answer.to_string().into_bytes())
    }

    async fn publish(mut self) -> Handled {
        let identity = self.identity("").await?;
        if !identity.service {
            let fault = Fault::forbidden("this needs a token with role `service`");
            return Err(self.reject("auth", "", fault));
        }
        let body = self.body().await;
        let body = body
            .and_then(|body| publish::parse(&body))
            .map_err(|fault| self.reject("malformed", "", fault))?;
        match body {
            publish::Body::One(message) => {
                let mut answers = self.publish_all(&identity, vec![Ok(message)]).await;
                match answers.pop() {
                    Some(Ok(answer)) => answer_json(200, answer.into_bytes()),
                    Some(Err(fault)) => Err(fault.into()),
                    None => Err(failed("no answer")),
                }
            }
            publish::Body::Many(messages) => {
                let answers: Vec<String> = self
                    .publish_all(&identity, messages)
                    .await
                    .into_iter()
                    .map(|answer| {
                        answer.unwrap_or_else(|fault| {
                            format!(r#"{{"error":{}}}"#, event::fault_fields(&fault))
                        })
                    })
                    .collect();
                let json = format!(r#"{{"results":[{}]}}"#, answers.join(","));
                answer_json(200, json.into_bytes())
            }
        }
    }

    /// Publishes each message to its room, those of one room in one request and
    /// in order. Answers them one by one, in the order they came.
    async fn publish_all(
        &self,
        identity: &Identity,
        messages: Vec<crate::fault::Result<Addressed>>,
    ) -> Vec<crate::fault::Result<String>> {
        let mut answers: Vec<crate::fault::Result<String>> = Vec::with_capacity(messages.len());
        let mut rooms: Vec<(String, Vec<(usize, Publication)>)> = Vec::new();
        for (index, message) in messages.into_iter().enumerate() {
            let allowed = message.and_then(|message| {
                if let Err(fault) = identity.require_service(&message.room, Rights::WRITE) {
                    self.reject("auth", &message.room, fault.clone());
                    return Err(fault);
                }
                Ok(message)
            });
            match allowed {
                Ok(Addressed { room, publication }) => {
                    match rooms.iter_mut().find(|(one, _)| *one == room) {
                        Some((_, publications)) => publications.push((index, publication)),
                        None => rooms.push((room, vec![(index, publication)])),
                    }
                    // Until its room has answered.
                    answers.push(Err(Fault::internal()));
                }
                Err(fault) => answers.push(Err(fault)),
            }
        }
        let mut calls = stream::iter(rooms)
            .map(|(room, publications)| async move {
                let (places, messages): (Vec<usize>, Vec<Publication>) =
                    publications.into_iter().unzip();
                let request = ServiceRequest::Publish {
                    sender: identity.user.clone(),
                    messages,
                };
                (places, self.published(&room, &request).await)
            })
            .buffer_unordered(MAX_CALLS);
        while let Some((places, published)) = calls.next().await {
            match published {
                Ok(published) => {
                    for (place, answer) in places.into_iter().zip(published) {
                        answers[place] = answer;
                    }
                }
                Err(fault) => {
                    for place in places {
                        answers[place] = Err(fault.clone());
                    }
                }
            }
        }
        answers
    }

    /// The answers of one room to its publications.
    async fn published(
        &self,
        room: &str,
        request: &ServiceRequest,
    ) -> crate::fault::Result<Vec<crate::fault::Result<String>>> {
        #[derive(Deserialize)]
        struct Failed {
            error: Fault,
        }
        let internal = |_| Fault::internal();
        let response = self.ask(room, request).await.map_err(internal)?;
        let (status, body) = read(&response)
            .await
            .map_err(|error| internal(failed(error)))?;
        if status >= 400 {
            return Err(serde_json::from_str(&body).unwrap_or_else(|_| Fault::internal()));
        }
        let answers: Vec<Box<serde_json::value::RawValue>> =
            serde_json::from_str(&body).map_err(|error| internal(failed(error)))?;
        Ok(answers
            .into_iter()
            .map(
                |answer| match serde_json::from_str::<Failed>(answer.get()) {
                    Ok(failed) => Err(failed.error),
                    Err(_) => Ok(answer.get().to_owned()),
                },
            )
            .collect())
    }

    /// The body as text, within its limit.
    async fn body(&mut self) -> crate::fault::Result<String> {
        let body = self.read_body(self.config.max_body_bytes).await?;
        String::from_utf8(body).map_err(|_| Fault::bad_request("the body must be JSON in UTF-8"))
    }

    async fn read_body(&self, limit: usize) -> crate::fault::Result<Vec<u8>> {
        let mut body = Vec::new();
        let mut length = 0;
        // The handle is cloned; the request's own `clone` would copy its body.
        let mut request = Request::from(Clone::clone(&self.request));
        if let Ok(mut chunks) = request.stream() {
            while let Some(chunk) = chunks.next().await {
                let chunk =
                    chunk.map_err(|_| Fault::bad_request("the body ended before its time"))?;
                length += chunk.len();
                if length <= limit {
                    body.extend_from_slice(&chunk);
                } else if length > MAX_DRAIN {
                    break;
                }
            }
        }
        if length > limit {
            let fault = format!("a body may have up to {limit} bytes");
            return Err(Fault::new(Code::TooLarge, fault));
        }
        Ok(body)
    }

    /// Lets the room do what a service asks, and relays its answer.
    async fn serve(&self, room: &str, request: &ServiceRequest) -> Handled {
        relay(&self.ask(room, request).await?).await
    }

    async fn ask(&self, room: &str, request: &ServiceRequest) -> Handled {
        let body = serde_json::to_string(request).map_err(failed)?;
        let headers = [(ROOM_HEADER, room)];
        self.object(ROOMS, room, &headers, Some(body.into())).await
    }

    /// A request to an object.
    async fn object(
        &self,
        binding: &str,
        name: &str,
        headers: &[(&str, &str)],
        body: Option<JsValue>,
    ) -> Handled {
        call(self.env, binding, name, headers, body)
            .await
            .map_err(failed)
    }
}

/// An object's answer, its faults made problems.
async fn relay(response: &web_sys::Response) -> Handled {
    let (status, body) = read(response).await.map_err(failed)?;
    if status < 400 {
        return answer_json(status, body.into_bytes());
    }
    match serde_json::from_str::<Fault>(&body) {
        Ok(fault) => Err(fault.into()),
        Err(_) => Err(failed("the object failed")),
    }
}

/// JSON in ASCII alone, so that it fits a header.
fn ascii_json(what: &impl serde::Serialize) -> serde_json::Result<String> {
    let json = serde_json::to_string(what)?;
    let mut ascii = String::with_capacity(json.len());
    for unit in json.encode_utf16() {
        match u8::try_from(unit) {
            Ok(byte) if byte.is_ascii() => ascii.push(char::from(byte)),
            // Outside ASCII only strings have anything, where this is the same.
            _ => ascii.push_str(&format!("\\u{unit:04x}")),
        }
    }
    Ok(ascii)
}

#[cfg(not(feature = "dev-tokens"))]
async fn dev_token(_call: Call<'_>) -> Handled {
    Err(Problem::not_found())
}

/// A token for the demo page. Development builds only, and only with
/// `DEV_TOKENS=true`.
#[cfg(feature = "dev-tokens")]
async fn dev_token(mut call: Call<'_>) -> Handled {
    use crate::time::{DAY, HOUR, SECOND, rfc3339};
    use crate::wire::Object;
    use crate::wire::object::{Kind, USER, WHOLE};

    const ROOMS: Kind<Vec<String>> = Kind {
        expected: "a list of room patterns",
        read: |json| serde_json::from_str(json).ok(),
    };
    if !call.config.dev_tokens {
        return Err(Problem::not_found());
    }
    let body = call.body().await?;
    let object = Object::parse(&body, "the body")?;
    let user = object.need("user", USER)?;
    let rooms = object.get("rooms", ROOMS)?;
    let ttl = object.get("ttl", WHOLE)?.map_or(HOUR, |ttl| ttl * SECOND);
    let expires = call.now + ttl.min(DAY);
    let token = auth::token::issue(&call.config, &user, rooms.as_deref(), expires)?;
    let answer = json!({ "token": token, "expiresAt": rfc3339(expires) });
    answer_json(200, answer.to_string().into_bytes())
}
