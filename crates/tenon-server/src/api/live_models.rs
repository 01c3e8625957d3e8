//! Live Models: listed, looked after, removed.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Deserialize;
use tenon::LiveModel;
use utoipa::IntoParams;

use crate::app::App;
use crate::extract::{Path, Query};
use crate::problem::Problem;
use crate::view::LiveModelView;

fn view(app: &App, live: &LiveModel) -> Result<LiveModelView, Problem> {
    let complete = app.tenon.registry().find::<tenon::CompleteModel>(live.subject().as_str())?;
    Ok(LiveModelView::new(live, complete.is_some()))
}

/// One Live Model.
#[utoipa::path(get, path = "/live-models/{environment}/{model}", tag = "Live Models", operation_id = "get_live_model",
    params(("environment" = String, Path, description = "Name of the Deployment Environment"), ("model" = String, Path, description = "Name of the model there")),
    responses((status = 200, description = "The model", body = LiveModelView)))]
pub(crate) async fn get(
    State(app): State<App>,
    Path((environment, model)): Path<(String, String)>,
) -> Result<Json<LiveModelView>, Problem> {
    app.verb(move |app| Ok(Json(view(app, &app.tenon.registry().get(&format!("{environment}/{model}"))?)?)))
        .await
}

/// Asks the environment whether a Live Model is still there, the same, and answers. What it found is its `state`.
#[utoipa::path(post, path = "/live-models/{environment}/{model}/check", tag = "Live Models", operation_id = "check_live_model",
    params(("environment" = String, Path, description = "Name of the Deployment Environment"), ("model" = String, Path, description = "Name of the model there")),
    responses((status = 200, description = "It was asked", body = LiveModelView)))]
pub(crate) async fn check(
    State(app): State<App>,
    Path((environment, model)): Path<(String, String)>,
) -> Result<Json<LiveModelView>, Problem> {
    app.change(move |app| {
        Ok(Json(view(app, &app.tenon.check_live(&format!("{environment}/{model}"), &())?)?))
    })
    .await
}

/// How a Live Model is removed.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct RemoveQuery {
    /// Whether to remove the model from the environment first; if not, only the entry goes.
    #[param(nullable = false)]
    from_environment: Option<bool>,
}

/// Drops the entry of a Live Model; with `from_environment`, removes it there first.
#[utoipa::path(delete, path = "/live-models/{environment}/{model}", tag = "Live Models", operation_id = "remove_live_model",
    params(("environment" = String, Path, description = "Name of the Deployment Environment"), ("model" = String, Path, description = "Name of the model there"), RemoveQuery),
    responses((status = 204, description = "It is removed"),
              (status = 409, description = "Another model has its name there"),
              (status = 502, description = "The environment did not remove it")))]
pub(crate) async fn remove(
    State(app): State<App>,
    Path((environment, model)): Path<(String, String)>,
    Query(query): Query<RemoveQuery>,
) -> Result<StatusCode, Problem> {
    app.change(move |app| {
        let there = query.from_environment.unwrap_or(false);
        app.tenon.remove_live(&format!("{environment}/{model}"), there, &())?;
        Ok(StatusCode::NO_CONTENT)
    })
    .await
}
