//! Scenarios: the load, the measured implementations and the metrics.

use crate::load::fanout::{self, Load};
use crate::load::rush::{self, Rush};
use crate::load::{ROOM, bill, growth, idle, publish, steady, wake};
use crate::target::{Peer, Target};
use std::sync::Arc;
use std::time::Duration;

/// One kind of load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scenario {
    /// One sender in a room of `sockets`, with `in_flight` messages in flight.
    FanOut { sockets: usize, in_flight: usize },
    /// One sender in each of many rooms, with one message in flight.
    Rooms { rooms: usize, sockets: usize },
    /// `connects` users connect to one room at the same time.
    Spike { connects: usize },
    /// `clients` are disconnected, miss `missed` events, and resume at the same time.
    Reconnect { clients: usize, missed: u64 },
    /// A service publishes over HTTP, with `batch` events per request.
    Publish { batch: usize },
    /// Hibernated rooms are woken by a frame.
    Wake,
    /// Memory of idle connections.
    Idle { sockets: usize },
    /// Rooms with logs of different lengths.
    Growth,
    /// `rate` messages per second to a room with `sockets` receiving clients.
    Steady { sockets: usize, rate: u32 },
    /// Cost of a chat with this many receivers.
    Bill { receivers: usize },
    /// Cost of idle connections.
    Upkeep,
}

const fn fan_out(sockets: usize, in_flight: usize) -> Scenario {
    Scenario::FanOut { sockets, in_flight }
}

/// The scenarios of `run`, in the order of the tables.
pub(crate) const SCENARIOS: [Scenario; 27] = [
    fan_out(2, 1),
    fan_out(100, 1),
    fan_out(500, 1),
    fan_out(2000, 1),
    fan_out(2, 16),
    fan_out(100, 16),
    fan_out(500, 16),
    fan_out(2000, 16),
    fan_out(2, 128),
    fan_out(100, 128),
    fan_out(500, 128),
    fan_out(2000, 128),
    Scenario::Rooms {
        rooms: 200,
        sockets: 5,
    },
    Scenario::Spike { connects: 2000 },
    Scenario::Reconnect {
        clients: 500,
        missed: 100,
    },
    Scenario::Reconnect {
        clients: 500,
        missed: 1000,
    },
    Scenario::Publish { batch: 1 },
    Scenario::Publish { batch: 100 },
    Scenario::Wake,
    Scenario::Idle { sockets: 2000 },
    Scenario::Growth,
    // A rate that all implementations can handle on two cores, to compare latencies.
    Scenario::Steady {
        sockets: 1000,
        rate: 20,
    },
    Scenario::Steady {
        sockets: 1000,
        rate: 200,
    },
    Scenario::Bill { receivers: 10 },
    Scenario::Bill { receivers: 100 },
    Scenario::Bill { receivers: 1000 },
    Scenario::Upkeep,
];

/// A metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Metric {
    Deliveries,
    Messages,
    Connects,
    Replayed,
    Total,
    P50,
    P99,
    AwakeP50,
    RowsPerMessage,
    Others,
    Drain,
    Missing,
    MemoryAwake,
    MemoryHibernated,
    /// Latency of a join, a resume and a send with the log length at this index of
    /// [`growth::LOGS`].
    Join(usize),
    Resume(usize),
    Send(usize),
    Receipts,
    ActivePerMessage,
    Price,
    Alarms,
    ActivePerMonth,
    PricePerMonth,
    ServerCpu,
    GeneratorCpu,
}

