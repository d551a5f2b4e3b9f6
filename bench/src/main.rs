//! Benchmarks against other implementations (`run`), replay of a chat log (`replay`),
//! fault injection (`chaos`), overload tests (`overload`) and limits of memory (`limits`).
//!
//! | module | |
//! | --- | --- |
//! | `socket` | a minimal WebSocket client |
//! | `check` | checks that events arrive in order, without holes, each once |
//! | `dialect` | the protocols of clients |
//! | `target` | a started server of one implementation |
//! | `node` | the NestJS implementation, which is not a Worker |
//! | `client`, `listeners`, `sender` | clients that connect, receive and send |
//! | `load` | the loads, one module for each kind |
//! | `scenario` | the scenarios and their metrics |
//! | `report` | tables and a JSON file of the figures |
//! | `compare` | comparison of two builds of roomcast |
//! | `replay` | sends a chat log and compares it with the received events |
//! | `chaos` | faults while users send, and a verification |
//! | `limits` | hostile and large clients, with a small memory |
//! | `overload` | more load than a room accepts, and hostile clients |

#![forbid(unsafe_code)]

mod chaos;
mod check;
mod client;
mod compare;
mod dialect;
mod limits;
mod listeners;
mod load;
mod machine;
mod node;
mod overload;
mod replay;
mod report;
mod scenario;
mod sender;
mod socket;
mod target;

use clap::{Args, Parser, Subcommand};
use machine::Machine;
use report::{Entry, Report};
use scenario::{SCENARIOS, Scenario, Timing};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use target::{Peer, Start, Target};

/// Default of `--rounds`.
const ROUNDS: u32 = 5;

#[derive(Parser)]
#[command(about = "Benchmarks, chat-log replay, fault injection and overload tests of roomcast")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Measures all implementations in turns and prints tables. With --baseline: compares
    /// two builds of roomcast.
    Run(RunOptions),
    /// Sends a chat log through real connections and compares it with the received events.
    Replay(replay::Options),
    /// Injects faults while users send messages, and verifies that nothing is lost.
    Chaos(chaos::Options),
    /// Sends more than a room accepts, and measures the effect of hostile clients.
    Overload(overload::Options),
    /// Runs hostile and large clients against a server with 64 MiB of memory, and measures
    /// their effect on other clients.
    Limits(limits::Options),
}

#[derive(Args)]
struct RunOptions {
    /// Number of measurements of each implementation in each scenario [default: 5, or 9 with
    /// --baseline].
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: Option<u32>,
    /// Duration of each throughput measurement in seconds, after a warm-up.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..))]
    seconds: u64,
    /// Only scenarios whose name contains one of these: `--only 100x16,connects` (`x`
    /// matches `×`).
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Only implementations whose name contains one of these: `--peer bare,room`.
    /// `room` is roomcast without a gateway.
    #[arg(long, value_delimiter = ',')]
    peer: Vec<String>,
    /// Folder of the roomcast build to measure instead of build/release.
    #[arg(long, value_name = "DIR")]
    build: Option<PathBuf>,
    /// Compares the build with the roomcast build in this folder, instead of other
    /// implementations. Both are measured in each round, in alternating order. A difference
    /// is "within noise" if the 95 % interval of the median ratio (sign test) contains 1;
    /// this needs 6 rounds or more. Without --only: fan-out 2×1, 2×16, 100×16, 500×16 and
    /// 500×128, connects, replay and wake. Without --peer: rooms without a gateway.
    #[arg(long, value_name = "DIR")]
    baseline: Option<PathBuf>,
    /// A setting of roomcast, such as `GATEWAY_SHARDS=1`. Can be repeated.
    #[arg(long, value_name = "NAME=VALUE", value_parser = setting)]
    set: Vec<(String, String)>,
    /// LOG_LEVEL of roomcast during measurements.
    #[arg(long, default_value = "warn")]
    log_level: String,
    /// Path of the JSON file with the figures [default: target/bench/results.json, or
    /// comparison.json with --baseline].
    #[arg(long)]
    json: Option<PathBuf>,
}

