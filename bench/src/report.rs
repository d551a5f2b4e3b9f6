//! Formats the figures of all rounds as tables and JSON.

use crate::machine::Machine;
use crate::scenario::{Figures, Metric, Scenario};
use crate::target::Peer;
use serde_json::{Value, json};
use std::fmt::Write;

/// All rounds of one implementation in one scenario.
pub(crate) struct Entry {
    pub scenario: Scenario,
    pub peer: Peer,
    /// Rows written per message, if they were counted.
    pub rows: Option<f64>,
    pub rounds: Vec<Figures>,
}

/// All results of a run.
pub(crate) struct Report {
    pub date: String,
    pub machine: Machine,
    pub rounds: usize,
    pub seconds: u64,
    /// LOG_LEVEL during the measurements.
    pub log_level: String,
    pub entries: Vec<Entry>,
    /// Measurements that were skipped, with the reason.
    pub notes: Vec<String>,
}

/// Median and range of several rounds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Spread {
    pub median: f64,
    pub min: f64,
    pub max: f64,
}

impl Spread {
    /// Returns `None` for no values.
    pub(crate) fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let median = if values.len() % 2 == 1 {
            values[middle]
        } else {
            (values[middle - 1] + values[middle]) / 2.0
        };
        Some(Spread { median, min, max })
    }

    /// Returns the spread and the values that it was computed from.
    pub(crate) fn json(&self, values: &[f64]) -> Value {
        json!({ "median": self.median, "min": self.min, "max": self.max, "rounds": values })
    }

    /// Returns `median (min–max)`.
    pub(crate) fn text(&self, digits: usize) -> String {
        let number = |value: f64| grouped(value, digits);
        if self.min == self.max {
            number(self.median)
        } else {
            format!(
                "{} ({}–{})",
                number(self.median),
                number(self.min),
                number(self.max)
            )
        }
    }
}

impl Entry {
    fn values(&self, metric: Metric) -> Vec<f64> {
        if let (Metric::RowsPerMessage, Some(rows)) = (metric, self.rows) {
            return vec![rows];
        }
        let of = |figures: &Figures| figures.iter().find(|(m, _)| *m == metric).map(|(_, v)| *v);
        self.rounds.iter().filter_map(of).collect()
    }

    /// Returns the number of rounds in which the server did not keep up with the load.
    fn behind(&self) -> usize {
        self.rounds
            .iter()
            .filter(|figures| !self.scenario.kept_up(figures))
            .count()
    }

    /// Returns the measured metrics in the order of the scenario.
    fn metrics(&self) -> Vec<Metric> {
        let mut metrics: Vec<Metric> = Vec::new();
        for (metric, _) in self.rounds.iter().flatten() {
            if !metrics.contains(metric) {
                metrics.push(*metric);
            }
        }
        if self.rows.is_some() {
            metrics.push(Metric::RowsPerMessage);
        }
        metrics
    }
}

impl Report {
    /// Returns the ratios to `baseline` round by round, because the measurements of one
    /// round ran directly after each other.
    fn ratios(&self, entry: &Entry, metric: Metric, baseline: Peer) -> Vec<f64> {
        let baseline = self
            .entries
            .iter()
            .find(|e| e.scenario == entry.scenario && e.peer == baseline);
        let pairs = entry
            .values(metric)
            .into_iter()
            .zip(baseline.map(|e| e.values(metric)).unwrap_or_default());
        pairs.map(|(own, baseline)| own / baseline).collect()
    }

    /// Returns the metrics and baselines of the ratios of a scenario.
    fn comparisons(scenario: Scenario) -> Vec<(Metric, Peer)> {
        let metrics = scenario.compared().iter();
        metrics
            .flat_map(|metric| scenario.baselines().iter().map(|peer| (*metric, *peer)))
            .collect()
    }

    /// Returns the metrics of a table. Some metrics are only in the JSON file.
    fn metrics_of(&self, table: &(&str, Vec<(Metric, Peer)>)) -> Vec<Metric> {
        let mut metrics = Vec::new();
        let entries = self.entries.iter().filter(|entry| {
            let compared = Self::comparisons(entry.scenario);
            (entry.scenario.table(), compared) == *table
        });
        for metric in entries.flat_map(Entry::metrics) {
            if !metrics.contains(&metric) {
                metrics.push(metric);
            }
        }
        // These are only in the JSON file.
        let deliveries = metrics.contains(&Metric::Deliveries);
        metrics.retain(|metric| match metric {
            Metric::ServerCpu | Metric::GeneratorCpu => false,
            Metric::Messages => !deliveries,
            _ => true,
        });
        metrics
    }

