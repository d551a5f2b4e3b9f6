//! Measures roomcast against other ways to do the same (`run`), replays a chat
//! log through it (`replay`), and looks for what it loses when it is killed, cut
//! off and put to sleep (`chaos`).
//!
//! | module | |
//! | --- | --- |
//! | `socket` | a WebSocket client that does as little as possible |
//! | `check` | reads lines and holds them to order, without holes, each once |
//! | `dialect` | the ways to be in a room, as they are written |
//! | `target` | a started server of one kind |
//! | `node` | a peer that is no Worker |
//! | `client`, `audience`, `sender` | who connects, who listens, who sends |
//! | `load` | what they do together, a module for each kind |
//! | `scenario` | what is measured and which figures it gives |
//! | `report` | rounds to tables and a file |
//! | `replay` | a chat log as input, compared with what comes out |
//! | `chaos` | faults while users talk, and a judge |
//! | `overload` | more than can be taken, and somebody hostile |

#![forbid(unsafe_code)]

mod audience;
mod chaos;
mod check;
mod client;
mod dialect;
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
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use target::{Peer, Start, Target};

#[derive(Parser)]
#[command(about = "Benchmarks of roomcast, and a replay of real chats")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Measures all peers in turns and prints a table.
    Run(RunOptions),
    /// Plays a chat log through real sockets and compares what comes out.
    Replay(replay::Options),
    /// Kills, cuts off and puts to sleep while users talk, and checks what they
    /// were told.
    Chaos(chaos::Options),
    /// Offers more than a room can take, and sets somebody hostile among others.
    Overload(overload::Options),
}

#[derive(Args)]
struct RunOptions {
    /// Times that each peer is measured in each scenario, in turns.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// How long each measurement of throughput takes, after a warm-up.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..))]
    seconds: u64,
    /// Only scenarios with one of these in their names: `--only 100x16,connects`
    /// (an `x` will do for the `×`).
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Only peers with one of these in their names, `room` being roomcast without
    /// a gateway: `--peer bare,room`.
    #[arg(long, value_delimiter = ',')]
    peer: Vec<String>,
    /// A folder with a build of roomcast to measure instead of build/release.
    #[arg(long)]
    build: Option<PathBuf>,
    /// A setting of roomcast, such as `GATEWAY_SHARDS=1`; may be given again.
    #[arg(long, value_name = "NAME=VALUE", value_parser = setting)]
    set: Vec<(String, String)>,
    /// The LOG_LEVEL of roomcast while it is timed.
    #[arg(long, default_value = "warn")]
    log_level: String,
    /// Where the figures go as JSON.
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/bench/results.json"))]
    json: PathBuf,
}

/// One thread: the server wants the other core.
#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    machine::raise_open_files();
    let result = match Cli::parse().command {
        Command::Run(options) => run(options).await.map(|()| true),
        Command::Replay(options) => replay::run(options).await,
        Command::Chaos(options) => chaos::run(options).await,
        Command::Overload(options) => overload::run(options).await,
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
    let (name, value) = text.split_once('=').ok_or("it has no =")?;
    Ok((name.to_owned(), value.to_owned()))
}

async fn run(options: RunOptions) -> Result<(), String> {
    let timing = Timing {
        warm_up: Duration::from_secs(1),
        measure: Duration::from_secs(options.seconds),
    };
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
    let wanted = |scenario: &Scenario| {
        let name = scenario.name();
        let mut only = options.only.iter();
        options.only.is_empty() || only.any(|part| name.contains(&part.replace('x', "×")))
    };
    let scenarios: Vec<Scenario> = SCENARIOS.into_iter().filter(wanted).collect();
    if scenarios.is_empty() {
        return Err("nothing is left to measure".to_owned());
    }
    let mut report = Report {
        date: machine::now(),
        machine: Machine::describe(),
        rounds: options.rounds as usize,
        seconds: options.seconds,
        log_level: options.log_level.clone(),
        entries: Vec::new(),
        notes: Vec::new(),
    };
    for scenario in scenarios {
        let mut peers = scenario.peers().to_vec();
        if !options.peer.is_empty() {
            peers.retain(|peer| {
                let names = |wanted: &String| match wanted == "room" {
                    true => *peer == Peer::Roomcast,
                    false => peer.name().contains(wanted.as_str()),
                };
                options.peer.iter().any(names)
            });
        }
        peers.retain(|peer| {
            let missing = peer.missing();
            if let Some(why) = missing {
                let (scenario, peer) = (scenario.name(), peer.name());
                let note = format!("{scenario}: {peer} was not measured: {why}.");
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
        for round in 0..scenario.rounds(options.rounds) as usize {
            // Who goes first changes, so that a machine that slows down or
            // warms up favours nobody.
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
        // A run takes long and may be cut short.
        save(&options.json, &report)?;
    }
    if report.entries.is_empty() {
        return Err("nothing was left to measure".to_owned());
    }
    println!("{}", report.markdown());
    let path = options.json.canonicalize().unwrap_or(options.json);
    eprintln!("figures: {}", path.display());
    Ok(())
}

fn save(path: &Path, report: &Report) -> Result<(), String> {
    let text = format!("{:#}\n", report.json());
    path.parent()
        .map_or(Ok(()), std::fs::create_dir_all)
        .and_then(|()| std::fs::write(path, text))
        .map_err(|error| format!("{}: {error}", path.display()))
}
