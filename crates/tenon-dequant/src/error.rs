//! What can be wrong with a quantized checkpoint.

/// What went wrong while opening or reading one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // the sentence of each variant says what its fields are
pub enum Error {
    #[error(transparent)]
    Checkpoint(#[from] tenon_checkpoint::Error),

    #[error(
        "the base stores {tensor:?} as {format}, which needs {missing:?} beside it; the checkpoint does not have that \
         and is incomplete"
    )]
    Missing { tensor: String, format: &'static str, missing: String },

    #[error("the base stores {tensor:?} as {format}: its shape is {found:?}, expected {expected}")]
    Shape { tensor: String, format: &'static str, found: Vec<u64>, expected: String },

    #[error("the base stores {tensor:?} as {format}: its dtype is {found}, expected {expected}")]
    Dtype { tensor: String, format: &'static str, found: &'static str, expected: &'static str },

    #[error(
        "{tensor:?}: {what} is {found}, expected {expected}; the file is damaged or of a kind that Tenon does not know"
    )]
    Value { tensor: String, what: String, found: String, expected: String },

    #[error("quantization_config: {field} is {found}, expected {expected}")]
    Field { field: String, found: String, expected: &'static str },

    #[error(
        "two tensors of the base would both be {name:?} once dequantized: it is stored quantized and as it is"
    )]
    Twice { name: String },
}

impl From<Error> for tenon_checkpoint::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Checkpoint(error) => error,
            other => tenon_checkpoint::Error::Source(Box::new(other)),
        }
    }
}
