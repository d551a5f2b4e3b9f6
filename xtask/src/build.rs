//! `cargo xtask build`: compiles the crate to WebAssembly, generates the glue code
//! between it and JavaScript, optimizes the WebAssembly, and bundles the glue code
//! with the entry module.

use crate::progress::{say, step, verbose_step};
use crate::stamp::{Digest, Stamp};
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::env;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use wasm_bindgen_cli_support::Bindgen;

const TARGET: &str = "wasm32-unknown-unknown";

const ENTRY: &str = include_str!("entry.js");

/// The document of `GET /openapi.json`, which `src/http` imports by this name.
const OPENAPI: &str = "src/http/openapi.json";

/// The cost up to which LLVM inlines a function, instead of 50 with `opt-level = "s"`. The
/// Worker is 2.5 % smaller with it: 457,084 bytes after gzip with 50 and 446,018 with 10, and
/// for a later version 449,829 with 10, 448,632 with 5 and 451,668 with 0 (2026-11-26).
const INLINE_THRESHOLD: &str = "-Cllvm-args=-inline-threshold=5";

/// Limits the WebAssembly memory of the flavour `limits` to 64 MiB: half of the 128 MB that an
/// isolate has on Cloudflare for this memory, the heap of JavaScript and the queued frames.
const MAX_MEMORY: &str = "-Clink-arg=--max-memory=67108864";

/// Environment variables that affect the build of cargo.
const VARIABLES: [&str; 2] = ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS"];

/// The WebAssembly features that LLVM and wasm-bindgen use and workerd supports. With
/// `--all-features`, wasm-opt would use encodings that workerd does not support.
const WASM_FEATURES: [&str; 7] = [
    "--enable-mutable-globals",
    "--enable-sign-ext",
    "--enable-nontrapping-float-to-int",
    "--enable-bulk-memory",
    "--enable-multivalue",
    "--enable-reference-types",
    "--enable-exception-handling",
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flavour {
    Release,
    Dev,
    Conformance,
    Failpoints,
    Limits,
}

impl Flavour {
    pub(crate) fn parse(name: &str) -> Result<Self> {
        Ok(match name {
            "release" => Flavour::Release,
            "dev" => Flavour::Dev,
            "conformance" => Flavour::Conformance,
            "failpoints" => Flavour::Failpoints,
            "limits" => Flavour::Limits,
            _ => {
                bail!(
                    "unknown flavour `{name}`: it must be release, dev, conformance, failpoints \
                     or limits"
                )
            }
        })
    }

    fn name(self) -> &'static str {
        match self {
            Flavour::Release => "release",
            Flavour::Dev => "dev",
            Flavour::Conformance => "conformance",
            Flavour::Failpoints => "failpoints",
            Flavour::Limits => "limits",
        }
    }

    fn feature(self) -> Option<&'static str> {
        match self {
            Flavour::Release => None,
            Flavour::Dev => Some("dev-tokens"),
            Flavour::Conformance => Some("conformance"),
            Flavour::Failpoints | Flavour::Limits => Some("failpoints"),
        }
    }

    /// Returns the arguments of the compiler for the Worker alone, not for its dependencies.
    fn compiler_arguments(self) -> &'static [&'static str] {
        match self {
            Flavour::Limits => &[MAX_MEMORY],
            _ => &[],
        }
    }
}

/// Builds `flavour` or, without one, the flavour for the wrangler command that runs the
/// build. Points `build/worker` to it if wrangler runs the build or the link does not
/// exist.
pub(crate) fn run(flavour: Option<Flavour>) -> Result<()> {
    let wrangler = env::var("WRANGLER_COMMAND").ok();
    let flavour = match (flavour, wrangler.as_deref()) {
        (Some(flavour), _) => flavour,
        (None, Some("dev")) => {
            env::var("ROOMCAST_FLAVOUR").map_or(Ok(Flavour::Dev), |name| Flavour::parse(&name))?
        }
        (None, _) => Flavour::Release,
    };
    let root = root();
    fs::create_dir_all(root.join("build")).context("cannot create build")?;
    // Tests start several builds concurrently, and cargo writes all flavours to the same
    // file.
    let lock = File::create(root.join("build/.lock")).context("cannot create build/.lock")?;
    if lock.try_lock().is_err() {
        say("waiting for another build");
        lock.lock().context("cannot lock build/.lock")?;
    }
    build(&root, flavour)?;
    // `make conformance` names the folder it serves, so that it can run beside
    // `make dev`.
    let link = root.join("build/worker");
    if flavour != Flavour::Conformance && (wrangler.is_some() || !link.exists()) {
        point(&link, flavour.name())?;
    }
    Ok(())
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("xtask is a folder of the workspace")
        .to_path_buf()
}

