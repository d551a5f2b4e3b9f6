//! The object wakes: sessions from its sockets, clients from its storage.

use super::{Live, NATIVE};
use crate::objects::gateway::store::ClientStore;
use crate::runtime::alarm_clock::AlarmClock;
use crate::runtime::settings;
use crate::runtime::{self, Socket, fresh_id, now};
use js_sys::Map;
use roomcast_gateway::{EngineServer, PositionKey, SocketId, Stored};
use roomcast_proto::disconnect::Disconnect;
use roomcast_proto::framing;
use roomcast_proto::log_record::LogRecord;
use roomcast_proto::time::{Millis, SECOND};
use slotmap::SecondaryMap;
use std::collections::{HashMap, VecDeque};
use wasm_bindgen::JsCast;
use worker::{Env, Result, State, WebSocketRequestResponsePair};

/// How long a client that is gone may come back to what it was.
const RECOVERY_WINDOW: Millis = 24 * 60 * 60 * SECOND;

/// A client's answer to a ping of Engine.IO. The runtime answers it by itself
/// without waking the object, by a packet that clients ignore, and remembers when.
const PONG: &str = "3";
const NOOP: &str = "6";

/// Begins an attachment that stands for one in storage.
pub(super) const SPILLED: &str = "spilled:";

impl Live {
    /// Builds the gateway from its storage and its sockets.
    pub(super) fn wake(state: &State, env: &Env, name: Option<String>) -> Result<Self> {
        let began = now();
        let config = settings::of_object(env)?;
        let (store, name) =
            ClientStore::open(&state.storage(), || name.or_else(|| state.id().name()))?;
        // Native clients ping by a text of their own; Engine.IO is pinged, and
        // where that is so often that a timer is needed, nothing is gained.
        let is_native = name.starts_with(NATIVE);
        let engine = EngineServer::new(name.clone(), config.gateway.clone(), fresh_id);
        let sleeps = is_native || engine.pings_by_alarm();
        if sleeps {
            let (ping, pong) = match is_native {
                true => (framing::PING, framing::PONG),
                false => (PONG, NOOP),
            };
            state.set_websocket_auto_response(&WebSocketRequestResponsePair::new(ping, pong)?);
        }
        // What is known of revocations is lost with the isolate's memory: without
        // that the registry is asked again with the next who connects.
        let registered = store.registered() && config.auth.revoked.is_known();
        let known: Option<Map> = runtime::ext(state).told().dyn_into().ok();
        #[cfg(not(feature = "conformance"))]
        let gateway = roomcast_gateway::Gateway::new(engine);
        #[cfg(feature = "conformance")]
        let gateway = roomcast_gateway::Gateway::echo(engine);
        let mut live = Live {
            gateway,
            config,
            name,
            sockets: SecondaryMap::new(),
            polls: HashMap::new(),
            clock: AlarmClock::default(),
            registered,
            sleeps,
            later: VecDeque::new(),
            began,
            store,
            reached: known.clone().unwrap_or_default(),
        };
        runtime::ext(state).set_told(&live.reached);
        let mut connections = 0;
        let mut spills = Vec::new();
        for ws in state.get_websockets() {
            let socket: Socket = ws.as_ref().clone().unchecked_into();
            socket.forget_place();
            if socket.ready_state() != web_sys::WebSocket::OPEN {
                continue;
            }
            let record = socket
                .attachment()
                .ok()
                .and_then(|record| record.as_string());
            let record = record.and_then(|record| match record.strip_prefix(SPILLED) {
                Some(key) => {
                    spills.push(key.to_owned());
                    live.store.spilled(key).ok().flatten()
                }
                None => Some(record),
            });
            match record.and_then(|record| live.gateway.restore_socket(&record, began)) {
                Some(place) => live.place(place, socket),
                // One that was on its way to become a session's.
                None => runtime::close(
                    &socket,
                    Disconnect::Failed.code(),
                    Disconnect::Failed.reason(),
                ),
            }
            connections += 1;
        }
        live.store
            .clean(began.saturating_sub(RECOVERY_WINDOW), &spills)?;
        let records = live.store.clients()?;
        // After a panic it is known better than stored.
        let positions = match &known {
            Some(known) => {
                let mut positions = HashMap::new();
                known.for_each(&mut |at, key| {
                    if let (Some(key), Some(at)) = (key.as_string(), at.as_f64()) {
                        positions.insert(PositionKey::parse(&key), at as u64);
                    }
                });
                // The object may hibernate before the next delivery. The positions of
                // lagging clients are only for this restore.
                for (key, at) in &positions {
                    if let PositionKey::Room(room) = key {
                        live.store.set_position(room, *at)?;
                    }
                }
                positions
            }
            None => {
                let stored = live.store.positions()?.into_iter();
                stored
                    .map(|(room, at)| (PositionKey::Room(room), at))
                    .collect()
            }
        };
        let stored = Stored {
            clients: records,
            positions,
            panicked: known.is_some(),
        };
        let gateway = &mut live.gateway;
        gateway.restore(stored, began);
        live.settle(state);
        live.log(
            LogRecord::info("wake")
                .with("connections", connections)
                .took(now().saturating_sub(began)),
        );
        Ok(live)
    }

    pub(super) fn place(&mut self, place: SocketId, socket: Socket) {
        socket.set_place(place);
        self.sockets.insert(place, socket);
    }

    pub(super) fn displace(&mut self, place: SocketId) -> Option<Socket> {
        let socket = self.sockets.remove(place)?;
        socket.disown();
        Some(socket)
    }
}
