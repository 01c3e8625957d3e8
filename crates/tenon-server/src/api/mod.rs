//! The REST interface. Handlers read the request, call the facade, and answer; the document that
//! describes them is made of them.

pub(crate) mod base_models;
pub(crate) mod complete_models;
pub(crate) mod customized_models;
pub(crate) mod deployments;
pub(crate) mod document;
pub(crate) mod environments;
mod gguf;
pub(crate) mod inspect;
pub(crate) mod jobs;
pub(crate) mod lists;
pub(crate) mod live_models;
pub(crate) mod results;
pub(crate) mod server;
pub(crate) mod session;
pub(crate) mod uploads;
pub(crate) mod verbs;

use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use axum::{Json, http};
use serde::Serialize;
use utoipa_axum::router::{OpenApiRouter, UtoipaMethodRouterExt};
use utoipa_axum::routes;

use crate::app::App;

/// Where the interface is.
pub(crate) const PREFIX: &str = "/api/v1";

/// All that needs credentials where the server has a token.
pub(crate) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::with_openapi(document::head())
        .routes(routes!(lists::complete))
        .routes(routes!(complete_models::get, complete_models::delete))
        .routes(routes!(complete_models::card))
        .routes(routes!(complete_models::verify))
        .routes(routes!(complete_models::rebuild))
        .routes(routes!(crate::files::list))
        .routes(routes!(crate::files::download))
        .routes(routes!(crate::files::list_ggufs))
        .routes(routes!(crate::files::download_gguf, crate::files::remove_gguf))
        .routes(routes!(lists::customized, customized_models::add))
        .routes(routes!(customized_models::get, customized_models::remove))
        .routes(routes!(uploads::upload).layer(uploads::any_size()))
        .routes(routes!(lists::base, base_models::add))
        .routes(routes!(base_models::get, base_models::remove))
        .routes(routes!(base_models::template, base_models::set_template, base_models::remove_template))
        .routes(routes!(base_models::suggest_template))
        .routes(routes!(base_models::check_template))
        .routes(routes!(base_models::preview_template))
        .routes(routes!(base_models::directories))
        .routes(routes!(jobs::save))
        .routes(routes!(deployments::deploy))
        .routes(routes!(deployments::plan))
        .routes(routes!(verbs::merge))
        .routes(routes!(verbs::blend))
        .routes(routes!(verbs::combine))
        .routes(routes!(gguf::gguf))
        .routes(routes!(results::list))
        .routes(routes!(results::get, results::remove))
        .routes(routes!(results::download))
        .routes(routes!(inspect::inspect))
        .routes(routes!(inspect::check))
        .routes(routes!(lists::environments, environments::add))
        .routes(routes!(environments::get, environments::remove))
        .routes(routes!(environments::test))
        .routes(routes!(lists::live))
        .routes(routes!(live_models::get, live_models::remove))
        .routes(routes!(live_models::check))
        .routes(routes!(lists::jobs))
        .routes(routes!(jobs::get))
        .routes(routes!(jobs::log))
        .routes(routes!(jobs::cancel))
        .routes(routes!(jobs::retry))
        .routes(routes!(crate::events::stream))
        .routes(routes!(crate::metrics::get))
        .routes(routes!(server::about))
}

/// What needs none: how to get some, and whether the server lives.
pub(crate) fn open_routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(session::get, session::open, session::close))
        .routes(routes!(server::health))
}

/// The answer to what queued a job.
fn queued(job: &crate::view::Job) -> Response {
    created(http::StatusCode::ACCEPTED, &format!("jobs/{}", job.id), job)
}

/// An answer that says where the new thing is.
fn created(status: http::StatusCode, location: &str, body: impl Serialize) -> Response {
    let mut headers = HeaderMap::new();
    if let Ok(location) = format!("{PREFIX}/{location}").parse() {
        headers.insert(http::header::LOCATION, location);
    }
    (status, headers, Json(body)).into_response()
}
