//! The outputs of the core, and a failure of storage.

use super::ActiveRoom;
use super::delivery::StoredBatch;
use super::pages::PageRequest;
use super::store::is_full;
use super::tokens::PendingToken;
use crate::runtime::Result;
use crate::runtime::failpoint::{self, Point};
use crate::runtime::object_state::object_state;
use crate::runtime::time::now;
use js_sys::JsString;
use roomcast_proto::disconnect::Disconnect;
use roomcast_proto::error::{Error as ClientError, ErrorCode};
use roomcast_proto::log_record::LogRecord;
use roomcast_room::ConnId;
use roomcast_room::{Change, Output};
use worker::{Error, State};

/// The message of the error to senders if storage is full and nothing can be deleted.
const STORAGE_FULL: &str = "the storage of the room is full, try again later";

impl ActiveRoom {
    /// Carries out outputs, in order.
    pub(super) fn run(&mut self, state: &State, out: Vec<Output>) {
        let mut stored: Option<StoredBatch> = None;
        let mut outputs = out.into_iter();
        while let Some(output) = outputs.next() {
            let Some(output) = self.room.route(output) else {
                continue;
            };
            match output {
                Output::Store(change) => {
                    let body = match &change {
                        Change::Append(row) => JsString::from(row.body.as_str()),
                        _ => JsString::from(""),
                    };
                    if let Err(error) = self.store(&change, &body) {
                        self.log(LogRecord::error(format!("storing failed: {error}")));
                        let error = match is_full(&error) {
                            true => ClientError::new(ErrorCode::Internal, STORAGE_FULL),
                            false => ClientError::internal(),
                        };
                        return self.fail(outputs, &error);
                    }
                    if let Change::Wipe { .. } = change {
                        object_state(state).set_delivered(&0.into());
                        if !self.store.exists() {
                            // The alarm was deleted with the storage.
                            self.clock.alarm_fired();
                        }
                        self.portions.clear();
                    }
                    if let Change::Append(row) = change {
                        failpoint::panics(Point::Stored);
                        stored = Some(StoredBatch {
                            text: row.body,
                            frame: body,
                        });
                    }
                }
                Output::Send { conn, frame } => {
                    self.send(state, conn, &JsString::from(frame.as_str()), frame.len());
                }
                Output::Deliver(delivery) => self.deliver(state, delivery, stored.take()),
                Output::Page { conn, id, query } => {
                    self.pages.push(PageRequest { conn, id, query });
                }
                Output::Attach { conn } => self.attach(conn),
                // These are only for connections at gateways, and `Room::route` has handled
                // them.
                Output::Subscribed { .. }
                | Output::CatchUp { .. }
                | Output::Unsubscribed { .. } => {}
                Output::Close { conn, reason } => self.close(conn, reason),
                Output::Reply { call, answers } => self.calls.answer(call, answers),
                Output::Authenticate {
                    connection,
                    id,
                    token,
                } => {
                    let ready = self.config.auth.is_ready(&token, now());
                    let pending = PendingToken {
                        connection,
                        id,
                        token,
                    };
                    match ready {
                        true => self.authenticate(state, pending),
                        false => self.pending_tokens.push(pending),
                    }
                }
                Output::Log(record) => self.log(record),
            }
        }
    }

    /// Stores a change. If storage is full, deletes the oldest part of the log and tries once more.
    fn store(&mut self, change: &Change, body: &JsString) -> Result<()> {
        match self.store.apply(change, body) {
            Err(error) if is_full(&error) && self.free_storage() => {
                let record = LogRecord::error("storage is full: the oldest events were deleted");
                self.log(record.with("upto", self.room.floor()));
                self.store.apply(change, body)
            }
            result => result,
        }
    }

    /// Handles a failure of storage: `rest` are the outputs after the failed change. Answers
    /// all waiting commands and calls with `error`, and carries out only the closes among the outputs. The
    /// host drops the memory after the event.
    fn fail(&mut self, rest: impl Iterator<Item = Output>, error: &ClientError) {
        let mut lost: Vec<Output> = rest.collect();
        lost.extend(self.pages.drain());
        let tokens = std::mem::take(&mut self.pending_tokens);
        lost.extend(tokens.into_iter().map(|token| Output::Authenticate {
            connection: token.connection,
            id: token.id,
            token: token.token,
        }));
        for output in self.room.fail(lost, error, now()) {
            match self.room.route(output) {
                Some(Output::Send { conn, frame }) => {
                    if let Some(socket) = self.sockets.get(conn) {
                        // Fails only if the client has disconnected.
                        let _ = socket.send_string(&JsString::from(frame.as_str()));
                    }
                }
                Some(Output::Close { conn, reason }) => self.close(conn, reason),
                Some(Output::Store(change)) => {
                    if let Err(error) = self.store.apply(&change, &JsString::from("")) {
                        self.log(LogRecord::error(format!("storing failed: {error}")));
                    }
                }
                _ => {}
            }
        }
        self.calls.fail(error);
        self.storage_failed = true;
    }

    /// Writes the attachment of a socket. Extends the registration, because the registry
    /// delivers revocations only to registered rooms.
    fn attach(&mut self, conn: ConnId) {
        let (Some(attachment), Some(socket)) = (self.room.attachment(conn), self.sockets.get(conn))
        else {
            return;
        };
        if self.config.auth.revoked.is_on() {
            self.registration.cover(attachment.expires, self.began);
        }
        let attached = serde_json::to_string(&attachment)
            .map_err(Error::from)
            .and_then(|json| Ok(socket.attach(&JsString::from(json.as_str()))?));
        if let Err(error) = attached {
            self.log(LogRecord::error(format!("attachment failed: {error}")));
        }
    }

    /// Closes the socket of a connection that the room has removed.
    fn close(&mut self, conn: ConnId, why: Disconnect) {
        if let Some(socket) = self.remove_socket(conn) {
            socket.close_with(why.code(), why.reason());
        }
    }

    /// Writes a log record.
    pub(super) fn log(&mut self, record: LogRecord) {
        if record.level < self.config.worker.log_level {
            return;
        }
        let rows = self.store.take_rows_written();
        let record = if rows > 0 {
            record.with("rowsWritten", rows)
        } else {
            record
        };
        let now = now();
        let record = record
            .room(self.room.name())
            .took(now.saturating_sub(self.began));
        worker::console_log!("{}", record.line(now));
    }
}
