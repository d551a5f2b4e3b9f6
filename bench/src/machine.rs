//! Description of the machine, and resource use of processes.

use serde::Serialize;
use std::fs;

/// Machine data that shows whether two tables are comparable.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Machine {
    pub cores: usize,
    pub cpu: String,
    pub memory_gib: f64,
    pub kernel: String,
    /// Load average of the last minute before the run. Other processes on the same cores
    /// distort the figures.
    pub load: f64,
}

impl Machine {
    /// Reads the data from `/proc`. A missing value is empty or zero.
    pub(crate) fn describe() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let field = |text: &str, name: &str| {
            text.lines()
                .find_map(|line| line.strip_prefix(name))
                .map(|rest| rest.trim_start_matches([' ', '\t', ':']).to_owned())
                .unwrap_or_default()
        };
        let memory = field(&read("/proc/meminfo"), "MemTotal");
        let kilobytes: f64 = memory
            .split(' ')
            .next()
            .and_then(|kb| kb.parse().ok())
            .unwrap_or(0.0);
        Machine {
            cores: std::thread::available_parallelism().map_or(0, |n| n.get()),
            cpu: field(&read("/proc/cpuinfo"), "model name"),
            memory_gib: (kilobytes / 1024.0 / 1024.0 * 10.0).round() / 10.0,
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            load: read("/proc/loadavg")
                .split(' ')
                .next()
                .and_then(|load| load.parse().ok())
                .unwrap_or(0.0),
        }
    }
}

/// Returns the processor time of a process in seconds, or 0 if it has ended.
pub(crate) fn cpu_seconds(pid: u32) -> f64 {
    processor_time(&format!("/proc/{pid}/stat"))
}

/// Returns the processor time of this process in seconds.
pub(crate) fn own_cpu_seconds() -> f64 {
    processor_time("/proc/self/stat")
}

/// Returns the resident memory of a process in bytes (`VmRSS` of proc_pid_status(5)),
/// or 0 if it has ended.
pub(crate) fn memory(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kilobytes.unwrap_or(0) * 1024
}

/// Returns `utime` plus `stime` of proc_pid_stat(5), fields 14 and 15, in seconds. The
/// unit of the fields is 1/100 s (USER_HZ) on all supported platforms.
fn processor_time(path: &str) -> f64 {
    let stat = fs::read_to_string(path).unwrap_or_default();
    // The second field is a name in parentheses that can contain spaces.
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    let fields = after_name.split_whitespace().skip(11).take(2);
    fields.filter_map(|n| n.parse::<f64>().ok()).sum::<f64>() / 100.0
}

/// Raises the limit of open files to the maximum. Started servers inherit it.
pub(crate) fn raise_open_files() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // Not fatal: with too few open files connects fail with an error.
    let _ = setrlimit(Resource::Nofile, limit);
}

/// Returns the current time, such as `2026-03-14T08:00:00Z`.
pub(crate) fn now() -> String {
    let since = std::time::SystemTime::UNIX_EPOCH.elapsed();
    crate::replay::log::rfc3339(since.map_or(0, |since| since.as_millis() as u64))
}
