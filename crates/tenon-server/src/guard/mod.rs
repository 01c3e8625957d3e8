//! Who may ask: what every request passes before it reaches a handler.
//!
//! * [`host`]: by which name it came (DNS rebinding) and from which page (cross-origin requests);
//! * [`token`]: the secret that services show;
//! * [`session`]: the cookie that pages have instead, and the token against forged requests that goes with it;
//! * [`rate`]: how often somebody may guess.

pub(crate) mod host;
pub(crate) mod rate;
pub(crate) mod session;
mod token;

use std::net::{IpAddr, SocketAddr};

use axum::extract::{ConnectInfo, Request, State};
use axum::http::{HeaderMap, Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

pub use token::{Token, TokenError};

use crate::app::App;
use crate::problem::{Code, Problem};

/// Header in which pages show the token of their session.
pub(crate) const CSRF_HEADER: &str = "x-csrf-token";

/// Whether a method changes nothing.
pub(crate) fn is_safe(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS)
}

/// The address a request came from; requests that came over no socket (a nested router's) share one.
pub(crate) fn client(request: &Request) -> IpAddr {
    let info = request.extensions().get::<ConnectInfo<SocketAddr>>();
    info.map_or(IpAddr::from([0, 0, 0, 0]), |info| info.0.ip())
}

/// Middleware: the name and the page a request came by.
pub(crate) async fn check_host(State(app): State<App>, request: Request, next: Next) -> Response {
    match host::check(&app.options, &request) {
        Ok(()) => next.run(request).await,
        Err(problem) => problem.into_response(),
    }
}

/// Middleware: a token or a session, where the server has a token.
pub(crate) async fn check_credentials(State(app): State<App>, request: Request, next: Next) -> Response {
    match authorize(&app, &request) {
        Ok(()) => next.run(request).await,
        Err(problem) => problem.into_response(),
    }
}

fn authorize(app: &App, request: &Request) -> Result<(), Problem> {
    let Some(token) = &app.options.token else { return Ok(()) };
    let client = client(request);
    if let Some(shown) = bearer(request.headers()) {
        app.guesses.allow(client)?;
        if token.is(shown) {
            return Ok(());
        }
        app.guesses.wrong(client);
        app.metrics.wrong_tokens.inc();
        return Err(Problem::new(Code::Unauthorized, "the token is not the server's"));
    }
    let Some(session) = session::cookie(request.headers()).and_then(|id| app.sessions.find(id)) else {
        return Err(Problem::new(
            Code::Unauthorized,
            "the server wants a token: Authorization: Bearer TOKEN, or a session opened with it",
        ));
    };
    if !is_safe(request.method()) {
        let shown = request.headers().get(CSRF_HEADER).map(|value| value.as_bytes()).unwrap_or_default();
        if !session.is_csrf(shown) {
            let detail = format!("a request in a session that changes something must show {CSRF_HEADER}");
            return Err(Problem::new(Code::CsrfTokenMissing, detail));
        }
    }
    Ok(())
}

fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let value = headers.get(header::AUTHORIZATION)?.as_bytes();
    let (scheme, token) = value.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then_some(token.trim_ascii())
}