impl Metric {
    /// The column title, and the key in the JSON file.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Metric::Deliveries => "deliveries/s",
            Metric::Messages => "messages/s",
            Metric::Connects => "connects/s",
            Metric::Replayed => "events/s",
            Metric::Total => "total ms",
            Metric::P50 => "p50 ms",
            Metric::P99 => "p99 ms",
            Metric::AwakeP50 => "awake, p50 ms",
            Metric::RowsPerMessage => "rows/message",
            Metric::Others => "presence and membership events",
            Metric::Drain => "last delivery after, ms",
            Metric::Missing => "not delivered",
            Metric::MemoryAwake => "kB/socket",
            Metric::MemoryHibernated => "kB/socket, hibernated",
            Metric::Join(0) => "join, log of 1k, ms",
            Metric::Join(1) => "join: 10k ÷ 1k",
            Metric::Join(_) => "join: 100k ÷ 1k",
            Metric::Resume(0) => "last 100, log of 1k, ms",
            Metric::Resume(1) => "last 100: 10k ÷ 1k",
            Metric::Resume(_) => "last 100: 100k ÷ 1k",
            Metric::Send(0) => "send, log of 1k, ms",
            Metric::Send(1) => "send: 10k ÷ 1k",
            Metric::Send(_) => "send: 100k ÷ 1k",
            Metric::Receipts => "receipts/message",
            Metric::ActivePerMessage => "active ms/message",
            Metric::Price => "$ per million messages",
            Metric::Alarms => "alarms/room and month",
            Metric::ActivePerMonth => "active s/room and month",
            Metric::PricePerMonth => "$ per month, 10,000 sockets",
            Metric::ServerCpu => "server, cores",
            Metric::GeneratorCpu => "generator, cores",
        }
    }

    /// Returns `true` if more is better. Less is better for times, memory and costs.
    pub(crate) fn is_rate(self) -> bool {
        matches!(
            self,
            Metric::Deliveries | Metric::Messages | Metric::Connects | Metric::Replayed
        )
    }

    /// Number of decimals.
    pub(crate) fn digits(self) -> usize {
        match self {
            Metric::Deliveries
            | Metric::Messages
            | Metric::Connects
            | Metric::Replayed
            | Metric::Total
            | Metric::Others
            | Metric::Drain
            | Metric::Missing
            | Metric::Alarms
            | Metric::ActivePerMonth => 0,
            Metric::MemoryAwake | Metric::MemoryHibernated => 1,
            _ => 2,
        }
    }
}

/// The figures of one measurement.
pub(crate) type Figures = Vec<(Metric, f64)>;

/// Share of the messages that must arrive during the measurement if the server keeps
/// up. Messages in flight at the end arrive later.
const KEEPS_UP: f64 = 0.98;

/// Durations of a measurement.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timing {
    pub warm_up: Duration,
    pub measure: Duration,
}

