//! Savings: jobs that make Complete Models, each worked on in `staging/<id>`.

use std::fs::File;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use tenon_checkpoint::{StagingDir, fault};
use uuid::Uuid;

use crate::catalogue::{self, Changing, Which};
use crate::job::{Claim, Course, Job, JobState, Turn, open, remove_dir};
use crate::recover::complete_model;
use crate::registry::get;
use crate::{BaseModel, CompleteModel, CustomizedModel, Error, Home, ModelName, Recovered, Registry, Saving};

/// Savings that run at once in a home. Each uses all cores; a second one fills the waits of the first.
pub const PARALLEL_SAVINGS: usize = 2;

/// The directory in which one Saving is worked on, locked for this process.
pub type Workplace = Claim<Saving>;

impl Workplace {
    /// Where the model's files go.
    pub fn model(&self) -> PathBuf {
        self.dir().join("model")
    }

    /// Where notes on the progress go, to be found after a crash.
    pub fn journal(&self) -> PathBuf {
        self.dir().join("journal")
    }
}

impl Job for Saving {
    const GONE: &'static str = "its staging directory is gone";

    fn id(&self) -> Uuid {
        self.id
    }
    fn places(home: &Home) -> PathBuf {
        home.stagings()
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
        if is_given_up { Recovered::Failed(self) } else { Recovered::Requeued(self) }
    }
    fn swept(dir: &Path) -> Option<Recovered> {
        Some(Recovered::Swept(dir.into()))
    }
    /// The model was in place, and only the records were missing.
    fn find_done(&mut self, registry: &Registry, change: &dyn Changing) -> Result<Option<Recovered>, Error> {
        let Ok(manifest) = registry.manifest(&self.model) else { return Ok(None) };
        let Some(facts) = manifest.saving.as_ref().filter(|facts| facts.id == self.id) else {
            return Ok(None);
        };
        let model = complete_model(&manifest, facts);
        if catalogue::find::<CompleteModel>(change, model.name.as_str())?.is_none() {
            catalogue::insert(change, &model)?;
        }
        end(self, JobState::Done, None);
        Ok(Some(Recovered::Published(self.clone())))
    }
}

impl Registry {
    /// Queues a Saving of a Customized Model. The UUID is drawn until the name it gives is free.
    pub fn queue_saving(&self, customized: &ModelName) -> Result<(Saving, Workplace), Error> {
        let mut queued = None;
        self.catalogue.transaction(&mut |change| {
            let customized: CustomizedModel = get(change, customized.as_str())?;
            let base: BaseModel = get(change, customized.base.as_str())?;
            let past: Vec<Saving> = catalogue::all(change, Which::All)?;
            let (id, model) = loop {
                let id = Uuid::new_v4();
                let model = ModelName::complete(&customized.name, id);
                // Names of models that were deleted stay theirs: Live Models may tell of them.
                let taken = past.iter().any(|s| s.model.as_str().eq_ignore_ascii_case(model.as_str()))
                    || catalogue::find::<CompleteModel>(change, model.as_str())?.is_some()
                    || self.home.complete(&model).symlink_metadata().is_ok();
                if !taken {
                    break (id, model);
                }
            };
            let saving = Saving {
                id,
                model,
                customized: customized.name,
                base: base.name,
                base_path: base.path,
                state: JobState::Queued,
                reason: None,
                disk_bytes: 0,
                course: Course::new(),
            };
            let workplace = self.first_claim(id)?;
            catalogue::insert(change, &saving)?;
            queued = Some((saving, workplace));
            Ok(())
        })?;
        Ok(queued.expect("set by the transaction"))
    }

