//! Deployment Environments: added, tested, forgotten.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde::Deserialize;
use tenon::{Environment, EnvironmentKind, KeySource, ModelName, RegistryError};
use utoipa::ToSchema;

use crate::app::App;
use crate::extract::{Body, Path};
use crate::idempotency::IdempotencyKey;
use crate::problem::{Code, Problem};
use crate::view::EnvironmentView;

/// What names of variables with keys must begin with: a client must not have any other sent anywhere.
const KEY_PREFIX: &str = "TENON_KEY_";

/// A Deployment Environment about to be added.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewEnvironment {
    /// Its name.
    #[schema(min_length = 1, max_length = 200)]
    name: String,
    /// What kind of server it is.
    kind: KindWord,
    /// Its address.
    #[schema(min_length = 1, max_length = 2000)]
    url: String,
    /// Name of the server's environment variable with the key; begins with `TENON_KEY_`.
    #[schema(min_length = 1, max_length = 200)]
    key_variable: Option<String>,
    /// Seconds after which it counts as hung when it is silent; 30 where nothing is said.
    #[schema(minimum = 0.1, maximum = 86400)]
    timeout_seconds: Option<f64>,
    /// Options of its kind; a wrong one lists those there are.
    #[serde(default)]
    options: BTreeMap<String, String>,
    /// File of PEM certificates to trust besides the system's, on the server under an allowed path.
    #[schema(min_length = 1, max_length = 4096)]
    ca: Option<String>,
}

/// The kinds of servers.
#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
#[schema(as = EnvironmentKind)]
pub(crate) enum KindWord {
    /// Ollama.
    #[serde(rename = "ollama")]
    Ollama,
    /// The server of llama.cpp.
    #[serde(rename = "llama-server")]
    LlamaServer,
    /// vLLM.
    #[serde(rename = "vllm")]
    Vllm,
    /// Any other server with OpenAI's API.
    #[serde(rename = "openai")]
    OpenAi,
}

impl From<KindWord> for EnvironmentKind {
    fn from(kind: KindWord) -> Self {
        match kind {
            KindWord::Ollama => EnvironmentKind::Ollama,
            KindWord::LlamaServer => EnvironmentKind::LlamaServer,
            KindWord::Vllm => EnvironmentKind::Vllm,
            KindWord::OpenAi => EnvironmentKind::OpenAi,
        }
    }
}

/// Adds a Deployment Environment. Its server is not asked.
#[utoipa::path(post, path = "/environments", tag = "Deployment Environments", operation_id = "add_environment",
    params(IdempotencyKey),
    request_body = NewEnvironment,
    responses((status = 201, description = "It is added", body = EnvironmentView),
              (status = 409, description = "The name is taken")))]
pub(crate) async fn add(
    State(app): State<App>,
    Body(new): Body<NewEnvironment>,
) -> Result<Response, Problem> {
    app.change(move |app| {
        let name = ModelName::new(new.name).map_err(RegistryError::from)?;
        let mut environment = Environment::new(new.kind.into(), new.url);
        if let Some(variable) = new.key_variable {
            if !variable.starts_with(KEY_PREFIX) {
                let detail = format!("the name of a variable with a key begins with {KEY_PREFIX}");
                return Err(Problem::new(Code::InvalidInput, detail));
            }
            environment.key = Some(KeySource::Variable(variable));
        }
        if let Some(seconds) = new.timeout_seconds {
            if !(0.1..=86_400.0).contains(&seconds) {
                return Err(Problem::new(Code::InvalidBody, "timeout_seconds must be 0.1 to 86400"));
            }
            environment.timeout_seconds = seconds;
        }
        environment.options = new.options;
        environment.ca = new.ca.map(|ca| app.roots.resolve_any(&ca)).transpose()?;
        let added = app.tenon.add_environment(name, environment)?;
        let location = format!("environments/{}", added.name);
        Ok(super::created(StatusCode::CREATED, &location, EnvironmentView::from(&added)))
    })
    .await
}

/// One Deployment Environment.
#[utoipa::path(get, path = "/environments/{name}", tag = "Deployment Environments", operation_id = "get_environment",
    params(("name" = String, Path, description = "Its name")),
    responses((status = 200, description = "The environment", body = EnvironmentView)))]
pub(crate) async fn get(
    State(app): State<App>,
    Path(name): Path<String>,
) -> Result<Json<EnvironmentView>, Problem> {
    app.verb(move |app| Ok(Json(EnvironmentView::from(&app.tenon.environment(&name)?)))).await
}

/// Reaches a Deployment Environment and asks what it is. What it does not answer is in `tested`.
#[utoipa::path(post, path = "/environments/{name}/test", tag = "Deployment Environments", operation_id = "test_environment",
    params(("name" = String, Path, description = "Its name")),
    responses((status = 200, description = "It was asked", body = EnvironmentView)))]
pub(crate) async fn test(
    State(app): State<App>,
    Path(name): Path<String>,
) -> Result<Json<EnvironmentView>, Problem> {
    app.change(move |app| {
        match app.tenon.test_environment(&name, &()) {
            // That it does not answer is the answer.
            Ok(_) | Err(tenon::Error::Deploy(_)) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(Json(EnvironmentView::from(&app.tenon.environment(&name)?)))
    })
    .await
}

/// Forgets a Deployment Environment; its server is not touched.
#[utoipa::path(delete, path = "/environments/{name}", tag = "Deployment Environments", operation_id = "remove_environment",
    params(("name" = String, Path, description = "Its name")),
    responses((status = 204, description = "It is forgotten"),
              (status = 409, description = "It has Live Models, or a deployment to it is under way")))]
pub(crate) async fn remove(State(app): State<App>, Path(name): Path<String>) -> Result<StatusCode, Problem> {
    app.change(move |app| {
        app.tenon.remove_environment(&name)?;
        Ok(StatusCode::NO_CONTENT)
    })
    .await
}
