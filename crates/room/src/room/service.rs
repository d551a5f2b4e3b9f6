//! Requests over HTTP: of services, and the reads of users.

use super::Room;
use super::send::Origin;
use crate::ephemeral::{EphemeralEvent, Except};
use crate::ids::CallId;
use crate::output::{Change, Output};
use crate::service::{Publication, PublishResult, Request, Served};
use crate::snapshot::Snapshot;
use roomcast_proto::answer::to_json;
use roomcast_proto::command::{MAX_LIMIT, Send};
use roomcast_proto::disconnect::Disconnect;
use roomcast_proto::envelope::Body;
use roomcast_proto::error::{Error, ErrorCode, Result};
use roomcast_proto::http;
use roomcast_proto::id::{Epoch, MessageId, UserId};
use roomcast_proto::log_record::LogRecord;
use roomcast_proto::name;
use roomcast_proto::time::{Millis, rfc3339};
use serde_json::value::to_raw_value;
use serde_json::{Value, json};

impl Room {
    /// Takes a token of the rate limit of a user that reads over HTTP. `reader` identifies the
    /// user. The host calls this before [`Room::serve`], and [`Room::reader_answered`] after it.
    ///
    /// # Errors
    ///
    /// Returns `rateLimited` if the user reads too often.
    pub fn admit_reader(&mut self, reader: &str, now: Millis) -> Result<()> {
        self.admission
            .admit_reader(reader, &self.config.limits, now)
    }

    /// Records that the user was answered with this number of bytes. A large page counts as
    /// several requests.
    pub fn reader_answered(&mut self, reader: &str, bytes: usize) {
        self.admission
            .reader_answered(reader, bytes, &self.config.limits);
    }

