//! Reading requests, with our own words for what is wrong with them.

use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use serde::de::DeserializeOwned;

use crate::app::App;
use crate::problem::{Code, Problem};

/// A JSON body.
pub(crate) struct Body<T>(pub(crate) T);

impl<T: DeserializeOwned> FromRequest<App> for Body<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, app: &App) -> Result<Self, Problem> {
        if !is_json(request.headers()) {
            let detail = "the body must be JSON: Content-Type: application/json";
            return Err(Problem::new(Code::UnsupportedMediaType, detail));
        }
        let limit = app.options.limits.body_bytes;
        let bytes = Bytes::from_request(request, app).await.map_err(|rejection| {
            match rejection.status().as_u16() {
                413 => Problem::new(Code::BodyTooLarge, format!("a body may have {limit} bytes")),
                _ => Problem::new(Code::MalformedRequest, "the body broke off"),
            }
        })?;
        // First as any JSON: a text that is none is another mistake than one with the wrong fields.
        let value: serde_json::Value = serde_json::from_slice(&bytes).map_err(|error| {
            Problem::new(Code::MalformedRequest, format!("the body is not JSON: {error}"))
        })?;
        if !value.is_object() {
            return Err(Problem::new(Code::InvalidBody, "the body must be an object"));
        }
        serde_json::from_value(value)
            .map(Self)
            .map_err(|error| Problem::new(Code::InvalidBody, error.to_string()))
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let Some(kind) = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()) else {
        return false;
    };
    let kind = kind.split(';').next().unwrap_or_default().trim();
    kind.eq_ignore_ascii_case("application/json")
}

/// A query string.
pub(crate) struct Query<T>(pub(crate) T);

impl<T: DeserializeOwned> FromRequestParts<App> for Query<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Problem> {
        axum::extract::Query::from_request_parts(parts, app)
            .await
            .map(|axum::extract::Query(query)| Self(query))
            .map_err(|rejection| Problem::new(Code::InvalidQuery, rejection.body_text()))
    }
}

/// Parts of the path.
pub(crate) struct Path<T>(pub(crate) T);

impl<T: DeserializeOwned + Send> FromRequestParts<App> for Path<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Problem> {
        axum::extract::Path::from_request_parts(parts, app)
            .await
            .map(|axum::extract::Path(path)| Self(path))
            // What is no UUID, or no text, names nothing that is here.
            .map_err(|rejection| Problem::new(Code::NotFound, rejection.body_text()))
    }
}
