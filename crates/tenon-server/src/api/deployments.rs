//! Deployments: planned, and begun as jobs.

use axum::Json;
use axum::extract::State;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use tenon::{DeploymentPlan, DeploymentRequest, Quantization, QuantizeOn};
use utoipa::ToSchema;

use super::jobs::refuse_when_stopping;
use crate::app::App;
use crate::extract::Body;
use crate::idempotency::IdempotencyKey;
use crate::problem::Problem;
use crate::view::Job;

/// A deployment about to be planned or queued.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewDeployment {
    /// Name of a Complete Model; or of a Customized Model, which is saved first.
    #[schema(min_length = 1, max_length = 200)]
    model: String,
    /// Name of a Deployment Environment.
    #[schema(min_length = 1, max_length = 200)]
    environment: String,
    /// What to quantize to.
    quantization: QuantizationWord,
    /// Who quantizes; Tenon where nothing is said.
    #[serde(default)]
    quantize_on: QuantizeOnWord,
    /// Name of the model there; made of its own and the quantization where nothing is said.
    #[schema(min_length = 1, max_length = 200)]
    name: Option<String>,
    /// Whether to replace a model there that has the name already.
    #[serde(default)]
    replace: bool,
    /// Whether the adapter of a Customized Model is sent, for the server to apply to the base; where not, it is saved first.
    #[serde(default)]
    as_adapter: bool,
}

/// What a model is quantized to when it is deployed.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize, ToSchema)]
#[schema(as = Quantization)]
pub(crate) enum QuantizationWord {
    /// Not at all.
    #[default]
    #[serde(rename = "no_quantization")]
    None,
    /// 8 bits.
    #[serde(rename = "q8_0")]
    Q8_0,
    /// 4 bits mostly, more where it matters.
    #[serde(rename = "q4_K_M")]
    Q4KM,
    /// 4 bits mostly.
    #[serde(rename = "q4_K_S")]
    Q4KS,
}

/// Who quantizes.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(as = QuantizeOn)]
pub(crate) enum QuantizeOnWord {
    /// Tenon: only the quantized bytes travel.
    #[default]
    Tenon,
    /// The server, from the files as they are.
    Server,
}

impl From<QuantizationWord> for Quantization {
    fn from(word: QuantizationWord) -> Self {
        match word {
            QuantizationWord::None => Quantization::None,
            QuantizationWord::Q8_0 => Quantization::Q8_0,
            QuantizationWord::Q4KM => Quantization::Q4KM,
            QuantizationWord::Q4KS => Quantization::Q4KS,
        }
    }
}

impl From<NewDeployment> for DeploymentRequest {
    fn from(new: NewDeployment) -> Self {
        let quantization = new.quantization.into();
        let quantize_on = match new.quantize_on {
            QuantizeOnWord::Tenon => QuantizeOn::Tenon,
            QuantizeOnWord::Server => QuantizeOn::Server,
        };
        let NewDeployment { model, environment, name, replace, as_adapter, .. } = new;
        Self { model, environment, quantization, quantize_on, name, replace, as_adapter }
    }
}

/// What a deployment would do.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = DeploymentPlan)]
pub(crate) struct DeploymentPlanView {
    /// Name of the Complete Model; null where the Customized Model is saved first.
    complete: Option<String>,
    /// Name of the Customized Model.
    customized: String,
    /// Name of the Deployment Environment.
    environment: String,
    /// Its kind.
    kind: String,
    /// Its address.
    url: String,
    /// Name that the model will have there.
    model: String,
    /// What is sent: `gguf`, `safetensors` or `adapter`.
    sends: String,
    /// Bytes that are sent if none of them are there, where that is known before.
    bytes: Option<u64>,
    /// Name of the Deployment Template File's file.
    template: Option<String>,
    /// What a person should know.
    notes: Vec<String>,
}

impl From<DeploymentPlan> for DeploymentPlanView {
    fn from(plan: DeploymentPlan) -> Self {
        Self {
            complete: plan.complete.map(String::from),
            customized: plan.customized.into(),
            environment: plan.environment.into(),
            kind: plan.kind,
            url: plan.url,
            model: plan.model,
            sends: plan.sends.into(),
            bytes: plan.bytes,
            template: plan.template,
            notes: plan.notes,
        }
    }
}

/// Says what a deployment would do. Nothing is changed and no server is asked.
#[utoipa::path(post, path = "/deployments/plan", tag = "Jobs", operation_id = "plan_deployment",
    request_body = NewDeployment,
    responses((status = 200, description = "What it would do", body = DeploymentPlanView),
              (status = 404, description = "There is no such model or environment")))]
pub(crate) async fn plan(
    State(app): State<App>,
    Body(new): Body<NewDeployment>,
) -> Result<Json<DeploymentPlanView>, Problem> {
    app.verb(move |app| Ok(Json(app.tenon.plan_deployment(&new.into())?.into()))).await
}

/// Deploys a Complete Model: queues the job that makes a Live Model of it.
#[utoipa::path(post, path = "/deployments", tag = "Jobs", operation_id = "deploy",
    params(IdempotencyKey),
    request_body = NewDeployment,
    responses((status = 202, description = "It is queued", body = Job),
              (status = 404, description = "There is no such model or environment"),
              (status = 409, description = "A deployment that does the same is under way"),
              (status = 507, description = "The disk has no room for it")))]
pub(crate) async fn deploy(
    State(app): State<App>,
    Body(new): Body<NewDeployment>,
) -> Result<Response, Problem> {
    app.change(move |app| {
        refuse_when_stopping(app)?;
        let deployment = app.tenon.queue_deployment(&new.into())?.deployment;
        Ok(super::queued(&Job::from(&deployment)))
    })
    .await
}
