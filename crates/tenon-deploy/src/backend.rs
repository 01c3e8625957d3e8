//! What every kind of server can be asked to do.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tenon_checkpoint::Digest;

use crate::llama_server::LlamaServer;
use crate::openai::OpenAi;
use crate::{Environment, EnvironmentKind, Error, ollama};

/// A server of some kind. All calls wait for their answer; none is made from within an async runtime.
///
/// What every implementation guarantees, and the tests ask of each:
///
/// * Nothing is changed on the server but by [`deploy`](Self::deploy) and [`remove`](Self::remove).
/// * `deploy` may be called again after it failed, was cancelled or its process died: it goes on, and
///   sends nothing that the server has already.
/// * Each call asks [`Watch::cancelled`] at least every 300 ms, also while the server is silent, and
///   ends with [`Error::Cancelled`].
/// * A silent server ends a call with [`Error::Hung`], within the time of the environment.
/// * No error, progress line or answer holds the key.
pub trait Backend: Send + Sync {
    /// What such a server can do at all.
    fn capabilities(&self) -> Capabilities;

    /// The name that the server will know a model by, for the name somebody would like.
    ///
    /// `exact`: that name was given by a person, and is refused with the reason where it is not
    /// allowed; otherwise what is not allowed in it is replaced.
    fn model_name(&self, wanted: &str, exact: bool) -> Result<String, Error>;

    /// Reaches the server and asks what it is. With settings, also whether it can serve a model with those.
    fn check(&self, settings: Option<&ModelSettings>, watch: &dyn Watch) -> Result<Condition, Error>;

    /// The model with a name, if the server has it.
    fn find(&self, model: &str, watch: &dyn Watch) -> Result<Option<Found>, Error>;

    /// Brings the model there: files first, then whatever makes a model of them. Tells each
    /// [`Step`] before it begins.
    fn deploy(&self, order: &Order, watch: &dyn Watch) -> Result<(), Error>;

    /// Sees that the server lists the model, that it is the one ordered, and that it answers.
    fn verify(&self, order: &Order, watch: &dyn Watch) -> Result<Verified, Error>;

    /// Asks a model for one token. [`Error::NoAnswer`] if it gives none.
    fn answers(&self, model: &str, watch: &dyn Watch) -> Result<Answer, Error>;

    /// Removes a model there, and files that were put there for it. Whether there was anything.
    fn remove(&self, model: &str, watch: &dyn Watch) -> Result<bool, Error>;

    /// What stays of `sent` bytes of files that were brought there for a model that is none, in words.
    fn stays(&self, model: &str, sent: u64) -> Option<String>;
}

/// The backend of an environment. Nothing is sent yet.
pub fn backend(environment: &Environment) -> Result<Box<dyn Backend>, Error> {
    match environment.kind {
        EnvironmentKind::Ollama => Ok(Box::new(ollama::Ollama::new(environment)?)),
        EnvironmentKind::LlamaServer => Ok(Box::new(LlamaServer::new(environment)?)),
        EnvironmentKind::Vllm | EnvironmentKind::OpenAi => Ok(Box::new(OpenAi::new(environment)?)),
    }
}

/// What a kind of server can do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    /// It takes a GGUF.
    pub gguf: bool,
    /// It takes a directory of safetensors files.
    pub safetensors: bool,
    /// It takes an adapter, and applies it to its base itself.
    #[serde(default)]
    pub adapters: bool,
    /// It can quantize by itself.
    pub quantizes: bool,
    /// What it does with a Deployment Template File.
    pub template: TemplateUse,
    /// Models can be removed from it.
    pub removes: bool,
}

/// What a kind of server does with a Deployment Template File.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TemplateUse {
    /// It needs one.
    Needed,
    /// It takes one.
    Taken,
    /// It has no use for one: it takes the model's own `chat_template`.
    Ignored,
}

/// A model to be deployed.
#[derive(Debug, Clone)]
pub struct Order {
    /// Name there, from [`Backend::model_name`].
    pub model: String,
    /// What the server gets.
    pub payload: Payload,
    /// What the server is to quantize to, where it does that: `q8_0`, `q4_K_M`, `q4_K_S`.
    pub quantize: Option<String>,
    /// SHA-256 of weights that the server made of this payload before: servers may write a GGUF anew.
    pub made_before: Vec<Digest>,
    /// How conversations are put to the model; what the Deployment Template File says.
    pub settings: ModelSettings,
}

