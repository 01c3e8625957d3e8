//! An adapter that comes from elsewhere, file by file: whole in the home's results and registered, or not
//! there at all.

use std::fs::File;
use std::path::Path;

use tenon_checkpoint::{Error as CheckpointError, StagingDir};
use tenon_registry::{BaseModel, CustomizedModel, Error as RegistryError, ModelName};

use crate::{Error, Merge, Tenon};

/// What an adapter directory needs to have.
const CONFIG: &str = "adapter_config.json";
/// Files of an adapter, at most.
const MAX_FILES: usize = 64;

/// An adapter that is being received. Dropped before it is published, nothing of it stays.
#[derive(Debug)]
pub struct Upload {
    staging: StagingDir,
    target: std::path::PathBuf,
    files: Vec<String>,
}

impl Tenon {
    /// Begins to receive an adapter, which will be `name` in the home's results.
    ///
    /// # Errors
    /// Where something has that name.
    pub fn receive(&self, name: &ModelName) -> Result<Upload, Error> {
        let target = self.registry().home().results().join(name.as_str());
        let staging = StagingDir::create(&target, false).map_err(taken)?;
        Ok(Upload { staging, target, files: vec![] })
    }

    /// Registers an adapter that was received whole, if it fits its Base Model; then it is in the results.
    ///
    /// # Errors
    /// When it lacks something, is wrong or does not fit; then nothing of it stays.
    pub fn accept(
        &self,
        upload: Upload,
        base: &str,
        train_name: Option<&str>,
    ) -> Result<CustomizedModel, Error> {
        let Upload { staging, target, .. } = upload;
        let known: BaseModel = self.registry().get(base)?;
        // Tried where it is, so that nothing appears that does not fit.
        Merge::new(&known.path, staging.path(), self.registry().home().root()).plan_anywhere()?;
        for entry in std::fs::read_dir(staging.path()).into_iter().flatten().flatten() {
            let path = entry.path();
            let synced = File::open(&path).and_then(|file| file.sync_all());
            synced.map_err(CheckpointError::io("sync", &path))?;
        }
        staging.publish().map_err(taken)?;
        let added = self.add_customized(&target, base, train_name, None);
        if added.is_err() {
            // Named by nobody yet. What cannot be removed shows among the results.
            let _ = std::fs::remove_dir_all(&target);
        }
        added
    }
}

impl Upload {
    /// Where its files are until it is published; errors name it.
    pub fn path(&self) -> &Path {
        self.staging.path()
    }

    /// A file to be filled: `adapter_config.json`, or one of safetensors.
    ///
    /// # Errors
    /// When the name is another, leads elsewhere or came before.
    pub fn file(&mut self, name: &str) -> Result<File, Error> {
        let is_plain = ModelName::new(name).is_ok();
        if !is_plain || !(name == CONFIG || name.ends_with(".safetensors")) {
            return Err(Error::UploadedFile { file: name.chars().take(100).collect() });
        }
        if self.files.iter().any(|known| known.eq_ignore_ascii_case(name)) || self.files.len() >= MAX_FILES {
            return Err(Error::UploadedTwice { file: name.into() });
        }
        self.files.push(name.into());
        let path = self.staging.path().join(name);
        Ok(File::create_new(&path).map_err(CheckpointError::io("write", &path))?)
    }
}

/// An adapter is not replaced, so nothing is said of how.
fn taken(error: CheckpointError) -> Error {
    match error {
        CheckpointError::TargetExists { path } => match path.file_name().map(|name| name.to_string_lossy()) {
            Some(name) => RegistryError::Taken { what: "result", name: name.into_owned() }.into(),
            None => Error::OutExists { out: path },
        },
        other => other.into(),
    }
}
