//! Customized Models: adapters, linked to their Base Models.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde::Deserialize;
use tenon::{CustomizedModel, Uuid};
use utoipa::ToSchema;

use crate::app::App;
use crate::extract::{Body, Path};
use crate::idempotency::IdempotencyKey;
use crate::problem::Problem;
use crate::view::CustomizedModelView;

/// An adapter about to be registered.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewCustomizedModel {
    /// Its directory on the server, under an allowed path; or its file, where it is one, such as a GGUF adapter.
    #[schema(min_length = 1, max_length = 4096)]
    path: String,
    /// Name of its Base Model.
    #[schema(min_length = 1, max_length = 200)]
    base: String,
    /// Name of the training; that of the directory where nothing is said.
    #[schema(min_length = 1, max_length = 200)]
    train_name: Option<String>,
    /// UUID of the training; drawn where nothing is said.
    training_id: Option<Uuid>,
    /// It is a full-weight delta: a model whose tensors are what the training added to the base's.
    #[serde(default)]
    delta: bool,
}

/// Registers an adapter, which must fit its Base Model, under its automatic name.
#[utoipa::path(post, path = "/customized-models", tag = "Customized Models", operation_id = "add_customized_model",
    params(IdempotencyKey),
    request_body = NewCustomizedModel,
    responses((status = 201, description = "It is registered", body = CustomizedModelView),
              (status = 404, description = "There is no such Base Model"),
              (status = 409, description = "The name is taken")))]
pub(crate) async fn add(
    State(app): State<App>,
    Body(new): Body<NewCustomizedModel>,
) -> Result<Response, Problem> {
    app.change(move |app| {
        let (path, train_name) = (app.roots.resolve_any(&new.path)?, new.train_name.as_deref());
        let added = match new.delta {
            true => app.tenon.add_customized_delta(&path, &new.base, train_name, new.training_id)?,
            false => app.tenon.add_customized(&path, &new.base, train_name, new.training_id)?,
        };
        Ok(registered(&added))
    })
    .await
}

/// The answer to what registered one.
pub(super) fn registered(added: &CustomizedModel) -> Response {
    let location = format!("customized-models/{}", added.name);
    super::created(StatusCode::CREATED, &location, CustomizedModelView::from(added))
}

/// One Customized Model.
#[utoipa::path(get, path = "/customized-models/{name}", tag = "Customized Models", operation_id = "get_customized_model",
    params(("name" = String, Path, description = "Its name")),
    responses((status = 200, description = "The model", body = CustomizedModelView)))]
pub(crate) async fn get(
    State(app): State<App>,
    Path(name): Path<String>,
) -> Result<Json<CustomizedModelView>, Problem> {
    app.verb(move |app| {
        let model: CustomizedModel = app.tenon.registry().get(&name)?;
        Ok(Json(CustomizedModelView::from(&model)))
    })
    .await
}

/// Forgets a Customized Model; its directory stays.
#[utoipa::path(delete, path = "/customized-models/{name}", tag = "Customized Models", operation_id = "remove_customized_model",
    params(("name" = String, Path, description = "Its name")),
    responses((status = 204, description = "It is forgotten"),
              (status = 409, description = "It is being saved")))]
pub(crate) async fn remove(State(app): State<App>, Path(name): Path<String>) -> Result<StatusCode, Problem> {
    app.change(move |app| {
        app.tenon.registry().remove_customized(&name)?;
        Ok(StatusCode::NO_CONTENT)
    })
    .await
}
