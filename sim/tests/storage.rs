//! Tests of the storage of rooms: changes, deletions, and when the storage is freed.

use roomcast_proto::id::{Epoch, RoomName, UserId};
use roomcast_proto::position::Position;
use roomcast_proto::time::{DAY, Millis, SECOND};
use roomcast_room::log::{LogBounds, OldestRow};
use roomcast_room::service::{Request, Served};
use roomcast_room::{CallId, Change, Frame, Output, Room, Secret, Snapshot};
use roomcast_sim::stored_log::StoredLog;
use roomcast_sim::world::{NOW, config, connect_request};
use serde_json::{Value, json};

/// A room and the changes that it has stored.
struct Fixture {
    room: Room,
    now: Millis,
    log: StoredLog,
    changes: Vec<Change>,
    replies: Vec<Value>,
}

impl Fixture {
    fn new(room: &str, settings: &[(&str, &str)]) -> Self {
        let snapshot = Snapshot {
            epoch: Epoch::trusted("e1"),
            ..Snapshot::default()
        };
        let config = config(settings);
        Fixture {
            room: Room::new(RoomName::trusted(room), config.room.clone(), snapshot),
            now: NOW,
            log: StoredLog::default(),
            changes: Vec::new(),
            replies: Vec::new(),
        }
    }

    fn run(&mut self, out: Vec<Output>) {
        for output in out {
            match self.room.route(output) {
                Some(Output::Store(change)) => self.store(change),
                Some(Output::Reply { answers, .. }) => {
                    let answers: Vec<Value> = serde_json::from_str(&answers).expect("JSON");
                    self.replies.extend(answers);
                }
                _ => {}
            }
        }
    }

    fn store(&mut self, change: Change) {
        match &change {
            Change::Append(row) => self.log.push(row.clone()),
            Change::Trim { upto, since, first } => self.log.trim(*upto, *since, *first),
            Change::Wipe { .. } => self.log = StoredLog::default(),
            _ => {}
        }
        self.changes.push(change);
    }

    fn serve(&mut self, request: Value) -> Option<Value> {
        let request: Request = serde_json::from_value(request).expect("a request");
        let mut out = Vec::new();
        let served = self.room.serve(request, CallId(1), self.now, &mut out);
        self.run(out);
        self.flush();
        match served {
            Ok(Served::Now(json) | Served::Created(json)) => serde_json::from_str(&json).ok(),
            _ => None,
        }
    }

    fn flush(&mut self) {
        let mut out = Vec::new();
        self.room.flush(self.now, &mut out);
        self.run(out);
    }

    /// Publishes an event and returns its result.
    fn publish(&mut self, fields: Value) -> Value {
        let mut message = json!({ "event": "news", "data": 1 });
        for (name, value) in fields.as_object().expect("an object") {
            message[name] = value.clone();
        }
        self.serve(json!({ "Publish": { "sender": "s", "messages": [message] } }));
        self.replies.pop().expect("a result")
    }

    fn members(&mut self) -> usize {
        let members = self.serve(json!("Members")).expect("the members");
        members.as_array().expect("a list").len()
    }
}

#[test]
fn requests_to_an_unused_room_store_nothing() {
    let mut room = Fixture::new("unused", &[]);
    for request in [
        json!("Members"),
        json!("Presence"),
        json!({ "Messages": { "after": 0, "before": 9, "limit": 1, "newest": false } }),
        json!({ "Kick": { "user": "alice" } }),
        json!({ "RemoveMember": { "user": "alice" } }),
    ] {
        room.serve(request);
    }
    room.publish(json!({ "volatile": true }));
    assert!(room.changes.is_empty(), "{:?}", room.changes);
    assert_eq!(room.room.alarm_at(), None);
}

