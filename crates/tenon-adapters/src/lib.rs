//! What training tools leave behind: recognised by headers and names, and
//! where it is an adapter in another layout than PEFT's, read as one.
//!
//! * [`recognise`] says what a directory or file is, in milliseconds.
//! * [`locate`] finds the adapter in it, or says what must be done first.
//! * [`translate`] gives an adapter of another tool the names, shapes and
//!   configuration that PEFT would have given it.
//! * [`delta`] reads a checkpoint of differences, where somebody says that it is one.
//!
//! Nothing here merges, and nothing is unpickled.

mod delta;
mod error;
mod kohya;
mod mlx;
mod recognise;
mod training;
mod translated;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Map, Value};
use tenon_checkpoint::{Checkpoint, TensorInfo};

pub use delta::delta;
pub use error::Error;
pub use recognise::{Form, What, recognise};
pub use training::TrainingCheckpoint;
pub use translated::Translated;

/// An adapter that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Located {
    /// Its directory, or the file that it is.
    pub path: PathBuf,
    /// Its layout.
    pub form: Form,
    /// What a person should know of how it was found.
    pub notes: Vec<String>,
}

/// Finds the adapter that a path means: the one there, or that of a training's checkpoint folders.
pub fn locate(path: &Path) -> Result<Located, Error> {
    match recognise(path)? {
        What::Adapter(form) => Ok(Located { path: path.into(), form, notes: vec![] }),
        What::AdapterFile(file, form) => {
            let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
            Ok(Located { path: file, form, notes: vec![format!("the adapter is the file {name}")] })
        }
        What::Training(checkpoints) => training::choose(path, &checkpoints),
        other => Err(other.refusal(path)),
    }
}

/// An adapter of another tool, as PEFT would have saved it.
#[derive(Debug)]
pub struct Translation {
    /// The fields of its `adapter_config.json`.
    pub config: Map<String, Value>,
    /// Its tensors.
    pub tensors: Arc<Translated>,
    /// The file that they are read from.
    pub file: Arc<Checkpoint>,
    /// What a person should know of it.
    pub notes: Vec<String>,
}

/// Reads an adapter that is not PEFT's, for a base with these tensors.
///
/// # Panics
/// When the form is [`Form::Peft`], which needs no translation.
pub fn translate(located: &Located, base: &[TensorInfo]) -> Result<Translation, Error> {
    match located.form {
        Form::Mlx => mlx::translate(&located.path, base),
        Form::Kohya => kohya::translate(&located.path, base),
        Form::Peft => panic!("a PEFT adapter is read as it is"),
    }
}