impl Scenario {
    /// The title of its table.
    pub(crate) fn table(self) -> &'static str {
        match self {
            Scenario::FanOut { .. } => {
                "Fan-out: one room, one sender, sockets × messages in flight"
            }
            Scenario::Rooms { .. } => "Many rooms: rooms × sockets, one message in flight in each",
            Scenario::Spike { .. } => "Connection spike: distinct users, one room, all at once",
            Scenario::Reconnect { .. } => "Reconnection: all resume at once",
            Scenario::Publish { .. } => {
                "Publishing over HTTP: events per request, 16 concurrent requests, 10 listeners"
            }
            Scenario::Wake => {
                "Wake-up: from a frame on the socket of a hibernated room to its acknowledgement"
            }
            Scenario::Idle { .. } => "Memory: idle sockets, 100 per room",
            Scenario::Growth => "Growth: rooms with logs of 1k, 10k and 100k events (median times)",
            Scenario::Steady { .. } => "Steady: one room, sockets × messages per second, open loop",
            Scenario::Bill { .. } => {
                "The bill: 10 messages per second, each receiver sends one receipt per second"
            }
            Scenario::Upkeep => "The bill: idle sockets that ping, 100 per room",
        }
    }

    /// The name of its rows.
    pub(crate) fn name(self) -> String {
        match self {
            Scenario::FanOut { sockets, in_flight } => format!("{sockets}×{in_flight}"),
            Scenario::Rooms { rooms, sockets } => format!("{rooms} rooms × {sockets}"),
            Scenario::Spike { connects } => format!("{connects} connects"),
            Scenario::Reconnect { clients, missed } => format!("{clients} × {missed} missed"),
            Scenario::Publish { batch } => format!("publish, {batch}"),
            Scenario::Wake => "wake".to_owned(),
            Scenario::Idle { sockets } => format!("{sockets} idle"),
            Scenario::Growth => "growth".to_owned(),
            Scenario::Steady { sockets, rate } => format!("steady, {sockets}×{rate}/s"),
            Scenario::Bill { receivers } => format!("bill, {receivers} receivers"),
            Scenario::Upkeep => "bill, idle".to_owned(),
        }
    }

    /// The measured implementations in the order of the table.
    pub(crate) fn peers(self) -> &'static [Peer] {
        use Peer::{Bare, Gateway, GatewaySocketIo, Original, PartyServer, Roomcast, Unstored};
        match self {
            // All implementations.
            Scenario::FanOut {
                sockets: ..=500,
                in_flight: 16,
            }
            | Scenario::Rooms { .. } => &[
                Bare,
                Unstored,
                PartyServer,
                Original,
                Roomcast,
                Gateway,
                GatewaySocketIo,
            ],
            Scenario::FanOut { .. } => &[Bare, Original, Roomcast],
            Scenario::Idle { .. } => &[Bare, Original, Roomcast, Gateway, GatewaySocketIo],
            // Without gateways: their answer to a join contains the member list, which is
            // more work than a connect.
            Scenario::Spike { .. } => &[Bare, PartyServer, Original, Roomcast],
            Scenario::Reconnect { .. } => &[Bare, PartyServer, Original, Roomcast, Gateway],
            Scenario::Publish { .. } => &[Bare, Original, Roomcast],
            Scenario::Wake => &[Bare, PartyServer, Roomcast],
            Scenario::Growth => &[Roomcast],
            Scenario::Steady { .. } => &[Roomcast, Gateway, GatewaySocketIo, Original],
            Scenario::Bill { .. } | Scenario::Upkeep => &[Bare, Roomcast],
        }
    }

    /// The baselines of the ratios.
    pub(crate) fn baselines(self) -> &'static [Peer] {
        match self {
            Scenario::Steady { .. } => &[Peer::Roomcast],
            Scenario::Growth | Scenario::Upkeep => &[],
            Scenario::Wake | Scenario::Bill { .. } => &[Peer::Bare],
            _ => &[Peer::Bare, Peer::Original],
        }
    }

    /// The metrics with ratios.
    pub(crate) fn compared(self) -> &'static [Metric] {
        match self {
            Scenario::FanOut { in_flight: 1, .. } | Scenario::Rooms { .. } => {
                &[Metric::Deliveries, Metric::P50]
            }
            Scenario::FanOut { .. } => &[Metric::Deliveries],
            Scenario::Spike { .. } => &[Metric::Connects],
            Scenario::Reconnect { .. } => &[Metric::Replayed],
            Scenario::Publish { .. } => &[Metric::Messages],
            Scenario::Wake => &[Metric::P50],
            Scenario::Idle { .. } => &[Metric::MemoryHibernated],
            Scenario::Growth | Scenario::Upkeep => &[],
            Scenario::Steady { .. } => &[Metric::Deliveries, Metric::P50, Metric::P99],
            Scenario::Bill { .. } => &[Metric::Price],
        }
    }

    /// Returns `true` if the server kept up with the load. Always `true` for closed-loop
    /// scenarios.
    pub(crate) fn kept_up(self, figures: &Figures) -> bool {
        let Scenario::Steady { sockets, rate } = self else {
            return true;
        };
        let enough = sockets as f64 * f64::from(rate) * KEEPS_UP;
        figures.iter().all(|(metric, value)| match metric {
            Metric::Deliveries => *value >= enough,
            Metric::Missing => *value == 0.0,
            _ => true,
        })
    }

    /// The required LOG_LEVEL, if the scenario reads the log.
    pub(crate) fn log_level(self) -> Option<&'static str> {
        matches!(self, Scenario::Bill { .. } | Scenario::Upkeep).then_some("info")
    }

    /// Returns the number of rounds for `requested` rounds. Counting takes long and gives
    /// the same result in every round.
    pub(crate) fn rounds(self, requested: u32) -> u32 {
        match self {
            Scenario::Upkeep => 1,
            _ => requested,
        }
    }

    /// Required settings.
    pub(crate) fn settings(self) -> &'static [(&'static str, &'static str)] {
        match self {
            // The logs must not be trimmed.
            Scenario::Growth => &[("RETENTION_EVENTS", "1000000")],
            Scenario::Upkeep => &[("GHOST_TIMEOUT", bill::CHECK_INTERVAL)],
            _ => &[],
        }
    }

    /// Measures once, on a new server.
    pub(crate) async fn run(self, target: &Arc<Target>, timing: Timing) -> Result<Figures, String> {
        let Timing { warm_up, measure } = timing;
        match self {
            Scenario::FanOut { sockets, in_flight } => {
                let load = Load {
                    rooms: 1,
                    sockets,
                    in_flight,
                    receipts: false,
                };
                Ok(throughput(
                    fanout::throughput(target, load, warm_up, measure).await?,
                ))
            }
            Scenario::Rooms { rooms, sockets } => {
                let load = Load {
                    rooms,
                    sockets,
                    in_flight: 1,
                    receipts: false,
                };
                Ok(throughput(
                    fanout::throughput(target, load, warm_up, measure).await?,
                ))
            }
            Scenario::Spike { connects } => {
                let rush = rush::spike(target, connects).await?;
                let rate = (Metric::Connects, connects as f64 / rush.seconds);
                Ok(rushed(rate, rush))
            }
            Scenario::Reconnect { clients, missed } => {
                let rush = rush::reconnect(target, clients, missed).await?;
                let events = clients as f64 * missed as f64;
                Ok(rushed((Metric::Replayed, events / rush.seconds), rush))
            }
            Scenario::Publish { batch } => {
                let mut run = publish::publish(target, batch, warm_up, measure).await?;
                let mut figures = vec![(Metric::Messages, run.messages as f64 / run.seconds)];
                figures.extend(percentiles(&mut run.latencies));
                figures.push((Metric::ServerCpu, run.server_cpu));
                Ok(figures)
            }
            Scenario::Wake => {
                let (mut hibernated, mut awake) = wake::wake(target).await?;
                let mut figures = percentiles(&mut hibernated).to_vec();
                figures.push((Metric::AwakeP50, median(&mut awake)));
                Ok(figures)
            }
            Scenario::Idle { sockets } => {
                let (awake, hibernated) = idle::memory(target, sockets).await?;
                Ok(vec![
                    (Metric::MemoryAwake, awake),
                    (Metric::MemoryHibernated, hibernated),
                ])
            }
            Scenario::Growth => {
                let mut rooms = growth::growth(target).await?;
                let mut figures = Figures::new();
                let mut compare =
                    |metric: fn(usize) -> Metric, times: fn(&mut growth::Room) -> &mut Vec<u32>| {
                        let medians = rooms.each_mut().map(|room| median(times(room)));
                        figures.push((metric(0), medians[0]));
                        figures.push((metric(1), medians[1] / medians[0]));
                        figures.push((metric(2), medians[2] / medians[0]));
                    };
                compare(Metric::Join, |room| &mut room.joins);
                compare(Metric::Resume, |room| &mut room.replays);
                compare(Metric::Send, |room| &mut room.sends);
                Ok(figures)
            }
            Scenario::Steady { sockets, rate } => {
                let mut run = steady::steady(target, sockets, rate, warm_up, measure).await?;
                let deliveries = run.deliveries as f64 / run.seconds;
                let mut figures = vec![(Metric::Deliveries, deliveries)];
                figures.extend(percentiles(&mut run.latencies));
                figures.push((Metric::Drain, run.drain.as_secs_f64() * 1000.0));
                figures.push((Metric::Missing, run.missing as f64));
                figures.push((Metric::ServerCpu, run.server_cpu));
                figures.push((Metric::GeneratorCpu, run.generator_cpu));
                Ok(figures)
            }
            Scenario::Bill { receivers } => {
                let used = bill::use_of(target, receivers).await?;
                Ok(vec![
                    (Metric::RowsPerMessage, used.rows),
                    (Metric::Receipts, used.receipts),
                    (Metric::ActivePerMessage, used.active_seconds * 1000.0),
                    (Metric::Price, used.price_of_a_million()),
                ])
            }
            Scenario::Upkeep => {
                let used = bill::upkeep(target).await?;
                Ok(vec![
                    (Metric::Alarms, used.alarms),
                    (Metric::ActivePerMonth, used.active_seconds),
                    (Metric::PricePerMonth, used.price_of_a_month()),
                ])
            }
        }
    }

    /// The scenario counts rows per message.
    pub(crate) fn counts_rows(self) -> bool {
        matches!(self, Scenario::FanOut { .. })
    }

    /// Counts the rows written per message, including receipts, in a separate short run,
    /// so that counting does not affect the measurements.
    pub(crate) async fn count_rows(self, target: &Arc<Target>) -> Result<f64, String> {
        let Scenario::FanOut { sockets, in_flight } = self else {
            return Err("only fan-out scenarios count rows".to_owned());
        };
        let load = Load {
            rooms: 1,
            sockets,
            in_flight,
            receipts: target.peer.is_roomcast(),
        };
        let (short, longer) = (Duration::from_millis(500), Duration::from_secs(2));
        let run = fanout::throughput(target, load, short, longer).await?;
        let rows = target.rows_written(ROOM).await?;
        if rows.messages != run.messages {
            return Err(format!(
                "{} counted rows of {} messages, but {} were sent",
                target.peer.name(),
                rows.messages,
                run.messages
            ));
        }
        if load.receipts && sockets > 1 && run.receipts == 0 {
            return Err("no receipt was sent".to_owned());
        }
        Ok(rows.rows as f64 / rows.messages as f64)
    }
}

