//! What all jobs have in common, whether Savings, deployments or tasks: a record in the catalogue, and a
//! directory whose lock says who works on it.
//!
//! Whoever holds the lock is the one who works on the job or waits for its turn. The kernel lets go of
//! the lock when the process ends, however it ends, so no pid, clock or heartbeat has to be believed.

use std::fs::File;
use std::io;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tenon_checkpoint::{fault, lock_dir};
use uuid::Uuid;

use crate::catalogue::{self, Changing, Record, Which};
use crate::registry::get;
use crate::{Error, Home, Recovered, Registry};

/// How often work on a job begins before it is given up.
pub const MAX_ATTEMPTS: u32 = 3;

/// How far a job is that has no steps of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum JobState {
    /// Waits for its turn.
    Queued,
    /// A process works on it.
    Running,
    /// What it makes is there.
    Done,
    /// It ended without that, for its `reason`.
    Failed,
    /// Somebody stopped it.
    Cancelled,
}

impl JobState {
    /// Its word.
    pub fn name(self) -> &'static str {
        match self {
            JobState::Queued => "queued",
            JobState::Running => "running",
            JobState::Done => "done",
            JobState::Failed => "failed",
            JobState::Cancelled => "cancelled",
        }
    }

    /// Whether it has not ended.
    pub fn is_open(self) -> bool {
        matches!(self, JobState::Queued | JobState::Running)
    }
}

/// A record of work in the background.
pub trait Job: Record + Clone {
    /// Why one fails whose directory is not there.
    const GONE: &'static str = "its directory is gone";

    /// Its UUID.
    fn id(&self) -> Uuid;
    /// Where the directories of its kind are.
    fn places(home: &Home) -> PathBuf;
    /// The word of its state.
    fn state_name(&self) -> &'static str;
    /// What all jobs keep of their course.
    fn course(&self) -> &Course;
    /// The same, to be changed.
    fn course_mut(&mut self) -> &mut Course;
    /// Whether it waits for a process.
    fn is_queued(&self) -> bool;
    /// Brings it to its first state or to an end; of its course nothing is changed.
    fn set(&mut self, turn: Turn);
    /// What is told of one that waits again, and of one that was given up, after its process died.
    fn recovered(self, is_given_up: bool) -> Recovered;
    /// What is told of a directory that belonged to none.
    fn swept(dir: &Path) -> Option<Recovered> {
        let _ = dir;
        None
    }
    /// Whether its process died after it was done, in all but its record: then brings that to its end too.
    fn find_done(&mut self, registry: &Registry, change: &dyn Changing) -> Result<Option<Recovered>, Error> {
        let _ = (registry, change);
        Ok(None)
    }
}

/// What all jobs keep of their course; in JSON its fields stand among the job's own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Course {
    /// When the job was asked for.
    pub created: Timestamp,
    /// When work on it began, last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started: Option<Timestamp>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished: Option<Timestamp>,
    /// Bytes done of `total_bytes`; a deployment counts anew in each state.
    #[serde(default)]
    pub done_bytes: u64,
    /// Bytes to be done.
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

impl Course {
    /// Of a job that this process asks for now.
    #[expect(clippy::new_without_default, reason = "it reads the clock")]
    pub fn new() -> Self {
        Self {
            created: Timestamp::now(),
            started: None,
            finished: None,
            done_bytes: 0,
            total_bytes: 0,
            pid: Some(std::process::id()),
            attempts: 0,
            cancel: false,
        }
    }

    /// Part of its bytes that is done, 0 to 1; 0 while it is not known how many there are.
    pub fn share(&self) -> f64 {
        match self.total_bytes {
            0 => 0.0,
            total => (self.done_bytes as f64 / total as f64).min(1.0),
        }
    }

    /// This process begins work, on so many bytes as far as it knows.
    pub(crate) fn begin(&mut self, total_bytes: u64) {
        self.started = Some(Timestamp::now());
        self.pid = Some(std::process::id());
        self.attempts += 1;
        (self.done_bytes, self.total_bytes) = (0, total_bytes);
    }

    /// It is over.
    pub(crate) fn end(&mut self) {
        self.finished = Some(Timestamp::now());
        self.pid = None;
    }
}

/// What becomes of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Turn {
    /// It waits for a process.
    Queued,
    /// Somebody stopped it.
    Cancelled,
    /// It failed, for this reason.
    Failed(String),
}

