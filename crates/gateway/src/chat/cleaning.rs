//! When the host deletes the saved records of clients that can no longer resume.
//!
//! A busy gateway never hibernates, so it cleans once an hour. It deletes a limited number of
//! records at a time and continues after a pause, so that clients do not wait for it. An idle
//! gateway is not kept awake for this; it cleans when it is restored.

use super::state::Chat;
use crate::output::Output;
use crate::socketio::SocketIoServer;
use roomcast_proto::time::{HOUR, Millis, SECOND};

/// Time between two cleanings. Each reads all saved records, up to 24 hours old.
const INTERVAL: Millis = HOUR;

/// Pause before a cleaning continues.
const PAUSE: Millis = SECOND;

/// Maximum number of records that are deleted at a time. Deleting so many takes SQLite about
/// as long as delivering a batch.
pub const MAX_CLEANED: usize = 1_000;

/// The next cleaning.
#[derive(Default)]
pub(super) struct Cleaning {
    at: Option<Millis>,
    /// The last cleaning was not complete: the host has to wait for this one.
    continues: bool,
}

impl Cleaning {
    /// Returns the time at which a cleaning continues.
    pub(super) fn deadline(&self) -> Option<Millis> {
        self.at.filter(|_| self.continues)
    }
}

impl Chat {
    /// Requests a cleaning if it is due.
    pub(super) fn clean(&mut self, server: &mut SocketIoServer, now: Millis) {
        match self.cleaning.at {
            Some(at) if at > now => return,
            Some(_) => server.engine.push(Output::Clean),
            None => {}
        }
        self.cleaning = Cleaning {
            at: Some(now + INTERVAL),
            continues: false,
        };
    }

    /// See [`crate::Gateway::cleaned`].
    pub(crate) fn cleaned(&mut self, deleted: usize, now: Millis) {
        let continues = deleted >= MAX_CLEANED;
        let pause = if continues { PAUSE } else { INTERVAL };
        self.cleaning = Cleaning {
            at: Some(now + pause),
            continues,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::EngineServer;
    use crate::output::PositionKey;
    use crate::{Gateway, Stored};
    use roomcast_proto::id::RoomName;
    use roomcast_proto::time::MINUTE;
    use std::rc::Rc;

    const NOW: Millis = 1_800_000_000_000;

    const SOCKET: &str = r#"{"Native":{"id":"c"}}"#;

    const CLIENT: &str = r#"{"id":"c","session":null,"sid":"c","pid":null,"identity":{"user":"bob","expires":1900000000000,"service":false,"patterns":[["r",1]],"token":{}},"status":"online","version":1,"tag":9,"slots":[{"room":"r","seat":"c:a","epoch":"e","from":0,"version":1}]}"#;

    fn gateway() -> Gateway {
        let engine = EngineServer::new("n0".into(), Rc::default(), || "id".into());
        let mut gateway = Gateway::new(engine);
        gateway.server.engine.set_now(NOW);
        gateway
    }

    /// Advances the gateway and returns `true` if it requests a cleaning.
    fn cleans(gateway: &mut Gateway, now: Millis) -> bool {
        gateway.server.engine.set_now(now);
        gateway.advance(&|_| None, now);
        let outputs = gateway.settle(now);
        outputs.iter().any(|output| matches!(output, Output::Clean))
    }

    #[test]
    fn a_busy_gateway_cleans_once_an_hour() {
        let mut gateway = gateway();
        assert!(!cleans(&mut gateway, NOW));
        assert!(!cleans(&mut gateway, NOW + HOUR - 1));
        assert!(cleans(&mut gateway, NOW + HOUR));
        gateway.cleaned(MAX_CLEANED - 1, NOW + HOUR);
        assert!(!cleans(&mut gateway, NOW + HOUR + MINUTE));
        assert!(cleans(&mut gateway, NOW + 2 * HOUR));
    }

    #[test]
    fn a_cleaning_that_is_not_complete_continues_after_a_second() {
        let mut gateway = gateway();
        gateway.cleaned(MAX_CLEANED, NOW);
        assert_eq!(gateway.deadline(), Some(NOW + SECOND));
        assert!(cleans(&mut gateway, NOW + SECOND));
        gateway.cleaned(0, NOW + SECOND);
        assert_eq!(gateway.deadline(), None, "an idle gateway can hibernate");
    }

    #[test]
    fn positions_of_rooms_without_subscribers_are_deleted() {
        let mut gateway = gateway();
        let socket = gateway.restore_socket(SOCKET, NOW).expect("a socket");
        let key = |room: &str| PositionKey::Room(RoomName::trusted(room));
        gateway.restore(
            Stored {
                clients: vec![CLIENT.to_owned()],
                positions: [(key("r"), 12), (key("unused"), 5)].into(),
                panicked: false,
            },
            NOW,
        );
        let deleted = |outputs: Vec<Output>, room: &str| {
            let (mut tracked, mut stored) = (false, false);
            for output in outputs {
                match output {
                    Output::TrackPosition { key: of, at: None } => tracked |= of == key(room),
                    Output::StorePosition { key: of, at: None } => stored |= of == key(room),
                    _ => {}
                }
            }
            (tracked, stored)
        };
        assert_eq!(deleted(gateway.settle(NOW), "unused"), (true, true));
        gateway.server.engine.closed(socket, 1000);
        gateway.settle(NOW);
        let room = RoomName::trusted("r");
        assert!(
            gateway.take_commands(&room).is_some(),
            "the client has left"
        );
        assert!(gateway.take_commands(&room).is_none());
        assert_eq!(deleted(gateway.settle(NOW), "r"), (true, true));
    }
}
