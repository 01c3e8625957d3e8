//! Everything that can be wrong with an adapter, or between it and a base.

use std::path::PathBuf;

/// What went wrong while reading an adapter, planning or running a merge.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // the sentence of each variant says what its fields are
pub enum Error {
    #[error(transparent)]
    Checkpoint(#[from] tenon_checkpoint::Error),

    #[error("{} holds no adapter: {missing} is not there", dir.display())]
    NoAdapter { dir: PathBuf, missing: &'static str },

    #[error(
        "{} has its weights only as {file}, a pickle, which can run code when loaded; Tenon never opens one. \
         Convert it on a machine where you trust the file: load the adapter with PEFT and call \
         save_pretrained(dir, safe_serialization=True)",
        dir.display()
    )]
    PickledAdapter { dir: PathBuf, file: String },

    #[error("{}: {field} is {found}, expected {expected}", path.display())]
    Field { path: PathBuf, field: String, found: String, expected: String },

    #[error("{}: {field} = {found} changes what the adapter computes, and this is not understood: {why}", path.display())]
    NotUnderstood { path: PathBuf, field: String, found: String, why: String },

    #[error("{}: peft_type {peft_type:?} cannot be merged: {why}", path.display())]
    Method { path: PathBuf, peft_type: String, why: String },

    #[error("{}: {field} {pattern:?} is not a regular expression that can be matched: {reason}", path.display())]
    Pattern { path: PathBuf, field: String, pattern: String, reason: String },

    #[error("{}: tensor {tensor:?} is none that {method} writes", path.display())]
    ForeignTensor { path: PathBuf, tensor: String, method: String },

    #[error("adapter tensor {tensor:?} has no home: the base has no {wanted:?}{}", nearest_hint(nearest))]
    NoHome { tensor: String, wanted: String, nearest: Option<String> },

    #[error(
        "adapter tensor {tensor:?} could belong to {} tensors of the base, {first:?} and {second:?} among them",
        count
    )]
    Ambiguous { tensor: String, count: usize, first: String, second: String },

    #[error("adapter tensor {tensor:?} needs {missing:?} beside it, which the adapter does not have")]
    MissingPartner { tensor: String, missing: String },

    #[error(
        "adapter tensors {first:?} and {second:?} are for one place; \
         Tenon merges a directory of one adapter: save the one you mean with PEFT's save_pretrained"
    )]
    Twice { first: String, second: String },

    #[error(transparent)]
    Shape(Box<ShapeMismatch>),

    #[error("{module}: {tensor:?} has rank {found}, the adapter's configuration says {expected}")]
    Rank { module: String, tensor: String, found: u64, expected: u64 },

    #[error("adapter tensor {tensor:?} is of {dtype}; only F16, BF16, F32 and F64 can be computed with")]
    AdapterDtype { tensor: String, dtype: &'static str },

    #[error("adapter tensor {tensor:?} is of {dtype} and does not hold whole numbers, as it must")]
    AdapterIntegers { tensor: String, dtype: &'static str },

    #[error("adapter tensor {tensor:?} names {what} {found}; it must be a whole number below {below}")]
    Index { tensor: String, what: String, found: i64, below: u64 },

    #[error(
        "the base stores {tensor:?} quantized ({scheme}), and the adapter changes it; \
         merge into the unquantized base that it was made from"
    )]
    QuantizedBase { tensor: String, scheme: String },

    #[error("base tensor {tensor:?} is of {dtype}; only F16, BF16, F32 and F64 can be edited")]
    BaseDtype { tensor: String, dtype: &'static str },

    #[error("{}: {error}", dir.display())]
    OfAdapter { dir: PathBuf, error: Box<Error> },

    #[error("{} cannot be merged with a weight of {weight}: {why}; leave the weight out", dir.display())]
    Weight { dir: PathBuf, weight: f64, why: String },

    #[error("these adapters cannot be combined so: {0}")]
    Combination(String),

    #[error("the adapter has no tensors")]
    Empty,

    #[error("{0}")]
    Layers(String),

    #[error(
        "{tensor}: the merge makes a value that is not finite (row {row}, column {column}) from a finite base value; \
         the adapter is broken or {dtype} too narrow. --allow-non-finite merges it anyway"
    )]
    NonFinite { tensor: String, row: u64, column: u64, dtype: &'static str },
}

/// An adapter tensor that does not fit the base tensor it is for.
#[derive(Debug, thiserror::Error)]
#[error(
    "adapter tensor {tensor:?} has shape {found:?}, expected {expected} to fit {base:?} of shape {base_shape:?}; the \
     adapter may belong to another size or version of base than this one{}",
    trained_on.as_ref().map(|name| format!(" (it names {name:?})")).unwrap_or_default()
)]
pub struct ShapeMismatch {
    /// Name of the adapter tensor.
    pub tensor: String,
    /// Its shape.
    pub found: Vec<u64>,
    /// What it should be.
    pub expected: String,
    /// Name of the base tensor.
    pub base: String,
    /// Shape of the base tensor.
    pub base_shape: Vec<u64>,
    /// The base that the adapter's configuration names.
    pub trained_on: Option<String>,
}

fn nearest_hint(nearest: &Option<String>) -> String {
    nearest.as_ref().map(|name| format!("; the nearest is {name:?}")).unwrap_or_default()
}

impl From<Error> for tenon_checkpoint::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Checkpoint(error) => error,
            other => tenon_checkpoint::Error::Source(Box::new(other)),
        }
    }
}
