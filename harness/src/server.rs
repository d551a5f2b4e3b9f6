//! A workerd process with its own storage.

use crate::{SECRET, TIMEOUT};
use serde_json::Value;
use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A Worker: its modules and its Durable Object classes. The first module is the main
/// module.
#[derive(Clone, Debug)]
pub struct Worker {
    modules: Vec<PathBuf>,
    /// Pairs of binding and Durable Object class.
    classes: Vec<(&'static str, &'static str)>,
}

impl Worker {
    /// Returns the release build of roomcast, after building it if necessary.
    pub fn roomcast() -> Self {
        Worker::built("release")
    }

    /// Returns a build flavour of roomcast, after building it if necessary: `release`,
    /// `dev`, `conformance`, `failpoints` or `limits`.
    pub fn built(flavour: &str) -> Self {
        build(flavour);
        Worker::in_folder(&root().join("build").join(flavour))
    }

    /// Returns the build of roomcast in the folder `dir`.
    pub fn in_folder(dir: &Path) -> Self {
        let main = dir.join("index.js");
        // Builds of older commits have fewer classes.
        let code = std::fs::read(&main).unwrap_or_default();
        let code = String::from_utf8_lossy(&code);
        let has = |class: &str| code.contains(class);
        let mut classes = vec![("ROOMS", "Room"), ("GATEWAYS", "Gateway")];
        classes.extend(
            [("REVOCATIONS", "Revocations"), ("TICKETS", "Tickets")]
                .iter()
                .filter(|one| has(one.1)),
        );
        Worker::new(&[&main, &dir.join("index_bg.wasm")], &classes)
    }

    /// Returns any other Worker. `modules` are `.js` and `.wasm` files, the main module
    /// first. `classes` are pairs of binding and Durable Object class.
    pub fn new(modules: &[&Path], classes: &[(&'static str, &'static str)]) -> Self {
        Worker {
            modules: modules.iter().map(|path| path.to_path_buf()).collect(),
            classes: classes.to_vec(),
        }
    }
}

/// Builds a flavour of the Worker, at most once per process.
pub fn build(flavour: &str) {
    static BUILT: Mutex<Vec<String>> = Mutex::new(Vec::new());
    let mut all = BUILT.lock().unwrap_or_else(PoisonError::into_inner);
    if !all.iter().any(|one| one == flavour) {
        let built = Command::new(root().join("scripts/build"))
            .arg(flavour)
            .status()
            .expect("scripts/build runs");
        assert!(built.success(), "scripts/build {flavour} failed");
        all.push(flavour.to_owned());
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the harness is in the project")
        .to_path_buf()
}

/// A running workerd. It ends when the process that started it ends, even if that
/// process is killed.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    /// A shell that kills workerd and removes `dir` when its standard input ends.
    watchdog: Child,
    dir: PathBuf,
    secret: String,
}

impl Server {
    /// Starts roomcast with these settings in addition to the defaults of the
    /// tests.
    pub fn start(vars: &[(&str, &str)]) -> Server {
        Server::start_worker(&Worker::roomcast(), vars)
    }

    /// Starts any Worker. A setting with an empty value is left unset.
    pub fn start_worker(worker: &Worker, vars: &[(&str, &str)]) -> Server {
        Server::start_after("", worker, vars)
    }

    /// Runs shell commands and then starts any Worker. The commands can set resource
    /// limits for workerd.
    pub fn start_after(prelude: &str, worker: &Worker, vars: &[(&str, &str)]) -> Server {
        Server::start_with(prelude, None, worker, vars)
    }

    /// Starts any Worker on a copy of another server's storage.
    /// [`Server::pack_storage`] has written the copy to `archive`.
    pub fn start_from(archive: &Path, worker: &Worker, vars: &[(&str, &str)]) -> Server {
        Server::start_with("", Some(archive), worker, vars)
    }

