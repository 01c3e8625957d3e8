//! Stands in for an Ollama server in tests, and fails as it is told to. [`served`] has its kin.
//!
//! What it answers is what Ollama 0.33 answered to the same requests (the
//! exchanges are in `fixtures/ollama-exchanges`); it keeps files by digest and
//! makes models of them, but runs none: it answers each question with one
//! token. A [`Rule`] makes it fail at a request, once or always: with a
//! status, by silence, by cutting the connection at a byte, or by saying
//! something else. Only loopback addresses are listened on.
//!
//! The binary of the same name serves until it is killed, for tests in other
//! languages; it prints its address.

mod exchange;
mod ollama;
pub mod served;
mod tls;

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use serde::{Deserialize, Serialize};

pub use ollama::Model;
pub use tls::{Certificate, Tls};

/// A server on a port of its own, until it is dropped.
pub struct StandIn {
    address: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// What it does instead of answering.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Rule {
    /// The requests that it is for: a beginning of `METHOD /path`.
    pub on: String,
    /// How many such requests are let through first.
    #[serde(default)]
    pub after: u32,
    /// How many it is for; without a number, all.
    #[serde(default)]
    pub times: Option<u32>,
    /// What it does.
    pub act: Act,
}

/// Ways to fail.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Act {
    /// Answers with a status and a text, after the request was read to its end.
    Status {
        /// The status.
        code: u16,
        /// Headers besides.
        #[serde(default)]
        headers: Vec<(String, String)>,
        /// The body.
        #[serde(default)]
        body: String,
    },
    /// As `Status`, before any of the request's body is read.
    StatusAtOnce {
        /// The status.
        code: u16,
        /// The body.
        #[serde(default)]
        body: String,
    },
    /// Reads the request and never answers.
    Hang,
    /// Stops reading after so many bytes of the request's body, and never answers.
    HangReading(u64),
    /// Closes the connection after so many bytes of the request's body.
    CutRequest(u64),
    /// Does what was asked, and closes the connection after so many bytes of the answer's body.
    CutAnswer(u64),
    /// Does what was asked, and answers a byte at a time with so many milliseconds between.
    Slow(u64),
    /// Does what was asked, and answers in pieces of so many bytes.
    Split(usize),
    /// Does not do what was asked, and answers 200 with these pieces.
    Say(Vec<Vec<u8>>),
    /// Does what was asked, and these pieces come after the answer.
    Add(Vec<Vec<u8>>),
    /// Does what was asked, but says nothing.
    Swallow,
}

/// A request that was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Seen {
    /// `METHOD /path`.
    pub line: String,
    /// Bytes of its body that were read.
    pub bytes: u64,
    /// The header `Authorization`.
    pub authorization: Option<String>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    stopped: AtomicBool,
}

#[derive(Default)]
struct State {
    rules: Vec<Rule>,
    seen: Vec<Seen>,
    key: Option<String>,
    version: Option<String>,
    ollama: ollama::Store,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl StandIn {
    /// Starts one on a free port.
    pub fn start() -> io::Result<Self> {
        Self::start_on(0)
    }

    /// Starts one on a port of 127.0.0.1.
    pub fn start_on(port: u16) -> io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", port))?;
        let address = listener.local_addr()?;
        let shared = Arc::<Shared>::default();
        let for_thread = Arc::clone(&shared);
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if for_thread.stopped.load(Ordering::Acquire) {
                    return;
                }
                let (Ok(stream), shared) = (stream, Arc::clone(&for_thread)) else { continue };
                // Each connection serves until either side closes it.
                std::thread::spawn(move || exchange::serve(stream, &shared));
            }
        });
        Ok(Self { address, shared, thread: Some(thread) })
    }

    /// Its address.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Adds a rule. The first that fits a request and is not used up counts.
    pub fn rule(&self, on: &str, times: Option<u32>, act: Act) {
        self.add_rule(Rule { on: on.into(), after: 0, times, act });
    }

    /// Adds a rule.
    pub fn add_rule(&self, rule: Rule) {
        self.shared.state().rules.push(rule);
    }

    /// Removes all rules.
    pub fn behave(&self) {
        self.shared.state().rules.clear();
    }

    /// Wants this key from now on.
    pub fn want_key(&self, key: &str) {
        self.shared.state().key = Some(key.into());
    }

    /// Says that it has this version.
    pub fn set_version(&self, version: &str) {
        self.shared.state().version = Some(version.into());
    }

    /// The requests so far, oldest first.
    pub fn seen(&self) -> Vec<Seen> {
        self.shared.state().seen.clone()
    }

    /// Forgets the requests so far.
    pub fn forget_seen(&self) {
        self.shared.state().seen.clear();
    }

    /// Bytes of all bodies sent to the store.
    pub fn uploaded_bytes(&self) -> u64 {
        self.seen()
            .iter()
            .filter(|seen| seen.line.starts_with("POST /api/blobs"))
            .map(|seen| seen.bytes)
            .sum()
    }

    /// The models it has.
    pub fn models(&self) -> Vec<Model> {
        self.shared.state().ollama.models()
    }

    /// The model with a name, as it is shown.
    pub fn model(&self, name: &str) -> Option<Model> {
        self.models().into_iter().find(|model| model.name.eq_ignore_ascii_case(name))
    }

    /// Puts another model in the place of a name, as somebody else might.
    pub fn tamper(&self, name: &str) {
        self.shared.state().ollama.tamper(name);
    }

    /// Serves until the process ends.
    pub fn wait(mut self) {
        if let Some(thread) = self.thread.take() {
            // It ends when it is stopped, which nobody does.
            let _ = thread.join();
        }
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::Release);
        // Wakes the one that waits for connections.
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
