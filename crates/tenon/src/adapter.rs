//! An adapter as a merge reads it: PEFT's as it is, another tool's translated.

use std::path::{Path, PathBuf};

use tenon_adapters::{Form, What};
use tenon_gguf::GgufFile;
use tenon_merge::{Adapter, AdapterConfig};

use crate::base::Base;
use crate::{Error, gguf_adapter};

/// Finds and opens the adapter that a path means, for a base. Also gives what a person should know of it.
pub(crate) fn open(path: &Path, base: &Base) -> Result<(Adapter, Vec<String>), Error> {
    if is_peft(path) {
        return Ok((Adapter::open(path)?, vec![]));
    }
    if lacks_something(path)? {
        return Ok((Adapter::open(path)?, vec![]));
    }
    if let Some(file) = gguf(path)? {
        return gguf_adapter::open(&file, base);
    }
    let mut located = tenon_adapters::locate(path)?;
    if located.form == Form::Peft {
        return Ok((Adapter::open(&located.path)?, located.notes));
    }
    let translation = tenon_adapters::translate(&located, base.tensors())?;
    located.notes.extend(translation.notes);
    // Where a field is wrong, the file to look at.
    let config_path = match located.form {
        Form::Mlx => located.path.join("adapter_config.json"),
        Form::Peft | Form::Kohya => located.path.clone(),
    };
    let config = AdapterConfig::translated(config_path, translation.config);
    let adapter = Adapter::translated(located.path, config, translation.tensors, translation.file);
    Ok((adapter, located.notes))
}

/// Where the adapter lies that a path means.
pub(crate) fn place(path: &Path) -> Result<PathBuf, Error> {
    if is_peft(path) {
        return Ok(path.into());
    }
    if lacks_something(path)? {
        return Ok(path.into());
    }
    match gguf(path)? {
        Some(file) => Ok(file),
        None => Ok(tenon_adapters::locate(path)?.path),
    }
}

/// The GGUF adapter that a path means: that file, or the only one of a directory.
fn gguf(path: &Path) -> Result<Option<PathBuf>, Error> {
    match tenon_adapters::recognise(path)? {
        What::Gguf(file) if gguf_adapter::is_adapter(&GgufFile::open(&file)?) => Ok(Some(file)),
        _ => Ok(None),
    }
}

/// Whether a directory is most likely meant to be PEFT's, whose reader says what is missing.
fn lacks_something(path: &Path) -> Result<bool, Error> {
    let what = tenon_adapters::recognise(path)?;
    Ok(path.is_dir() && matches!(what, What::Unknown | What::BareAdapter(_)))
}

/// The common case, without looking further: also where it lies among a training's state.
fn is_peft(path: &Path) -> bool {
    !path.exists()
        || path.join("adapter_config.json").exists() && path.join("adapter_model.safetensors").exists()
}
