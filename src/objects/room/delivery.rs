//! Frames to the room's own sockets. A batch is sent as one JavaScript string that all
//! recipients share.

use super::lines::append_lines;
use super::{ActiveRoom, RoomObject};
use crate::runtime::Result;
use crate::runtime::object_state::{last_ping, object_state};
use crate::runtime::socket::ABNORMAL_CLOSURE;
use crate::runtime::time::now;
use js_sys::JsString;
use roomcast_room::{ConnId, Delivery, Output};
use std::collections::HashSet;
use std::rc::Rc;
use worker::{Request, Response, State};

/// The batch that was just stored.
pub(super) struct StoredBatch {
    pub(super) text: Rc<String>,
    /// The same text in JavaScript.
    pub(super) frame: JsString,
}

impl RoomObject {
    /// Handles an event for all connections: sends the line to the room's own sockets. Those that
    /// do not read lack it, as they lack other ephemeral events.
    pub(super) async fn broadcast(
        self: &Rc<Self>,
        name: Option<String>,
        mut request: Request,
    ) -> Result<Response> {
        let line = request.text().await?;
        self.host.with_active(name, |active, state| {
            // New sockets receive `connected` first.
            let mut out = Vec::new();
            active.room.flush(now(), &mut out);
            active.run(state, out);
            let frame = JsString::from(line.as_str());
            for conn in active.sockets.keys().collect::<Vec<_>>() {
                if !active.room.is_stalled(conn) {
                    active.send(state, conn, &frame, line.len());
                }
            }
        })?;
        self.continue_batch()?;
        Response::empty()
    }
}

impl ActiveRoom {
    /// Sends a frame of `bytes` bytes to a connection.
    pub(super) fn send(&mut self, state: &State, conn: ConnId, frame: &JsString, bytes: usize) {
        let Some(socket) = self.sockets.get(conn) else {
            // The connection is at a gateway, or has closed.
            let frame = String::from(frame);
            self.room.route(Output::Send { conn, frame });
            return;
        };
        let mut out = Vec::new();
        if socket.send_string(frame).is_err() {
            // The socket has closed, and its close event follows.
            let pinged = last_ping(state, socket);
            self.remove_socket(conn);
            self.room
                .disconnect(conn, ABNORMAL_CLOSURE, pinged, now(), &mut out);
        } else if self.room.sent(conn, bytes) {
            let last_ping = last_ping(state, socket);
            self.room.check_slow(conn, last_ping, now(), &mut out);
        }
        if !out.is_empty() {
            self.run(state, out);
        }
    }

    /// Sends a batch: first the custom frames, then the shared frame.
    pub(super) fn deliver(
        &mut self,
        state: &State,
        delivery: Delivery,
        stored: Option<StoredBatch>,
    ) {
        // The shared frame is usually the row that was stored, so its string is used again.
        let shared = delivery.shared.as_ref().map(|shared| match stored {
            Some(StoredBatch { text, frame }) if Rc::ptr_eq(&text, shared) => (frame, shared.len()),
            _ => (JsString::from(shared.as_str()), shared.len()),
        });
        let mut served = HashSet::with_capacity(delivery.custom.len());
        for custom in delivery.custom {
            served.insert(custom.conn);
            let mut frame = JsString::from(custom.private.as_str());
            if let Some((shared, _)) = &shared {
                for part in &custom.shared {
                    let part = shared.slice(part.start as u32, part.end as u32);
                    frame = append_lines(&frame, part);
                }
            }
            let length = frame.length() as usize;
            if length > 0 {
                self.send(state, custom.conn, &frame, length);
            }
        }
        let Some((frame, bytes)) = shared else {
            return;
        };
        let own = self.sockets.keys();
        let recipients =
            own.filter(|conn| !served.contains(conn) && self.room.receives(*conn, delivery.batch));
        for conn in recipients.collect::<Vec<_>>() {
            self.send(state, conn, &frame, bytes);
        }
        if !delivery.events.is_empty() {
            object_state(state).set_delivered(&(delivery.events.upto as f64).into());
        }
    }
}
