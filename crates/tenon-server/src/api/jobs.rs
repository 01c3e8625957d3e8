//! Jobs: Savings and deployments, begun, watched, stopped, begun again.

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use serde::{Deserialize, Serialize};
use tenon::{Deployment, DeploymentPlan, DeploymentRequest, Quantization, QuantizeOn, Saving, Uuid};
use utoipa::ToSchema;

use crate::app::App;
use crate::extract::{Body, Path, Query};
use crate::problem::{Code, Problem, ProblemBody};
use crate::query::{self, ListQuery, Page};
use crate::view::{Job, JobState};
use crate::work::LogLine;

/// A Saving about to be queued.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewSaving {
    /// Name of the Customized Model.
    #[schema(min_length = 1, max_length = 200)]
    customized: String,
}

/// Saves a Customized Model: queues the job that merges it into a Complete Model.
#[utoipa::path(post, path = "/savings", tag = "Jobs", operation_id = "save",
    params(("idempotency-key" = Option<String>, Header, description = "Sent again with the same key, the request is not done again", max_length = 128, min_length = 1)),
    request_body = NewSaving,
    responses((status = 202, description = "It is queued", body = Job),
              (status = 404, description = "There is no such Customized Model", body = ProblemBody, content_type = "application/problem+json"),
              (status = 507, description = "The disk has no room for it", body = ProblemBody, content_type = "application/problem+json")))]
pub(crate) async fn save(State(app): State<App>, Body(new): Body<NewSaving>) -> Result<Response, Problem> {
    app.change(move |app| queue(app, &new.customized)).await
}

fn queue(app: &App, customized: &str) -> Result<Response, Problem> {
    if app.is_stopping() {
        return Err(Problem::new(Code::Stopping, "the server is stopping"));
    }
    // Dropped, it waits in the queue for a thread that works.
    let saving = app.tenon.queue(customized)?.saving;
    Ok(super::created(StatusCode::ACCEPTED, &format!("jobs/{}", saving.id), Job::from(&saving)))
}

/// The jobs.
#[utoipa::path(get, path = "/jobs", tag = "Jobs", operation_id = "list_jobs",
    params(ListQuery),
    responses((status = 200, description = "A part of the list", body = Page<Job>),
              (status = 304, description = "As it was (If-None-Match)")))]
pub(crate) async fn list(
    State(app): State<App>,
    Query(query): Query<ListQuery>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    query::answer(&app.lists.now().jobs, app.events.epoch(), &query, &headers)
}

/// One job.
#[utoipa::path(get, path = "/jobs/{id}", tag = "Jobs", operation_id = "get_job",
    params(("id" = Uuid, Path, description = "Its UUID")),
    responses((status = 200, description = "The job", body = Job)))]
pub(crate) async fn get(State(app): State<App>, Path(id): Path<Uuid>) -> Result<Json<Job>, Problem> {
    app.verb(move |app| {
        Ok(Json(match find(app, id)? {
            Found::Saving(saving) => Job::from(&saving),
            Found::Deployment(deployment) => Job::from(&deployment),
        }))
    })
    .await
}

/// What happened to a job.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct JobLog {
    /// In the order of time.
    lines: Vec<LogLine>,
}

/// What happened to a job: what its record tells, and what this server saw.
#[utoipa::path(get, path = "/jobs/{id}/log", tag = "Jobs", operation_id = "get_job_log",
    params(("id" = Uuid, Path, description = "Its UUID")),
    responses((status = 200, description = "The log", body = JobLog)))]
pub(crate) async fn log(State(app): State<App>, Path(id): Path<Uuid>) -> Result<Json<JobLog>, Problem> {
    app.verb(move |app| {
        let lines = match find(app, id)? {
            Found::Saving(saving) => app.logs.of_saving(&saving),
            Found::Deployment(deployment) => app.logs.of_deployment(&deployment),
        };
        Ok(Json(JobLog { lines }))
    })
    .await
}

