//! Lists of members: the answers to `joinRoom` and `members`, and the lists for HTTP.

use roomcast_proto::command::Command;
use roomcast_proto::id::{ConnectionId, GatewayName, RoomName, UserId};
use roomcast_proto::link::{Command as ToRoom, Pushed};
use roomcast_proto::position::Position;
use roomcast_proto::status::Status;
use roomcast_room::service::{Request, Served};
use roomcast_room::{CallId, Member, Output, Room, Snapshot};
use roomcast_sim::world::{NOW, config, connect_request};
use serde_json::{Value, json};

/// A room with offline members.
struct Fixture {
    room: Room,
}

impl Fixture {
    fn new(members: impl IntoIterator<Item = String>, settings: &[(&str, &str)]) -> Self {
        let members = members.into_iter();
        let snapshot = Snapshot {
            members: members
                .map(|user| (UserId::trusted(user), Member::new(NOW, 0)))
                .collect(),
            ..Snapshot::default()
        };
        let config = config(settings);
        let name = RoomName::trusted("r");
        Fixture {
            room: Room::new(name, config.room.clone(), snapshot),
        }
    }

    fn gateway(&mut self, command: ToRoom) {
        let mut out = Vec::new();
        let gateway = gateway();
        self.room
            .gateway_command(&gateway, command, |_, _| false, |_| None, NOW, &mut out);
        self.run(out);
    }

    /// Joins the room from a gateway. The answer follows the batch.
    fn join(&mut self, user: &str, status: Status) {
        let mut request = connect_request(&format!("{user}:1"), user, Position::default());
        request.status = status;
        let (id, again) = (Some(1), false);
        self.gateway(ToRoom::Join { request, id, again });
    }

    fn run(&mut self, out: Vec<Output>) {
        for output in out {
            self.room.route(output);
        }
    }

    /// Ends the batch. Returns the delivery to the gateway.
    fn delivered(&mut self) -> String {
        let mut out = Vec::new();
        self.room.flush(NOW, &mut out);
        self.run(out);
        self.room.start_deliveries(NOW, &mut Vec::new());
        let delivery = self.room.take_delivery(&gateway()).expect("items");
        delivery.body.expect("JSON")
    }

    /// Acknowledges a delivery. Returns the next one.
    fn next_delivery(&mut self) -> Option<String> {
        let mut out = Vec::new();
        self.room
            .delivery_acknowledged(&gateway(), &Pushed::default(), NOW, &mut out);
        self.run(out);
        let delivery = self.room.take_delivery(&gateway())?;
        Some(delivery.body.expect("JSON"))
    }

    /// Joins the room and returns the answer.
    fn joined(&mut self, user: &str) -> Value {
        self.join(user, Status::Online);
        answer(&self.delivered(), 1)
    }

    /// Executes `members` for a connection of a user that has joined. Returns the answer.
    fn members(&mut self, user: &str, after: Option<&str>, limit: u64) -> Value {
        self.gateway(ToRoom::Execute {
            connection: ConnectionId::trusted(format!("{user}:1")),
            id: Some(2),
            command: Command::Members {
                room: None,
                after: after.map(UserId::trusted),
                limit,
            },
        });
        answer(&self.delivered(), 2)
    }

    /// Returns a page for HTTP: its head and its body.
    fn http(&mut self, presence: bool, after: Option<&str>, limit: u64) -> (Value, String) {
        let after = after.map(UserId::trusted);
        let request = Request::List {
            presence,
            after,
            limit,
        };
        let answer = self.serve(request);
        let (head, body) = answer.split_once('\n').expect("a head and a body");
        (serde_json::from_str(head).expect("JSON"), body.to_owned())
    }

    fn serve(&mut self, request: Request) -> String {
        let served = self.room.serve(request, CallId(0), NOW, &mut Vec::new());
        match served {
            Ok(Served::Now(text)) => text,
            other => panic!("expected an answer: {other:?}"),
        }
    }
}

fn gateway() -> GatewayName {
    GatewayName::trusted("0")
}

