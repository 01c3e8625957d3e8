//! Jobs of every kind as the API shows them.

use serde::Serialize;
use tenon::{Deployment, DeploymentState, Saving, Task, Timestamp, Uuid};
use utoipa::ToSchema;

/// What a job does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum JobKind {
    /// Merges a Customized Model into a Complete Model.
    Saving,
    /// Brings a Complete Model into a Deployment Environment.
    Deployment,
    /// Joins an adapter with its base into a directory.
    Merge,
    /// Merges whole models with one another.
    Blend,
    /// Makes one LoRA adapter of several.
    Combine,
    /// Makes a GGUF file.
    Gguf,
    /// Merges a Complete Model again and compares.
    Rebuild,
}

/// How far a job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, serde::Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum JobState {
    /// Waits for its turn.
    Queued,
    /// A process works on it.
    Running,
    /// Its work is done.
    Done,
    /// It ended without a result, for its `reason`.
    Failed,
    /// Somebody stopped it.
    Cancelled,
}

impl JobState {
    /// As it is written.
    pub(crate) fn word(self) -> &'static str {
        match self {
            JobState::Queued => "queued",
            JobState::Running => "running",
            JobState::Done => "done",
            JobState::Failed => "failed",
            JobState::Cancelled => "cancelled",
        }
    }
}

impl From<tenon::JobState> for JobState {
    fn from(state: tenon::JobState) -> Self {
        match state {
            tenon::JobState::Queued => JobState::Queued,
            tenon::JobState::Running => JobState::Running,
            tenon::JobState::Done => JobState::Done,
            tenon::JobState::Failed => JobState::Failed,
            tenon::JobState::Cancelled => JobState::Cancelled,
        }
    }
}

/// Work in the background: a Saving, a deployment, or another verb.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub(crate) struct Job {
    /// Its UUID.
    pub(crate) id: Uuid,
    /// What it does.
    pub(crate) kind: JobKind,
    /// How far it is.
    pub(crate) state: JobState,
    /// Name of the Complete Model that it makes or deploys, or of the Customized Model whose adapter it deploys; of another verb, that of the directory or file.
    pub(crate) model: String,
    /// Of a Saving: name of the Customized Model.
    pub(crate) customized: Option<String>,
    /// Name of the Base Model.
    pub(crate) base: Option<String>,
    /// Of a deployment: name of the Deployment Environment.
    pub(crate) environment: Option<String>,
    /// Of a deployment: the quantization.
    pub(crate) quantization: Option<String>,
    /// Of a deployment: what it does at the moment.
    pub(crate) step: Option<String>,
    /// Of another verb than a Saving or deployment: what came out of it.
    #[schema(value_type = Option<Object>)]
    pub(crate) result: Option<serde_json::Value>,
    /// Why it failed.
    pub(crate) reason: Option<String>,
    /// When it was asked for.
    #[schema(value_type = String, format = DateTime)]
    pub(crate) created: Timestamp,
    /// When work on it began, last.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub(crate) started: Option<Timestamp>,
    /// When it ended.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub(crate) finished: Option<Timestamp>,
    /// Bytes done.
    pub(crate) done_bytes: u64,
    /// Bytes to do; 0 while that is not known.
    pub(crate) total_bytes: u64,
    /// Part that is done, 0 to 1.
    pub(crate) share: f64,
    /// How often work on it began.
    pub(crate) attempts: u32,
    /// Somebody asked to stop it.
    pub(crate) cancelling: bool,
}

impl From<&Saving> for Job {
    fn from(saving: &Saving) -> Self {
        Self {
            id: saving.id,
            kind: JobKind::Saving,
            state: saving.state.into(),
            model: saving.model.to_string(),
            customized: Some(saving.customized.to_string()),
            base: Some(saving.base.to_string()),
            environment: None,
            quantization: None,
            step: None,
            result: None,
            reason: saving.reason.clone(),
            created: saving.created,
            started: saving.started,
            finished: saving.finished,
            done_bytes: saving.done_bytes,
            total_bytes: saving.total_bytes,
            share: share(saving.state.into(), saving.done_bytes, saving.total_bytes),
            attempts: saving.attempts,
            cancelling: saving.cancel && saving.state.is_open(),
        }
    }
}

impl From<&Deployment> for Job {
    fn from(deployment: &Deployment) -> Self {
        let state = match deployment.state {
            DeploymentState::Queued => JobState::Queued,
            DeploymentState::Live => JobState::Done,
            DeploymentState::Failed => JobState::Failed,
            DeploymentState::Cancelled => JobState::Cancelled,
            _ => JobState::Running,
        };
        let remedy = deployment.remedy.iter().map(|remedy| format!("; {remedy}"));
        let reason = deployment.reason.as_ref().map(|reason| reason.clone() + &remedy.collect::<String>());
        Self {
            id: deployment.id,
            kind: JobKind::Deployment,
            state,
            model: deployment.subject().to_string(),
            customized: None,
            base: None,
            environment: Some(deployment.environment.to_string()),
            quantization: Some(deployment.quantization.name().into()),
            step: (state == JobState::Running).then(|| deployment.state.name().into()),
            result: None,
            reason,
            created: deployment.created,
            started: deployment.started,
            finished: deployment.finished,
            done_bytes: deployment.done_bytes,
            total_bytes: deployment.total_bytes,
            share: share(state, deployment.done_bytes, deployment.total_bytes),
            attempts: deployment.attempts,
            cancelling: deployment.cancel && deployment.state.is_open(),
        }
    }
}

impl From<&Task> for Job {
    fn from(task: &Task) -> Self {
        let state = task.state.into();
        Self {
            id: task.id,
            kind: match task.verb.as_str() {
                "merge" => JobKind::Merge,
                "blend" => JobKind::Blend,
                "combine" => JobKind::Combine,
                "gguf" => JobKind::Gguf,
                _ => JobKind::Rebuild,
            },
            state,
            model: task.subject.clone(),
            customized: None,
            base: None,
            environment: None,
            quantization: task.request["quantization"].as_str().map(str::to_string),
            step: None,
            result: task.result.clone(),
            reason: task.reason.clone(),
            created: task.created,
            started: task.started,
            finished: task.finished,
            done_bytes: task.done_bytes,
            total_bytes: task.total_bytes,
            share: share(state, task.done_bytes, task.total_bytes),
            attempts: task.attempts,
            cancelling: task.cancel && task.state.is_open(),
        }
    }
}

impl From<&tenon::Job> for Job {
    fn from(job: &tenon::Job) -> Self {
        match job {
            tenon::Job::Saving(saving) => saving.into(),
            tenon::Job::Deployment(deployment) => deployment.into(),
            tenon::Job::Task(task) => task.into(),
        }
    }
}

/// Part of the bytes that are done.
fn share(state: JobState, done: u64, total: u64) -> f64 {
    match (state, total) {
        (JobState::Done, _) => 1.0,
        (_, 0) => 0.0,
        _ => (done as f64 / total as f64).min(1.0),
    }
}