    /// Returns the tables in markdown, after a description of the machine.
    pub(crate) fn markdown(&self) -> String {
        let mut out = String::new();
        let Machine {
            cores,
            cpu,
            memory_gib,
            kernel,
            load,
        } = &self.machine;
        let _ = writeln!(
            out,
            "{}, {cores} cores of {cpu}, {memory_gib} GiB, Linux {kernel}, load before the run \
             {load}. Server and load generator share the machine. Median of {} rounds (min–max) \
             of {} s on fresh storage. Ratios are computed round by round. Measured with \
             LOG_LEVEL={}. Rows are counted in separate short runs with LOG_LEVEL=info.",
            self.date, self.rounds, self.seconds, self.log_level,
        );
        let (mut columns, mut metrics) = (None, Vec::new());
        for entry in &self.entries {
            let comparisons = Self::comparisons(entry.scenario);
            // A scenario with other comparisons gets its own table.
            let wanted = (entry.scenario.table(), comparisons.clone());
            if columns.as_ref() != Some(&wanted) {
                metrics = self.metrics_of(&wanted);
                let titles: Vec<String> = metrics
                    .iter()
                    .map(|metric| metric.name().to_owned())
                    .chain(
                        comparisons
                            .iter()
                            .map(|(metric, peer)| format!("{} ÷ {}", metric.name(), peer.short())),
                    )
                    .collect();
                let title = entry.scenario.table();
                let _ = writeln!(out, "\n**{title}**\n\n| | | {} |", titles.join(" | "));
                let _ = writeln!(out, "| --- | --- |{}", " ---: |".repeat(titles.len()));
                columns = Some(wanted);
            }
            let figures = metrics
                .iter()
                .map(|metric| (entry.values(*metric), metric.digits()));
            let ratios = comparisons
                .iter()
                .map(|(metric, peer)| (self.ratios(entry, *metric, *peer), 2));
            let cells: Vec<String> = figures
                .chain(ratios)
                .map(|(values, digits)| {
                    Spread::of(values).map_or_else(|| "–".to_owned(), |s| s.text(digits))
                })
                .collect();
            let _ = writeln!(
                out,
                "| {} | {}{} | {} |",
                entry.scenario.name(),
                entry.peer.name(),
                match entry.behind() {
                    0 => String::new(),
                    all if all == entry.rounds.len() => ", did not keep up".to_owned(),
                    some => format!(
                        ", did not keep up in {some} of {} rounds",
                        entry.rounds.len()
                    ),
                },
                cells.join(" | ")
            );
        }
        for note in &self.notes {
            let _ = writeln!(out, "\n{note}");
        }
        out
    }

    /// Returns all results as JSON.
    pub(crate) fn json(&self) -> Value {
        let spread = |values: Vec<f64>| Spread::of(values.clone()).map(|s| s.json(&values));
        let entries: Vec<Value> = self
            .entries
            .iter()
            .map(|entry| {
                let figures: serde_json::Map<String, Value> = entry
                    .metrics()
                    .into_iter()
                    .map(|m| (m.name().to_owned(), json!(spread(entry.values(m)))))
                    .collect();
                let ratios: serde_json::Map<String, Value> = entry
                    .scenario
                    .baselines()
                    .iter()
                    .map(|peer| {
                        let ratio = |m: &Metric| {
                            let ratios = self.ratios(entry, *m, *peer);
                            (m.name().to_owned(), json!(spread(ratios)))
                        };
                        let all = entry.scenario.compared().iter().map(ratio);
                        (peer.name().to_owned(), Value::Object(all.collect()))
                    })
                    .collect();
                json!({
                    "table": entry.scenario.table(),
                    "scenario": entry.scenario.name(),
                    "peer": entry.peer.name(),
                    "roundsBehind": entry.behind(),
                    "figures": figures,
                    "ratiosTo": ratios,
                })
            })
            .collect();
        json!({
            "date": self.date,
            "machine": self.machine,
            "rounds": self.rounds,
            "seconds": self.seconds,
            "logLevel": self.log_level,
            "results": entries,
            "notes": self.notes,
        })
    }
}

/// Formats a number with thousands separators: `12,345.6`.
pub(crate) fn grouped(value: f64, digits: usize) -> String {
    let text = format!("{value:.digits$}");
    let (whole, rest) = text.split_at(text.find('.').unwrap_or(text.len()));
    let mut out = String::new();
    for (index, char) in whole.chars().enumerate() {
        if index > 0 && (whole.len() - index) % 3 == 0 && char.is_ascii_digit() && out != "-" {
            out.push(',');
        }
        out.push(char);
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grouped_separates_thousands() {
        assert_eq!(grouped(0.256, 2), "0.26");
        assert_eq!(grouped(999.0, 0), "999");
        assert_eq!(grouped(1234567.0, 0), "1,234,567");
        assert_eq!(grouped(-123456.5, 1), "-123,456.5");
    }

    #[test]
    fn spread_returns_min_median_and_max() {
        let spread = |values: &[f64]| Spread::of(values.to_vec());
        assert_eq!(spread(&[]), None);
        assert_eq!(
            spread(&[3.0, 1.0, 2.0]).map(|s| (s.min, s.median, s.max)),
            Some((1.0, 2.0, 3.0))
        );
        assert_eq!(spread(&[1.0, 2.0]).map(|s| s.median), Some(1.5));
    }
}