/// The files of a model.
#[derive(Debug, Clone)]
pub enum Payload {
    /// One GGUF.
    Gguf(SourceFile),
    /// A model directory in Hugging Face layout, and the files of it that make the model.
    Directory {
        /// The directory.
        dir: PathBuf,
        /// Its files.
        files: Vec<SourceFile>,
    },
    /// An adapter in PEFT's layout, which the server applies to its base.
    Adapter {
        /// Its directory.
        dir: PathBuf,
        /// Its files.
        files: Vec<SourceFile>,
        /// Those of the base, for a server that gets that too.
        base: Vec<SourceFile>,
    },
}

/// A file whose digest is known: it is sent without being read for a digest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceFile {
    /// Plain name.
    pub name: String,
    /// Where it is.
    pub path: PathBuf,
    /// Its size.
    pub bytes: u64,
    /// Its SHA-256.
    pub sha256: Digest,
}

impl Payload {
    /// Its files; of an adapter, without those of its base.
    pub fn files(&self) -> &[SourceFile] {
        match self {
            Payload::Gguf(file) => std::slice::from_ref(file),
            Payload::Directory { files, .. } | Payload::Adapter { files, .. } => files,
        }
    }

    /// The files of an adapter's base that go along.
    pub fn base(&self) -> &[SourceFile] {
        match self {
            Payload::Adapter { base, .. } => base,
            _ => &[],
        }
    }

    /// Bytes of all its files.
    pub fn bytes(&self) -> u64 {
        self.files().iter().chain(self.base()).map(|file| file.bytes).sum()
    }
}

/// How conversations are put to a model, in the terms of Ollama's `/api/create`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ModelSettings {
    /// Go template.
    pub template: Option<String>,
    /// System prompt.
    pub system: Option<String>,
    /// Parameters, such as `temperature` and `stop`.
    pub parameters: Map<String, Value>,
    /// Licences.
    pub licenses: Vec<String>,
    /// A conversation that every conversation begins with.
    pub messages: Vec<Message>,
    /// Name of the server's built-in renderer.
    pub renderer: Option<String>,
    /// Name of the server's built-in parser.
    pub parser: Option<String>,
    /// Lowest version of Ollama that serves it.
    pub requires: Option<String>,
}

/// A message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// Its text.
    pub content: String,
}

/// What a server said of itself.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Condition {
    /// What it is, such as `Ollama`.
    pub server: String,
    /// It does not run yet, and a command is to start it: nothing else is known of it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub not_running: bool,
    /// Its version, where it tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Names of the models it has.
    pub models: Vec<String>,
    /// Bytes of those models, where it tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model_bytes: Option<u64>,
    /// Bytes of memory that loaded models take, where it tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loaded_bytes: Option<u64>,
    /// Bytes free for models, where it tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub free_bytes: Option<u64>,
    /// What a person should know.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// A model that a server has.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Found {
    /// Name there.
    pub model: String,
    /// What requests must call it, where that is another name, such as its path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub called: Option<String>,
    /// The server's own digest of it, where it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// SHA-256 of the weights it consists of, where it tells.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub weights: Vec<Digest>,
    /// Its size, where it tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
}

/// What a model answered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// Its text; one token.
    pub text: String,
    /// Seconds until it came, loading included.
    pub seconds: f64,
}

/// A model that was seen to be there, the one ordered, and to answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Verified {
    /// What the server has.
    pub found: Found,
    /// What it answered.
    pub answer: Answer,
}

/// A part of [`Backend::deploy`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Step {
    /// Files go to the server.
    Uploading,
    /// The server makes a model of them. From here on there may be one.
    Creating,
}

/// Hears how far a deployment is, and says when to stop. `()` does neither.
pub trait Watch: Sync {
    /// A step begins. An error ends the deployment.
    fn step(&self, step: Step) -> Result<(), Error> {
        let _ = step;
        Ok(())
    }

    /// So many more bytes of the payload are there: `sent` of them were sent, the others were there already.
    fn advanced(&self, bytes: u64, sent: u64) {
        let _ = (bytes, sent);
    }

    /// Something a person may want to read, such as what the server says it does.
    fn said(&self, line: &str) {
        let _ = line;
    }

    /// Whether to stop.
    fn cancelled(&self) -> bool {
        false
    }
}

impl Watch for () {}
