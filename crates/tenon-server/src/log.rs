//! What a server writes of itself: a line for each request and each event worth one, with the
//! request's id.

use std::io::IsTerminal;
use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::Response;
use tenon::Uuid;
use tracing::Instrument;
use tracing_subscriber::EnvFilter;

use crate::app::App;
use crate::guard;

/// Header with a request's id: the client's, or one drawn here.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Longest id of a client.
const MAX_ID: usize = 64;

/// Has this process write its log on standard error: for people on a terminal, else as JSON, a line
/// an event. `TENON_LOG` says how much (`info` unless said otherwise).
pub fn init() {
    let filter = EnvFilter::try_from_env("TENON_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // Fails where the program that this is linked into writes a log already: then that one serves.
    let _ = if std::io::stderr().is_terminal() {
        builder.with_target(false).compact().try_init()
    } else {
        builder.json().flatten_event(true).with_current_span(true).with_span_list(false).try_init()
    };
}

/// Middleware: gives each request its id, and notes how it was answered and when.
pub(crate) async fn note(State(app): State<App>, request: Request, next: Next) -> Response {
    let given = request.headers().get(&REQUEST_ID).and_then(|id| id.to_str().ok()).filter(|id| is_id(id));
    let id = given.map_or_else(|| Uuid::new_v4().to_string(), str::to_string);
    let method = request.method().clone();
    let path = request.uri().path().to_string();
    let route = request.extensions().get::<MatchedPath>().map(|route| route.as_str().to_string());
    let client = guard::client(&request);
    let clock = Instant::now();
    let span = tracing::info_span!("request", id);
    let mut response = next.run(request).instrument(span.clone()).await;
    let status = response.status().as_u16();
    let time = clock.elapsed();
    let route = route.unwrap_or_else(|| "other".into());
    // A method that is none of HTTP's would be a label that a client made.
    let known = ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"];
    let label = known.iter().find(|known| method == **known).copied().unwrap_or("OTHER");
    app.metrics.answered(label, &route, status, time);
    let ms = (time.as_secs_f64() * 1e6).round() / 1e3;
    span.in_scope(|| tracing::info!(%method, path, status, ms, %client, "answered"));
    if let Ok(id) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    response
}

fn is_id(id: &str) -> bool {
    !id.is_empty()
        && id.len() <= MAX_ID
        && id.bytes().all(|c| c.is_ascii_alphanumeric() || b"-_.".contains(&c))
}
