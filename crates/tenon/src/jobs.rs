//! Jobs of every kind: found, stopped, begun again, and taken over from processes that are no more.

use tenon_registry::{
    Course, Deployment, DeploymentState, Error as RegistryError, JobState, Recovered, Saving, Task, Uuid,
};

use crate::joblog::LogStep;
use crate::{Error, Tenon};

/// Work in the background.
#[derive(Debug, Clone, PartialEq)]
pub enum Job {
    /// Merges a Customized Model into a Complete Model.
    Saving(Saving),
    /// Brings a Complete Model to a Deployment Environment.
    Deployment(Deployment),
    /// Any other verb.
    Task(Task),
}

impl Job {
    /// Its UUID.
    pub fn id(&self) -> Uuid {
        match self {
            Job::Saving(saving) => saving.id,
            Job::Deployment(deployment) => deployment.id,
            Job::Task(task) => task.id,
        }
    }

    /// As a person calls it: `Saving`, `deployment`, or the verb.
    pub fn noun(&self) -> &str {
        match self {
            Job::Saving(_) => "Saving",
            Job::Deployment(_) => "deployment",
            Job::Task(task) => &task.verb,
        }
    }

    /// When it was asked for, begun and ended, and how far it is.
    pub fn course(&self) -> &Course {
        match self {
            Job::Saving(saving) => &saving.course,
            Job::Deployment(deployment) => &deployment.course,
            Job::Task(task) => &task.course,
        }
    }

    /// Whether it has not ended.
    pub fn is_open(&self) -> bool {
        match self {
            Job::Saving(saving) => saving.state.is_open(),
            Job::Deployment(deployment) => deployment.state.is_open(),
            Job::Task(task) => task.state.is_open(),
        }
    }

    /// Whether a process works on it, or did when it was last heard of.
    pub fn is_running(&self) -> bool {
        match self {
            Job::Saving(saving) => saving.state == JobState::Running,
            Job::Deployment(deployment) => {
                deployment.state.is_open() && deployment.state != DeploymentState::Queued
            }
            Job::Task(task) => task.state == JobState::Running,
        }
    }

    /// The word of its state.
    pub fn state_name(&self) -> &'static str {
        match self {
            Job::Saving(saving) => saving.state.name(),
            Job::Deployment(deployment) => deployment.state.name(),
            Job::Task(task) => task.state.name(),
        }
    }

    /// Whether it ended without a result, so that it may be begun again.
    pub fn is_retryable(&self) -> bool {
        match self {
            Job::Saving(saving) => matches!(saving.state, JobState::Failed | JobState::Cancelled),
            Job::Deployment(deployment) => {
                matches!(deployment.state, DeploymentState::Failed | DeploymentState::Cancelled)
            }
            Job::Task(task) => matches!(task.state, JobState::Failed | JobState::Cancelled),
        }
    }
}

impl Tenon {
    /// The job with a UUID.
    pub fn job(&self, id: Uuid) -> Result<Job, Error> {
        let key = id.to_string();
        if let Some(saving) = self.registry.find(&key)? {
            return Ok(Job::Saving(saving));
        }
        if let Some(deployment) = self.registry.find(&key)? {
            return Ok(Job::Deployment(deployment));
        }
        match self.registry.find(&key)? {
            Some(task) => Ok(Job::Task(task)),
            None => Err(RegistryError::NotFound { what: "job", name: key, nearest: None }.into()),
        }
    }

    /// Jobs of every kind, oldest first.
    pub fn jobs(&self) -> Result<Vec<Job>, Error> {
        let savings = self.registry.all()?.into_iter().map(Job::Saving);
        let deployments = self.registry.all()?.into_iter().map(Job::Deployment);
        let tasks = self.registry.all()?.into_iter().map(Job::Task);
        let mut jobs: Vec<Job> = savings.chain(deployments).chain(tasks).collect();
        jobs.sort_by_key(|job| job.course().created);
        Ok(jobs)
    }

    /// Asks to stop a job; the record as it is then. One that nobody works on ends at once.
    pub fn cancel_job(&self, id: Uuid) -> Result<Job, Error> {
        let job = match self.job(id)? {
            Job::Saving(_) => Job::Saving(self.registry.cancel(id)?),
            Job::Deployment(_) => Job::Deployment(self.registry.cancel(id)?),
            Job::Task(_) => Job::Task(self.registry.cancel(id)?),
        };
        if job.is_open() {
            self.note(id, LogStep::Cancelling, "");
        }
        Ok(job)
    }

    /// Queues again what a job that failed or was cancelled was to do, as another job.
    pub fn retry_job(&self, id: Uuid) -> Result<Job, Error> {
        let job = self.job(id)?;
        if !job.is_retryable() {
            return Err(Error::NotRetryable { id, state: job.state_name() });
        }
        // Each is dropped, and so waits in the queue for whoever works.
        Ok(match job {
            Job::Saving(saving) => Job::Saving(self.queue(saving.customized.as_str())?.saving),
            Job::Deployment(_) => Job::Deployment(self.retry_deployment(id)?.deployment),
            Job::Task(task) => {
                let request = serde_json::from_value(task.request)
                    .map_err(|source| RegistryError::Record { what: "task", name: id.to_string(), source })?;
                Job::Task(self.queue_task(&request)?.task)
            }
        })
    }

    /// Finishes, queues again or sweeps what processes left that are no more, and notes in their logs
    /// which jobs that interrupted. Quick when there is nothing.
    pub fn recover(&self) -> Result<Vec<Recovered>, Error> {
        let recovered = self.registry.recover()?;
        self.note_recovered(&recovered);
        Ok(recovered)
    }

    pub(crate) fn note_recovered(&self, recovered: &[Recovered]) {
        for one in recovered {
            let id = match one {
                Recovered::Requeued(saving) => saving.id,
                Recovered::DeploymentRequeued(deployment) => deployment.id,
                Recovered::TaskRequeued(task) => task.id,
                _ => continue,
            };
            self.note(id, LogStep::Interrupted, "its process ended");
        }
    }
}
