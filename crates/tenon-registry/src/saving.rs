//! Savings: jobs in the catalogue, worked on in a locked directory.
//!
//! Whoever holds the lock on `staging/<id>` is the one who works on the Saving
//! or waits for its turn. The kernel lets go of the lock when the process
//! ends, however it ends, so no pid, clock or heartbeat has to be believed.

use std::fs::File;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use rustix::fs::{CWD, FlockOperation, RenameFlags, flock, renameat_with};
use tenon_checkpoint::{StagingDir, fault};
use uuid::Uuid;

use crate::catalogue::{self, Changing, Which};
use crate::registry::get;
use crate::{
    BaseModel, CompleteModel, CustomizedModel, Error, Home, ModelName, Registry, Saving, SavingState,
};

/// Savings that run at once in a home. Each uses all cores; a second one fills the waits of the first.
pub const PARALLEL_SAVINGS: usize = 2;

/// How often work on a Saving begins before it is given up.
pub const MAX_ATTEMPTS: u32 = 3;

/// The directory in which one Saving is worked on, locked for this process.
#[derive(Debug)]
#[must_use = "dropped, it lets go of the Saving"]
pub struct Workplace {
    id: Uuid,
    dir: PathBuf,
    /// Held open: its lock is the claim.
    _lock: File,
}

impl Workplace {
    /// The Saving.
    pub fn id(&self) -> Uuid {
        self.id
    }

    /// Where the model's files go.
    pub fn model(&self) -> PathBuf {
        self.dir.join("model")
    }

