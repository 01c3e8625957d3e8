//! The verb `deploy`: a Complete Model becomes a Live Model, as a job that survives its caller.

use serde::Serialize;
use tenon_card::Card;
use tenon_deploy::template::DeploymentTemplate;
use tenon_deploy::{EnvironmentKind, Error as DeployError, ModelSettings, TemplateUse, backend};
use tenon_registry::{
    BaseModel, CompleteModel, Course, CustomizedModel, Deployment, DeploymentClaim, DeploymentState,
    Error as RegistryError, JobState, Manifest, ModelName, Quantization, QuantizeOn, Template, Uuid,
};

use crate::{Error, Tenon, as_adapter};

/// What somebody asks for.
#[derive(Debug, Clone)]
pub struct DeploymentRequest {
    /// Name of a Complete Model, or of a Customized Model, which is saved first.
    pub model: String,
    /// Name of a Deployment Environment.
    pub environment: String,
    /// What to quantize to.
    pub quantization: Quantization,
    /// Who does that.
    pub quantize_on: QuantizeOn,
    /// Name of the model there; drawn from its own and the quantization if there is none.
    pub name: Option<String>,
    /// Whether to replace a model there that has the name already.
    pub replace: bool,
    /// Whether a Customized Model is not saved first: its adapter goes to the server, which applies it
    /// to the base itself.
    pub as_adapter: bool,
}

/// What a deployment would do. Nothing was changed, here or there, and no server was asked.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DeploymentPlan {
    /// Name of the Complete Model; without one, the Customized Model is saved first, or its adapter sent.
    pub complete: Option<ModelName>,
    /// Name of the Customized Model.
    pub customized: ModelName,
    /// Name of the Deployment Environment.
    pub environment: ModelName,
    /// Its kind.
    pub kind: String,
    /// Its address.
    pub url: String,
    /// Name that the model will have there.
    pub model: String,
    /// What it is quantized to.
    pub quantization: Quantization,
    /// Who does that.
    pub quantize_on: QuantizeOn,
    /// What is sent: `gguf`, `safetensors` or `adapter`.
    pub sends: &'static str,
    /// Bytes that are sent if none of them are there, where that is known before.
    pub bytes: Option<u64>,
    /// Name of the Deployment Template File's file.
    pub template: Option<String>,
    /// What a person should know.
    pub notes: Vec<String>,
}

/// A deployment in the queue that this process will work on. Dropped, it stays queued for another.
#[derive(Debug)]
pub struct QueuedDeployment {
    /// Its record when it was queued.
    pub deployment: Deployment,
    pub(crate) claim: DeploymentClaim,
}

/// Hears how a deployment goes, and may stop it. `()` does neither.
pub trait DeploymentObserver: Sync {
    /// It is in another state; `total_bytes` of the record are to be done in it.
    fn entered(&self, deployment: &Deployment) {
        let _ = deployment;
    }

    /// So many more bytes are done.
    fn advanced(&self, bytes: u64) {
        let _ = bytes;
    }

    /// Something a person may want to read, such as what the server says it does.
    fn said(&self, line: &str) {
        let _ = line;
    }

    /// Whether to stop.
    fn cancelled(&self) -> bool {
        false
    }
}

impl DeploymentObserver for () {}

