//! Deployments as jobs in the catalogue, each worked on by whoever holds its lock.
//!
//! As with Savings, a lock on `deployments/<id>` says that a process works on
//! it or waits for its turn, and ends with that process.

use std::fs::File;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use tenon_checkpoint::fault;
use uuid::Uuid;

use crate::catalogue::{self, Changing, Kind, Record, Which};
use crate::registry::get;
use crate::saving::{remove_dir, try_lock};
use crate::{
    CompleteModel, CustomizedModel, Deployment, DeploymentState, Error, Home, LiveModel, MAX_ATTEMPTS,
    Recovered, Registry, Saving, SavingState,
};

/// The claim of this process on a deployment, and a directory for what belongs to it.
#[derive(Debug)]
#[must_use = "dropped, it lets go of the deployment"]
pub struct DeploymentClaim {
    id: Uuid,
    dir: PathBuf,
    /// Held open: its lock is the claim.
    _lock: File,
}

impl DeploymentClaim {
    /// The deployment.
    pub fn id(&self) -> Uuid {
        self.id
    }

    /// A directory that goes when the deployment ends.
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

impl Registry {
    /// The deployments that have not ended, oldest first.
    pub fn open_deployments(&self) -> Result<Vec<Deployment>, Error> {
        catalogue::all(&*self.catalogue, Which::Open)
    }

    /// Queues a deployment. One that does the same and has not ended stands in its way:
    /// [`Error::SameDeployment`]. Its model must be there, or its Saving be under way.
    pub fn queue_deployment(&self, deployment: &Deployment) -> Result<DeploymentClaim, Error> {
        let mut claim = None;
        self.catalogue.transaction(&mut |change| {
            let id = deployment.id;
            let environment = deployment.environment.as_str();
            if change.get(Kind::DeploymentEnvironment, environment)?.is_none() {
                return Err(Error::NotFound {
                    what: Kind::DeploymentEnvironment.noun(),
                    name: environment.into(),
                    nearest: None,
                });
            }
            let open: Vec<Deployment> = catalogue::all(change, Which::Open)?;
            if let Some(same) = open.iter().find(|other| other.is_same(deployment)) {
                return Err(Error::SameDeployment { id: same.id, state: same.state.name() });
            }
            if let Some(adapter) = &deployment.adapter {
                get::<CustomizedModel>(change, adapter.as_str())?;
            } else if !saving_of(change, deployment)?.is_some_and(|saving| saving.state.is_open()) {
                get::<CompleteModel>(change, deployment.subject())?;
            }
            let dir = self.home.deployment(id);
            fault::point("create deployment").map_err(Error::io("create directory", &dir))?;
            std::fs::create_dir(&dir).map_err(Error::io("create directory", &dir))?;
            claim = self.lock_deployment(id)?;
            if claim.is_none() {
                return Err(Error::DeploymentNotOpen { id, state: "locked by another process" });
            }
            catalogue::insert(change, deployment)
        })?;
        Ok(claim.expect("set by the transaction"))
    }

    /// Takes over a deployment that is queued and that no process holds: nothing if one does.
    pub fn adopt_deployment(&self, id: Uuid) -> Result<Option<DeploymentClaim>, Error> {
        let mut claim = None;
        self.catalogue.transaction(&mut |change| {
            let deployment: Deployment = get(change, &id.to_string())?;
            if deployment.state == DeploymentState::Queued {
                claim = self.lock_deployment(id)?;
            }
            Ok(())
        })?;
        Ok(claim)
    }

    /// Begins work when no other deployment is before it for the same name in the same environment;
    /// nothing while one is. Also nothing while the Saving of its model is under way.
    pub fn start_deployment(&self, claim: &DeploymentClaim) -> Result<Option<Deployment>, Error> {
        let mut started = None;
        self.catalogue.transaction(&mut |change| {
            let mut deployment = open(change, claim.id)?;
            if deployment.adapter.is_none()
                && catalogue::find::<CompleteModel>(change, deployment.subject())?.is_none()
            {
                return match saving_of(change, &deployment)? {
                    Some(saving) if saving.state.is_open() => Ok(()),
                    Some(saving) if saving.state != SavingState::Done => Err(Error::NotSaved {
                        saving: saving.id,
                        state: saving.state.name(),
                        reason: saving.reason.map(|reason| format!(": {reason}")).unwrap_or_default(),
                    }),
                    _ => get::<CompleteModel>(change, deployment.subject()).map(drop),
                };
            }
            let others: Vec<Deployment> = catalogue::all(change, Which::Open)?;
            let order = |deployment: &Deployment| (deployment.created, deployment.id);
            let is_ahead = |other: &Deployment| {
                other.id != deployment.id
                    && other.is_for(&deployment)
                    && (other.state != DeploymentState::Queued || order(other) < order(&deployment))
            };
            // Those whose process is gone do not count.
            if others.iter().any(|other| is_ahead(other) && self.is_deployment_held(other.id)) {
                return Ok(());
            }
            deployment.state = DeploymentState::Checking;
            deployment.pid = Some(std::process::id());
            deployment.started = Some(Timestamp::now());
            deployment.attempts += 1;
            (deployment.done_bytes, deployment.total_bytes) = (0, 0);
            catalogue::replace(change, &deployment)?;
            started = Some(deployment);
            Ok(())
        })?;
        Ok(started)
    }

