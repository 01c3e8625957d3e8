//! A deployment at work: from its turn to a Live Model, or to a reason and nothing left behind.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::json;
use tenon_checkpoint::{Digest, Error as CheckpointError, Observer};
use tenon_deploy::{Backend, Error as DeployError, Found, Order, Payload, SourceFile, Step, Watch, backend};
use tenon_registry::{
    CompleteModel, Deployment, DeploymentClaim, DeploymentState, LiveCondition, LiveModel, Manifest,
    Quantization, QuantizeOn, Saving, Timestamp,
};

use crate::deployment::{payload_files, sends_directory, settings};
use crate::environments::DeploymentEnvironment;
use crate::joblog::LogStep;
use crate::{Artifact, DeploymentObserver, Error, GgufOptions, QueuedDeployment, Tenon};

/// How often progress goes to the catalogue, and the catalogue is asked whether to stop.
const HEARTBEAT: Duration = Duration::from_millis(400);
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
        self.note(deployment.id, LogStep::Started, format!("attempt {}", deployment.attempts));
        self.note(deployment.id, LogStep::Step, deployment.state.name());
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
        let mut quality = None;
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
                let artifact = self.gguf_of(complete, deployment.quantization, watch)?;
                quality = artifact.quality;
                Payload::Gguf(SourceFile {
                    name: format!("model-{}.gguf", deployment.quantization),
                    path: artifact.path.clone(),
                    bytes: artifact.bytes,
                    sha256: artifact.digest,
                })
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
            quality,
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

    /// The GGUF of a Complete Model, made now or before.
    fn gguf_of(
        &self,
        complete: &CompleteModel,
        quantization: Quantization,
        watch: &Watching<'_>,
    ) -> Result<Artifact, Error> {
        let (name, options) = (complete.name.as_str(), GgufOptions::default());
        let bytes = self.gguf_artifact_bytes(name, quantization, &options)?;
        watch.enter(DeploymentState::Quantizing, bytes, |_| {})?;
        self.gguf_artifact(name, quantization, &options, watch)
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
            let saving: Option<Saving> = self.registry.find(&queued.saving.to_string())?;
            if saving.is_some_and(|saving| saving.state.is_open())
                && let Some(queued) = self.adopt(Some(queued.saving))?
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
            && !self.deployment(id).is_ok_and(|deployment| deployment.cancel)
        {
            self.note(id, LogStep::Interrupted, "");
            // Whatever becomes of the record, the lock goes and the next process takes it up.
            let _ = self.registry.put_back_deployment(claim);
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
        self.tenon.note(deployment.id, LogStep::Step, deployment.state.name());
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
        self.tenon.note(self.claim.id(), LogStep::Said, line);
        self.observer.said(line);
    }

    fn cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
            || self.tenon.suspended.load(Ordering::Relaxed)
            || self.observer.cancelled()
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
