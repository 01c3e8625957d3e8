//! Tasks: verbs that keep no record of what they make (a merge into a directory, a GGUF file, a
//! comparison), asked for as jobs, so that they are queued, watched, stopped and begun again as the others.
//!
//! What a task does and what came out of it is JSON to the registry; the facade knows. As with the
//! other jobs, a lock on `tasks/<id>` says that a process works on it, and ends with that process.

use std::fs::File;
use std::path::PathBuf;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tenon_checkpoint::fault;
use uuid::Uuid;

use crate::catalogue::{self, Changing, Kind, Record, Which};
use crate::registry::get;
use crate::saving::{remove_dir, try_lock};
use crate::{Error, Home, MAX_ATTEMPTS, Recovered, Registry};

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
    pub state: TaskState,
    /// What came out of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<Value>,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// When it was asked for.
    pub created: Timestamp,
    /// When work on it began, last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started: Option<Timestamp>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished: Option<Timestamp>,
    /// Bytes done of `total_bytes`.
    #[serde(default)]
    pub done_bytes: u64,
    /// Bytes to do.
    #[serde(default)]
    pub total_bytes: u64,
    /// Process that works on it, for people; the lock on its directory is what counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// How often work on it began.
    #[serde(default)]
    pub attempts: u32,
    /// Somebody asked to stop it.
    #[serde(default)]
    pub cancel: bool,
}

/// How far a task is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TaskState {
    /// Waits for a process.
    Queued,
    /// A process works on it.
    Running,
    /// Its result is there.
    Done,
    /// It ended without one, for its `reason`.
    Failed,
    /// Somebody stopped it.
    Cancelled,
}

impl TaskState {
    /// Its word.
    pub fn name(self) -> &'static str {
        match self {
            TaskState::Queued => "queued",
            TaskState::Running => "running",
            TaskState::Done => "done",
            TaskState::Failed => "failed",
            TaskState::Cancelled => "cancelled",
        }
    }

    /// Whether it has not ended.
    pub fn is_open(self) -> bool {
        matches!(self, TaskState::Queued | TaskState::Running)
    }
}

impl Record for Task {
    const KIND: Kind = Kind::Task;
    fn key(&self) -> String {
        self.id.to_string()
    }
    fn created(&self) -> Timestamp {
        self.created
    }
    fn is_open(&self) -> bool {
        self.state.is_open()
    }
}

/// The claim of this process on a task.
#[derive(Debug)]
#[must_use = "dropped, it lets go of the task"]
pub struct TaskClaim {
    id: Uuid,
    dir: PathBuf,
    /// Held open: its lock is the claim.
    _lock: File,
}

impl TaskClaim {
    /// The task.
    pub fn id(&self) -> Uuid {
        self.id
    }
}

impl Registry {
    /// The tasks that have not ended, oldest first.
    pub fn open_tasks(&self) -> Result<Vec<Task>, Error> {
        catalogue::all(&*self.catalogue, Which::Open)
    }

    /// Queues a task.
    pub fn queue_task(&self, verb: &str, subject: &str, request: Value) -> Result<(Task, TaskClaim), Error> {
        let id = Uuid::new_v4();
        let task = Task {
            id,
            verb: verb.into(),
            subject: subject.into(),
            request,
            state: TaskState::Queued,
            result: None,
            reason: None,
            created: Timestamp::now(),
            started: None,
            finished: None,
            done_bytes: 0,
            total_bytes: 0,
            pid: Some(std::process::id()),
            attempts: 0,
            cancel: false,
        };
        let mut claim = None;
        self.catalogue.transaction(&mut |change| {
            let dir = self.home.task(id);
            fault::point("create task").map_err(Error::io("create directory", &dir))?;
            std::fs::create_dir(&dir).map_err(Error::io("create directory", &dir))?;
            claim = self.lock_task(id)?;
            if claim.is_none() {
                return Err(Error::TaskNotOpen { id, state: "locked by another process" });
            }
            catalogue::insert(change, &task)
        })?;
        Ok((task, claim.expect("set by the transaction")))
    }

    /// Takes over a task that is queued and that no process holds: nothing if one does.
    pub fn adopt_task(&self, id: Uuid) -> Result<Option<TaskClaim>, Error> {
        let mut claim = None;
        self.catalogue.transaction(&mut |change| {
            let task: Task = get(change, &id.to_string())?;
            if task.state == TaskState::Queued {
                claim = self.lock_task(id)?;
            }
            Ok(())
        })?;
        Ok(claim)
    }

