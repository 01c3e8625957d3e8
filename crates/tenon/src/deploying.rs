//! A deployment at work: from its turn to a Live Model, or to a reason and nothing left behind.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::json;
use tenon_checkpoint::{Digest, Error as CheckpointError};
use tenon_deploy::{
    Backend, EnvironmentKind, Error as DeployError, Found, Order, Payload, SourceFile, Watch, backend,
};
use tenon_registry::{
    BaseModel, CompleteModel, CustomizedModel, Deployment, DeploymentClaim, DeploymentState, LiveCondition,
    LiveModel, Manifest, Quantization, QuantizationQuality, QuantizeOn, Timestamp,
};

use crate::deployment::{payload_files, sends_directory, settings};
use crate::environments::DeploymentEnvironment;
use crate::heart::Heart;
use crate::joblog::LogStep;
use crate::live::called;
use crate::watching::{SavingWatch, Until, Watching};
use crate::{Artifact, DeploymentObserver, Error, GgufOptions, QueuedDeployment, Rules, Tenon, as_adapter};

/// How often a deployment that waits asks for its turn.
const TURN: Duration = Duration::from_millis(150);
/// How long clearing away after a failure may take.
const CLEARING: Duration = Duration::from_secs(20);

impl Tenon {
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

    fn bring(
        &self,
        queued: &Deployment,
        claim: &DeploymentClaim,
        observer: &dyn DeploymentObserver,
        there: &mut Option<There>,
    ) -> Result<LiveModel, Error> {
        let deployment = self.wait_for_deployment(queued, claim, observer)?;
        self.note(deployment.id, LogStep::Started, format!("attempt {}", deployment.course.attempts));
        self.note(deployment.id, LogStep::Step, deployment.state.name());
        observer.entered(&deployment);
        let environment = self.environment(deployment.environment.as_str())?;
        let subject = self.subject_of(&deployment)?;
        // Nobody deletes it while it is read.
        let _held = match &subject {
            Subject::Complete(complete, _) => Some(self.registry.hold(&complete.name)?),
            Subject::Adapter(..) => None,
        };
        let backend = backend(&environment.environment)?;
        let watch = Watching {
            tenon: self,
            claim,
            observer,
            total: AtomicU64::new(0),
            heart: Heart::new(self, 0),
            sent: AtomicU64::new(0),
            sent_before: deployment.sent_bytes,
            said: Mutex::new(None),
            fault: Mutex::new(None),
        };
        let seen =
            watch.beat(|| self.bring_watched(&deployment, &environment, &subject, &*backend, &watch, there));
        // What kept a state from being written says more than that the deployment ended there.
        match (seen, watch.fault.into_inner().unwrap_or_else(PoisonError::into_inner)) {
            (Err(_), Some(fault)) => Err(fault),
            (seen, _) => seen,
        }
    }