    fn start_with(
        prelude: &str,
        archive: Option<&Path>,
        worker: &Worker,
        vars: &[(&str, &str)],
    ) -> Server {
        let mut all = vec![
            ("JWT_SECRET", SECRET),
            ("DEFAULT_ROOMS", "*"),
            ("CONNECTS_PER_MINUTE", "100000"),
            ("BYTES_PER_SECOND", "1000000000"),
            ("BYTES_BURST", "1000000000"),
            ("ROOM_BYTES_PER_SECOND", "1000000000"),
            ("ROOM_BYTES_BURST", "1000000000"),
        ];
        all.retain(|(name, _)| vars.iter().all(|(other, _)| other != name));
        all.extend(vars.iter().filter(|(_, value)| !value.is_empty()));
        let secret = all
            .iter()
            .find(|(name, _)| *name == "JWT_SECRET")
            .map_or("", |(_, value)| value)
            .to_owned();

        let dir = tempfile::Builder::new()
            .prefix("roomcast-")
            .tempdir()
            .expect("a temporary folder")
            .keep();
        std::fs::create_dir(dir.join("storage")).expect("a folder for storage");
        if let Some(archive) = archive {
            tar("-xzf", archive, &dir.join("storage"));
        }
        std::fs::write(dir.join("prelude"), prelude).expect("a prelude");
        let address = free_address();
        let config = dir.join("config.capnp");
        std::fs::write(&config, capnp(worker, &all, address, &dir)).expect("a config");
        let mut server = Server {
            address,
            watchdog: watch(&dir),
            dir,
            secret,
        };
        server.wait_until_up();
        server
    }

    /// Returns the address that workerd listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns `http://127.0.0.1:{port}` with a path.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Returns the `JWT_SECRET` of the server, or the empty string if it is unset.
    pub fn secret(&self) -> &str {
        &self.secret
    }

    /// Returns the process id of workerd.
    pub fn pid(&self) -> u32 {
        self.read("pid").trim().parse().expect("a pid")
    }

    /// Returns the number of objects of a binding, such as `GATEWAYS`, that have storage.
    pub fn objects(&self, binding: &str) -> usize {
        let folder = self.dir.join("storage").join(binding.to_lowercase());
        let files = std::fs::read_dir(folder).into_iter().flatten().flatten();
        let is_database = |name: &str| name.ends_with(".sqlite") && name != "metadata.sqlite";
        files
            .filter(|file| is_database(&file.file_name().to_string_lossy()))
            .count()
    }

