//! What can go wrong in a deployment.

use crate::template::Fault;

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // the sentence of each variant says what its fields are
pub enum Error {
    #[error("{file}:{fault}")]
    Template { file: String, fault: Fault },
}
