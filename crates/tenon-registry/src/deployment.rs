//! Deployments and Live Models as the catalogue keeps them.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tenon_checkpoint::Digest;
use uuid::Uuid;

use crate::catalogue::{Kind, Record};
use crate::{Course, ModelName, QuantizationQuality, Template};

/// What a model is quantized to when it is deployed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Quantization {
    /// Not at all.
    #[serde(rename = "no_quantization")]
    None,
    /// 8 bits, a scale for each 32.
    #[serde(rename = "q8_0")]
    Q8_0,
    /// 4 bits mostly, more where it matters.
    #[serde(rename = "q4_K_M")]
    Q4KM,
    /// 4 bits mostly.
    #[serde(rename = "q4_K_S")]
    Q4KS,
}

impl Quantization {
    /// All there are.
    pub const ALL: [Quantization; 4] =
        [Quantization::None, Quantization::Q8_0, Quantization::Q4KM, Quantization::Q4KS];

    /// Its word.
    pub fn name(self) -> &'static str {
        match self {
            Quantization::None => "no_quantization",
            Quantization::Q8_0 => "q8_0",
            Quantization::Q4KM => "q4_K_M",
            Quantization::Q4KS => "q4_K_S",
        }
    }
}

impl fmt::Display for Quantization {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Quantization {
    type Err = String;

    /// By its word, in whatever case.
    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|q| q.name().eq_ignore_ascii_case(text)).ok_or_else(|| {
            format!("{text:?} is no quantization; there are {}", Self::ALL.map(Self::name).join(", "))
        })
    }
}

/// Who quantizes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum QuantizeOn {
    /// Tenon, so that only the quantized bytes travel.
    #[default]
    Tenon,
    /// The server, from the files as they are.
    Server,
}

/// The act of bringing a Complete Model, or the adapter of a Customized Model, to a Deployment Environment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Deployment {
    /// Its UUID.
    pub id: Uuid,
    /// Name of the Complete Model; none where an adapter is deployed as one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub complete: Option<ModelName>,
    /// The Saving that made it, or is to make it first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub saving: Option<Uuid>,
    /// Name of the Customized Model whose adapter is deployed as one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adapter: Option<ModelName>,
    /// Name of the Deployment Environment.
    pub environment: ModelName,
    /// Name of the model there.
    pub model: String,
    /// What it is quantized to.
    pub quantization: Quantization,
    /// Who does that.
    #[serde(default)]
    pub quantize_on: QuantizeOn,
    /// Whether a model there that has the name already, and that Tenon did not put there from the
    /// same Complete Model, is replaced.
    #[serde(default)]
    pub replace: bool,
    /// The Deployment Template File as it was when this was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<Template>,
    /// How far it is.
    pub state: DeploymentState,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What to do about that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
    /// What it may have left in the environment without there being a Live Model.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left_there: Vec<String>,
    /// The last that was heard of it, such as what the server said it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub said: Option<String>,
    /// Bytes that were sent, over all attempts; what was there already is not among them.
    #[serde(default)]
    pub sent_bytes: u64,
    /// From here on, a model with the name there is this one's.
    #[serde(default)]
    pub claimed: bool,
    /// What became of it so far.
    #[serde(flatten)]
    pub course: Course,
}

/// How far a deployment is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeploymentState {
    /// Waits for its turn, or for the Saving of its model.
    Queued,
    /// Looks whether the environment can take it.
    Checking,
    /// Makes what is sent, or finds it made.
    Quantizing,
    /// Sends it.
    Uploading,
    /// The server makes a model of it.
    Creating,
    /// Sees that the model is the one ordered, and answers.
    Verifying,
    /// There is a Live Model.
    Live,
    /// It ended without one, for its `reason`.
    Failed,
    /// Somebody stopped it.
    Cancelled,
}

impl DeploymentState {
    /// Its word.
    pub fn name(self) -> &'static str {
        match self {
            DeploymentState::Queued => "queued",
            DeploymentState::Checking => "checking",
            DeploymentState::Quantizing => "quantizing",
            DeploymentState::Uploading => "uploading",
            DeploymentState::Creating => "creating",
            DeploymentState::Verifying => "verifying",
            DeploymentState::Live => "live",
            DeploymentState::Failed => "failed",
            DeploymentState::Cancelled => "cancelled",
        }
    }

    /// Whether it has not ended.
    pub fn is_open(self) -> bool {
        !matches!(self, DeploymentState::Live | DeploymentState::Failed | DeploymentState::Cancelled)
    }
}

