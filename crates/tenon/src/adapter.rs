//! The adapters of a merge: found, PEFT's as they are and other tools' translated, joined with their base.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tenon_adapters::{Form, What};
use tenon_checkpoint::SafetensorsFile;
use tenon_gguf::GgufFile;
use tenon_merge::{Adapter, AdapterConfig, Combination, Combined, FULL_DELTA, MergeOptions, MergePlan};

use crate::base::Base;
use crate::{Error, gguf_adapter};

/// The adapters of one merge, opened.
pub(crate) struct Adapters {
    pub(crate) list: Vec<OpenAdapter>,
    /// What a person should know of how they were found.
    pub(crate) notes: Vec<String>,
}

/// An adapter and how much of it is merged.
pub(crate) struct OpenAdapter {
    pub(crate) adapter: Arc<Adapter>,
    pub(crate) weight: f64,
}

impl Adapters {
    /// Opens adapters, or full-weight deltas, for a base.
    pub(crate) fn open(paths: &[(PathBuf, f64)], base: &Base, deltas: bool) -> Result<Self, Error> {
        let mut this = Self { list: vec![], notes: vec![] };
        for (path, weight) in paths {
            let (adapter, notes) = if deltas { open_delta(path)? } else { open(path, base)? };
            this.list.push(OpenAdapter { adapter: Arc::new(adapter), weight: *weight });
            this.notes.extend(notes);
        }
        Ok(this)
    }

    /// Plans their merge into the base: combined into one first, or one after the other.
    pub(crate) fn plan(
        &self,
        base: &Base,
        combination: Option<&Combination>,
        options: MergeOptions,
    ) -> Result<MergePlan, Error> {
        let list = self.list.iter().map(|open| (open.adapter.clone(), open.weight)).collect();
        let list = match combination {
            Some(what) => {
                let combined = Arc::new(Combined::new(list, what)?);
                vec![(Arc::new(Adapter::combined(combined)), 1.0)]
            }
            None => list,
        };
        MergePlan::stack(base.source(), base.config(), list, options).map_err(|error| base.explain(error))
    }

    /// Where they were found, which may be a folder of what was named.
    pub(crate) fn dirs(&self) -> impl Iterator<Item = &Path> {
        self.list.iter().map(|open| open.adapter.dir())
    }

    /// Their weights.
    pub(crate) fn files(&self) -> impl Iterator<Item = &SafetensorsFile> {
        self.list.iter().flat_map(|open| open.adapter.files())
    }
}

/// Opens a directory as a full-weight delta, which it does not look like: whoever names it must know.
fn open_delta(path: &Path) -> Result<(Adapter, Vec<String>), Error> {
    let mut translation = tenon_adapters::delta(path)?;
    translation.config.insert("peft_type".into(), FULL_DELTA.into());
    let config = AdapterConfig::translated(path.join("config.json"), translation.config);
    let adapter = Adapter::translated(path, config, translation.tensors, translation.file);
    Ok((adapter, translation.notes))
}

/// Finds and opens the adapter that a path means, for a base. Also gives what a person should know of it.
fn open(path: &Path, base: &Base) -> Result<(Adapter, Vec<String>), Error> {
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
