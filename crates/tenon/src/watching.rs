//! How far a deployment is, on its way to the caller and the catalogue; and back, whether to stop.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use tenon_checkpoint::Observer;
use tenon_deploy::{Error as DeployError, Step, Watch};
use tenon_registry::{Deployment, DeploymentClaim, DeploymentState};

use crate::heart::{HEARTBEAT, Heart};
use crate::joblog::LogStep;
use crate::{DeploymentObserver, Error, Tenon};

/// Stops at a moment.
pub(crate) struct Until(pub(crate) Instant);

impl Watch for Until {
    fn cancelled(&self) -> bool {
        Instant::now() > self.0
    }
}

/// Passes progress on to the caller and the catalogue, and states to the catalogue before they begin.
pub(crate) struct Watching<'a> {
    pub(crate) tenon: &'a Tenon,
    pub(crate) claim: &'a DeploymentClaim,
    pub(crate) observer: &'a dyn DeploymentObserver,
    /// Of the payload.
    pub(crate) total: AtomicU64,
    pub(crate) heart: Heart<'a>,
    pub(crate) sent: AtomicU64,
    pub(crate) sent_before: u64,
    pub(crate) said: Mutex<Option<String>>,
    pub(crate) fault: Mutex<Option<Error>>,
}

impl Watching<'_> {
    pub(crate) fn enter(
        &self,
        state: DeploymentState,
        total: u64,
        edit: impl Fn(&mut Deployment),
    ) -> Result<(), Error> {
        self.heart.done.store(0, Ordering::Relaxed);
        let deployment = self.tenon.registry.advance_deployment(self.claim, state, &mut |deployment| {
            deployment.course.total_bytes = total;
            deployment.sent_bytes = self.sent_before + self.sent.load(Ordering::Relaxed);
            edit(deployment);
        })?;
        self.tenon.note(deployment.id, LogStep::Step, deployment.state.name());
        self.observer.entered(&deployment);
        Ok(())
    }

    /// Works, and tells the catalogue meanwhile how far that is.
    pub(crate) fn beat<T>(&self, work: impl FnOnce() -> T) -> T {
        let note = |done| {
            let said = self.said.lock().unwrap_or_else(PoisonError::into_inner).clone();
            self.tenon.registry.note(self.claim.id(), &mut |deployment: &mut Deployment| {
                deployment.course.done_bytes = done;
                deployment.sent_bytes = self.sent_before + self.sent.load(Ordering::Relaxed);
                deployment.said = said.clone();
            })
        };
        self.heart.beat(note, work)
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
        self.heart.advanced(bytes);
        self.sent.fetch_add(sent, Ordering::Relaxed);
        self.observer.advanced(bytes);
    }

    fn said(&self, line: &str) {
        *self.said.lock().unwrap_or_else(PoisonError::into_inner) = Some(line.to_string());
        self.tenon.note(self.claim.id(), LogStep::Said, line);
        self.observer.said(line);
    }

    fn cancelled(&self) -> bool {
        self.heart.is_stopped() || self.observer.cancelled()
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
pub(crate) struct SavingWatch<'a> {
    pub(crate) tenon: &'a Tenon,
    pub(crate) claim: &'a DeploymentClaim,
    pub(crate) observer: &'a dyn DeploymentObserver,
    pub(crate) last: Mutex<Instant>,
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
        self.tenon.registry.is_cancelled::<Deployment>(self.claim.id()).unwrap_or(false)
    }
}
