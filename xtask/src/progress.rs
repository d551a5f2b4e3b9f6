//! Progress lines on stderr.

use std::io::Write;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

/// Interval at which a step without output reports that it is still running.
const INTERVAL: Duration = Duration::from_secs(10);

/// Prints a line with one write, because wrangler prints a prefix before each write.
pub(crate) fn say(line: &str) {
    let line = format!("roomcast: {line}\n");
    // If stderr is closed, only the progress lines are lost.
    let _ = std::io::stderr().write_all(line.as_bytes());
}

/// Runs `work`; prints `title` before it, and again with the elapsed time after
/// it and every ten seconds.
pub(crate) fn step<T>(title: &str, work: impl FnOnce() -> T) -> T {
    say(title);
    let began = Instant::now();
    let report = |state: &str| say(&format!("{title}: {state}{} s", began.elapsed().as_secs()));
    thread::scope(|scope| {
        let (done, is_done) = channel::<()>();
        scope.spawn(move || {
            // The sender is dropped when the work is done, or panics.
            while is_done.recv_timeout(INTERVAL) == Err(RecvTimeoutError::Timeout) {
                report("");
            }
        });
        let result = work();
        drop(done);
        if began.elapsed() >= Duration::from_secs(1) {
            report("done in ");
        }
        result
    })
}

/// [`step`] for work that prints progress by itself.
pub(crate) fn verbose_step<T>(title: &str, work: impl FnOnce() -> T) -> T {
    say(title);
    let began = Instant::now();
    let result = work();
    say(&format!("{title}: done in {} s", began.elapsed().as_secs()));
    result
}
