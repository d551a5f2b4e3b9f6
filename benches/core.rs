//! Benchmarks of the core alone, without storage and sockets.
//! `cargo bench --bench core` runs them.
//!
//! | group | measures |
//! | --- | --- |
//! | `decode` | decoding a frame to commands |
//! | `accept` | accepting 16 frames into the batch |
//! | `flush` | making a row and the frames of all sockets from a batch of 16 events |
//! | `welcome` | making the first frames of 100 connections that join in one batch |
//! | `replay` | cutting missed events out of a row of the log |

#![allow(
    missing_docs,
    reason = "the macros of criterion define public functions"
)]

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use roomcast::config::Config;
use roomcast_proto::access::Rights;
use roomcast_proto::framing;
use roomcast_proto::id::{ConnectionId, Epoch, RoomName, UserId};
use roomcast_proto::log_text::slice;
use roomcast_proto::position::Position;
use roomcast_proto::status::Status;
use roomcast_proto::time::Millis;
use roomcast_room::{ConnId, ConnectRequest, Frame, Room, Snapshot};
use std::hint::black_box;
use std::rc::Rc;

const NOW: Millis = 1_800_000_000_000;

const MESSAGE: &str = r#"{"event":"sendMessage","data":{"content":"the quick brown fox jumps over the lazy dog, and then it rests."},"id":7}"#;

/// Messages in a batch, as with 16 in flight.
const IN_FLIGHT: usize = 16;

fn room() -> Room {
    let vars = |name: &str| match name {
        "JWT_SECRET" => Some("x".repeat(32)),
        // The rate limits are high, because the benchmark does not advance the clock.
        "MESSAGES_PER_SECOND" | "MESSAGES_BURST" | "MAX_CONNECTIONS_PER_USER" => {
            Some("1000000".to_owned())
        }
        _ => None,
    };
    let config = Rc::new(Config::read(vars).expect("settings"));
    let snapshot = Snapshot {
        life: "1".into(),
        epoch: Epoch::trusted("e"),
        ..Snapshot::default()
    };
    Room::new(RoomName::trusted("bench"), config.room.clone(), snapshot)
}

fn connect_request(user: usize) -> ConnectRequest {
    ConnectRequest {
        connection_id: ConnectionId::trusted(format!("connection-{user}")),
        user: UserId::trusted(format!("user-{user}")),
        token: Default::default(),
        needs_message_ids: false,
        rights: Rights::MEMBER,
        expires: NOW + 3_600_000,
        address: None,
        position: Position::default(),
        status: Status::Online,
        info: None,
    }
}

/// Returns a room with `sockets` connections, whose joins and presence have been sent.
fn crowded(sockets: usize) -> (Room, ConnId) {
    let mut room = room();
    let mut out = Vec::new();
    let conns: Vec<ConnId> = (0..sockets)
        .map(|user| room.connect(connect_request(user), |_| None, NOW, &mut out))
        .collect();
    for delay in [0, 2_000, 4_000] {
        room.flush(NOW + delay, &mut out);
    }
    (room, conns[0])
}

fn send(room: &mut Room, conn: ConnId, count: usize) {
    let mut out = Vec::new();
    for _ in 0..count {
        room.receive(conn, Frame::Text(MESSAGE), NOW + 5_000, &mut out);
    }
}

fn decode(c: &mut Criterion) {
    let mut group = c.benchmark_group("decode");
    for lines in [1, 16] {
        let frame = [MESSAGE].repeat(lines).join("\n");
        group.throughput(Throughput::Elements(lines as u64));
        group.bench_function(format!("{lines} lines"), |b| {
            b.iter(|| framing::decode(black_box(&frame)).map(|lines| lines.len()));
        });
    }
    group.finish();
}

fn accept(c: &mut Criterion) {
    c.benchmark_group("accept")
        .throughput(Throughput::Elements(IN_FLIGHT as u64))
        .bench_function("16 frames", |b| {
            b.iter_batched_ref(
                || crowded(100),
                |(room, conn)| send(room, *conn, IN_FLIGHT),
                BatchSize::LargeInput,
            );
        });
}

fn flush(c: &mut Criterion) {
    let mut group = c.benchmark_group("flush");
    group.throughput(Throughput::Elements(IN_FLIGHT as u64));
    for sockets in [2, 100, 500] {
        group.bench_function(format!("16 events, {sockets} sockets"), |b| {
            b.iter_batched_ref(
                || {
                    let (mut room, conn) = crowded(sockets);
                    send(&mut room, conn, IN_FLIGHT);
                    room
                },
                |room| {
                    let mut out = Vec::new();
                    room.flush(NOW + 5_000, &mut out);
                    out
                },
                BatchSize::LargeInput,
            );
        });
    }
    group.finish();
}

fn welcome(c: &mut Criterion) {
    c.benchmark_group("welcome")
        .throughput(Throughput::Elements(100))
        .bench_function("100 arrivals", |b| {
            b.iter_batched_ref(
                || {
                    let mut room = room();
                    let mut out = Vec::new();
                    for user in 0..100 {
                        room.connect(connect_request(user), |_| None, NOW, &mut out);
                    }
                    room
                },
                |room| {
                    let mut out = Vec::new();
                    room.flush(NOW, &mut out);
                    room.flush(NOW + 2_000, &mut out);
                    out
                },
                BatchSize::LargeInput,
            );
        });
}

fn replay(c: &mut Criterion) {
    let line = framing::ack(7, &"x".repeat(200));
    let row = vec![line; 1_000].join("\n");
    c.benchmark_group("replay")
        .throughput(Throughput::Elements(500))
        .bench_function("500 of a row of 1,000", |b| {
            b.iter(|| slice(1, black_box(&row), 250, 750).len());
        });
}

criterion_group!(core, decode, accept, flush, welcome, replay);
criterion_main!(core);
