//! What services ask of a room, without a socket: the requests that the Worker
//! sends to the object, and their answers. During a deploy the two may differ
//! by a version, so fields are only ever added, with a default.

use super::Room;
use super::advance::Accepted;
use super::log::Range;
use super::output::{CallId, Output};
use roomcast_proto::command::Send;
use roomcast_proto::disconnect::Disconnect;
use roomcast_proto::envelope::Body;
use roomcast_proto::error::{Error, ErrorCode, Result};
use roomcast_proto::event;
use roomcast_proto::log_record::LogRecord;
use roomcast_proto::name::{self, UserId};
use roomcast_proto::time::{Millis, rfc3339};
use serde::{Deserialize, Serialize};
use serde_json::json;
use serde_json::value::RawValue;

/// A request of the Worker to a room's object.
#[derive(Debug, Serialize, Deserialize)]
pub enum Request {
    /// Answered by a list, one answer for each.
    Publish {
        sender: String,
        messages: Vec<Publication>,
    },
    Messages(Range),
    Presence,
    Members,
    AddMember {
        user: String,
    },
    RemoveMember {
        user: String,
    },
    Kick {
        user: String,
    },
    /// Forget everything and begin again under this epoch.
    Delete {
        epoch: String,
    },
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Publication {
    pub event: String,
    pub data: Box<RawValue>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message_id: Option<String>,
    #[serde(default)]
    pub volatile: bool,
}

/// How a request is answered.
#[derive(Debug)]
pub enum Served {
    /// With this JSON; `true` when something was made that was not there.
    Now(String, bool),
    /// By an [`Output::Reply`] once the tick is stored.
    Later,
    /// With this page of the log.
    Page(Range),
}

impl Room {
    pub fn serve(
        &mut self,
        request: Request,
        call: CallId,
        now: Millis,
        out: &mut Vec<Output>,
    ) -> Result<Served> {
        let done = |json: serde_json::Value| Ok(Served::Now(json.to_string(), false));
        match request {
            Request::Publish { sender, messages } => {
                // What is sent to a user is kept for it even if it never came.
                if let Some(owner) = name::personal_room_owner(&self.name)
                    && name::is_user(owner)
                {
                    self.add_member(&owner.into(), self.bounds.head, None, now, out);
                }
                self.publish(&sender.into(), messages, call, now);
                Ok(Served::Later)
            }
            Request::Messages(range) => Ok(Served::Page(range)),
            Request::Presence => done(self.presence_json()),
            Request::Members => {
                let mut users: Vec<&UserId> = self.members.keys().collect();
                users.sort();
                done(users.iter().map(|user| self.member_json(user)).collect())
            }
            Request::AddMember { user } => {
                self.admit_member(&user)?;
                let user: UserId = user.into();
                let new = self.add_member(&user, self.bounds.head, None, now, out);
                self.advance(now, out);
                Ok(Served::Now(self.member_json(&user).to_string(), new))
            }
            Request::RemoveMember { user } => {
                if !self.remove_member(&user, None, now, out) {
                    return Err(Error::new(ErrorCode::NotFound, "there is no such member"));
                }
                self.advance(now, out);
                done(json!({ "roomId": self.name, "userId": user }))
            }
            Request::Kick { user } => {
                let conns = self.conns.iter().filter(|(_, conn)| *conn.user == *user);
                let conns: Vec<_> = conns.map(|(conn, _)| conn).collect();
                out.push(Output::Log(
                    LogRecord::info("kick")
                        .user(&user)
                        .with("connections", conns.len()),
                ));
                let closed = conns.len();
                for conn in conns {
                    self.close(conn, Disconnect::Kicked, now, out);
                }
                done(json!({ "closed": closed }))
            }
            Request::Delete { epoch } => {
                self.delete(epoch.clone(), now, out);
                done(json!({ "roomId": self.name, "epoch": epoch }))
            }
        }
    }

