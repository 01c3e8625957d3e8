//! Files sent, whole or in ranges: those of a Complete Model, and the GGUF files kept with it.

use std::io::SeekFrom;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use tenon::{CompleteModel, Held, KeptGguf, Manifest, OutputFile};
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio_stream::StreamExt;
use tokio_util::io::ReaderStream;
use utoipa::{IntoParams, IntoResponses, ToSchema};

use crate::app::App;
use crate::extract::Path;
use crate::problem::{Code, Problem};
use crate::view::QualityView;

/// Bytes read at a time.
const BUFFER: usize = 256 << 10;

/// What handlers that send files say of `Range` in the document.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
#[allow(dead_code)] // read by `send`
pub(crate) struct PartAsked {
    /// bytes=FROM-TO: which part
    #[param(max_length = 100)]
    range: Option<String>,
}

/// What handlers that send files say of their answers in the document.
#[derive(IntoResponses)]
#[allow(dead_code)] // made by `send`
pub(crate) enum FileSent {
    /// The file
    #[response(status = 200, content_type = "application/octet-stream")]
    Whole(Vec<u8>),
    /// The part
    #[response(status = 206, content_type = "application/octet-stream")]
    Part(Vec<u8>),
    /// As it was (If-None-Match)
    #[response(status = 304)]
    AsItWas,
    /// The file does not have these bytes
    #[response(status = 416)]
    NoSuchBytes,
}

/// A file of a Complete Model.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct FileView {
    /// Its name.
    name: String,
    /// Its size.
    bytes: u64,
    /// Its SHA-256.
    sha256: String,
}

/// The files of a Complete Model.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Files {
    /// By name; `tenon.json`, which tells of them, is not among them.
    items: Vec<FileView>,
}

/// The files of a Complete Model.
#[utoipa::path(get, path = "/complete-models/{name}/files", tag = "Complete Models", operation_id = "list_files",
    params(("name" = String, Path, description = "Name of the model")),
    responses((status = 200, description = "The files", body = Files)))]
pub(crate) async fn list(State(app): State<App>, Path(name): Path<String>) -> Result<Json<Files>, Problem> {
    app.verb(move |app| {
        let (_, manifest) = app.tenon.show(&name)?;
        let view = |file: OutputFile| FileView {
            name: file.name,
            bytes: file.bytes,
            sha256: file.sha256.to_string(),
        };
        Ok(Json(Files { items: manifest.outputs.into_iter().map(view).collect() }))
    })
    .await
}

/// One file of a Complete Model; with `Range`, a part of it.
///
/// Its `ETag` is its SHA-256. The model cannot be deleted while its file is sent.
#[utoipa::path(get, path = "/complete-models/{name}/files/{file}", tag = "Complete Models", operation_id = "download_file",
    params(("name" = String, Path, description = "Name of the model"), ("file" = String, Path, description = "Name of the file"),
           PartAsked),
    responses(FileSent, (status = 409, description = "It is being deleted")))]
pub(crate) async fn download(
    State(app): State<App>,
    Path((name, file)): Path<(String, String)>,
    method: Method,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let (held, path, etag) = app.verb(move |app| open(app, &name, &file)).await?;
    send(held, &path, &etag, &method, &headers).await
}

