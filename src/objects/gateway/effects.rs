//! What the gateway wants done is done: sent, stored, closed, logged.

use super::restore::SPILLED;
use super::{Later, Live};
use crate::runtime::{self, fresh_id, now};
use js_sys::JsString;
use roomcast_gateway::{Credentials, Frame, Output, SocketId};
use roomcast_proto::log_record::LogRecord;
use worker::{Result, State};

/// The longest attachment in characters, of which each may take two of the
/// platform's 16,384 bytes. What is longer goes to storage.
const MAX_ATTACHMENT: usize = 8_000;

impl Live {
    /// Carries out what is to be done, and what comes of that.
    pub(super) fn settle(&mut self, state: &State) {
        loop {
            let out = self.gateway.settle(self.began);
            if out.is_empty() {
                return;
            }
            for output in out {
                if let Err(error) = self.run(state, output) {
                    self.log(LogRecord::error(error.to_string()));
                }
            }
        }
    }

    pub(super) fn run(&mut self, state: &State, output: Output) -> Result<()> {
        match output {
            Output::Send { socket, frame } => match frame {
                Frame::Text(text) => {
                    self.send(state, socket, &JsString::from(text.as_str()), text.len());
                }
                Frame::Binary(bytes) => self.send_bytes(state, socket, &bytes),
            },
            Output::Broadcast { sockets, text } => {
                let frame = JsString::from(text.as_str());
                for socket in sockets {
                    self.send(state, socket, &frame, text.len());
                }
            }
            Output::Close {
                socket,
                code,
                reason,
            } => {
                if let Some(socket) = self.displace(socket) {
                    runtime::close(&socket, code, reason);
                }
            }
            Output::Attach { socket, record } => self.attach(socket, &record)?,
            Output::Answer { poll, answer } => {
                if let Some(poll) = self.polls.remove(&poll) {
                    // A client that went away needs no answer.
                    let _ = poll.send(answer);
                }
            }
            Output::Forward { room } => self.later.push_back(Later::Forward(room)),
            Output::Save {
                client,
                user,
                gone,
                record,
            } => {
                let gone = gone.then_some(self.began);
                self.store.save(&client, &user, gone, &record)?;
            }
            Output::Forget { client } => self.store.forget(&client)?,
            Output::TrackPosition { key, at: Some(at) } => {
                self.reached
                    .set(&key.to_string().into(), &(at as f64).into());
            }
            Output::TrackPosition { key, at: None } => {
                self.reached.delete(&key.to_string().into());
            }
            Output::StorePosition { room, at } => self.store.set_position(&room, at)?,
            Output::Find { client, pid, user } => {
                self.later.push_back(Later::Find { client, pid, user });
            }
            Output::Authenticate(it) => match &it.credentials {
                Credentials::Token(token) if !self.config.auth.is_ready(token, self.began) => {
                    self.later.push_back(Later::Authenticate(it));
                }
                _ => self.authenticate(it, Ok(())),
            },
            Output::Log(entry) => self.log(entry),
        }
        Ok(())
    }

    pub(super) fn attach(&mut self, place: SocketId, record: &str) -> Result<()> {
        let Some(socket) = self.sockets.get(place) else {
            return Ok(());
        };
        if record.len() <= MAX_ATTACHMENT {
            return Ok(socket.attach(&JsString::from(record))?);
        }
        let key = fresh_id();
        self.store.spill(&key, record)?;
        Ok(socket.attach(&JsString::from(format!("{SPILLED}{key}").as_str()))?)
    }

    pub(super) fn send(&mut self, state: &State, place: SocketId, frame: &JsString, bytes: usize) {
        if let Some(socket) = self.sockets.get(place) {
            let sent = socket.send_string(frame);
            self.sent(state, place, sent.is_ok(), bytes);
        }
    }

    pub(super) fn send_bytes(&mut self, state: &State, place: SocketId, bytes: &[u8]) {
        if let Some(socket) = self.sockets.get(place) {
            let sent = socket.send_with_u8_array(bytes);
            self.sent(state, place, sent.is_ok(), bytes.len());
        }
    }

    pub(super) fn sent(&mut self, state: &State, place: SocketId, sent: bool, bytes: usize) {
        if !sent {
            // Closed under our hands: its close event is on the way.
            self.displace(place);
            self.gateway.server.engine.closed(place, 1006);
        } else if self.gateway.server.engine.sent(place, bytes)
            && let Some(socket) = self.sockets.get(place)
        {
            let heard = runtime::pinged(state, socket);
            self.gateway
                .server
                .engine
                .check_slow(place, heard, self.began);
        }
    }

    pub(super) fn log(&self, entry: LogRecord) {
        if entry.level >= self.config.worker.log_level {
            let now = now();
            let entry = entry.with("gateway", self.name.as_str());
            let entry = entry.took(now.saturating_sub(self.began));
            worker::console_log!("{}", entry.line(now));
        }
    }
}