    /// Returns the processor time that workerd has used.
    pub fn processor_time(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid()))
            .expect("workerd runs, on Linux");
        // The name of the process, in parentheses, may contain spaces. `utime` and `stime` are
        // the fields 14 and 15 (proc(5)), in hundredths of a second.
        let (_, fields) = stat.rsplit_once(')').expect("a name");
        let ticks = fields.split_whitespace().skip(11).take(2);
        let ticks = ticks.map(|ticks| ticks.parse::<u64>().expect("a number"));
        Duration::from_millis(10 * ticks.sum::<u64>())
    }

    /// Returns the resident memory of workerd in MiB.
    pub fn memory(&self) -> usize {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid()))
            .expect("workerd runs, on Linux");
        let kib = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next())
            .expect("its resident memory");
        kib.parse::<usize>().expect("a number") / 1024
    }

    /// Kills workerd with SIGKILL and waits until its port is closed.
    pub fn kill(&mut self) {
        let killed = Command::new("kill")
            .args(["-9", &self.pid().to_string()])
            .status();
        assert!(
            killed.is_ok_and(|status| status.success()),
            "workerd is not running"
        );
        let deadline = Instant::now() + TIMEOUT;
        while TcpStream::connect(self.address).is_ok() {
            assert!(
                Instant::now() < deadline,
                "workerd still listens after SIGKILL"
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Returns the sizes in bytes of the databases of a class of objects, such as `rooms`. Leaves
    /// out databases without a table: workerd creates a page for every object.
    pub fn databases(&self, class: &str) -> Vec<u64> {
        let files = std::fs::read_dir(self.dir.join("storage").join(class));
        let paths = files
            .into_iter()
            .flatten()
            .flatten()
            .map(|file| file.path());
        let databases = paths.filter(|path| {
            // `metadata.sqlite` has the alarms of all objects.
            let name = path.file_stem().unwrap_or_default();
            path.extension()
                .is_some_and(|extension| extension == "sqlite")
                && name != "metadata"
        });
        let sizes = databases.map(|path| database_size(&path).unwrap_or(0));
        sizes.filter(|size| *size > PAGE).collect()
    }

    /// Stops workerd as a deployment does. SIGTERM closes all sockets. If workerd still
    /// listens after 2 s, sends SIGKILL.
    pub fn stop(&mut self) {
        let stopped = Command::new("kill").arg(self.pid().to_string()).status();
        assert!(
            stopped.is_ok_and(|status| status.success()),
            "workerd is not running"
        );
        let deadline = Instant::now() + Duration::from_secs(2);
        while TcpStream::connect(self.address).is_ok() {
            if Instant::now() > deadline {
                return self.kill();
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Writes the storage to a `.tar.gz` file. workerd must not be running.
    pub fn pack_storage(&self, archive: &Path) {
        tar("-czf", archive, &self.dir.join("storage"));
    }

    /// Returns the sum of a number that a query returns in the storage of each object of a
    /// namespace, such as `revocations`. workerd must not be running.
    pub fn stored(&self, namespace: &str, query: &str) -> i64 {
        // Storage that is not of an object, such as alarms, has another name.
        const SCRIPT: &str = r#"
            const { DatabaseSync } = require("node:sqlite");
            const [folder, query] = process.argv.slice(1);
            const names = require("fs").readdirSync(folder);
            const files = names.filter((name) => /^[0-9a-f]{64}\.sqlite$/.test(name));
            const read = (name) => new DatabaseSync(`${folder}/${name}`).prepare(query).get();
            console.log(files.reduce((sum, name) => sum + Object.values(read(name))[0], 0));
        "#;
        let output = Command::new(root().join("node_modules/.bin/node"))
            .args(["--no-warnings", "-e", SCRIPT])
            .arg(self.dir.join("storage").join(namespace))
            .arg(query)
            .output()
            .expect("node runs");
        let (result, errors) = (
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
        );
        result.trim().parse().unwrap_or_else(|_| panic!("{errors}"))
    }

    /// Starts workerd again on the same storage and port. Kills it first if it is
    /// running.
    pub fn restart(&mut self) {
        if TcpStream::connect(self.address).is_ok() {
            self.kill();
        }
        // The old watchdog removes the folder when its input ends, so it is killed
        // first.
        let _ = self.watchdog.kill();
        let _ = self.watchdog.wait();
        self.watchdog = watch(&self.dir);
        self.wait_until_up();
    }

    /// Restarts workerd as [`Server::restart`] does, with new shell commands in place
    /// of those of [`Server::start_after`].
    pub fn restart_after(&mut self, prelude: &str) {
        std::fs::write(self.dir.join("prelude"), prelude).expect("a prelude");
        self.restart();
    }

    fn wait_until_up(&mut self) {
        let deadline = Instant::now() + TIMEOUT;
        while TcpStream::connect(self.address).is_err() {
            let ended = self.watchdog.try_wait().is_ok_and(|ended| ended.is_some());
            assert!(
                !ended && Instant::now() < deadline,
                "workerd did not start:\n{}",
                self.output()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Returns everything that workerd has printed.
    pub fn output(&self) -> String {
        self.read("output")
    }

    /// Returns the last `n` lines that workerd has printed.
    pub fn last_lines(&self, n: usize) -> Vec<String> {
        let output = self.output();
        let lines: Vec<&str> = output.lines().collect();
        let last = &lines[lines.len().saturating_sub(n)..];
        last.iter().map(|line| (*line).to_owned()).collect()
    }

    /// Returns the records of the event log so far.
    pub fn log(&self) -> Vec<Value> {
        self.output()
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect()
    }

    /// Waits for a log record that `matches` accepts and returns it. `what` names
    /// the record in the panic message.
    pub async fn wait_for_log(&self, what: &str, matches: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            if let Some(record) = self.log().into_iter().find(&matches) {
                return record;
            }
            assert!(
                Instant::now() < deadline,
                "no log record of {what} in:\n{}",
                self.output()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn read(&self, file: &str) -> String {
        std::fs::read(self.dir.join(file))
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The watchdog cleans up when its input ends.
        drop(self.watchdog.stdin.take());
        let _ = self.watchdog.wait();
    }
}

/// The size of a page of workerd's databases.
const PAGE: u64 = 4_096;

/// Returns the size in bytes of a SQLite database. The file has the size of the last checkpoint;
/// each commit in the write-ahead log has the number of pages after it
/// (<https://www.sqlite.org/fileformat2.html#the_write_ahead_log>).
fn database_size(path: &Path) -> Option<u64> {
    let word = |bytes: &[u8], at: usize| {
        let bytes = bytes.get(at..at + 4)?;
        Some(u32::from_be_bytes(bytes.try_into().ok()?))
    };
    let mut size = std::fs::metadata(path).ok()?.len();
    let log = std::fs::read(path.with_extension("sqlite-wal")).unwrap_or_default();
    let salt = log.get(16..24);
    for frame in log.get(32..).unwrap_or_default().chunks(24 + PAGE as usize) {
        // Frames with another salt are older than the last checkpoint.
        match word(frame, 4) {
            Some(pages) if pages > 0 && frame.get(8..16) == salt => size = u64::from(pages) * PAGE,
            _ => {}
        }
    }
    Some(size)
}

/// Packs or unpacks everything in a folder.
fn tar(action: &str, archive: &Path, folder: &Path) {
    let status = Command::new("tar")
        .args([action.as_ref(), archive.as_os_str()])
        .arg("-C")
        .arg(folder)
        .arg(".")
        .status();
    assert!(
        status.is_ok_and(|status| status.success()),
        "tar {action} {} failed",
        archive.display()
    );
}

/// Starts workerd under a shell. The shell kills workerd when the input of the shell
/// ends, which also happens when this process is killed.
fn watch(dir: &Path) -> Child {
    let script = r#"
        (. "$2/prelude"; exec "$1" serve "$2/config.capnp") >>"$2/output" 2>&1 </dev/null &
        pid=$!
        echo $pid >"$2/pid.new" && mv "$2/pid.new" "$2/pid"
        echo started
        read -r _
        kill -9 $pid 2>/dev/null
        rm -rf "$2"
    "#;
    let workerd = std::fs::canonicalize(root().join("node_modules/.bin/workerd"))
        .expect("workerd is installed: scripts/tools");
    let mut child = Command::new("sh")
        .args(["-c", script, "sh"])
        .arg(workerd)
        .arg(dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("sh runs");
    // The shell prints a line after it has written the pid file.
    let mut started = String::new();
    let mut output = std::io::BufReader::new(child.stdout.take().expect("piped"));
    std::io::BufRead::read_line(&mut output, &mut started).expect("the watchdog has started");
    let _ = std::io::stdout().flush();
    child
}

fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .expect("a free port")
}

fn capnp(worker: &Worker, vars: &[(&str, &str)], address: SocketAddr, dir: &Path) -> String {
    // capnp embeds files by paths relative to the config.
    let modules: Vec<String> = worker
        .modules
        .iter()
        .map(|path| {
            let name = path.file_name().expect("a file").to_string_lossy();
            std::fs::copy(path, dir.join(&*name))
                .unwrap_or_else(|error| panic!("{} is not built: {error}", path.display()));
            let kind = if name.ends_with(".wasm") {
                "wasm"
            } else {
                "esModule"
            };
            format!(r#"(name = "{name}", {kind} = embed "{name}")"#)
        })
        .collect();
    let classes = worker.classes.iter();
    let vars = vars
        .iter()
        .map(|(name, value)| format!("(name = {name:?}, text = {value:?})"));
    let bindings: Vec<String> = classes
        .clone()
        .map(|(name, class)| format!("(name = {name:?}, durableObjectNamespace = {class:?})"))
        .chain(vars)
        .collect();
    let namespaces: Vec<String> = classes
        .map(|(name, class)| {
            let key = name.to_lowercase();
            format!("(className = {class:?}, uniqueKey = {key:?}, enableSql = true)")
        })
        .collect();
    format!(
        r#"using Workerd = import "/workerd/workerd.capnp";
const config :Workerd.Config = (
  services = [
    (name = "main", worker = .w),
    (name = "disk", disk = (path = "{storage}", writable = true)),
    # `private` and `local` allow requests to the servers of the tests.
    (name = "internet", network = (allow = ["public", "private", "local"])),
  ],
  sockets = [(name = "http", address = "{address}", http = (), service = "main")],
  v8Flags = [{v8_flags}],
);
const w :Workerd.Worker = (
  modules = [{modules}],
  compatibilityDate = "{date}",
  compatibilityFlags = {flags},
  bindings = [{bindings}],
  durableObjectNamespaces = [{namespaces}],
  durableObjectStorage = (localDisk = "disk"),
);
"#,
        storage = dir.join("storage").display(),
        v8_flags = v8_flags(),
        modules = modules.join(", "),
        bindings = bindings.join(", "),
        namespaces = namespaces.join(", "),
        date = from_wrangler("compatibility_date").trim_matches('"'),
        flags = from_wrangler("compatibility_flags"),
    )
}

/// Returns the flags of V8 in the environment variable `V8_FLAGS`, for example
/// `--perf-basic-prof`, with which `perf` shows the names of functions.
fn v8_flags() -> String {
    let flags = std::env::var("V8_FLAGS").unwrap_or_default();
    let flags = flags.split_whitespace().map(|flag| format!("{flag:?}"));
    flags.collect::<Vec<_>>().join(", ")
}

/// Reads a field of wrangler.toml, so that tests and deployments use the same value.
fn from_wrangler(field: &str) -> String {
    let toml = std::fs::read_to_string(root().join("wrangler.toml")).expect("wrangler.toml");
    toml.lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(" = "))
        .unwrap_or_else(|| panic!("wrangler.toml has no {field}"))
        .to_owned()
}
