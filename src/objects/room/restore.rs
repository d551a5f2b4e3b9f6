//! The object wakes: the room from its storage, its connections from their
//! sockets. Where the frames of each go.

use super::Live;
use crate::objects::room::store::Store;
use crate::runtime::alarm_clock::AlarmClock;
use crate::runtime::settings;
use crate::runtime::{self, Socket, fresh_id, now};
use js_sys::JsString;
use roomcast_proto::disconnect::Disconnect;
use roomcast_proto::framing;
use roomcast_proto::log_record::LogRecord;
use roomcast_room::{self as room, Attachment, CallId, ConnId, Outboxes};
use slotmap::SecondaryMap;
use std::collections::{HashMap, VecDeque};
use wasm_bindgen::JsCast;
use worker::{Env, Result, State, WebSocketRequestResponsePair};

impl Live {
    /// Builds the room from its storage and its sockets.
    pub(super) fn wake(
        state: &State,
        env: &Env,
        name: Option<String>,
        outboxes: Option<Outboxes>,
    ) -> Result<Self> {
        let began = now();
        let config = settings::of_object(env)?;
        let name = || name.or_else(|| state.id().name());
        let (store, name) = Store::open(&state.storage(), name, fresh_id)?;
        let (snapshot, subscribers) = store.load(fresh_id())?;
        state.set_websocket_auto_response(&WebSocketRequestResponsePair::new(
            framing::PING,
            framing::PONG,
        )?);
        let mut live = Live {
            room: room::Room::new(name, config.room.clone(), snapshot),
            config,
            store,
            sockets: SecondaryMap::new(),
            calls: HashMap::new(),
            last_call: CallId::default(),
            began,
            pages: VecDeque::new(),
            batcher: Default::default(),
            clock: AlarmClock::default(),
            replay: None,
            line_break: JsString::from("\n"),
            registered: 0,
            unregistered: None,
            unready: Vec::new(),
            broken: false,
        };
        // What is known of revocations is lost with the isolate's memory: without
        // that the registry is asked again with the next who connects.
        if live.config.auth.revoked.is_known() {
            live.registered = live.store.registered();
        }
        for ws in state.get_websockets() {
            let socket: Socket = ws.as_ref().clone().unchecked_into();
            socket.forget_place();
            if socket.ready_state() != web_sys::WebSocket::OPEN {
                continue;
            }
            match attachment(&socket) {
                Some(attachment) => {
                    let conn = live.room.restore_connection(attachment, began);
                    live.place(conn, socket);
                }
                // Accepted just when storing failed.
                None => runtime::close(
                    &socket,
                    Disconnect::Failed.code(),
                    Disconnect::Failed.reason(),
                ),
            }
        }
        if let Some(outboxes) = outboxes {
            live.room.set_outboxes(outboxes);
        }
        for (gateway, subscriber) in subscribers {
            live.room.restore_subscriber(&gateway, subscriber, began);
        }
        // All have been sent what there is, unless the memory of that was lost.
        let head = live.room.bounds().head;
        let told = runtime::ext(state).told().as_f64();
        runtime::ext(state).set_told(&(head as f64).into());
        if let Some(told) = told {
            let mut out = Vec::new();
            live.room.recover(told as u64, began, &mut out);
            live.run(state, out);
        }
        live.log(
            LogRecord::info("wake")
                .with("connections", live.room.connections())
                .with("seq", live.room.bounds().head)
                .took(now().saturating_sub(began)),
        );
        Ok(live)
    }

    pub(super) fn place(&mut self, conn: ConnId, socket: Socket) {
        socket.set_place(conn);
        self.sockets.insert(conn, socket);
    }

    pub(super) fn displace(&mut self, conn: ConnId) -> Option<Socket> {
        self.pages.retain(|(one, ..)| *one != conn);
        let socket = self.sockets.remove(conn)?;
        socket.disown();
        Some(socket)
    }
}

pub(super) fn attachment(socket: &Socket) -> Option<Attachment> {
    let json = socket.attachment().ok()?.as_string()?;
    serde_json::from_str(&json).ok()
}
