//! Compares two builds of roomcast: `run --baseline DIR`.
//!
//! In each round every scenario is measured with both builds, one directly after the
//! other. The order is swapped in every round, so that a change of machine speed affects
//! both builds equally. The verdict is computed from the ratios of the rounds.

use crate::machine::{self, Machine};
use crate::report::{Spread, grouped};
use crate::scenario::{Figures, Metric, Scenario, Timing};
use crate::target::{Peer, Start, Target};
use serde_json::{Value, json};
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The scenarios that are compared without `--only`.
pub(crate) const SCENARIOS: [Scenario; 8] = [
    Scenario::FanOut {
        sockets: 2,
        in_flight: 1,
    },
    Scenario::FanOut {
        sockets: 2,
        in_flight: 16,
    },
    Scenario::FanOut {
        sockets: 100,
        in_flight: 16,
    },
    Scenario::FanOut {
        sockets: 500,
        in_flight: 16,
    },
    Scenario::FanOut {
        sockets: 500,
        in_flight: 128,
    },
    Scenario::Spike { connects: 2000 },
    Scenario::Reconnect {
        clients: 500,
        missed: 1000,
    },
    Scenario::Wake,
];

/// Default of `--rounds` for a comparison. With 9 rounds, one outlier on each side does
/// not change the verdict.
pub(crate) const ROUNDS: u32 = 9;

/// Confidence of the interval of the median ratio.
const CONFIDENCE: f64 = 0.95;

/// What is measured.
pub(crate) struct Comparison {
    /// The folder of the build that the other one is compared with.
    pub baseline: PathBuf,
    /// The folder of the other build; `None` is build/release.
    pub build: Option<PathBuf>,
    pub rounds: u32,
    pub timing: Timing,
    pub log_level: String,
    /// Settings for both builds, as names and values.
    pub settings: Vec<(String, String)>,
    pub json: PathBuf,
}

/// The figures of one scenario with both builds, a pair for each round.
struct Pairs {
    scenario: Scenario,
    peer: Peer,
    rounds: Vec<(Figures, Figures)>,
}

/// The conclusion from the ratios of the rounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Better,
    Worse,
    WithinNoise,
    /// There are too few rounds for an interval of this confidence.
    TooFewRounds,
}

impl Verdict {
    fn name(self) -> &'static str {
        match self {
            Verdict::Better => "better",
            Verdict::Worse => "worse",
            Verdict::WithinNoise => "within noise",
            Verdict::TooFewRounds => "too few rounds",
        }
    }

    /// Returns the verdict for ratios of the build to the baseline.
    fn of(ratios: &[f64], metric: Metric) -> Self {
        let Some((low, high)) = interval(ratios) else {
            return Verdict::TooFewRounds;
        };
        match (low > 1.0, high < 1.0) {
            (false, false) => Verdict::WithinNoise,
            (higher, _) if higher == metric.is_rate() => Verdict::Better,
            _ => Verdict::Worse,
        }
    }
}

/// Returns the confidence interval of the median, or `None` if there are too few values.
///
/// The interval is that of the sign test and assumes no distribution. The median is below
/// the k-th smallest of n values, or above the k-th largest, with probability
/// 2 · P(X < k), where X is binomial with n and 1/2. The interval uses the largest k for
/// which this is at most 1 − [`CONFIDENCE`].
fn interval(values: &[f64]) -> Option<(f64, f64)> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let n = sorted.len();
    let mut outcomes = 1.0;
    let mut below = 0.0;
    let mut dropped = None;
    for k in 0..n / 2 {
        below += outcomes / 2_f64.powi(n as i32);
        if 2.0 * below > 1.0 - CONFIDENCE {
            break;
        }
        dropped = Some(k);
        outcomes = outcomes * (n - k) as f64 / (k + 1) as f64;
    }
    let dropped = dropped?;
    Some((sorted[dropped], sorted[n - 1 - dropped]))
}

