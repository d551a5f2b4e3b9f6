//! CONNECT: a client asks to connect to a namespace, and the application accepts or
//! refuses it.
//!
//! A session without a valid token is limited: it can send [`MAX_CONNECTS`] CONNECTs,
//! which the application handles one at a time, and it must connect to a namespace in
//! time ([`super::session`]).

use super::event::ConnectionEvent;
use super::receive::Malformed;
use super::server::SocketIoServer;
use super::session::{Namespace, PendingConnect, SocketIoSession};
use crate::ids::SessionId;
use engineioxide_core::Packet as EnginePacket;
use roomcast_proto::access::Identity;
use roomcast_proto::answer::{ConnectError, to_json};
use roomcast_proto::disconnect::Disconnect;
use roomcast_proto::error::Error;
use roomcast_proto::raw_object::RawObject;
use roomcast_proto::time::Millis;
use socketioxide_core::Value;
use socketioxide_core::packet::Packet;
use std::rc::Rc;

/// Maximum number of CONNECTs of a connection without a valid token (CONTRACT,
/// Authentication).
const MAX_CONNECTS: u32 = 5;

impl SocketIoServer {
    /// Handles a CONNECT. A client without a valid token can send [`MAX_CONNECTS`] in
    /// total; the application handles one at a time, and the others wait.
    pub(super) fn receive_connect(
        &mut self,
        id: SessionId,
        nsp: String,
        auth: String,
        now: Millis,
    ) -> Result<(), Malformed> {
        if !self.count_connect(id, now)? {
            return Ok(());
        }
        self.last_connect += 1;
        let number = self.last_connect;
        let session = self.session_mut(id).ok_or(Malformed)?;
        RawObject::parse(&auth, "`auth`").map_err(|_| Malformed)?;
        let SocketIoSession {
            namespaces,
            connecting,
            ..
        } = session;
        // Clients send a CONNECT twice if their `connect` is called twice.
        let is_repeated = namespaces.iter().any(|namespace| namespace.name == nsp)
            || connecting.iter().any(|connect| connect.nsp == nsp);
        if is_repeated {
            return Ok(());
        }
        connecting.push(PendingConnect {
            bytes: nsp.len() + auth.len(),
            nsp,
            number,
            auth: Some(auth),
        });
        self.start_connects(id);
        Ok(())
    }

    /// Counts a CONNECT. If the client has sent too many, closes the session and returns
    /// `false`.
    pub(super) fn count_connect(&mut self, id: SessionId, now: Millis) -> Result<bool, Malformed> {
        if !self.engine.count_overhead(id, now) {
            return Ok(false);
        }
        let is_authenticated = self.engine.is_authenticated(id);
        let session = self.session_mut(id).ok_or(Malformed)?;
        if !is_authenticated {
            session.connects += 1;
            if session.connects > MAX_CONNECTS {
                self.engine.close_session(id, Disconnect::TooFast);
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Queues the events for the CONNECTs that the application can handle now.
    pub(super) fn start_connects(&mut self, id: SessionId) {
        // Called after each change of the CONNECTs that wait.
        self.authentication_changed(id);
        let one_at_a_time = !self.engine.is_authenticated(id);
        let Some(session) = self.session_mut(id) else {
            return;
        };
        let mut started = Vec::new();
        for connect in &mut session.connecting {
            if let Some(auth) = connect.auth.take() {
                started.push(ConnectionEvent::Connect {
                    session: id,
                    nsp: connect.nsp.clone(),
                    number: connect.number,
                    auth,
                });
            }
            if one_at_a_time {
                break;
            }
        }
        for event in started {
            self.push_event(event);
        }
    }

    /// Returns `true` if the CONNECT with this number waits for its answer.
    pub fn is_connecting(&self, id: SessionId, number: u64) -> bool {
        self.session(id).is_some_and(|session| {
            let mut connecting = session.connecting.iter();
            connecting.any(|connect| connect.number == number)
        })
    }

    /// Accepts a CONNECT: the client is in the namespace with the token of `identity`.
    /// `data` is a JSON object. Does nothing and returns `false` if no CONNECT for the
    /// namespace is waiting.
    pub fn accept(
        &mut self,
        id: SessionId,
        nsp: &str,
        identity: Option<Rc<Identity>>,
        data: String,
    ) -> bool {
        let Some(state) = self.session_mut(id) else {
            return false;
        };
        let index = state.connecting.iter().position(|one| one.nsp == nsp);
        let Some(index) = index else {
            return false;
        };
        let name = state.connecting.remove(index).nsp;
        state.namespaces.push(Namespace { name, identity });
        state.connect_by = None;
        state.extended = false;
        state.connects = 0;
        let data = Some(Value::Str(data.into(), None));
        self.authentication_changed(id);
        self.encode_and_send(id, Packet::connect(nsp.to_owned(), data));
        self.attach(id);
        self.start_connects(id);
        true
    }

    /// Refuses a CONNECT. `data` is a JSON object. The refusals of a connection without a
    /// valid token count against its address. The first one does not count, because a
    /// client with an expired token sends it once when it reconnects.
    pub fn refuse(&mut self, id: SessionId, nsp: &str, data: &str) {
        let Some(session) = self.session_mut(id) else {
            return;
        };
        session.connecting.retain(|connect| connect.nsp != nsp);
        if session.connects > 1 && !self.engine.is_authenticated(id) {
            self.engine.count_refused_connect(id);
        }
        // The library's packet has a message and no further fields.
        let nsp = match nsp {
            "/" => String::new(),
            nsp => format!("{nsp},"),
        };
        self.engine
            .send_packet(id, EnginePacket::Message(format!("4{nsp}{data}").into()));
        self.start_connects(id);
    }

    /// Disconnects a client from a namespace with a DISCONNECT packet. Clients do not
    /// reconnect automatically after it. If this was the last namespace of the session,
    /// closes the session. If the CONNECT of the client was not accepted yet, refuses it
    /// instead.
    pub fn expel(&mut self, id: SessionId, nsp: &str, why: Disconnect) {
        let Some(session) = self.session_mut(id) else {
            return;
        };
        let mut connecting = session.connecting.iter();
        if connecting.any(|connect| connect.nsp == nsp) {
            let error = Error::new(why.error_code(), why.reason());
            return self.refuse(id, nsp, &to_json(&ConnectError::from(&error)));
        }
        let namespaces = &mut session.namespaces;
        namespaces.retain(|namespace| namespace.name != nsp);
        let is_last = namespaces.is_empty();
        self.authentication_changed(id);
        self.encode_and_send(id, Packet::disconnect(nsp.to_owned()));
        self.attach(id);
        if is_last {
            self.engine.close_session(id, why);
        }
    }
}
