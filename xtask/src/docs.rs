//! Generates the reference pages and the API documents.
//!
//! The pages come from tables and types of the Worker's crates. A test of the root package
//! generates them (`tests/docs`), so that building the Worker does not compile all crates
//! for this tool as well.

use anyhow::{Context, Result, ensure};
use std::process::Command;

/// The action on the generated pages.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Write them.
    Write,
    /// Compare them with the committed pages.
    Check,
}

/// Writes or checks all pages.
pub(crate) fn run(mode: Mode) -> Result<()> {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["test", "--quiet", "--package", "roomcast", "--test", "docs"]);
    match mode {
        Mode::Write => cargo.env("ROOMCAST_DOCS", "write"),
        Mode::Check => cargo.env_remove("ROOMCAST_DOCS"),
    };
    let status = cargo.status().context("cargo could not be started")?;
    ensure!(
        status.success(),
        "the pages could not be generated, or are stale"
    );
    Ok(())
}