    fn bring_watched(
        &self,
        deployment: &Deployment,
        environment: &DeploymentEnvironment,
        subject: &Subject,
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
        let before = if condition.not_running { None } else { backend.find(&deployment.model, watch)? };
        let known: Option<LiveModel> =
            self.registry.find(&format!("{}/{}", deployment.environment, deployment.model))?;
        let is_ours = deployment.claimed
            || deployment.replace
            || known.as_ref().is_some_and(|live| live.subject().as_str() == deployment.subject());
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
            not_running: condition.not_running,
        });
        let (payload, quality) = self.payload(deployment, environment, subject, backend, watch)?;
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
        let (now, note) = (Timestamp::now(), called(&verified.found));
        let (customized, base) = match subject {
            Subject::Complete(complete, _) => (complete.customized.clone(), complete.base.clone()),
            Subject::Adapter(customized, base) => (customized.name.clone(), base.name.clone()),
        };
        Ok(LiveModel {
            environment: environment.name.clone(),
            kind: environment.environment.kind.to_string(),
            url: environment.environment.url.clone(),
            model: verified.found.model,
            digest: verified.found.digest,
            weights: verified.found.weights,
            order: digest,
            quantization: deployment.quantization,
            quality,
            bytes: order.payload.bytes(),
            complete: deployment.complete.clone(),
            saving: deployment.saving,
            customized,
            base,
            deployment: deployment.id,
            created: now,
            checked: now,
            condition: LiveCondition::Live,
            note,
        })
    }

    fn subject_of(&self, deployment: &Deployment) -> Result<Subject, Error> {
        let Some(adapter) = &deployment.adapter else {
            let (complete, manifest) = self.show(deployment.subject())?;
            return Ok(Subject::Complete(complete, Box::new(manifest)));
        };
        let customized: CustomizedModel = self.registry.get(adapter.as_str())?;
        let base: BaseModel = self.registry.get(customized.base.as_str())?;
        Ok(Subject::Adapter(customized, Box::new(base)))
    }

    /// The files that make the model, made now or before; and what quantizing cost.
    fn payload(
        &self,
        deployment: &Deployment,
        environment: &DeploymentEnvironment,
        subject: &Subject,
        backend: &dyn Backend,
        watch: &Watching<'_>,
    ) -> Result<(Payload, Option<QuantizationQuality>), Error> {
        let (complete, manifest) = match subject {
            Subject::Complete(complete, manifest) => (complete, manifest),
            Subject::Adapter(customized, base) => {
                return self.adapter_payload(deployment, environment, customized, base, watch);
            }
        };
        if sends_directory(deployment.quantization, deployment.quantize_on)
            && backend.capabilities().safetensors
        {
            let dir = self.registry.home().complete(&complete.name);
            let files = payload_files(manifest).map(|file| SourceFile {
                name: file.name.clone(),
                path: dir.join(&file.name),
                bytes: file.bytes,
                sha256: file.sha256,
            });
            return Ok((Payload::Directory { files: files.collect(), dir }, None));
        }
        let artifact =
            self.gguf_of(complete, deployment.quantization, environment.environment.kind, watch)?;
        let file = artifact_file(format!("model-{}.gguf", deployment.quantization), &artifact);
        Ok((Payload::Gguf(file), artifact.quality))
    }

    /// An adapter as the server takes it. Who gets it as GGUF gets the base too: what a server made of
    /// the files of both would be another adapter (Ollama takes the rows of a Llama's `A` for those of `B`).
    fn adapter_payload(
        &self,
        deployment: &Deployment,
        environment: &DeploymentEnvironment,
        customized: &CustomizedModel,
        base: &BaseModel,
        watch: &Watching<'_>,
    ) -> Result<(Payload, Option<QuantizationQuality>), Error> {
        let kind = environment.environment.kind;
        // It may have changed since this was queued.
        as_adapter::check(customized, base, kind)?;
        if !as_adapter::takes_gguf(kind) {
            return Ok((as_adapter::payload(customized, watch)?, None));
        }
        for (path, files, name) in
            [(&base.path, &base.files, &base.name), (&customized.path, &customized.files, &customized.name)]
        {
            as_adapter::check_unchanged(path, files, name.as_str(), watch)?;
        }
        let options = options_for(kind);
        let quantization = match deployment.quantize_on {
            QuantizeOn::Tenon => deployment.quantization,
            QuantizeOn::Server => Quantization::None,
        };
        let of_base = self.plan_base_artifact(base, quantization, &options)?;
        watch.enter(DeploymentState::Quantizing, of_base.work_bytes(), |_| {})?;
        let of_base = of_base.make(watch)?;
        let of_adapter = self.adapter_artifact(customized, base, watch)?;
        let dir = of_adapter.path.parent().map(Path::to_path_buf).unwrap_or_default();
        // A llama-server takes whatever ends in .gguf for a model.
        let name = if kind == EnvironmentKind::LlamaServer { "adapter.lora" } else { "adapter.gguf" };
        let files = vec![artifact_file(name.into(), &of_adapter)];
        let base = vec![artifact_file(format!("base-{quantization}.gguf"), &of_base)];
        Ok((Payload::Adapter { dir, files, base }, of_base.quality))
    }

    /// The GGUF of a Complete Model, made now or before.
    fn gguf_of(
        &self,
        complete: &CompleteModel,
        quantization: Quantization,
        kind: EnvironmentKind,
        watch: &Watching<'_>,
    ) -> Result<Artifact, Error> {
        let (name, options) = (complete.name.as_str(), options_for(kind));
        let artifact = self.plan_gguf_artifact(name, quantization, &options)?;
        watch.enter(DeploymentState::Quantizing, artifact.work_bytes(), |_| {})?;
        artifact.make(watch)
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
            if observer.cancelled() || self.suspended.load(Ordering::Acquire) {
                return Err(CheckpointError::Cancelled.into());
            }
            let saving = self.registry.saving_of(queued)?;
            if let Some(saving) = saving.filter(|saving| saving.state.is_open())
                && let Some(queued) = self.adopt(Some(saving.id))?
            {
                let line = format!("saving {} first", queued.saving.customized);
                self.note(claim.id(), LogStep::Said, &line);
                observer.said(&line);
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
                self.recover()?;
            }
        }
    }

    /// Ends a deployment that has no Live Model to show: clears away there what it made, and writes down
    /// why, and what stays.
    fn give_up_deployment(&self, claim: DeploymentClaim, error: Error, there: Option<There>) -> Error {
        let id = claim.id();
        if error.is_cancelled()
            && self.suspended.load(Ordering::Acquire)
            && !self.registry.is_cancelled::<Deployment>(id).unwrap_or(false)
        {
            self.note(id, LogStep::Interrupted, "");
            // Whatever becomes of the record, the lock goes and the next process takes it up.
            let _ = self.registry.put_back(claim);
            return error;
        }
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
        let until = Until(Instant::now() + CLEARING);
        let backend = backend(&there.environment.environment);
        let name_was_free = there.before.is_none() || (there.resumed && !deployment.replace);
        if deployment.claimed || (deployment.sent_bytes > 0 && there.before.is_none()) {
            let cleared = backend.as_ref().map_err(ToString::to_string).and_then(|backend| {
                // An earlier attempt that was resumed found the name free, or was told to replace.
                clear(&**backend, &deployment.model, &there, name_was_free, &until).map_err(|e| e.to_string())
            });
            match cleared {
                Ok(false) => {}
                Ok(true) => {
                    left.push(format!(
                        "the model {}, in the place of the one that was there before",
                        deployment.model
                    ));
                    self.note_changed(deployment);
                }
                Err(error) if deployment.claimed => {
                    left.push(format!("{} (asking the server failed: {error})", perhaps(deployment)))
                }
                Err(_) => {}
            }
        }
        let stays = |backend: &dyn Backend| backend.stays(&deployment.model, deployment.sent_bytes);
        left.extend(backend.ok().and_then(|backend| stays(&*backend)));
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

/// Removes the model that a deployment may have made under a name that was free, and files that were
/// put there for it. Whether another one than before has a name that was not.
fn clear(
    backend: &dyn Backend,
    model: &str,
    there: &There,
    name_was_free: bool,
    watch: &dyn Watch,
) -> Result<bool, DeployError> {
    let found = match backend.find(model, watch) {
        // A server that did not run, and that nothing started, has none.
        Err(DeployError::Unreachable { .. }) if there.not_running => None,
        found => found?,
    };
    match (&there.before, found) {
        (Some(before), Some(found)) if !name_was_free => Ok(before.digest != found.digest),
        (Some(_), None) => Ok(false),
        (None, None) if !backend.capabilities().removes => Ok(false),
        _ => backend.remove(model, watch).map(|_| false),
    }
}

/// An artifact to be sent, under this name.
fn artifact_file(name: String, artifact: &Artifact) -> SourceFile {
    SourceFile { name, path: artifact.path.clone(), bytes: artifact.bytes, sha256: artifact.digest }
}

/// Ollama gets what it would have made itself.
fn options_for(kind: EnvironmentKind) -> GgufOptions {
    let rules = if kind == EnvironmentKind::Ollama { Rules::Ollama } else { Rules::LlamaQuantize };
    GgufOptions { rules, ..GgufOptions::default() }
}

/// What is deployed.
enum Subject {
    Complete(CompleteModel, Box<Manifest>),
    Adapter(CustomizedModel, Box<BaseModel>),
}

/// What was known of the environment before something was changed there.
struct There {
    environment: DeploymentEnvironment,
    before: Option<Found>,
    /// An earlier attempt had claimed the name already.
    resumed: bool,
    /// A command was to start the server.
    not_running: bool,
}

fn perhaps(deployment: &Deployment) -> String {
    format!(
        "perhaps the model {} on {}; deploy it again, or remove it there",
        deployment.model, deployment.environment
    )
}

/// Of everything that decides what the server makes.
fn fingerprint(order: &Order) -> Digest {
    let all = order.payload.files().iter().chain(order.payload.base());
    let files: Vec<_> = all.map(|file| (&file.name, file.sha256)).collect();
    let all = json!({ "files": files, "adapter": matches!(order.payload, Payload::Adapter { .. }), "quantize": order.quantize, "settings": order.settings });
    Digest::of(all.to_string().as_bytes())
}