/// Asks to stop a job. It ends within moments, and leaves nothing behind.
#[utoipa::path(post, path = "/jobs/{id}/cancel", tag = "Jobs", operation_id = "cancel_job",
    params(("id" = Uuid, Path, description = "Its UUID")),
    responses((status = 202, description = "It was asked to stop", body = Job),
              (status = 409, description = "It has ended already", body = ProblemBody, content_type = "application/problem+json")))]
pub(crate) async fn cancel(
    State(app): State<App>,
    Path(id): Path<Uuid>,
) -> Result<(StatusCode, Json<Job>), Problem> {
    app.change(move |app| {
        let job = match find(app, id)? {
            Found::Saving(_) => Job::from(&app.tenon.registry().cancel(id)?),
            Found::Deployment(_) => Job::from(&app.tenon.cancel_deployment(id)?),
        };
        Ok((StatusCode::ACCEPTED, Json(job)))
    })
    .await
}

/// Begins a job that failed or was cancelled again, as a new one.
#[utoipa::path(post, path = "/jobs/{id}/retry", tag = "Jobs", operation_id = "retry_job",
    params(("id" = Uuid, Path, description = "Its UUID"),
           ("idempotency-key" = Option<String>, Header, description = "Sent again with the same key, the request is not done again", max_length = 128, min_length = 1)),
    responses((status = 202, description = "The new job", body = Job),
              (status = 409, description = "It has not failed", body = ProblemBody, content_type = "application/problem+json"),
              (status = 422, description = "What it works on is not there any more or is wrong", body = ProblemBody, content_type = "application/problem+json"),
              (status = 507, description = "The disk has no room for it", body = ProblemBody, content_type = "application/problem+json")))]
pub(crate) async fn retry(State(app): State<App>, Path(id): Path<Uuid>) -> Result<Response, Problem> {
    app.change(move |app| {
        let found = find(app, id)?;
        let state = match &found {
            Found::Saving(saving) => Job::from(saving).state,
            Found::Deployment(deployment) => Job::from(deployment).state,
        };
        if !matches!(state, JobState::Failed | JobState::Cancelled) {
            let detail = "only what failed or was cancelled is begun again";
            return Err(Problem::new(Code::NotRetryable, detail));
        }
        match found {
            Found::Saving(saving) => queue(app, saving.customized.as_str()),
            Found::Deployment(_) => {
                let deployment = app.tenon.retry_deployment(id)?.deployment;
                let location = format!("jobs/{}", deployment.id);
                Ok(super::created(StatusCode::ACCEPTED, &location, Job::from(&deployment)))
            }
        }
    })
    .await
}

/// A job of either kind.
enum Found {
    Saving(Saving),
    Deployment(Deployment),
}

fn find(app: &App, id: Uuid) -> Result<Found, Problem> {
    let key = id.to_string();
    if let Some(saving) = app.tenon.registry().find(&key)? {
        return Ok(Found::Saving(saving));
    }
    let deployment = app.tenon.registry().find(&key)?;
    deployment.map(Found::Deployment).ok_or_else(|| Problem::not_found("job", &key))
}

/// A deployment about to be planned or queued.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewDeployment {
    /// Name of a Complete Model; or of a Customized Model, which is saved first.
    #[schema(min_length = 1, max_length = 200)]
    model: String,
    /// Name of a Deployment Environment.
    #[schema(min_length = 1, max_length = 200)]
    environment: String,
    /// What to quantize to.
    quantization: QuantizationWord,
    /// Who quantizes; Tenon where nothing is said.
    #[serde(default)]
    quantize_on: QuantizeOnWord,
    /// Name of the model there; made of its own and the quantization where nothing is said.
    #[schema(min_length = 1, max_length = 200)]
    name: Option<String>,
    /// Whether to replace a model there that has the name already.
    #[serde(default)]
    replace: bool,
}

/// What a model is quantized to when it is deployed.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, ToSchema)]
#[schema(as = Quantization)]
pub(crate) enum QuantizationWord {
    /// Not at all.
    #[serde(rename = "no_quantization")]
    None,
    /// 8 bits.
    #[serde(rename = "q8_0")]
    Q8_0,
    /// 4 bits mostly, more where it matters.
    #[serde(rename = "q4_K_M")]
    Q4KM,
    /// 4 bits mostly.
    #[serde(rename = "q4_K_S")]
    Q4KS,
}

