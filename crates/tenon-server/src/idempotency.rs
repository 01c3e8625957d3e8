//! Requests that start work may be sent again without it being done again.
//!
//! A client that got no answer sends the same request with the same `Idempotency-Key` and gets the
//! first one's answer. Answers are kept for a day, in a file too, so that a server that begins anew
//! knows them.

use std::collections::HashMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use tenon::{Digest, Timestamp};
use utoipa::IntoParams;

use crate::api::uploads::PATH;
use crate::app::App;
use crate::problem::{Code, Problem};

/// The header.
pub(crate) const KEY: &str = "idempotency-key";
/// Says that an answer was given before.
const REPLAYED: &str = "idempotency-replayed";
/// How long answers are kept.
const LIFE_SECONDS: i64 = 24 * 3600;
/// Answers kept.
const MAX_ANSWERS: usize = 10_000;
/// Longest key.
const MAX_KEY: usize = 128;
/// Largest answer kept.
const MAX_ANSWER: usize = 64 << 10;

/// What handlers say of it in the document.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
#[allow(dead_code)] // read by the layer
pub(crate) struct IdempotencyKey {
    /// Sent again with the same key, the request is not done again.
    #[param(rename = "idempotency-key", min_length = 1, max_length = 128, nullable = false)]
    key: Option<String>,
}

/// Answers by key.
pub(crate) struct Answers {
    file: PathBuf,
    known: Mutex<HashMap<String, Known>>,
}

#[derive(Clone)]
struct Known {
    request: String,
    /// None while the first request is under way.
    answer: Option<Answer>,
}

#[derive(Clone, Serialize, Deserialize)]
struct Answer {
    /// SHA-256 of the key: keys may be anything, even secrets.
    key: String,
    request: String,
    time: i64,
    status: u16,
    location: Option<String>,
    body: String,
}