impl Pairs {
    /// Returns the values of a metric with the baseline and with the build.
    fn values(&self, metric: Metric) -> (Vec<f64>, Vec<f64>) {
        let of = |figures: &Figures| {
            let figure = figures.iter().find(|(name, _)| *name == metric);
            figure.map(|(_, value)| *value)
        };
        let pairs = self.rounds.iter();
        pairs
            .filter_map(|(baseline, build)| Some((of(baseline)?, of(build)?)))
            .unzip()
    }

    fn ratios(&self, metric: Metric) -> Vec<f64> {
        let (baseline, build) = self.values(metric);
        build
            .iter()
            .zip(&baseline)
            .map(|(own, base)| own / base)
            .collect()
    }
}

/// Measures the scenarios with both builds, prints a table and writes the JSON file.
pub(crate) async fn run(
    comparison: &Comparison,
    scenarios: &[(Scenario, Peer)],
) -> Result<(), String> {
    for dir in [Some(&comparison.baseline), comparison.build.as_ref()] {
        if let Some(dir) = dir.filter(|dir| !dir.join("index.js").is_file()) {
            return Err(format!(
                "{} has no index.js: it must be the folder of a build, such as build/release",
                dir.display()
            ));
        }
    }
    let machine = Machine::describe();
    let date = machine::now();
    let mut all = Vec::new();
    for &(scenario, peer) in scenarios {
        let mut pairs = Pairs {
            scenario,
            peer,
            rounds: Vec::new(),
        };
        for round in 0..scenario.rounds(comparison.rounds) {
            let baseline_first = round % 2 == 0;
            let first = measure(comparison, &pairs, round, baseline_first).await?;
            let second = measure(comparison, &pairs, round, !baseline_first).await?;
            pairs.rounds.push(match baseline_first {
                true => (first, second),
                false => (second, first),
            });
        }
        all.push(pairs);
        // Saved after each scenario, because a run takes long and may be interrupted.
        let json = to_json(comparison, &date, &machine, &all);
        crate::save(&comparison.json, &json)?;
    }
    println!("{}", to_markdown(comparison, &date, &machine, &all));
    let path = comparison.json.canonicalize();
    let path = path.as_ref().unwrap_or(&comparison.json);
    eprintln!("figures: {}", path.display());
    Ok(())
}

/// Measures one scenario with one build, on a new server.
async fn measure(
    comparison: &Comparison,
    pairs: &Pairs,
    round: u32,
    is_baseline: bool,
) -> Result<Figures, String> {
    let (scenario, peer) = (pairs.scenario, pairs.peer);
    let (title, build) = match is_baseline {
        true => ("baseline", Some(comparison.baseline.clone())),
        false => ("build", comparison.build.clone()),
    };
    let what = format!(
        "{}, {}, round {}, {title}",
        scenario.name(),
        peer.name(),
        round + 1
    );
    eprintln!("{what}");
    let needed = scenario.settings().iter();
    let start = Start {
        log_level: scenario
            .log_level()
            .unwrap_or(&comparison.log_level)
            .to_owned(),
        build,
        settings: needed
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .chain(comparison.settings.iter().cloned())
            .collect(),
    };
    let target = Arc::new(Target::start(peer, &start));
    let figures = scenario.run(&target, comparison.timing).await;
    figures.map_err(|error| format!("{what}: {error}"))
}

fn build_name(build: Option<&Path>) -> String {
    build.map_or("build/release".to_owned(), |dir| dir.display().to_string())
}

