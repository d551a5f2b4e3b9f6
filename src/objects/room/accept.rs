//! Sockets that open and close.

use super::{ActiveRoom, RoomObject, restore};
use crate::runtime::Result;
use crate::runtime::memory;
use crate::runtime::object_state::last_ping;
use crate::runtime::rpc::refuse;
use crate::runtime::socket::{Socket, upgrade_response};
use crate::runtime::time::now;
use roomcast_proto::error::Error as ClientError;
use roomcast_proto::log_record::LogRecord;
use roomcast_room::ConnId;
use roomcast_room::ConnectRequest;
use std::rc::Rc;
use wasm_bindgen::JsCast;
use worker::{Error, WebSocketPair};

impl RoomObject {
    /// Accepts a socket, or refuses it. Returns the response to the upgrade request.
    pub(super) fn accept(
        self: &Rc<Self>,
        name: Option<String>,
        connect: ConnectRequest,
    ) -> Result<web_sys::Response> {
        let response = self.host.with_active(name, |active, state| {
            active.apply_retention();
            let now = now();
            // The room may know revocations that the Worker has not fetched yet.
            let revoked = &active.config.auth.revoked;
            let admitted = match revoked.covers(&connect.user, &connect.token, now) {
                true => Err(ClientError::unauthorized("the token was revoked")),
                false => memory::admit(active.config.worker.max_object_bytes)
                    .and_then(|()| active.room.admit(&connect, now)),
            };
            if let Err(error) = admitted {
                active.log(LogRecord::rejected(&error).user(&connect.user));
                return Ok(refuse(&error)?.into());
            }
            let pair = WebSocketPair::new()?;
            state
                .as_raw()
                .accept_websocket(pair.server.as_ref())
                .map_err(Error::from)?;
            let mut out = Vec::new();
            let sockets = &active.sockets;
            let last_ping = |conn: ConnId| last_ping(state, sockets.get(conn)?);
            let conn = active.room.connect(connect, last_ping, now, &mut out);
            let socket = pair.server.as_ref().clone().unchecked_into();
            active.sockets.add(conn, socket);
            active.run(state, out);
            upgrade_response(pair.client.as_ref())
        })??;
        self.continue_batch()?;
        Ok(response)
    }

    /// Handles the end of a socket.
    pub(super) fn closed(self: &Rc<Self>, socket: &Socket, code: u16) -> Result<()> {
        self.host.with_active(None, |active, state| {
            // A socket that closed during hibernation was not open when the room was restored.
            let conn = socket.key().or_else(|| {
                let attachment = restore::attachment(socket)?;
                let conn = active.room.restore_connection(attachment, now());
                active.sockets.add(conn, socket.clone());
                Some(conn)
            });
            if let Some(conn) = conn {
                let pinged = last_ping(state, socket);
                active.remove_socket(conn);
                let mut out = Vec::new();
                active.room.disconnect(conn, code, pinged, now(), &mut out);
                active.run(state, out);
            }
        })?;
        self.start_background_work();
        Ok(())
    }
}

impl ActiveRoom {
    /// Removes a socket and its queued pages.
    pub(super) fn remove_socket(&mut self, conn: ConnId) -> Option<Socket> {
        self.pages.remove(conn);
        self.sockets.remove(conn)
    }
}
