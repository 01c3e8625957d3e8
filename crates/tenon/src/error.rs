//! What can go wrong in a verb of the facade.

use std::path::PathBuf;

/// An error of any verb; the crates below keep the facts.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // the sentence of each variant says what its fields are
pub enum Error {
    #[error(transparent)]
    Checkpoint(tenon_checkpoint::Error),

    #[error(transparent)]
    Merge(tenon_merge::Error),

    #[error("{} has no config.json: not a model directory in Hugging Face layout", dir.display())]
    NoConfig { dir: PathBuf },

    #[error("{} lies in, around or at {}; the merged model needs a place of its own", out.display(), input.display())]
    OutTouchesInput { out: PathBuf, input: PathBuf },
}

// Errors come out of the layers nested in each other (a plan is read through a checkpoint's trait);
// here each gets back to its own kind.
impl From<tenon_checkpoint::Error> for Error {
    fn from(error: tenon_checkpoint::Error) -> Self {
        match error {
            tenon_checkpoint::Error::Source(source) => match source.downcast::<tenon_merge::Error>() {
                Ok(error) => Error::from(*error),
                Err(other) => Error::Checkpoint(tenon_checkpoint::Error::Source(other)),
            },
            other => Error::Checkpoint(other),
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

impl Error {
    /// Whether somebody asked to stop.
    pub fn is_cancelled(&self) -> bool {
        matches!(self, Error::Checkpoint(tenon_checkpoint::Error::Cancelled))
    }
}