impl Turn {
    /// The state that this is, and the reason.
    pub(crate) fn state(self) -> (JobState, Option<String>) {
        match self {
            Turn::Queued => (JobState::Queued, None),
            Turn::Cancelled => (JobState::Cancelled, None),
            Turn::Failed(reason) => (JobState::Failed, Some(reason)),
        }
    }
}

/// The claim of this process on a job, and the directory that belongs to that.
#[derive(Debug)]
#[must_use = "dropped, it lets go of the job"]
pub struct Claim<J> {
    id: Uuid,
    dir: PathBuf,
    /// Held open: its lock is the claim.
    _lock: File,
    job: PhantomData<fn() -> J>,
}

impl<J> Claim<J> {
    /// The job.
    pub fn id(&self) -> Uuid {
        self.id
    }

    /// A directory that goes when the job ends.
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

impl Registry {
    /// The jobs of a kind that have not ended, oldest first.
    pub fn open_jobs<J: Job>(&self) -> Result<Vec<J>, Error> {
        catalogue::all(&*self.catalogue, Which::Open)
    }

    /// Takes over a job that is queued and that no process holds: nothing if one does.
    pub fn adopt<J: Job>(&self, id: Uuid) -> Result<Option<Claim<J>>, Error> {
        let mut claim = None;
        self.catalogue.transaction(&mut |change| {
            let job: J = get(change, &id.to_string())?;
            if job.is_queued() {
                claim = self.claim(id)?;
            }
            Ok(())
        })?;
        Ok(claim)
    }

    /// The oldest job of a kind that is queued and that no process holds.
    pub fn adopt_next<J: Job>(&self) -> Result<Option<Claim<J>>, Error> {
        for job in self.open_jobs::<J>()? {
            if let Some(claim) = self.adopt(job.id())? {
                return Ok(Some(claim));
            }
        }
        Ok(None)
    }

    /// Whether somebody asked to stop a job.
    pub fn is_cancelled<J: Job>(&self, id: Uuid) -> Result<bool, Error> {
        Ok(self.get::<J>(&id.to_string())?.course().cancel)
    }

    /// Notes how far a job is; tells whether somebody asked to stop it.
    pub fn note<J: Job>(&self, id: Uuid, edit: &mut dyn FnMut(&mut J)) -> Result<bool, Error> {
        let mut cancel = false;
        self.update(&id.to_string(), &mut |job: &mut J| {
            edit(job);
            cancel = job.course().cancel;
        })?;
        Ok(cancel)
    }

    /// Lets go of a job that is not at its end: it is queued again, and keeps what is finished of it.
    pub fn put_back<J: Job>(&self, claim: Claim<J>) -> Result<(), Error> {
        self.update(&claim.id.to_string(), &mut |job: &mut J| {
            if job.is_open() && !job.is_queued() {
                job.set(Turn::Queued);
                // An attempt that was stopped on purpose is none that failed.
                let course = job.course_mut();
                course.attempts = course.attempts.saturating_sub(1);
            }
            job.course_mut().pid = None;
        })
    }

    /// Asks to stop a job. One that nobody works on ends at once.
    pub fn cancel<J: Job>(&self, id: Uuid) -> Result<J, Error> {
        let (mut unheld, mut result) = (None, None);
        self.catalogue.transaction(&mut |change| {
            let mut job: J = get(change, &id.to_string())?;
            if !job.is_open() {
                return Err(not_open(&job));
            }
            job.course_mut().cancel = true;
            unheld = self.claim::<J>(id)?;
            if unheld.is_some() {
                end(&mut job, Turn::Cancelled);
            }
            catalogue::replace(change, &job)?;
            result = Some(job);
            Ok(())
        })?;
        if let Some(claim) = unheld {
            remove_dir(&claim.dir)?;
        }
        Ok(result.expect("set by the transaction"))
    }

    /// Makes the directory of a new job, for this process.
    pub(crate) fn first_claim<J: Job>(&self, id: Uuid) -> Result<Claim<J>, Error> {
        let dir = J::places(&self.home).join(id.to_string());
        fault::point("create job").map_err(Error::io("create directory", &dir))?;
        std::fs::create_dir(&dir).map_err(Error::io("create directory", &dir))?;
        let what = J::KIND.noun();
        self.claim(id)?.ok_or(Error::NotOpen { what, id, state: "locked by another process" })
    }

