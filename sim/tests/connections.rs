//! `MAX_CONNECTIONS_PER_USER` on every path by which a connection reaches a room.

use roomcast_proto::command::Command;
use roomcast_proto::disconnect::Disconnect;
use roomcast_proto::id::{ConnectionId, GatewayName, RoomName};
use roomcast_proto::link::{Command as ToRoom, Pushed};
use roomcast_proto::position::Position;
use roomcast_proto::time::Millis;
use roomcast_room::{ConnId, Frame, Output, Room, Snapshot};
use roomcast_sim::world::{NOW, RoomOutput, Server, config, connect_request};
use std::collections::HashMap;

const LIMIT: usize = 3;

/// A room that accepts three connections of a user.
struct Fixture {
    room: Room,
    now: Millis,
    ids: usize,
    /// The time of the last ping on each socket that pings.
    pings: HashMap<ConnId, Millis>,
    /// The sockets that the room has closed.
    closed: Vec<(ConnId, Disconnect)>,
}

impl Fixture {
    fn new(room: &str) -> Self {
        let config = config(&[("MAX_CONNECTIONS_PER_USER", "3")]);
        let name = RoomName::trusted(room);
        Fixture {
            room: Room::new(name, config.room.clone(), Snapshot::default()),
            now: NOW,
            ids: 0,
            pings: HashMap::new(),
            closed: Vec::new(),
        }
    }

    fn id(&mut self) -> String {
        self.ids += 1;
        format!("c{}:1", self.ids)
    }

    /// Connects a socket to the room.
    fn connect(&mut self) -> ConnId {
        let request = connect_request(&self.id(), "alice", Position::default());
        self.room.admit(&request, self.now).expect("accepted");
        let mut out = Vec::new();
        let pinged = |conn| self.pings.get(&conn).copied();
        let conn = self.room.connect(request, pinged, self.now, &mut out);
        self.run(out);
        conn
    }