impl Deployment {
    /// Whether another one would do the same.
    pub fn is_same(&self, other: &Deployment) -> bool {
        self.is_for(other)
            && self.complete == other.complete
            && self.adapter == other.adapter
            && self.quantization == other.quantization
            && self.quantize_on == other.quantize_on
            && self.template == other.template
    }

    /// Whether another one is for the same name in the same environment.
    pub fn is_for(&self, other: &Deployment) -> bool {
        self.environment == other.environment && self.model.eq_ignore_ascii_case(&other.model)
    }

    /// Name of what is deployed: of the Complete Model, or of the Customized Model whose adapter it is.
    pub fn subject(&self) -> &str {
        self.complete.as_ref().or(self.adapter.as_ref()).map_or("", ModelName::as_str)
    }

    /// What it may leave in the environment when it ends now and nobody asks the server.
    pub(crate) fn may_leave(&self) -> Vec<String> {
        let mut left = vec![];
        if self.claimed {
            left.push(format!("perhaps the model {}", self.model));
        }
        if self.sent_bytes > 0 {
            left.push(format!("{} bytes of files that were sent", self.sent_bytes));
        }
        left
    }
}

/// The record that a Complete Model was deployed to an environment, or an adapter as one.
///
/// It stands by itself: what it tells stays when the Complete Model or the environment goes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LiveModel {
    /// Name of the Deployment Environment.
    pub environment: ModelName,
    /// Its kind.
    pub kind: String,
    /// Its address.
    pub url: String,
    /// Name of the model there.
    pub model: String,
    /// The server's own digest of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// SHA-256 of the weights there, where the server tells.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub weights: Vec<Digest>,
    /// Of everything that was ordered: the same order has the same.
    pub order: Digest,
    /// What it was quantized to.
    pub quantization: Quantization,
    /// What that cost, where Tenon quantized.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quality: Option<QuantizationQuality>,
    /// Bytes of the files that it was made of.
    pub bytes: u64,
    /// Name of the Complete Model; none where an adapter was deployed as one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub complete: Option<ModelName>,
    /// The Saving that made that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub saving: Option<Uuid>,
    /// Name of the Customized Model that was saved, or whose adapter it is.
    pub customized: ModelName,
    /// Name of its Base Model.
    pub base: ModelName,
    /// The deployment that made it live.
    pub deployment: Uuid,
    /// When that was.
    pub created: Timestamp,
    /// When it was last looked after.
    pub checked: Timestamp,
    /// What was seen then.
    pub condition: LiveCondition,
    /// What a person should know of that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// What the last check of a Live Model saw.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LiveCondition {
    /// It is there, the same, and answers.
    Live,
    /// The environment does not have it any more.
    Missing,
    /// Another model has its name there.
    Changed,
    /// It is there and the same, and does not answer.
    Silent,
    /// The environment could not be asked.
    Unreachable,
}

impl LiveCondition {
    /// Its word.
    pub fn name(self) -> &'static str {
        match self {
            LiveCondition::Live => "live",
            LiveCondition::Missing => "missing",
            LiveCondition::Changed => "changed",
            LiveCondition::Silent => "silent",
            LiveCondition::Unreachable => "unreachable",
        }
    }
}

impl LiveModel {
    /// The name it is found by: `environment/model`.
    pub fn name(&self) -> String {
        format!("{}/{}", self.environment, self.model)
    }

    /// Name of what was deployed: of the Complete Model, or of the Customized Model whose adapter it is.
    pub fn subject(&self) -> &ModelName {
        self.complete.as_ref().unwrap_or(&self.customized)
    }
}

impl Record for Deployment {
    const KIND: Kind = Kind::Deployment;
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

impl Record for LiveModel {
    const KIND: Kind = Kind::LiveModel;
    fn key(&self) -> String {
        self.name()
    }
    fn created(&self) -> Timestamp {
        self.created
    }
}