fn to_markdown(comparison: &Comparison, date: &str, machine: &Machine, all: &[Pairs]) -> String {
    let mut out = String::new();
    let _ = writeln!(
        out,
        "{date}, {} cores of {}, load before the run {}. Baseline: {}. Build: {}. Median of {} \
         rounds (min–max) of {} s. Ratios are computed round by round.\n",
        machine.cores,
        machine.cpu,
        machine.load,
        comparison.baseline.display(),
        build_name(comparison.build.as_deref()),
        comparison.rounds,
        comparison.timing.measure.as_secs(),
    );
    let _ = writeln!(
        out,
        "| | | | baseline | build | build ÷ baseline | 95 % interval | |\n\
         | --- | --- | --- | ---: | ---: | ---: | ---: | --- |"
    );
    for pairs in all {
        for &metric in pairs.scenario.compared() {
            let (baseline, build) = pairs.values(metric);
            let ratios = pairs.ratios(metric);
            let verdict = Verdict::of(&ratios, metric);
            let text = |values: &[f64], digits| {
                let spread = Spread::of(values.to_vec());
                spread.map_or_else(|| "–".to_owned(), |spread| spread.text(digits))
            };
            let interval = interval(&ratios).map_or_else(
                || "–".to_owned(),
                |(low, high)| format!("{}–{}", grouped(low, 3), grouped(high, 3)),
            );
            let _ = writeln!(
                out,
                "| {} | {} | {} | {} | {} | {} | {interval} | {} |",
                pairs.scenario.name(),
                pairs.peer.name(),
                metric.name(),
                text(&baseline, metric.digits()),
                text(&build, metric.digits()),
                text(&ratios, 3),
                verdict.name(),
            );
        }
    }
    out
}

fn to_json(comparison: &Comparison, date: &str, machine: &Machine, all: &[Pairs]) -> Value {
    let spread = |values: &[f64]| Spread::of(values.to_vec()).map(|s| s.json(values));
    let mut results = Vec::new();
    for pairs in all {
        for &metric in pairs.scenario.compared() {
            let (baseline, build) = pairs.values(metric);
            let ratios = pairs.ratios(metric);
            results.push(json!({
                "scenario": pairs.scenario.name(),
                "peer": pairs.peer.name(),
                "metric": metric.name(),
                "baseline": spread(&baseline),
                "build": spread(&build),
                "ratio": spread(&ratios),
                "interval": interval(&ratios),
                "verdict": Verdict::of(&ratios, metric).name(),
            }));
        }
    }
    json!({
        "date": date,
        "machine": machine,
        "baseline": comparison.baseline,
        "build": build_name(comparison.build.as_deref()),
        "rounds": comparison.rounds,
        "seconds": comparison.timing.measure.as_secs(),
        "results": results,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interval_is_that_of_the_sign_test() {
        let values = |n: u32| (1..=n).map(f64::from).collect::<Vec<_>>();
        assert_eq!(interval(&[]), None);
        assert_eq!(interval(&values(5)), None);
        assert_eq!(interval(&values(6)), Some((1.0, 6.0)));
        assert_eq!(interval(&values(8)), Some((1.0, 8.0)));
        assert_eq!(interval(&values(9)), Some((2.0, 8.0)));
        assert_eq!(interval(&values(12)), Some((3.0, 10.0)));
        assert_eq!(interval(&values(20)), Some((6.0, 15.0)));
    }

    #[test]
    fn verdict_depends_on_the_interval_and_on_the_metric() {
        let rate = |ratios: &[f64]| Verdict::of(ratios, Metric::Deliveries);
        let latency = |ratios: &[f64]| Verdict::of(ratios, Metric::P50);
        let higher = [1.1, 1.2, 1.05, 1.3, 1.01, 1.1];
        let lower = higher.map(|ratio| 1.0 / ratio);
        assert_eq!(rate(&higher), Verdict::Better);
        assert_eq!(rate(&lower), Verdict::Worse);
        assert_eq!(latency(&higher), Verdict::Worse);
        assert_eq!(latency(&lower), Verdict::Better);
        let mixed = [1.1, 1.2, 0.99, 1.3, 1.01, 1.1];
        assert_eq!(rate(&mixed), Verdict::WithinNoise);
        assert_eq!(rate(&higher[..5]), Verdict::TooFewRounds);
        // With 9 rounds one outlier does not count.
        let outlier = [1.1, 1.2, 0.5, 1.3, 1.01, 1.1, 1.2, 1.1, 1.2];
        assert_eq!(rate(&outlier), Verdict::Better);
    }
}
