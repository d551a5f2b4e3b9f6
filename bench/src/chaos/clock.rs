//! The clock of the server, which can be stepped while it runs: by libfaketime,
//! where that is installed.

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use tempfile::NamedTempFile;

/// Where Debian's package `libfaketime` puts it, below the folder of the
/// architecture.
const LIBRARIES: &str = "/usr/lib";
const LIBRARY: &str = "faketime/libfaketime.so.1";

pub struct Clock {
    library: PathBuf,
    /// What libfaketime reads: how far the clock is ahead.
    file: NamedTempFile,
    /// Seconds.
    ahead: i64,
}

impl Clock {
    /// `None` where libfaketime is not installed.
    pub fn find() -> Option<Self> {
        let library = fs::read_dir(LIBRARIES)
            .ok()?
            .filter_map(|folder| Some(folder.ok()?.path().join(LIBRARY)))
            .find(|library| library.exists())?;
        let mut clock = Clock {
            library,
            file: NamedTempFile::new().ok()?,
            ahead: 0,
        };
        clock.step(0);
        Some(clock)
    }

    /// The shell commands after which a process goes by this clock. Only the
    /// time of day is stepped: durations are measured by another clock, which no
    /// machine steps.
    pub fn prelude(&self) -> String {
        format!(
            "export LD_PRELOAD={} FAKETIME_TIMESTAMP_FILE={} FAKETIME_NO_CACHE=1 \
             FAKETIME_DONT_FAKE_MONOTONIC=1 NO_FAKE_STAT=1",
            self.library.display(),
            self.file.path().display()
        )
    }

    /// Steps it by so many seconds.
    pub fn step(&mut self, by: i64) {
        self.ahead += by;
        // In place and at once, for it may be read at any moment.
        let text = format!("{:+}      \n", self.ahead);
        let file = self.file.as_file_mut();
        let written = std::io::Seek::rewind(file).and_then(|()| file.write_all(text.as_bytes()));
        written.expect("a temporary file can be written");
    }
}