impl Answers {
    /// Those that an earlier process gave in this home.
    pub(crate) fn open(home: &Path) -> Self {
        let file = home.join("answers.jsonl");
        let now = Timestamp::now().as_second();
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        let answers = text.lines().filter_map(|line| serde_json::from_str::<Answer>(line).ok());
        let recent: Vec<_> = answers.filter(|answer| now - answer.time < LIFE_SECONDS).collect();
        if recent.len() < text.lines().count() {
            let lines: String =
                recent.iter().filter_map(|a| serde_json::to_string(a).ok()).map(|l| l + "\n").collect();
            // If it cannot be written, the old one serves as well.
            let fresh = file.with_extension("new");
            let _ = std::fs::write(&fresh, lines).and_then(|()| std::fs::rename(&fresh, &file));
        }
        let known = recent
            .into_iter()
            .map(|answer| {
                (answer.key.clone(), Known { request: answer.request.clone(), answer: Some(answer) })
            })
            .collect();
        Self { file, known: Mutex::new(known) }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The answer that a key has already; or the key is this request's now.
    fn claim(&self, key: &str, request: &str) -> Result<Option<Answer>, Problem> {
        let mut known = self.lock();
        match known.get(key) {
            Some(known) if known.request != request => Err(Problem::new(
                Code::IdempotencyKeyReused,
                "the key came with another request before; each request that starts work needs its own",
            )),
            Some(Known { answer: Some(answer), .. }) => Ok(Some(answer.clone())),
            Some(_) => Err(Problem::new(Code::RequestInProgress, "ask again in a moment").retry_after(1)),
            None => {
                if known.len() >= MAX_ANSWERS {
                    let time = |known: &Known| known.answer.as_ref().map_or(i64::MAX, |answer| answer.time);
                    if let Some(oldest) =
                        known.iter().min_by_key(|(_, known)| time(known)).map(|(k, _)| k.clone())
                    {
                        known.remove(&oldest);
                    }
                }
                known.insert(key.into(), Known { request: request.into(), answer: None });
                Ok(None)
            }
        }
    }

    /// Keeps the answer; or forgets the key, so that the request may be tried again.
    fn settle(&self, key: &str, answer: Option<Answer>) {
        let mut known = self.lock();
        let Some(answer) = answer else {
            known.remove(key);
            return;
        };
        if let Ok(mut line) = serde_json::to_string(&answer) {
            line.push('\n');
            let mut options = std::fs::OpenOptions::new();
            // Where it cannot be written, the answer is known as long as this process lives.
            let written = options.create(true).append(true).open(&self.file).and_then(|mut file| {
                file.write_all(line.as_bytes())?;
                file.sync_data()
            });
            if let Err(error) = written {
                tracing::warn!(%error, "an answer could not be kept");
            }
        }
        if let Some(known) = known.get_mut(key) {
            known.answer = Some(answer);
        }
    }
}

/// Middleware: answers as before where the key says that the request was sent before.
pub(crate) async fn once(State(app): State<App>, request: Request, next: Next) -> Response {
    // An upload is larger than what is kept to compare; it is under a name that is taken once.
    let is_upload = request.uri().path() == PATH;
    if is_upload || request.method() != Method::POST || !request.headers().contains_key(KEY) {
        return next.run(request).await;
    }
    match run_once(app, request, next).await {
        Ok(response) => response,
        Err(problem) => problem.into_response(),
    }
}

async fn run_once(app: App, request: Request, next: Next) -> Result<Response, Problem> {
    let key = key_of(request.headers())?;
    let (parts, body) = request.into_parts();
    let limit = app.options.limits.body_bytes;
    let too_large = |_| Problem::new(Code::BodyTooLarge, format!("a body may have {limit} bytes"));
    let body = to_bytes(body, limit).await.map_err(too_large)?;
    let what = format!("{} {}\n{}", parts.method, parts.uri, Digest::of(&body));
    let what = Digest::of(what.as_bytes()).to_string();
    if let Some(answer) = app.answers.claim(&key, &what)? {
        return Ok(again(&answer));
    }
    // In a task of its own: a client that goes away must not leave the key without an answer.
    let (answers, claimed) = (app.clone(), key.clone());
    let task = tokio::spawn(async move {
        let response = next.run(Request::from_parts(parts, Body::from(body))).await;
        let (parts, body) = response.into_parts();
        let body = to_bytes(body, MAX_ANSWER).await.unwrap_or_else(|_| Bytes::new());
        let text = |name| parts.headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
        let answer = parts.status.is_success().then(|| Answer {
            key: key.clone(),
            request: what,
            time: Timestamp::now().as_second(),
            status: parts.status.as_u16(),
            location: text(header::LOCATION).map(str::to_string),
            body: String::from_utf8_lossy(&body).into_owned(),
        });
        let settled = tokio::task::spawn_blocking(move || app.answers.settle(&key, answer));
        let _ = settled.await;
        Response::from_parts(parts, Body::from(body))
    });
    task.await.map_err(|error| {
        answers.answers.settle(&claimed, None);
        Problem::new(Code::Internal, format!("the request ended unexpectedly: {error}"))
    })
}

fn key_of(headers: &HeaderMap) -> Result<String, Problem> {
    let key = headers.get(KEY).and_then(|key| key.to_str().ok()).unwrap_or_default();
    if key.is_empty() || key.len() > MAX_KEY {
        let detail = format!("an Idempotency-Key is 1 to {MAX_KEY} printable characters");
        return Err(Problem::new(Code::MalformedRequest, detail));
    }
    Ok(Digest::of(key.as_bytes()).to_string())
}

fn again(answer: &Answer) -> Response {
    let status = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::OK);
    let mut response = (status, answer.body.clone()).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(REPLAYED, HeaderValue::from_static("true"));
    if let Some(location) = answer.location.as_ref().and_then(|location| location.parse().ok()) {
        headers.insert(header::LOCATION, location);
    }
    response
}
