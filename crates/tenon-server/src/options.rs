//! What a server may do and how much of the machine its clients may take.

use std::path::PathBuf;
use std::time::Duration;

use crate::guard::Token;

/// Options of a server. The defaults suit one that only this machine reaches.
#[derive(Debug, Clone)]
pub struct Options {
    /// What clients must show; without it, everybody who reaches the server may do everything.
    pub token: Option<Token>,
    /// Directories under which models may be registered. Without any, none can be over the API.
    pub allow_paths: Vec<PathBuf>,
    /// Names that the `Host` header may have besides this machine's own (see `guard::host`).
    pub allow_hosts: Vec<String>,
    /// Whether any IP address may stand in the `Host` header, not only those of the loopback.
    pub any_address: bool,
    /// Whether this process works on Savings; if not, they wait for one that does.
    pub work: bool,
    /// See [`Limits`].
    pub limits: Limits,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            token: None,
            allow_paths: vec![],
            allow_hosts: vec![],
            any_address: false,
            work: true,
            limits: Limits::default(),
        }
    }
}

/// Bounds on what clients may take.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Bytes of a request's body.
    pub body_bytes: usize,
    /// Bytes of an adapter that is uploaded.
    pub upload_bytes: u64,
    /// Adapters that are uploaded at once; others are refused.
    pub uploads: usize,
    /// Until a request's body has arrived and its answer begins; an upload is cut off that after this is
    /// slower than 64 kB in a second.
    pub request_time: Duration,
    /// Until a request's head has arrived; also how long a connection may idle between requests.
    pub header_time: Duration,
    /// How long a client may take none of what is sent to it.
    pub stall_time: Duration,
    /// Connections at once; others wait to be accepted.
    pub connections: usize,
    /// Event streams at once; others are refused.
    pub event_streams: usize,
    /// How long an event stream lasts; clients connect again and miss nothing.
    pub event_stream_time: Duration,
    /// Verbs of the facade at once, each on a thread of its own.
    pub verbs: usize,
    /// Verbs that wait for a thread; others are refused.
    pub waiting_verbs: usize,
    /// Wrong tokens that an address may show in a minute.
    pub wrong_tokens: u32,
    /// How long open connections have to finish when the server stops.
    pub grace: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body_bytes: 2 << 20,
            upload_bytes: 16 << 30,
            uploads: 4,
            request_time: Duration::from_secs(120),
            header_time: Duration::from_secs(15),
            stall_time: Duration::from_secs(60),
            connections: 4096,
            event_streams: 512,
            event_stream_time: Duration::from_secs(3600),
            verbs: 16,
            waiting_verbs: 256,
            wrong_tokens: 10,
            grace: Duration::from_secs(10),
        }
    }
}
