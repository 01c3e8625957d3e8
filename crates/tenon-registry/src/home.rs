//! Where things lie in a home.

use std::path::{Path, PathBuf};

use uuid::Uuid;

use crate::{Error, ModelName};

/// The directory that holds everything Tenon keeps.
///
/// ```text
/// complete/<name>/   Complete Models
/// artifacts/<uuid>/  what was made from one of them, rebuilt on demand; base-<name>/ and
///                    adapter-<name>/ are made from a Base Model and from a Customized Model's adapter
/// staging/<uuid>/    Savings in progress
/// deployments/<uuid>/ deployments in progress
/// tasks/<uuid>/      other jobs in progress
/// logs/<uuid>.jsonl  what happened to a job
/// results/<name>     what was made for a client of the server that named no other place
/// trash/<uuid>/      Complete Models on their way out
/// catalogue.db       SQLite
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Home {
    root: PathBuf,
}

impl Home {
    /// The home at a directory, made where it is missing.
    pub fn create(root: &Path) -> Result<Self, Error> {
        let root = std::path::absolute(root).map_err(Error::io("examine", root))?;
        for part in ["complete", "artifacts", "staging", "deployments", "tasks", "logs", "results", "trash"] {
            let dir = root.join(part);
            std::fs::create_dir_all(&dir).map_err(Error::io("create directory", &dir))?;
        }
        Ok(Self { root })
    }

    /// Its directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// All Complete Models.
    pub fn complete_models(&self) -> PathBuf {
        self.root.join("complete")
    }

    /// A Complete Model.
    pub fn complete(&self, name: &ModelName) -> PathBuf {
        self.complete_models().join(name.as_str())
    }

    /// What was made from the Complete Model that a Saving left.
    pub fn artifacts(&self, saving: Uuid) -> PathBuf {
        self.all_artifacts().join(saving.to_string())
    }

    /// What was made from a Base Model.
    pub fn base_artifacts(&self, base: &ModelName) -> PathBuf {
        self.all_artifacts().join(format!("base-{base}"))
    }

    /// What was made from the adapter of a Customized Model.
    pub fn adapter_artifacts(&self, customized: &ModelName) -> PathBuf {
        self.all_artifacts().join(format!("adapter-{customized}"))
    }

    pub(crate) fn all_artifacts(&self) -> PathBuf {
        self.root.join("artifacts")
    }

    pub(crate) fn stagings(&self) -> PathBuf {
        self.root.join("staging")
    }

    pub(crate) fn staging(&self, saving: Uuid) -> PathBuf {
        self.stagings().join(saving.to_string())
    }

    pub(crate) fn deployments(&self) -> PathBuf {
        self.root.join("deployments")
    }

    pub(crate) fn tasks(&self) -> PathBuf {
        self.root.join("tasks")
    }

    /// What happened to jobs.
    pub fn logs(&self) -> PathBuf {
        self.root.join("logs")
    }

    /// What was made for clients of the server that named no other place.
    pub fn results(&self) -> PathBuf {
        self.root.join("results")
    }

    pub(crate) fn trash(&self) -> PathBuf {
        self.root.join("trash")
    }

    pub(crate) fn catalogue(&self) -> PathBuf {
        self.root.join("catalogue.db")
    }

    /// Names of the entries of one of its directories.
    pub(crate) fn entries(dir: &Path) -> Result<Vec<String>, Error> {
        let mut names = vec![];
        for entry in std::fs::read_dir(dir).map_err(Error::io("list", dir))? {
            let name = entry.map_err(Error::io("list", dir))?.file_name();
            names.push(name.to_string_lossy().into_owned());
        }
        names.sort();
        Ok(names)
    }
}
