//! What can go wrong between here and a server.

use std::path::PathBuf;
use std::time::Duration;

use crate::template::Faults;
use crate::{EnvironmentKind, TlsFault};

/// What went wrong. The sentence says what is; [`Error::remedy`] what to do.
///
/// What a server said is in it shortened and without the key.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // the sentence of each variant says what its fields are
pub enum Error {
    #[error("{}", listed(file, faults))]
    Template { file: String, faults: Faults },

    #[error("{}: the model has no chat_template", dir.display())]
    NoChatTemplate { dir: PathBuf },

    #[error("{}: no template can be made of the model's chat_template: {reason}", dir.display())]
    NoSuggestion { dir: PathBuf, reason: String },

    #[error("{url:?} is no address of a server: {reason}")]
    BadUrl { url: String, reason: String },

    #[error("environments of kind {kind} have no option {option:?}; they have {known}")]
    UnknownOption { option: String, kind: EnvironmentKind, known: String },

    #[error("option {option} is {value:?}; expected {expected}")]
    BadOption { option: String, value: String, expected: String },

    #[error("no key can be read from {place}: {reason}")]
    NoKey { place: String, reason: String },

    #[error("{}: no certificates to trust in it: {reason}", path.display())]
    Certificates { path: PathBuf, reason: String },

    #[error("{url} cannot be reached: {reason}")]
    Unreachable { url: String, reason: String },

    #[error("no secure connection to {url}: {reason}")]
    Tls { url: String, fault: TlsFault, reason: String },

    #[error("{doing}: the server was silent for {}", seconds(*.after))]
    Hung { doing: String, after: Duration },

    #[error("{doing}: the connection ended early: {reason}")]
    Cut { doing: String, reason: String },

    #[error("{doing}: the server sends elsewhere, to {to:?}")]
    Redirect { doing: String, to: String },

    #[error("{doing}: the server refused with status {status}{}{said}", if said.is_empty() { "" } else { ": " })]
    Refused { doing: String, refusal: Refusal, status: u16, said: String, retry_after: Option<Duration> },

    #[error("{doing}: the answer is not what such a server says: {reason}")]
    Garbage { doing: String, reason: String },

