//! Tenon over HTTP: a REST interface with its OpenAPI document, events, and the pages people work in.
//!
//! * [`router`] is all of it as an [`axum::Router`], for other services to nest into theirs.
//! * [`Server`] is the same with [`Options`], on a socket of its own, with bounds on what clients take.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let tenon = tenon::Tenon::open("/srv/models".as_ref())?;
//! let app = axum::Router::new().nest("/tenon", tenon_server::router(tenon));
//! # Ok(()) }
//! ```
//!
//! Handlers call the facade and nothing else. What they share is in `app`; lists are answered from
//! memory (`lists`), the verbs of the facade block and run on threads of their own (`app`), jobs on
//! theirs (`work`). What every request passes first is in `guard`.

mod api;
mod app;
mod events;
mod extract;
mod files;
mod guard;
mod idempotency;
mod list;
mod listen;
mod lists;
pub mod log;
mod metrics;
mod options;
mod pages;
mod problem;
mod query;
mod roots;
mod view;
mod work;

use std::sync::Arc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::header;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tenon::Tenon;

pub use guard::{Token, TokenError};
pub use listen::{ServeError, asked_to_stop};
pub use options::{Limits, Options};

use crate::app::App;
use crate::problem::{Code, Problem};

/// Tenon's interface and pages, with the default [`Options`], to be nested into another service.
///
/// Requests that do not come to a name of the loopback are refused; [`Server::new`] with
/// [`Options::allow_hosts`] lets others in. Jobs are worked on by threads that end with the router.
pub fn router(tenon: impl Into<Arc<Tenon>>) -> Router {
    Server::new(tenon, Options::default()).router()
}

/// A server, and the threads that work for it.
pub struct Server {
    app: App,
}

impl Server {
    /// A server over a home. Its threads begin at once.
    pub fn new(tenon: impl Into<Arc<Tenon>>, options: Options) -> Self {
        let app = App::new(tenon.into(), options);
        work::start(&app);
        Self { app }
    }

    /// All that it answers.
    pub fn router(&self) -> Router {
        router_of(self.app.clone())
    }

    /// The OpenAPI document, as `/api/v1/openapi.json` has it.
    pub fn openapi(&self) -> String {
        document().0
    }
}

/// The document, and the routes that it describes: those that need credentials, and those that do not.
fn document() -> (String, Router<App>, Router<App>) {
    let (guarded, mut document) = api::routes().split_for_parts();
    let (open, others) = api::open_routes().split_for_parts();
    document.merge(others);
    api::document::complete(&mut document, api::PREFIX);
    let text = document.to_pretty_json().expect("texts, numbers and lists always serialize");
    (text, guarded, open)
}

fn router_of(app: App) -> Router {
    let (document, guarded, open) = document();
    let document = axum::body::Bytes::from(document);
    let guarded = guarded
        .layer(middleware::from_fn_with_state(app.clone(), idempotency::once))
        .layer(middleware::from_fn_with_state(app.clone(), guard::check_credentials));
    let openapi = move || async move { ([(header::CONTENT_TYPE, "application/json")], document) };
    let api = guarded
        .merge(open)
        .route("/openapi.json", get(openapi))
        .method_not_allowed_fallback(not_allowed)
        .layer(middleware::from_fn_with_state(app.clone(), in_bounds))
        .layer(DefaultBodyLimit::max(app.options.limits.body_bytes));
    Router::new()
        .nest(api::PREFIX, api)
        .fallback(pages::serve)
        .layer(middleware::from_fn_with_state(app.clone(), guard::check_host))
        .layer(middleware::from_fn(pages::secure))
        .layer(middleware::from_fn_with_state(app.clone(), log::note))
        .with_state(app)
}

async fn not_allowed(request: Request) -> Response {
    let detail = format!("{} is not a method of {}", request.method(), request.uri().path());
    Problem::new(Code::MethodNotAllowed, detail).into_response()
}

/// Middleware: a body within its bound, and an answer (where it streams, its beginning) within its time.
async fn in_bounds(State(app): State<App>, request: Request, next: Next) -> Response {
    let limits = &app.options.limits;
    // It has bounds of its own.
    if request.uri().path() == api::uploads::PATH {
        return next.run(request).await;
    }
    // One that says it is too large need not be waited for.
    let declared = request.headers().get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok());
    if declared.and_then(|length| length.parse::<u64>().ok()).is_some_and(|n| n > limits.body_bytes as u64) {
        let detail = format!("a body may have {} bytes", limits.body_bytes);
        return Problem::new(Code::BodyTooLarge, detail).into_response();
    }
    // It reads a whole model, at the speed of the disk.
    if request.uri().path().ends_with("/verify") {
        return next.run(request).await;
    }
    match tokio::time::timeout(limits.request_time, next.run(request)).await {
        Ok(response) => response,
        Err(_) => {
            let detail = format!("no answer within {} seconds", limits.request_time.as_secs_f64());
            Problem::new(Code::RequestTimeout, detail).into_response()
        }
    }
}
