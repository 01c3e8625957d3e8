//! `tenon.json`: what a merged model was made from, how, and what each file must be.
//!
//! What `tenon merge` writes holds no time and no thread count: the same
//! inputs and parameters give the same directory, byte for byte. A Complete
//! Model's has the facts of its Saving besides.

use std::path::Path;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tenon_checkpoint::{Digest, read_json};
use uuid::Uuid;

use crate::{Error, ModelName, ModelSummary};

/// The manifest of a merged model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of this schema.
    pub schema: u32,
    /// Version of Tenon that wrote it.
    pub tenon: String,
    /// Of a Complete Model: the Saving that made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub saving: Option<SavingFacts>,
    /// The base.
    pub base: ModelInput,
    /// What of the base was stored quantized.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dequantized: Vec<DequantizedTensors>,
    /// The adapter.
    pub adapter: ModelInput,
    /// Further adapters, in the order in which they were merged.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub further_adapters: Vec<ModelInput>,
    /// How it was merged.
    pub parameters: MergeParameters,
    /// Numbers of tensors by what happened to them.
    pub tensors: TensorCounts,
    /// What a person should know about the result.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// Every file of the directory but this one, by name.
    pub outputs: Vec<OutputFile>,
}

/// The Saving that made a Complete Model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SavingFacts {
    /// Its UUID.
    pub id: Uuid,
    /// Name of the Complete Model.
    pub name: ModelName,
    /// The Customized Model that was saved.
    pub customized: CustomizedFacts,
    /// Name of the Base Model.
    pub base: ModelName,
    /// When the merge began.
    pub started: Timestamp,
    /// When all files were written.
    pub finished: Timestamp,
    /// Seconds that merging took.
    pub seconds: f64,
    /// What the model is, in figures.
    pub model: ModelSummary,
}

/// A Customized Model as a manifest keeps it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CustomizedFacts {
    /// Its name.
    pub name: ModelName,
    /// Name of the training.
    pub train_name: ModelName,
    /// UUID of the training.
    pub training_id: Uuid,
    /// When it was registered.
    pub created: Timestamp,
}

/// A directory that went into a merge.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelInput {
    /// Absolute path at the time.
    pub path: String,
    /// Repository on the Hugging Face Hub, where the path tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repository: Option<String>,
    /// Its revision.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// The files that were read.
    pub files: Vec<InputFile>,
}

/// Tensors of the base that were stored in one quantized format, and dequantized.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DequantizedTensors {
    /// The format, such as `GPTQ 4 bit, groups of 128`.
    pub format: String,
    /// How many there are.
    pub tensors: usize,
}

/// A file that was read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InputFile {
    /// Name within its directory.
    pub name: String,
    /// Size.
    pub bytes: u64,
    /// SHA-256.
    pub sha256: Digest,
}

/// A file that was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputFile {
    /// Name within the model's directory.
    pub name: String,
    /// Size.
    pub bytes: u64,
    /// SHA-256.
    pub sha256: Digest,
}

/// How adapters were combined before they were merged, by PEFT's names.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CombinationParameters {
    /// `combination_type`.
    pub how: String,
    /// Share of elements that pruning kept.
    pub density: f64,
    /// `majority_sign_method`.
    pub majority_sign: String,
    /// `svd_rank`, where it was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rank: Option<u64>,
    /// What decided the elements that were kept at random.
    pub seed: u64,
}

/// How a merge was done.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MergeParameters {
    /// The adapter's `peft_type`; those of several, each once.
    pub peft_type: String,
    /// The adapters' weights; none for one adapter that counts in full.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub weights: Vec<f64>,
    /// How the adapters were combined. Without it they were merged one after the other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub combination: Option<CombinationParameters>,
    /// `auto`, `f32`, `f16` or `bf16`.
    pub dtype: String,
    /// Tensor bytes in a shard at most.
    pub max_shard_size: u64,
    /// Whether values that are not finite were let through.
    pub allow_non_finite: bool,
}

/// Numbers of tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[allow(missing_docs)] // as in `tenon_merge::Fate`
pub struct TensorCounts {
    pub copied: usize,
    pub converted: usize,
    pub edited: usize,
    pub replaced: usize,
    pub added: usize,
}

impl Manifest {
    /// Its name in the directory.
    pub const FILE: &'static str = "tenon.json";
    /// The schema written by this version.
    pub const SCHEMA: u32 = 1;

    /// Its text.
    pub fn to_text(&self) -> String {
        let mut text = serde_json::to_string_pretty(self).expect("texts, numbers and lists always serialize");
        text.push('\n');
        text
    }

    /// Reads the manifest of a model directory. File names in it are plain names.
    pub fn read(dir: &Path) -> Result<Self, Error> {
        let path = dir.join(Self::FILE);
        let manifest: Self = read_json(&path)?;
        let fault = |reason: String| Err(Error::Manifest { path: path.clone(), reason });
        if manifest.schema != Self::SCHEMA {
            return fault(format!("schema {} where {} was expected", manifest.schema, Self::SCHEMA));
        }
        let is_plain =
            |name: &str| !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\\', '\0']);
        if let Some(file) = manifest.outputs.iter().find(|file| !is_plain(&file.name)) {
            return fault(format!("the file name {:?} leads out of the directory", file.name));
        }
        Ok(manifest)
    }

    /// Bytes of all files but the manifest.
    pub fn output_bytes(&self) -> u64 {
        self.outputs.iter().map(|file| file.bytes).fold(0, u64::saturating_add)
    }
}
