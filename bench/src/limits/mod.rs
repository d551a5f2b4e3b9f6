//! Hostile and merely large clients against the build `limits`, whose WebAssembly memory is at
//! most 64 MiB. Each scenario runs on a new server with [`bystanders`], who must not notice it.
//! See docs/security.md.
//!
//! | module | |
//! | --- | --- |
//! | `scenario` | the list of scenarios |
//! | `strangers` | clients without a valid token |
//! | `readers` | clients that do not read, and clients that read much |
//! | `crowds` | many members, many reconnects, restarts |
//! | `stopped` | gateways that do not answer, storage that is full |
//! | `bystanders` | the other clients, and their latency |
//! | `gauge` | the memory of the server |
//! | `polling` | a client on long-polling |

mod bystanders;
mod crowds;
mod gauge;
mod polling;
mod readers;
mod scenario;
mod stopped;
mod strangers;

use crate::target::Endpoint;
use bystanders::{Bystanders, Summary};
use clap::Args;
use gauge::{Gauge, MAX_MEMORY, Peaks};
use roomcast_harness::{Server, Worker};
use scenario::{SCENARIOS, Scenario};
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

/// Options of `limits`.
#[derive(Args)]
pub(crate) struct Options {
    /// Only scenarios whose name contains one of these: `--only flood,log`.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Prints the names of the scenarios and what they do.
    #[arg(long)]
    list: bool,
    /// Folder of the build to run instead of build/limits.
    #[arg(long, value_name = "DIR")]
    build: Option<PathBuf>,
}

/// Duration of the measurement without other load.
const QUIET: Duration = Duration::from_secs(4);

/// Time limit of a scenario. It ends a run in which the server does not answer.
const MAX_TIME: Duration = Duration::from_secs(240);

/// Number of lines of the server's output that are printed after a violation.
const OUTPUT_LINES: usize = 20;

/// A scenario may raise the 99th percentile of the bystanders' latency to twice the quiet value
/// plus this many milliseconds.
const MAX_ADDED_MS: f64 = 50.0;

/// A running server.
pub(super) struct Context {
    pub endpoint: Arc<Endpoint>,
    server: Arc<Mutex<Server>>,
    /// For the requests of hostile clients.
    pub http: reqwest::Client,
}

/// The result of a scenario: remarks for the table, and violated promises.
#[derive(Default)]
pub(super) struct Outcome {
    pub notes: Vec<String>,
    pub violations: Vec<String>,
}

impl Outcome {
    pub(super) fn note(&mut self, what: String) {
        self.notes.push(what);
    }

    /// Adds a violation if `violated` is `true`.
    pub(super) fn check(&mut self, violated: bool, what: String) {
        if violated {
            self.violations.push(what);
        }
    }
}

