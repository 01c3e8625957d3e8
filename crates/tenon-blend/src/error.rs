//! What can be wrong with a blend.

/// What went wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // the sentence of each variant says what its fields are
pub enum Error {
    #[error(transparent)]
    Checkpoint(#[from] tenon_checkpoint::Error),

    #[error("{place}: {fault}")]
    Config { place: String, fault: ConfigFault },

    #[error(
        "tensor {tensor:?} is in {present} and not in {missing}; the models have different architectures"
    )]
    MissingTensor { tensor: String, present: String, missing: String },

    #[error("{0}")]
    Shape(Box<ShapeMismatch>),

    #[error("tensor {tensor:?} has elements of {dtype} in {model}, which cannot be merged")]
    Dtype { tensor: String, model: String, dtype: &'static str },

    #[error(
        "tensor {tensor:?} holds {dtype}, no floating-point numbers, and differs between {first} and {second}"
    )]
    Differs { tensor: String, dtype: &'static str, first: String, second: String },

    #[error("{model} has {found} layers, the slice takes layers {from} to {to}")]
    LayerRange { model: String, found: u64, from: u64, to: u64 },

    #[error(
        "{model} has {count} stacks of layers ({stacks}), so slices of layers are ambiguous; use `models`"
    )]
    Stacks { model: String, count: usize, stacks: String },

    #[error("{model} has no tensors with a layer number in their names, so it cannot be sliced")]
    NoLayers { model: String },

    #[error("{first} has {expected} layers, {second} has {found}; give `slices` to choose from them")]
    LayerCount { first: String, expected: u64, second: String, found: u64 },

    #[error("parameter {parameter} is missing for {tensor:?} of {model}; method {method} needs it")]
    MissingParameter { parameter: &'static str, tensor: String, model: String, method: &'static str },

    #[error(
        "density and epsilon give chances from {low} to {high} for {tensor:?} of {model}; they must lie between 0 and 1"
    )]
    Chances { tensor: String, model: String, low: f64, high: f64 },

    #[error("the weights of all models sum to 0 at {tensor:?}, so they cannot be normalized")]
    NoWeight { tensor: String },

    #[error(
        "the weighted models balance each other out at {tensor:?}, so they have no mean on the sphere; give other weights"
    )]
    NoMean { tensor: String },

    #[error(
        "token {token:?} has number {number}, which is beyond the {rows} rows that the result's tokens make: its numbers have holes; give a tokenizer without"
    )]
    TokenNumber { token: String, number: u64, rows: u64 },

    #[error("tensor {tensor:?}: the result at row {row} is not finite as {dtype}")]
    NonFinite { tensor: String, row: u64, dtype: &'static str },
}

impl From<Error> for tenon_checkpoint::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Checkpoint(error) => error,
            other => tenon_checkpoint::Error::Source(Box::new(other)),
        }
    }
}

/// A tensor that has different shapes in two models.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct ShapeMismatch {
    pub tensor: String,
    pub first: String,
    pub expected: Vec<u64>,
    pub second: String,
    pub found: Vec<u64>,
    /// What to do, where that is known.
    pub hint: &'static str,
}

impl std::fmt::Display for ShapeMismatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { tensor, first, expected, second, found, hint } = self;
        write!(f, "tensor {tensor:?} has shape {expected:?} in {first} and {found:?} in {second}{hint}")
    }
}

/// What can be wrong at a place of the configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum ConfigFault {
    #[error("not YAML: {0}")]
    NotYaml(String),
    #[error("{found} bytes are more than the {limit} that a configuration may have")]
    TooLarge { found: usize, limit: usize },
    #[error("found {found}, expected {expected}")]
    Unexpected { found: String, expected: &'static str },
    #[error("there is no such key{}", nearest.as_ref().map(|key| format!("; did you mean {key}?")).unwrap_or_default())]
    UnknownKey { nearest: Option<String> },
    #[error("method {found:?} is not known to Tenon; known are {known}")]
    Method { found: String, known: String },
    #[error("exactly one of models, slices and modules must be there")]
    OneOf,
    #[error("method {method} takes {expected}, found {found}")]
    Inputs { method: &'static str, expected: &'static str, found: usize },
    #[error("method {method} needs base_model")]
    NoBase { method: &'static str },
    #[error("base_model {model} is not among the sources of this slice")]
    BaseNotInSlice { model: String },
    #[error("{model} is named twice")]
    Duplicate { model: String },
    #[error("{what} is not supported by Tenon: {remedy}")]
    Unsupported { what: String, remedy: &'static str },
    #[error("the sources of a slice must have the same number of layers; found {counts:?}")]
    LayerCounts { counts: Vec<u64> },
}
