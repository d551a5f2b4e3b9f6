//! What is measured: the three scenarios of the module that roomcast
//! reimplements, and one of its gateways; and the figures that each gives.

use crate::load::{self, Rush};
use crate::steady;
use crate::target::{Peer, Target};
use std::sync::Arc;
use std::time::Duration;

/// One kind of load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scenario {
    /// One sender in a room of `sockets`, with `in_flight` messages under way.
    Throughput { sockets: usize, in_flight: usize },
    /// `connects` users connect to one room at once.
    Spike { connects: usize },
    /// `clients` are cut off, miss `missed` events each, and all resume at once.
    Reconnect { clients: usize, missed: u64 },
    /// `rate` messages a second to a room of `sockets` besides the sender's.
    Gateway { sockets: usize, rate: u32 },
}

/// The scenarios of `run`, in the order of the tables.
pub const SCENARIOS: [Scenario; 8] = [
    Scenario::Throughput {
        sockets: 2,
        in_flight: 1,
    },
    Scenario::Throughput {
        sockets: 2,
        in_flight: 16,
    },
    Scenario::Throughput {
        sockets: 100,
        in_flight: 16,
    },
    Scenario::Throughput {
        sockets: 500,
        in_flight: 16,
    },
    Scenario::Spike { connects: 1000 },
    Scenario::Reconnect {
        clients: 500,
        missed: 100,
    },
    // What all can do on two cores, for latencies worth comparing.
    Scenario::Gateway {
        sockets: 1000,
        rate: 20,
    },
    Scenario::Gateway {
        sockets: 1000,
        rate: 200,
    },
];

/// Something that a scenario measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Metric {
    Deliveries,
    Messages,
    Connects,
    Replayed,
    Total,
    P50,
    P99,
    RowsPerMessage,
    Others,
    Drain,
    Missing,
    ServerCpu,
    GeneratorCpu,
}

impl Metric {
    /// As the tables head it; also the key in the JSON file.
    pub fn name(self) -> &'static str {
        match self {
            Metric::Deliveries => "deliveries/s",
            Metric::Messages => "messages/s",
            Metric::Connects => "connects/s",
            Metric::Replayed => "events/s",
            Metric::Total => "all done, ms",
            Metric::P50 => "p50 ms",
            Metric::P99 => "p99 ms",
            Metric::RowsPerMessage => "rows/message",
            Metric::Others => "presence and membership events",
            Metric::Drain => "last one there after, ms",
            Metric::Missing => "never came",
            Metric::ServerCpu => "server, cores",
            Metric::GeneratorCpu => "generator, cores",
        }
    }

    /// Digits after the point.
    pub fn digits(self) -> usize {
        match self {
            Metric::Deliveries
            | Metric::Messages
            | Metric::Connects
            | Metric::Replayed
            | Metric::Total
            | Metric::Others
            | Metric::Drain
            | Metric::Missing => 0,
            Metric::P50
            | Metric::P99
            | Metric::RowsPerMessage
            | Metric::ServerCpu
            | Metric::GeneratorCpu => 2,
        }
    }
}

/// The figures of one measurement.
pub type Figures = Vec<(Metric, f64)>;

/// The share of what was sent that must have arrived while it was being sent,
/// to call it keeping up: what is under way at the end is not late.
const ENOUGH: f64 = 0.98;

/// How long things are measured.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    pub warm_up: Duration,
    pub measure: Duration,
}