impl Tenon {
    /// What a request would do; finds every mistake that can be found without asking the server.
    pub fn plan_deployment(&self, request: &DeploymentRequest) -> Result<DeploymentPlan, Error> {
        let environment = self.environment(&request.environment)?;
        let backend = backend(&environment.environment)?;
        let (complete, customized, base) = self.subject(&request.model)?;
        let capabilities = backend.capabilities();
        let kind = environment.environment.kind;
        let quantizes_there =
            request.quantize_on == QuantizeOn::Server && request.quantization != Quantization::None;
        if quantizes_there && !capabilities.quantizes {
            return Err(DeployError::Unsupported {
                what: "quantizing".into(),
                kind,
                reason: "leave it to Tenon, without --quantize-on server".into(),
            }
            .into());
        }
        let sends = if request.as_adapter {
            self.check_adapter(&customized, complete.as_ref(), request, kind, capabilities.adapters)?;
            "adapter"
        } else if sends_directory(request.quantization, request.quantize_on) && capabilities.safetensors {
            "safetensors"
        } else if capabilities.gguf {
            "gguf"
        } else {
            return Err(DeployError::Unsupported {
                what: format!("a model in {}", request.quantization),
                kind,
                reason:
                    "it takes a GGUF, and such a server takes safetensors files only; use no_quantization"
                        .into(),
            }
            .into());
        };
        let template = self.template_of(&base)?;
        settings(template.as_ref())?;
        let mut notes = environment.environment.warnings();
        if capabilities.template == TemplateUse::Needed && template.is_none() {
            return Err(DeployError::NeedsTemplate { kind }.into());
        }
        if capabilities.template == TemplateUse::Ignored && template.is_some() {
            notes.push(
                "the Deployment Template File is not used: such a server takes the model's own chat_template"
                    .into(),
            );
        }
        if request.as_adapter && !as_adapter::takes_gguf(kind) {
            notes.push(format!(
                "the server must serve {base}, the base of this adapter; it is not asked whether it does"
            ));
        }
        let wanted = match &complete {
            Some(complete) => format!("{}:{}", complete.name, request.quantization),
            None => format!("{customized}:{}", request.quantization),
        };
        let model = match &request.name {
            Some(name) => backend.model_name(name, true)?,
            None => backend.model_name(&wanted, false)?,
        };
        if complete.is_none() && !request.as_adapter {
            notes.push("the Customized Model is saved first; unless --as says otherwise, the name there is that of its Complete Model".into());
        }
        let bytes = match &complete {
            Some(complete) if sends == "safetensors" => {
                Some(payload_files(&self.registry.manifest(&complete.name)?).map(|file| file.bytes).sum())
            }
            _ => None,
        };
        Ok(DeploymentPlan {
            complete: complete.map(|complete| complete.name),
            customized,
            environment: environment.name,
            kind: kind.to_string(),
            url: environment.environment.url,
            model,
            quantization: request.quantization,
            quantize_on: request.quantize_on,
            sends,
            bytes,
            template: template.map(|template| template.file),
            notes,
        })
    }

    /// Queues a deployment. A Customized Model's Saving is queued with it.
    ///
    /// A deployment that does the same and has not ended is an error that names it.
    pub fn queue_deployment(&self, request: &DeploymentRequest) -> Result<QueuedDeployment, Error> {
        let plan = self.plan_deployment(request)?;
        let (complete, customized, base) = self.subject(&request.model)?;
        let mut adapter = None;
        let (complete, saving, model) = match complete {
            Some(complete) => (Some(complete.name), Some(complete.saving), plan.model),
            None if request.as_adapter => {
                adapter = Some(customized);
                (None, None, plan.model)
            }
            None => {
                // Its claim is let go at once: whoever works on the deployment takes it up.
                let saving = self.queue(plan.customized.as_str())?.saving;
                let model = match &request.name {
                    Some(_) => plan.model,
                    None => {
                        let backend = backend(&self.environment(&request.environment)?.environment)?;
                        backend.model_name(&format!("{}:{}", saving.model, request.quantization), false)?
                    }
                };
                (Some(saving.model), Some(saving.id), model)
            }
        };
        let deployment = Deployment {
            id: Uuid::new_v4(),
            complete,
            saving,
            adapter,
            environment: plan.environment,
            model,
            quantization: request.quantization,
            quantize_on: request.quantize_on,
            replace: request.replace,
            template: self.template_of(&base)?,
            state: DeploymentState::Queued,
            reason: None,
            remedy: None,
            left_there: vec![],
            said: None,
            sent_bytes: 0,
            claimed: false,
            course: Course::new(),
        };
        let claim = self.registry.queue_deployment(&deployment)?;
        Ok(QueuedDeployment { deployment, claim })
    }

    /// Takes up a deployment that is queued and that no process holds: the one with this id, or the oldest.
    pub fn adopt_deployment(&self, id: Option<Uuid>) -> Result<Option<QueuedDeployment>, Error> {
        let ids = match id {
            Some(id) => vec![id],
            None => {
                self.registry.open_jobs::<Deployment>()?.into_iter().map(|deployment| deployment.id).collect()
            }
        };
        for id in ids {
            if let Some(claim) = self.registry.adopt(id)? {
                let deployment = self.registry.get(&id.to_string())?;
                return Ok(Some(QueuedDeployment { deployment, claim }));
            }
        }
        Ok(None)
    }

    /// Deployments, oldest first.
    pub fn deployments(&self) -> Result<Vec<Deployment>, Error> {
        Ok(self.registry.all()?)
    }

    /// The one with a UUID.
    pub fn deployment(&self, id: Uuid) -> Result<Deployment, Error> {
        Ok(self.registry.get(&id.to_string())?)
    }

    /// Asks to stop a deployment. One that nobody works on ends at once.
    pub fn cancel_deployment(&self, id: Uuid) -> Result<Deployment, Error> {
        Ok(self.registry.cancel(id)?)
    }