    /// Begins work.
    pub fn start_task(&self, claim: &TaskClaim, total_bytes: u64) -> Result<Task, Error> {
        let mut started = None;
        self.catalogue.transaction(&mut |change| {
            let mut task = open(change, claim.id)?;
            task.state = TaskState::Running;
            task.pid = Some(std::process::id());
            task.started = Some(Timestamp::now());
            task.attempts += 1;
            (task.done_bytes, task.total_bytes) = (0, total_bytes);
            catalogue::replace(change, &task)?;
            started = Some(task);
            Ok(())
        })?;
        Ok(started.expect("set by the transaction"))
    }

    /// Notes how far a task is; tells whether somebody asked to stop it.
    pub fn note_task(&self, id: Uuid, done_bytes: u64) -> Result<bool, Error> {
        let mut cancel = false;
        self.update(&id.to_string(), &mut |task: &mut Task| {
            task.done_bytes = done_bytes;
            cancel = task.cancel;
        })?;
        Ok(cancel)
    }

    /// Ends a task: with what came out of it, or with a reason, or neither where it was stopped.
    pub fn end_task(
        &self,
        claim: TaskClaim,
        state: TaskState,
        result: Option<Value>,
        reason: Option<String>,
    ) -> Result<(), Error> {
        self.update(&claim.id.to_string(), &mut |task: &mut Task| {
            end(task, state);
            (task.result, task.reason) = (result.clone(), reason.clone());
            if state == TaskState::Done {
                task.done_bytes = task.total_bytes;
            }
        })?;
        remove_dir(&claim.dir)
    }

    /// Lets go of a task that is not at its end: it is queued again and begins from the beginning.
    pub fn put_back_task(&self, claim: TaskClaim) -> Result<(), Error> {
        self.update(&claim.id.to_string(), &mut |task: &mut Task| {
            if task.state == TaskState::Running {
                // An attempt that was stopped on purpose is none that failed.
                task.attempts = task.attempts.saturating_sub(1);
                task.state = TaskState::Queued;
            }
            task.pid = None;
        })
    }

    /// Asks to stop a task. One that nobody works on ends at once.
    pub fn cancel_task(&self, id: Uuid) -> Result<Task, Error> {
        let (mut unheld, mut result) = (None, None);
        self.catalogue.transaction(&mut |change| {
            let mut task: Task = get(change, &id.to_string())?;
            if !task.state.is_open() {
                return Err(Error::TaskNotOpen { id, state: task.state.name() });
            }
            task.cancel = true;
            unheld = self.lock_task(id)?;
            if unheld.is_some() {
                end(&mut task, TaskState::Cancelled);
            }
            catalogue::replace(change, &task)?;
            result = Some(task);
            Ok(())
        })?;
        if let Some(claim) = unheld {
            remove_dir(&claim.dir)?;
        }
        Ok(result.expect("set by the transaction"))
    }

    /// Queues again, gives up or sweeps tasks of processes that are no more.
    pub(crate) fn recover_tasks(&self, recovered: &mut Vec<Recovered>) -> Result<(), Error> {
        let dirs = Home::entries(&self.home.tasks())?;
        if dirs.is_empty() && self.open_tasks()?.is_empty() {
            return Ok(());
        }
        let mut to_remove = vec![];
        self.catalogue.transaction(&mut |change| {
            let open: Vec<Task> = catalogue::all(change, Which::Open)?;
            for mut task in open.iter().filter(|task| !self.is_task_held(task.id)).cloned() {
                let dir = self.home.task(task.id);
                if task.cancel {
                    end(&mut task, TaskState::Cancelled);
                    to_remove.push(dir);
                } else if !dir.is_dir() {
                    task.reason = Some("its directory is gone".into());
                    end(&mut task, TaskState::Failed);
                    recovered.push(Recovered::TaskFailed(task.clone()));
                } else if task.state == TaskState::Queued {
                    // It waits for a process to take it up.
                    continue;
                } else if task.attempts >= MAX_ATTEMPTS {
                    task.reason = Some(format!("its process ended unexpectedly {} times", task.attempts));
                    end(&mut task, TaskState::Failed);
                    to_remove.push(dir);
                    recovered.push(Recovered::TaskFailed(task.clone()));
                } else {
                    task.state = TaskState::Queued;
                    task.pid = None;
                    recovered.push(Recovered::TaskRequeued(task.clone()));
                }
                catalogue::replace(change, &task)?;
            }
            for name in &dirs {
                let id = name.parse::<Uuid>();
                let is_open = id.as_ref().is_ok_and(|id| open.iter().any(|task| task.id == *id));
                let is_held = id.is_ok_and(|id| self.is_task_held(id));
                if !is_open && !is_held {
                    to_remove.push(self.home.tasks().join(name));
                }
            }
            fault::point("recover tasks").map_err(Error::io("write", self.home.root()))
        })?;
        to_remove.iter().try_for_each(|dir| remove_dir(dir))
    }

