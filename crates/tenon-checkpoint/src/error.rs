//! Everything that can be wrong with a checkpoint, each with its facts.

use std::path::{Path, PathBuf};

/// What went wrong while reading or writing a checkpoint.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // the sentence of each variant says what its fields are
pub enum Error {
    #[error("cannot {action} {}: {source}", path.display())]
    Io { action: &'static str, path: PathBuf, source: std::io::Error },

    #[error(
        "{} is not there, nor is model.safetensors.index.json: no safetensors model in {}",
        dir.join("model.safetensors").display(),
        dir.display()
    )]
    NoModel { dir: PathBuf },

    #[error(
        "{} holds pickled weights only ({file}), which can run code when loaded; Tenon never opens them. \
         Convert once, on a machine where you trust the file: \
         python -c \"from transformers import AutoModel; AutoModel.from_pretrained('.').save_pretrained('safe')\"",
        dir.display()
    )]
    PickleOnly { dir: PathBuf, file: String },

    #[error("{}: {fault}", path.display())]
    Header { path: PathBuf, fault: HeaderFault },

    #[error("{}: {fault}", path.display())]
    Index { path: PathBuf, fault: IndexFault },

    #[error("{}: not valid JSON: {source}", path.display())]
    Json { path: PathBuf, source: serde_json::Error },

    #[error("{} has {found} bytes, more than the {limit} that a file of its kind may have", path.display())]
    TooLarge { path: PathBuf, found: u64, limit: u64 },

    #[error("{}: not UTF-8 text", path.display())]
    NotText { path: PathBuf },

    #[error("{} changed while it was read (another program wrote to it); start again when it is at rest", path.display())]
    Changed { path: PathBuf },

    #[error("the disk of {} has {available} bytes free, {needed} are needed; free some or choose another place", path.display())]
    DiskFull { path: PathBuf, needed: u64, available: u64 },

    #[error("{} exists already; choose another name, or pass --overwrite to replace it once the new one is whole", path.display())]
    TargetExists { path: PathBuf },

    #[error("{} is not a model directory (no config.json, no tenon.json in it); Tenon does not overwrite it", path.display())]
    TargetNotAModel { path: PathBuf },

    #[error("{} cannot be a target: it has no name or no parent directory", path.display())]
    BadTarget { path: PathBuf },

    #[error("cancelled")]
    Cancelled,

    #[error("a worker thread stopped unexpectedly: {0}")]
    WorkerPanicked(String),

    /// A source that is not a plain checkpoint failed in its own way.
    #[error(transparent)]
    Source(Box<dyn std::error::Error + Send + Sync>),
}

impl Error {
    /// Shorthand for `map_err`: an I/O error with what was tried on which path.
    pub fn io(action: &'static str, path: impl AsRef<Path>) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.as_ref().to_path_buf();
        move |source| Error::Io { action, path, source }
    }
}

/// The ways in which a safetensors header can lie.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum HeaderFault {
    #[error("{found} bytes are too few for a safetensors file (8 for the header's length come first)")]
    TooShort { found: u64 },
    #[error(
        "the header claims {claimed} bytes, the file has {available} after its first 8: truncated or not safetensors"
    )]
    PastEnd { claimed: u64, available: u64 },
    #[error("the header claims {claimed} bytes, more than the {limit} that any reader accepts")]
    TooLarge { claimed: u64, limit: u64 },
    #[error("the header is not a JSON object of tensors: {0}")]
    NotJson(String),
    #[error("tensor {tensor:?} appears twice in the header")]
    DuplicateTensor { tensor: String },
    #[error("tensor {tensor:?}: unknown dtype {dtype:?}")]
    UnknownDtype { tensor: String, dtype: String },
    #[error("tensor {tensor:?}: data_offsets end before they begin ({begin} > {end})")]
    Reversed { tensor: String, begin: u64, end: u64 },
    #[error("tensor {tensor:?}: shape {shape:?} of {dtype} overflows or ends within a byte")]
    Overflow { tensor: String, shape: Vec<u64>, dtype: &'static str },
    #[error(
        "tensor {tensor:?}: shape {shape:?} of {dtype} takes {expected} bytes, data_offsets give {found}"
    )]
    WrongSize { tensor: String, shape: Vec<u64>, dtype: &'static str, expected: u64, found: u64 },
    #[error("tensor {tensor:?} begins at byte {begin}, the one before it ends at {previous_end}: overlap")]
    Overlap { tensor: String, begin: u64, previous_end: u64 },
    #[error("tensor {tensor:?} begins at byte {begin}, the one before it ends at {previous_end}: a hole")]
    Hole { tensor: String, begin: u64, previous_end: u64 },
    #[error("tensors end at byte {claimed} of the data, the file has {available}: truncated")]
    DataTruncated { claimed: u64, available: u64 },
    #[error(
        "tensors end at byte {claimed} of the data, the file has {available}: bytes that belong to no tensor"
    )]
    DataLeftOver { claimed: u64, available: u64 },
}

/// The ways in which `model.safetensors.index.json` and its shards can disagree.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum IndexFault {
    #[error("no weight_map")]
    NoWeightMap,
    #[error("shard {shard:?} of tensor {tensor:?} is not a plain file name; a shard lies beside its index")]
    ShardName { tensor: String, shard: String },
    #[error("tensor {tensor:?} is said to be in {shard}, which does not have it")]
    MissingTensor { tensor: String, shard: String },
    #[error("shard {shard} has tensor {tensor:?}, which the index does not place there")]
    UnlistedTensor { tensor: String, shard: String },
    #[error("tensor {tensor:?} is listed twice")]
    DuplicateTensor { tensor: String },
}