impl Context {
    async fn start(options: &Options, scenario: &Scenario) -> Result<Self, String> {
        let mut vars = vec![("LOG_LEVEL", "error")];
        vars.extend(scenario.settings);
        let build = options.build.clone();
        let server = spawn_blocking(move || {
            let worker = match build {
                Some(folder) => Worker::in_folder(&folder),
                None => Worker::built("limits"),
            };
            Server::start_worker(&worker, &vars)
        });
        let server = server.await.map_err(|error| error.to_string())?;
        let endpoint = Endpoint::running(&server.url(""), server.secret()).await?;
        Ok(Context {
            endpoint: Arc::new(endpoint),
            server: Arc::new(Mutex::new(server)),
            http: reqwest::Client::new(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Server> {
        self.server.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the process id of workerd.
    pub(super) fn pid(&self) -> u32 {
        self.lock().pid()
    }

    /// Prints the last lines of the output of workerd.
    fn print_output(&self) {
        for line in self.lock().last_lines(OUTPUT_LINES) {
            eprintln!("  {line}");
        }
    }

    /// Kills workerd and starts it again on the same storage.
    pub(super) async fn restart(&self) -> Result<(), String> {
        let server = self.server.clone();
        let restarted = spawn_blocking(move || {
            server
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .restart();
        });
        restarted.await.map_err(|error| error.to_string())
    }

    /// Sets the failpoints.
    pub(super) async fn plan(&self, plan: &serde_json::Value) -> Result<(), String> {
        let planned = self.endpoint.post("/failpoints", &plan.to_string()).await;
        planned.map(drop)
    }
}

/// A row of the table.
struct Row {
    name: &'static str,
    summary: Option<Summary>,
    peaks: Peaks,
    seconds: u64,
    outcome: Outcome,
}

/// Runs the scenarios. Returns `Ok(false)` if a promise was violated.
pub(crate) async fn run(options: Options) -> Result<bool, String> {
    if options.list {
        for scenario in &SCENARIOS {
            println!("{:<22} {}", scenario.name, scenario.about);
        }
        println!("{:<22} {SIMULATIONS_ABOUT}", SIMULATIONS);
        return Ok(true);
    }
    let selects = |name: &str| {
        options.only.is_empty() || options.only.iter().any(|part| name.contains(part.as_str()))
    };
    let mut rows = Vec::new();
    for scenario in SCENARIOS.iter().filter(|one| selects(one.name)) {
        eprintln!("{}: {}", scenario.name, scenario.about);
        let row = measure(&options, scenario).await;
        let row = row.map_err(|error| format!("{}: {error}", scenario.name))?;
        for violation in &row.outcome.violations {
            eprintln!("  violated: {violation}");
        }
        rows.push(row);
    }
    let mut passed = rows.iter().all(|row| row.outcome.violations.is_empty());
    if selects(SIMULATIONS) {
        eprintln!("{SIMULATIONS}: {SIMULATIONS_ABOUT}");
        let simulated = spawn_blocking(simulate).await;
        let simulated = simulated.map_err(|error| error.to_string())??;
        println!(
            "{SIMULATIONS}: {}",
            if simulated { "passed" } else { "violated" }
        );
        passed &= simulated;
    } else if rows.is_empty() {
        return Err("no scenario matches --only; --list prints their names".to_owned());
    }
    if !rows.is_empty() {
        println!("{}", markdown(&rows));
    }
    for row in &rows {
        for violation in &row.outcome.violations {
            println!("violated in {}: {violation}", row.name);
        }
    }
    Ok(passed)
}

const SIMULATIONS: &str = "simulations";
const SIMULATIONS_ABOUT: &str =
    "a million distinct rooms, and a busy hour, at a simulated gateway (sim/tests/limits.rs)";

/// Runs the native simulations. Returns `Ok(false)` if one fails.
fn simulate() -> Result<bool, String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(["test", "--quiet", "--release", "-p", "roomcast-sim"])
        .args(["--test", "limits"])
        .status();
    let status = status.map_err(|error| format!("cannot run cargo: {error}"))?;
    Ok(status.success())
}

/// Runs one scenario on a new server.
async fn measure(options: &Options, scenario: &Scenario) -> Result<Row, String> {
    let context = Context::start(options, scenario).await?;
    let begun = Instant::now();
    let gauge = Gauge::start(&context.endpoint, context.pid());
    let bystanders = match scenario.bystanders {
        [] => None,
        kinds => {
            let mut all = Bystanders::start(&context.endpoint, kinds).await?;
            all.measure_quiet(QUIET).await;
            Some(all)
        }
    };
    let mut outcome = match timeout(MAX_TIME, scenario.run(&context)).await {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(error)) => Outcome {
            violations: vec![error],
            ..Outcome::default()
        },
        Err(_) => Outcome {
            violations: vec![format!("not complete after {} s", MAX_TIME.as_secs())],
            ..Outcome::default()
        },
    };
    let end = Instant::now();
    let summary = match bystanders {
        Some(all) => match all.finish(&context.endpoint, end).await {
            Ok(summary) => Some(summary),
            Err(error) => {
                outcome.violations.push(error);
                None
            }
        },
        None => None,
    };
    let peaks = gauge.peaks();
    judge(scenario, summary.as_ref(), peaks, &mut outcome);
    if !outcome.violations.is_empty() {
        context.print_output();
    }
    Ok(Row {
        name: scenario.name,
        summary,
        peaks,
        seconds: begun.elapsed().as_secs(),
        outcome,
    })
}

/// Adds the violations of the promises that hold in all scenarios.
fn judge(scenario: &Scenario, summary: Option<&Summary>, peaks: Peaks, outcome: &mut Outcome) {
    if let Some(summary) = summary {
        outcome
            .violations
            .extend(summary.violations.iter().cloned());
        let limit = 2.0 * summary.quiet.p99 + MAX_ADDED_MS;
        if !scenario.restarts {
            let first = summary.disconnects.first();
            let count = summary.disconnects.len();
            let reason = first.map_or("", String::as_str);
            outcome.check(count > 0, format!("{count} disconnects: {reason}"));
            let p99 = summary.during.p99;
            let late = format!("the p99 is {p99:.0} ms, the limit {limit:.0} ms");
            outcome.check(p99 > limit, late);
        }
    }
    let full = "the memory has reached 64 MiB".to_owned();
    outcome.check(peaks.memory >= MAX_MEMORY, full);
    let lost = format!(
        "the WebAssembly memory was replaced {} times",
        peaks.replaced
    );
    outcome.check(!scenario.restarts && peaks.replaced > 0, lost);
}

/// Returns the table.
fn markdown(rows: &[Row]) -> String {
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let mut table = String::from(
        "| scenario | s | disconnects | missing | ack p50 quiet → during, ms | ack p99 quiet → during, ms \
         | allocated, MiB | memory, MiB | workerd, MiB | remarks |\n\
         | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n",
    );
    for row in rows {
        let bystanders = match &row.summary {
            None => "– | – | – | –".to_owned(),
            Some(one) => format!(
                "{} | {} | {:.1} → {:.1} | {:.1} → {:.1}",
                one.disconnects.len(),
                one.violations.len(),
                one.quiet.p50,
                one.during.p50,
                one.quiet.p99,
                one.during.p99,
            ),
        };
        let verdict = match row.outcome.violations.is_empty() {
            true => "",
            false => "**violated** ",
        };
        table += &format!(
            "| `{}` | {} | {bystanders} | {:.1} | {:.1} | {:.0} | {verdict}{} |\n",
            row.name,
            row.seconds,
            mib(row.peaks.allocated),
            mib(row.peaks.memory),
            mib(row.peaks.resident),
            row.outcome.notes.join("; "),
        );
    }
    table
}
