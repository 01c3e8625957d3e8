//! Adapters that come through the browser: written to a staging directory as they arrive, checked, and
//! registered whole or not at all.

use std::time::Instant;

use axum::extract::multipart::{Field, MultipartError};
use axum::extract::{DefaultBodyLimit, FromRequest, Multipart, Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde::Deserialize;
use tenon::{ModelName, RegistryError, Upload};
use tokio::io::AsyncWriteExt;
use utoipa::{IntoParams, ToSchema};

use crate::app::App;
use crate::extract::Query;
use crate::problem::{Code, Problem};
use crate::view::CustomizedModelView;

/// Where it is, below the interface's prefix.
pub(crate) const PATH: &str = "/customized-models/upload";
/// An upload that is slower for long is cut off.
const BYTES_PER_SECOND: f64 = 64e3;

/// Its size is bounded while it is read.
pub(super) fn any_size() -> DefaultBodyLimit {
    DefaultBodyLimit::disable()
}

/// What an adapter that is uploaded becomes.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct UploadQuery {
    /// Its name among the home's results, where it is kept.
    #[param(min_length = 1, max_length = 200)]
    name: String,
    /// Name of its Base Model.
    #[param(min_length = 1, max_length = 200)]
    base: String,
    /// Name of the training; `name` where nothing is said.
    #[param(min_length = 1, max_length = 200, nullable = false)]
    train_name: Option<String>,
}

/// The files of an adapter.
#[derive(ToSchema)]
#[allow(dead_code)] // for the document
pub(crate) struct UploadFiles {
    /// `adapter_config.json` and one or several files of safetensors.
    #[schema(value_type = Vec<String>, format = Binary)]
    file: Vec<String>,
}

/// Takes an adapter's files (`adapter_config.json`, `*.safetensors`), and registers it if it fits its Base Model. Otherwise nothing of it stays.
#[utoipa::path(post, path = "/customized-models/upload", tag = "Customized Models", operation_id = "upload_customized_model",
    params(UploadQuery),
    request_body(content = UploadFiles, content_type = "multipart/form-data"),
    responses((status = 201, description = "It is registered", body = CustomizedModelView),
              (status = 404, description = "There is no such Base Model"),
              (status = 409, description = "The name is taken"),
              (status = 507, description = "The disk has no room for it")))]
pub(crate) async fn upload(
    State(app): State<App>,
    Query(query): Query<UploadQuery>,
    request: Request,
) -> Result<Response, Problem> {
    super::jobs::refuse_when_stopping(&app)?;
    let busy = |_| Problem::new(Code::Busy, "others upload at the moment").retry_after(10);
    let _one = app.uploads.try_acquire().map_err(busy)?;
    let mut parts = Multipart::from_request(request, &app).await.map_err(|rejection| {
        let code = if rejection.status() == StatusCode::BAD_REQUEST {
            Code::UnsupportedMediaType
        } else {
            Code::MalformedRequest
        };
        Problem::new(code, "the body must be files: Content-Type: multipart/form-data")
    })?;
    let (name, base) = (query.name.clone(), query.base.clone());
    let mut upload = app
        .verb(move |app| {
            let name = ModelName::new(name).map_err(RegistryError::from)?;
            app.tenon.registry().get::<tenon::BaseModel>(&base)?;
            Ok(app.tenon.receive(&name)?)
        })
        .await?;
    let mut pace = Pace { app: &app, begun: Instant::now(), bytes: 0 };
    while let Some(part) = pace.within(parts.next_field()).await? {
        receive(&app, &mut upload, part, &mut pace).await?;
    }
    app.change(move |app| {
        let staged = upload.path().display().to_string();
        let train_name = query.train_name.as_deref().or(Some(&query.name));
        let added = app.tenon.accept(upload, &query.base, train_name).map_err(|error| {
            // It is known by its name, not by where it was on the way.
            Problem::from(error).replace(&staged, &query.name)
        })?;
        Ok(super::customized_models::registered(&added))
    })
    .await
}

/// Writes one file as it arrives.
async fn receive(
    app: &App,
    upload: &mut Upload,
    mut part: Field<'_>,
    pace: &mut Pace<'_>,
) -> Result<(), Problem> {
    let name = part.file_name().unwrap_or_default().to_string();
    let file = upload.file(&name).map_err(Problem::from)?;
    let mut file = tokio::fs::File::from_std(file);
    let failed = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
            Problem::new(Code::DiskFull, format!("the disk has no room for {name}"))
        }
        _ => Problem::new(Code::Internal, format!("{name} cannot be written: {error}")),
    };
    while let Some(chunk) = pace.within(part.chunk()).await? {
        pace.bytes += chunk.len() as u64;
        if pace.bytes > app.options.limits.upload_bytes {
            let limit = app.options.limits.upload_bytes;
            return Err(Problem::new(Code::BodyTooLarge, format!("an adapter may have {limit} bytes")));
        }
        file.write_all(&chunk).await.map_err(failed)?;
    }
    file.flush().await.map_err(failed)
}

/// How an upload goes on.
struct Pace<'a> {
    app: &'a App,
    begun: Instant,
    bytes: u64,
}

impl Pace<'_> {
    /// What arrives next, if it arrives in time.
    async fn within<T>(&self, next: impl Future<Output = Result<T, MultipartError>>) -> Result<T, Problem> {
        let limits = &self.app.options.limits;
        let slow = || Problem::new(Code::RequestTimeout, "the files come too slowly");
        let time = self.begun.elapsed();
        if time > limits.request_time && (self.bytes as f64) < time.as_secs_f64() * BYTES_PER_SECOND {
            return Err(slow());
        }
        let stall = limits.stall_time.min(limits.request_time);
        let next = tokio::time::timeout(stall, next).await.map_err(|_| slow())?;
        next.map_err(|error| {
            Problem::new(Code::MalformedRequest, format!("the files broke off: {}", error.body_text()))
        })
    }
}
