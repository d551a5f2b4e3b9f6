//! The list of scenarios.

use super::bystanders::{KINDS, Kind};
use super::{Context, Outcome, crowds, readers, stopped, strangers};
use std::time::Duration;

/// A scenario.
pub(super) struct Scenario {
    pub name: &'static str,
    /// The description that `--list` prints.
    pub about: &'static str,
    /// Settings of the server, in addition to the defaults.
    pub settings: &'static [(&'static str, &'static str)],
    /// The kinds of bystanders.
    pub bystanders: &'static [Kind],
    /// The server restarts, so disconnects are expected and latency is not judged.
    pub restarts: bool,
    load: Load,
}

/// The load of a scenario.
#[derive(Clone, Copy, Debug)]
enum Load {
    PacketBombs,
    ConnectFlood,
    Attachments,
    HalfOpen,
    RefusedCost,
    NonReading(Kind),
    LargeLog,
    Members,
    MassReconnect,
    RoomRestart,
    GatewayStopped(Duration),
    StorageFull,
}

/// All clients are at one gateway, together with the bystanders.
const ONE_GATEWAY: &[(&str, &str)] = &[("GATEWAY_SHARDS", "1")];

/// [`ONE_GATEWAY`], with rate limits that the load of a scenario does not reach.
const LARGE: &[(&str, &str)] = &[
    ("GATEWAY_SHARDS", "1"),
    ("MAX_MEMBERS", "20000"),
    ("RETENTION_EVENTS", "10000000"),
    ("MESSAGES_PER_SECOND", "100000"),
    ("MESSAGES_BURST", "100000"),
    ("COMMANDS_PER_SECOND", "100000"),
    ("COMMANDS_BURST", "100000"),
];

const fn scenario(name: &'static str, about: &'static str, load: Load) -> Scenario {
    Scenario {
        name,
        about,
        settings: ONE_GATEWAY,
        bystanders: &KINDS,
        restarts: false,
        load,
    }
}

/// The scenarios, in the order in which they run.
pub(super) const SCENARIOS: [Scenario; 15] = [
    scenario(
        "packet-bombs",
        "strangers send bodies and frames of the smallest packets",
        Load::PacketBombs,
    ),
    scenario(
        "connect-flood",
        "strangers send CONNECTs with invalid tokens, on many sessions",
        Load::ConnectFlood,
    ),
    scenario(
        "attachments",
        "80 strangers announce binary attachments and send 900 kB each",
        Load::Attachments,
    ),
    scenario(
        "half-open",
        "1,000 connections that stop in the middle of a request or a handshake",
        Load::HalfOpen,
    ),
    scenario(
        "refused-cost",
        "processor time of requests and CONNECTs without a valid token",
        Load::RefusedCost,
    ),
    scenario(
        "non-reading-direct",
        "30 clients of a room do not read while 30 MB are published",
        Load::NonReading(Kind::Direct),
    ),
    scenario(
        "non-reading-gateway",
        "the same with native sockets at a gateway",
        Load::NonReading(Kind::Gateway),
    ),
    scenario(
        "non-reading-polling",
        "the same with sessions on long-polling that do not poll",
        Load::NonReading(Kind::Polling),
    ),
    Scenario {
        settings: LARGE,
        ..scenario(
            "large-log",
            "50 clients read a log of 150 MB at once",
            Load::LargeLog,
        )
    },
    Scenario {
        settings: LARGE,
        ..scenario(
            "members",
            "2,000 clients join a room with 10,000 members",
            Load::Members,
        )
    },
    Scenario {
        settings: LARGE,
        restarts: true,
        ..scenario(
            "mass-reconnect",
            "5,000 clients return after kill -9, each missed 100 events",
            Load::MassReconnect,
        )
    },
    Scenario {
        settings: LARGE,
        restarts: true,
        ..scenario(
            "room-restart",
            "a room restarts that has received 1,000 messages/s for a minute",
            Load::RoomRestart,
        )
    },
    Scenario {
        bystanders: &[Kind::Direct],
        ..scenario(
            "gateway-stopped-30s",
            "a gateway does not accept deliveries for 30 s",
            Load::GatewayStopped(Duration::from_secs(30)),
        )
    },
    Scenario {
        bystanders: &[Kind::Direct],
        ..scenario(
            "gateway-stopped-180s",
            "a gateway does not accept deliveries for 3 minutes",
            Load::GatewayStopped(Duration::from_secs(180)),
        )
    },
    Scenario {
        bystanders: &[],
        ..scenario(
            "storage-full",
            "the storage of a room is full, then has space again",
            Load::StorageFull,
        )
    },
];

impl Scenario {
    /// Applies the load until it ends.
    pub(super) async fn run(&self, context: &Context) -> Result<Outcome, String> {
        match self.load {
            Load::PacketBombs => strangers::packet_bombs(context).await,
            Load::ConnectFlood => strangers::connect_flood(context).await,
            Load::Attachments => strangers::attachments(context).await,
            Load::HalfOpen => strangers::half_open(context).await,
            Load::RefusedCost => strangers::refused_cost(context).await,
            Load::NonReading(kind) => readers::non_reading(context, kind).await,
            Load::LargeLog => readers::large_log(context).await,
            Load::Members => crowds::members(context).await,
            Load::MassReconnect => crowds::mass_reconnect(context).await,
            Load::RoomRestart => crowds::room_restart(context).await,
            Load::GatewayStopped(time) => stopped::gateway(context, time).await,
            Load::StorageFull => stopped::storage(context).await,
        }
    }
}
