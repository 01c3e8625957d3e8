//! `tenon serve` with thousands of Complete Models and hundreds of connections that ask for the list,
//! while it merges; and how fast it merges with and without them, in turns.
//!
//! Connections are opened first and stay open. Every one asks at fixed times, whether its last answer has
//! come or not is its own matter: latency counts from when the request was due, so that a server that
//! stalls is not asked less. Clients sleep to the millisecond, which is in the latency. They run on the
//! same cores, and so do those that `--every 0` has: each connection asks again as soon as it has its
//! answer, which says what the server can do, not how long it takes.
//!
//! `cargo build --release && cargo run --release -p tenon-benches --bin serve_under_load`
#![allow(clippy::print_stdout)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::Parser;
use serde_json::{Value, json};
use tenon::Tenon;
use tenon_benches::{ALL_LINEAR, SHAPES, home_with_models};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, sleep_until};

#[derive(Parser)]
struct Arguments {
    /// Complete Models in the catalogue
    #[arg(long, default_value_t = 10_000)]
    models: u64,
    /// Connections at once
    #[arg(long, default_value_t = 500)]
    connections: u32,
    /// Milliseconds between two requests of a connection; 0: as soon as the last is answered
    #[arg(long, default_value_t = 1000)]
    every: u64,
    /// Shape of the model that is merged: tiny, 1b or 8b
    #[arg(long, default_value = "1b")]
    shape: String,
    /// Pairs of merges, one without the load and one with it
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Where the model is made and kept
    #[arg(long, default_value = "target/bench-models")]
    dir: PathBuf,
}

fn main() {
    let arguments = Arguments::parse();
    let shape = SHAPES.iter().find(|s| s.name == arguments.shape).expect("--shape is tiny, 1b or 8b");
    let (base, adapter) =
        (arguments.dir.join(shape.name), arguments.dir.join(format!("{}-lora-r16-all", shape.name)));
    shape.write_base(&base).expect("the base can be written");
    shape.write_adapter(&adapter, 16, &ALL_LINEAR).expect("the adapter can be written");
    // Beside the model: the merge writes there.
    let home =
        std::path::absolute(arguments.dir.join(format!("home-{}", std::process::id()))).expect("a path");
    home_with_models(&home, arguments.models);
    let customized = {
        let tenon = Tenon::open(&home).expect("the home opens");
        let (base, _) = tenon.base_at(&base).expect("the base is one");
        tenon.customized_at(&adapter, &base).expect("the adapter fits").0.name
    };
    let (mut server, address) = serve(&home);
    // The first merge hashes the base and warms the page cache.
    merge(address, customized.as_str());
    let (mut alone, mut loaded, mut ratios, mut latencies) = (vec![], vec![], vec![], vec![]);
    for _ in 0..arguments.rounds {
        let a = merge(address, customized.as_str());
        let stop = Arc::new(AtomicBool::new(false));
        let load = {
            let (stop, n, every) =
                (stop.clone(), arguments.connections, Duration::from_millis(arguments.every));
            std::thread::spawn(move || load(address, n, every, &stop))
        };
        std::thread::sleep(Duration::from_millis(1500));
        let l = merge(address, customized.as_str());
        stop.store(true, Ordering::Relaxed);
        latencies.extend(load.join().expect("the clients end"));
        alone.push(a);
        loaded.push(l);
        ratios.push(a / l);
    }
    let peak = peak(server.id());
    let _ = Command::new("kill").arg(server.id().to_string()).status();
    let _ = server.wait();
    std::fs::remove_dir_all(&home).expect("the home can be removed");
    latencies.sort_by(f64::total_cmp);
    let at = |share: f64| latencies[((latencies.len() - 1) as f64 * share) as usize] * 1e3;
    println!(
        "{} Complete Models, {} connections asking every {} ms, while {} merges; {} rounds",
        arguments.models, arguments.connections, arguments.every, shape.name, arguments.rounds
    );
    println!("requests answered     {}", latencies.len());
    println!("latency p50           {:7.2} ms", at(0.50));
    println!("latency p99           {:7.2} ms", at(0.99));
    println!("latency p99.9         {:7.2} ms", at(0.999));
    println!("latency max           {:7.2} ms", at(1.0));
    println!("merge alone           {:7.3} s", median(&mut alone));
    println!("merge under load      {:7.3} s", median(&mut loaded));
    println!("speed kept            {:7.1} %", median(&mut ratios) * 100.0);
    println!("server's peak memory  {:7.1} MB", peak as f64 / 1e6);
}

