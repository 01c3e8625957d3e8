//! What can be wrong with what a training left.

use std::path::PathBuf;

/// Why something is no adapter that can be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // the sentence of each variant says what its fields are
pub enum Error {
    #[error(transparent)]
    Checkpoint(#[from] tenon_checkpoint::Error),

    #[error("{} is {what}, not an adapter; {remedy}", path.display())]
    NotAnAdapter { path: PathBuf, what: String, remedy: String },

    #[error(
        "{} has its weights only as {file}, a pickle, which can run code when loaded; Tenon never opens one. Convert it \
         where you trust the file: {command}",
        path.display()
    )]
    Pickled { path: PathBuf, file: String, command: String },

    #[error("{} holds the shards of a {kind} run, not whole tensors. Consolidate them first: {command}", path.display())]
    Sharded { path: PathBuf, kind: &'static str, command: String },

    #[error("{} has several checkpoints, and which one is meant is not clear: {choices}. Name one", path.display())]
    SeveralCheckpoints { path: PathBuf, choices: String },

    #[error("{}: {field} is {found}, expected {expected}", path.display())]
    Field { path: PathBuf, field: String, found: String, expected: String },

    #[error("{}: tensor {tensor:?} {problem}", path.display())]
    Tensor { path: PathBuf, tensor: String, problem: String },
}
