//! What verbs made that kept no record of it: what lies in the home's `results/`, and the GGUF files that
//! are kept with Complete Models.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::Serialize;
use tenon_checkpoint::{Digest, Error as CheckpointError};
use tenon_registry::{Error as RegistryError, ModelName, Quantization, QuantizationQuality, Timestamp};

use crate::artifact::ArtifactRecord;
use crate::gguf::MAGIC;
use crate::{Error, Tenon};

/// Files of a result, and how deep they lie, at most.
const MAX_FILES: usize = 10_000;
const MAX_DEPTH: usize = 4;

/// Something that was made into the home's results.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Outcome {
    /// Its name there.
    pub name: ModelName,
    /// `adapter`, `model`, `gguf`; `other` where it is none of these.
    pub kind: &'static str,
    /// Where it lies.
    pub path: PathBuf,
    /// When it was whole.
    pub created: Timestamp,
    /// Bytes of all its files.
    pub bytes: u64,
    /// Its files, by name; of one that is a file, that.
    pub files: Vec<OutcomeFile>,
}

/// A file of a result.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct OutcomeFile {
    /// Its name, with those of the folders it is in.
    pub name: String,
    /// Its size.
    pub bytes: u64,
}

/// A GGUF file that is kept with the Complete Model that it was made of, and goes with it if not before.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct KeptGguf {
    /// Its name.
    pub file: String,
    /// Its size.
    pub bytes: u64,
    /// SHA-256 of its bytes.
    pub sha256: Digest,
    /// What it was quantized to.
    pub quantization: Quantization,
    /// What that cost.
    pub quality: Option<QuantizationQuality>,
}

impl Tenon {
    /// What lies in the home's results, by name.
    pub fn results(&self) -> Result<Vec<Outcome>, Error> {
        let dir = self.registry().home().results();
        let mut found = vec![];
        for entry in std::fs::read_dir(&dir).map_err(CheckpointError::io("list", &dir))? {
            let entry = entry.map_err(CheckpointError::io("list", &dir))?;
            // What is being made has a name that is none.
            let Ok(name) = ModelName::new(entry.file_name().to_string_lossy()) else { continue };
            // One that was removed meanwhile is not there.
            found.extend(outcome(name, &entry.path()));
        }
        found.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(found)
    }

    /// One thing of the home's results.
    ///
    /// # Errors
    /// Where there is none.
    pub fn result(&self, name: &str) -> Result<Outcome, Error> {
        let none = || RegistryError::NotFound { what: "result", name: name.into(), nearest: None };
        let name = ModelName::new(name).map_err(|_| none())?;
        let path = self.registry().home().results().join(name.as_str());
        Ok(outcome(name, &path).ok_or_else(none)?)
    }

    /// Removes something from the home's results, for good.
    ///
    /// # Errors
    /// While a model is registered there, or a job reads or makes it.
    pub fn remove_result(&self, name: &str) -> Result<(), Error> {
        let none = || RegistryError::NotFound { what: "result", name: name.into(), nearest: None };
        Ok(self.registry().remove_result(&ModelName::new(name).map_err(|_| none())?)?)
    }

    /// The GGUF files that are kept with a Complete Model, smallest first.
    pub fn kept_ggufs(&self, complete: &str) -> Result<Vec<KeptGguf>, Error> {
        let (model, _) = self.show(complete)?;
        let dir = self.registry().home().artifacts(model.saving);
        let mut kept: Vec<KeptGguf> = vec![];
        for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            let Some(record) = ArtifactRecord::read(&path) else { continue };
            let is_there = dir.join(&record.file).symlink_metadata().is_ok_and(|meta| meta.is_file());
            // Two recipes may give the same bytes.
            if is_there && kept.iter().all(|known| known.file != record.file) {
                let ArtifactRecord { file, sha256, bytes, quantization, quality, .. } = record;
                kept.push(KeptGguf { file, bytes, sha256, quantization, quality });
            }
        }
        kept.sort_by(|a, b| (a.bytes, &a.file).cmp(&(b.bytes, &b.file)));
        Ok(kept)
    }

    /// Removes GGUF files that are kept with a Complete Model: those that `unwanted` names. They are made
    /// again when they are needed. What was removed comes back.
    ///
    /// # Errors
    /// While the model is deployed, or one of its files is read.
    pub fn remove_kept_ggufs(
        &self,
        complete: &str,
        unwanted: impl Fn(&KeptGguf) -> bool,
    ) -> Result<Vec<KeptGguf>, Error> {
        let (model, _) = self.show(complete)?;
        let _held = self.registry().hold_alone(&model.name)?;
        let dir = self.registry().home().artifacts(model.saving);
        let mut kept = self.kept_ggufs(complete)?;
        kept.retain(|one| unwanted(one));
        for one in &kept {
            // Its record is as good as none from then on, and is replaced when the file is made again.
            let path = dir.join(&one.file);
            std::fs::remove_file(&path).map_err(CheckpointError::io("remove", &path))?;
        }
        Ok(kept)
    }
}

fn outcome(name: ModelName, path: &Path) -> Option<Outcome> {
    let meta = path.symlink_metadata().ok()?;
    let created = meta.modified().unwrap_or(SystemTime::UNIX_EPOCH);
    let created = Timestamp::try_from(created).unwrap_or(Timestamp::UNIX_EPOCH);
    let mut files = vec![];
    let kind = if meta.is_dir() {
        collect(path, "", MAX_DEPTH, &mut files);
        files.sort();
        let has = |file: &str| files.iter().any(|known| known.name == file);
        match (has("adapter_config.json"), has("config.json")) {
            (true, _) => "adapter",
            (false, true) => "model",
            (false, false) => "other",
        }
    } else if meta.is_file() {
        files.push(OutcomeFile { name: name.to_string(), bytes: meta.len() });
        if is_gguf(path) { "gguf" } else { "other" }
    } else {
        return None;
    };
    let bytes = files.iter().map(|file| file.bytes).sum();
    Some(Outcome { name, kind, path: path.into(), created, bytes, files })
}

fn is_gguf(path: &Path) -> bool {
    let mut magic = [0; MAGIC.len()];
    let read =
        std::fs::File::open(path).and_then(|mut file| std::io::Read::read_exact(&mut file, &mut magic));
    read.is_ok() && magic == MAGIC
}

/// Files of a directory; links are none.
fn collect(dir: &Path, prefix: &str, depth: usize, into: &mut Vec<OutcomeFile>) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let Ok(name) = entry.file_name().into_string() else { continue };
        let Ok(meta) = entry.path().symlink_metadata() else { continue };
        let name = format!("{prefix}{name}");
        if into.len() >= MAX_FILES {
            return;
        }
        if meta.is_file() {
            into.push(OutcomeFile { name, bytes: meta.len() });
        } else if meta.is_dir() && depth > 0 {
            collect(&entry.path(), &format!("{name}/"), depth - 1, into);
        }
    }
}
