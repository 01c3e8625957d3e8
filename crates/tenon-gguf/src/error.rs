//! What can be wrong with a GGUF file, or with a model on its way into one.

use std::path::PathBuf;

/// What went wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // the sentence of each variant says what its fields are
pub enum Error {
    #[error(transparent)]
    Checkpoint(#[from] tenon_checkpoint::Error),

    #[error(transparent)]
    Dequant(#[from] tenon_dequant::Error),

    #[error(
        "the model is stored quantized as {scheme} ({why}), which cannot be read back as floats; convert the model that it was made from"
    )]
    Stored { scheme: String, why: String },

    #[error("{}: {fault}", path.display())]
    File { path: PathBuf, fault: Fault },

    #[error("{}: {fault}", path.display())]
    Importance { path: PathBuf, fault: crate::ImportanceFault },

    #[error(
        "architecture {architecture:?} cannot be converted to GGUF yet; known are {}", known.join(", ")
    )]
    Architecture { architecture: String, known: Vec<&'static str> },

    #[error("config.json: {field} is {found}, expected {expected}")]
    Config { field: String, found: String, expected: &'static str },

    #[error("tensor {tensor:?} has no place in a GGUF of architecture {architecture}")]
    NoPlace { tensor: String, architecture: &'static str },

    #[error("tensor {tensor:?}: {reason}")]
    Tensor { tensor: String, reason: String },

    #[error("tensor type {found:?}: {reason}")]
    TensorType { found: String, reason: String },

    #[error("layer {layer}: expert tensor {tensor:?} is not there; {expected} experts were expected")]
    MissingExpert { layer: u64, tensor: String, expected: u64 },

    #[error(
        "layer {layer} has expert tensor {tensor:?}, but not all of {expected} experts with three tensors each"
    )]
    IncompleteExperts { layer: u64, tensor: String, expected: u64 },

    #[error("{}: {reason}", path.display())]
    Tokenizer { path: PathBuf, reason: String },

    #[error(
        "no tokenizer that can be converted in {}: neither tokenizer.model nor a tokenizer.json of byte-level BPE", dir.display()
    )]
    NoTokenizer { dir: PathBuf },

    #[error(
        "tokenizer.json splits text by a pattern that no pre-tokenizer of llama.cpp is known to have: {pattern}; say which to use, such as --pre-tokenizer gpt-2"
    )]
    PreTokenizer { pattern: String },
}

/// The ways in which a GGUF file can lie.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum Fault {
    #[error("it does not begin with GGUF")]
    Magic,
    #[error("version {found}; versions 2 and 3 are known")]
    Version { found: u32 },
    #[error("it ends at byte {len}, within {what}")]
    Truncated { what: &'static str, len: u64 },
    #[error("{what} of {found}, more than {limit}")]
    TooMany { what: &'static str, found: u64, limit: u64 },
    #[error("{what} is not UTF-8")]
    NotText { what: &'static str },
    #[error("key {key:?} has a value of unknown type {found}")]
    ValueType { key: String, found: u32 },
    #[error("key {key:?} appears twice")]
    DuplicateKey { key: String },
    #[error("tensor {tensor:?} appears twice")]
    DuplicateTensor { tensor: String },
    #[error("tensor {tensor:?} has the unknown type {found}")]
    TensorType { tensor: String, found: u32 },
    #[error("tensor {tensor:?} has {found} dimensions; there are four at most")]
    Dimensions { tensor: String, found: u32 },
    #[error("tensor {tensor:?}: shape {shape:?} overflows or is no whole number of blocks of {ggml_type}")]
    Shape { tensor: String, shape: Vec<u64>, ggml_type: &'static str },
    #[error("tensor {tensor:?} begins at byte {offset} of the data, which is no multiple of {alignment}")]
    Unaligned { tensor: String, offset: u64, alignment: u64 },
    #[error("tensor {tensor:?} ends at byte {end}, the file at {len}")]
    PastEnd { tensor: String, end: u64, len: u64 },
    #[error("tensors {tensor:?} and {other:?} overlap")]
    Overlap { tensor: String, other: String },
    #[error("general.alignment is {found}; it must be a power of two up to 65536")]
    Alignment { found: u64 },
}
