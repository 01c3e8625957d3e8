//! The lists as they are now, in memory, so that asking for one costs neither disk nor lock.
//!
//! Every change of a record has a number in the catalogue. Whoever changes something here has the
//! lists follow before answering; a thread has them follow what other processes change. What the
//! change was goes out as events.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use serde_json::json;
use tenon::{
    BaseModel, CompleteModel, CustomizedModel, Deployment, DeploymentEnvironment, LiveModel, Record,
    RegistryError, Saving, Task, Tenon, Uuid,
};

use crate::app::App;
use crate::list::List;
use crate::view::{
    BaseModelView, CompleteModelView, CustomizedModelView, EnvironmentView, Job, LiveModelView, ModelState,
};

/// How often all jobs are read where some changed; those under way are read each time.
const ALL_JOBS: Duration = Duration::from_secs(5);

/// All lists.
pub(crate) struct Lists {
    now: RwLock<Arc<Snapshot>>,
    seen: Mutex<Seen>,
}

/// The lists at one moment.
#[derive(Clone)]
pub(crate) struct Snapshot {
    pub(crate) complete: Arc<List<CompleteModelView>>,
    pub(crate) customized: Arc<List<CustomizedModelView>>,
    pub(crate) base: Arc<List<BaseModelView>>,
    pub(crate) environments: Arc<List<EnvironmentView>>,
    pub(crate) live: Arc<List<LiveModelView>>,
    pub(crate) jobs: Arc<List<Job>>,
}

/// The records that the lists were made of.
#[derive(Default)]
struct Seen {
    version: u64,
    complete: Seeing<CompleteModel>,
    customized: Seeing<CustomizedModel>,
    base: Seeing<BaseModel>,
    environments: Seeing<DeploymentEnvironment>,
    live: Seeing<LiveModel>,
    savings: Seeing<Saving>,
    deployments: Seeing<Deployment>,
    tasks: Seeing<Task>,
}

struct Seeing<R> {
    revision: Option<u64>,
    records: Vec<R>,
    /// When all were read, last.
    all: Option<Instant>,
}

impl<R> Default for Seeing<R> {
    fn default() -> Self {
        Self { revision: None, records: vec![], all: None }
    }
}

impl Default for Lists {
    fn default() -> Self {
        let now = Snapshot {
            complete: List::new(0, vec![]),
            customized: List::new(0, vec![]),
            base: List::new(0, vec![]),
            environments: List::new(0, vec![]),
            live: List::new(0, vec![]),
            jobs: List::new(0, vec![]),
        };
        Self { now: RwLock::new(Arc::new(now)), seen: Mutex::default() }
    }
}

