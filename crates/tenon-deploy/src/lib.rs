//! Deployment: from a whole model to a server that answers with it.
//!
//! * An [`Environment`] says which server: its kind, URL, key and options. It
//!   names where the key is and never holds it.
//! * A [`Backend`] is what a kind of server can do: [`check`](Backend::check)
//!   it, [`deploy`](Backend::deploy) an [`Order`] to it,
//!   [`verify`](Backend::verify) that the model answers, [`find`](Backend::find)
//!   and [`remove`](Backend::remove) it. [`backend`] gives the one of an environment.
//! * [`template`]: Deployment Template Files, parsed, checked and rendered as
//!   Ollama does it.
//!
//! Everything that a server says is untrusted: answers are bounded in bytes
//! and time, redirects are not followed, and what it calls a success is
//! believed when the model has answered. Which models exist, and what was
//! deployed when, is not known here.

mod backend;
mod environment;
mod error;
mod handover;
mod http;
mod llama_server;
mod ollama;
mod openai;
mod preset;
pub mod template;
mod tls;

pub use backend::{
    Answer, Backend, Capabilities, Condition, Found, Message, ModelSettings, Order, Payload, SourceFile,
    Step, TemplateUse, Verified, Watch, backend,
};
pub use environment::{Environment, EnvironmentKind, KeySource, Secret};
pub use error::{Error, Refusal};
pub use tls::TlsFault;
