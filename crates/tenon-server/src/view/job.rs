//! Jobs of every kind as the API shows them.

use serde::Serialize;
use tenon::{Course, Deployment, DeploymentState, Saving, Task, Timestamp, Uuid};
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

impl Job {
    /// What all jobs tell.
    fn new(id: Uuid, state: JobState, course: &Course) -> Self {
        let &Course { created, started, finished, done_bytes, total_bytes, attempts, cancel, .. } = course;
        Self {
            id,
            kind: JobKind::Saving,
            state,
            model: String::new(),
            customized: None,
            base: None,
            environment: None,
            quantization: None,
            step: None,
            result: None,
            reason: None,
            created,
            started,
            finished,
            done_bytes,
            total_bytes,
            share: if state == JobState::Done { 1.0 } else { course.share() },
            attempts,
            cancelling: cancel && matches!(state, JobState::Queued | JobState::Running),
        }
    }
}

impl From<&Saving> for Job {
    fn from(saving: &Saving) -> Self {
        Self {
            kind: JobKind::Saving,
            model: saving.model.to_string(),
            customized: Some(saving.customized.to_string()),
            base: Some(saving.base.to_string()),
            reason: saving.reason.clone(),
            ..Self::new(saving.id, saving.state.into(), &saving.course)
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
            kind: JobKind::Deployment,
            model: deployment.subject().to_string(),
            environment: Some(deployment.environment.to_string()),
            quantization: Some(deployment.quantization.name().into()),
            step: (state == JobState::Running).then(|| deployment.state.name().into()),
            reason,
            ..Self::new(deployment.id, state, &deployment.course)
        }
    }
}

impl From<&Task> for Job {
    fn from(task: &Task) -> Self {
        let state = task.state.into();
        Self {
            kind: match task.verb.as_str() {
                "merge" => JobKind::Merge,
                "blend" => JobKind::Blend,
                "combine" => JobKind::Combine,
                "gguf" => JobKind::Gguf,
                _ => JobKind::Rebuild,
            },
            model: task.subject.clone(),
            quantization: task.request["quantization"].as_str().map(str::to_string),
            result: task.result.clone(),
            reason: task.reason.clone(),
            ..Self::new(task.id, state, &task.course)
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