impl Lists {
    /// The lists as they are now.
    pub(crate) fn now(&self) -> Arc<Snapshot> {
        self.now.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// How a list changed: what it said before, if anything, and what it says now.
struct Change<R> {
    key: String,
    before: Option<R>,
    now: Option<R>,
}

impl App {
    /// Has the lists follow the catalogue. Blocks; quick where nothing changed.
    pub(crate) fn refresh(&self) {
        let mut seen = self.lists.seen.lock().unwrap_or_else(PoisonError::into_inner);
        // A catalogue that cannot be read for a moment leaves the lists as they are; the next call is soon.
        if let Err(error) = self.follow(&mut seen) {
            tracing::warn!(%error, "the catalogue cannot be read");
        }
    }

    fn follow(&self, seen: &mut Seen) -> Result<(), RegistryError> {
        let tenon = &self.tenon;
        let first = seen.version == 0;
        let savings = seen.savings.follow_jobs(tenon, |tenon| tenon.registry().open_jobs())?;
        let deployments = seen.deployments.follow_jobs(tenon, |tenon| tenon.registry().open_jobs())?;
        let tasks = seen.tasks.follow_jobs(tenon, |tenon| tenon.registry().open_jobs())?;
        let complete = seen.complete.follow(tenon)?;
        let customized = seen.customized.follow(tenon)?;
        let base = seen.base.follow(tenon)?;
        let environments = seen.environments.follow(tenon)?;
        let live = seen.live.follow(tenon)?;
        let of_models =
            complete.is_some() || live.is_some() || deployments.as_ref().is_some_and(|d| any_began(d));
        let of_jobs = savings.is_some() || deployments.is_some() || tasks.is_some();
        if !(first
            || of_models
            || of_jobs
            || customized.is_some()
            || base.is_some()
            || environments.is_some())
        {
            return Ok(());
        }
        seen.version += 1;
        let version = seen.version;
        let mut now = Snapshot::clone(&self.lists.now());
        if of_models {
            now.complete = now.complete.next(version, complete_models(seen));
            let names: HashSet<&str> =
                seen.complete.records.iter().map(|model| model.name.as_str()).collect();
            let view = |live: &LiveModel| LiveModelView::new(live, names.contains(live.subject().as_str()));
            now.live = now.live.next(version, seen.live.records.iter().map(view).collect());
        }
        if customized.is_some() {
            now.customized =
                now.customized.next(version, seen.customized.records.iter().map(Into::into).collect());
        }
        if base.is_some() {
            now.base = now.base.next(version, seen.base.records.iter().map(Into::into).collect());
        }
        if environments.is_some() {
            now.environments =
                now.environments.next(version, seen.environments.records.iter().map(Into::into).collect());
        }
        if of_jobs {
            let savings = seen.savings.records.iter().map(Job::from);
            let deployments = seen.deployments.records.iter().map(Job::from);
            let tasks = seen.tasks.records.iter().map(Job::from);
            let mut jobs: Vec<Job> = savings.chain(deployments).chain(tasks).collect();
            jobs.sort_by_key(|job| job.created);
            self.metrics.count_jobs(&jobs);
            now.jobs = now.jobs.next(version, jobs);
        }
        let before = {
            let mut shown = self.lists.now.write().unwrap_or_else(PoisonError::into_inner);
            std::mem::replace(&mut *shown, Arc::new(now))
        };
        // Thousands of records are freed when nobody waits for the lists.
        drop(before);
        if first {
            return Ok(());
        }
        self.tell("base-model", base);
        self.tell("customized-model", customized);
        self.tell("complete-model", complete);
        self.tell("environment", environments);
        self.tell("live-model", live);
        self.tell_jobs(savings);
        self.tell_jobs(deployments);
        self.tell_jobs(tasks);
        Ok(())
    }

    fn tell_jobs<R>(&self, changes: Option<Vec<Change<R>>>)
    where
        for<'a> Job: From<&'a R>,
    {
        for job in changes.into_iter().flatten().filter_map(|change| change.now) {
            self.events.send("job", json!(Job::from(&job)).to_string());
        }
    }

    fn tell<R>(&self, event: &'static str, changes: Option<Vec<Change<R>>>) {
        for change in changes.into_iter().flatten() {
            let action = match (&change.before, &change.now) {
                (None, _) => "added",
                (_, None) => "removed",
                _ => "changed",
            };
            self.events.send(event, json!({ "action": action, "name": change.key }).to_string());
        }
    }
}

/// The Complete Models, with what the other lists tell of them.
fn complete_models(seen: &Seen) -> Vec<CompleteModelView> {
    let mut live: HashMap<Uuid, usize> = HashMap::new();
    for saving in seen.live.records.iter().filter_map(|model| model.saving) {
        *live.entry(saving).or_default() += 1;
    }
    let open = seen.deployments.records.iter().filter(|deployment| deployment.state.is_open());
    let deploying: HashSet<Uuid> = open.filter_map(|deployment| deployment.saving).collect();
    let view = |model: &CompleteModel| {
        let mut view = CompleteModelView::new(model);
        view.live_models = live.get(&model.saving).copied().unwrap_or_default();
        view.state = match view.live_models {
            _ if deploying.contains(&model.saving) => ModelState::Deploying,
            0 => ModelState::Whole,
            _ => ModelState::Live,
        };
        view
    };
    seen.complete.records.iter().map(view).collect()
}

/// Whether a deployment began or ended, and did not only go on.
fn any_began(changes: &[Change<Deployment>]) -> bool {
    let is_open = |deployment: &Option<Deployment>| deployment.as_ref().is_some_and(|d| d.state.is_open());
    changes.iter().any(|change| is_open(&change.before) != is_open(&change.now))
}

impl<R: Record + PartialEq + Clone> Seeing<R> {
    fn follow(&mut self, tenon: &Tenon) -> Result<Option<Vec<Change<R>>>, RegistryError> {
        // First the number: a change between the two is seen the next time.
        let revision = tenon.registry().revision::<R>()?;
        if self.revision == Some(revision) {
            return Ok(None);
        }
        let records = tenon.registry().all()?;
        self.all = Some(Instant::now());
        Ok(Some(self.replace(revision, records)))
    }

    /// As [`follow`](Self::follow), for jobs: those that were under way and those that are; all only now
    /// and then, as past ones do not change and there are many.
    fn follow_jobs(
        &mut self,
        tenon: &Tenon,
        open: impl FnOnce(&Tenon) -> Result<Vec<R>, RegistryError>,
    ) -> Result<Option<Vec<Change<R>>>, RegistryError> {
        let revision = tenon.registry().revision::<R>()?;
        if self.revision == Some(revision) {
            return Ok(None);
        }
        if self.all.is_none_or(|then| then.elapsed() > ALL_JOBS) {
            return self.follow(tenon);
        }
        let mut open: HashMap<String, R> = open(tenon)?.into_iter().map(|job| (job.key(), job)).collect();
        let mut records = self.records.clone();
        for job in records.iter_mut().filter(|job| job.is_open()) {
            let key = job.key();
            if let Some(now) = open.remove(&key) {
                *job = now;
            } else if let Some(now) = tenon.registry().find(&key)? {
                *job = now;
            }
        }
        records.extend(open.into_values());
        Ok(Some(self.replace(revision, records)))
    }

    fn replace(&mut self, revision: u64, records: Vec<R>) -> Vec<Change<R>> {
        self.revision = Some(revision);
        let before = std::mem::replace(&mut self.records, records);
        let mut before: HashMap<String, R> =
            before.into_iter().map(|record| (record.key(), record)).collect();
        let mut changes = vec![];
        for record in &self.records {
            let (key, old) = (record.key(), before.remove(&record.key()));
            if old.as_ref() != Some(record) {
                changes.push(Change { key, before: old, now: Some(record.clone()) });
            }
        }
        changes.extend(before.into_iter().map(|(key, old)| Change { key, before: Some(old), now: None }));
        changes
    }
}
