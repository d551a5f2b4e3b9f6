//! Restores the gateway: sessions from its sockets, clients from its storage.

use super::ActiveGateway;
use super::attachment::Attachment;
use super::store::ClientStore;
use crate::runtime::Result;
use crate::runtime::alarm_clock::AlarmClock;
use crate::runtime::host::Active;
use crate::runtime::ids::fresh_id;
use crate::runtime::memory;
use crate::runtime::object_state::object_state;
use crate::runtime::settings;
use crate::runtime::socket::{Sockets, open_sockets};
use crate::runtime::time::now;
use js_sys::Map;
use roomcast_auth::SignedId;
use roomcast_auth::registration::Registration;
use roomcast_gateway::{EngineServer, Gateway, PositionKey, Stored};
use roomcast_proto::disconnect::Disconnect;
use roomcast_proto::framing;
use roomcast_proto::gateway_kind::GatewayKind;
use roomcast_proto::log_record::LogRecord;
use roomcast_proto::time::Millis;
use slotmap::SecondaryMap;
use std::collections::HashMap;
use wasm_bindgen::JsCast;
use worker::{Env, State, WebSocketRequestResponsePair};

/// The answer of a client to a ping of Engine.IO. The runtime answers it with a packet that
/// clients ignore, and remembers the time, without waking the object.
const PONG: &str = "3";
const NOOP: &str = "6";

impl Active for ActiveGateway {
    type Carried = ();

    fn restore(state: &State, env: &Env, name: Option<String>, (): ()) -> Result<Self> {
        let began = now();
        let config = settings::of_object(env)?;
        let (store, name) =
            ClientStore::open(&state.storage(), || name.or_else(|| state.id().name()))?;
        // Native clients send the pings. Clients of Engine.IO receive them; if the interval is
        // so short that a timer is needed, the gateway cannot hibernate.
        let kind = GatewayKind::of(&name);
        let mut engine = EngineServer::new(name.clone(), config.gateway.clone(), fresh_id);
        let auth = config.auth.clone();
        engine.set_signer(move |sid| auth.signer.sign(SignedId::Session, sid));
        let hibernates = kind == GatewayKind::Native || engine.pings_by_alarm();
        if hibernates {
            let (ping, pong) = match kind {
                GatewayKind::Native => (framing::PING, framing::PONG),
                GatewayKind::EngineIo => (PONG, NOOP),
            };
            state.set_websocket_auto_response(&WebSocketRequestResponsePair::new(ping, pong)?);
        }
        // A new isolate has no copy of the revocations, so the gateway registers again with
        // its next socket. The answer contains the revocations.
        let registration = match store.registered() && config.auth.revoked.is_known() {
            true => Registration::restore(Millis::MAX),
            false => Registration::default(),
        };
        let known: Option<Map> = object_state(state).delivered().dyn_into().ok();
        #[cfg(not(feature = "conformance"))]
        let gateway = Gateway::new(engine);
        #[cfg(feature = "conformance")]
        let gateway = Gateway::echo(engine);
        let mut active = ActiveGateway {
            gateway,
            config,
            name,
            sockets: Sockets::new(),
            spills: SecondaryMap::new(),
            polls: HashMap::new(),
            clock: AlarmClock::default(),
            registration,
            hibernates,
            work: Vec::new(),
            began,
            store,
            positions: known.clone().unwrap_or_default(),
        };
        object_state(state).set_delivered(&active.positions);
        let mut connections = 0;
        for socket in open_sockets(state) {
            let attachment = socket.attachment().map(Attachment::parse);
            let (record, spill) = match attachment {
                Some(Attachment::Record(record)) => (Some(record), None),
                Some(Attachment::Spilled { key }) => {
                    (active.store.spilled(&key).ok().flatten(), Some(key))
                }
                None => (None, None),
            };
            let key = record.and_then(|record| active.gateway.restore_socket(&record, began));
            match key {
                Some(key) => {
                    active.sockets.add(key, socket);
                    if let Some(spill) = spill {
                        active.spills.insert(key, spill);
                    }
                }
                // The socket is the candidate of an upgrade, which has no record.
                None => {
                    socket.close_with(Disconnect::Failed.code(), Disconnect::Failed.reason());
                }
            }
            connections += 1;
        }
        active.store.delete_unused_spills(&active.spills)?;
        active.store.delete_unused_positions()?;
        let deleted = active.store.delete_gone(began)?;
        active.gateway.cleaned(deleted, began);
        let records = active.store.clients()?;
        // After a panic the positions in memory are newer than those in storage.
        let positions = match &known {
            Some(known) => {
                let mut positions = HashMap::new();
                known.for_each(&mut |at, key| {
                    if let (Some(key), Some(at)) = (key.as_string(), at.as_f64()) {
                        positions.insert(PositionKey::parse(&key), at as u64);
                    }
                });
                // Stored, because the gateway may hibernate before the next delivery. The
                // positions of lagging clients are used only by this restore.
                for (key, at) in &positions {
                    if !matches!(key, PositionKey::Lagging { .. }) {
                        active.store.set_position(key, *at)?;
                    }
                }
                positions
            }
            None => active.store.positions()?,
        };
        let stored = Stored {
            clients: records,
            positions,
            panicked: known.is_some(),
        };
        let gateway = &mut active.gateway;
        gateway.restore(stored, began);
        active.drain_events(state);
        active.log(
            LogRecord::info("wake")
                .with("connections", connections)
                .took(now().saturating_sub(began)),
        );
        Ok(active)
    }

    fn begin(&mut self, now: Millis) {
        self.began = now;
        self.gateway.server.engine.set_now(now);
        let budget = self.config.worker.max_object_bytes;
        self.gateway.set_overloaded(memory::excess(budget) > 0);
    }
}