    /// Locks a task's directory; nothing if another holds it or it is not there.
    ///
    /// Only within a transaction, so that asking never looks like holding to another process.
    fn lock_task(&self, id: Uuid) -> Result<Option<TaskClaim>, Error> {
        let dir = self.home.task(id);
        Ok(try_lock(&dir)?.map(|lock| TaskClaim { id, dir, _lock: lock }))
    }

    /// Whether a live process holds a task. Only within a transaction.
    fn is_task_held(&self, id: Uuid) -> bool {
        let dir = self.home.task(id);
        dir.is_dir() && !matches!(self.lock_task(id), Ok(Some(_)))
    }
}

fn open(change: &dyn Changing, id: Uuid) -> Result<Task, Error> {
    let task: Task = get(change, &id.to_string())?;
    if !task.state.is_open() {
        return Err(Error::TaskNotOpen { id, state: task.state.name() });
    }
    if task.cancel {
        return Err(Error::TaskCancelled { id });
    }
    Ok(task)
}

fn end(task: &mut Task, state: TaskState) {
    task.state = state;
    task.finished = Some(Timestamp::now());
    task.pid = None;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_goes_from_queue_to_result_and_outlives_who_worked_on_it() {
        let dir = tempfile::tempdir().unwrap();
        let open = || Registry::open(dir.path()).unwrap().0;
        let registry = open();
        let (task, claim) = registry.queue_task("merge", "out", serde_json::json!({ "a": 1 })).unwrap();
        assert!(registry.adopt_task(task.id).unwrap().is_none(), "held by this process");
        registry.start_task(&claim, 100).unwrap();
        assert!(!registry.note_task(task.id, 40).unwrap());
        // As a process that dies leaves it.
        drop(claim);
        let mut recovered = vec![];
        registry.recover_tasks(&mut recovered).unwrap();
        assert!(matches!(&*recovered, [Recovered::TaskRequeued(again)] if again.state == TaskState::Queued));
        let claim = registry.adopt_task(task.id).unwrap().expect("it waits");
        assert_eq!(registry.start_task(&claim, 100).unwrap().attempts, 2);
        registry.end_task(claim, TaskState::Done, Some(serde_json::json!("x")), None).unwrap();
        let done: Task = registry.get(&task.id.to_string()).unwrap();
        assert_eq!((done.state, done.done_bytes, done.result), (TaskState::Done, 100, Some("x".into())));
        assert!(registry.open_tasks().unwrap().is_empty());
        assert!(matches!(registry.cancel_task(task.id), Err(Error::TaskNotOpen { .. })));
        assert!(Home::entries(&registry.home.tasks()).unwrap().is_empty());
    }

    #[test]
    fn one_that_nobody_works_on_is_cancelled_at_once_and_one_that_dies_too_often_fails() {
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry::open(dir.path()).unwrap().0;
        let (task, claim) = registry.queue_task("merge", "out", Value::Null).unwrap();
        assert_eq!(registry.cancel_task(task.id).unwrap().state, TaskState::Queued, "its holder ends it");
        assert!(matches!(registry.start_task(&claim, 0), Err(Error::TaskCancelled { .. })));
        registry.end_task(claim, TaskState::Cancelled, None, None).unwrap();
        let (task, claim) = registry.queue_task("merge", "out", Value::Null).unwrap();
        drop(claim);
        assert_eq!(registry.cancel_task(task.id).unwrap().state, TaskState::Cancelled);
        let (task, mut claim) = registry.queue_task("merge", "out", Value::Null).unwrap();
        for _ in 0..MAX_ATTEMPTS {
            registry.start_task(&claim, 0).unwrap();
            drop(claim);
            registry.recover_tasks(&mut vec![]).unwrap();
            let Some(again) = registry.adopt_task(task.id).unwrap() else { break };
            claim = again;
        }
        let failed: Task = registry.get(&task.id.to_string()).unwrap();
        assert_eq!(failed.state, TaskState::Failed);
        assert!(failed.reason.unwrap().contains("3 times"));
    }
}