fn build(root: &Path, flavour: Flavour) -> Result<()> {
    let name = flavour.name();
    let out = root.join("build").join(name);
    let stamp_file = out.join(".stamp");
    let stamp = Stamp::read(&stamp_file);
    let files = ["index.js", "index_bg.wasm"];
    let complete = files.iter().all(|file| out.join(file).is_file());

    // cargo keeps one wasm file for all flavours, and compiles the crate again when
    // another flavour was compiled in between. So cargo runs only if something has
    // changed.
    let inputs = inputs(root)?;
    if complete && stamp.inputs == inputs {
        return Ok(());
    }
    for tool in ["esbuild", "wasm-opt"] {
        let file = root.join("node_modules/.bin").join(tool);
        ensure!(
            file.exists(),
            "{tool} is missing: install it with scripts/tools"
        );
    }
    let wasm = verbose_step(&format!("compiling the Worker ({name})"), || {
        compile(root, flavour)
    })?;
    let compiled = steps(root)?.add_path(&wasm)?.finish();
    if !complete || stamp.compiled != compiled {
        let staging = root.join("build").join(format!("{name}.new"));
        if staging.exists() {
            fs::remove_dir_all(&staging).context("cannot remove an unfinished build")?;
        }
        fs::create_dir_all(&staging).context("cannot create a folder for the build")?;
        step("generating the glue code", || bind(&wasm, &staging))?;
        if flavour == Flavour::Release {
            step("optimizing the WebAssembly", || optimize(root, &staging))?;
        }
        bundle(root, &staging)?;
        fs::create_dir_all(&out).with_context(|| format!("cannot create {}", out.display()))?;
        // An interruption between the two files must not look like a complete build.
        let _ = fs::remove_file(&stamp_file);
        for file in files {
            fs::rename(staging.join(file), out.join(file))
                .with_context(|| format!("cannot replace {}", out.join(file).display()))?;
        }
        let _ = fs::remove_dir_all(&staging);
        say(&format!("built build/{name}"));
    }
    Stamp { inputs, compiled }.write(&stamp_file)
}

/// Returns the digest of everything a build depends on.
fn inputs(root: &Path) -> Result<String> {
    let mut digest = steps(root)?;
    for path in [
        "src",
        "crates",
        "Cargo.toml",
        "Cargo.lock",
        "rust-toolchain.toml",
        ".cargo/config.toml",
    ] {
        digest = digest.add_path(&root.join(path))?;
    }
    for name in VARIABLES {
        digest = digest.add(env::var(name).unwrap_or_default());
    }
    let rustc = Command::new("rustc")
        .arg("-vV")
        .current_dir(root)
        .output()
        .context("cannot run rustc: install Rust from https://rustup.rs")?;
    Ok(digest.add(rustc.stdout).finish())
}

/// Returns the digest of the inputs of the steps after compilation, without the compiled
/// crate.
fn steps(root: &Path) -> Result<Digest> {
    Digest::default()
        .add_path(&root.join("xtask"))?
        .add_path(&root.join("package-lock.json"))?
        .add_path(&root.join(OPENAPI))
}

/// Returns the flags of the compiler, encoded as cargo expects them: the flags of the
/// environment, the removal of the path of cargo's registry from the source paths in panic
/// messages, without which the Worker is larger and differs between machines, and
/// [`INLINE_THRESHOLD`].
fn rustflags() -> Result<String> {
    let [plain, encoded] = VARIABLES.map(|name| env::var(name).unwrap_or_default());
    let mut flags: Vec<&str> = match encoded.as_str() {
        "" => plain.split_whitespace().collect(),
        encoded => encoded.split('\x1f').collect(),
    };
    let home = || Some(PathBuf::from(env::var_os("HOME")?).join(".cargo"));
    let registry = env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(home)
        .context("neither CARGO_HOME nor HOME is set")?
        .join("registry/src");
    let remap = format!("--remap-path-prefix={}=", registry.display());
    flags.push(&remap);
    flags.push(INLINE_THRESHOLD);
    Ok(flags.join("\x1f"))
}

