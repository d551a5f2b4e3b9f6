//! What the room wants done is done: stored, sent, replayed, closed, logged.

use super::{Live, Portion, Unready};
use crate::objects::revocations;
use crate::runtime::failpoint::{self, Point};
use crate::runtime::{self, now};
use js_sys::JsString;
use roomcast_proto::access::TokenId;
use roomcast_proto::disconnect::Disconnect;
use roomcast_proto::error::Error as ClientError;
use roomcast_proto::framing;
use roomcast_proto::log_record::LogRecord;
use roomcast_proto::log_text::slice;
use roomcast_room::catch_up::PORTION_BYTES;
use roomcast_room::{Change, ConnId, Delivery, Output, SeqRange};
use std::collections::HashSet;
use std::rc::Rc;
use worker::{Error, Result, State};

/// Length of a frame of replay, in UTF-16 units: large, for each frame costs,
/// but far below what WebSocket libraries take.
const REPLAY_FRAME: u32 = 256 * 1024;

impl Live {
    /// Carries out what the room wants done, in order.
    pub(super) fn run(&mut self, state: &State, out: Vec<Output>) {
        let mut stored: Option<(Rc<String>, JsString)> = None;
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
                    if let Err(error) = self.store.apply(&change, &body) {
                        self.log(LogRecord::error(format!("storing failed: {error}")));
                        return self.fail(outputs);
                    }
                    if let Change::Wipe { .. } = change {
                        runtime::ext(state).set_told(&0.into());
                    }
                    if let Change::Append(row) = change {
                        failpoint::panics(Point::Stored);
                        stored = Some((row.body, body));
                    }
                }
                Output::Send { conn, frame } => {
                    self.send(state, conn, &JsString::from(frame.as_str()), frame.len());
                }
                Output::Deliver(delivery) => self.deliver(state, delivery, stored.take()),
                Output::Replay { conn, range } => {
                    if let Err(error) = self.replay(state, conn, range) {
                        self.log(LogRecord::error(format!("replay failed: {error}")));
                        return self.fail(outputs);
                    }
                }
                Output::Page { conn, id, query } => self.pages.push_back((conn, id, query)),
                Output::Attach { conn } => self.attach(conn),
                // For connections at gateways: the room has routed them.
                Output::Subscribed { .. }
                | Output::CatchUp { .. }
                | Output::Unsubscribed { .. } => {}
                Output::Close { conn, reason } => self.close(conn, reason),
                Output::Reply { call, answers } => {
                    if let Some(call) = self.calls.remove(&call) {
                        // A caller that went away needs no answer.
                        let _ = call.send(Ok(answers));
                    }
                }
                Output::Authenticate {
                    connection,
                    id,
                    token,
                } => {
                    let ready = self.config.auth.is_ready(&token, now());
                    let unready = Unready {
                        connection,
                        id,
                        token,
                    };
                    match ready {
                        true => self.authenticate(state, unready, Ok(())),
                        false => self.unready.push(unready),
                    }
                }
                Output::Log(entry) => self.log(entry),
            }
        }
    }

    /// Judges the token of a `refreshToken`; `ready` is an error where what it takes
    /// cannot be had.
    pub(super) fn authenticate(
        &mut self,
        state: &State,
        unready: Unready,
        ready: std::result::Result<(), ClientError>,
    ) {
        let now = now();
        let identity = ready.and_then(|()| self.config.auth.verify(&unready.token, now));
        let mut out = Vec::new();
        let (connection, id) = (&unready.connection, unready.id);
        self.room
            .authenticated(connection, id, identity, now, &mut out);
        self.run(state, out);
    }

    /// Storing failed: nothing that waited for it is true. Says so to all that
    /// wait; the room is read from storage again (`broken`).
    pub(super) fn fail(&mut self, rest: impl Iterator<Item = Output>) {
        for output in rest {
            match output {
                Output::Deliver(delivery) => {
                    for ack in delivery.acked {
                        let output = Output::Send {
                            conn: ack.conn,
                            frame: framing::error(Some(ack.id), &ClientError::internal()),
                        };
                        if let Some(Output::Send { conn, frame }) = self.room.route(output)
                            && let Some(socket) = self.sockets.get(conn)
                        {
                            // One that is gone needs no answer.
                            let _ = socket.send_string(&JsString::from(frame.as_str()));
                        }
                    }
                }
                close @ Output::Close { .. } => match self.room.route(close) {
                    Some(Output::Close { conn, reason }) => self.close(conn, reason),
                    Some(Output::Store(change)) => {
                        if let Err(error) = self.store.apply(&change, &JsString::from("")) {
                            self.log(LogRecord::error(format!("storing failed: {error}")));
                        }
                    }
                    _ => {}
                },
                _ => {}
            }
        }
        self.calls.clear();
        self.broken = true;
    }

    pub(super) fn attach(&mut self, conn: ConnId) {
        let (Some(attachment), Some(socket)) = (self.room.attachment(conn), self.sockets.get(conn))
        else {
            return;
        };
        // Rooms with sockets are told of revocations.
        let until = attachment.expires;
        if self.config.auth.revoked.is_on() && self.registered < until {
            self.registered = revocations::registration(until);
            self.unregistered = Some(self.registered);
        }
        let attached = serde_json::to_string(&attachment)
            .map_err(Error::from)
            .and_then(|json| Ok(socket.attach(&JsString::from(json.as_str()))?));
        if let Err(error) = attached {
            self.log(LogRecord::error(format!("attachment failed: {error}")));
        }
    }

    pub(super) fn send(&mut self, state: &State, conn: ConnId, frame: &JsString, bytes: usize) {
        let Some(socket) = self.sockets.get(conn) else {
            // At a gateway, or gone.
            let frame = String::from(frame);
            self.room.route(Output::Send { conn, frame });
            return;
        };
        let mut out = Vec::new();
        if socket.send_string(frame).is_err() {
            // Closed under our hands: its close event is on the way.
            self.displace(conn);
            self.room.disconnect(conn, 1006, now(), &mut out);
        } else if self.room.sent(conn, bytes) {
            let pinged = runtime::pinged(state, socket);
            self.room.check_slow(conn, pinged, now(), &mut out);
        }
        if !out.is_empty() {
            self.run(state, out);
        }
    }

    pub(super) fn deliver(
        &mut self,
        state: &State,
        delivery: Delivery,
        stored: Option<(Rc<String>, JsString)>,
    ) {
        let text = delivery.shared;
        // Usually the shared frame is the row that was stored: one string serves both.
        let shared = text.as_ref().map(|shared| match stored {
            Some((body, frame)) if Rc::ptr_eq(&body, shared) => (frame, shared.len()),
            _ => (JsString::from(shared.as_str()), shared.len()),
        });
        let mut served = HashSet::with_capacity(delivery.custom.len());
        for custom in delivery.custom {
            served.insert(custom.conn);
            let mut frame = JsString::from(custom.private.as_str());
            if let Some((shared, _)) = &shared {
                for part in &custom.shared {
                    let part = shared.slice(part.start as u32, part.end as u32);
                    frame = if frame.length() == 0 {
                        part
                    } else {
                        frame.concat(&self.line_break).concat(&part)
                    };
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
        let live =
            own.filter(|conn| !served.contains(conn) && self.room.receives(*conn, delivery.batch));
        for conn in live.collect::<Vec<_>>() {
            self.send(state, conn, &frame, bytes);
        }
        if !delivery.events.is_empty() {
            runtime::ext(state).set_told(&(delivery.events.upto as f64).into());
        }
    }

    /// Sends what is stored as it is stored, in large frames.
    pub(super) fn replay(&mut self, state: &State, conn: ConnId, range: SeqRange) -> Result<()> {
        let frames = match &self.replay {
            Some((sent, frames)) if *sent == range => frames.clone(),
            _ => {
                let frames = Rc::new(self.frames(range)?);
                self.replay = Some((range, frames.clone()));
                frames
            }
        };
        for (_, frame) in frames.iter() {
            self.send(state, conn, frame, frame.length() as usize);
        }
        Ok(())
    }

    /// Returns the next portion of the log at the start of `range`: its last event, and
    /// its text.
    pub(super) fn portion(&self, range: SeqRange) -> Result<Portion> {
        let SeqRange { after, upto } = range;
        let (mut last, mut text) = (after, JsString::from(""));
        self.store
            .rows_while(after, upto, |first, last_of_row, body| {
                let body = if first > after && last_of_row <= upto {
                    body
                } else {
                    JsString::from(slice(first, &String::from(&body), after, upto))
                };
                text = match text.length() {
                    0 => body,
                    _ => text.concat(&self.line_break).concat(&body),
                };
                last = last_of_row.min(upto);
                (text.length() as usize) < PORTION_BYTES
            })?;
        if last == after {
            return Err(Error::RustError(format!(
                "the log lacks event {}",
                after + 1
            )));
        }
        Ok((last, text))
    }

    pub(super) fn frames(&self, range: SeqRange) -> Result<Vec<Portion>> {
        let SeqRange { after, upto } = range;
        let mut frames = Vec::new();
        let mut frame: Option<JsString> = None;
        self.store.rows(after, upto, |first, last, body| {
            let body = if first > after && last <= upto {
                body
            } else {
                let text = String::from(&body);
                JsString::from(slice(first, &text, after, upto))
            };
            let joined = match frame.take() {
                Some(frame) => frame.concat(&self.line_break).concat(&body),
                None => body,
            };
            if joined.length() >= REPLAY_FRAME {
                frames.push((last.min(upto), joined));
            } else {
                frame = Some(joined);
            }
        })?;
        frames.extend(frame.map(|frame| (upto, frame)));
        Ok(frames)
    }

    /// Answers one of those who asked for a page. To read it may take as long as
    /// a hundred messages do, so who asks for many at once gets one a turn.
    pub(super) fn next_page(&mut self, state: &State) {
        let Some((conn, id, query)) = self.pages.pop_front() else {
            return;
        };
        let answer = if !self.room.is_joined(conn) {
            framing::error(Some(id), &ClientError::not_joined())
        } else {
            match self.store.page(query, self.room.floor()) {
                Ok(page) => {
                    let page = page.finish(self.room.bounds().head, self.room.epoch());
                    self.room.page_sent(conn, page.len());
                    framing::ack(id, &page)
                }
                Err(error) => {
                    self.log(LogRecord::error(format!("reading failed: {error}")));
                    framing::error(Some(id), &ClientError::internal())
                }
            }
        };
        self.send(state, conn, &JsString::from(answer.as_str()), answer.len());
    }

    /// Closes the socket of a connection that is of the room no more.
    pub(super) fn close(&mut self, conn: ConnId, why: Disconnect) {
        if let Some(socket) = self.displace(conn) {
            runtime::close(&socket, why.code(), why.reason());
        }
    }

    /// Closes what is there by a token that was revoked. Whether any sockets
    /// are left.
    pub(super) fn enforce(&mut self, state: &State) -> bool {
        let mut out = Vec::new();
        let (now, revoked) = (now(), &self.config.auth.revoked);
        let is_revoked = |user: &str, token: &TokenId| revoked.covers(user, token, now);
        let left = self.room.close_revoked(is_revoked, now, &mut out);
        self.run(state, out);
        left
    }

    pub(super) fn log(&mut self, entry: LogRecord) {
        if entry.level < self.config.worker.log_level {
            return;
        }
        let rows = self.store.take_rows_written();
        let entry = if rows > 0 {
            entry.with("rowsWritten", rows)
        } else {
            entry
        };
        let now = now();
        let entry = entry
            .room(self.room.name())
            .took(now.saturating_sub(self.began));
        worker::console_log!("{}", entry.line(now));
    }
}
