//! The verb `deploy`: a Complete Model becomes a Live Model, as a job that survives its caller.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::json;
use tenon_card::Card;
use tenon_checkpoint::{Digest, Error as CheckpointError, Observer};
use tenon_deploy::template::DeploymentTemplate;
use tenon_deploy::{
    Backend, Error as DeployError, Found, ModelSettings, Order, Payload, SourceFile, Step, TemplateUse,
    Watch, backend,
};
use tenon_registry::{
    BaseModel, CompleteModel, CustomizedModel, Deployment, DeploymentClaim, DeploymentState,
    Error as RegistryError, LiveCondition, LiveModel, Manifest, ModelName, Quantization, QuantizeOn, Saving,
    Template, Timestamp, Uuid,
};

use crate::environments::DeploymentEnvironment;
use crate::{Error, Tenon};

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
}

/// What a deployment would do. Nothing was changed, here or there, and no server was asked.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DeploymentPlan {
    /// Name of the Complete Model; without one, the Customized Model is saved first.
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
    /// What is sent: `gguf` or `safetensors`.
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
    claim: DeploymentClaim,
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

/// How often progress goes to the catalogue, and the catalogue is asked whether to stop.
const HEARTBEAT: Duration = Duration::from_millis(400);
/// How often a deployment that waits asks for its turn.
const TURN: Duration = Duration::from_millis(150);
/// How long clearing away after a failure may take.
const CLEARING: Duration = Duration::from_secs(20);

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
        let sends = if sends_directory(request.quantization, request.quantize_on) && capabilities.safetensors
        {
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
        let wanted = match &complete {
            Some(complete) => format!("{}:{}", complete.name, request.quantization),
            None => format!("{customized}:{}", request.quantization),
        };
        let model = match &request.name {
            Some(name) => backend.model_name(name, true)?,
            None => backend.model_name(&wanted, false)?,
        };
        if complete.is_none() {
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
        let (complete, _, base) = self.subject(&request.model)?;
        let (complete, saving, model) = match complete {
            Some(complete) => (complete.name, complete.saving, plan.model),
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
                (saving.model, saving.id, model)
            }
        };
        let deployment = Deployment {
            id: Uuid::new_v4(),
            complete,
            saving,
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
            created: Timestamp::now(),
            started: None,
            finished: None,
            done_bytes: 0,
            total_bytes: 0,
            sent_bytes: 0,
            claimed: false,
            pid: Some(std::process::id()),
            attempts: 0,
            cancel: false,
        };
        let claim = self.registry.queue_deployment(&deployment)?;
        Ok(QueuedDeployment { deployment, claim })
    }

    /// Takes up a deployment that is queued and that no process holds: the one with this id, or the oldest.
    pub fn adopt_deployment(&self, id: Option<Uuid>) -> Result<Option<QueuedDeployment>, Error> {
        let ids = match id {
            Some(id) => vec![id],
            None => self.registry.open_deployments()?.into_iter().map(|deployment| deployment.id).collect(),
        };
        for id in ids {
            if let Some(claim) = self.registry.adopt_deployment(id)? {
                let deployment = self.registry.get(&id.to_string())?;
                return Ok(Some(QueuedDeployment { deployment, claim }));
            }
        }
        Ok(None)
    }

    /// Waits for the deployment's turn, brings the model there and sees it answer. If this fails or is
    /// cancelled there is no Live Model of it, and its record tells why, and what it left there.
    pub fn run_deployment(
        &self,
        queued: QueuedDeployment,
        observer: &dyn DeploymentObserver,
    ) -> Result<LiveModel, Error> {
        let QueuedDeployment { deployment, claim } = queued;
        let mut there = None;
        let result = self.bring(&deployment, &claim, observer, &mut there).and_then(|live| {
            self.registry.go_live(&claim, &live)?;
            Ok(live)
        });
        result.map_err(|error| self.give_up_deployment(claim, error, there))
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
        Ok(self.registry.cancel_deployment(id)?)
    }

    /// Queues again what a deployment that failed or was cancelled was to do, as another deployment.
    pub fn retry_deployment(&self, id: Uuid) -> Result<QueuedDeployment, Error> {
        let past = self.deployment(id)?;
        if !matches!(past.state, DeploymentState::Failed | DeploymentState::Cancelled) {
            return Err(RegistryError::DeploymentNotOpen { id, state: past.state.name() }.into());
        }
        self.queue_deployment(&DeploymentRequest {
            model: past.complete.to_string(),
            environment: past.environment.to_string(),
            quantization: past.quantization,
            quantize_on: past.quantize_on,
            name: Some(past.model),
            replace: past.replace,
        })
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

    fn template_of(&self, base: &ModelName) -> Result<Option<Template>, Error> {
        Ok(self.registry.find::<BaseModel>(base.as_str())?.and_then(|base| base.template))
    }

    fn bring(
        &self,
        queued: &Deployment,
        claim: &DeploymentClaim,
        observer: &dyn DeploymentObserver,
        there: &mut Option<There>,
    ) -> Result<LiveModel, Error> {
        let deployment = self.wait_for_deployment(queued, claim, observer)?;
        observer.entered(&deployment);
        let environment = self.environment(deployment.environment.as_str())?;
        let (complete, manifest) = self.show(deployment.complete.as_str())?;
        // Nobody deletes it while it is read.
        let _held = self.registry.hold(&complete.name)?;
        let backend = backend(&environment.environment)?;
        let watch = Watching {
            tenon: self,
            claim,
            observer,
            total: AtomicU64::new(0),
            done: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            sent_before: deployment.sent_bytes,
            said: Mutex::new(None),
            cancelled: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            fault: Mutex::new(None),
        };
        let seen = std::thread::scope(|scope| {
            let heart = scope.spawn(|| watch.beat());
            let seen =
                self.bring_watched(&deployment, &environment, &complete, &manifest, &*backend, &watch, there);
            watch.ended.store(true, Ordering::Release);
            heart.thread().unpark();
            seen
        });
        // What kept a state from being written says more than that the deployment ended there.
        match (seen, watch.fault.into_inner().unwrap_or_else(PoisonError::into_inner)) {
            (Err(_), Some(fault)) => Err(fault),
            (seen, _) => seen,
        }
    }

    #[expect(clippy::too_many_arguments, reason = "one call, which only scopes the heartbeat")]
    fn bring_watched(
        &self,
        deployment: &Deployment,
        environment: &DeploymentEnvironment,
        complete: &CompleteModel,
        manifest: &Manifest,
        backend: &dyn Backend,
        watch: &Watching<'_>,
        there: &mut Option<There>,
    ) -> Result<LiveModel, Error> {
        let settings = settings(deployment.template.as_ref())?;
        let condition = backend.check(Some(&settings), watch)?;
        self.registry.update(environment.name.as_str(), &mut |record: &mut DeploymentEnvironment| {
            let (at, condition) = (Timestamp::now(), Some(condition.clone()));
            record.tested = Some(crate::environments::EnvironmentTest { at, condition, reason: None });
        })?;
        let before = backend.find(&deployment.model, watch)?;
        let known: Option<LiveModel> =
            self.registry.find(&format!("{}/{}", deployment.environment, deployment.model))?;
        let is_ours = deployment.claimed
            || deployment.replace
            || known.as_ref().is_some_and(|live| live.saving == complete.saving);
        if before.is_some() && !is_ours {
            return Err(Error::NameTakenThere {
                model: deployment.model.clone(),
                environment: deployment.environment.clone(),
            });
        }
        *there = Some(There {
            environment: environment.clone(),
            before: before.clone(),
            resumed: deployment.claimed,
        });
        let capabilities = backend.capabilities();
        let payload =
            if sends_directory(deployment.quantization, deployment.quantize_on) && capabilities.safetensors {
                let dir = self.registry.home().complete(&complete.name);
                let files = payload_files(manifest).map(|file| SourceFile {
                    name: file.name.clone(),
                    path: dir.join(&file.name),
                    bytes: file.bytes,
                    sha256: file.sha256,
                });
                Payload::Directory { files: files.collect(), dir }
            } else {
                watch.enter(DeploymentState::Quantizing, manifest.output_bytes(), |_| {})?;
                Payload::Gguf(self.gguf_file(complete, deployment.quantization, watch)?)
            };
        let quantize = (deployment.quantize_on == QuantizeOn::Server
            && deployment.quantization != Quantization::None)
            .then(|| deployment.quantization.name().to_string());
        let model = deployment.model.clone();
        let mut order = Order { model, payload, quantize, made_before: vec![], settings };
        let digest = fingerprint(&order);
        if let Some(live) = known.as_ref().filter(|live| live.order == digest) {
            order.made_before = live.weights.clone();
        }
        watch.total.store(order.payload.bytes(), Ordering::Relaxed);
        // The same order, and the server still has what it made of it: nothing to send.
        let is_there = known.as_ref().is_some_and(|live| {
            live.order == digest
                && before.as_ref().is_some_and(|found| found.digest.is_some() && found.digest == live.digest)
        });
        if is_there {
            watch.said("the same was deployed before, and is there");
        } else {
            backend.deploy(&order, watch)?;
        }
        watch.enter(DeploymentState::Verifying, 0, |_| {})?;
        let verified = backend.verify(&order, watch)?;
        let now = Timestamp::now();
        Ok(LiveModel {
            environment: environment.name.clone(),
            kind: environment.environment.kind.to_string(),
            url: environment.environment.url.clone(),
            model: verified.found.model,
            digest: verified.found.digest,
            weights: verified.found.weights,
            order: digest,
            quantization: deployment.quantization,
            bytes: order.payload.bytes(),
            complete: complete.name.clone(),
            saving: complete.saving,
            customized: complete.customized.clone(),
            base: complete.base.clone(),
            deployment: deployment.id,
            created: now,
            checked: now,
            condition: LiveCondition::Live,
            note: None,
        })
    }

    /// Waits until no other deployment is before this one, and until its model is saved: does the
    /// Saving itself if nobody else does.
    fn wait_for_deployment(
        &self,
        queued: &Deployment,
        claim: &DeploymentClaim,
        observer: &dyn DeploymentObserver,
    ) -> Result<Deployment, Error> {
        let mut asked = 0u32;
        loop {
            if let Some(started) = self.registry.start_deployment(claim)? {
                return Ok(started);
            }
            if observer.cancelled() {
                return Err(CheckpointError::Cancelled.into());
            }
            let saving: Option<Saving> = self.registry.find(&queued.saving.to_string())?;
            if saving.is_some_and(|saving| saving.state.is_open())
                && let Some(queued) = self.adopt(Some(queued.saving))?
            {
                observer.said(&format!("saving {} first", queued.saving.customized));
                self.run_saving(
                    queued,
                    &SavingWatch { tenon: self, claim, observer, last: Mutex::new(Instant::now()) },
                )?;
                continue;
            }
            std::thread::sleep(TURN);
            asked += 1;
            // Those ahead may have died.
            if asked.is_multiple_of(20) {
                self.registry.recover()?;
            }
        }
    }

    /// Ends a deployment that has no Live Model to show: clears away there what it made, and writes down
    /// why, and what stays.
    fn give_up_deployment(&self, claim: DeploymentClaim, error: Error, there: Option<There>) -> Error {
        let id = claim.id();
        let left =
            self.deployment(id).map(|deployment| self.clear_away(&deployment, there)).unwrap_or_default();
        let (state, reason, remedy) = if error.is_cancelled() {
            (DeploymentState::Cancelled, None, None)
        } else {
            let remedy = match &error {
                Error::Deploy(error) => error.remedy(),
                _ => None,
            };
            (DeploymentState::Failed, Some(error.to_string()), remedy)
        };
        let ended = self.registry.give_up_deployment(claim, state, &mut |deployment| {
            deployment.reason = reason.clone();
            deployment.remedy = remedy.map(str::to_string);
            deployment.left_there = left.clone();
        });
        match ended {
            Err(second) => Error::NotEnded { id, error: Box::new(error), second: Box::new(second.into()) },
            Ok(()) if left.is_empty() => error,
            Ok(()) => Error::LeftThere { error: Box::new(error), left },
        }
    }

    /// Removes the model that a deployment may have made there, if its name was free before; tells what stays.
    fn clear_away(&self, deployment: &Deployment, there: Option<There>) -> Vec<String> {
        let Some(there) = there else {
            return if deployment.claimed { vec![perhaps(deployment)] } else { vec![] };
        };
        let mut left = vec![];
        if deployment.claimed {
            let until = Until(Instant::now() + CLEARING);
            let cleared = backend(&there.environment.environment).and_then(|backend| {
                let found = backend.find(&deployment.model, &until)?;
                match (&there.before, found) {
                    (_, None) => Ok(None),
                    (None, Some(_)) => backend.remove(&deployment.model, &until).map(|_| None),
                    // An earlier attempt made it; that attempt found the name free or was told to replace.
                    (Some(_), Some(_)) if there.resumed && !deployment.replace => {
                        backend.remove(&deployment.model, &until).map(|_| None)
                    }
                    (Some(before), Some(found)) => Ok((before.digest != found.digest).then_some(found)),
                }
            });
            match cleared {
                Ok(None) => {}
                Ok(Some(_)) => {
                    left.push(format!(
                        "the model {}, in the place of the one that was there before",
                        deployment.model
                    ));
                    self.note_changed(deployment);
                }
                Err(error) => {
                    left.push(format!("{} (asking the server failed: {error})", perhaps(deployment)))
                }
            }
        }
        if deployment.sent_bytes > 0 {
            left.push(format!(
                "{} bytes of files that were sent; Ollama removes files that no model uses when it starts, and another attempt uses them",
                deployment.sent_bytes
            ));
        }
        left
    }

    /// The Live Model that had the name is not what is there now.
    fn note_changed(&self, deployment: &Deployment) {
        let key = format!("{}/{}", deployment.environment, deployment.model);
        // Without this note, the next check finds out.
        let _ = self.registry.update(&key, &mut |live: &mut LiveModel| {
            live.condition = LiveCondition::Changed;
            live.note = Some(format!("deployment {} replaced it and failed", deployment.id));
        });
    }
}

