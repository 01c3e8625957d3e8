//! Records as the API shows them.
//!
//! Types of their own, so that what a client relies on changes only when somebody means it to.

mod job;

use std::collections::BTreeMap;

use serde::Serialize;
use tenon::{
    BaseModel, CompleteModel, CustomizedModel, DeploymentEnvironment, LiveModel, ModelSummary,
    QuantizationQuality, Timestamp, Uuid,
};
use utoipa::ToSchema;

pub(crate) use job::{Job, JobState};

/// A model in figures.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub(crate) struct Figures {
    /// First of `architectures` in `config.json`.
    pub(crate) architecture: String,
    /// Elements of all tensors.
    pub(crate) parameters: u64,
    /// Element type of most of them.
    pub(crate) dtype: String,
    /// Bytes of the weights' files.
    pub(crate) bytes: u64,
}

impl From<&ModelSummary> for Figures {
    fn from(model: &ModelSummary) -> Self {
        let ModelSummary { architecture, parameters, dtype, bytes } = model.clone();
        Self { architecture, parameters, dtype, bytes }
    }
}

/// A whole model, merged from a Customized Model and needing neither it nor its base.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[schema(as = CompleteModel)]
pub(crate) struct CompleteModelView {
    /// Its name.
    pub(crate) name: String,
    /// Name of the Customized Model that was saved.
    pub(crate) customized: String,
    /// Name of the Base Model.
    pub(crate) base: String,
    /// The Saving that made it.
    pub(crate) saving: Uuid,
    /// When it was whole.
    #[schema(value_type = String, format = DateTime)]
    pub(crate) created: Timestamp,
    /// Bytes of all its files.
    pub(crate) bytes: u64,
    /// Where it is in its life.
    pub(crate) state: ModelState,
    /// Live Models that were made of it.
    pub(crate) live_models: usize,
    /// In figures.
    pub(crate) model: Figures,
}

/// Where a Complete Model is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ModelState {
    /// Whole, and nowhere deployed.
    Whole,
    /// Being deployed.
    Deploying,
    /// There is a Live Model of it.
    Live,
}

impl ModelState {
    /// As it is written.
    pub(crate) fn word(self) -> &'static str {
        match self {
            ModelState::Whole => "whole",
            ModelState::Deploying => "deploying",
            ModelState::Live => "live",
        }
    }
}

impl CompleteModelView {
    pub(crate) fn new(model: &CompleteModel) -> Self {
        Self {
            name: model.name.to_string(),
            customized: model.customized.to_string(),
            base: model.base.to_string(),
            saving: model.saving,
            created: model.created,
            bytes: model.bytes,
            state: ModelState::Whole,
            live_models: 0,
            model: Figures::from(&model.model),
        }
    }
}

/// An adapter linked to its Base Model.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[schema(as = CustomizedModel)]
pub(crate) struct CustomizedModelView {
    /// Its name.
    pub(crate) name: String,
    /// Name of its Base Model.
    pub(crate) base: String,
    /// Name of the training.
    pub(crate) train_name: String,
    /// UUID of the training.
    pub(crate) training_id: Uuid,
    /// Directory of the adapter.
    pub(crate) path: String,
    /// When it was registered.
    #[schema(value_type = String, format = DateTime)]
    pub(crate) created: Timestamp,
    /// The adapter's `peft_type`.
    pub(crate) method: String,
}

impl From<&CustomizedModel> for CustomizedModelView {
    fn from(model: &CustomizedModel) -> Self {
        Self {
            name: model.name.to_string(),
            base: model.base.to_string(),
            train_name: model.train_name.to_string(),
            training_id: model.training_id,
            path: model.path.display().to_string(),
            created: model.created,
            method: model.peft_type.clone(),
        }
    }
}

/// A pretrained model, registered where it lies.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[schema(as = BaseModel)]
pub(crate) struct BaseModelView {
    /// Its name.
    pub(crate) name: String,
    /// Its directory.
    pub(crate) path: String,
    /// When it was registered.
    #[schema(value_type = String, format = DateTime)]
    pub(crate) created: Timestamp,
    /// Repository on the Hugging Face Hub, where the path tells.
    pub(crate) repository: Option<String>,
    /// Its revision.
    pub(crate) revision: Option<String>,
    /// In figures.
    pub(crate) model: Figures,
    /// Name of the file that its Deployment Template File came from; null where it has none.
    pub(crate) template: Option<String>,
}

impl From<&BaseModel> for BaseModelView {
    fn from(model: &BaseModel) -> Self {
        Self {
            name: model.name.to_string(),
            path: model.path.display().to_string(),
            created: model.created,
            repository: model.repository.clone(),
            revision: model.revision.clone(),
            model: Figures::from(&model.model),
            template: model.template.as_ref().map(|template| template.file.clone()),
        }
    }
}

/// A server that serves models.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[schema(as = DeploymentEnvironment)]
pub(crate) struct EnvironmentView {
    /// Its name.
    pub(crate) name: String,
    /// What kind of server it is.
    pub(crate) kind: String,
    /// Its address.
    pub(crate) url: String,
    /// Whether a key goes with what is sent to it.
    pub(crate) has_key: bool,
    /// Seconds after which it counts as hung when it is silent.
    pub(crate) timeout_seconds: f64,
    /// Options of its kind.
    pub(crate) options: BTreeMap<String, String>,
    /// When it was added.
    #[schema(value_type = String, format = DateTime)]
    pub(crate) created: Timestamp,
    /// What its last test saw; null where there was none.
    pub(crate) tested: Option<TestView>,
}