#[test]
fn only_a_logged_event_makes_the_owner_of_a_personal_room_a_member() {
    let mut room = Fixture::new("@alice", &[("MAX_FRAME_BYTES", "1000")]);
    room.publish(json!({ "volatile": true }));
    let refused = room.publish(json!({ "data": "x".repeat(2_000) }));
    assert_eq!(refused["refused"]["code"], "tooLarge", "{refused}");
    assert_eq!(room.members(), 0);
    assert!(room.changes.is_empty(), "{:?}", room.changes);

    let accepted = room.publish(json!({}));
    assert_eq!(accepted["accepted"]["queued"], 1, "{accepted}");
    let members = room.serve(json!("Members")).expect("the members");
    assert_eq!(members[0]["queued"], 1, "the event waits for the user");
}

#[test]
fn a_room_without_members_is_released_after_retention_and_begins_a_new_epoch() {
    let settings = [("RETENTION_DAYS", "2"), ("DEDUPE_WINDOW", "1d")];
    let mut room = Fixture::new("r", &settings);
    room.publish(json!({ "message_id": "m" }));
    assert_eq!(room.room.release_at(), Some(NOW + 2 * DAY));

    // A member and a connection prevent the release.
    room.serve(json!({ "AddMember": { "user": "alice" } }));
    assert_eq!(room.room.release_at(), None);
    room.serve(json!({ "RemoveMember": { "user": "alice" } }));
    assert_eq!(room.room.release_at(), Some(NOW + 2 * DAY));
    let mut out = Vec::new();
    let request = connect_request("c1", "bob", Position::default());
    let conn = room.room.connect(request, |_| None, NOW, &mut out);
    let leave = r#"{"event":"leaveRoom","data":{}}"#;
    room.room.receive(conn, Frame::Text(leave), NOW, &mut out);
    room.run(out);
    room.flush();
    assert_eq!((room.members(), room.room.release_at()), (0, None));
    let mut out = Vec::new();
    room.room.disconnect(conn, 1000, None, NOW, &mut out);
    room.run(out);
    room.flush();
    assert_eq!(room.room.release_at(), Some(NOW + 2 * DAY));

    room.now = NOW + 2 * DAY;
    let mut out = Vec::new();
    room.room.release(Epoch::trusted("e2"), &mut out);
    room.run(out);
    assert!(matches!(room.changes.last(), Some(Change::Wipe { epoch }) if *epoch == "e2"));
    assert_eq!((room.room.bounds().head, &**room.room.epoch()), (0, "e2"));
    let again = room.publish(json!({ "message_id": "m" }));
    assert_eq!(again["accepted"]["seq"], 1);
}

#[test]
fn a_room_that_never_had_an_event_keeps_its_epoch_when_it_is_released() {
    let mut room = Fixture::new("r", &[]);
    room.serve(json!({ "AddMember": { "user": "alice" } }));
    room.serve(json!({ "RemoveMember": { "user": "alice" } }));
    assert!(room.room.release_at().is_some_and(|at| at <= NOW));
    let mut out = Vec::new();
    room.room.release(Epoch::trusted("e2"), &mut out);
    assert_eq!(room.room.epoch(), "e1");
}

#[test]
fn a_room_is_not_released_within_the_dedupe_window() {
    let settings = [("RETENTION_DAYS", "1"), ("DEDUPE_WINDOW", "3d")];
    let mut room = Fixture::new("r", &settings);
    room.publish(json!({ "message_id": "m" }));
    assert_eq!(room.room.release_at(), Some(NOW + 3 * DAY));
}

