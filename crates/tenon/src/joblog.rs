//! What happened to jobs, line by line: written by whoever works on them, read by whoever asks, also
//! after a restart.
//!
//! `logs/<id>.jsonl` in the home, a line each. Lines are for people: the record of a job is what counts,
//! so they are not synced, and one that cannot be written is left out.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tenon_registry::{Course, Deployment, DeploymentState, JobState, Saving, Task, Timestamp, Uuid};

use crate::{Error, Job, Tenon};

/// A line of a job's log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LogLine {
    /// When.
    pub time: Timestamp,
    /// What.
    pub step: LogStep,
    /// More about it; may be empty.
    pub detail: String,
}

/// What a line of a job's log tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogStep {
    /// It was asked for.
    Queued,
    /// Work on it began.
    Started,
    /// What an earlier attempt had finished was kept.
    Resumed,
    /// A shard is written and synced.
    Shard,
    /// Its process stopped; it waits for another.
    Interrupted,
    /// Somebody asked to stop it.
    Cancelling,
    /// It does what it does at this step.
    Step,
    /// The other server said so.
    Said,
    /// Its work is done.
    Done,
    /// It ended without a result.
    Failed,
    /// Somebody stopped it.
    Cancelled,
}

/// Bytes of a job's log; what comes later is left out.
const MAX_BYTES: u64 = 256 << 10;
/// Characters of a line's detail.
const MAX_DETAIL: usize = 1000;
/// Jobs whose logs are kept.
const MAX_LOGS: usize = 1000;

impl Tenon {
    /// What happened to a job, in the order of time: what its record tells, and what those who worked on
    /// it wrote down.
    pub fn job_log(&self, id: Uuid) -> Result<Vec<LogLine>, Error> {
        let job = self.job(id)?;
        let mut lines = read(&self.log_file(id));
        let was_started = lines.iter().any(|line| line.step == LogStep::Started);
        let told = told(&job).into_iter().filter(|line| !(was_started && line.step == LogStep::Started));
        lines.extend(told);
        lines.sort_by_key(|line| line.time);
        Ok(lines)
    }

    /// Writes a line into a job's log.
    pub(crate) fn note(&self, id: Uuid, step: LogStep, detail: impl AsRef<str>) {
        let path = self.log_file(id);
        let detail: String = detail.as_ref().chars().take(MAX_DETAIL).collect();
        let line = LogLine { time: Timestamp::now(), step, detail };
        let Ok(mut text) = serde_json::to_string(&line) else { return };
        text.push('\n');
        let len = path.metadata().map(|meta| meta.len());
        if len.as_ref().is_ok_and(|len| *len > MAX_BYTES) {
            return;
        }
        // One write, so that lines of two processes do not mix.
        let open = OpenOptions::new().create(true).append(true).open(&path);
        let _ = open.and_then(|mut file| file.write_all(text.as_bytes()));
        if len.is_err() {
            self.sweep_logs();
        }
    }

    fn log_file(&self, id: Uuid) -> PathBuf {
        self.registry.home().logs().join(format!("{id}.jsonl"))
    }

    /// Removes the logs of the oldest jobs beyond so many.
    fn sweep_logs(&self) {
        let Ok(entries) = std::fs::read_dir(self.registry.home().logs()) else { return };
        let time = |entry: &std::fs::DirEntry| entry.metadata().and_then(|meta| meta.modified()).ok();
        let mut logs: Vec<_> = entries.flatten().map(|entry| (time(&entry), entry.path())).collect();
        if logs.len() > MAX_LOGS {
            logs.sort();
            let beyond = logs.len() - MAX_LOGS;
            logs.iter().take(beyond).for_each(|(_, path)| drop(std::fs::remove_file(path)));
        }
    }
}

fn read(path: &Path) -> Vec<LogLine> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    // The last line may be cut short.
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// What a job's record tells.
fn told(job: &Job) -> Vec<LogLine> {
    let Course { created, started, finished, attempts, .. } = *job.course();
    let (what, end) = match job {
        Job::Saving(saving) => (saving.customized.to_string(), end_of_saving(saving)),
        Job::Deployment(deployment) => (
            format!("{} to {} as {}", deployment.quantization, deployment.environment, deployment.model),
            end_of_deployment(deployment),
        ),
        Job::Task(task) => (format!("{} {}", task.verb, task.subject), end_of_task(task)),
    };
    let line = |time, step, detail| LogLine { time, step, detail };
    let began = started.map(|time| line(time, LogStep::Started, format!("attempt {attempts}")));
    let ended = end.zip(finished).map(|((step, detail), time)| line(time, step, detail));
    std::iter::once(line(created, LogStep::Queued, what)).chain(began).chain(ended).collect()
}

fn end_of_saving(saving: &Saving) -> Option<(LogStep, String)> {
    match saving.state {
        JobState::Done => Some((LogStep::Done, saving.model.to_string())),
        JobState::Failed => Some((LogStep::Failed, saving.reason.clone().unwrap_or_default())),
        JobState::Cancelled => Some((LogStep::Cancelled, String::new())),
        JobState::Queued | JobState::Running => None,
    }
}

fn end_of_deployment(deployment: &Deployment) -> Option<(LogStep, String)> {
    match deployment.state {
        DeploymentState::Live => Some((LogStep::Done, deployment.model.clone())),
        DeploymentState::Failed => {
            let all = deployment.reason.iter().chain(&deployment.remedy).chain(&deployment.left_there);
            Some((LogStep::Failed, all.map(String::as_str).collect::<Vec<_>>().join("; ")))
        }
        DeploymentState::Cancelled => Some((LogStep::Cancelled, deployment.left_there.join("; "))),
        _ => None,
    }
}

fn end_of_task(task: &Task) -> Option<(LogStep, String)> {
    let path = || task.result.as_ref()?.get("path")?.as_str().map(str::to_string);
    match task.state {
        JobState::Done => Some((LogStep::Done, path().unwrap_or_else(|| task.subject.clone()))),
        JobState::Failed => Some((LogStep::Failed, task.reason.clone().unwrap_or_default())),
        JobState::Cancelled => Some((LogStep::Cancelled, String::new())),
        JobState::Queued | JobState::Running => None,
    }
}
