//! The facts of a Model Card: what `card.json` holds.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::deployed::Deployed;

/// Everything known of a Complete Model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Card {
    /// Version of this schema: 1.
    pub schema: u32,
    /// Name of the model.
    pub name: String,
    /// When it was made, RFC 3339.
    pub created: String,
    /// Version of Tenon that made it.
    pub tenon: String,
    /// The Base Model.
    pub base: BaseFacts,
    /// The adapter.
    pub adapter: AdapterFacts,
    /// The model itself.
    pub model: ModelFacts,
    /// What the training left.
    pub training: Training,
    /// What was measured while merging.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measured: Option<Measured>,
    /// What it was made from.
    pub provenance: Provenance,
    /// What a person should know before relying on it.
    #[serde(default)]
    pub notes: Vec<String>,
    /// Where it is live. In the model's own directory, which does not change, there is none of this.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub deployed: Vec<Deployed>,
}

/// The Base Model, from its card and its place.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct BaseFacts {
    /// Its name in the registry.
    pub name: String,
    /// What the Hub calls it, or the adapter's configuration does.
    #[serde(default)]
    pub id: Option<String>,
    /// Its revision on the Hub.
    #[serde(default)]
    pub revision: Option<String>,
    /// `license`, `license_name` and `license_link` of its card.
    #[serde(default)]
    pub license: Option<String>,
    /// See `license`.
    #[serde(default)]
    pub license_name: Option<String>,
    /// See `license`.
    #[serde(default)]
    pub license_link: Option<String>,
    /// Licence texts and notices that came with it and are in the model's directory.
    #[serde(default)]
    pub license_files: Vec<String>,
    /// Languages, as its card or the adapter's has them.
    #[serde(default)]
    pub languages: Vec<String>,
    /// Tags of its card.
    #[serde(default)]
    pub tags: Vec<String>,
    /// Datasets of its card.
    #[serde(default)]
    pub datasets: Vec<String>,
}

/// The adapter, from its configuration.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct AdapterFacts {
    /// Name of the Customized Model.
    pub name: String,
    /// Name of the training.
    pub train_name: String,
    /// UUID of the training.
    pub training_id: String,
    /// The method as people call it: `LoRA`, `DoRA`.
    pub method: String,
    /// Licence of its card, where it differs from the base's.
    #[serde(default)]
    pub license: Option<String>,
    /// Its configuration, field by field; defaults left out.
    pub settings: Vec<Setting>,
}

/// A name and its value.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Setting {
    /// As its source has it.
    pub name: String,
    /// Any JSON.
    pub value: Value,
}

/// What the model works on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Modality {
    /// Continues text: serving tools take it.
    Generation,
    /// Anything else that transformers loads.
    #[default]
    Other,
}

/// The model in figures.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct ModelFacts {
    /// First of `architectures`.
    pub architecture: String,
    /// `pipeline_tag` of the cards, or what the architecture implies.
    #[serde(default)]
    pub pipeline_tag: Option<String>,
    /// What it works on.
    #[serde(default)]
    pub modality: Modality,
    /// Elements of all tensors.
    pub parameters: u64,
    /// Number of tensors.
    pub tensors: u64,
    /// Element types and the bytes in each, most first.
    pub dtypes: Vec<(String, u64)>,
    /// Bytes of the weights.
    pub bytes: u64,
    /// Number of files they are in.
    pub shards: u64,
    /// Sizes from `config.json`: layers, heads, context, vocabulary and the like, by their label.
    pub sizes: Vec<Setting>,
    /// Whether a chat template comes with it.
    #[serde(default)]
    pub chat_template: bool,
}

/// What the training left behind, by the file it was found in.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Training {
    /// Settings and results, grouped.
    #[serde(default)]
    pub groups: Vec<Group>,
    /// Datasets it names.
    #[serde(default)]
    pub datasets: Vec<String>,
    /// Evaluation results.
    #[serde(default)]
    pub metrics: Vec<Metric>,
    /// Loss by step, thinned out.
    #[serde(default)]
    pub losses: Vec<LossPoint>,
}

/// Figures and settings of one file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Group {
    /// What they are.
    pub title: String,
    /// The file.
    pub source: String,
    /// The facts.
    pub entries: Vec<Setting>,
}

/// One evaluation result.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Metric {
    /// What was measured: `loss`, `accuracy`.
    pub name: String,
    /// The value.
    pub value: f64,
    /// The file.
    pub source: String,
}

/// A training loss.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LossPoint {
    /// Optimizer step.
    pub step: f64,
    /// Loss.
    pub loss: f64,
}

/// What was measured while merging, over the tensors that the adapter edited.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Measured {
    /// Tensors edited.
    pub tensors: u64,
    /// Tensors replaced whole or added.
    pub replaced: u64,
    /// Elements of edited, replaced and added tensors among all elements.
    pub share_touched: f64,
    /// Elements whose written value differs from the base's, among those of the edited tensors.
    pub share_changed: f64,
    /// `‖delta‖ / ‖base‖` over all edited tensors together.
    pub relative_delta: f64,
    /// `‖written - exact‖ / ‖exact delta‖`: how much of the change rounding to the output's type costs.
    pub rounding_of_delta: f64,
    /// Largest magnitude added to one element.
    pub largest_delta: f64,
    /// Mean effective rank of the low-rank products: `(sum s²)² / sum s⁴` of their singular values.
    #[serde(default)]
    pub effective_rank: Option<f64>,
    /// By layer.
    pub layers: Vec<Move>,
    /// By kind of module, such as `q_proj`.
    pub modules: Vec<Move>,
    /// The tensors that moved most, relative to their norm.
    pub most: Vec<Move>,
}

/// How far a group of tensors moved.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Move {
    /// Number of the layer, name of the module or tensor.
    pub name: String,
    /// Tensors in it.
    pub tensors: u64,
    /// `‖delta‖ / ‖base‖` over them.
    pub relative_delta: f64,
    /// Largest magnitude added to one element.
    pub largest_delta: f64,
    /// Mean effective rank of the low-rank products in it.
    #[serde(default)]
    pub effective_rank: Option<f64>,
}

/// What the model was made from.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Provenance {
    /// UUID of the Saving.
    pub saving: String,
    /// Seconds that merging took.
    pub seconds: f64,
    /// Files of the base that were read.
    pub base: Vec<FileFacts>,
    /// Files of the adapter that were read.
    pub adapter: Vec<FileFacts>,
    /// The weights written.
    pub weights: Vec<FileFacts>,
    /// The command that makes the same weights again.
    pub command: String,
    /// Versions of the tools of training, where its files tell.
    #[serde(default)]
    pub versions: Vec<Setting>,
}

/// A file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FileFacts {
    /// Name in its directory.
    pub name: String,
    /// Size.
    pub bytes: u64,
    /// SHA-256 in hexadecimal.
    pub sha256: String,
}
