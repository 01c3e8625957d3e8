//! Tasks: verbs that keep no record of what they make (a merge into a directory, a GGUF file, a
//! comparison), asked for as jobs, so that they are queued, watched, stopped and begun again as the others.
//!
//! What a task does and what came out of it is JSON to the registry; the facade knows. Its directory is
//! `tasks/<id>`.

use std::path::PathBuf;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use crate::catalogue::{self, Kind, Record};
use crate::job::{Claim, Course, Job, JobState, Turn, open, remove_dir};
use crate::{Error, Home, Recovered, Registry};

/// A verb asked for as a job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Task {
    /// Its UUID.
    pub id: Uuid,
    /// The verb.
    pub verb: String,
    /// What it makes or looks at, for people: the name of a directory, file or model.
    pub subject: String,
    /// All that it needs to know.
    pub request: Value,
    /// How far it is.
    pub state: JobState,
    /// What came out of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<Value>,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What became of it so far.
    #[serde(flatten)]
    pub course: Course,
}

impl Record for Task {
    const KIND: Kind = Kind::Task;
    fn key(&self) -> String {
        self.id.to_string()
    }
    fn created(&self) -> Timestamp {
        self.course.created
    }
    fn is_open(&self) -> bool {
        self.state.is_open()
    }
}

impl Job for Task {
    fn id(&self) -> Uuid {
        self.id
    }
    fn places(home: &Home) -> PathBuf {
        home.tasks()
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
        self.state == JobState::Queued
    }
    fn set(&mut self, turn: Turn) {
        (self.state, self.reason) = turn.state();
    }
    fn recovered(self, is_given_up: bool) -> Recovered {
        if is_given_up { Recovered::TaskFailed(self) } else { Recovered::TaskRequeued(self) }
    }
}

/// The claim of this process on a task.
pub type TaskClaim = Claim<Task>;

impl Registry {
    /// Queues a task.
    pub fn queue_task(&self, verb: &str, subject: &str, request: Value) -> Result<(Task, TaskClaim), Error> {
        let id = Uuid::new_v4();
        let task = Task {
            id,
            verb: verb.into(),
            subject: subject.into(),
            request,
            state: JobState::Queued,
            result: None,
            reason: None,
            course: Course::new(),
        };
        let mut claim = None;
        self.catalogue.transaction(&mut |change| {
            claim = Some(self.first_claim(id)?);
            catalogue::insert(change, &task)
        })?;
        Ok((task, claim.expect("set by the transaction")))
    }

    /// Begins work.
    pub fn start_task(&self, claim: &TaskClaim, total_bytes: u64) -> Result<Task, Error> {
        let mut started = None;
        self.catalogue.transaction(&mut |change| {
            let mut task: Task = open(change, claim.id())?;
            task.state = JobState::Running;
            task.course.begin(total_bytes);
            catalogue::replace(change, &task)?;
            started = Some(task);
            Ok(())
        })?;
        Ok(started.expect("set by the transaction"))
    }

    /// Ends a task: with what came out of it, or with a reason, or neither where it was stopped.
    pub fn end_task(
        &self,
        claim: TaskClaim,
        state: JobState,
        result: Option<Value>,
        reason: Option<String>,
    ) -> Result<(), Error> {
        self.update(&claim.id().to_string(), &mut |task: &mut Task| {
            task.state = state;
            task.course.end();
            (task.result, task.reason) = (result.clone(), reason.clone());
            if state == JobState::Done {
                task.course.done_bytes = task.course.total_bytes;
            }
        })?;
        remove_dir(claim.dir())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MAX_ATTEMPTS;

    #[test]
    fn a_task_goes_from_queue_to_result_and_outlives_who_worked_on_it() {
        let dir = tempfile::tempdir().unwrap();
        let open = || Registry::open(dir.path()).unwrap().0;
        let registry = open();
        let (task, claim) = registry.queue_task("merge", "out", serde_json::json!({ "a": 1 })).unwrap();
        assert!(registry.adopt::<Task>(task.id).unwrap().is_none(), "held by this process");
        registry.start_task(&claim, 100).unwrap();
        assert!(!registry.note(task.id, &mut |task: &mut Task| task.course.done_bytes = 40).unwrap());
        // As a process that dies leaves it.
        drop(claim);
        let mut recovered = vec![];
        registry.recover_jobs::<Task>(&mut recovered).unwrap();
        assert!(matches!(&*recovered, [Recovered::TaskRequeued(again)] if again.state == JobState::Queued));
        let claim = registry.adopt::<Task>(task.id).unwrap().expect("it waits");
        assert_eq!(registry.start_task(&claim, 100).unwrap().course.attempts, 2);
        registry.end_task(claim, JobState::Done, Some(serde_json::json!("x")), None).unwrap();
        let done: Task = registry.get(&task.id.to_string()).unwrap();
        assert_eq!(
            (done.state, done.course.done_bytes, done.result),
            (JobState::Done, 100, Some("x".into()))
        );
        assert!(registry.open_jobs::<Task>().unwrap().is_empty());
        assert!(matches!(registry.cancel::<Task>(task.id), Err(Error::NotOpen { .. })));
        assert!(Home::entries(&registry.home.tasks()).unwrap().is_empty());
    }

    #[test]
    fn one_that_nobody_works_on_is_cancelled_at_once_and_one_that_dies_too_often_fails() {
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry::open(dir.path()).unwrap().0;
        let (task, claim) = registry.queue_task("merge", "out", Value::Null).unwrap();
        assert_eq!(registry.cancel::<Task>(task.id).unwrap().state, JobState::Queued, "its holder ends it");
        assert!(matches!(registry.start_task(&claim, 0), Err(Error::Cancelled { .. })));
        registry.end_task(claim, JobState::Cancelled, None, None).unwrap();
        let (task, claim) = registry.queue_task("merge", "out", Value::Null).unwrap();
        drop(claim);
        assert_eq!(registry.cancel::<Task>(task.id).unwrap().state, JobState::Cancelled);
        let (task, mut claim) = registry.queue_task("merge", "out", Value::Null).unwrap();
        for _ in 0..MAX_ATTEMPTS {
            registry.start_task(&claim, 0).unwrap();
            drop(claim);
            registry.recover_jobs::<Task>(&mut vec![]).unwrap();
            let Some(again) = registry.adopt::<Task>(task.id).unwrap() else { break };
            claim = again;
        }
        let failed: Task = registry.get(&task.id.to_string()).unwrap();
        assert_eq!(failed.state, JobState::Failed);
        assert!(failed.reason.unwrap().contains("3 times"));
    }
}