/// What was known of the environment before something was changed there.
struct There {
    environment: DeploymentEnvironment,
    before: Option<Found>,
    /// An earlier attempt had claimed the name already.
    resumed: bool,
}

fn perhaps(deployment: &Deployment) -> String {
    format!(
        "perhaps the model {} on {}; deploy it again, or remove it there",
        deployment.model, deployment.environment
    )
}

/// Stops at a moment.
struct Until(Instant);

impl Watch for Until {
    fn cancelled(&self) -> bool {
        Instant::now() > self.0
    }
}

/// Whether the files go as they are.
fn sends_directory(quantization: Quantization, on: QuantizeOn) -> bool {
    quantization == Quantization::None || on == QuantizeOn::Server
}

/// The files of a Complete Model that make the model: not its card and manifest.
fn payload_files(manifest: &Manifest) -> impl Iterator<Item = &tenon_registry::OutputFile> {
    let is_part = |name: &str| {
        let is_card =
            [Card::MARKDOWN_FILE, Card::JSON_FILE, Card::CHART_FILE, Manifest::FILE].contains(&name);
        // The index names shards that the server sees anyway.
        !is_card && !name.ends_with(".safetensors.index.json")
    };
    manifest.outputs.iter().filter(move |file| is_part(&file.name))
}

