//! The object wakes: the room from its storage, its connections from their
//! sockets. Where the frames of each go.

use super::{Live, Peer};
use crate::durable::clock::Clock;
use crate::durable::runtime::{self, Socket, fresh_id, now};
use crate::durable::settings;
use crate::durable::store::{Kept, Store};
use js_sys::JsString;
use roomcast_proto::disconnect::Disconnect;
use roomcast_proto::framing;
use roomcast_proto::link::Item;
use roomcast_proto::log_record::LogRecord;
use roomcast_room::links::Links;
use roomcast_room::output::ConnId;
use roomcast_room::{self as room, Attachment};
use slotmap::SecondaryMap;
use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use wasm_bindgen::JsCast;
use worker::{Env, Result, State, WebSocketRequestResponsePair};

impl Live {
    /// Builds the room from its storage and its sockets.
    pub(super) fn wake(
        state: &State,
        env: &Env,
        name: Option<String>,
        links: Rc<RefCell<Links>>,
    ) -> Result<Self> {
        let began = now();
        let config = settings::of_object(env)?;
        let name = || name.or_else(|| state.id().name());
        let (store, name) = Store::open(&state.storage(), name, fresh_id)?;
        let (snapshot, subscribers) = store.load()?;
        state.set_websocket_auto_response(&WebSocketRequestResponsePair::new(
            framing::PING,
            framing::PONG,
        )?);
        let mut live = Live {
            room: room::Room::new(name, config.room.clone(), snapshot),
            config,
            store,
            peers: SecondaryMap::new(),
            remote: HashMap::new(),
            gateways: HashMap::new(),
            links,
            life: fresh_id(),
            calls: HashMap::new(),
            last_call: 0,
            began,
            pages: VecDeque::new(),
            batcher: Default::default(),
            clock: Clock::default(),
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
                    let conn = live.room.recall(attachment, began);
                    live.place(conn, Peer::Socket(socket));
                }
                // Accepted just when storing failed.
                None => runtime::close(
                    &socket,
                    Disconnect::Failed.code(),
                    Disconnect::Failed.reason(),
                ),
            }
        }
        live.links.borrow_mut().restart();
        for (gateway, kept) in subscribers {
            let attachment = match kept {
                Kept::Here(attachment) => attachment,
                Kept::Parted(word) => {
                    live.links.borrow_mut().queue(&gateway, word, "");
                    continue;
                }
            };
            let id: Rc<str> = attachment.id.as_str().into();
            let conn = live.room.recall(attachment, began);
            let gateway: Rc<str> = gateway.into();
            // It may have gone while the room slept or was down.
            let (to, at) = (id.to_string(), live.room.bounds().head);
            let is = Item::Is { to, at };
            live.links.borrow_mut().queue(&gateway, is, "");
            live.place(conn, Peer::Gateway { gateway, id });
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
                .with("connections", live.peers.len())
                .with("seq", live.room.bounds().head)
                .took(now().saturating_sub(began)),
        );
        Ok(live)
    }

    pub(super) fn place(&mut self, conn: ConnId, peer: Peer) {
        match &peer {
            Peer::Socket(socket) => socket.set_place(conn),
            Peer::Gateway { gateway, id } => {
                self.remote.insert(id.clone(), conn);
                *self.gateways.entry(gateway.clone()).or_default() += 1;
            }
        }
        self.peers.insert(conn, peer);
    }

    pub(super) fn displace(&mut self, conn: ConnId) -> Option<Peer> {
        let peer = self.peers.remove(conn)?;
        self.pages.retain(|(one, ..)| *one != conn);
        match &peer {
            Peer::Socket(socket) => socket.disown(),
            Peer::Gateway { gateway, id } => {
                self.remote.remove(id);
                if let Some(connections) = self.gateways.get_mut(gateway) {
                    *connections -= 1;
                    if *connections == 0 {
                        self.gateways.remove(gateway);
                    }
                }
            }
        }
        Some(peer)
    }
}

pub(super) fn attachment(socket: &Socket) -> Option<Attachment> {
    let json = socket.attachment().ok()?.as_string()?;
    serde_json::from_str(&json).ok()
}
