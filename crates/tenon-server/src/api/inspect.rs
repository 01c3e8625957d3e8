//! Looking at what lies on the server, and at the home itself.

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tenon::GgufFile;
use utoipa::ToSchema;

use crate::app::App;
use crate::extract::Body;
use crate::problem::{Code, Problem};

/// Values shown of a list in a GGUF file: vocabularies have hundreds of thousands.
const MAX_VALUES: usize = 32;

/// Something to be looked at.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Inspected {
    /// A directory or file on the server, under an allowed path.
    #[schema(min_length = 1, max_length = 4096)]
    path: String,
}

/// Says what a directory or file is, and what can be done with it: adapters, models, outputs of trainings. Reads headers only.
#[utoipa::path(post, path = "/inspect", tag = "Verbs", operation_id = "inspect",
    request_body = Inspected,
    responses((status = 200, description = "What it is; of a GGUF file, also its keys and tensors", body = Object)))]
pub(crate) async fn inspect(
    State(app): State<App>,
    Body(new): Body<Inspected>,
) -> Result<Json<Value>, Problem> {
    app.verb(move |app| {
        let path = app.roots.resolve_any(&new.path)?;
        let found = tenon::inspect(&path)?;
        let mut value =
            serde_json::to_value(&found).map_err(|e| Problem::new(Code::Internal, e.to_string()))?;
        if found.kind == "gguf" && path.is_file() {
            let file = GgufFile::open(&path).map_err(tenon::Error::from)?;
            value["gguf"] = file.to_json(MAX_VALUES);
        }
        Ok(Json(value))
    })
    .await
}

/// How catalogue and directories are compared.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewCheck {
    /// Make the catalogue follow the manifests of the Complete Models.
    #[serde(default)]
    repair: bool,
}

/// How catalogue and directories compare.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = RegistryCheck)]
pub(crate) struct CheckView {
    /// Complete Models that are as they should be.
    agree: usize,
    /// Directories whose manifest says they are Complete Models, and which are not listed.
    unlisted: Vec<String>,
    /// Listed models without a directory.
    missing: Vec<String>,
    /// Listed models whose manifest tells something else than the catalogue.
    differ: Vec<String>,
    /// Entries among the Complete Models that are none.
    foreign: Vec<Foreign>,
    /// Base Models and Customized Models whose directory is gone.
    inputs_gone: Vec<String>,
    /// Whether what can be repaired was.
    repaired: bool,
}

/// An entry that is no Complete Model.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Foreign {
    /// Its name.
    name: String,
    /// Why it is none.
    reason: String,
}

/// Compares the catalogue with what is on the disk.
#[utoipa::path(post, path = "/registry/check", tag = "Server", operation_id = "check_registry",
    request_body = NewCheck,
    responses((status = 200, description = "What was found", body = CheckView)))]
pub(crate) async fn check(
    State(app): State<App>,
    Body(new): Body<NewCheck>,
) -> Result<Json<CheckView>, Problem> {
    app.change(move |app| {
        let report = app.tenon.check(new.repair)?;
        let names = |names: Vec<tenon::ModelName>| names.into_iter().map(String::from).collect();
        Ok(Json(CheckView {
            agree: report.agree,
            unlisted: names(report.unlisted),
            missing: names(report.missing),
            differ: names(report.differ),
            foreign: report.foreign.into_iter().map(|(name, reason)| Foreign { name, reason }).collect(),
            inputs_gone: names(report.inputs_gone),
            repaired: report.repaired,
        }))
    })
    .await
}