/// What a Deployment Template File says, in the terms of backends.
fn settings(template: Option<&Template>) -> Result<ModelSettings, Error> {
    let Some(template) = template else { return Ok(ModelSettings::default()) };
    // Checked again: an earlier version may have let it through.
    Ok(DeploymentTemplate::parse(&template.file, &template.text)?.settings())
}

/// Of everything that decides what the server makes.
fn fingerprint(order: &Order) -> Digest {
    let files: Vec<_> = order.payload.files().iter().map(|file| (&file.name, file.sha256)).collect();
    let all = json!({ "files": files, "quantize": order.quantize, "settings": order.settings });
    Digest::of(all.to_string().as_bytes())
}

/// Passes progress on to the caller and the catalogue, and states to the catalogue before they begin.
struct Watching<'a> {
    tenon: &'a Tenon,
    claim: &'a DeploymentClaim,
    observer: &'a dyn DeploymentObserver,
    /// Of the payload.
    total: AtomicU64,
    done: AtomicU64,
    sent: AtomicU64,
    sent_before: u64,
    said: Mutex<Option<String>>,
    cancelled: AtomicBool,
    ended: AtomicBool,
    fault: Mutex<Option<Error>>,
}

impl Watching<'_> {
    fn enter(&self, state: DeploymentState, total: u64, edit: impl Fn(&mut Deployment)) -> Result<(), Error> {
        self.done.store(0, Ordering::Relaxed);
        let deployment = self.tenon.registry.advance_deployment(self.claim, state, &mut |deployment| {
            deployment.total_bytes = total;
            deployment.sent_bytes = self.sent_before + self.sent.load(Ordering::Relaxed);
            edit(deployment);
        })?;
        self.observer.entered(&deployment);
        Ok(())
    }

    fn beat(&self) {
        while !self.ended.load(Ordering::Acquire) {
            std::thread::park_timeout(HEARTBEAT);
            if self.ended.load(Ordering::Acquire) {
                return;
            }
            let said = self.said.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let noted = self.tenon.registry.note_deployment(self.claim.id(), &mut |deployment| {
                deployment.done_bytes = self.done.load(Ordering::Relaxed);
                deployment.sent_bytes = self.sent_before + self.sent.load(Ordering::Relaxed);
                deployment.said = said.clone();
            });
            // A catalogue that cannot be written for a moment does not stop the deployment.
            if noted.unwrap_or(false) {
                self.cancelled.store(true, Ordering::Relaxed);
            }
        }
    }
}

