//! Sessions of pages: a token once, then a cookie.

use axum::Json;
use axum::extract::{FromRequest, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::app::App;
use crate::extract::Body;
use crate::guard::{self, session};
use crate::problem::{Code, Problem};

/// The server's token.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Credentials {
    /// As it was shown when the server first started.
    #[schema(min_length = 1, max_length = 512)]
    token: String,
}

/// What a page must know of its session.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct SessionView {
    /// Whether the server wants a token at all.
    needs_token: bool,
    /// Whether this client may ask.
    open: bool,
    /// What requests that change something must show as `X-CSRF-Token`.
    csrf: Option<String>,
}

/// Whether this client may ask, and what it must show.
#[utoipa::path(get, path = "/session", tag = "Session", operation_id = "session",
    responses((status = 200, description = "The session", body = SessionView)))]
pub(crate) async fn get(State(app): State<App>, headers: HeaderMap) -> Response {
    let session = session::cookie(&headers).and_then(|id| app.sessions.find(id));
    let needs_token = app.options.token.is_some();
    let open = !needs_token || session.is_some();
    let view = SessionView { needs_token, open, csrf: session.map(|session| session.csrf) };
    ([(header::CACHE_CONTROL, "no-store")], Json(view)).into_response()
}

/// Opens a session, kept in a cookie that only this site's pages send.
#[utoipa::path(post, path = "/session", tag = "Session", operation_id = "open_session", request_body = Credentials,
    responses((status = 200, description = "It is open", body = SessionView)))]
pub(crate) async fn open(State(app): State<App>, request: Request) -> Result<Response, Problem> {
    let client = guard::client(&request);
    app.guesses.allow(client)?;
    let Body(Credentials { token }) = Body::from_request(request, &app).await?;
    if !app.options.token.as_ref().is_none_or(|expected| expected.is(token.as_bytes())) {
        app.guesses.wrong(client);
        app.metrics.wrong_tokens.inc();
        return Err(Problem::new(Code::Unauthorized, "the token is not the server's"));
    }
    let (id, session) = app.sessions.open().map_err(|error| Problem::new(Code::Internal, error))?;
    let view = SessionView { needs_token: app.options.token.is_some(), open: true, csrf: Some(session.csrf) };
    let head =
        [(header::SET_COOKIE, session::set_cookie(Some(&id))), (header::CACHE_CONTROL, "no-store".into())];
    Ok((head, Json(view)).into_response())
}

/// Ends the session.
#[utoipa::path(delete, path = "/session", tag = "Session", operation_id = "close_session",
    responses((status = 204, description = "It is ended, or there was none")))]
pub(crate) async fn close(State(app): State<App>, headers: HeaderMap) -> Response {
    if let Some(id) = session::cookie(&headers) {
        app.sessions.close(id);
    }
    (StatusCode::NO_CONTENT, [(header::SET_COOKIE, session::set_cookie(None))]).into_response()
}
