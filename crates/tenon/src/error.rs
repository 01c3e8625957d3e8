//! What can go wrong in a verb of the facade.

use std::path::PathBuf;

use tenon_checkpoint::Digest;
use tenon_registry::{ModelName, Uuid};

/// An error of any verb; the crates below keep the facts.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // the sentence of each variant says what its fields are
pub enum Error {
    #[error(transparent)]
    Checkpoint(tenon_checkpoint::Error),

    #[error(transparent)]
    Adapter(tenon_adapters::Error),

    #[error(transparent)]
    Dequant(tenon_dequant::Error),

    #[error(transparent)]
    Merge(tenon_merge::Error),

    #[error(transparent)]
    Blend(tenon_blend::Error),

    #[error(transparent)]
    Registry(tenon_registry::Error),

    #[error(transparent)]
    Gguf(tenon_gguf::Error),

    #[error("{name} is not what it was when it was registered: {} has SHA-256 {found}, it had {expected}; register it anew if that is meant to be so", file.display())]
    InputChanged { name: String, file: PathBuf, expected: Digest, found: Digest },

    #[error("{} is empty; a Deployment Template File is a Go template or a Modelfile", file.display())]
    EmptyTemplate { file: PathBuf },

    #[error("Base Model {base} has no Deployment Template File")]
    NoTemplate { base: ModelName },

    #[error("{error} (and then Saving {id} could not be swept: {second}; the next command does that)")]
    NotSwept { id: Uuid, error: Box<Error>, second: Box<Error> },

    #[error("job {id} is {state}; only what failed or was cancelled is begun again")]
    NotRetryable { id: Uuid, state: &'static str },

    #[error("say where the GGUF file goes; only that of a Complete Model has a place of its own")]
    NoOut,

    #[error(
        "{file:?} is no file of an adapter: adapter_config.json and *.safetensors are taken, by plain names"
    )]
    UploadedFile { file: String },

    #[error("{file} came twice, or after too many others")]
    UploadedTwice { file: String },

    #[error("{what} for what is quantized: say to what with --quantization")]
    OnlyQuantized { what: &'static str },

    #[error(transparent)]
    Deploy(tenon_deploy::Error),

    #[error(
        "{environment} has a model named {model} already, which is no deployment of this Complete Model; give another name with --as, or replace it with --replace"
    )]
    NameTakenThere { model: String, environment: ModelName },

    #[error("{error}; this stays there: {}", left.join("; "))]
    LeftThere { error: Box<Error>, left: Vec<String> },

    #[error("{error} (and then deployment {id} could not be ended: {second}; the next command does that)")]
    NotEnded { id: Uuid, error: Box<Error>, second: Box<Error> },

    #[error("another model has the name of the Live Model {name} there now; it was not removed")]
    NotTheSame { name: String },

    #[error("{}: {reason}", path.display())]
    Tokenizer { path: PathBuf, reason: String },

    #[error("{} has no config.json: not a model directory in Hugging Face layout", dir.display())]
    NoConfig { dir: PathBuf },

    #[error("the adapter cannot be handed to llama.cpp: {reason}; merge it into its base")]
    NotForLlamaCpp { reason: String },

    #[error("{} exists already; choose another name", out.display())]
    OutExists { out: PathBuf },

    #[error("{} lies in, around or at {}; the merged model needs a place of its own", out.display(), input.display())]
    OutTouchesInput { out: PathBuf, input: PathBuf },
}

// Errors come out of the layers nested in each other (a plan is read through a checkpoint's trait);
// here each gets back to its own kind.
impl From<tenon_checkpoint::Error> for Error {
    fn from(error: tenon_checkpoint::Error) -> Self {
        let source = match error {
            tenon_checkpoint::Error::Source(source) => source,
            other => return Error::Checkpoint(other),
        };
        let source = match source.downcast::<tenon_merge::Error>() {
            Ok(error) => return Error::from(*error),
            Err(other) => other,
        };
        let source = match source.downcast::<tenon_dequant::Error>() {
            Ok(error) => return Error::from(*error),
            Err(other) => other,
        };
        match source.downcast::<tenon_blend::Error>() {
            Ok(error) => Error::from(*error),
            Err(other) => Error::Checkpoint(tenon_checkpoint::Error::Source(other)),
        }
    }
}

impl From<tenon_blend::Error> for Error {
    fn from(error: tenon_blend::Error) -> Self {
        match error {
            tenon_blend::Error::Checkpoint(error) => Error::from(error),
            other => Error::Blend(other),
        }
    }
}

impl From<tenon_adapters::Error> for Error {
    fn from(error: tenon_adapters::Error) -> Self {
        match error {
            tenon_adapters::Error::Checkpoint(error) => Error::from(error),
            other => Error::Adapter(other),
        }
    }
}

impl From<tenon_dequant::Error> for Error {
    fn from(error: tenon_dequant::Error) -> Self {
        match error {
            tenon_dequant::Error::Checkpoint(error) => Error::from(error),
            other => Error::Dequant(other),
        }
    }
}

impl From<tenon_merge::Error> for Error {
    fn from(error: tenon_merge::Error) -> Self {
        match error {
            tenon_merge::Error::Checkpoint(error) => Error::from(error),
            other => Error::Merge(other),
        }
    }
}

impl From<tenon_gguf::Error> for Error {
    fn from(error: tenon_gguf::Error) -> Self {
        match error {
            tenon_gguf::Error::Checkpoint(error) => Error::from(error),
            tenon_gguf::Error::Dequant(error) => Error::from(error),
            other => Error::Gguf(other),
        }
    }
}

impl From<tenon_registry::Error> for Error {
    fn from(error: tenon_registry::Error) -> Self {
        match error {
            tenon_registry::Error::Checkpoint(error) => Error::from(error),
            other => Error::Registry(other),
        }
    }
}

impl From<tenon_deploy::Error> for Error {
    fn from(error: tenon_deploy::Error) -> Self {
        match error {
            tenon_deploy::Error::Checkpoint(error) => Error::from(error),
            other => Error::Deploy(other),
        }
    }
}

impl Error {
    /// Whether somebody asked to stop.
    pub fn is_cancelled(&self) -> bool {
        match self {
            Error::Checkpoint(tenon_checkpoint::Error::Cancelled)
            | Error::Registry(tenon_registry::Error::Cancelled { .. }) => true,
            Error::Deploy(error) => error.is_cancelled(),
            Error::LeftThere { error, .. } => error.is_cancelled(),
            _ => false,
        }
    }
}
