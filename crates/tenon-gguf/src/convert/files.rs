//! The small files of a model: where `config.json`, tokenizer and card come from.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Component, Path, PathBuf};

use serde_json::{Map, Value as Json};
use tenon_checkpoint::{Error as CheckpointError, read_json, read_text};

use crate::Error;

/// Largest file that is no JSON: `tokenizer.model`.
const MAX_BYTES: u64 = 64 << 20;

/// Where a file's bytes are.
#[derive(Debug, Clone, PartialEq)]
pub enum FileContent {
    /// In a file.
    Path(PathBuf),
    /// Here.
    Text(String),
}

/// The files of a model that are no weights, by name.
#[derive(Debug, Clone)]
pub struct ModelFiles {
    root: PathBuf,
    listed: Option<BTreeMap<String, FileContent>>,
}

impl ModelFiles {
    /// All that lie in a directory.
    pub fn directory(dir: &Path) -> Self {
        Self { root: dir.into(), listed: None }
    }

    /// Those listed and no others, as of a model that is not written yet; messages name `root`.
    pub fn listed(root: &Path, files: BTreeMap<String, FileContent>) -> Self {
        Self { root: root.into(), listed: Some(files) }
    }

    /// What messages call a file.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// What messages call all of it.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    fn content(&self, name: &str) -> Option<FileContent> {
        if let Some(files) = &self.listed {
            return files.get(name).cloned();
        }
        // Names come from files, too (modules.json): none may lead out of the directory.
        let inside = Path::new(name).components().all(|part| matches!(part, Component::Normal(_)));
        let path = self.root.join(name);
        (inside && path.is_file()).then_some(FileContent::Path(path))
    }

    /// Whether there is such a file.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.content(name).is_some()
    }

    /// Names of the files in a directory of it.
    pub(crate) fn list(&self, dir: &str) -> Vec<String> {
        let mut names: Vec<String> = match &self.listed {
            Some(files) => files
                .keys()
                .filter_map(|name| name.strip_prefix(dir)?.strip_prefix('/'))
                .map(str::to_string)
                .collect(),
            None => {
                let entries = std::fs::read_dir(self.root.join(dir)).into_iter().flatten().flatten();
                entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
            }
        };
        names.sort();
        names
    }

    /// A text, if it is there.
    pub(crate) fn text(&self, name: &str) -> Result<Option<String>, Error> {
        Ok(match self.content(name) {
            None => None,
            Some(FileContent::Text(text)) => Some(text),
            Some(FileContent::Path(path)) => Some(read_text(&path)?),
        })
    }

    /// A JSON value, if it is there.
    pub(crate) fn json(&self, name: &str) -> Result<Option<Json>, Error> {
        Ok(match self.content(name) {
            None => None,
            Some(FileContent::Path(path)) => Some(read_json(&path)?),
            Some(FileContent::Text(text)) => Some(
                serde_json::from_str(&text)
                    .map_err(|source| CheckpointError::Json { path: self.path(name), source })?,
            ),
        })
    }

    /// A JSON object, if it is there.
    pub(crate) fn object(&self, name: &str) -> Result<Option<Map<String, Json>>, Error> {
        match self.json(name)? {
            None => Ok(None),
            Some(Json::Object(object)) => Ok(Some(object)),
            Some(_) => Err(self.wrong(name, "no JSON object")),
        }
    }

    /// Bytes, if they are there.
    pub(crate) fn bytes(&self, name: &str) -> Result<Option<Vec<u8>>, Error> {
        let path = match self.content(name) {
            None => return Ok(None),
            Some(FileContent::Text(text)) => return Ok(Some(text.into_bytes())),
            Some(FileContent::Path(path)) => path,
        };
        let file = File::open(&path).map_err(CheckpointError::io("open", &path))?;
        let found = file.metadata().map_err(CheckpointError::io("examine", &path))?.len();
        if found > MAX_BYTES {
            return Err(CheckpointError::TooLarge { path, found, limit: MAX_BYTES }.into());
        }
        let mut bytes = vec![];
        file.take(MAX_BYTES).read_to_end(&mut bytes).map_err(CheckpointError::io("read", &path))?;
        Ok(Some(bytes))
    }

    /// A file that is not what it has to be.
    pub(crate) fn wrong(&self, name: &str, reason: impl Into<String>) -> Error {
        Error::Tokenizer { path: self.path(name), reason: reason.into() }
    }
}