/// Who quantizes.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(as = QuantizeOn)]
pub(crate) enum QuantizeOnWord {
    /// Tenon: only the quantized bytes travel.
    #[default]
    Tenon,
    /// The server, from the files as they are.
    Server,
}

impl From<NewDeployment> for DeploymentRequest {
    fn from(new: NewDeployment) -> Self {
        let quantization = match new.quantization {
            QuantizationWord::None => Quantization::None,
            QuantizationWord::Q8_0 => Quantization::Q8_0,
            QuantizationWord::Q4KM => Quantization::Q4KM,
            QuantizationWord::Q4KS => Quantization::Q4KS,
        };
        let quantize_on = match new.quantize_on {
            QuantizeOnWord::Tenon => QuantizeOn::Tenon,
            QuantizeOnWord::Server => QuantizeOn::Server,
        };
        let NewDeployment { model, environment, name, replace, .. } = new;
        Self { model, environment, quantization, quantize_on, name, replace }
    }
}

/// What a deployment would do.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = DeploymentPlan)]
pub(crate) struct DeploymentPlanView {
    /// Name of the Complete Model; null where the Customized Model is saved first.
    complete: Option<String>,
    /// Name of the Customized Model.
    customized: String,
    /// Name of the Deployment Environment.
    environment: String,
    /// Its kind.
    kind: String,
    /// Its address.
    url: String,
    /// Name that the model will have there.
    model: String,
    /// What is sent: `gguf` or `safetensors`.
    sends: String,
    /// Bytes that are sent if none of them are there, where that is known before.
    bytes: Option<u64>,
    /// Name of the Deployment Template File's file.
    template: Option<String>,
    /// What a person should know.
    notes: Vec<String>,
}

impl From<DeploymentPlan> for DeploymentPlanView {
    fn from(plan: DeploymentPlan) -> Self {
        Self {
            complete: plan.complete.map(String::from),
            customized: plan.customized.into(),
            environment: plan.environment.into(),
            kind: plan.kind,
            url: plan.url,
            model: plan.model,
            sends: plan.sends.into(),
            bytes: plan.bytes,
            template: plan.template,
            notes: plan.notes,
        }
    }
}

/// Says what a deployment would do. Nothing is changed and no server is asked.
#[utoipa::path(post, path = "/deployments/plan", tag = "Jobs", operation_id = "plan_deployment",
    request_body = NewDeployment,
    responses((status = 200, description = "What it would do", body = DeploymentPlanView),
              (status = 404, description = "There is no such model or environment", body = ProblemBody, content_type = "application/problem+json")))]
pub(crate) async fn plan(
    State(app): State<App>,
    Body(new): Body<NewDeployment>,
) -> Result<Json<DeploymentPlanView>, Problem> {
    app.verb(move |app| Ok(Json(app.tenon.plan_deployment(&new.into())?.into()))).await
}

/// Deploys a Complete Model: queues the job that makes a Live Model of it.
#[utoipa::path(post, path = "/deployments", tag = "Jobs", operation_id = "deploy",
    params(("idempotency-key" = Option<String>, Header, description = "Sent again with the same key, the request is not done again", max_length = 128, min_length = 1)),
    request_body = NewDeployment,
    responses((status = 202, description = "It is queued", body = Job),
              (status = 404, description = "There is no such model or environment", body = ProblemBody, content_type = "application/problem+json"),
              (status = 409, description = "A deployment that does the same is under way", body = ProblemBody, content_type = "application/problem+json"),
              (status = 507, description = "The disk has no room for it", body = ProblemBody, content_type = "application/problem+json")))]
pub(crate) async fn deploy(
    State(app): State<App>,
    Body(new): Body<NewDeployment>,
) -> Result<Response, Problem> {
    app.change(move |app| {
        if app.is_stopping() {
            return Err(Problem::new(Code::Stopping, "the server is stopping"));
        }
        let deployment = app.tenon.queue_deployment(&new.into())?.deployment;
        let location = format!("jobs/{}", deployment.id);
        Ok(super::created(StatusCode::ACCEPTED, &location, Job::from(&deployment)))
    })
    .await
}
