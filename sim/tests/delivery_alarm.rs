//! The alarm that repeats deliveries to gateways which a crash of the room has lost.

use roomcast_proto::id::ConnectionId;
use roomcast_proto::link::{Command, Item, Push, Pushed};
use roomcast_proto::position::Position;
use roomcast_proto::time::{MINUTE, Millis};
use roomcast_sim::world::{self, Server};
use serde_json::json;

const GATEWAY: &str = "n0";

/// Returns a room with these users at the gateway. All deliveries so far have arrived.
fn room(users: &[&str]) -> Server {
    world::begin();
    let mut server = Server::new("a", world::config(&[]));
    for user in users {
        let join = Command::Join {
            request: world::connect_request(user, user, Position::default()),
            id: None,
            again: false,
        };
        server.handle_gateway(GATEWAY, vec![join]);
    }
    server.settle();
    deliver(&mut server, Pushed::default());
    server
}

/// Carries out all deliveries. The gateway answers the first one with `pushed`. Returns the
/// items.
fn deliver(server: &mut Server, pushed: Pushed) -> Vec<Item> {
    server.start_deliveries();
    let mut items = Vec::new();
    let mut pushed = Some(pushed);
    while let Some(body) = server.take_delivery(GATEWAY, usize::MAX) {
        items.extend(Push::parse(&body).expect("a push").0.items);
        server.delivery_acknowledged(GATEWAY, &pushed.take().unwrap_or_default());
    }
    items
}

/// Executes a command of a user.
fn command(server: &mut Server, from: &str, event: &str, data: &serde_json::Value) {
    let frame = json!({ "event": event, "data": data }).to_string();
    let connection = ConnectionId::trusted(from);
    server.handle_gateway(GATEWAY, vec![Command::Frame { connection, frame }]);
}

/// Returns `true` if an item contains the logged event after `after` for the user.
fn has_event(items: &[Item], user: &str, after: u64) -> bool {
    items.iter().any(|item| match item {
        Item::Unicast {
            to, after: from, ..
        } => to == user && *from == Some(after),
        Item::Multicast {
            to, after: from, ..
        } => *from == after && to.iter().any(|to| to == user),
        _ => false,
    })
}

#[test]
fn an_event_that_was_stored_before_a_crash_reaches_gateways_by_the_alarm() {
    // The room dies before the gateway has received the delivery, or before it has answered.
    for is_sent in [false, true] {
        let mut server = room(&["alice", "bob"]);
        command(
            &mut server,
            "alice",
            "sendMessage",
            &json!({ "content": "x" }),
        );
        server.advance();
        server.start_deliveries();
        let alarm = server.room.alarm_at().expect("an alarm");
        assert!(alarm <= server.now + MINUTE);
        if is_sent {
            server.take_delivery(GATEWAY, 0).expect("the event");
            assert_eq!(server.room.alarm_at(), Some(alarm));
        }
        server.hibernate();
        server.now = alarm;
        server.alarm();
        let behind = ["alice", "bob"].map(|id| (ConnectionId::trusted(id), 0));
        let pushed = Pushed {
            behind: behind.into(),
            ..Pushed::default()
        };
        let items = deliver(&mut server, pushed);
        for user in ["alice", "bob"] {
            assert!(has_event(&items, user, 0), "{items:?}");
        }
        let next = server.room.alarm_at();
        assert!(next.is_none_or(|at| at > server.now + MINUTE), "{next:?}");
    }
}

#[test]
fn an_item_that_must_arrive_has_an_alarm_until_it_has_arrived() {
    let mut server = room(&["alice", "bob"]);
    let before = server.room.alarm_at();
    command(&mut server, "bob", "leaveRoom", &json!({}));
    server.advance();
    server.start_deliveries();
    let alarm = server.room.alarm_at();
    assert!(alarm.is_some_and(|at| at <= server.now + MINUTE));
    server.hibernate();
    server.start_deliveries();
    assert!(server.room.alarm_at() <= Some(server.now + MINUTE), "again");
    let items = deliver(&mut server, Pushed::default());
    let left = |item: &Item| matches!(item, Item::Unsubscribed { to } if to == "bob");
    assert!(items.iter().any(left), "{items:?}");
    assert!(
        server.room.alarm_at() >= before,
        "the alarm for the item has been stopped"
    );
}

/// Returns the number of alarms that the host sets in ten minutes in which the gateway receives
/// an event or a typing indicator ten times a second. The host sets an alarm only if no earlier
/// one is set.
fn alarms_set(event: &str, data: &serde_json::Value, is_logged: bool) -> usize {
    let mut server = room(&["alice", "bob"]);
    let mut alarm: Option<Millis> = None;
    let mut set = 0;
    let end = server.now + 10 * MINUTE;
    while server.now < end {
        server.now += 100;
        if alarm.is_some_and(|at| at <= server.now) {
            alarm = None;
            server.alarm();
        }
        command(&mut server, "alice", event, data);
        server.advance();
        server.start_deliveries();
        if let Some(at) = server.room.alarm_at()
            && alarm.is_none_or(|set| at < set)
        {
            alarm = Some(at);
            set += 1;
        }
        assert!(!is_logged || alarm <= Some(server.now + MINUTE));
        deliver(&mut server, Pushed::default());
    }
    set
}

#[test]
fn a_busy_room_sets_the_alarm_at_most_once_a_minute() {
    let typing = alarms_set("typing", &json!({ "isTyping": true }), false);
    let message = alarms_set("sendMessage", &json!({ "content": "x" }), true);
    assert!(
        message <= typing + 10,
        "{message} alarms, {typing} without events"
    );
}