    fn publish(&mut self, sender: &UserId, messages: Vec<Publication>, call: CallId, now: Millis) {
        if self.tick.is_empty() {
            self.tick.since = now;
        }
        let limit = self.config.limits.max_frame_bytes;
        let online = self.roster.connected();
        let queued = self
            .members
            .keys()
            .filter(|user| self.roster.sockets(user).next().is_none())
            .count();
        let mut answers = Vec::with_capacity(messages.len());
        for message in messages {
            if message.data.get().len() > limit {
                let error = Error::new(
                    ErrorCode::TooLarge,
                    format!("`data` may have up to {limit} bytes"),
                );
                answers.push(format!(r#"{{"error":{}}}"#, event::error_fields(&error)));
                continue;
            }
            let send = Send {
                room: None,
                body: Body::published(message.event, &message.data),
                message_id: message.message_id,
                volatile: message.volatile,
            };
            let mut answer = json!({ "roomId": self.name, "online": online });
            if send.volatile {
                let (line, message_id) = self.ephemeral(sender, &send, now, true);
                // Not of a socket, so there is none to leave out.
                self.tick.tell_others(super::Except::Nobody, line);
                answer["queued"] = 0.into();
                answer["messageId"] = message_id.into();
                answer["timestamp"] = rfc3339(now).into();
            } else {
                let accepted = match self.accept(sender, &send, now, true) {
                    Ok(accepted) => accepted,
                    Err(error) => {
                        answers.push(format!(r#"{{"error":{}}}"#, event::error_fields(&error)));
                        continue;
                    }
                };
                let Accepted {
                    message_id,
                    seen,
                    duplicate,
                } = accepted;
                answer["seq"] = seen.seq.into();
                answer["messageId"] = message_id.into();
                answer["timestamp"] = rfc3339(seen.at).into();
                answer["queued"] = queued.into();
                if duplicate {
                    answer["duplicate"] = true.into();
                }
            }
            answers.push(answer.to_string());
        }
        self.tick
            .calls
            .push((call, format!("[{}]", answers.join(","))));
    }

    fn delete(&mut self, epoch: String, now: Millis, out: &mut Vec<Output>) {
        // What was accepted is stored and answered before it is forgotten.
        self.advance(now, out);
        for conn in self.conns.keys().collect::<Vec<_>>() {
            self.close(conn, Disconnect::RoomDeleted, now, out);
        }
        out.push(Output::Store(super::Change::Wipe {
            epoch: epoch.clone(),
        }));
        out.push(Output::Log(LogRecord::info("delete")));
        let config = self.config.clone();
        let name = std::mem::take(&mut self.name);
        let conns = std::mem::take(&mut self.conns);
        let doors = std::mem::take(&mut self.doors);
        let floods = self.floods.clone();
        // Their connections are closed when the outputs above are carried out.
        let gateways = std::mem::take(&mut self.gateways);
        *self = Room::new(
            name,
            config,
            super::Snapshot {
                epoch,
                ..super::Snapshot::default()
            },
        );
        self.conns = conns;
        self.gateways = gateways;
        // Who may come in is no matter of the log.
        (self.doors, self.floods) = (doors, floods);
    }

    fn member_json(&self, user: &str) -> serde_json::Value {
        self.members
            .get(user)
            .map_or(serde_json::Value::Null, |member| {
                member.json(user, &self.bounds, &self.config)
            })
    }

    fn presence_json(&self) -> serde_json::Value {
        let mut users: Vec<_> = self.members.iter().collect();
        users.sort_by_key(|(user, _)| *user);
        let users: Vec<_> = users
            .into_iter()
            .map(|(user, member)| {
                let connections = self.roster.sockets(user).count();
                // Who is here is seen now.
                let seen = connections == 0 && member.last_seen > 0;
                let last_seen = seen.then(|| rfc3339(member.last_seen));
                json!({
                    "userId": &**user,
                    "status": self.roster.status(user),
                    "connections": connections,
                    "lastSeen": last_seen,
                })
            })
            .collect();
        json!({ "users": users })
    }
}