/// Compiles the crate and returns the path of the wasm file.
fn compile(root: &Path, flavour: Flavour) -> Result<PathBuf> {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or("cargo".into()));
    command
        .env("CARGO_ENCODED_RUSTFLAGS", rustflags()?)
        .args(["rustc", "--package", "roomcast", "--lib", "--release"])
        .args(["--target", TARGET])
        .args(["--message-format", "json-render-diagnostics"])
        // The macros of wasm-bindgen then use the futures of js-sys, as those of
        // `worker` expect. A `--cfg` would not reach them: they run on the host.
        .env("WASM_BINDGEN_USE_JS_SYS", "1")
        .current_dir(root)
        .stdout(Stdio::piped());
    if let Some(feature) = flavour.feature() {
        command.args(["--features", feature]);
    }
    command.arg("--").args(flavour.compiler_arguments());
    let mut cargo = command.spawn().context("cannot run cargo")?;
    let messages = BufReader::new(cargo.stdout.take().expect("stdout is piped"));
    let mut wasm = None;
    for line in messages.lines() {
        let line = line.context("cannot read what cargo prints")?;
        wasm = artifact(&line).or(wasm);
    }
    let status = cargo.wait().context("cannot wait for cargo")?;
    ensure!(status.success(), "the Worker does not compile");
    wasm.context("cargo has built no wasm file")
}

/// Returns the wasm file that a message of cargo names.
fn artifact(message: &str) -> Option<PathBuf> {
    let message: Value = serde_json::from_str(message).ok()?;
    if message["reason"] != "compiler-artifact" || message["target"]["name"] != "roomcast" {
        return None;
    }
    message["filenames"]
        .as_array()?
        .iter()
        .filter_map(Value::as_str)
        .find(|file| file.ends_with(".wasm"))
        .map(PathBuf::from)
}

/// Writes `index_bg.wasm` and `index.js`, which provides its imports.
fn bind(wasm: &Path, out: &Path) -> Result<()> {
    Bindgen::new()
        .input_path(wasm)
        .out_name("index")
        .module(true)?
        .typescript(false)
        .reset_state_function(true)
        .force_enable_abort_handler(true)
        .generate(out)
        .context("cannot generate the glue code")?;
    let file = out.join("index.js");
    let glue = fs::read_to_string(&file).context("cannot read the glue code")?;
    fs::write(&file, import_as_module(&replace_at_once(&glue)?)?)
        .context("cannot write the glue code")
}

/// Changes the glue code so that it replaces the WebAssembly instance immediately after a
/// trap, or after an exception that passed through Rust code. Both leave the instance in
/// an undefined state. Also adds the export `onReplace`, which sets a listener for the
/// replacement.
///
/// wasm-bindgen only records that the instance must be replaced, and replaces it at the
/// next call of an export. But that call belongs to an object or a closure of the old
/// instance: it would pass an address of the old memory to the new instance. After the
/// replacement, the glue code rejects such calls.
fn replace_at_once(glue: &str) -> Result<String> {
    let glue = replace_one(
        glue,
        "__wbg_reinit_scheduled = true;",
        "__wbg_reset_state();\nreplaced();",
    )?;
    Ok(glue + "\nlet replaced = () => {};\nexport function onReplace(f) { replaced = f; }\n")
}

/// Replaces the source phase import of the wasm file by an import, because workerd has no
/// source phase imports. Its import of a wasm file returns the module.
fn import_as_module(glue: &str) -> Result<String> {
    replace_one(glue, "import source ", "import ")
}

/// Replaces text that must occur exactly once.
fn replace_one(glue: &str, from: &str, to: &str) -> Result<String> {
    let count = glue.matches(from).count();
    ensure!(
        count == 1,
        "the glue code must contain `{from}` once, and does {count} times: \
         compare it with what this version of wasm-bindgen generates"
    );
    Ok(glue.replace(from, to))
}

/// Optimizes for size, twice: the second pass removes another 900 bytes of the deployed
/// module. Strips the names of functions, a tenth of the module.
///
/// `--low-memory-unused` makes it 4,600 bytes smaller: wasm-opt then moves constants below 1024
/// from additions into the offsets of loads and stores. This differs only for an address that
/// wraps around into the first kilobyte of the memory, which is the end of the stack.
///
/// The functions are sorted by their names, so that instances of the same generic function are
/// next to each other: gzip then removes another 8,600 bytes.
fn optimize(root: &Path, out: &Path) -> Result<()> {
    let file = out.join("index_bg.wasm");
    let mut command = npm_tool(root, "wasm-opt");
    command
        .arg(&file)
        .args(WASM_FEATURES)
        .args(["--low-memory-unused", "-Os", "-Os"])
        .args(["--reorder-functions-by-name", "--strip-debug"])
        .arg("-o")
        .arg(&file);
    succeed(command, "wasm-opt")
}

