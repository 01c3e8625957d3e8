//! A server on a socket of its own, and a client that sends exactly what it is told to.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tenon::Tenon;
use tenon_server::{Options, Server};
use tokio::runtime::Runtime;
use tokio::sync::oneshot;

/// A running server; it stops when this is dropped.
pub(crate) struct Served {
    pub(crate) address: SocketAddr,
    pub(crate) tenon: Arc<Tenon>,
    stop: Option<oneshot::Sender<()>>,
    stopped: Option<tokio::task::JoinHandle<()>>,
    runtime: Option<Runtime>,
    home: Option<tempfile::TempDir>,
}

pub(crate) fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures").canonicalize().unwrap()
}

impl Served {
    /// With an empty home, and the fixtures as the allowed path.
    pub(crate) fn new() -> Self {
        Self::with(Options { allow_paths: vec![fixtures()], ..Options::default() })
    }

    pub(crate) fn with(options: Options) -> Self {
        let home = tempfile::tempdir().unwrap();
        let mut served = Self::at(home.path(), options);
        served.home = Some(home);
        served
    }

    /// With a home that outlives it, and shards so small that models have many.
    pub(crate) fn at(home: &Path, options: Options) -> Self {
        let tenon = Arc::new(Tenon::open(home).unwrap().max_shard_size(200_000));
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let (stop, stopping) = oneshot::channel();
        let (address, stopped) = runtime.block_on(async {
            let server = Server::new(tenon.clone(), options);
            let listener = server.bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
            let address = listener.local_addr().unwrap();
            let stopped = tokio::spawn(server.serve(listener, async {
                let _ = stopping.await;
            }));
            (address, stopped)
        });
        Self { address, tenon, stop: Some(stop), stopped: Some(stopped), runtime: Some(runtime), home: None }
    }

    /// Asks the server to stop and waits until it has.
    pub(crate) fn stop(&mut self) {
        if let (Some(stop), Some(stopped), Some(runtime)) =
            (self.stop.take(), self.stopped.take(), self.runtime.take())
        {
            let _ = stop.send(());
            runtime.block_on(stopped).unwrap();
            runtime.shutdown_timeout(Duration::from_secs(5));
        }
    }

    pub(crate) fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        stream
    }

    /// Sends a request as it is written and reads the answer to the end of the connection.
    pub(crate) fn raw(&self, request: &[u8]) -> Answer {
        let mut stream = self.connect();
        // A server that refuses early may close while the rest is sent.
        let _ = stream.write_all(request);
        let mut bytes = vec![];
        let _ = stream.read_to_end(&mut bytes);
        Answer::parse(&bytes)
    }

    /// A request with headers of its own; `body` is JSON.
    pub(crate) fn ask(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<&str>,
    ) -> Answer {
        let mut request = format!("{method} {path} HTTP/1.1\r\nConnection: close\r\n");
        if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
            request.push_str(&format!("Host: {}\r\n", self.address));
        }
        for (name, value) in headers {
            request.push_str(&format!("{name}: {value}\r\n"));
        }
        if let Some(body) = body {
            if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("content-type")) {
                request.push_str("Content-Type: application/json\r\n");
            }
            request.push_str(&format!("Content-Length: {}\r\n", body.len()));
        }
        request.push_str("\r\n");
        request.push_str(body.unwrap_or_default());
        self.raw(request.as_bytes())
    }

    pub(crate) fn get(&self, path: &str) -> Answer {
        self.ask("GET", &format!("/api/v1/{path}"), &[], None)
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> Answer {
        self.ask("POST", &format!("/api/v1/{path}"), &[], Some(&body.to_string()))
    }

    /// Registers the fixture's base and adapter; the name of the Customized Model.
    pub(crate) fn register(&self) -> String {
        let base =
            self.post("base-models", &json!({ "path": fixtures().join("kjv-llama/base"), "name": "kjv" }));
        assert_eq!(base.status, 201, "{}", base.text());
        let adapter = json!({ "path": fixtures().join("kjv-llama/adapter-lora"), "base": "kjv" });
        let added = self.post("customized-models", &adapter);
        assert_eq!(added.status, 201, "{}", added.text());
        added.json()["name"].as_str().unwrap().to_string()
    }

    /// Saves the fixture's Customized Model; the job when it is done.
    pub(crate) fn save(&self) -> Value {
        let customized = self.register();
        let queued = self.post("savings", &json!({ "customized": customized }));
        assert_eq!(queued.status, 202, "{}", queued.text());
        self.ended(queued.json()["id"].as_str().unwrap())
    }

    /// A job when it has ended.
    pub(crate) fn ended(&self, id: &str) -> Value {
        let begin = Instant::now();
        loop {
            let job = self.get(&format!("jobs/{id}")).json();
            if !["queued", "running"].contains(&job["state"].as_str().unwrap()) {
                return job;
            }
            assert!(begin.elapsed() < Duration::from_secs(60), "{job}");
            std::thread::sleep(Duration::from_millis(30));
        }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.stop();
    }
}

/// An answer, whole.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    fn parse(bytes: &[u8]) -> Self {
        let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else {
            return Self { status: 0, headers: vec![], body: bytes.to_vec() };
        };
        let head = String::from_utf8_lossy(&bytes[..end]);
        let mut lines = head.lines();
        let status = lines.next().and_then(|line| line.split(' ').nth(1)).and_then(|code| code.parse().ok());
        let headers = lines
            .filter_map(|line| line.split_once(": "))
            .map(|(name, value)| (name.to_lowercase(), value.to_string()))
            .collect();
        Self { status: status.unwrap_or(0), headers, body: bytes[end + 4..].to_vec() }
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.iter().find(|(known, _)| known == name).map_or("", |(_, value)| value)
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    /// That it is a problem with this status and code, as all problems are.
    #[track_caller]
    pub(crate) fn is_problem(&self, status: u16, code: &str) {
        assert_eq!(self.status, status, "{}", self.text());
        assert_eq!(self.header("content-type"), "application/problem+json");
        let problem = self.json();
        assert_eq!(problem["code"], code, "{problem}");
        assert_eq!(problem["status"], status);
        assert_eq!(problem["type"], format!("urn:tenon:problem:{code}"));
        assert!(problem["title"].is_string() && problem["detail"].is_string(), "{problem}");
    }
}
