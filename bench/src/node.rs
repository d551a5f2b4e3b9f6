//! bench/peers/nest: Node processes and a Redis between them.

use roomcast_harness::SECRET;
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// One: a second would take its core from the load generator, and was slower
/// here. The adapter has the same to do for each message either way.
const PROCESSES: usize = 1;

/// The peer, running. Ends with the process that started it, however that ends.
pub struct Node {
    /// One for each Node process.
    pub addresses: Vec<SocketAddr>,
    /// Of all, Redis included.
    pub pids: Vec<u32>,
    /// Ends them when its input ends.
    serve: Child,
}

impl Node {
    pub fn has_redis() -> bool {
        let asked = Command::new("redis-server")
            .arg("--version")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        asked.is_ok_and(|status| status.success())
    }

    pub fn start() -> Self {
        // Held together, so that no two are the same.
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
            .expect("it says when it is ready");
        let pids = ready
            .strip_prefix("ready ")
            .expect("it started; otherwise it said why not")
            .split_whitespace()
            .map(|pid| pid.parse().expect("a process id"))
            .collect();
        // The first is that of Redis.
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