    /// Executes a command on a socket of the room.
    fn send(&mut self, conn: ConnId, command: &str) {
        let frame = format!(r#"{{"event":"{command}","data":{{}},"id":1}}"#);
        let mut out = Vec::new();
        self.room
            .receive(conn, Frame::Text(&frame), self.now, &mut out);
        self.run(out);
    }

    /// Joins the room from a gateway. Returns the id of the connection.
    fn join_from_gateway(&mut self) -> String {
        let id = self.id();
        let request = connect_request(&id, "alice", Position::default());
        let (id_of_command, again) = (Some(1), false);
        self.gateway(ToRoom::Join {
            request,
            id: id_of_command,
            again,
        });
        id
    }

    fn execute(&mut self, connection: &str, command: Command) {
        self.gateway(ToRoom::Execute {
            connection: ConnectionId::trusted(connection),
            id: Some(2),
            command,
        });
    }

    fn gateway(&mut self, command: ToRoom) {
        let mut out = Vec::new();
        let pinged = |conn| self.pings.get(&conn).copied();
        self.room.gateway_command(
            &gateway(),
            command,
            |_, _| false,
            pinged,
            self.now,
            &mut out,
        );
        self.run(out);
    }

    fn flush(&mut self) {
        let mut out = Vec::new();
        self.room.flush(self.now, &mut out);
        self.run(out);
    }

    fn run(&mut self, out: Vec<Output>) {
        for output in out {
            if let Some(Output::Close { conn, reason }) = self.room.route(output) {
                self.closed.push((conn, reason));
            }
        }
    }

    /// Takes the delivery that waits, and acknowledges it with these times of activity.
    fn answer(&mut self, active: &[(&str, Millis)]) {
        self.delivered();
        self.acknowledge(active);
    }

    fn acknowledge(&mut self, active: &[(&str, Millis)]) {
        let active = active.iter();
        let pushed = Pushed {
            active: active
                .map(|(id, at)| (ConnectionId::trusted(*id), *at))
                .collect(),
            ..Pushed::default()
        };
        let mut out = Vec::new();
        self.room
            .delivery_acknowledged(&gateway(), &pushed, self.now, &mut out);
        self.run(out);
    }

    /// Returns the times of activity of all connections at the gateway: never.
    fn inactive(&self) -> Vec<(String, Millis)> {
        (1..=self.ids).map(|n| (format!("c{n}:1"), 0)).collect()
    }

    /// Returns the texts that wait for the gateway.
    fn delivered(&mut self) -> String {
        self.flush();
        self.room.start_deliveries(self.now, &mut Vec::new());
        let delivery = self.room.take_delivery(&gateway()).expect("items");
        delivery.body.expect("JSON")
    }
}

fn gateway() -> GatewayName {
    GatewayName::trusted("0")
}

#[test]
fn sockets_that_have_left_the_room_count_for_the_limit_of_connections() {
    let mut fixture = Fixture::new("r");
    for _ in 0..3 * LIMIT {
        let conn = fixture.connect();
        fixture.send(conn, "leaveRoom");
        fixture.flush();
        assert!(!fixture.room.is_joined(conn));
        assert!(fixture.room.connections() <= LIMIT);
    }
}

#[test]
fn the_connection_that_has_been_silent_longest_makes_room_for_a_new_one() {
    let mut fixture = Fixture::new("r");
    let [first, second, third] = [(); LIMIT].map(|()| {
        fixture.now += 1_000;
        fixture.connect()
    });
    fixture.now += 1_000;
    fixture.send(first, "setTyping");
    fixture.pings.insert(second, fixture.now + 1);
    fixture.now += 1_000;
    let fourth = fixture.connect();
    assert_eq!(fixture.closed, [(third, Disconnect::Replaced)]);
    fixture.join_from_gateway();
    assert_eq!(fixture.closed.last(), Some(&(first, Disconnect::Replaced)));
    fixture.flush();
    assert!(fixture.room.is_joined(second) && fixture.room.is_joined(fourth));
    assert_eq!(fixture.room.connections(), LIMIT);
}

#[test]
fn a_silent_connection_at_a_gateway_is_closed_there() {
    for replaced_by_socket in [false, true] {
        let mut fixture = Fixture::new("@alice");
        let first = fixture.join_from_gateway();
        fixture.answer(&[]);
        for _ in 0..LIMIT {
            fixture.now += 1_000;
            if replaced_by_socket {
                fixture.connect();
            } else {
                fixture.join_from_gateway();
            }
            if !replaced_by_socket && fixture.room.connections() <= LIMIT {
                fixture.answer(&[]);
            }
        }
        let delivered = fixture.delivered();
        assert!(delivered.contains(&asks(&first)), "{delivered}");
        let inactive = fixture.inactive();
        let inactive: Vec<_> = inactive.iter().map(|(id, at)| (id.as_str(), *at)).collect();
        fixture.acknowledge(&inactive);
        assert_eq!(fixture.room.connections(), LIMIT);
        let delivered = fixture.delivered();
        assert!(delivered.contains(&replaced(&first)), "{delivered}");
    }
}

#[test]
fn gateways_are_asked_which_connection_has_been_silent_longest() {
    let mut fixture = Fixture::new("@alice");
    let joined: Vec<String> = (0..LIMIT)
        .map(|_| {
            fixture.now += 1_000;
            let id = fixture.join_from_gateway();
            fixture.answer(&[]);
            id
        })
        .collect();
    fixture.now += 60_000;
    // The first connection is active, the second one is half-open.
    let active = [
        (joined[0].as_str(), fixture.now - 10),
        (&joined[1], NOW + 2_000),
        (&joined[2], NOW + 3_000),
    ];
    let newest = fixture.join_from_gateway();
    let delivered = fixture.delivered();
    assert!(
        joined.iter().all(|id| delivered.contains(&asks(id))),
        "{delivered}"
    );
    assert!(!delivered.contains(&asks(&newest)), "{delivered}");
    assert!(!delivered.contains("Replaced"), "{delivered}");
    fixture.acknowledge(&active);
    let delivered = fixture.delivered();
    assert!(delivered.contains(&replaced(&joined[1])), "{delivered}");
    assert_eq!(delivered.matches("Replaced").count(), 1);
    assert_eq!(fixture.room.connections(), LIMIT);
}

#[test]
fn a_connection_is_replaced_although_a_gateway_does_not_answer() {
    let mut fixture = Fixture::new("@alice");
    for _ in 0..LIMIT + 1 {
        fixture.now += 1_000;
        fixture.join_from_gateway();
        fixture.flush();
    }
    assert_eq!(fixture.room.connections(), LIMIT + 1);
    assert_eq!(fixture.room.timer_at(), Some(fixture.now + 2_000));
    fixture.now += 2_000;
    fixture.flush();
    assert_eq!(fixture.room.connections(), LIMIT);
    // Nor does a user who connects often get more connections meanwhile.
    for _ in 0..10 * LIMIT {
        fixture.join_from_gateway();
        fixture.flush();
        assert!(fixture.room.connections() <= 2 * LIMIT);
    }
}

#[test]
fn a_connection_that_ends_meanwhile_makes_room() {
    let mut fixture = Fixture::new("@alice");
    let joined: Vec<String> = (0..LIMIT + 1)
        .map(|_| {
            let id = fixture.join_from_gateway();
            fixture.answer(&[]);
            id
        })
        .collect();
    let gone = ToRoom::Gone {
        connection: ConnectionId::trusted(joined[2].as_str()),
        code: 1000,
        seen: None,
    };
    fixture.gateway(gone);
    fixture.now += 2_000;
    fixture.flush();
    assert_eq!(fixture.room.connections(), LIMIT);
    assert!(!fixture.delivered().contains("Replaced"));
}

/// Returns the item that closes a replaced connection.
fn replaced(id: &str) -> String {
    format!(r#"{{"Close":{{"to":"{id}","why":"Replaced"}}}}"#)
}

/// Returns the item that asks when a connection was last active.
fn asks(id: &str) -> String {
    format!(r#"{{"Is":{{"to":"{id}","at":0,"activity":true}}}}"#)
}

#[test]
fn a_connection_at_a_gateway_that_joins_again_is_counted() {
    let mut fixture = Fixture::new("r");
    let left = fixture.join_from_gateway();
    fixture.flush();
    // The connection exists until the batch ends.
    fixture.execute(&left, Command::Leave { room: None });
    for _ in 0..LIMIT {
        fixture.connect();
    }
    let room = None;
    let position = Position::default();
    fixture.execute(&left, Command::Join { room, position });
    assert!(fixture.delivered().contains("rateLimited"));
    assert_eq!(fixture.room.connections(), LIMIT);
}

/// Two connections of a user are at one gateway: the first leaves the room, and the second joins
/// it again in the same request. The leave ends both.
#[test]
fn an_answer_to_a_connection_that_has_ended_reaches_no_other_connection() {
    let mut fixture = Fixture::new("r");
    let first = fixture.join_from_gateway();
    let second = fixture.join_from_gateway();
    fixture.delivered();
    let pushed = roomcast_proto::link::Pushed::default();
    let acknowledged = |fixture: &mut Fixture| {
        let (room, now) = (&mut fixture.room, fixture.now);
        room.delivery_acknowledged(&gateway(), &pushed, now, &mut Vec::new());
    };
    acknowledged(&mut fixture);
    fixture.execute(&first, Command::Leave { room: None });
    let (room, position) = (None, Position::default());
    fixture.execute(&second, Command::Join { room, position });
    let third = fixture.join_from_gateway();
    let delivered = fixture.delivered();
    let (push, texts) = roomcast_proto::link::Push::parse(&delivered).expect("a push");
    let texts_to = |id: &str| {
        let items = push.items.iter().zip(&texts);
        let own = items.filter(|(item, _)| item.to().is_some_and(|to| **to == *id));
        own.map(|(_, text)| *text).collect::<String>()
    };
    assert!(texts_to(&second).contains("\"ack\":2"), "{delivered}");
    let third = texts_to(&third);
    assert!(third.contains("\"ack\":1") && !third.contains("error"));
}

#[test]
fn a_personal_room_cannot_be_left() {
    let mut fixture = Fixture::new("@alice");
    let conn = fixture.connect();
    let remote = fixture.join_from_gateway();
    fixture.flush();
    fixture.send(conn, "leaveRoom");
    fixture.execute(&remote, Command::Leave { room: None });
    assert!(
        fixture
            .delivered()
            .contains("a personal room cannot be left")
    );
    assert!(fixture.room.is_joined(conn));
    assert_eq!(fixture.room.connections(), 2);
}

#[test]
fn a_socket_that_leaves_and_joins_again_receives_no_event_twice() {
    let mut server = Server::new("r", config(&[]));
    for user in ["alice", "bob"] {
        server.connect(user, user, Position::default());
    }
    server.settle();
    let send = |server: &mut Server, user: &str, event: &str, data: &str| {
        let frame = format!(r#"{{"event":"{event}","data":{data}}}"#);
        server.receive(user, Frame::Text(&frame));
    };
    // Returns the `seq` of each message that `alice` has received.
    let received = |server: &mut Server| {
        server.settle();
        let mut received = Vec::new();
        for output in server.take_outputs() {
            let RoomOutput::Frame { to, frame } = output else {
                continue;
            };
            let lines = frame.split('\n').filter(|_| to == "alice");
            for line in lines.filter(|line| line.contains("newMessage")) {
                let line: serde_json::Value = serde_json::from_str(line).expect("JSON");
                received.push(line["data"]["seq"].as_u64().expect("a number"));
            }
        }
        received
    };
    let message = r#"{"content":"x"}"#;
    for _ in 0..3 {
        send(&mut server, "bob", "sendMessage", message);
    }
    assert_eq!(received(&mut server), [1, 2, 3]);
    send(&mut server, "alice", "leaveRoom", "{}");
    send(&mut server, "alice", "joinRoom", r#"{"since":1}"#);
    assert!(received(&mut server).is_empty());
    send(&mut server, "alice", "leaveRoom", "{}");
    send(&mut server, "bob", "sendMessage", message);
    send(&mut server, "alice", "joinRoom", r#"{"since":2}"#);
    assert_eq!(received(&mut server), [4]);
    send(&mut server, "alice", "joinRoom", r#"{"since":0}"#);
    assert!(received(&mut server).is_empty());
    send(&mut server, "bob", "sendMessage", message);
    assert_eq!(received(&mut server), [5]);
}

#[test]
fn a_room_does_not_refuse_a_leave_that_a_gateway_has_counted() {
    let config = config(&[("JOINS_BURST", "1"), ("JOINS_PER_SECOND", "0.01")]);
    let mut fixture = Fixture::new("r");
    fixture.room = Room::new(
        RoomName::trusted("r"),
        config.room.clone(),
        Snapshot::default(),
    );
    let conn = fixture.join_from_gateway();
    let (room, position) = (None, Position::default());
    fixture.execute(&conn, Command::Join { room, position });
    fixture.execute(&conn, Command::Leave { room: None });
    let delivered = fixture.delivered();
    assert!(!delivered.contains("rateLimited"), "{delivered}");
    assert_eq!(fixture.room.connections(), 0);
}
