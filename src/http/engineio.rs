//! `/socket.io/`: requests of Engine.IO, by polling or by WebSocket. The Worker finds the gateway
//! that has the session and sends the request there.

use super::entry::Handler;
use super::objects::relay_text;
use super::problem::Problem;
use super::response::{HandlerResult, internal, respond};
use crate::runtime::rpc::read;
use roomcast_auth::SignedId;
use roomcast_gateway::handshake::{self, Ask, shard_of};
use roomcast_gateway::{Answer, ConnectInfo, Protocol};
use roomcast_proto::error::ErrorCode;
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
            Err(error) => return self.engineio_error(error),
        };
        let sid = match &ask {
            Ask::WebSocket { sid } => sid.as_deref(),
            Ask::Poll { sid } | Ask::Post { sid } => Some(sid.as_str()),
            Ask::Open => None,
        };
        let shard = match sid.map(|sid| self.shard_of_session(sid)) {
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
        let opens = matches!(ask, Ask::Open | Ask::WebSocket { sid: None });
        (opens && client.identity.is_none()).then(|| format!("{gateway} {}", network_of(address)))
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
        let opens = matches!(ask, Ask::Open | Ask::WebSocket { sid: None });
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
        let user_agent = self.header("user-agent").unwrap_or_default();
        Ok(ConnectInfo {
            protocol,
            identity,
            error,
            address: self.header("cf-connecting-ip"),
            // The Python client passes the offset of an event to the handler as an additional
            // argument, and the handler then fails.
            recovers: protocol == Protocol::SocketIo && !user_agent.starts_with("Python"),
        })
    }

    fn engineio_error(&self, error: handshake::Error) -> HandlerResult {
        let answer = Answer::error(error);
        self.log_reject(LogRecord::reject("malformed").with("code", answer.status));
        let headers = [("content-type", "application/json")];
        respond(answer.status, &headers, answer.body.into_bytes()).map_err(internal)
    }
}
