//! What the catalogue keeps.

use std::path::PathBuf;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tenon_checkpoint::{Digest, Stamp};
use uuid::Uuid;

use crate::catalogue::{Kind, Record};
use crate::{Course, JobState, ModelName};

/// A pretrained model, registered where it lies.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BaseModel {
    /// Its technical name.
    pub name: ModelName,
    /// Its directory.
    pub path: PathBuf,
    /// When it was registered.
    pub created: Timestamp,
    /// Repository on the Hugging Face Hub, where the path tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repository: Option<String>,
    /// Its revision.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// Its weights and configuration.
    pub files: Vec<KnownFile>,
    /// What it is, in figures.
    pub model: ModelSummary,
    /// The Deployment Template File.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<Template>,
}

/// A Deployment Template File, kept with its Base Model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Template {
    /// Name of the file that it came from.
    pub file: String,
    /// Its text.
    pub text: String,
}

/// An adapter linked to its Base Model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CustomizedModel {
    /// Its name.
    pub name: ModelName,
    /// Name of its Base Model.
    pub base: ModelName,
    /// Name of the training.
    pub train_name: ModelName,
    /// UUID of the training.
    pub training_id: Uuid,
    /// Directory of the adapter.
    pub path: PathBuf,
    /// When it was registered.
    pub created: Timestamp,
    /// The adapter's `peft_type`.
    pub peft_type: String,
    /// Its weights and configuration.
    pub files: Vec<KnownFile>,
}

/// A file of an input as it was when it was registered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownFile {
    /// Name within its directory.
    pub name: String,
    /// What the file system said of it; while that is the same, the digest holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stamp: Option<Stamp>,
    /// SHA-256, once somebody read the file through.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<Digest>,
}

/// A model in figures, all read from its headers.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ModelSummary {
    /// First of `architectures` in `config.json`, or its `model_type`.
    pub architecture: String,
    /// Elements of all tensors.
    pub parameters: u64,
    /// Element type of most of them.
    pub dtype: String,
    /// Bytes of the weights' files.
    pub bytes: u64,
}

/// A whole model in the home.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CompleteModel {
    /// Its name, and that of its directory.
    pub name: ModelName,
    /// The Saving that made it.
    pub saving: Uuid,
    /// Name of the Customized Model that was saved.
    pub customized: ModelName,
    /// Name of the Base Model.
    pub base: ModelName,
    /// When it was whole.
    pub created: Timestamp,
    /// What it is, in figures.
    pub model: ModelSummary,
    /// Bytes of all its files.
    pub bytes: u64,
}

/// The act of merging a Customized Model into a Complete Model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Saving {
    /// Its UUID.
    pub id: Uuid,
    /// Name that the Complete Model will have.
    pub model: ModelName,
    /// Name of the Customized Model.
    pub customized: ModelName,
    /// Name of the Base Model.
    pub base: ModelName,
    /// Directory of the base: nobody may delete it meanwhile.
    pub base_path: PathBuf,
    /// How far it is.
    pub state: JobState,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Disk that it needs.
    #[serde(default)]
    pub disk_bytes: u64,
    /// What became of it so far.
    #[serde(flatten)]
    pub course: Course,
}

impl Record for BaseModel {
    const KIND: Kind = Kind::BaseModel;
    fn key(&self) -> String {
        self.name.to_string()
    }
    fn created(&self) -> Timestamp {
        self.created
    }
}

impl Record for CustomizedModel {
    const KIND: Kind = Kind::CustomizedModel;
    fn key(&self) -> String {
        self.name.to_string()
    }
    fn created(&self) -> Timestamp {
        self.created
    }
}

impl Record for CompleteModel {
    const KIND: Kind = Kind::CompleteModel;
    fn key(&self) -> String {
        self.name.to_string()
    }
    fn created(&self) -> Timestamp {
        self.created
    }
}

impl Record for Saving {
    const KIND: Kind = Kind::Saving;
    fn key(&self) -> String {
        self.id.to_string()
    }
    fn created(&self) -> Timestamp {
        self.course.created
    }
    fn is_open(&self) -> bool {
        self.state.is_open()
    }
}