/// The load generator has one thread, so that the server can use the other core.
#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    machine::raise_open_files();
    let result = match Cli::parse().command {
        Command::Run(options) => run(options).await.map(|()| true),
        Command::Replay(options) => replay::run(options).await,
        Command::Chaos(options) => chaos::run(options).await,
        Command::Overload(options) => overload::run(options).await,
        Command::Limits(options) => limits::run(options).await,
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn setting(text: &str) -> Result<(String, String), String> {
    let (name, value) = text
        .split_once('=')
        .ok_or("a setting has the form NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

impl RunOptions {
    /// Returns `true` if `--only` selects the scenario.
    fn selects(&self, scenario: Scenario) -> bool {
        let name = scenario.name();
        let mut only = self.only.iter();
        self.only.is_empty() || only.any(|part| name.contains(&part.replace('x', "×")))
    }

    /// Returns the implementations of a scenario that `--peer` selects.
    fn peers(&self, scenario: Scenario) -> Vec<Peer> {
        let mut peers = scenario.peers().to_vec();
        if !self.peer.is_empty() {
            peers.retain(|peer| {
                let names = |wanted: &String| match wanted == "room" {
                    true => *peer == Peer::Roomcast,
                    false => peer.name().contains(wanted.as_str()),
                };
                self.peer.iter().any(names)
            });
        }
        peers
    }

    fn timing(&self) -> Timing {
        Timing {
            warm_up: Duration::from_secs(1),
            measure: Duration::from_secs(self.seconds),
        }
    }

    /// Returns the path of `--json`, or that of `file` in the default folder.
    fn json(&self, file: &str) -> PathBuf {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bench");
        self.json.clone().unwrap_or_else(|| folder.join(file))
    }
}

/// Compares two builds.
async fn compare(options: RunOptions, baseline: PathBuf) -> Result<(), String> {
    let scenarios: &[Scenario] = match options.only.is_empty() {
        true => &compare::SCENARIOS,
        false => &SCENARIOS,
    };
    let mut selected = Vec::new();
    for scenario in scenarios
        .iter()
        .copied()
        .filter(|one| options.selects(*one))
    {
        let peers = options.peers(scenario).into_iter();
        let is_compared = |peer: &Peer| match options.peer.is_empty() {
            true => *peer == Peer::Roomcast,
            false => peer.is_roomcast(),
        };
        selected.extend(peers.filter(is_compared).map(|peer| (scenario, peer)));
    }
    if selected.is_empty() {
        return Err("no scenario of roomcast matches --only and --peer".to_owned());
    }
    let comparison = compare::Comparison {
        baseline,
        build: options.build.clone(),
        rounds: options.rounds.unwrap_or(compare::ROUNDS),
        timing: options.timing(),
        log_level: options.log_level.clone(),
        settings: options.set.clone(),
        json: options.json("comparison.json"),
    };
    compare::run(&comparison, &selected).await
}

async fn run(mut options: RunOptions) -> Result<(), String> {
    if let Some(baseline) = options.baseline.take() {
        return compare(options, baseline).await;
    }
    let timing = options.timing();
    let rounds = options.rounds.unwrap_or(ROUNDS);
    let json = options.json("results.json");
    let build = options.build.clone();
    let start = |scenario: Scenario, log_level: &str| {
        let needed = scenario.settings().iter();
        Start {
            log_level: log_level.to_owned(),
            build: build.clone(),
            settings: needed
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .chain(options.set.iter().cloned())
                .collect(),
        }
    };
    let selected = |scenario: &Scenario| options.selects(*scenario);
    let scenarios: Vec<Scenario> = SCENARIOS.into_iter().filter(selected).collect();
    if scenarios.is_empty() {
        return Err("no scenario matches --only".to_owned());
    }
    let mut report = Report {
        date: machine::now(),
        machine: Machine::describe(),
        rounds: rounds as usize,
        seconds: options.seconds,
        log_level: options.log_level.clone(),
        entries: Vec::new(),
        notes: Vec::new(),
    };
    for scenario in scenarios {
        let mut peers = options.peers(scenario);
        peers.retain(|peer| {
            let missing = peer.missing();
            if let Some(reason) = missing {
                let (scenario, peer) = (scenario.name(), peer.name());
                let note = format!("{scenario}: {peer} was not measured: {reason}.");
                eprintln!("{note}");
                report.notes.push(note);
            }
            missing.is_none()
        });
        let mut entries: Vec<Entry> = peers
            .into_iter()
            .map(|peer| Entry {
                scenario,
                peer,
                rows: None,
                rounds: Vec::new(),
            })
            .collect();
        for entry in &mut entries {
            let what = format!("{}, {}", scenario.name(), entry.peer.name());
            if scenario.counts_rows() && entry.peer.has_rows() {
                let target = Arc::new(Target::start(entry.peer, &start(scenario, "info")));
                let rows = scenario.count_rows(&target).await;
                entry.rows = Some(rows.map_err(|e| format!("{what}, counting rows: {e}"))?);
            }
        }
        for round in 0..scenario.rounds(rounds) as usize {
            // The order rotates, so that a change of machine speed affects all
            // implementations equally.
            let count = entries.len();
            for turn in 0..count {
                let entry = &mut entries[(round + turn) % count];
                let what = format!(
                    "{}, {}, round {}",
                    scenario.name(),
                    entry.peer.name(),
                    round + 1
                );
                eprintln!("{what}");
                let level = scenario.log_level().unwrap_or(&options.log_level);
                let target = Arc::new(Target::start(entry.peer, &start(scenario, level)));
                let figures = scenario
                    .run(&target, timing)
                    .await
                    .map_err(|e| format!("{what}: {e}"))?;
                entry.rounds.push(figures);
            }
        }
        report.entries.extend(entries);
        // Saved after each scenario, because a run takes long and may be interrupted.
        save(&json, &report.json())?;
    }
    if report.entries.is_empty() {
        return Err("no implementation matches --peer".to_owned());
    }
    println!("{}", report.markdown());
    let path = json.canonicalize().unwrap_or(json);
    eprintln!("figures: {}", path.display());
    Ok(())
}

/// Writes a JSON file.
fn save(path: &Path, report: &Value) -> Result<(), String> {
    let text = format!("{report:#}\n");
    path.parent()
        .map_or(Ok(()), std::fs::create_dir_all)
        .and_then(|()| std::fs::write(path, text))
        .map_err(|error| format!("{}: {error}", path.display()))
}
