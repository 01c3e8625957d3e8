//! What can go wrong with a home.

use std::path::{Path, PathBuf};

use uuid::Uuid;

use crate::{BadName, ModelName};

/// What went wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // the sentence of each variant says what its fields are
pub enum Error {
    #[error(transparent)]
    Checkpoint(#[from] tenon_checkpoint::Error),

    #[error(transparent)]
    Name(#[from] BadName),

    #[error("the catalogue {}: {source}", path.display())]
    Catalogue { path: PathBuf, source: rusqlite::Error },

    #[error(
        "the catalogue {} was written by a newer Tenon (schema {found}, this one knows {known}); use that one",
        path.display()
    )]
    NewerCatalogue { path: PathBuf, found: u32, known: u32 },

    #[error("the catalogue's record of {what} {name} cannot be read: {source}")]
    Record { what: &'static str, name: String, source: serde_json::Error },

    #[error("there is no {what} named {name:?}{}", nearest.as_ref().map(|n| format!("; did you mean {n:?}?")).unwrap_or_default())]
    NotFound { what: &'static str, name: String, nearest: Option<String> },

    #[error("there is a {what} named {name} already")]
    Taken { what: &'static str, name: String },

    #[error("{what} {name} is in use: {by}")]
    InUse { what: &'static str, name: ModelName, by: String },

    #[error("{}: not a manifest that this version can read: {reason}", path.display())]
    Manifest { path: PathBuf, reason: String },

    #[error("{what} {id} is {state} already")]
    NotOpen { what: &'static str, id: Uuid, state: &'static str },

    #[error("{what} {id} was cancelled")]
    Cancelled { what: &'static str, id: Uuid },

    #[error("the model is not saved: Saving {saving} is {state}{reason}")]
    NotSaved { saving: Uuid, state: &'static str, reason: String },

    #[error("deployment {id} does the same and is {state}")]
    SameDeployment { id: Uuid, state: &'static str },

    #[error(
        "no place left for this Saving: {needed} bytes are needed, {available} are free and {reserved} of them reserved for Savings under way"
    )]
    NoRoom { needed: u64, available: u64, reserved: u64 },
}

impl Error {
    pub(crate) fn io(action: &'static str, path: impl AsRef<Path>) -> impl FnOnce(std::io::Error) -> Error {
        let to_error = tenon_checkpoint::Error::io(action, path);
        move |source| Error::Checkpoint(to_error(source))
    }
}

/// Whether the disk is what refused.
pub(crate) fn is_full(error: &Error) -> bool {
    matches!(error, Error::Checkpoint(tenon_checkpoint::Error::Io { source, .. })
        if source.kind() == std::io::ErrorKind::StorageFull)
}
