//! The threads behind the server: those that work on jobs, and the one that looks what others changed.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tenon::{Deployment, DeploymentObserver, Observer, PARALLEL_SAVINGS};

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
/// Other verbs that this process works on at once. Each uses all cores.
const PARALLEL_TASKS: usize = 1;

/// Starts the threads. They end when the server stops or is dropped.
pub(crate) fn start(app: &App) {
    app.refresh();
    let weak = app.downgrade();
    spawn("tenon-watch", move || {
        let mut recovered = Instant::now();
        while let Some(app) = App::upgrade(&weak).filter(|app| !app.is_stopping()) {
            if recovered.elapsed() > RECOVER {
                recovered = Instant::now();
                if let Err(error) = app.tenon.recover() {
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
    let threads = [
        (PARALLEL_SAVINGS, save_next as fn(&App) -> bool),
        (PARALLEL_DEPLOYMENTS, deploy_next),
        (PARALLEL_TASKS, run_next_task),
    ];
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
            let result = app.tenon.run_saving(queued, &Watching { app });
            app.refresh();
            match result {
                Ok(saved) => {
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
            let model = queued.deployment.subject().to_string();
            tracing::info!(%id, %model, "deployment begins");
            let clock = Instant::now();
            let result = app.tenon.run_deployment(queued, &Watching { app });
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

/// Works on the oldest of the other verbs that nobody works on. Whether there was one.
fn run_next_task(app: &App) -> bool {
    match app.tenon.adopt_task() {
        Ok(None) => false,
        Ok(Some(queued)) => {
            let (id, verb) = (queued.task.id, queued.task.verb.clone());
            tracing::info!(%id, verb, subject = queued.task.subject, "task begins");
            let clock = Instant::now();
            let result = app.tenon.run_task(queued, &Watching { app });
            app.refresh();
            match result {
                Ok(_) => tracing::info!(%id, verb, seconds = clock.elapsed().as_secs_f64(), "task done"),
                Err(error) => tracing::warn!(%id, verb, %error, "task ended without a result"),
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
}

impl Observer for Watching<'_> {
    fn advanced(&self, bytes: u64) {
        self.app.metrics.merged_bytes.inc_by(bytes);
    }
}

impl DeploymentObserver for Watching<'_> {
    fn entered(&self, _deployment: &Deployment) {
        self.app.refresh();
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
