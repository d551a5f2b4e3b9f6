//! `/socket.io/`: requests of Engine.IO, by polling or by WebSocket. The Worker finds the gateway
//! that has the session and sends the request there.

use super::entry::Handler;
use super::objects::relay_text;
use super::problem::Problem;
use super::response::{HandlerResult, internal, respond};
use crate::runtime::rpc::read;
use crate::runtime::socket::send_and_close;
use roomcast_auth::SignedId;
use roomcast_gateway::handshake::{self, Ask, shard_of};
use roomcast_gateway::{Answer, ConnectInfo, OpenRequest, Protocol, Recovery};
use roomcast_gateway::{engineio3_packets, engineio3_payload};
use roomcast_proto::disconnect::Disconnect;
use roomcast_proto::error::{Error, ErrorCode};
use roomcast_proto::gateway_kind::GatewayKind;
use roomcast_proto::limits::{Refusals, network_of};
use roomcast_proto::log_record::LogRecord;
use roomcast_proto::reader;
use std::cell::RefCell;
use wasm_bindgen::JsValue;

thread_local! {
    /// The clients without a valid token that a gateway has refused, by gateway and network. A
    /// flood of them then costs no requests to gateways.
    static REFUSALS: RefCell<Refusals> = RefCell::default();
}

impl Handler<'_> {
    /// `/socket.io/`, or `/engine.io/` in the conformance build.
    pub(super) async fn engineio(&self, protocol: Protocol) -> HandlerResult {
        self.check_origin("")?;
        if self.method == "OPTIONS" {
            return self.preflight();
        }
        self.call_engineio(protocol).await
    }

    async fn call_engineio(&self, protocol: Protocol) -> HandlerResult {
        let parameters = handshake::Parameters {
            version: self.query.get("EIO"),
            transport: self.query.get("transport"),
            sid: self.query.get("sid"),
        };
        let ask = match handshake::read(&self.method, parameters, self.is_upgrade()) {
            Ok(ask) => ask,
            Err(handshake::Error::Version)
                if protocol == Protocol::SocketIo && parameters.version == Some("3") =>
            {
                return self.refuse_engineio3(parameters);
            }
            Err(error) => return self.engineio_error(error),
        };
        let shard = match ask.session().map(|sid| self.shard_of_session(sid)) {
            None => self.random_shard()?,
            Some(Some(shard)) => shard,
            Some(None) => return self.engineio_error(handshake::Error::UnknownSid),
        };
        let connect_info = self.connect_info(protocol, &ask).await?;
        // The gateway reads the body, because only it has the limit of the session.
        let body = match &ask {
            Ask::Post { .. } => self.request.body().map(JsValue::from),
            _ => None,
        };
        let gateway = GatewayKind::EngineIo.name(shard);
        let stranger = self.stranger(&gateway, &connect_info, &ask);
        if let Some(stranger) = &stranger {
            REFUSALS
                .with_borrow_mut(|refusals| refusals.check(stranger, self.now))
                .map_err(|error| self.reject("rate", "", error))?;
        }
        let response = self
            .connect_to_gateway(&gateway, connect_info, Some(ask), body)
            .await?;
        if !matches!(response.status(), 429 | 503) {
            return Ok(response);
        }
        let (status, body) = read(&response, None).await.map_err(internal)?;
        if let Some(stranger) = stranger
            && let Ok(error) = reader::from_str(&body)
        {
            REFUSALS.with_borrow_mut(|refusals| refusals.add(stranger, error, self.now));
        }
        relay_text(status, body)
    }

    /// Returns the key in [`REFUSALS`] of a client that opens a session at a gateway without a
    /// valid token.
    fn stranger(&self, gateway: &str, client: &ConnectInfo, ask: &Ask) -> Option<String> {
        let address = client.address.as_deref()?;
        let is_stranger = ask.session().is_none() && client.identity.is_none();
        is_stranger.then(|| format!("{gateway} {}", network_of(address)))
    }

    /// Returns the number of the gateway that created a `sid`. Returns `None` if no gateway of
    /// this deployment has created it. If session ids have no signature, an invented one is
    /// recognised only by the number of its gateway.
    fn shard_of_session(&self, sid: &str) -> Option<usize> {
        let signer = &self.config.auth.signer;
        let shard = shard_of(sid).filter(|_| signer.verify(SignedId::Session, sid))?;
        (signer.has_key() || shard < self.config.gateway.shards).then_some(shard)
    }

    /// Returns the properties of the connection. Fails if the ticket of the request is not valid,
    /// or if its token or ticket cannot be checked at the moment. The client then reconnects
    /// automatically, with a new ticket if it has one.
    async fn connect_info(&self, protocol: Protocol, ask: &Ask) -> Result<ConnectInfo, Problem> {
        // The token of an existing session was verified when the session was opened.
        let opens = ask.session().is_none();
        let token = match opens {
            true => self.token(),
            false => None,
        };
        // A client without a valid token in the request can send one in its Socket.IO CONNECT.
        let (identity, error) = match token {
            Some(token) => match self.verify(&token).await {
                Ok(identity) => (Some(identity), None),
                // The client reconnects automatically, but not after a refused CONNECT.
                Err(error) if error.code == ErrorCode::Unavailable => {
                    return Err(self.reject("auth", "", error));
                }
                Err(error) => (None, Some(error)),
            },
            None if opens && self.query.get("ticket").is_some() => {
                (Some(self.authenticate_socket("").await?), None)
            }
            None => (None, None),
        };
        let recovery = match protocol {
            Protocol::SocketIo => self.recovery(ask),
            _ => Recovery::Off,
        };
        Ok(ConnectInfo {
            protocol,
            identity,
            error,
            address: self.header("cf-connecting-ip"),
            recovers: recovery == Recovery::On,
            may_recover: recovery == Recovery::Unproven,
        })
    }

    /// Returns the support of the client for connection state recovery.
    fn recovery(&self, ask: &Ask) -> Recovery {
        let (user_agent, origin, extensions) = (
            self.header("user-agent"),
            self.header("origin"),
            self.header("sec-websocket-extensions"),
        );
        let request = OpenRequest {
            recovery: self.query.get("recovery"),
            timestamp: self.query.get("t"),
            is_upgrade: matches!(ask, Ask::WebSocket { .. }),
            user_agent: user_agent.as_deref(),
            origin: origin.as_deref(),
            extensions: extensions.as_deref(),
        };
        request.recovery(self.now)
    }

    /// Answers a client of Engine.IO 3 so that its application gets an error that says what to
    /// do: see [`engineio3_packets`].
    fn refuse_engineio3(&self, parameters: handshake::Parameters<'_>) -> HandlerResult {
        let config = &self.config.gateway;
        let packets = engineio3_packets(config.namespaces.iter().map(|one| one.name.as_str()));
        let (is_websocket, is_new) = (
            parameters.transport == Some("websocket"),
            parameters.sid.is_none(),
        );
        let payload = match (self.method.as_str(), is_websocket) {
            ("GET", true) if self.is_upgrade() => {
                self.log_engineio3();
                return send_and_close(&packets, Disconnect::Malformed).map_err(internal);
            }
            ("GET", false) if is_new => {
                self.log_engineio3();
                engineio3_payload(&packets)
            }
            // The client reads the packets above, sends its CONNECT, and closes the session.
            ("GET", false) => engineio3_payload(&["1".to_owned()]),
            ("POST", false) => "ok".to_owned(),
            _ => return self.engineio_error(handshake::Error::Version),
        };
        let headers = [
            ("content-type", "text/plain; charset=UTF-8"),
            ("cache-control", "no-store"),
        ];
        respond(200, &headers, payload.into_bytes()).map_err(internal)
    }

    fn log_engineio3(&self) {
        let error = Error::bad_request("the client speaks Engine.IO 3 (Socket.IO 1 or 2)");
        self.log_reject(LogRecord::rejected(&error));
    }

    fn engineio_error(&self, error: handshake::Error) -> HandlerResult {
        let answer = Answer::error(error);
        self.log_reject(LogRecord::reject("malformed").with("code", answer.status));
        let headers = [("content-type", "application/json")];
        respond(answer.status, &headers, answer.body.into_bytes()).map_err(internal)
    }
}
