//! Requests of Engine.IO: which gateway each is for, and what it says of who sends
//! it.

use super::Call;
use super::answer::{Handled, answer_problem, failed};
use super::objects::relay;
use crate::runtime::rpc::gateways::GatewayKind;
use roomcast_gateway::handshake::{self, Ask, shard_of};
use roomcast_gateway::{Answer, ConnectInfo, Protocol};
use roomcast_proto::log_record::LogRecord;
use wasm_bindgen::JsValue;
use worker::ResponseBuilder;

impl Call<'_> {
    /// Engine.IO, with or without Socket.IO on it.
    pub(super) async fn engine(self, protocol: Protocol, host: &str) -> Handled {
        self.check_origin("", host)?;
        if self.method == "OPTIONS" {
            return self.with_cors(ResponseBuilder::new().with_status(204).empty());
        }
        let upgrade = self.is_upgrade();
        let parameters = handshake::Parameters {
            version: self.query.get("EIO"),
            transport: self.query.get("transport"),
            sid: self.query.get("sid"),
        };
        let ask = match handshake::read(&self.method, parameters, upgrade) {
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
        let (identity, error) = match self.token_given().filter(|_| opens) {
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
                Err(error) => (None, Some(error)),
            },
        };
        let agent = self.header("user-agent").unwrap_or_default();
        let door = ConnectInfo {
            protocol,
            identity,
            error,
            address: self.header("cf-connecting-ip"),
            // Clients for Python would hand the offset to their handlers, which
            // do not expect it.
            recovers: protocol == Protocol::SocketIo && !agent.starts_with("Python"),
        };
        // The gateway reads the body, for it knows how much the session may send.
        let body = match &ask {
            Ask::Post { .. } => self.request.body().map(JsValue::from),
            _ => None,
        };
        let response = self
            .visit(&GatewayKind::EngineIo.name(shard), door, Some(ask), body)
            .await?;
        match response.status() {
            101 => Ok(response),
            429 => relay(&response).await,
            _ => self.with_cors(response),
        }
    }

    fn engine_error(&self, error: handshake::Error) -> Handled {
        let answer = Answer::error(error);
        self.log(LogRecord::reject("malformed").with("code", answer.status));
        let response = ResponseBuilder::new()
            .with_status(answer.status)
            .with_header("content-type", "application/json")
            .map_err(failed)?;
        self.with_cors(response.fixed(answer.body.into_bytes()))
    }
}
