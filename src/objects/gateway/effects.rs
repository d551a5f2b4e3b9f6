//! The outputs of the core, and frames to sockets.

use super::ActiveGateway;
use super::attachment::{Attachment, MAX_ATTACHMENT};
use super::work::Work;
use crate::runtime::Result;
use crate::runtime::ids::fresh_id;
use crate::runtime::memory;
use crate::runtime::object_state::last_ping;
use crate::runtime::socket::{ABNORMAL_CLOSURE, Socket};
use crate::runtime::time::now;
use js_sys::JsString;
use roomcast_gateway::{AuthRequest, Credentials, Frame, Output, SocketId};
use roomcast_proto::log_record::LogRecord;
use worker::State;

impl ActiveGateway {
    /// Passes the queued events to the application and carries out the outputs, until there
    /// are none.
    pub(super) fn drain_events(&mut self, state: &State) {
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

    fn run(&mut self, state: &State, output: Output) -> Result<()> {
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
                if let Some(socket) = self.remove_socket(socket)? {
                    socket.close_with(code, reason);
                }
            }
            Output::Attach { socket, record } => self.attach(socket, &record)?,
            Output::Answer { poll, answer } => {
                if let Some(poll) = self.polls.remove(&poll) {
                    // Fails only if the client has disconnected.
                    let _ = poll.send(answer);
                }
            }
            Output::Forward { room } => self.work.push(Work::Forward(room)),
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
                self.positions
                    .set(&key.to_string().into(), &(at as f64).into());
            }
            Output::TrackPosition { key, at: None } => {
                self.positions.delete(&key.to_string().into());
            }
            Output::StorePosition { key, at: Some(at) } => self.store.set_position(&key, at)?,
            Output::StorePosition { key, at: None } => self.store.forget_position(&key)?,
            Output::Clean => {
                let deleted = self.store.delete_gone(self.began)?;
                self.gateway.cleaned(deleted, self.began);
            }
            Output::Find { client, pid, user } => {
                self.work.push(Work::Find { client, pid, user });
            }
            Output::Authenticate(request) => {
                let admitted = match request.request {
                    AuthRequest::Connect { .. } => {
                        memory::admit(self.config.worker.max_object_bytes)
                    }
                    _ => Ok(()),
                };
                match (admitted, &request.credentials) {
                    (Err(error), _) => {
                        self.gateway
                            .authenticated(request.request, Err(error), self.began);
                    }
                    (_, Credentials::Token(token))
                        if !self.config.auth.is_ready(token, self.began) =>
                    {
                        self.work.push(Work::Authenticate(request));
                    }
                    _ => self.authenticate(request),
                }
            }
            Output::Log(record) => self.log(record),
        }
        Ok(())
    }

    /// Writes the attachment of a socket. Stores a record that is too long for it.
    /// Deletes the record that was stored before.
    fn attach(&mut self, id: SocketId, record: &str) -> Result<()> {
        let Some(socket) = self.sockets.get(id) else {
            return Ok(());
        };
        let earlier = self.spills.remove(id);
        if record.len() <= MAX_ATTACHMENT {
            socket.attach(&JsString::from(record))?;
        } else {
            let key = fresh_id();
            self.store.spill(&key, record)?;
            let attachment = Attachment::spilled(&key);
            socket.attach(&JsString::from(attachment.as_str()))?;
            self.spills.insert(id, key);
        }
        match earlier {
            Some(key) => self.store.forget_spill(&key),
            None => Ok(()),
        }
    }

    /// Removes a socket, and its attachment from storage.
    pub(super) fn remove_socket(&mut self, id: SocketId) -> Result<Option<Socket>> {
        let socket = self.sockets.remove(id);
        if let Some(key) = self.spills.remove(id) {
            self.store.forget_spill(&key)?;
        }
        Ok(socket)
    }

    fn send(&mut self, state: &State, socket: SocketId, frame: &JsString, bytes: usize) {
        if let Some(open) = self.sockets.get(socket) {
            let is_sent = open.send_string(frame).is_ok();
            self.sent(state, socket, is_sent, bytes);
        }
    }

    fn send_bytes(&mut self, state: &State, socket: SocketId, bytes: &[u8]) {
        if let Some(open) = self.sockets.get(socket) {
            let is_sent = open.send_with_u8_array(bytes).is_ok();
            self.sent(state, socket, is_sent, bytes.len());
        }
    }

    /// Reports to the core that a frame of `bytes` bytes was sent, or that the socket has
    /// closed.
    fn sent(&mut self, state: &State, socket: SocketId, is_sent: bool, bytes: usize) {
        if !is_sent {
            // The socket has closed, and its close event follows.
            if let Err(error) = self.remove_socket(socket) {
                self.log(LogRecord::error(error.to_string()));
            }
            self.gateway.server.engine.closed(socket, ABNORMAL_CLOSURE);
        } else if self.gateway.server.engine.sent(socket, bytes)
            && let Some(open) = self.sockets.get(socket)
        {
            let last_ping = last_ping(state, open);
            self.gateway
                .server
                .engine
                .check_slow(socket, last_ping, self.began);
        }
    }

    /// Writes a log record.
    pub(super) fn log(&self, record: LogRecord) {
        if record.level >= self.config.worker.log_level {
            let now = now();
            let record = record.with("gateway", self.name.as_str());
            let record = record.took(now.saturating_sub(self.began));
            worker::console_log!("{}", record.line(now));
        }
    }
}
