//! The threads behind the server: those that work on Savings, and the one that looks what others changed.

use std::collections::{HashMap, VecDeque};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;
use tenon::{
    Deployment, DeploymentObserver, DeploymentState, Observer, PARALLEL_SAVINGS, Saving, SavingState,
    Timestamp, Uuid,
};
use utoipa::ToSchema;

use crate::app::App;

/// How often the catalogue is asked what other processes changed.
const LOOK: Duration = Duration::from_millis(200);
/// How often Savings whose process died are looked for.
const RECOVER: Duration = Duration::from_secs(10);
/// How often an idle thread looks for Savings that other processes queued.
const IDLE: Duration = Duration::from_secs(2);
/// How much less than requests the work counts where both want the CPU.
const NICE: i32 = 10;
/// Deployments that this process works on at once. Most of their time they wait for the other server.
const PARALLEL_DEPLOYMENTS: usize = 4;

/// Starts the threads. They end when the server stops or is dropped.
pub(crate) fn start(app: &App) {
    app.refresh();
    let weak = app.downgrade();
    spawn("tenon-watch", move || {
        let mut recovered = Instant::now();
        while let Some(app) = App::upgrade(&weak).filter(|app| !app.is_stopping()) {
            if recovered.elapsed() > RECOVER {
                recovered = Instant::now();
                if let Err(error) = app.tenon.registry().recover() {
                    tracing::warn!(%error, "what others left cannot be looked at");
                }
            }
            app.refresh();
            drop(app);
            std::thread::sleep(LOOK);
        }
    });
    if !app.options.work {
        return;
    }
    let threads = [(PARALLEL_SAVINGS, save_next as fn(&App) -> bool), (PARALLEL_DEPLOYMENTS, deploy_next)];
    for (n, work_on_next) in threads {
        (0..n).for_each(|_| start_worker(app, work_on_next));
    }
}

fn start_worker(app: &App, work_on_next: fn(&App) -> bool) {
    let weak = app.downgrade();
    spawn("tenon-work", move || {
        // Threads that a merge starts are as nice as this one. Where that is not allowed, it is not needed.
        let _ = rustix::process::nice(NICE);
        while let Some(app) = App::upgrade(&weak).filter(|app| !app.is_stopping()) {
            let working = app.working.read().unwrap_or_else(PoisonError::into_inner);
            if app.is_stopping() {
                return;
            }
            let rings = app.bell.rings();
            let worked = work_on_next(&app);
            drop(working);
            if !worked && !app.is_stopping() {
                app.bell.wait(rings, IDLE);
            }
        }
    });
}

impl App {
    /// Returns when no thread works on a job any more. Blocks.
    pub(crate) fn wait_for_work(&self) {
        drop(self.working.write().unwrap_or_else(PoisonError::into_inner));
    }
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) {
    let spawned = std::thread::Builder::new().name(name.into()).spawn(run);
    if let Err(error) = spawned {
        tracing::error!(%error, "no thread could be started; what it does is left to other processes");
    }
}

/// Works on the oldest Saving that nobody works on. Whether there was one.
fn save_next(app: &App) -> bool {
    match app.tenon.adopt(None) {
        Ok(None) => false,
        Ok(Some(queued)) => {
            let id = queued.saving.id;
            tracing::info!(%id, model = %queued.saving.model, "saving begins");
            let clock = Instant::now();
            let result = app.tenon.run_saving(queued, &Watching { app, id });
            app.refresh();
            match result {
                Ok(saved) => {
                    if saved.resumed_shards > 0 {
                        app.logs.add(id, Step::Resumed, format!("{} shards kept", saved.resumed_shards));
                    }
                    tracing::info!(%id, model = %saved.model.name, seconds = clock.elapsed().as_secs_f64(), "saving done");
                }
                Err(error) => tracing::warn!(%id, %error, "saving ended without a model"),
            }
            true
        }
        Err(error) => {
            tracing::warn!(%error, "the queue cannot be read");
            false
        }
    }
}

/// Works on the oldest deployment that nobody works on. Whether there was one.
fn deploy_next(app: &App) -> bool {
    match app.tenon.adopt_deployment(None) {
        Ok(None) => false,
        Ok(Some(queued)) => {
            let id = queued.deployment.id;
            let complete = queued.deployment.complete.clone();
            tracing::info!(%id, model = %complete, "deployment begins");
            let clock = Instant::now();
            let result = app.tenon.run_deployment(queued, &Watching { app, id });
            app.refresh();
            match result {
                Ok(live) => {
                    tracing::info!(%id, live = live.name(), seconds = clock.elapsed().as_secs_f64(), "deployment done");
                }
                Err(error) => tracing::warn!(%id, %error, "deployment ended without a Live Model"),
            }
            true
        }
        Err(error) => {
            tracing::warn!(%error, "the queue cannot be read");
            false
        }
    }
}

struct Watching<'a> {
    app: &'a App,
    id: Uuid,
}

impl Observer for Watching<'_> {
    fn advanced(&self, bytes: u64) {
        self.app.metrics.merged_bytes.inc_by(bytes);
    }

    fn shard_finished(&self, shard: &tenon::WrittenFile) {
        self.app.logs.add(self.id, Step::Shard, format!("{}, {} bytes", shard.name, shard.len));
    }
}

impl DeploymentObserver for Watching<'_> {
    fn entered(&self, deployment: &Deployment) {
        self.app.logs.add(self.id, Step::State, deployment.state.name());
        self.app.refresh();
    }

    fn said(&self, line: &str) {
        self.app.logs.add(self.id, Step::Said, line);
    }
}

