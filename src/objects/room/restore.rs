//! Restores the room from its storage and its connections from their sockets.

use super::ActiveRoom;
use super::store::Store;
use crate::runtime::Result;
use crate::runtime::alarm_clock::AlarmClock;
use crate::runtime::host::Active;
use crate::runtime::ids::fresh_id;
use crate::runtime::memory;
use crate::runtime::object_state::object_state;
use crate::runtime::settings;
use crate::runtime::socket::{Socket, Sockets, open_sockets};
use crate::runtime::time::now;
use roomcast_auth::registration::Registration;
use roomcast_proto::disconnect::Disconnect;
use roomcast_proto::framing;
use roomcast_proto::id::RoomName;
use roomcast_proto::log_record::LogRecord;
use roomcast_proto::reader;
use roomcast_proto::time::Millis;
use roomcast_room::Attachment;
use roomcast_room::Outboxes;
use roomcast_room::batcher::Batcher;
use worker::{Env, State, WebSocketRequestResponsePair};

impl Active for ActiveRoom {
    /// The outboxes of gateways survive a failure of storage, because everything in them was
    /// stored before.
    type Carried = Option<Outboxes>;

    fn restore(
        state: &State,
        env: &Env,
        name: Option<String>,
        outboxes: Option<Outboxes>,
    ) -> Result<Self> {
        let began = now();
        let config = settings::of_object(env)?;
        let name = || name.or_else(|| state.id().name());
        let (store, name) = Store::open(&state.storage(), name)?;
        let (snapshot, subscribers) = store.load(fresh_id())?;
        state.set_websocket_auto_response(&WebSocketRequestResponsePair::new(
            framing::PING,
            framing::PONG,
        )?);
        // A new isolate has no copy of the revocations, so the room registers again with its
        // next socket. The answer contains the revocations.
        let registration = match config.auth.revoked.is_known() {
            true => Registration::restore(store.registered()),
            false => Registration::default(),
        };
        let mut active = ActiveRoom {
            room: roomcast_room::Room::new(RoomName::trusted(name), config.room.clone(), snapshot),
            config,
            store,
            sockets: Sockets::new(),
            calls: Default::default(),
            pages: Default::default(),
            portions: Default::default(),
            batcher: Batcher::default(),
            clock: AlarmClock::default(),
            registration,
            pending_tokens: Vec::new(),
            began,
            storage_failed: false,
        };
        for socket in open_sockets(state) {
            match attachment(&socket) {
                Some(attachment) if !attachment.requested_past => {
                    let conn = active.room.restore_connection(attachment, began);
                    active.sockets.add(conn, socket);
                }
                // Without an attachment, the socket was accepted in the event with the failure.
                _ => {
                    socket.close_with(Disconnect::Failed.code(), Disconnect::Failed.reason());
                }
            }
        }
        if let Some(outboxes) = outboxes {
            active.room.set_outboxes(outboxes);
        }
        for (gateway, subscriber) in subscribers {
            active.room.restore_subscriber(&gateway, subscriber, began);
        }
        // After hibernation all sockets have received every event. After a panic some sockets
        // may lack the last batch.
        let head = active.room.bounds().head;
        let delivered = object_state(state).delivered().as_f64();
        object_state(state).set_delivered(&(head as f64).into());
        if let Some(delivered) = delivered {
            active.room.recover(delivered as u64, began);
        }
        active.log(
            LogRecord::info("wake")
                .with("connections", active.room.connections())
                .with("seq", active.room.bounds().head)
                .took(now().saturating_sub(began)),
        );
        Ok(active)
    }

    fn begin(&mut self, now: Millis) {
        self.began = now;
        let budget = self.config.worker.max_object_bytes;
        self.room.set_overloaded(memory::excess(budget) > 0);
    }

    fn take_failure(&mut self) -> Option<Self::Carried> {
        self.storage_failed.then(|| Some(self.room.take_outboxes()))
    }
}

/// Returns the attachment of a socket, if it has one.
pub(super) fn attachment(socket: &Socket) -> Option<Attachment> {
    reader::from_str(&socket.attachment()?).ok()
}