    /// Executes a request of a service. `call` identifies it in [`Output::Reply`].
    ///
    /// # Errors
    ///
    /// Returns `conflict` if the room is full, `notFound` if the user is not a member, and
    /// `unavailable` if the host is short of memory; see [`Room::set_overloaded`].
    pub fn serve(
        &mut self,
        request: Request,
        call: CallId,
        now: Millis,
        out: &mut Vec<Output>,
    ) -> Result<Served> {
        let done = |json: Value| Ok(Served::Now(to_json(&json)));
        match request {
            Request::Publish { .. } if self.is_overloaded => Err(Error::overloaded()),
            Request::Publish {
                sender,
                info,
                messages,
            } => {
                let origin = Origin::Service(info.as_ref());
                self.publish(&sender, origin, messages, call, now, out);
                Ok(Served::Later)
            }
            Request::Messages(query) => Ok(Served::Page(query)),
            Request::List {
                presence,
                after,
                limit,
            } => {
                let (body, next) = self.http_list(presence, after.as_ref(), limit);
                let head = json!({ "memberCount": self.members.len(), "next": next });
                Ok(Served::Now(format!("{}\n{body}", to_json(&head))))
            }
            Request::Presence => Ok(Served::Now(self.http_list(true, None, MAX_LIMIT).0)),
            Request::Members => Ok(Served::Now(self.http_list(false, None, MAX_LIMIT).0)),
            Request::AddMember { user } => {
                self.admit_member(&user)?;
                let created = self.add_member(&user, self.log.head(), None, now, out);
                self.flush(now, out);
                let json = self.member_json(&user);
                Ok(match created {
                    true => Served::Created(json),
                    false => Served::Now(json),
                })
            }
            Request::RemoveMember { user } => {
                if !self.remove_member(&user, None, now, out) {
                    let error = "the user is not a member of the room";
                    return Err(Error::new(ErrorCode::NotFound, error));
                }
                self.flush(now, out);
                done(json!({ "roomId": self.name, "userId": user }))
            }
            Request::Kick { user } => {
                let conns = self
                    .connections
                    .filter(|connection| connection.attachment.user == user);
                let closed = conns.len();
                out.push(Output::Log(
                    LogRecord::info("kick")
                        .user(&user)
                        .with("connections", closed),
                ));
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

    fn publish(
        &mut self,
        sender: &UserId,
        origin: Origin<'_>,
        messages: Vec<Publication>,
        call: CallId,
        now: Millis,
        out: &mut Vec<Output>,
    ) {
        self.batch.begin(now);
        let events = self.batch.events();
        let messages = messages.into_iter();
        let published: Vec<_> = messages
            .map(|message| self.publish_one(sender, origin, message, now))
            .collect();
        // Logged events for a user are kept even if the user has never connected.
        if self.batch.events() > events
            && let Some(owner) = name::personal_room_owner(&self.name).and_then(UserId::parse)
        {
            self.add_member(&owner, self.log.head(), None, now, out);
        }
        let roster = &self.presence.roster;
        let online = roster.connected_users();
        let users = self.members.users();
        let queued = users
            .filter(|user| roster.connections(user).next().is_none())
            .count();
        let mut results = Vec::with_capacity(published.len());
        for published in published {
            let receipt = published.and_then(|published| {
                let receipt = http::Published {
                    duplicate: published.duplicate,
                    message_id: &published.message_id,
                    online,
                    queued: published.seq.map_or(0, |_| queued),
                    room_id: &self.name,
                    seq: published.seq,
                    timestamp: rfc3339(published.at),
                };
                // Serialising strings and numbers never fails.
                to_raw_value(&receipt).map_err(|_| Error::internal())
            });
            results.push(match receipt {
                Ok(receipt) => PublishResult::Accepted(receipt),
                Err(error) => PublishResult::Refused(error),
            });
        }
        self.batch.reply(call, to_json(&results));
    }

    fn publish_one(
        &mut self,
        sender: &UserId,
        origin: Origin<'_>,
        message: Publication,
        now: Millis,
    ) -> Result<Published> {
        let limit = self.config.limits.max_frame_bytes;
        if message.data.get().len() > limit {
            let error = format!("`data` must have at most {limit} bytes");
            return Err(Error::new(ErrorCode::TooLarge, error));
        }
        let send = Send {
            room: None,
            body: Body::published(message.event, &message.data),
            message_id: message.message_id,
            volatile: message.volatile,
        };
        let bytes = send.body.size();
        self.admission.take_bytes(bytes, &self.config, now)?;
        if send.volatile {
            let envelope = self.ephemeral(sender, &send, origin, now);
            self.batch.broadcast(EphemeralEvent {
                except: Except::Nobody,
                line: envelope.line,
            });
            return Ok(Published {
                message_id: envelope.message_id,
                seq: None,
                at: now,
                duplicate: false,
            });
        }
        let accepted = self.accept(sender, &send, origin, now)?;
        Ok(Published {
            message_id: accepted.message_id,
            seq: Some(accepted.seen.seq),
            at: accepted.seen.at,
            duplicate: accepted.duplicate,
        })
    }

    /// Deletes the log and the members, closes all connections and begins a new epoch.
    fn delete(&mut self, epoch: Epoch, now: Millis, out: &mut Vec<Output>) {
        // Accepted events are stored and answered first.
        self.flush(now, out);
        for conn in self.connections.filter(|_| true) {
            self.close(conn, Disconnect::RoomDeleted, now, out);
        }
        self.wipe(epoch, out);
        out.push(Output::Log(LogRecord::info("delete")));
    }

    /// Deletes the log and the members, and begins a new epoch. The room has no connections.
    pub(super) fn wipe(&mut self, epoch: Epoch, out: &mut Vec<Output>) {
        out.push(Output::Store(Change::Wipe {
            epoch: epoch.clone(),
        }));
        let snapshot = Snapshot {
            epoch,
            secret: self.log.secret(),
            rows: self.log.take_reader(),
            ..Snapshot::default()
        };
        let empty = Room::new(self.name.clone(), self.config.clone(), snapshot);
        let deleted = std::mem::replace(self, empty);
        // The map of connections stays, so that the keys of closed connections are not
        // reused.
        self.connections = deleted.connections;
        // The outputs above refer to subscriptions.
        self.gateways = deleted.gateways;
        // Rate limits and bans survive deletion.
        self.admission = deleted.admission;
        self.read_profiles = deleted.read_profiles;
    }
}

/// An accepted publication.
struct Published {
    message_id: MessageId,
    /// `None` if the event is ephemeral.
    seq: Option<u64>,
    /// The time at which the room accepted the event. For a duplicate, the time of the first
    /// event.
    at: Millis,
    duplicate: bool,
}