/// What a test of a Deployment Environment saw.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[schema(as = EnvironmentTest)]
pub(crate) struct TestView {
    /// When.
    #[schema(value_type = String, format = DateTime)]
    pub(crate) at: Timestamp,
    /// Whether it answered.
    pub(crate) answers: bool,
    /// What it is.
    pub(crate) server: Option<String>,
    /// Its version, where it tells.
    pub(crate) version: Option<String>,
    /// Number of models it has.
    pub(crate) models: usize,
    /// Bytes free for models, where it tells.
    pub(crate) free_bytes: Option<u64>,
    /// Why it did not answer.
    pub(crate) reason: Option<String>,
    /// What a person should know.
    pub(crate) notes: Vec<String>,
}

impl From<&DeploymentEnvironment> for EnvironmentView {
    fn from(environment: &DeploymentEnvironment) -> Self {
        let tested = environment.tested.as_ref().map(|test| {
            let condition = test.condition.as_ref();
            TestView {
                at: test.at,
                answers: condition.is_some(),
                server: condition.map(|condition| condition.server.clone()),
                version: condition.and_then(|condition| condition.version.clone()),
                models: condition.map_or(0, |condition| condition.models.len()),
                free_bytes: condition.and_then(|condition| condition.free_bytes),
                reason: test.reason.clone(),
                notes: condition.map(|condition| condition.notes.clone()).unwrap_or_default(),
            }
        });
        Self {
            name: environment.name.to_string(),
            kind: environment.environment.kind.to_string(),
            url: environment.environment.url.clone(),
            has_key: environment.environment.key.is_some(),
            timeout_seconds: environment.environment.timeout_seconds,
            options: environment.environment.options.clone(),
            created: environment.created,
            tested,
        }
    }
}

/// What quantizing cost, over all tensors that were quantized.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[schema(as = QuantizationQuality)]
pub(crate) struct QualityView {
    /// Bits of the file for each element.
    pub(crate) bits_per_weight: f64,
    /// `‖decoded - x‖ / ‖x‖`.
    pub(crate) relative_error: f64,
    /// The same in decibels; null where nothing was lost.
    pub(crate) signal_to_noise: Option<f64>,
    /// Tensors that were quantized.
    pub(crate) tensors: u64,
    /// Name of the tensor that lost most.
    pub(crate) worst_tensor: Option<String>,
    /// Its relative error.
    pub(crate) worst_relative_error: Option<f64>,
}

impl From<&QuantizationQuality> for QualityView {
    fn from(quality: &QuantizationQuality) -> Self {
        let worst = quality.worst.first();
        Self {
            bits_per_weight: quality.bits_per_weight,
            relative_error: quality.relative_error,
            signal_to_noise: quality.signal_to_noise,
            tensors: quality.tensors,
            worst_tensor: worst.map(|tensor| tensor.name.clone()),
            worst_relative_error: worst.map(|tensor| tensor.relative_error),
        }
    }
}

/// The record that a Complete Model was deployed. It stays when that is deleted.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[schema(as = LiveModel)]
pub(crate) struct LiveModelView {
    /// The name it is found by: `environment/model`.
    pub(crate) name: String,
    /// Name of the model there.
    pub(crate) model: String,
    /// Name of the Deployment Environment.
    pub(crate) environment: String,
    /// Its kind.
    pub(crate) kind: String,
    /// Its address.
    pub(crate) url: String,
    /// What it was quantized to.
    pub(crate) quantization: String,
    /// What that cost; null where Tenon quantized nothing.
    pub(crate) quality: Option<QualityView>,
    /// Bytes of the files that it was made of.
    pub(crate) bytes: u64,
    /// Name of the Complete Model; of the Customized Model where its adapter was deployed as one.
    pub(crate) complete: String,
    /// Whether that Complete Model is still there.
    pub(crate) complete_exists: bool,
    /// Name of the Customized Model.
    pub(crate) customized: String,
    /// Name of the Base Model.
    pub(crate) base: String,
    /// When it went live.
    #[schema(value_type = String, format = DateTime)]
    pub(crate) created: Timestamp,
    /// When it was last looked after.
    #[schema(value_type = String, format = DateTime)]
    pub(crate) checked: Timestamp,
    /// What was seen then: `live`, `silent`, `changed`, `missing`, `unreachable`.
    pub(crate) state: String,
    /// What a person should know of that.
    pub(crate) note: Option<String>,
}

impl LiveModelView {
    pub(crate) fn new(live: &LiveModel, complete_exists: bool) -> Self {
        Self {
            name: live.name(),
            model: live.model.clone(),
            environment: live.environment.to_string(),
            kind: live.kind.clone(),
            url: live.url.clone(),
            quantization: live.quantization.name().into(),
            quality: live.quality.as_ref().map(QualityView::from),
            bytes: live.bytes,
            complete: live.subject().to_string(),
            complete_exists,
            customized: live.customized.to_string(),
            base: live.base.to_string(),
            created: live.created,
            checked: live.checked,
            state: live.condition.name().into(),
            note: live.note.clone(),
        }
    }
}
