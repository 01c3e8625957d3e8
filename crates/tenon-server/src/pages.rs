//! The pages: files of this binary, and what browsers may do with them.

use axum::extract::{OriginalUri, Request};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;

use crate::problem::{Code, Problem};

struct Asset {
    path: &'static str,
    kind: &'static str,
    bytes: &'static [u8],
}

macro_rules! assets {
    ($($file:literal $kind:literal),* $(,)?) => {
        [$(Asset { path: $file, kind: $kind, bytes: include_bytes!(concat!("../pages/", $file)) }),*]
    };
}

static ASSETS: &[Asset] = &assets![
    "index.html" "text/html; charset=utf-8",
    "docs.html" "text/html; charset=utf-8",
    "logo.svg" "image/svg+xml",
    "style/base.css" "text/css; charset=utf-8",
    "style/parts.css" "text/css; charset=utf-8",
    "style/card.css" "text/css; charset=utf-8",
    "script/app.js" "text/javascript; charset=utf-8",
    "script/api.js" "text/javascript; charset=utf-8",
    "script/dom.js" "text/javascript; charset=utf-8",
    "script/dialog.js" "text/javascript; charset=utf-8",
    "script/events.js" "text/javascript; charset=utf-8",
    "script/list.js" "text/javascript; charset=utf-8",
    "script/texts.js" "text/javascript; charset=utf-8",
    "script/figures.js" "text/javascript; charset=utf-8",
    "script/docs.js" "text/javascript; charset=utf-8",
    "script/complete.js" "text/javascript; charset=utf-8",
    "script/check.js" "text/javascript; charset=utf-8",
    "script/card.js" "text/javascript; charset=utf-8",
    "script/deploy.js" "text/javascript; charset=utf-8",
    "script/customized.js" "text/javascript; charset=utf-8",
    "script/base.js" "text/javascript; charset=utf-8",
    "script/live.js" "text/javascript; charset=utf-8",
    "script/environments.js" "text/javascript; charset=utf-8",
    "script/directory.js" "text/javascript; charset=utf-8",
    "script/make.js" "text/javascript; charset=utf-8",
    "script/results.js" "text/javascript; charset=utf-8",
    "script/jobs.js" "text/javascript; charset=utf-8",
    "script/session.js" "text/javascript; charset=utf-8",
];

/// What our pages may load and do: this origin, and nothing else.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// What a Model Card on a page of its own may: show itself. Its style is part of it, and known by its hash.
pub(crate) fn policy_of_card(html: &str) -> String {
    let style =
        html.split_once("<style>").and_then(|(_, rest)| rest.split_once("</style>")).map_or("", |(s, _)| s);
    let hash = BASE64.encode(sha256(style));
    format!(
        "default-src 'none'; style-src 'sha256-{hash}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; sandbox"
    )
}

fn sha256(text: &str) -> Vec<u8> {
    let hex = tenon::Digest::of(text.as_bytes()).to_string();
    let byte = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).unwrap_or_default();
    (0..hex.len()).step_by(2).map(byte).collect()
}

/// Anything that is not the interface: a page, a part of one, or nothing.
pub(crate) async fn serve(OriginalUri(uri): OriginalUri, request: Request) -> Response {
    let path = request.uri().path();
    if path == crate::api::PREFIX || path.starts_with("/api/") {
        return Problem::not_found("resource", path).into_response();
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let problem = Problem::new(Code::MethodNotAllowed, "pages are only read").into_response();
        return ([(header::ALLOW, "GET, HEAD")], problem).into_response();
    }
    let name = match path.trim_start_matches('/') {
        // Nested, the pages' own paths are relative to this one with a slash behind it, and axum hands a
        // path that ends in a slash to nobody.
        "" if !uri.path().ends_with('/') => {
            let to = format!("{}/index.html", uri.path());
            return (StatusCode::PERMANENT_REDIRECT, [(header::LOCATION, to)]).into_response();
        }
        "" => "index.html",
        "docs" => "docs.html",
        name => name,
    };
    match ASSETS.iter().find(|asset| asset.path == name) {
        Some(asset) => answer(asset, request.headers()),
        None => Problem::not_found("page", path).into_response(),
    }
}

fn answer(asset: &Asset, asked: &HeaderMap) -> Response {
    let etag = format!("\"{}\"", &tenon::Digest::of(asset.bytes).to_string()[..16]);
    let mut head = HeaderMap::new();
    head.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    head.insert(header::CONTENT_TYPE, HeaderValue::from_static(asset.kind));
    if let Ok(value) = HeaderValue::from_str(&etag) {
        head.insert(header::ETAG, value);
    }
    if asked.get(header::IF_NONE_MATCH).is_some_and(|known| known.as_bytes() == etag.as_bytes()) {
        return (StatusCode::NOT_MODIFIED, head).into_response();
    }
    (head, asset.bytes).into_response()
}

/// What stands before our own paths where this is nested into another service.
fn prefix(request: &Request) -> String {
    let whole = request.extensions().get::<OriginalUri>().map_or("", |OriginalUri(uri)| uri.path());
    whole.strip_suffix(request.uri().path()).unwrap_or_default().to_string()
}

/// Middleware: what browsers may do with an answer, where it does not say so itself; and where the new
/// thing is that it tells of, as the client reaches it.
pub(crate) async fn secure(request: Request, next: Next) -> Response {
    let prefix = prefix(&request);
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    let location = headers.get(header::LOCATION).and_then(|location| location.to_str().ok());
    let nested = location.filter(|location| !prefix.is_empty() && location.starts_with(crate::api::PREFIX));
    if let Some(location) = nested.and_then(|location| format!("{prefix}{location}").parse().ok()) {
        headers.insert(header::LOCATION, location);
    }
    let mut put = |name, value| {
        if !headers.contains_key(&name) {
            headers.insert(name, HeaderValue::from_static(value));
        }
    };
    put(header::CONTENT_SECURITY_POLICY, POLICY);
    put(header::X_CONTENT_TYPE_OPTIONS, "nosniff");
    put(header::X_FRAME_OPTIONS, "DENY");
    put(header::REFERRER_POLICY, "no-referrer");
    put(header::HeaderName::from_static("cross-origin-resource-policy"), "same-origin");
    put(header::HeaderName::from_static("cross-origin-opener-policy"), "same-origin");
    put(header::CACHE_CONTROL, "no-store");
    response
}