    /// Locks a job's directory; nothing if another holds it or it is not there.
    ///
    /// Only within a transaction, so that asking never looks like holding to another process.
    pub(crate) fn claim<J: Job>(&self, id: Uuid) -> Result<Option<Claim<J>>, Error> {
        let dir = J::places(&self.home).join(id.to_string());
        Ok(lock_dir(&dir)?.map(|lock| Claim { id, dir, _lock: lock, job: PhantomData }))
    }

    /// Whether a live process holds a job. Only within a transaction.
    pub(crate) fn is_held<J: Job>(&self, id: Uuid) -> bool {
        let dir = J::places(&self.home).join(id.to_string());
        dir.is_dir() && !matches!(lock_dir(&dir), Ok(Some(_)))
    }

    /// Finishes, queues again, gives up or sweeps jobs of processes that are no more.
    pub(crate) fn recover_jobs<J: Job>(&self, recovered: &mut Vec<Recovered>) -> Result<(), Error> {
        let places = J::places(&self.home);
        let dirs = Home::entries(&places)?;
        if dirs.is_empty() && self.open_jobs::<J>()?.is_empty() {
            return Ok(());
        }
        let mut to_remove = vec![];
        self.catalogue.transaction(&mut |change| {
            let open: Vec<J> = catalogue::all(change, Which::Open)?;
            for mut job in open.iter().filter(|job| !self.is_held::<J>(job.id())).cloned() {
                let dir = places.join(job.id().to_string());
                let attempts = job.course().attempts;
                if let Some(done) = job.find_done(self, change)? {
                    to_remove.push(dir);
                    recovered.push(done);
                } else if job.course().cancel {
                    end(&mut job, Turn::Cancelled);
                    to_remove.push(dir);
                } else if !dir.is_dir() {
                    end(&mut job, Turn::Failed(J::GONE.into()));
                    recovered.push(job.clone().recovered(true));
                } else if job.is_queued() {
                    // It waits for a process to take it up.
                    continue;
                } else if attempts >= MAX_ATTEMPTS {
                    end(&mut job, Turn::Failed(format!("its process ended unexpectedly {attempts} times")));
                    to_remove.push(dir);
                    recovered.push(job.clone().recovered(true));
                } else {
                    job.set(Turn::Queued);
                    job.course_mut().pid = None;
                    recovered.push(job.clone().recovered(false));
                }
                catalogue::replace(change, &job)?;
            }
            for name in &dirs {
                let id = name.parse::<Uuid>();
                let is_open = id.as_ref().is_ok_and(|id| open.iter().any(|job| job.id() == *id));
                let is_held = id.is_ok_and(|id| self.is_held::<J>(id));
                if !is_open && !is_held {
                    let dir = places.join(name);
                    recovered.extend(J::swept(&dir));
                    to_remove.push(dir);
                }
            }
            fault::point("recover").map_err(Error::io("write", self.home.root()))
        })?;
        to_remove.iter().try_for_each(|dir| remove_dir(dir))
    }
}

/// The job, which must not have ended nor be asked to.
pub(crate) fn open<J: Job>(change: &dyn Changing, id: Uuid) -> Result<J, Error> {
    let job: J = get(change, &id.to_string())?;
    if !job.is_open() {
        return Err(not_open(&job));
    }
    if job.course().cancel {
        return Err(Error::Cancelled { what: J::KIND.noun(), id });
    }
    Ok(job)
}

fn not_open<J: Job>(job: &J) -> Error {
    Error::NotOpen { what: J::KIND.noun(), id: job.id(), state: job.state_name() }
}

fn end<J: Job>(job: &mut J, turn: Turn) {
    job.set(turn);
    job.course_mut().end();
}

/// Removes a directory with all in it; it is fine if somebody else did.
pub(crate) fn remove_dir(dir: &Path) -> Result<(), Error> {
    fault::point("remove directory").or_else(|e| match e.kind() {
        // A full disk does not keep from removing.
        io::ErrorKind::StorageFull => Ok(()),
        _ => Err(Error::io("remove", dir)(e)),
    })?;
    for attempt in 0.. {
        match std::fs::remove_dir_all(dir) {
            Ok(()) => break,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                // Gone, or somebody removes it at the same time and was faster with one file.
                if !dir.exists() || attempt > 100 {
                    break;
                }
            }
            Err(e) => return Err(Error::io("remove", dir)(e)),
        }
    }
    Ok(())
}
