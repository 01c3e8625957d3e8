//! Base Models, and their Deployment Template Files.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use tenon::{BaseModel, Conversation, DeploymentTemplate, Message, ModelName, RegistryError};
use utoipa::{IntoParams, ToSchema};

use crate::app::App;
use crate::extract::{Body, Path, Query};
use crate::idempotency::IdempotencyKey;
use crate::problem::{Code, Place, Problem};
use crate::roots::Holds;
use crate::view::BaseModelView;

/// A Base Model about to be registered.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewBaseModel {
    /// Its directory on the server, under an allowed path.
    #[schema(min_length = 1, max_length = 4096)]
    path: String,
    /// Its technical name; that of its repository or directory where nothing is said.
    #[schema(min_length = 1, max_length = 200)]
    name: Option<String>,
}

/// Registers a Base Model where it lies.
#[utoipa::path(post, path = "/base-models", tag = "Base Models", operation_id = "add_base_model",
    params(IdempotencyKey),
    request_body = NewBaseModel,
    responses((status = 201, description = "It is registered", body = BaseModelView),
              (status = 409, description = "The name is taken")))]
pub(crate) async fn add(State(app): State<App>, Body(new): Body<NewBaseModel>) -> Result<Response, Problem> {
    app.change(move |app| {
        let name = new.name.map(ModelName::new).transpose().map_err(RegistryError::from)?;
        let dir = app.roots.resolve(&new.path)?;
        let added = app.tenon.register_base(&dir, name)?;
        let location = format!("base-models/{}", added.name);
        Ok(super::created(StatusCode::CREATED, &location, BaseModelView::from(&added)))
    })
    .await
}

/// One Base Model.
#[utoipa::path(get, path = "/base-models/{name}", tag = "Base Models", operation_id = "get_base_model",
    params(("name" = String, Path, description = "Its name")),
    responses((status = 200, description = "The model", body = BaseModelView)))]
pub(crate) async fn get(
    State(app): State<App>,
    Path(name): Path<String>,
) -> Result<Json<BaseModelView>, Problem> {
    app.verb(move |app| {
        let model: BaseModel = app.tenon.registry().get(&name)?;
        Ok(Json(BaseModelView::from(&model)))
    })
    .await
}

/// Forgets a Base Model; its directory stays.
#[utoipa::path(delete, path = "/base-models/{name}", tag = "Base Models", operation_id = "remove_base_model",
    params(("name" = String, Path, description = "Its name")),
    responses((status = 204, description = "It is forgotten"),
              (status = 409, description = "A Customized Model is linked to it")))]
pub(crate) async fn remove(State(app): State<App>, Path(name): Path<String>) -> Result<StatusCode, Problem> {
    app.change(move |app| {
        app.tenon.registry().remove_base(&name)?;
        Ok(StatusCode::NO_CONTENT)
    })
    .await
}

/// A Deployment Template File.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct TemplateFile {
    /// Name of the file that it came from.
    #[schema(min_length = 1, max_length = 255)]
    pub(crate) file: String,
    /// Its text: a Go template or a Modelfile.
    #[schema(min_length = 1, max_length = 1048576)]
    pub(crate) text: String,
}

/// The Deployment Template File of a Base Model.
#[utoipa::path(get, path = "/base-models/{name}/template", tag = "Base Models", operation_id = "get_template",
    params(("name" = String, Path, description = "Name of the Base Model")),
    responses((status = 200, description = "The file", body = TemplateFile)))]
pub(crate) async fn template(
    State(app): State<App>,
    Path(name): Path<String>,
) -> Result<Json<TemplateFile>, Problem> {
    app.verb(move |app| {
        let model: BaseModel = app.tenon.registry().get(&name)?;
        let template =
            model.template.ok_or_else(|| Problem::not_found("Deployment Template File of", &name))?;
        Ok(Json(TemplateFile { file: template.file, text: template.text }))
    })
    .await
}

/// Attaches a Deployment Template File to a Base Model. One that is wrong is refused, with the places.
#[utoipa::path(put, path = "/base-models/{name}/template", tag = "Base Models", operation_id = "set_template",
    params(("name" = String, Path, description = "Name of the Base Model")),
    request_body = TemplateFile,
    responses((status = 200, description = "It is attached", body = BaseModelView)))]
pub(crate) async fn set_template(
    State(app): State<App>,
    Path(name): Path<String>,
    Body(template): Body<TemplateFile>,
) -> Result<Json<BaseModelView>, Problem> {
    app.change(move |app| {
        let base = app.tenon.set_template_text(&name, template.file, template.text)?;
        Ok(Json(BaseModelView::from(&base)))
    })
    .await
}

/// A Deployment Template File that is proposed.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct SuggestedTemplate {
    /// Its text, a Modelfile.
    text: String,
    /// Whether it puts plain conversations as the model's own `chat_template` does.
    agrees: bool,
    /// What is different on purpose, or cannot be said in a Go template.
    notes: Vec<String>,
}

/// Proposes a Deployment Template File, made of the model's own `chat_template`. Nothing is changed.
#[utoipa::path(get, path = "/base-models/{name}/template/suggestion", tag = "Base Models", operation_id = "suggest_template",
    params(("name" = String, Path, description = "Name of the Base Model")),
    responses((status = 200, description = "The proposal", body = SuggestedTemplate),
              (status = 422, description = "The model has no chat_template, or one that has no likeness in Go")))]