impl Scenario {
    /// The title of the table that it belongs to.
    pub fn table(self) -> &'static str {
        match self {
            Scenario::Throughput { .. } => "Throughput: one sender, sockets × messages in flight",
            Scenario::Spike { .. } => "Connection spike: distinct users, one room, all at once",
            Scenario::Reconnect { .. } => "Reconnection: all resume by `since` at once",
            Scenario::Gateway { .. } => {
                "Gateways: one room, sockets × messages a second, whether it keeps up or not"
            }
        }
    }

    /// The name of its rows.
    pub fn name(self) -> String {
        match self {
            Scenario::Throughput { sockets, in_flight } => format!("{sockets}×{in_flight}"),
            Scenario::Spike { connects } => format!("{connects} connects"),
            Scenario::Reconnect { clients, missed } => format!("{clients} × {missed} missed"),
            Scenario::Gateway { sockets, rate } => format!("gateway, {sockets}×{rate}/s"),
        }
    }

    /// Who is measured, in the order of the table; the first is what the others
    /// are compared with.
    pub fn peers(self) -> &'static [Peer] {
        match self {
            Scenario::Gateway { .. } => &[
                Peer::Roomcast,
                Peer::Gateway,
                Peer::GatewaySocketIo,
                Peer::Node,
            ],
            _ => &[Peer::Bare, Peer::Roomcast],
        }
    }

    /// Whether these figures are of a server that kept up with what it was
    /// given; one that is asked for as much as it can always does.
    pub fn kept_up(self, figures: &Figures) -> bool {
        let Scenario::Gateway { sockets, rate } = self else {
            return true;
        };
        let enough = sockets as f64 * f64::from(rate) * ENOUGH;
        figures.iter().all(|(metric, value)| match metric {
            Metric::Deliveries => *value >= enough,
            Metric::Missing => *value == 0.0,
            _ => true,
        })
    }

    /// The figures of which the ratio to the bare object is told.
    pub fn compared(self) -> &'static [Metric] {
        match self {
            Scenario::Throughput { .. } => &[Metric::Deliveries, Metric::P50],
            Scenario::Spike { .. } => &[Metric::Connects, Metric::P50],
            Scenario::Reconnect { .. } => &[Metric::Replayed, Metric::P50],
            Scenario::Gateway { .. } => &[Metric::Deliveries, Metric::P50, Metric::P99],
        }
    }

    /// Measures once, on a server that nobody has used before.
    pub async fn run(self, target: &Arc<Target>, timing: Timing) -> Result<Figures, String> {
        match self {
            Scenario::Throughput { sockets, in_flight } => {
                let mut run =
                    load::throughput(target, sockets, in_flight, timing.warm_up, timing.measure)
                        .await?;
                let mut figures = vec![
                    (Metric::Deliveries, run.deliveries as f64 / run.seconds),
                    (Metric::Messages, run.latencies.len() as f64 / run.seconds),
                ];
                figures.extend(percentiles(&mut run.latencies));
                figures.push((Metric::ServerCpu, run.server_cpu));
                figures.push((Metric::GeneratorCpu, run.generator_cpu));
                Ok(figures)
            }
            Scenario::Spike { connects } => {
                let rush = load::spike(target, connects).await?;
                let rate = (Metric::Connects, connects as f64 / rush.seconds);
                Ok(rushed(rate, rush))
            }
            Scenario::Reconnect { clients, missed } => {
                let rush = load::reconnect(target, clients, missed).await?;
                let events = clients as f64 * missed as f64;
                Ok(rushed((Metric::Replayed, events / rush.seconds), rush))
            }
            Scenario::Gateway { sockets, rate } => {
                let mut run =
                    steady::steady(target, sockets, rate, timing.warm_up, timing.measure).await?;
                let deliveries = run.deliveries as f64 / run.seconds;
                let mut figures = vec![(Metric::Deliveries, deliveries)];
                figures.extend(percentiles(&mut run.latencies));
                figures.push((Metric::Drain, run.drain.as_secs_f64() * 1000.0));
                figures.push((Metric::Missing, run.missing as f64));
                figures.push((Metric::ServerCpu, run.server_cpu));
                figures.push((Metric::GeneratorCpu, run.generator_cpu));
                Ok(figures)
            }
        }
    }

    /// Whether messages are what it is about, and so what they cost in storage.
    pub fn counts_rows(self) -> bool {
        matches!(self, Scenario::Throughput { .. })
    }

    /// The rows written per message: a short run of its own, so that counting
    /// costs no measured time.
    pub async fn count_rows(self, target: &Arc<Target>) -> Result<f64, String> {
        let Scenario::Throughput { sockets, in_flight } = self else {
            return Err("there are no messages to count rows for".to_owned());
        };
        let short = Duration::from_secs(1);
        let run = load::throughput(target, sockets, in_flight, short, short).await?;
        let rows = target.rows_written(load::ROOM).await?;
        if rows.messages != run.messages {
            return Err(format!(
                "{} counted rows for {} messages, {} were sent",
                target.peer.name(),
                rows.messages,
                run.messages
            ));
        }
        Ok(rows.rows as f64 / rows.messages as f64)
    }
}

fn rushed(rate: (Metric, f64), mut rush: Rush) -> Figures {
    let mut figures = vec![rate, (Metric::Total, rush.seconds * 1000.0)];
    figures.extend(percentiles(&mut rush.waits));
    figures.push((Metric::Others, rush.others as f64));
    figures
}

/// Median and 99th percentile (nearest rank) of microseconds, in milliseconds.
fn percentiles(micros: &mut [u32]) -> [(Metric, f64); 2] {
    micros.sort_unstable();
    let rank = |share: f64| {
        let index = (micros.len() as f64 * share).ceil() as usize;
        let value = micros.get(index.saturating_sub(1)).copied();
        value.map_or(f64::NAN, |micros| micros as f64 / 1000.0)
    };
    [(Metric::P50, rank(0.5)), (Metric::P99, rank(0.99))]
}