    /// Where notes on the progress go, to be found after a crash.
    pub fn journal(&self) -> PathBuf {
        self.dir.join("journal")
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
                state: SavingState::Queued,
                reason: None,
                created: Timestamp::now(),
                started: None,
                finished: None,
                done_bytes: 0,
                total_bytes: 0,
                disk_bytes: 0,
                pid: Some(std::process::id()),
                attempts: 0,
                cancel: false,
            };
            let dir = self.home.staging(id);
            fault::point("create staging").map_err(Error::io("create directory", &dir))?;
            std::fs::create_dir(&dir).map_err(Error::io("create directory", &dir))?;
            let workplace =
                self.lock(id)?.ok_or_else(|| Error::NotOpen { id, state: "locked by another process" })?;
            catalogue::insert(change, &saving)?;
            queued = Some((saving, workplace));
            Ok(())
        })?;
        Ok(queued.expect("set by the transaction"))
    }

    /// Takes over a Saving that is queued and that no process holds: nothing if one does.
    pub fn adopt(&self, id: Uuid) -> Result<Option<Workplace>, Error> {
        let mut workplace = None;
        self.catalogue.transaction(&mut |change| {
            let saving: Saving = get(change, &id.to_string())?;
            if saving.state == SavingState::Queued {
                workplace = self.lock(id)?;
            }
            Ok(())
        })?;
        Ok(workplace)
    }

    /// The oldest Saving that is queued and that no process holds.
    pub fn adopt_next(&self) -> Result<Option<Workplace>, Error> {
        for saving in self.open_savings()? {
            if let Some(workplace) = self.adopt(saving.id)? {
                return Ok(Some(workplace));
            }
        }
        Ok(None)
    }

    /// Begins work when it is the Saving's turn and the disk has room for it beside those under way;
    /// nothing while others come first.
    pub fn start(
        &self,
        workplace: &Workplace,
        disk_bytes: u64,
        total_bytes: u64,
    ) -> Result<Option<Saving>, Error> {
        let id = workplace.id;
        let mut started = None;
        self.catalogue.transaction(&mut |change| {
            let mut saving = open(change, id)?;
            let others: Vec<Saving> = catalogue::all(change, Which::Open)?;
            // Those whose process is gone do not count.
            let others: Vec<_> =
                others.into_iter().filter(|other| other.id != id && self.is_held(other.id)).collect();
            let is_running = |other: &&Saving| other.state == SavingState::Running;
            let running = others.iter().filter(is_running).count();
            let order = |saving: &Saving| (saving.created, saving.id);
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
            saving.state = SavingState::Running;
            saving.pid = Some(std::process::id());
            saving.started = Some(Timestamp::now());
            saving.attempts += 1;
            (saving.disk_bytes, saving.total_bytes, saving.done_bytes) = (disk_bytes, total_bytes, 0);
            catalogue::replace(change, &saving)?;
            started = Some(saving);
            Ok(())
        })?;
        Ok(started)
    }

    /// Notes how far a Saving is; tells whether somebody asked to stop it.
    pub fn progress(&self, id: Uuid, done_bytes: u64) -> Result<bool, Error> {
        let mut cancel = false;
        self.update(&id.to_string(), &mut |saving: &mut Saving| {
            saving.done_bytes = done_bytes;
            cancel = saving.cancel;
        })?;
        Ok(cancel)
    }

    /// Whether somebody asked to stop a Saving.
    pub fn is_cancelled(&self, id: Uuid) -> Result<bool, Error> {
        Ok(self.get::<Saving>(&id.to_string())?.cancel)
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
            let mut saving = open(change, workplace.id)?;
            fault::point("rename into complete").map_err(Error::io("rename into place", &to))?;
            rename_new(&from, &to)?;
            renamed = true;
            sync_dir(&self.home.complete_models())?;
            fault::point("list complete").map_err(Error::io("write", self.home.root()))?;
            catalogue::insert(change, model)?;
            end(&mut saving, SavingState::Done, None);
            saving.done_bytes = saving.total_bytes;
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
        let _ = std::fs::remove_dir_all(&workplace.dir);
        Ok(())
    }

    /// Ends a Saving without a model: its directory goes, its record tells why.
    pub fn give_up(
        &self,
        workplace: Workplace,
        state: SavingState,
        reason: Option<&str>,
    ) -> Result<(), Error> {
        // First the directory: it may be what fills the disk that the catalogue needs.
        remove_dir(&workplace.dir)?;
        self.update(&workplace.id.to_string(), &mut |saving: &mut Saving| end(saving, state, reason))
    }

    /// Lets go of a Saving that is not at its end: it is queued again and keeps what is finished of it.
    pub fn put_back(&self, workplace: Workplace) -> Result<(), Error> {
        self.update(&workplace.id.to_string(), &mut |saving: &mut Saving| {
            if saving.state == SavingState::Running {
                // An attempt that was stopped on purpose is none that failed.
                saving.attempts = saving.attempts.saturating_sub(1);
                saving.state = SavingState::Queued;
            }
            saving.pid = None;
        })
    }

    /// Asks to stop a Saving. One that nobody works on ends at once.
    pub fn cancel(&self, id: Uuid) -> Result<Saving, Error> {
        let mut unheld = None;
        let mut result = None;
        self.catalogue.transaction(&mut |change| {
            let mut saving: Saving = get(change, &id.to_string())?;
            if !saving.state.is_open() {
                return Err(Error::NotOpen { id, state: saving.state.name() });
            }
            saving.cancel = true;
            unheld = self.lock(id)?;
            if unheld.is_some() {
                end(&mut saving, SavingState::Cancelled, None);
            }
            catalogue::replace(change, &saving)?;
            result = Some(saving);
            Ok(())
        })?;
        if let Some(workplace) = unheld {
            remove_dir(&workplace.dir)?;
        }
        Ok(result.expect("set by the transaction"))
    }

    /// Locks a Saving's directory; nothing if another holds it or it is not there.
    ///
    /// Only within a transaction, so that asking never looks like holding to another process.
    pub(crate) fn lock(&self, id: Uuid) -> Result<Option<Workplace>, Error> {
        let dir = self.home.staging(id);
        Ok(try_lock(&dir)?.map(|lock| Workplace { id, dir, _lock: lock }))
    }

    /// Whether a live process holds a Saving. Only within a transaction.
    pub(crate) fn is_held(&self, id: Uuid) -> bool {
        let dir = self.home.staging(id);
        dir.is_dir() && !matches!(try_lock(&dir), Ok(Some(_)))
    }
}

/// The Saving, which must not have ended nor be asked to.
fn open(change: &dyn Changing, id: Uuid) -> Result<Saving, Error> {
    let saving: Saving = get(change, &id.to_string())?;
    if !saving.state.is_open() {
        return Err(Error::NotOpen { id, state: saving.state.name() });
    }
    if saving.cancel {
        return Err(Error::Cancelled { id });
    }
    Ok(saving)
}

pub(crate) fn end(saving: &mut Saving, state: SavingState, reason: Option<&str>) {
    saving.state = state;
    saving.reason = reason.map(str::to_string);
    saving.finished = Some(Timestamp::now());
    saving.pid = None;
}

/// Locks a directory for this process alone; nothing if it is held or not there.
pub(crate) fn try_lock(dir: &Path) -> Result<Option<File>, Error> {
    let file = match File::open(dir) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io("open directory", dir)(e)),
    };
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(e) => Err(Error::io("lock", dir)(e.into())),
    }
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

/// Bytes that the files of a Saving take on the disk already.
fn allocated(staging: &Path) -> u64 {
    let dir = staging.join("model");
    let Ok(entries) = std::fs::read_dir(dir) else { return 0 };
    entries.flatten().filter_map(|entry| entry.metadata().ok()).map(|meta| meta.blocks() * 512).sum()
}
