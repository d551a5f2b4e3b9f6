//! The machine that figures come from, and what processes use of it.

use serde::Serialize;
use std::fs;

/// Enough to tell whether two tables may be compared.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    pub cores: usize,
    pub cpu: String,
    pub memory_gib: f64,
    pub kernel: String,
    /// Load average over the last minute before the run: others at work on the
    /// same cores spoil figures.
    pub load: f64,
}

impl Machine {
    /// What Linux says about it; empty or zero where it does not say.
    pub fn describe() -> Self {
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

/// Seconds of processor time that a process has used; 0 when it is gone.
pub fn cpu_seconds(pid: u32) -> f64 {
    ticks(&format!("/proc/{pid}/stat"))
}

/// Seconds of processor time that this process has used.
pub fn own_cpu_seconds() -> f64 {
    ticks("/proc/self/stat")
}

/// Bytes of memory that a process has (`VmRSS` of proc_pid_status(5)); 0 when
/// it is gone.
pub fn memory(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kilobytes.unwrap_or(0) * 1024
}

/// `utime` and `stime` of proc_pid_stat(5), fields 14 and 15. They count in
/// hundredths of a second on every Linux that this runs on (USER_HZ).
fn ticks(path: &str) -> f64 {
    let stat = fs::read_to_string(path).unwrap_or_default();
    // The second field is a name in parentheses and may hold spaces.
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    let fields = after_name.split_whitespace().skip(11).take(2);
    fields.filter_map(|n| n.parse::<f64>().ok()).sum::<f64>() / 100.0
}

/// Allows as many open files as the system lets this process have; servers
/// started from here inherit it.
pub fn raise_open_files() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // Not fatal: too few open files show as connects that fail.
    let _ = setrlimit(Resource::Nofile, limit);
}

/// Today, as `2026-03-14T08:00:00Z`.
pub fn now() -> String {
    let since = std::time::SystemTime::UNIX_EPOCH.elapsed();
    crate::replay::log::rfc3339(since.map_or(0, |since| since.as_millis() as u64))
}