#[test]
fn a_repeated_send_is_recognised_after_its_event_was_deleted_and_the_room_restarted() {
    let settings = [("RETENTION_EVENTS", "5"), ("DEDUPE_WINDOW", "60s")];
    let mut room = Fixture::new("r", &settings);
    for n in 1..=100 {
        room.now += SECOND / 10;
        let published = room.publish(json!({ "message_id": format!("m{n}") }));
        assert_eq!(published["accepted"]["seq"], n);
    }
    let stored = room.log.rows.iter().map(|row| row.first);
    assert!(stored.min() > Some(50), "most events were deleted");
    let snapshot = Snapshot {
        epoch: Epoch::trusted("e1"),
        secret: Secret::default(),
        bounds: room.log.bounds(),
        recent: Some(room.log.recent()),
        profiles: None,
        rows: Some(room.log.reader()),
        ..Snapshot::default()
    };
    let name = RoomName::trusted("r");
    room.room = Room::new(name, config(&settings).room.clone(), snapshot);
    for n in [1, 50, 100] {
        let again = room.publish(json!({ "message_id": format!("m{n}") }));
        let again = &again["accepted"];
        assert_eq!(
            (&again["seq"], &again["duplicate"]),
            (&json!(n), &json!(true))
        );
        let at = NOW + n * (SECOND / 10);
        let timestamp = roomcast_proto::time::rfc3339(at);
        assert_eq!(again["timestamp"], timestamp, "the time of the first send");
    }
    // After the window, the hashes are forgotten and deleted.
    room.now += 61 * SECOND;
    let again = room.publish(json!({ "message_id": "m1" }));
    assert_eq!(again["accepted"]["seq"], 101);
}

#[test]
fn the_number_of_kept_hashes_is_limited() {
    let settings = [("RETENTION_EVENTS", "1"), ("DEDUPE_WINDOW", "1d")];
    let mut room = Fixture::new("r", &settings);
    let mut bounds = LogBounds::default();
    let (at, total) = (NOW, 0);
    for first in [2_999_990, 3_000_000] {
        bounds.extend(OldestRow { first, at, total }, first);
    }
    let snapshot = Snapshot {
        bounds,
        ..Snapshot::default()
    };
    let name = RoomName::trusted("r");
    room.room = Room::new(name, config(&settings).room.clone(), snapshot);
    let Change::Trim { upto, first, .. } = room.room.trim(NOW) else {
        panic!("a trim");
    };
    assert_eq!((upto, first), (2_999_999, 499_999));
}

#[test]
fn a_log_that_exceeds_retention_bytes_expires_its_oldest_rows() {
    let settings = [
        ("RETENTION_BYTES", "1048576"),
        ("MAX_FRAME_BYTES", "100000"),
    ];
    let mut room = Fixture::new("r", &settings);
    let mut sizes = 0;
    for _ in 0..100 {
        room.publish(json!({ "data": "x".repeat(30_000) }));
        if let Some(total) = room.room.byte_cutoff() {
            let rows = &room.log.rows;
            let oldest = rows.iter().find(|row| row.total > total).expect("a row");
            room.room.expire_log(Some(OldestRow {
                first: oldest.first,
                at: oldest.at,
                total: oldest.total,
            }));
            let trim = room.room.trim(room.now);
            room.store(trim);
        }
        let size: usize = room.log.rows.iter().map(|row| row.body.len()).sum();
        // The size is counted without the oldest row.
        assert!(size <= 1_048_576 + 31_000, "{size}");
        sizes = sizes.max(size);
    }
    assert!(sizes > 900_000, "the log uses what it may use");
    assert_eq!(room.room.floor() + 1, room.log.rows[0].first);
    assert_eq!(room.log.bounds().expired, room.room.floor());
}

#[test]
fn many_expired_events_are_deleted_in_parts_by_the_alarm() {
    let settings = [("RETENTION_EVENTS", "10"), ("DEDUPE_WINDOW", "0")];
    let mut room = Fixture::new("r", &settings);
    let user = UserId::trusted("s");
    let messages: Vec<Value> = vec![json!({ "event": "news", "data": 1 }); 12_000];
    room.serve(json!({ "Publish": { "sender": user, "messages": messages } }));
    let mut parts = 0;
    while room.room.bounds().trimmed < room.room.floor() {
        parts += 1;
        assert!(room.room.alarm_at().is_some_and(|at| at <= room.now));
        let before = room.room.bounds().trimmed;
        let mut out = Vec::new();
        room.room.handle_alarm(|_| None, room.now, &mut out);
        room.run(out);
        assert!(room.room.bounds().trimmed - before <= 5_000);
    }
    assert_eq!(parts, 2, "the batch has deleted the first part");
    assert!(room.room.alarm_at().is_some_and(|at| at > room.now));
}