    /// Begins work when it is the Saving's turn and the disk has room for it beside those under way;
    /// nothing while others come first.
    pub fn start(
        &self,
        workplace: &Workplace,
        disk_bytes: u64,
        total_bytes: u64,
    ) -> Result<Option<Saving>, Error> {
        let id = workplace.id();
        let mut started = None;
        self.catalogue.transaction(&mut |change| {
            let mut saving: Saving = open(change, id)?;
            let others: Vec<Saving> = catalogue::all(change, Which::Open)?;
            // Those whose process is gone do not count.
            let others: Vec<_> = others
                .into_iter()
                .filter(|other| other.id != id && self.is_held::<Saving>(other.id))
                .collect();
            let is_running = |other: &&Saving| other.state == JobState::Running;
            let running = others.iter().filter(is_running).count();
            let order = |saving: &Saving| (saving.course.created, saving.id);
            let before =
                others.iter().filter(|other| !is_running(other) && order(other) < order(&saving)).count();
            if running + before >= PARALLEL_SAVINGS {
                return Ok(());
            }
            let reserved: u64 = others
                .iter()
                .filter(is_running)
                .map(|other| other.disk_bytes.saturating_sub(allocated(&self.home.staging(other.id))))
                .sum();
            let available = StagingDir::available_bytes(self.home.root())?;
            let needed = disk_bytes.saturating_sub(allocated(&self.home.staging(id)));
            if needed.saturating_add(reserved) > available {
                return Err(Error::NoRoom { needed, available, reserved });
            }
            saving.state = JobState::Running;
            saving.disk_bytes = disk_bytes;
            saving.course.begin(total_bytes);
            catalogue::replace(change, &saving)?;
            started = Some(saving);
            Ok(())
        })?;
        Ok(started)
    }

    /// Makes a Saving's model a Complete Model: read-only files, one rename, one transaction.
    ///
    /// The files must be synced already. When this fails, nothing was published.
    pub fn publish(&self, workplace: &Workplace, model: &CompleteModel) -> Result<(), Error> {
        let (from, to) = (workplace.model(), self.home.complete(&model.name));
        for name in Home::entries(&from)? {
            let path = from.join(name);
            let read_only = std::fs::Permissions::from_mode(0o444);
            std::fs::set_permissions(&path, read_only).map_err(Error::io("make read-only", &path))?;
        }
        sync_dir(&from)?;
        let mut renamed = false;
        let result = self.catalogue.transaction(&mut |change| {
            let mut saving: Saving = open(change, workplace.id())?;
            fault::point("rename into complete").map_err(Error::io("rename into place", &to))?;
            rename_new(&from, &to)?;
            renamed = true;
            sync_dir(&self.home.complete_models())?;
            fault::point("list complete").map_err(Error::io("write", self.home.root()))?;
            catalogue::insert(change, model)?;
            end(&mut saving, JobState::Done, None);
            saving.course.done_bytes = saving.course.total_bytes;
            catalogue::replace(change, &saving).map(drop)
        });
        if let Err(error) = result {
            if renamed {
                // The transaction was undone, so is the rename. If this fails too, the model stays
                // where its manifest tells what it is, and `recover` lists it.
                let _ = std::fs::rename(&to, &from);
            }
            return Err(error);
        }
        // What is left of it is swept by the next process if this one cannot.
        let _ = std::fs::remove_dir_all(workplace.dir());
        Ok(())
    }

    /// Ends a Saving without a model: its directory goes, its record tells why.
    pub fn give_up(&self, workplace: Workplace, state: JobState, reason: Option<&str>) -> Result<(), Error> {
        // First the directory: it may be what fills the disk that the catalogue needs.
        remove_dir(workplace.dir())?;
        self.update(&workplace.id().to_string(), &mut |saving: &mut Saving| end(saving, state, reason))
    }
}

fn end(saving: &mut Saving, state: JobState, reason: Option<&str>) {
    saving.state = state;
    saving.reason = reason.map(str::to_string);
    saving.course.end();
}

/// Renames, failing where the target is there.
pub(crate) fn rename_new(from: &Path, to: &Path) -> Result<(), Error> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Ok(()) => Ok(()),
        // A file system without flags for rename; the plain one replaces an empty directory at most.
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) if !to.exists() => {
            std::fs::rename(from, to).map_err(Error::io("rename into place", to))
        }
        Err(e) => Err(Error::io("rename into place", to)(e.into())),
    }
}

pub(crate) fn sync_dir(dir: &Path) -> Result<(), Error> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(Error::io("sync", dir))
}

/// Bytes that the files of a Saving take on the disk already.
fn allocated(staging: &Path) -> u64 {
    let dir = staging.join("model");
    let Ok(entries) = std::fs::read_dir(dir) else { return 0 };
    entries.flatten().filter_map(|entry| entry.metadata().ok()).map(|meta| meta.blocks() * 512).sum()
}