/// Wakes the threads that work when there is something to do.
#[derive(Default)]
pub(crate) struct Bell {
    rings: Mutex<u64>,
    heard: Condvar,
}

impl Bell {
    pub(crate) fn ring(&self) {
        *self.rings.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.heard.notify_all();
    }

    fn rings(&self) -> u64 {
        *self.rings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a ring after so many.
    fn wait(&self, rings: u64, time: Duration) {
        let guard = self.rings.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.heard.wait_timeout_while(guard, time, |now| *now == rings));
    }
}

/// A line of a job's log.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub(crate) struct LogLine {
    /// When.
    #[schema(value_type = String, format = DateTime)]
    pub(crate) time: Timestamp,
    /// What.
    pub(crate) step: Step,
    /// More about it; may be empty.
    pub(crate) detail: String,
}

/// What a line of a job's log tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Step {
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
    /// It did what it does at this step (see `detail`).
    #[serde(rename = "step")]
    State,
    /// The other server said so.
    Said,
    /// Its work is done.
    Done,
    /// It ended without a result.
    Failed,
    /// Somebody stopped it.
    Cancelled,
}

/// Jobs whose log is kept.
const MAX_LOGS: usize = 500;
/// Lines kept of each.
const MAX_LINES: usize = 500;

/// What this process saw of jobs, beyond what their records tell.
#[derive(Default)]
pub(crate) struct Logs {
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    logs: HashMap<Uuid, Vec<LogLine>>,
    /// Oldest first.
    order: VecDeque<Uuid>,
}

impl Logs {
    pub(crate) fn add(&self, id: Uuid, step: Step, detail: impl Into<String>) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let Seen { logs, order } = &mut *seen;
        let log = logs.entry(id).or_insert_with(|| {
            order.push_back(id);
            vec![]
        });
        if log.len() < MAX_LINES {
            log.push(LogLine { time: Timestamp::now(), step, detail: detail.into() });
        }
        if order.len() > MAX_LOGS
            && let Some(oldest) = order.pop_front()
        {
            logs.remove(&oldest);
        }
    }

    /// Notes how a Saving's record changed, where the record itself does not keep it.
    pub(crate) fn note(&self, before: Option<&Saving>, now: &Saving) {
        if before.is_some_and(|before| before.state == SavingState::Running)
            && now.state == SavingState::Queued
        {
            self.add(now.id, Step::Interrupted, "");
        }
        if now.cancel && now.state.is_open() && before.is_some_and(|before| !before.cancel) {
            self.add(now.id, Step::Cancelling, "");
        }
    }

    /// As [`note`](Self::note), of a deployment.
    pub(crate) fn note_deployment(&self, before: Option<&Deployment>, now: &Deployment) {
        let was_open =
            |before: &Deployment| before.state != DeploymentState::Queued && before.state.is_open();
        if before.is_some_and(was_open) && now.state == DeploymentState::Queued {
            self.add(now.id, Step::Interrupted, "");
        }
        if now.cancel && now.state.is_open() && before.is_some_and(|before| !before.cancel) {
            self.add(now.id, Step::Cancelling, "");
        }
    }

    /// The log of a deployment: what its record tells and what was seen, in the order of time.
    pub(crate) fn of_deployment(&self, deployment: &Deployment) -> Vec<LogLine> {
        let end = match deployment.state {
            DeploymentState::Live => Some((Step::Done, deployment.model.clone())),
            DeploymentState::Failed => {
                let all = deployment.reason.iter().chain(&deployment.remedy).chain(&deployment.left_there);
                Some((Step::Failed, all.map(String::as_str).collect::<Vec<_>>().join("; ")))
            }
            DeploymentState::Cancelled => Some((Step::Cancelled, deployment.left_there.join("; "))),
            _ => None,
        };
        let attempt = format!("attempt {}", deployment.attempts);
        let what =
            format!("{} to {} as {}", deployment.quantization, deployment.environment, deployment.model);
        let lines = [
            Some((deployment.created, Step::Queued, what)),
            deployment.started.map(|time| (time, Step::Started, attempt)),
            end.zip(deployment.finished).map(|((step, detail), time)| (time, step, detail)),
        ];
        self.in_order(deployment.id, lines)
    }

    fn in_order<const N: usize>(
        &self,
        id: Uuid,
        told: [Option<(Timestamp, Step, String)>; N],
    ) -> Vec<LogLine> {
        let mut lines = self.seen(id);
        lines.extend(told.into_iter().flatten().map(|(time, step, detail)| LogLine { time, step, detail }));
        lines.sort_by_key(|line| line.time);
        lines
    }

    /// The log of a Saving: what its record tells and what was seen, in the order of time.
    pub(crate) fn of_saving(&self, saving: &Saving) -> Vec<LogLine> {
        let end = match saving.state {
            SavingState::Done => Some((Step::Done, saving.model.to_string())),
            SavingState::Failed => Some((Step::Failed, saving.reason.clone().unwrap_or_default())),
            SavingState::Cancelled => Some((Step::Cancelled, String::new())),
            SavingState::Queued | SavingState::Running => None,
        };
        let lines = [
            Some((saving.created, Step::Queued, saving.customized.to_string())),
            saving.started.map(|time| (time, Step::Started, format!("attempt {}", saving.attempts))),
            end.zip(saving.finished).map(|((step, detail), time)| (time, step, detail)),
        ];
        self.in_order(saving.id, lines)
    }

    fn seen(&self, id: Uuid) -> Vec<LogLine> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).logs.get(&id).cloned().unwrap_or_default()
    }
}
