//! The build tool of the workspace, run as `cargo xtask`.
//!
//! It replaces `worker-build` and `wasm-bindgen-cli`, which take a quarter of an hour
//! to compile. It uses the library of `wasm-bindgen-cli`.

#![forbid(unsafe_code)]

mod build;
mod docs;
mod progress;
mod stamp;

use anyhow::{Result, bail};
use build::Flavour;
use std::process::ExitCode;

const HELP: &str = "\
Builds the Worker into build/<flavour>/ as index.js and index_bg.wasm.

usage: cargo xtask build [release|dev|conformance|failpoints|limits]
       cargo xtask docs [--check]

  release      what is deployed; optimized for size, without function names
  dev          with POST /dev/token, for `wrangler dev`
  conformance  an echo on the Socket.IO layers, for protocol suites
  failpoints   with failpoints, for the tests of panics and failing storage
  limits       failpoints, and a WebAssembly memory of at most 64 MiB, for `make limits`

Without a flavour it builds release, or what wrangler is to serve: under
`wrangler dev` the flavour in ROOMCAST_FLAVOUR, or dev if it is not set. In that
case it also points build/worker to the build.

A build that is up to date is left alone. `wasm-opt` and `esbuild` come from
node_modules, which `scripts/tools` installs.

`docs` generates docs/settings.md, docs/asyncapi.json and src/http/openapi.json
from the code. With --check it writes nothing, and fails if a file is stale.";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("roomcast: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[&str]) -> Result<()> {
    if arguments.is_empty() || arguments.iter().any(|one| ["-h", "--help"].contains(one)) {
        println!("{HELP}");
        return Ok(());
    }
    match arguments {
        ["build"] => build::run(None),
        ["build", flavour] => build::run(Some(Flavour::parse(flavour)?)),
        ["docs"] => docs::run(docs::Mode::Write),
        ["docs", "--check"] => docs::run(docs::Mode::Check),
        _ => bail!("unknown arguments: {}\n\n{HELP}", arguments.join(" ")),
    }
}