/// Answers with a file, or the part of it that is asked for. `held` is kept until the last byte is sent.
pub(crate) async fn send(
    held: impl Send + 'static,
    path: &std::path::Path,
    etag: &str,
    method: &Method,
    headers: &HeaderMap,
) -> Result<Response, Problem> {
    let failed =
        |error: std::io::Error| Problem::new(Code::Internal, format!("the file cannot be read: {error}"));
    let mut file = tokio::fs::File::open(path).await.map_err(failed)?;
    let len = file.metadata().await.map_err(failed)?.len();
    let quoted = format!("\"{etag}\"");
    let is_known =
        |name: HeaderName| headers.get(name).is_some_and(|tag| tag.as_bytes() == quoted.as_bytes());
    let mut head = HeaderMap::new();
    put(&mut head, header::ETAG, &quoted);
    put(&mut head, header::ACCEPT_RANGES, "bytes");
    if is_known(header::IF_NONE_MATCH) {
        return Ok((StatusCode::NOT_MODIFIED, head).into_response());
    }
    // A part of another file than the client thinks is of no use to it.
    let ranged = !headers.contains_key(header::IF_RANGE) || is_known(header::IF_RANGE);
    let range = headers.get(header::RANGE).filter(|_| ranged).and_then(|range| range.to_str().ok());
    let (status, from, to) = match range.map_or(Asked::Whole, |range| asked(range, len)) {
        Asked::Whole => (StatusCode::OK, 0, len),
        Asked::Part(from, to) => (StatusCode::PARTIAL_CONTENT, from, to),
        Asked::Nothing => {
            let problem = Problem::new(Code::RangeNotSatisfiable, format!("the file has {len} bytes"));
            let mut response = problem.into_response();
            let whole = HeaderValue::from_str(&format!("bytes */{len}")).expect("printable");
            response.headers_mut().insert(header::CONTENT_RANGE, whole);
            return Ok(response);
        }
    };
    if status == StatusCode::PARTIAL_CONTENT {
        put(&mut head, header::CONTENT_RANGE, &format!("bytes {from}-{}/{len}", to - 1));
    }
    put(&mut head, header::CONTENT_LENGTH, &(to - from).to_string());
    put(&mut head, header::CONTENT_TYPE, "application/octet-stream");
    // Whatever is in it, a browser keeps it and does not show it.
    put(&mut head, header::CONTENT_DISPOSITION, "attachment");
    if *method == Method::HEAD {
        return Ok((status, head).into_response());
    }
    file.seek(SeekFrom::Start(from)).await.map_err(failed)?;
    let stream = ReaderStream::with_capacity(file.take(to - from), BUFFER);
    let stream = stream.map(move |part| {
        // Held until the last part is sent.
        let _held = &held;
        part
    });
    Ok((status, head, Body::from_stream(stream)).into_response())
}

fn put(head: &mut HeaderMap, name: HeaderName, value: &str) {
    head.insert(name, HeaderValue::from_str(value).expect("digits and our own words"));
}

/// A GGUF file that is kept with a Complete Model.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = KeptGguf)]
pub(crate) struct GgufView {
    /// Its name.
    file: String,
    /// Its size.
    bytes: u64,
    /// Its SHA-256.
    sha256: String,
    /// What it was quantized to.
    quantization: String,
    /// What that cost; null where nothing was quantized.
    quality: Option<QualityView>,
}

/// The GGUF files that are kept with a Complete Model.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Ggufs {
    /// Smallest first.
    items: Vec<GgufView>,
}

/// The GGUF files that were made of a Complete Model and are kept with it. They go when it is deleted, or before.
#[utoipa::path(get, path = "/complete-models/{name}/ggufs", tag = "Complete Models", operation_id = "list_ggufs",
    params(("name" = String, Path, description = "Name of the model")),
    responses((status = 200, description = "The files", body = Ggufs)))]
pub(crate) async fn list_ggufs(
    State(app): State<App>,
    Path(name): Path<String>,
) -> Result<Json<Ggufs>, Problem> {
    app.verb(move |app| {
        let view = |kept: KeptGguf| GgufView {
            file: kept.file,
            bytes: kept.bytes,
            sha256: kept.sha256.to_string(),
            quantization: kept.quantization.name().into(),
            quality: kept.quality.as_ref().map(QualityView::from),
        };
        Ok(Json(Ggufs { items: app.tenon.kept_ggufs(&name)?.into_iter().map(view).collect() }))
    })
    .await
}

/// A GGUF file that is kept with a Complete Model; with `Range`, a part of it. Its `ETag` is its SHA-256.
#[utoipa::path(get, path = "/complete-models/{name}/ggufs/{file}", tag = "Complete Models", operation_id = "download_gguf",
    params(("name" = String, Path, description = "Name of the model"), ("file" = String, Path, description = "Name of the file"),
           PartAsked),
    responses(FileSent, (status = 409, description = "It is being deleted")))]
pub(crate) async fn download_gguf(
    State(app): State<App>,
    Path((name, file)): Path<(String, String)>,
    method: Method,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let (held, path, etag) = app
        .verb(move |app| {
            let registry = app.tenon.registry();
            let model: CompleteModel = registry.get(&name)?;
            let held = registry.hold(&model.name)?;
            let kept = app.tenon.kept_ggufs(&name)?.into_iter().find(|kept| kept.file == file);
            let kept = kept.ok_or_else(|| Problem::not_found("file", &file))?;
            let path = registry.home().artifacts(model.saving).join(&kept.file);
            Ok((held, path, kept.sha256.to_string()))
        })
        .await?;
    send(held, &path, &etag, &method, &headers).await
}

