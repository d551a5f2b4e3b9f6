//! The inputs of a build, to determine whether it is up to date.

use anyhow::{Context, Result};
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};

/// Hashes of the inputs of a build, kept beside it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Stamp {
    /// Everything the build depends on.
    pub inputs: String,
    /// The compiled crate, and everything the steps after compilation depend on.
    pub compiled: String,
}

impl Stamp {
    /// Returns the stamp in `file`, or an empty one if there is none.
    pub(crate) fn read(file: &Path) -> Self {
        let text = fs::read_to_string(file).unwrap_or_default();
        let mut lines = text.lines().map(str::to_owned);
        Stamp {
            inputs: lines.next().unwrap_or_default(),
            compiled: lines.next().unwrap_or_default(),
        }
    }

    pub(crate) fn write(&self, file: &Path) -> Result<()> {
        fs::write(file, format!("{}\n{}\n", self.inputs, self.compiled))
            .with_context(|| format!("cannot write {}", file.display()))
    }
}

/// A hash of files and texts. It depends on the contents of the files and not on their
/// times, because switching branches changes the times only.
#[derive(Default)]
pub(crate) struct Digest(DefaultHasher);

impl Digest {
    pub(crate) fn add(mut self, text: impl AsRef<[u8]>) -> Self {
        text.as_ref().hash(&mut self.0);
        self
    }

    /// Adds a file, or every file in a folder and its folders.
    pub(crate) fn add_path(mut self, path: &Path) -> Result<Self> {
        let mut files = Vec::new();
        collect(path, &mut files).with_context(|| format!("cannot read {}", path.display()))?;
        files.sort();
        for file in files {
            let content =
                fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
            self = self.add(file.as_os_str().as_encoded_bytes()).add(content);
        }
        Ok(self)
    }

    pub(crate) fn finish(self) -> String {
        format!("{:016x}", self.0.finish())
    }
}

fn collect(path: &Path, files: &mut Vec<PathBuf>) -> std::io::Result<()> {
    if !path.is_dir() {
        files.push(path.to_owned());
        return Ok(());
    }
    for entry in fs::read_dir(path)? {
        collect(&entry?.path(), files)?;
    }
    Ok(())
}