    /// Queues again what a deployment that failed or was cancelled was to do, as another deployment.
    pub fn retry_deployment(&self, id: Uuid) -> Result<QueuedDeployment, Error> {
        let past = self.deployment(id)?;
        if !matches!(past.state, DeploymentState::Failed | DeploymentState::Cancelled) {
            return Err(RegistryError::NotOpen { what: "deployment", id, state: past.state.name() }.into());
        }
        let request = DeploymentRequest {
            model: past.subject().to_string(),
            environment: past.environment.to_string(),
            quantization: past.quantization,
            quantize_on: past.quantize_on,
            name: Some(past.model.clone()),
            replace: past.replace,
            as_adapter: past.adapter.is_some(),
        };
        if past.adapter.is_some() || self.registry.find::<CompleteModel>(past.subject())?.is_some() {
            return self.queue_deployment(&request);
        }
        // Its model was never saved: that is tried again as well, and the model gets a new name.
        let saving = self.registry.saving_of(&past)?;
        let Some(saving) = saving.filter(|saving| saving.state != JobState::Done) else {
            return self.queue_deployment(&request);
        };
        let backend = backend(&self.environment(past.environment.as_str())?.environment)?;
        let drawn = backend.model_name(&format!("{}:{}", past.subject(), past.quantization), false)?;
        let name = request.name.filter(|name| *name != drawn);
        self.queue_deployment(&DeploymentRequest { model: saving.customized.to_string(), name, ..request })
    }

    /// The Complete Model with a name, or none for that of a Customized Model; then the names of the
    /// Customized Model and the Base Model.
    fn subject(&self, name: &str) -> Result<(Option<CompleteModel>, ModelName, ModelName), Error> {
        if let Some(complete) = self.registry.find::<CompleteModel>(name)? {
            let (customized, base) = (complete.customized.clone(), complete.base.clone());
            return Ok((Some(complete), customized, base));
        }
        if let Some(customized) = self.registry.find::<CustomizedModel>(name)? {
            return Ok((None, customized.name, customized.base));
        }
        let complete: CompleteModel = self.registry.get(name)?;
        let (customized, base) = (complete.customized.clone(), complete.base.clone());
        Ok((Some(complete), customized, base))
    }

    /// Refuses to deploy as an adapter what is none, or what the server does not take as one.
    fn check_adapter(
        &self,
        customized: &ModelName,
        complete: Option<&CompleteModel>,
        request: &DeploymentRequest,
        kind: EnvironmentKind,
        takes_adapters: bool,
    ) -> Result<(), Error> {
        let refused = |what: String, reason: &str| -> Error {
            DeployError::Unsupported { what, kind, reason: reason.into() }.into()
        };
        if let Some(complete) = complete {
            let what = format!("deploying {} as an adapter", complete.name);
            return Err(refused(what, "it is a Complete Model; its Customized Model can be"));
        }
        if !takes_adapters {
            let what = format!("deploying {customized} as an adapter");
            let reason = match kind {
                EnvironmentKind::LlamaServer => {
                    "it takes one only when it is started: set --option models-preset=FILE or adapter-command=...; \
                     without --as-adapter it is saved first, and deployed whole"
                }
                _ => "its API loads none; without --as-adapter it is saved first, and deployed whole",
            };
            return Err(refused(what, reason));
        }
        if request.quantization != Quantization::None && !as_adapter::takes_gguf(kind) {
            let reason = "it applies the adapter to the base that it serves; use no_quantization";
            return Err(refused("quantizing what an adapter is applied to".into(), reason));
        }
        let customized: CustomizedModel = self.registry.get(customized.as_str())?;
        let base: BaseModel = self.registry.get(customized.base.as_str())?;
        as_adapter::check(&customized, &base, kind)
    }

    fn template_of(&self, base: &ModelName) -> Result<Option<Template>, Error> {
        Ok(self.registry.find::<BaseModel>(base.as_str())?.and_then(|base| base.template))
    }
}

/// Whether the files go as they are.
pub(crate) fn sends_directory(quantization: Quantization, on: QuantizeOn) -> bool {
    quantization == Quantization::None || on == QuantizeOn::Server
}

/// The files of a Complete Model that make the model: not its card and manifest.
pub(crate) fn payload_files(manifest: &Manifest) -> impl Iterator<Item = &tenon_registry::OutputFile> {
    let is_part = |name: &str| {
        let is_card =
            [Card::MARKDOWN_FILE, Card::JSON_FILE, Card::CHART_FILE, Manifest::FILE].contains(&name);
        // The index names shards that the server sees anyway.
        !is_card && !name.ends_with(".safetensors.index.json")
    };
    manifest.outputs.iter().filter(move |file| is_part(&file.name))
}

/// What a Deployment Template File says, in the terms of backends.
pub(crate) fn settings(template: Option<&Template>) -> Result<ModelSettings, Error> {
    let Some(template) = template else { return Ok(ModelSettings::default()) };
    // Checked again: an earlier version may have let it through.
    Ok(DeploymentTemplate::parse(&template.file, &template.text)?.settings())
}
