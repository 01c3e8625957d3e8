//! Complete Models: found, read, verified, deleted.

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use tenon::TaskRequest;
use utoipa::{IntoParams, ToSchema};

use crate::app::App;
use crate::extract::{Path, Query};
use crate::idempotency::IdempotencyKey;
use crate::problem::{Code, Problem};
use crate::view::{CompleteModelView, Job};

/// A Complete Model and what is in it.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct CompleteModelDetail {
    /// Its record.
    #[serde(flatten)]
    model: CompleteModelView,
    /// Where it lies on the server.
    path: String,
    /// Its manifest, `tenon.json`.
    #[schema(value_type = Object)]
    manifest: serde_json::Value,
}

/// One Complete Model.
#[utoipa::path(get, path = "/complete-models/{name}", tag = "Complete Models", operation_id = "get_complete_model",
    params(("name" = String, Path, description = "Its name")),
    responses((status = 200, description = "The model", body = CompleteModelDetail)))]
pub(crate) async fn get(
    State(app): State<App>,
    Path(name): Path<String>,
) -> Result<Json<CompleteModelDetail>, Problem> {
    app.verb(move |app| {
        let (model, manifest) = app.tenon.show(&name)?;
        let path = app.tenon.registry().home().complete(&model.name).display().to_string();
        let manifest =
            serde_json::to_value(&manifest).map_err(|e| Problem::new(Code::Internal, e.to_string()))?;
        let listed =
            app.lists.now().complete.items.iter().find(|listed| model.name.as_str() == listed.name).cloned();
        let model = listed.unwrap_or_else(|| CompleteModelView::new(&model));
        Ok(Json(CompleteModelDetail { model, path, manifest }))
    })
    .await
}

/// Removes a Complete Model and what was made from it, for good. Its Live Models stay as they are.
#[utoipa::path(delete, path = "/complete-models/{name}", tag = "Complete Models", operation_id = "delete_complete_model",
    params(("name" = String, Path, description = "Its name")),
    responses((status = 204, description = "It is gone"),
              (status = 409, description = "It is read at the moment")))]
pub(crate) async fn delete(State(app): State<App>, Path(name): Path<String>) -> Result<StatusCode, Problem> {
    app.change(move |app| {
        app.tenon.delete(&name)?;
        Ok(StatusCode::NO_CONTENT)
    })
    .await
}

/// How a Model Card is wanted.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct CardQuery {
    /// The facts as JSON where nothing is said.
    #[param(inline, nullable = false)]
    format: Option<CardFormat>,
}

/// How a Model Card is written.
#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum CardFormat {
    /// The facts.
    Json,
    /// Markdown with the front matter of the Hugging Face Hub.
    Md,
    /// A page of its own.
    Html,
    /// The card as a part of a page.
    Fragment,
}

/// The Model Card of a Complete Model.
#[utoipa::path(get, path = "/complete-models/{name}/card", tag = "Complete Models", operation_id = "get_model_card",
    params(("name" = String, Path, description = "Its name"), CardQuery),
    responses((status = 200, description = "The card", content(
        (Object = "application/json"), (String = "text/markdown"), (String = "text/html")))))]
pub(crate) async fn card(
    State(app): State<App>,
    Path(name): Path<String>,
    Query(query): Query<CardQuery>,
) -> Result<Response, Problem> {
    let card = app.verb(move |app| Ok(app.tenon.card(&name)?)).await?;
    let (kind, text) = match query.format.unwrap_or(CardFormat::Json) {
        CardFormat::Json => ("application/json", card.json()),
        CardFormat::Md => ("text/markdown; charset=utf-8", card.markdown()),
        CardFormat::Fragment => ("text/html; charset=utf-8", card.html_fragment()),
        CardFormat::Html => {
            let html = card.html();
            let policy = crate::pages::policy_of_card(&html);
            let mut response = ([(header::CONTENT_TYPE, "text/html; charset=utf-8")], html).into_response();
            if let Ok(policy) = HeaderValue::from_str(&policy) {
                response.headers_mut().insert(header::CONTENT_SECURITY_POLICY, policy);
            }
            return Ok(response);
        }
    };
    Ok(([(header::CONTENT_TYPE, kind)], text).into_response())
}

/// How a Complete Model compares with its manifest.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Verification {
    /// Whether everything is as it was.
    intact: bool,
    /// Files that are as they were.
    files: usize,
    /// Bytes that were read.
    bytes: u64,
    /// Files with other bytes.
    changed: Vec<String>,
    /// Files that are gone.
    missing: Vec<String>,
    /// Files that were not there.
    extra: Vec<String>,
}

/// Compares a Complete Model's files with its manifest, byte for byte. Answers when it is through, at the speed of the disk.
#[utoipa::path(post, path = "/complete-models/{name}/verify", tag = "Complete Models", operation_id = "verify_complete_model",
    params(("name" = String, Path, description = "Its name")),
    responses((status = 200, description = "What was found", body = Verification)))]
pub(crate) async fn verify(
    State(app): State<App>,
    Path(name): Path<String>,
) -> Result<Json<Verification>, Problem> {
    app.verb(move |app| {
        let report = app.tenon.verify(&name, &())?;
        let intact = report.is_intact();
        let tenon::VerifyReport { intact: files, bytes, changed, missing, extra } = report;
        Ok(Json(Verification { intact, files, bytes, changed, missing, extra }))
    })
    .await
}

/// Merges a Complete Model again, from what its manifest names, and compares with what is there: queues the job. Its `result` says whether the same came out.
#[utoipa::path(post, path = "/complete-models/{name}/rebuild", tag = "Complete Models", operation_id = "rebuild_complete_model",
    params(("name" = String, Path, description = "Its name"),
           IdempotencyKey),
    responses((status = 202, description = "It is queued", body = Job),
              (status = 422, description = "What it was made of is not there any more")))]
pub(crate) async fn rebuild(State(app): State<App>, Path(name): Path<String>) -> Result<Response, Problem> {
    app.change(move |app| super::verbs::begin(app, &TaskRequest::Rebuild { complete: name }, false)).await
}