/// Removes a GGUF file that is kept with a Complete Model. It is made again when it is needed.
#[utoipa::path(delete, path = "/complete-models/{name}/ggufs/{file}", tag = "Complete Models", operation_id = "remove_gguf",
    params(("name" = String, Path, description = "Name of the model"), ("file" = String, Path, description = "Name of the file")),
    responses((status = 204, description = "It is gone"),
              (status = 409, description = "The model is being deployed, verified or downloaded")))]
pub(crate) async fn remove_gguf(
    State(app): State<App>,
    Path((name, file)): Path<(String, String)>,
) -> Result<StatusCode, Problem> {
    app.change(move |app| {
        let removed = app.tenon.remove_kept_ggufs(&name, |kept| kept.file == file)?;
        removed.first().map(|_| StatusCode::NO_CONTENT).ok_or_else(|| Problem::not_found("file", &file))
    })
    .await
}

/// The file of a model, which is held, and its tag. Only what the manifest names is a file of it.
fn open(app: &App, name: &str, file: &str) -> Result<(Held, std::path::PathBuf, String), Problem> {
    let registry = app.tenon.registry();
    let model: CompleteModel = registry.get(name)?;
    let held = registry.hold(&model.name)?;
    let manifest = registry.manifest(&model.name)?;
    let path = registry.home().complete(&model.name).join(file);
    let etag = if file == Manifest::FILE {
        manifest.saving.as_ref().map(|facts| facts.id.to_string()).unwrap_or_default()
    } else {
        let known = manifest.outputs.iter().find(|known| known.name == file);
        known.ok_or_else(|| Problem::not_found("file", file))?.sha256.to_string()
    };
    // A link that somebody put in its place leads elsewhere.
    if !path.symlink_metadata().is_ok_and(|meta| meta.is_file()) {
        return Err(Problem::not_found("file", file));
    }
    Ok((held, path, etag))
}

#[derive(Debug, PartialEq)]
enum Asked {
    Whole,
    /// From, and the byte behind the last.
    Part(u64, u64),
    Nothing,
}

/// What a `Range` header asks for. One that is not understood, or asks for several parts, asks for all.
fn asked(range: &str, len: u64) -> Asked {
    let Some(spec) = range.strip_prefix("bytes=").map(str::trim) else { return Asked::Whole };
    let Some((first, last)) = spec.split_once('-') else { return Asked::Whole };
    let is_number = |text: &str| text.bytes().all(|c| c.is_ascii_digit());
    if !is_number(first) || !is_number(last) || (first.is_empty() && last.is_empty()) {
        return Asked::Whole;
    }
    // Numbers beyond all files are as good as the largest.
    let number = |text: &str| text.parse::<u64>().unwrap_or(u64::MAX);
    let (from, to) = match (first.is_empty(), last.is_empty()) {
        (true, _) => (len.saturating_sub(number(last)), len),
        (_, true) => (number(first), len),
        _ if number(last) < number(first) => return Asked::Whole,
        _ => (number(first), number(last).saturating_add(1).min(len)),
    };
    if from < to { Asked::Part(from, to) } else { Asked::Nothing }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_as_the_standard_has_them() {
        let cases = [
            ("bytes=0-9", Asked::Part(0, 10)),
            ("bytes=90-", Asked::Part(90, 100)),
            ("bytes=-10", Asked::Part(90, 100)),
            ("bytes=-1000", Asked::Part(0, 100)),
            ("bytes=99-1000", Asked::Part(99, 100)),
            ("bytes=0-99999999999999999999999", Asked::Part(0, 100)),
            ("bytes=100-", Asked::Nothing),
            ("bytes=100-200", Asked::Nothing),
            ("bytes=-0", Asked::Nothing),
            ("bytes=9-0", Asked::Whole),
            ("bytes=-", Asked::Whole),
            ("bytes=0-1,5-6", Asked::Whole),
            ("bytes=a-b", Asked::Whole),
            ("rows=0-9", Asked::Whole),
            ("", Asked::Whole),
        ];
        for (range, expected) in cases {
            assert_eq!(asked(range, 100), expected, "{range}");
        }
        assert_eq!(asked("bytes=0-", 0), Asked::Nothing);
    }
}