    /// Brings a deployment to its next state. [`Error::DeploymentCancelled`] if somebody asked to stop it.
    pub fn advance_deployment(
        &self,
        claim: &DeploymentClaim,
        state: DeploymentState,
        edit: &mut dyn FnMut(&mut Deployment),
    ) -> Result<Deployment, Error> {
        let mut advanced = None;
        self.catalogue.transaction(&mut |change| {
            let mut deployment = open(change, claim.id)?;
            deployment.state = state;
            (deployment.done_bytes, deployment.total_bytes) = (0, 0);
            edit(&mut deployment);
            catalogue::replace(change, &deployment)?;
            advanced = Some(deployment);
            Ok(())
        })?;
        Ok(advanced.expect("set by the transaction"))
    }

    /// Notes how far a deployment is; tells whether somebody asked to stop it.
    pub fn note_deployment(&self, id: Uuid, edit: &mut dyn FnMut(&mut Deployment)) -> Result<bool, Error> {
        let mut cancel = false;
        self.update(&id.to_string(), &mut |deployment: &mut Deployment| {
            edit(deployment);
            cancel = deployment.cancel;
        })?;
        Ok(cancel)
    }

    /// Ends a deployment with a Live Model, in one transaction. A Live Model of that name is replaced:
    /// it is not there any more.
    pub fn go_live(&self, claim: &DeploymentClaim, live: &LiveModel) -> Result<Deployment, Error> {
        let mut ended = None;
        self.catalogue.transaction(&mut |change| {
            let mut deployment = open(change, claim.id)?;
            end(&mut deployment, DeploymentState::Live);
            catalogue::replace(change, &deployment)?;
            change.remove(LiveModel::KIND, &live.name())?;
            catalogue::insert(change, live)?;
            ended = Some(deployment);
            Ok(())
        })?;
        // What is left of it is swept by the next process if this one cannot.
        let _ = std::fs::remove_dir_all(&claim.dir);
        Ok(ended.expect("set by the transaction"))
    }

    /// Ends a deployment without a Live Model; its record tells why.
    pub fn give_up_deployment(
        &self,
        claim: DeploymentClaim,
        state: DeploymentState,
        edit: &mut dyn FnMut(&mut Deployment),
    ) -> Result<(), Error> {
        // First the record: the reason is what must not be lost.
        self.update(&claim.id.to_string(), &mut |deployment: &mut Deployment| {
            end(deployment, state);
            edit(deployment);
        })?;
        remove_dir(&claim.dir)
    }

    /// Lets go of a deployment that is not at its end: it is queued again, and sends only what is not there.
    pub fn put_back_deployment(&self, claim: DeploymentClaim) -> Result<(), Error> {
        self.update(&claim.id.to_string(), &mut |deployment: &mut Deployment| {
            if deployment.state.is_open() && deployment.state != DeploymentState::Queued {
                // An attempt that was stopped on purpose is none that failed.
                deployment.attempts = deployment.attempts.saturating_sub(1);
                deployment.state = DeploymentState::Queued;
            }
            deployment.pid = None;
        })
    }

    /// Asks to stop a deployment. One that nobody works on ends at once.
    pub fn cancel_deployment(&self, id: Uuid) -> Result<Deployment, Error> {
        let (mut unheld, mut result) = (None, None);
        self.catalogue.transaction(&mut |change| {
            let mut deployment: Deployment = get(change, &id.to_string())?;
            if !deployment.state.is_open() {
                return Err(Error::DeploymentNotOpen { id, state: deployment.state.name() });
            }
            deployment.cancel = true;
            unheld = self.lock_deployment(id)?;
            if unheld.is_some() {
                deployment.left_there = deployment.may_leave();
                end(&mut deployment, DeploymentState::Cancelled);
            }
            catalogue::replace(change, &deployment)?;
            result = Some(deployment);
            Ok(())
        })?;
        if let Some(claim) = unheld {
            remove_dir(&claim.dir)?;
        }
        Ok(result.expect("set by the transaction"))
    }

