//! What verbs made into the home's `results/`: listed, taken away, removed.

use std::time::UNIX_EPOCH;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode};
use axum::response::Response;
use serde::Serialize;
use tenon::{Outcome, OutcomeFile, Timestamp};
use utoipa::ToSchema;

use crate::app::App;
use crate::extract::{Path, Query};
use crate::files;
use crate::list::{List, Listed};
use crate::problem::Problem;
use crate::query::{self, ListQuery, Page};

/// Something that a verb made.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[schema(as = Outcome)]
pub(crate) struct OutcomeView {
    /// Its name.
    pub(crate) name: String,
    /// `adapter`, `model`, `gguf`; `other` where it is none of these.
    pub(crate) kind: String,
    /// Where it lies on the server.
    pub(crate) path: String,
    /// When it was whole.
    #[schema(value_type = String, format = DateTime)]
    pub(crate) created: Timestamp,
    /// Bytes of all its files.
    pub(crate) bytes: u64,
    /// Number of its files.
    pub(crate) files: usize,
}

impl From<&Outcome> for OutcomeView {
    fn from(outcome: &Outcome) -> Self {
        Self {
            name: outcome.name.to_string(),
            kind: outcome.kind.into(),
            path: outcome.path.display().to_string(),
            created: outcome.created,
            bytes: outcome.bytes,
            files: outcome.files.len(),
        }
    }
}

impl Listed for OutcomeView {
    fn name(&self) -> &str {
        &self.name
    }
    fn created(&self) -> Timestamp {
        self.created
    }
    fn texts(&self) -> Vec<&str> {
        vec![&self.name, &self.kind]
    }
    fn bytes(&self) -> u64 {
        self.bytes
    }
    fn state(&self) -> Option<&str> {
        Some(&self.kind)
    }
}

/// What verbs made into the home's `results/`. Their `state` is their kind.
#[utoipa::path(get, path = "/results", tag = "Verbs", operation_id = "list_results", params(ListQuery),
    responses((status = 200, description = "A part of the list", body = Page<OutcomeView>),
              (status = 304, description = "As it was (If-None-Match)")))]
pub(crate) async fn list(
    State(app): State<App>,
    Query(query): Query<ListQuery>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    app.verb(move |app| {
        let items: Vec<OutcomeView> = app.tenon.results()?.iter().map(OutcomeView::from).collect();
        // Read from the disk each time: its version is what it says.
        let text = serde_json::to_vec(&items).expect("texts and numbers always serialize");
        let version = tenon::Digest::of(&text).to_string();
        let version = u64::from_str_radix(&version[..16], 16).unwrap_or_default();
        query::answer(&List::new(version, items), app.events.epoch(), &query, &headers)
    })
    .await
}

/// A result and what is in it.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = OutcomeDetail)]
pub(crate) struct OutcomeDetail {
    /// Itself.
    #[serde(flatten)]
    outcome: OutcomeView,
    /// Its files, by name.
    items: Vec<OutcomeFileView>,
}

/// A file of a result.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = OutcomeFile)]
pub(crate) struct OutcomeFileView {
    /// Its name, with those of the folders it is in.
    name: String,
    /// Its size.
    bytes: u64,
}

/// One result, and its files.
#[utoipa::path(get, path = "/results/{name}", tag = "Verbs", operation_id = "get_result",
    params(("name" = String, Path, description = "Its name")),
    responses((status = 200, description = "The result", body = OutcomeDetail)))]
pub(crate) async fn get(
    State(app): State<App>,
    Path(name): Path<String>,
) -> Result<Json<OutcomeDetail>, Problem> {
    app.verb(move |app| {
        let found = app.tenon.result(&name)?;
        let outcome = OutcomeView::from(&found);
        let view = |file: OutcomeFile| OutcomeFileView { name: file.name, bytes: file.bytes };
        Ok(Json(OutcomeDetail { outcome, items: found.files.into_iter().map(view).collect() }))
    })
    .await
}

/// One file of a result; with `Range`, a part of it.
#[utoipa::path(get, path = "/results/{name}/files/{file}", tag = "Verbs", operation_id = "download_result",
    params(("name" = String, Path, description = "Name of the result"), ("file" = String, Path, description = "Name of the file; of a result that is a file, its own"),
           files::PartAsked),
    responses(files::FileSent))]
pub(crate) async fn download(
    State(app): State<App>,
    Path((name, file)): Path<(String, String)>,
    method: Method,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let (path, etag) = app
        .verb(move |app| {
            let found = app.tenon.result(&name)?;
            // Only what is listed is a file of it: no name leads elsewhere.
            let is_listed = found.files.iter().any(|known| known.name == file);
            let path = if found.path.is_dir() { found.path.join(&file) } else { found.path };
            let meta = path.symlink_metadata().ok().filter(|meta| is_listed && meta.is_file());
            let meta = meta.ok_or_else(|| Problem::not_found("file", &file))?;
            // What is made appears whole and is not written to again.
            let since = meta.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
            Ok((path, format!("{:x}-{:x}", meta.len(), since.unwrap_or_default().as_nanos())))
        })
        .await?;
    files::send((), &path, &etag, &method, &headers).await
}

/// Removes a result for good.
#[utoipa::path(delete, path = "/results/{name}", tag = "Verbs", operation_id = "remove_result",
    params(("name" = String, Path, description = "Its name")),
    responses((status = 204, description = "It is gone"),
              (status = 409, description = "A model is registered there, or a job uses it")))]
pub(crate) async fn remove(State(app): State<App>, Path(name): Path<String>) -> Result<StatusCode, Problem> {
    app.change(move |app| {
        app.tenon.remove_result(&name)?;
        Ok(StatusCode::NO_CONTENT)
    })
    .await
}