/// Returns the data of the answer with this id.
fn answer(delivery: &str, id: u32) -> Value {
    let start = format!(r#"{{"ack":{id},"#);
    let text = &delivery[delivery.find(&start).expect("an answer")..];
    let mut values = serde_json::Deserializer::from_str(text).into_iter::<Value>();
    let answer = values.next().expect("a value").expect("JSON");
    answer
        .get("data")
        .cloned()
        .unwrap_or_else(|| answer["error"].clone())
}

fn names(list: &Value) -> Vec<&str> {
    let list = list.as_array().expect("a list").iter();
    list.map(|member| member["userId"].as_str().expect("a name"))
        .collect()
}

fn numbered(range: std::ops::Range<u32>) -> impl Iterator<Item = String> {
    range.map(|number| format!("user-{number:05}"))
}

#[test]
fn three_hundred_joins_of_a_room_with_ten_thousand_members_take_at_most_20_kb_each() {
    let mut fixture = Fixture::new(numbered(0..10_000), &[]);
    for user in numbered(9_000..9_300) {
        fixture.join(&user, Status::Online);
    }
    let mut delivery = fixture.delivered();
    // A delivery causes a limited output.
    while let Some(next) = fixture.next_delivery() {
        delivery.push_str(&next);
    }
    assert_eq!(delivery.matches(r#""memberCount":10000"#).count(), 300);
    let bytes = delivery.len() / 300;
    assert!(bytes <= 20_000, "{bytes} bytes per join");
    // All of them have joined when the list is made.
    let joined = answer(&delivery, 1);
    let expected: Vec<String> = numbered(9_000..9_100).collect();
    assert_eq!(names(&joined["members"]), expected);
}

#[test]
fn the_list_of_join_room_has_at_most_16_kib_however_long_the_ids_are() {
    let long = |number: u32| format!("{number:05}{}", "x".repeat(250));
    let mut fixture = Fixture::new((0..1_000).map(long), &[]);
    let joined = fixture.joined(&long(7));
    let list = &joined["members"];
    assert!(list.to_string().len() <= 16 * 1024);
    assert_eq!(list[0]["userId"], long(7));
    assert!(names(list).len() > 50);
}

#[test]
fn join_room_lists_members_who_are_not_offline_first() {
    let mut fixture = Fixture::new(numbered(0..98), &[]);
    fixture.join("zoe", Status::Busy);
    fixture.join("user-00050", Status::Away);
    fixture.join("invisible", Status::Offline);
    fixture.delivered();
    let joined = fixture.joined("yan");
    assert_eq!(joined["memberCount"], 101);
    let list = &joined["members"];
    let mut expected = vec![
        "user-00050".to_owned(),
        "yan".into(),
        "zoe".into(),
        "invisible".into(),
    ];
    expected.extend(numbered(0..97).filter(|user| user != "user-00050"));
    assert_eq!(names(list), expected);
    assert_eq!(list[0], json!({ "status": "away", "userId": "user-00050" }));
    assert_eq!(list[3]["status"], "offline");
    assert_eq!(list[99]["status"], "offline");
}

#[test]
fn pages_of_members_contain_every_member_once_in_order() {
    let mut fixture = Fixture::new(numbered(0..2_345), &[]);
    fixture.joined("user-00007");
    let (mut all, mut after) = (Vec::new(), None);
    for page in 0..3 {
        let answer = fixture.members("user-00007", after.as_deref(), 1_000);
        assert_eq!(answer["roomId"], "r");
        assert_eq!(answer["memberCount"], 2_345);
        assert_eq!(answer["more"], page < 2);
        all.extend(names(&answer["members"]).into_iter().map(str::to_owned));
        after = all.last().cloned();
    }
    assert!(all.iter().cloned().eq(numbered(0..2_345)));
    let answer = fixture.members("user-00007", Some("zzz"), 1);
    assert_eq!(
        (&answer["members"], &answer["more"]),
        (&json!([]), &json!(false))
    );
    // The page continues after a member that has left.
    let user = UserId::trusted("user-00100");
    fixture.serve(Request::RemoveMember { user });
    let answer = fixture.members("user-00007", Some("user-00100"), 1);
    assert_eq!(names(&answer["members"]), ["user-00101"]);
}

#[test]
fn lists_for_http_are_paged_and_name_the_next_page() {
    let mut fixture = Fixture::new(numbered(0..5), &[]);
    for presence in [false, true] {
        let (mut all, mut after) = (Vec::new(), None::<String>);
        loop {
            let (head, body) = fixture.http(presence, after.as_deref(), 2);
            assert_eq!(head["memberCount"], 5);
            let body: Value = serde_json::from_str(&body).expect("JSON");
            if presence {
                assert_eq!(body["memberCount"], 5);
                assert_eq!(body["more"], !head["next"].is_null());
            }
            let list = if presence { &body["users"] } else { &body };
            all.extend(names(list).into_iter().map(str::to_owned));
            after = head["next"].as_str().map(str::to_owned);
            match &after {
                Some(after) => assert_eq!(Some(after), all.last()),
                None => break,
            }
        }
        assert!(all.into_iter().eq(numbered(0..5)));
    }
}

#[test]
fn pages_have_at_most_256_kib_however_long_the_ids_are() {
    let long = |number: u32| format!("{number:05}{}", "x".repeat(250));
    let mut fixture = Fixture::new((0..2_000).map(long), &[]);
    for presence in [false, true] {
        let (head, body) = fixture.http(presence, None, 1_000);
        assert!(!head["next"].is_null());
        assert!(
            (250_000..256 * 1024 + 100).contains(&body.len()),
            "{}",
            body.len()
        );
    }
    fixture.joined(&long(7));
    let answer = fixture.members(&long(7), None, 1_000).to_string();
    assert!(answer.len() < 256 * 1024 + 100);
}

#[test]
fn requests_of_older_workers_are_answered_with_at_most_1000_members() {
    let mut fixture = Fixture::new(numbered(0..1_500), &[]);
    let members: Value = serde_json::from_str(&fixture.serve(Request::Members)).expect("JSON");
    assert_eq!(names(&members).len(), 1_000);
    let presence: Value = serde_json::from_str(&fixture.serve(Request::Presence)).expect("JSON");
    assert_eq!(names(&presence["users"]).len(), 1_000);
}

#[test]
fn a_large_page_of_members_counts_as_several_requests() {
    let settings = [("JOINS_PER_SECOND", "0.01"), ("JOINS_BURST", "10")];
    let mut fixture = Fixture::new(numbered(0..1_000), &settings);
    fixture.joined("user-00001");
    let mut answered = 0;
    while fixture.members("user-00001", None, 1_000)["code"] != "rateLimited" {
        answered += 1;
    }
    // Each page has about 43 kB, which counts as two requests.
    assert_eq!(answered, 5);
    fixture.joined("user-00002");
    let mut answered = 0;
    while fixture.members("user-00002", None, 10)["code"] != "rateLimited" {
        answered += 1;
    }
    assert_eq!(answered, 10);
}

#[test]
fn the_http_reads_of_each_user_are_limited_by_number_and_size() {
    let settings = [("JOINS_PER_SECOND", "1"), ("JOINS_BURST", "4")];
    let mut room = Fixture::new([], &settings).room;
    for _ in 0..4 {
        room.admit_reader("alice", NOW).expect("admitted");
        room.reader_answered("alice", 1_000);
    }
    let refused = room.admit_reader("alice", NOW).expect_err("too many");
    assert_eq!(refused.retry_after, Some(1_000));
    room.admit_reader("bob", NOW).expect("has its own limit");
    room.reader_answered("bob", 256 * 1024);
    let refused = room.admit_reader("bob", NOW).expect_err("too much");
    assert_eq!(
        refused.retry_after,
        Some(2_000),
        "the debt is a quarter of the burst"
    );
}