    /// Queues again, gives up or sweeps deployments of processes that are no more.
    pub(crate) fn recover_deployments(&self, recovered: &mut Vec<Recovered>) -> Result<(), Error> {
        let dirs = Home::entries(&self.home.deployments())?;
        if dirs.is_empty() && self.open_deployments()?.is_empty() {
            return Ok(());
        }
        let mut to_remove = vec![];
        self.catalogue.transaction(&mut |change| {
            let open: Vec<Deployment> = catalogue::all(change, Which::Open)?;
            for mut deployment in open.iter().filter(|d| !self.is_deployment_held(d.id)).cloned() {
                let dir = self.home.deployment(deployment.id);
                let fail = |deployment: &mut Deployment, reason: String| {
                    deployment.left_there = deployment.may_leave();
                    deployment.reason = Some(reason);
                    deployment.remedy = Some(format!(
                        "tenon jobs retry {} tries again, from what is there already",
                        deployment.id
                    ));
                    end(deployment, DeploymentState::Failed);
                };
                if deployment.cancel {
                    deployment.left_there = deployment.may_leave();
                    end(&mut deployment, DeploymentState::Cancelled);
                    to_remove.push(dir);
                } else if !dir.is_dir() {
                    fail(&mut deployment, "its directory is gone".into());
                    recovered.push(Recovered::DeploymentFailed(deployment.clone()));
                } else if deployment.state == DeploymentState::Queued {
                    // It waits for a process to take it up.
                    continue;
                } else if deployment.attempts >= MAX_ATTEMPTS {
                    let reason = format!("its process ended unexpectedly {} times", deployment.attempts);
                    fail(&mut deployment, reason);
                    to_remove.push(dir);
                    recovered.push(Recovered::DeploymentFailed(deployment.clone()));
                } else {
                    deployment.state = DeploymentState::Queued;
                    deployment.pid = None;
                    recovered.push(Recovered::DeploymentRequeued(deployment.clone()));
                }
                catalogue::replace(change, &deployment)?;
            }
            for name in &dirs {
                let id = name.parse::<Uuid>();
                let is_open = id.as_ref().is_ok_and(|id| open.iter().any(|d| d.id == *id));
                let is_held = id.is_ok_and(|id| self.is_deployment_held(id));
                if !is_open && !is_held {
                    to_remove.push(self.home.deployments().join(name));
                }
            }
            fault::point("recover deployments").map_err(Error::io("write", self.home.root()))
        })?;
        to_remove.iter().try_for_each(|dir| remove_dir(dir))
    }

    /// Locks a deployment's directory; nothing if another holds it or it is not there.
    ///
    /// Only within a transaction, so that asking never looks like holding to another process.
    fn lock_deployment(&self, id: Uuid) -> Result<Option<DeploymentClaim>, Error> {
        let dir = self.home.deployment(id);
        Ok(try_lock(&dir)?.map(|lock| DeploymentClaim { id, dir, _lock: lock }))
    }

    /// Whether a live process holds a deployment. Only within a transaction.
    fn is_deployment_held(&self, id: Uuid) -> bool {
        let dir = self.home.deployment(id);
        dir.is_dir() && !matches!(self.lock_deployment(id), Ok(Some(_)))
    }
}

/// The deployment that is in the way of removing what it uses.
pub(crate) fn deployment_of(
    change: &dyn Changing,
    uses: impl Fn(&Deployment) -> bool,
) -> Result<Option<String>, Error> {
    let open: Vec<Deployment> = catalogue::all(change, Which::Open)?;
    let using = open.iter().find(|deployment| uses(deployment));
    Ok(using.map(|d| format!("deployment {} to {} is {}", d.id, d.environment, d.state.name())))
}

/// The Saving that makes what a deployment brings.
fn saving_of(change: &dyn Changing, deployment: &Deployment) -> Result<Option<Saving>, Error> {
    deployment.saving.map_or(Ok(None), |saving| catalogue::find(change, &saving.to_string()))
}

fn open(change: &dyn Changing, id: Uuid) -> Result<Deployment, Error> {
    let deployment: Deployment = get(change, &id.to_string())?;
    if !deployment.state.is_open() {
        return Err(Error::DeploymentNotOpen { id, state: deployment.state.name() });
    }
    if deployment.cancel {
        return Err(Error::DeploymentCancelled { id });
    }
    Ok(deployment)
}

fn end(deployment: &mut Deployment, state: DeploymentState) {
    deployment.state = state;
    deployment.finished = Some(Timestamp::now());
    deployment.pid = None;
}