impl Watch for Watching<'_> {
    fn step(&self, step: Step) -> Result<(), DeployError> {
        let entered = match step {
            Step::Uploading => {
                self.enter(DeploymentState::Uploading, self.total.load(Ordering::Relaxed), |_| {})
            }
            Step::Creating => {
                self.enter(DeploymentState::Creating, 0, |deployment| deployment.claimed = true)
            }
        };
        entered.map_err(|error| {
            *self.fault.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
            DeployError::Cancelled
        })
    }

    fn advanced(&self, bytes: u64, sent: u64) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
        self.sent.fetch_add(sent, Ordering::Relaxed);
        self.observer.advanced(bytes);
    }

    fn said(&self, line: &str) {
        *self.said.lock().unwrap_or_else(PoisonError::into_inner) = Some(line.to_string());
        self.observer.said(line);
    }

    fn cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed) || self.observer.cancelled()
    }
}

/// As an observer of the making of a GGUF.
impl Observer for Watching<'_> {
    fn advanced(&self, bytes: u64) {
        Watch::advanced(self, bytes, 0);
    }

    fn cancelled(&self) -> bool {
        Watch::cancelled(self)
    }
}

/// The observer of a Saving that a deployment waits for.
struct SavingWatch<'a> {
    tenon: &'a Tenon,
    claim: &'a DeploymentClaim,
    observer: &'a dyn DeploymentObserver,
    last: Mutex<Instant>,
}

impl Observer for SavingWatch<'_> {
    fn advanced(&self, bytes: u64) {
        self.observer.advanced(bytes);
    }

    fn cancelled(&self) -> bool {
        if self.observer.cancelled() {
            return true;
        }
        // Asked for every tile; the catalogue is looked at now and then.
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.elapsed() < HEARTBEAT {
            return false;
        }
        *last = Instant::now();
        self.tenon.deployment(self.claim.id()).is_ok_and(|deployment| deployment.cancel)
    }
}

impl Tenon {
    /// The GGUF of a Complete Model.
    fn gguf_file(
        &self,
        complete: &CompleteModel,
        quantization: Quantization,
        observer: &dyn Observer,
    ) -> Result<SourceFile, Error> {
        // Until the facade makes it: one that was put into the model's artifacts.
        let name = format!("{quantization}.gguf");
        let path = self.registry.home().artifacts(complete.saving).join(&name);
        let file = std::fs::File::open(&path).map_err(CheckpointError::io("open", &path))?;
        let bytes = file.metadata().map_err(CheckpointError::io("examine", &path))?.len();
        let sha256 = tenon_checkpoint::hash_file(&file, &path, observer)?;
        Ok(SourceFile { name, path, bytes, sha256 })
    }
}
