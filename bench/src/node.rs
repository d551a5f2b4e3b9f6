//! Runs bench/peers/nest: Node processes with Redis.

use roomcast_harness::SECRET;
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// Number of Node processes. With a second process the figures were worse, because the
/// process competes with the load generator for a core. The Redis adapter does the same
/// work with one process and with two.
const PROCESSES: usize = 1;

/// The running processes. They end with the process that started them, even if that
/// process is killed.
pub(crate) struct Node {
    /// The address of each Node process.
    pub addresses: Vec<SocketAddr>,
    /// The process ids, including Redis.
    pub pids: Vec<u32>,
    /// The script that ends the processes when its input ends.
    serve: Child,
}

impl Node {
    /// Returns `true` if redis-server is installed.
    pub(crate) fn has_redis() -> bool {
        let status = Command::new("redis-server")
            .arg("--version")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        status.is_ok_and(|status| status.success())
    }

    /// Starts Redis and the Node processes.
    pub(crate) fn start() -> Self {
        // All ports are bound at the same time, so that they are distinct.
        let free: Vec<TcpListener> = (0..=PROCESSES)
            .map(|_| TcpListener::bind("127.0.0.1:0").expect("a free port"))
            .collect();
        let mut addresses: Vec<SocketAddr> = free
            .iter()
            .map(|listener| listener.local_addr().expect("a bound port"))
            .collect();
        drop(free);
        let serve = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers/nest/serve");
        let mut serve = Command::new(serve)
            .args(addresses.iter().map(|address| address.port().to_string()))
            .env("JWT_SECRET", SECRET)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("bench/peers/nest/serve runs");
        let mut ready = String::new();
        BufReader::new(serve.stdout.take().expect("piped"))
            .read_line(&mut ready)
            .expect("bench/peers/nest/serve prints a line when it is ready");
        let pids = ready
            .strip_prefix("ready ")
            .expect("bench/peers/nest/serve started: see its output above")
            .split_whitespace()
            .map(|pid| pid.parse().expect("a process id"))
            .collect();
        // The first address is that of Redis.
        addresses.remove(0);
        Node {
            addresses,
            pids,
            serve,
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        drop(self.serve.stdin.take());
        let _ = self.serve.wait();
    }
}
