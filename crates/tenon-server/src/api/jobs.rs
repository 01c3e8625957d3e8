//! Jobs: Savings begun, jobs of every kind watched, stopped, begun again.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use tenon::{LogStep, Timestamp, Uuid};
use utoipa::ToSchema;

use crate::app::App;
use crate::extract::{Body, Path};
use crate::idempotency::IdempotencyKey;
use crate::problem::{Code, Problem};
use crate::view::Job;

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
    params(IdempotencyKey),
    request_body = NewSaving,
    responses((status = 202, description = "It is queued", body = Job),
              (status = 404, description = "There is no such Customized Model"),
              (status = 507, description = "The disk has no room for it")))]
pub(crate) async fn save(State(app): State<App>, Body(new): Body<NewSaving>) -> Result<Response, Problem> {
    app.change(move |app| {
        refuse_when_stopping(app)?;
        // Dropped, it waits in the queue for a thread that works.
        let saving = app.tenon.queue(&new.customized)?.saving;
        Ok(super::queued(&Job::from(&saving)))
    })
    .await
}

/// One job.
#[utoipa::path(get, path = "/jobs/{id}", tag = "Jobs", operation_id = "get_job",
    params(("id" = Uuid, Path, description = "Its UUID")),
    responses((status = 200, description = "The job", body = Job)))]
pub(crate) async fn get(State(app): State<App>, Path(id): Path<Uuid>) -> Result<Json<Job>, Problem> {
    app.verb(move |app| Ok(Json(Job::from(&app.tenon.job(id)?)))).await
}

/// A line of a job's log.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct LogLine {
    /// When.
    #[schema(value_type = String, format = DateTime)]
    time: Timestamp,
    /// What.
    step: Step,
    /// More about it; may be empty.
    detail: String,
}

/// What a line of a job's log tells.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Step {
    /// It was asked for.
    Queued,
    /// Work on it began.
    Started,
    /// What an earlier attempt had finished was kept.
    Resumed,
    /// A shard is written and synced.
    Shard,
    /// Its process stopped; it waits for another.
    Interrupted,
    /// Somebody asked to stop it.
    Cancelling,
    /// It did what it does at this step (see `detail`).
    #[serde(rename = "step")]
    State,
    /// The other server said so.
    Said,
    /// Its work is done.
    Done,
    /// It ended without a result.
    Failed,
    /// Somebody stopped it.
    Cancelled,
}

impl From<tenon::LogLine> for LogLine {
    fn from(line: tenon::LogLine) -> Self {
        let step = match line.step {
            LogStep::Queued => Step::Queued,
            LogStep::Started => Step::Started,
            LogStep::Resumed => Step::Resumed,
            LogStep::Shard => Step::Shard,
            LogStep::Interrupted => Step::Interrupted,
            LogStep::Cancelling => Step::Cancelling,
            LogStep::Step => Step::State,
            LogStep::Said => Step::Said,
            LogStep::Done => Step::Done,
            LogStep::Failed => Step::Failed,
            LogStep::Cancelled => Step::Cancelled,
        };
        Self { time: line.time, step, detail: line.detail }
    }
}

/// What happened to a job.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct JobLog {
    /// In the order of time.
    lines: Vec<LogLine>,
}

/// What happened to a job: what its record tells, and what those who worked on it wrote down.
#[utoipa::path(get, path = "/jobs/{id}/log", tag = "Jobs", operation_id = "get_job_log",
    params(("id" = Uuid, Path, description = "Its UUID")),
    responses((status = 200, description = "The log", body = JobLog)))]
pub(crate) async fn log(State(app): State<App>, Path(id): Path<Uuid>) -> Result<Json<JobLog>, Problem> {
    app.verb(move |app| {
        let lines = app.tenon.job_log(id)?.into_iter().map(LogLine::from).collect();
        Ok(Json(JobLog { lines }))
    })
    .await
}

/// Asks to stop a job. It ends within moments, and leaves nothing behind.
#[utoipa::path(post, path = "/jobs/{id}/cancel", tag = "Jobs", operation_id = "cancel_job",
    params(("id" = Uuid, Path, description = "Its UUID")),
    responses((status = 202, description = "It was asked to stop", body = Job),
              (status = 409, description = "It has ended already")))]
pub(crate) async fn cancel(
    State(app): State<App>,
    Path(id): Path<Uuid>,
) -> Result<(StatusCode, Json<Job>), Problem> {
    app.change(move |app| Ok((StatusCode::ACCEPTED, Json(Job::from(&app.tenon.cancel_job(id)?))))).await
}

/// Begins a job that failed or was cancelled again, as a new one.
#[utoipa::path(post, path = "/jobs/{id}/retry", tag = "Jobs", operation_id = "retry_job",
    params(("id" = Uuid, Path, description = "Its UUID"),
           IdempotencyKey),
    responses((status = 202, description = "The new job", body = Job),
              (status = 409, description = "It has not failed"),
              (status = 422, description = "What it works on is not there any more or is wrong"),
              (status = 507, description = "The disk has no room for it")))]
pub(crate) async fn retry(State(app): State<App>, Path(id): Path<Uuid>) -> Result<Response, Problem> {
    app.change(move |app| {
        refuse_when_stopping(app)?;
        Ok(super::queued(&Job::from(&app.tenon.retry_job(id)?)))
    })
    .await
}

/// What starts work is refused by a server that stops.
pub(super) fn refuse_when_stopping(app: &App) -> Result<(), Problem> {
    match app.is_stopping() {
        true => Err(Problem::new(Code::Stopping, "the server is stopping")),
        false => Ok(()),
    }
}