    #[error("{url} is no {expected} server: {reason}")]
    WrongServer { url: String, expected: &'static str, reason: String },

    #[error("the server has version {found}; {reason}")]
    WrongVersion { found: String, reason: String },

    #[error("the server failed to make the model: {said}")]
    Failed { said: String },

    #[error("{name:?} is no name that this server allows: {reason}")]
    BadModelName { name: String, reason: String },

    #[error("{what} cannot be done by a server of kind {kind}: {reason}")]
    Unsupported { what: String, kind: EnvironmentKind, reason: String },

    #[error("a Deployment Template File is needed for a server of kind {kind}")]
    NeedsTemplate { kind: EnvironmentKind },

    #[error("{}: it has {found} bytes where {expected} were expected", path.display())]
    FileChanged { path: PathBuf, expected: u64, found: u64 },

    #[error("the server said that it was done, but does not list {model}")]
    NotListed { model: String },

    #[error("the server does not serve {model}, which lies ready for it at {path}")]
    NotServed { model: String, path: String },

    #[error("{option} {reason}{}{output}", if output.is_empty() { "" } else { "; it wrote:\n" })]
    Command { option: &'static str, reason: String, output: String },

    #[error("{model} on the server is not what was deployed: {what} is {found}, expected {expected}")]
    Differs { model: String, what: &'static str, expected: String, found: String },

    #[error("{model} is listed but does not answer: {reason}")]
    NoAnswer { model: String, reason: String },

    #[error(transparent)]
    Checkpoint(tenon_checkpoint::Error),

    #[error("cancelled")]
    Cancelled,
}

/// Why a server refused, as far as its answer tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// It does not know the key, or wants one.
    Unauthorized,
    /// It knows the key and does not let it do this.
    Forbidden,
    /// It does not have what was asked for.
    NotFound,
    /// What was sent is larger than it takes.
    TooLarge,
    /// It is asked for too much at the moment.
    Busy,
    /// Its disk is full.
    NoSpace,
    /// It is not in a state to serve.
    Fault,
    /// It does not accept the request.
    Invalid,
}

impl Refusal {
    /// From the status and what the server said besides.
    pub(crate) fn of(status: u16, said: &str) -> Self {
        let said = said.to_lowercase();
        if status == 507
            || ["no space left", "disk full", "not enough space", "disk quota"]
                .iter()
                .any(|s| said.contains(s))
        {
            return Refusal::NoSpace;
        }
        match status {
            401 | 407 => Refusal::Unauthorized,
            403 => Refusal::Forbidden,
            404 | 410 => Refusal::NotFound,
            413 => Refusal::TooLarge,
            408 | 425 | 429 => Refusal::Busy,
            500.. => Refusal::Fault,
            _ => Refusal::Invalid,
        }
    }
}

impl From<tenon_checkpoint::Error> for Error {
    fn from(error: tenon_checkpoint::Error) -> Self {
        match error {
            tenon_checkpoint::Error::Cancelled => Error::Cancelled,
            other => Error::Checkpoint(other),
        }
    }
}

impl Error {
    /// Whether the same request may succeed a little later.
    pub fn may_pass(&self) -> bool {
        match self {
            Error::Unreachable { .. } | Error::Cut { .. } => true,
            Error::Refused { refusal, status, .. } => {
                matches!(refusal, Refusal::Busy)
                    || matches!((refusal, status), (Refusal::Fault, 500 | 502 | 503 | 504))
            }
            _ => false,
        }
    }

    /// What a person can do about it.
    pub fn remedy(&self) -> Option<&'static str> {
        Some(match self {
            Error::Unreachable { .. } => {
                "is the server running, and is this its address? tenon env test NAME tries again"
            }
            Error::Tls { fault, .. } => fault.remedy(),
            Error::Hung { .. } => {
                "see what the server is doing; one that is only slow needs a longer --timeout in its environment"
            }
            Error::Cut { .. } => {
                "see the server's log; what was sent already is kept there, so trying again does not send it twice"
            }
            Error::Certificates { .. } => {
                "--ca of tenon env add takes a file of certificates in PEM, as -----BEGIN CERTIFICATE----- begins them"
            }
            Error::Refused { said, refusal: Refusal::Invalid, .. } if said.contains("HTTPS") => {
                TlsFault::NotPlain.remedy()
            }
            Error::Redirect { .. } => {
                "a key must not go where nobody said it should: if that address is right, add an environment with it"
            }
            Error::Refused { refusal, .. } => match refusal {
                Refusal::Unauthorized => {
                    "the server wants another key: --api-key-env or --api-key-file of tenon env add say where it is"
                }
                Refusal::Forbidden => {
                    "the key, or this machine, may not do that there; ask whoever runs the server"
                }
                Refusal::NotFound => "is the address right, with the path if the server is behind one?",
                Refusal::TooLarge => {
                    "something before the server limits the size of uploads (client_max_body_size in nginx); raise it, or deploy a smaller quantization"
                }
                Refusal::Busy => {
                    "the server asks to come back later; tenon deploy tries again from where it was"
                }
                Refusal::NoSpace => "its disk is full: remove models there, or deploy a smaller quantization",
                Refusal::Fault => "see the server's log",
                Refusal::Invalid => "see what the server says; tenon env test NAME tells its version",
            },
            Error::Garbage { .. } | Error::WrongServer { .. } => {
                "is this address that of the server itself, and the kind right?"
            }
            Error::WrongVersion { .. } => "update the server",
            Error::Failed { said } if Refusal::of(500, said) == Refusal::NoSpace => {
                "its disk is full: remove models there, or deploy a smaller quantization"
            }
            Error::Failed { said } if said.contains("template") => {
                "correct the Deployment Template File and attach it with tenon base template BASE FILE"
            }
            Error::Failed { .. } => "see the server's log",
            Error::BadModelName { .. } => "give another name with --as",
            Error::NeedsTemplate { .. } => {
                "tenon base template BASE --suggest proposes one; tenon base template BASE FILE attaches it"
            }
            Error::FileChanged { .. } => "tenon verify tells what happened to the model's files",
            Error::NotListed { .. } | Error::Differs { .. } => {
                "something else may write to that server at the same time; deploy again"
            }
            Error::NotServed { .. } => {
                "start the server with it, or set --option start-command=... in the environment; then deploy again"
            }
            Error::Command { .. } => "the command is an option of the environment; try it by hand",
            Error::NoAnswer { .. } => {
                "see the server's log: it may lack the memory for the model, or not know its architecture"
            }
            Error::NoChatTemplate { .. } | Error::NoSuggestion { .. } => {
                "write a Go template or a Modelfile; tenon base template BASE FILE checks and attaches it"
            }
            Error::NoKey { .. } => "set it where Tenon runs; only its place is kept, never the key",
            _ => return None,
        })
    }

    /// Whether somebody asked to stop.
    pub fn is_cancelled(&self) -> bool {
        matches!(self, Error::Cancelled | Error::Checkpoint(tenon_checkpoint::Error::Cancelled))
    }
}

/// One line a fault, as compilers write them.
fn listed(file: &str, faults: &Faults) -> String {
    let lines: Vec<String> = faults.iter().map(|fault| format!("{file}:{fault}")).collect();
    lines.join("\n")
}

fn seconds(time: Duration) -> String {
    match time.as_secs_f64() {
        s if s < 10.0 => format!("{s:.1} s"),
        s if s < 120.0 => format!("{s:.0} s"),
        s => format!("{:.0} min", s / 60.0),
    }
}