fn serve(home: &Path) -> (Child, SocketAddr) {
    let tenon = std::env::current_exe().expect("a program knows its path").with_file_name("tenon");
    assert!(tenon.exists(), "build it first: cargo build --release");
    let mut server = Command::new(tenon)
        .args(["serve", "--listen", "127.0.0.1:0"])
        .env("TENON_HOME", home)
        .env("TENON_LOG", "warn")
        .stdout(Stdio::piped())
        .spawn()
        .expect("the server starts");
    let mut line = String::new();
    BufReader::new(server.stdout.take().expect("piped")).read_line(&mut line).expect("it says where it is");
    let address = line.trim().rsplit("http://").next().and_then(|a| a.trim_end_matches('/').parse().ok());
    (server, address.expect("an address"))
}

/// Seconds that a Saving's merge took, of its own account; the model is removed again.
fn merge(address: SocketAddr, customized: &str) -> f64 {
    let job = ask(address, "POST", "savings", Some(&json!({ "customized": customized })));
    let path = format!("jobs/{}", job["id"].as_str().expect("an id"));
    let model = loop {
        std::thread::sleep(Duration::from_millis(50));
        let job = ask(address, "GET", &path, None);
        match job["state"].as_str() {
            Some("queued" | "running") => {}
            Some("done") => break job["model"].as_str().expect("a name").to_string(),
            _ => panic!("{job}"),
        }
    };
    let path = format!("complete-models/{model}");
    let seconds =
        ask(address, "GET", &path, None)["manifest"]["saving"]["seconds"].as_f64().expect("seconds");
    ask(address, "DELETE", &path, None);
    seconds
}

fn ask(address: SocketAddr, method: &str, path: &str, body: Option<&Value>) -> Value {
    let body = body.map(Value::to_string).unwrap_or_default();
    let mut stream = TcpStream::connect(address).expect("the server listens");
    write!(
        stream,
        "{method} /api/v1/{path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .expect("it reads");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("it answers");
    assert!(text.starts_with("HTTP/1.1 20"), "{method} {path}: {text}");
    let body = text.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    serde_json::from_str(body).unwrap_or(Value::Null)
}

/// Seconds from when each request was due until its answer was whole.
fn load(address: SocketAddr, connections: u32, every: Duration, stop: &Arc<AtomicBool>) -> Vec<f64> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        // As the server does: the table of files grows in leaps that stop the process.
        let room = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a socket");
        let _ = rustix::io::fcntl_dupfd_cloexec(&room, connections.cast_signed() + 64);
        let mut streams = vec![];
        for _ in 0..connections {
            let stream = tokio::net::TcpStream::connect(address).await.expect("the server listens");
            stream.set_nodelay(true).expect("a socket");
            streams.push(stream);
        }
        let begin = Instant::now() + Duration::from_millis(50);
        let clients = streams.into_iter().zip(0..connections);
        let tasks: Vec<_> = clients
            .map(|(stream, n)| {
                tokio::spawn(client(stream, address, n, begin + every * n / connections, every, stop.clone()))
            })
            .collect();
        let mut all = vec![];
        for task in tasks {
            all.extend(task.await.expect("a client ends"));
        }
        all
    })
}

async fn client(
    mut stream: tokio::net::TcpStream,
    address: SocketAddr,
    n: u32,
    begin: Instant,
    every: Duration,
    stop: Arc<AtomicBool>,
) -> Vec<f64> {
    let sorts = ["-created", "name", "-bytes", "created"];
    let (mut seen, mut due, mut buffer) = (vec![], begin, vec![0; 256 << 10]);
    while !stop.load(Ordering::Relaxed) {
        sleep_until(due).await;
        let (sort, offset) = (sorts[(n % 4) as usize], (n / 4 % 8) * 50);
        let request = format!(
            "GET /api/v1/complete-models?sort={sort}&offset={offset}&limit=50 HTTP/1.1\r\nHost: {address}\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.expect("it reads");
        let (mut have, mut whole) = (0, usize::MAX);
        while have < whole {
            have += stream.read(&mut buffer[have..]).await.expect("it answers");
            if whole == usize::MAX
                && let Some(end) = buffer[..have].windows(4).position(|window| window == b"\r\n\r\n")
            {
                let head = String::from_utf8_lossy(&buffer[..end]).to_lowercase();
                assert!(head.starts_with("http/1.1 200"), "{head}");
                let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
                whole = end + 4 + length.and_then(|n| n.parse::<usize>().ok()).expect("a length");
            }
        }
        seen.push(due.elapsed().as_secs_f64());
        due = if every.is_zero() { Instant::now() } else { due + every };
    }
    seen
}

/// The most memory that a process had resident.
fn peak(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("Linux tells it");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