fn throughput(mut run: fanout::Throughput) -> Figures {
    let mut figures = vec![
        (Metric::Deliveries, run.deliveries as f64 / run.seconds),
        (Metric::Messages, run.latencies.len() as f64 / run.seconds),
    ];
    figures.extend(percentiles(&mut run.latencies));
    figures.push((Metric::ServerCpu, run.server_cpu));
    figures.push((Metric::GeneratorCpu, run.generator_cpu));
    figures
}

fn rushed(rate: (Metric, f64), mut rush: Rush) -> Figures {
    let mut figures = vec![rate, (Metric::Total, rush.seconds * 1000.0)];
    figures.extend(percentiles(&mut rush.waits));
    figures.push((Metric::Others, rush.others as f64));
    figures
}

/// Returns median and 99th percentile of microseconds, in milliseconds.
fn percentiles(micros: &mut [u32]) -> [(Metric, f64); 2] {
    [
        (Metric::P50, median(micros)),
        (Metric::P99, quantile(micros, 0.99)),
    ]
}

fn median(micros: &mut [u32]) -> f64 {
    quantile(micros, 0.5)
}

/// Returns a quantile of microseconds by nearest rank, in milliseconds.
fn quantile(micros: &mut [u32], share: f64) -> f64 {
    micros.sort_unstable();
    let index = (micros.len() as f64 * share).ceil() as usize;
    let value = micros.get(index.saturating_sub(1)).copied();
    value.map_or(f64::NAN, |micros| micros as f64 / 1000.0)
}