/// Bundles the entry module, the glue code, the snippets of other crates and the OpenAPI
/// document.
fn bundle(root: &Path, out: &Path) -> Result<()> {
    fs::write(out.join("entry.js"), ENTRY).context("cannot write the entry module")?;
    let document =
        fs::read(root.join(OPENAPI)).with_context(|| format!("cannot read {OPENAPI}"))?;
    let document: serde_json::Value =
        serde_json::from_slice(&document).with_context(|| format!("{OPENAPI} is not JSON"))?;
    fs::write(out.join("openapi.json"), document.to_string()).context("cannot write OpenAPI")?;
    let mut command = npm_tool(root, "esbuild");
    command
        .args(["entry.js", "--bundle", "--minify", "--format=esm"])
        .args(["--external:./index_bg.wasm", "--loader:.json=text"])
        .arg("--log-level=warning")
        .args(["--outfile=index.js", "--allow-overwrite"])
        .current_dir(out);
    succeed(command, "esbuild")
}

fn npm_tool(root: &Path, name: &str) -> Command {
    Command::new(root.join("node_modules/.bin").join(name))
}

fn succeed(mut command: Command, name: &str) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("cannot run {name}"))?;
    ensure!(status.success(), "{name} failed: {status}");
    Ok(())
}

/// Makes `link` a symbolic link to `target`, atomically, because wrangler may be reading
/// it.
fn point(link: &Path, target: &str) -> Result<()> {
    if fs::read_link(link).is_ok_and(|now| now == Path::new(target)) {
        return Ok(());
    }
    let new = link.with_extension("new");
    let _ = fs::remove_file(&new);
    std::os::unix::fs::symlink(target, &new)
        .and_then(|()| fs::rename(&new, link))
        .with_context(|| format!("cannot point {} to {target}", link.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// Versions of a crate in Cargo.lock.
    fn locked(name: &str) -> Vec<String> {
        let lock = fs::read_to_string(root().join("Cargo.lock")).expect("Cargo.lock");
        let name = format!("name = \"{name}\"");
        let mut lines = lock.lines();
        let mut versions = Vec::new();
        while lines.any(|line| line == name) {
            versions.extend(lines.next().map(str::to_owned));
        }
        versions
    }

    #[test]
    fn bindings_are_generated_by_the_version_of_wasm_bindgen_that_is_compiled_in() {
        let ours = locked("wasm-bindgen-cli-support");
        assert_eq!(ours.len(), 1);
        assert_eq!(ours, locked("wasm-bindgen"));
    }

    #[test]
    fn entry_module_exports_every_class_in_wrangler_toml() {
        let toml = fs::read_to_string(root().join("wrangler.toml")).expect("wrangler.toml");
        let bound: Vec<&str> = toml
            .lines()
            .filter_map(|line| line.strip_prefix("class_name = "))
            .map(|name| name.trim_matches('"'))
            .collect();
        let classes: BTreeSet<&str> = bound.iter().copied().collect();
        for class in &classes {
            assert!(
                ENTRY.contains(&format!("export const {class} = ")),
                "{class}"
            );
        }
        assert_eq!(classes.len(), ENTRY.matches("export const ").count());
        // The staging environment does not inherit bindings, so it repeats them.
        assert_eq!(bound.len(), 2 * classes.len());
    }

    #[test]
    fn wasm_file_is_found_in_the_messages_of_cargo() {
        let message = r#"{"reason":"compiler-artifact","target":{"name":"roomcast"},
            "filenames":["/t/libroomcast.rlib","/t/roomcast.wasm"]}"#;
        assert_eq!(artifact(message), Some("/t/roomcast.wasm".into()));
        assert_eq!(artifact(r#"{"reason":"build-finished"}"#), None);
        assert_eq!(artifact("text"), None);
    }

    #[test]
    fn glue_code_of_an_unknown_shape_is_refused() {
        assert!(replace_at_once("__wbg_reinit_scheduled = true;").is_ok());
        assert!(replace_at_once("").is_err());
    }
}
