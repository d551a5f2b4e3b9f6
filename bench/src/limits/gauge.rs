//! Measures the memory of the server while a scenario runs.

use crate::machine;
use crate::target::Endpoint;
use serde_json::Value;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::sleep;

/// Interval between two measurements.
const INTERVAL: Duration = Duration::from_millis(200);

/// The size of the WebAssembly memory of the build `limits` (`MAX_MEMORY` in
/// `xtask/src/build.rs`).
pub(super) const MAX_MEMORY: u64 = 64 << 20;

/// The maxima of all measurements, in bytes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Peaks {
    /// Allocated by the Worker.
    pub allocated: u64,
    /// The size of the WebAssembly memory, which never shrinks.
    pub memory: u64,
    /// The resident memory of workerd.
    pub resident: u64,
    /// How often the WebAssembly memory was replaced, after a panic or because an allocation
    /// failed.
    pub replaced: u32,
}

/// Measures in the background until this is dropped.
pub(super) struct Gauge {
    peaks: Arc<Mutex<Peaks>>,
    _task: JoinSet<()>,
}

impl Gauge {
    /// Starts to measure. `pid` is the process id of workerd.
    pub(super) fn start(endpoint: &Arc<Endpoint>, pid: u32) -> Self {
        let peaks = Arc::<Mutex<Peaks>>::default();
        let mut task = JoinSet::new();
        let (endpoint, shared) = (endpoint.clone(), peaks.clone());
        task.spawn(async move {
            let mut last = 0;
            loop {
                // The request fails while the server is down.
                let account = endpoint.get("/failpoints").await.unwrap_or_default();
                {
                    let mut peaks = shared.lock().unwrap_or_else(PoisonError::into_inner);
                    peaks.add(&account, &mut last);
                    peaks.resident = peaks.resident.max(machine::memory(pid));
                }
                sleep(INTERVAL).await;
            }
        });
        Gauge { peaks, _task: task }
    }

    /// Returns the maxima so far.
    pub(super) fn peaks(&self) -> Peaks {
        *self.peaks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Peaks {
    /// Adds a measurement. `last` is the size of the memory in the last one.
    fn add(&mut self, account: &Value, last: &mut u64) {
        let bytes = |field: &str| account[field].as_u64().unwrap_or(0);
        let memory = bytes("memoryBytes");
        if memory > 0 {
            self.replaced += u32::from(memory < *last);
            *last = memory;
        }
        self.memory = self.memory.max(memory);
        self.allocated = self.allocated.max(bytes("peakBytes"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_smaller_memory_is_a_new_instance() {
        let (mut peaks, mut last) = (Peaks::default(), 0);
        for (memory, allocated) in [(10, 5), (20, 15), (12, 6)] {
            let account = json!({ "memoryBytes": memory, "peakBytes": allocated });
            peaks.add(&account, &mut last);
        }
        peaks.add(&Value::Null, &mut last);
        assert_eq!((peaks.memory, peaks.allocated, peaks.replaced), (20, 15, 1));
    }
}
