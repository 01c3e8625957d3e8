//! Deployments as jobs in the catalogue. The directory of one is `deployments/<id>`.

use std::path::PathBuf;

use uuid::Uuid;

use crate::catalogue::{self, Changing, Kind, Reading, Record, Which};
use crate::job::{Claim, Course, Job, JobState, Turn, open, remove_dir};
use crate::registry::get;
use crate::{
    CompleteModel, CustomizedModel, Deployment, DeploymentState, Error, Home, LiveModel, Recovered, Registry,
    Saving,
};

/// The claim of this process on a deployment.
pub type DeploymentClaim = Claim<Deployment>;

impl Job for Deployment {
    fn id(&self) -> Uuid {
        self.id
    }
    fn places(home: &Home) -> PathBuf {
        home.deployments()
    }
    fn state_name(&self) -> &'static str {
        self.state.name()
    }
    fn course(&self) -> &Course {
        &self.course
    }
    fn course_mut(&mut self) -> &mut Course {
        &mut self.course
    }
    fn is_queued(&self) -> bool {
        self.state == DeploymentState::Queued
    }
    fn set(&mut self, turn: Turn) {
        if turn == Turn::Queued {
            self.state = DeploymentState::Queued;
            return;
        }
        self.left_there = self.may_leave();
        self.state = match turn {
            Turn::Failed(reason) => {
                self.reason = Some(reason);
                self.remedy =
                    Some(format!("tenon jobs retry {} tries again, from what is there already", self.id));
                DeploymentState::Failed
            }
            _ => DeploymentState::Cancelled,
        };
    }
    fn recovered(self, is_given_up: bool) -> Recovered {
        if is_given_up { Recovered::DeploymentFailed(self) } else { Recovered::DeploymentRequeued(self) }
    }
}

impl Registry {
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
            claim = Some(self.first_claim(id)?);
            catalogue::insert(change, deployment)
        })?;
        Ok(claim.expect("set by the transaction"))
    }

    /// Begins work when no other deployment is before it for the same name in the same environment;
    /// nothing while one is. Also nothing while the Saving of its model is under way.
    pub fn start_deployment(&self, claim: &DeploymentClaim) -> Result<Option<Deployment>, Error> {
        let mut started = None;
        self.catalogue.transaction(&mut |change| {
            let mut deployment: Deployment = open(change, claim.id())?;
            if deployment.adapter.is_none()
                && catalogue::find::<CompleteModel>(change, deployment.subject())?.is_none()
            {
                return match saving_of(change, &deployment)? {
                    Some(saving) if saving.state.is_open() => Ok(()),
                    Some(saving) if saving.state != JobState::Done => Err(Error::NotSaved {
                        saving: saving.id,
                        state: saving.state.name(),
                        reason: saving.reason.map(|reason| format!(": {reason}")).unwrap_or_default(),
                    }),
                    _ => get::<CompleteModel>(change, deployment.subject()).map(drop),
                };
            }
            let others: Vec<Deployment> = catalogue::all(change, Which::Open)?;
            let order = |deployment: &Deployment| (deployment.course.created, deployment.id);
            let is_ahead = |other: &Deployment| {
                other.id != deployment.id
                    && other.is_for(&deployment)
                    && (other.state != DeploymentState::Queued || order(other) < order(&deployment))
            };
            // Those whose process is gone do not count.
            if others.iter().any(|other| is_ahead(other) && self.is_held::<Deployment>(other.id)) {
                return Ok(());
            }
            deployment.state = DeploymentState::Checking;
            deployment.course.begin(0);
            catalogue::replace(change, &deployment)?;
            started = Some(deployment);
            Ok(())
        })?;
        Ok(started)
    }

    /// Brings a deployment to its next state. [`Error::Cancelled`] if somebody asked to stop it.
    pub fn advance_deployment(
        &self,
        claim: &DeploymentClaim,
        state: DeploymentState,
        edit: &mut dyn FnMut(&mut Deployment),
    ) -> Result<Deployment, Error> {
        let mut advanced = None;
        self.catalogue.transaction(&mut |change| {
            let mut deployment: Deployment = open(change, claim.id())?;
            deployment.state = state;
            (deployment.course.done_bytes, deployment.course.total_bytes) = (0, 0);
            edit(&mut deployment);
            catalogue::replace(change, &deployment)?;
            advanced = Some(deployment);
            Ok(())
        })?;
        Ok(advanced.expect("set by the transaction"))
    }

    /// Ends a deployment with a Live Model, in one transaction. A Live Model of that name is replaced:
    /// it is not there any more.
    pub fn go_live(&self, claim: &DeploymentClaim, live: &LiveModel) -> Result<Deployment, Error> {
        let mut ended = None;
        self.catalogue.transaction(&mut |change| {
            let mut deployment: Deployment = open(change, claim.id())?;
            deployment.state = DeploymentState::Live;
            deployment.course.end();
            catalogue::replace(change, &deployment)?;
            change.remove(LiveModel::KIND, &live.name())?;
            catalogue::insert(change, live)?;
            ended = Some(deployment);
            Ok(())
        })?;
        // What is left of it is swept by the next process if this one cannot.
        let _ = std::fs::remove_dir_all(claim.dir());
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
        self.update(&claim.id().to_string(), &mut |deployment: &mut Deployment| {
            deployment.state = state;
            deployment.course.end();
            edit(deployment);
        })?;
        remove_dir(claim.dir())
    }

    /// The Saving that makes what a deployment brings, if there is one.
    pub fn saving_of(&self, deployment: &Deployment) -> Result<Option<Saving>, Error> {
        saving_of(&*self.catalogue, deployment)
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
fn saving_of(catalogue: &(impl Reading + ?Sized), deployment: &Deployment) -> Result<Option<Saving>, Error> {
    deployment.saving.map_or(Ok(None), |saving| catalogue::find(catalogue, &saving.to_string()))
}