pub(crate) async fn suggest_template(
    State(app): State<App>,
    Path(name): Path<String>,
) -> Result<Json<SuggestedTemplate>, Problem> {
    app.verb(move |app| {
        let suggestion = app.tenon.suggest_template(&name)?;
        let agrees = suggestion.agrees();
        Ok(Json(SuggestedTemplate { text: suggestion.modelfile, agrees, notes: suggestion.notes }))
    })
    .await
}

/// How a Deployment Template File compares with the model's own `chat_template`.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct TemplateCheck {
    /// Name of the file that it came from.
    file: String,
    /// What is right, but most likely not meant.
    warnings: Vec<Place>,
    /// Whether it puts plain conversations as that does; true where there is nothing to compare with.
    agrees: bool,
    /// Conversation by conversation; null where the model has no `chat_template`, or a renderer of the
    /// server takes the template's place.
    conversations: Option<Vec<Compared>>,
}

/// One conversation, put in both ways.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Compared {
    /// What kind of conversation it is.
    conversation: String,
    /// Whether people have such conversations with every model.
    plain: bool,
    /// Whether the prompts are the same.
    agrees: bool,
    /// The prompt by the model's own template, or why there is none.
    model: String,
    /// The prompt by the Deployment Template File, or why there is none.
    template: String,
}

/// Checks the Deployment Template File that is attached, and compares it with the model's own `chat_template`.
#[utoipa::path(get, path = "/base-models/{name}/template/check", tag = "Base Models", operation_id = "check_template",
    params(("name" = String, Path, description = "Name of the Base Model")),
    responses((status = 200, description = "What was found", body = TemplateCheck),
              (status = 422, description = "It has mistakes")))]
pub(crate) async fn check_template(
    State(app): State<App>,
    Path(name): Path<String>,
) -> Result<Json<TemplateCheck>, Problem> {
    app.verb(move |app| {
        let (template, read) = app.tenon.template(&name)?;
        let agreement = app.tenon.template_agreement(&name)?;
        let agrees = agreement.iter().flatten().all(|compared| compared.agrees || !compared.plain);
        let either = |text: Result<String, String>| text.unwrap_or_else(|why| why);
        let compared = |one: tenon::Agreement| Compared {
            conversation: one.conversation,
            plain: one.plain,
            agrees: one.agrees,
            model: either(one.model),
            template: either(one.template),
        };
        Ok(Json(TemplateCheck {
            file: template.file,
            warnings: read.warnings.iter().map(Place::from).collect(),
            agrees,
            conversations: agreement.map(|all| all.into_iter().map(compared).collect()),
        }))
    })
    .await
}

/// A prompt as a model would get it.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct PromptPreview {
    /// The prompt; null where a renderer of the server makes it.
    prompt: Option<String>,
}

/// Shows the prompt that a Deployment Template File makes of a short conversation.
#[utoipa::path(post, path = "/templates/preview", tag = "Base Models", operation_id = "preview_template",
    request_body = TemplateFile,
    responses((status = 200, description = "The prompt", body = PromptPreview)))]
pub(crate) async fn preview_template(
    State(app): State<App>,
    Body(template): Body<TemplateFile>,
) -> Result<Json<PromptPreview>, Problem> {
    app.verb(move |_| {
        let read = DeploymentTemplate::parse(&template.file, &template.text).map_err(tenon::Error::from)?;
        let conversation = Conversation::of([
            Message::new("system", "Answer in one sentence."),
            Message::new("user", "What is a tenon?"),
            Message::new("assistant", "The cut end of a beam that fits into a mortise."),
            Message::new("user", "And a mortise?"),
        ]);
        let prompt = read.preview(&conversation).map_err(|fault| {
            let detail = format!("{}:{fault}", template.file);
            Problem::new(Code::InvalidTemplate, detail).places(vec![Place::from(&fault)])
        })?;
        Ok(Json(PromptPreview { prompt }))
    })
    .await
}

/// Takes the Deployment Template File from a Base Model.
#[utoipa::path(delete, path = "/base-models/{name}/template", tag = "Base Models", operation_id = "remove_template",
    params(("name" = String, Path, description = "Name of the Base Model")),
    responses((status = 204, description = "It has none now")))]
pub(crate) async fn remove_template(
    State(app): State<App>,
    Path(name): Path<String>,
) -> Result<StatusCode, Problem> {
    app.change(move |app| {
        app.tenon.remove_template(&name)?;
        Ok(StatusCode::NO_CONTENT)
    })
    .await
}

/// What is looked for.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct DirectoryQuery {
    /// What the directories hold.
    #[param(inline)]
    holds: Kind,
}

/// What a directory holds.
#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    /// A Base Model: `config.json` and weights.
    Base,
    /// An adapter: `adapter_config.json`.
    Adapter,
}

/// Directories under the allowed paths.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Directories {
    /// Where was looked.
    allow_paths: Vec<String>,
    /// What was found, nearest first; 500 at most.
    found: Vec<String>,
}

/// Directories under the allowed paths that look like models.
#[utoipa::path(get, path = "/directories", tag = "Server", operation_id = "find_directories",
    params(DirectoryQuery),
    responses((status = 200, description = "What was found", body = Directories)))]
pub(crate) async fn directories(
    State(app): State<App>,
    Query(query): Query<DirectoryQuery>,
) -> Result<Json<Directories>, Problem> {
    app.verb(move |app| {
        let text = |path: &std::path::PathBuf| path.display().to_string();
        let holds = match query.holds {
            Kind::Base => Holds::Base,
            Kind::Adapter => Holds::Adapter,
        };
        let found = app.roots.find(holds).iter().map(text).collect();
        Ok(Json(Directories { allow_paths: app.roots.all().iter().map(text).collect(), found }))
    })
    .await
}
