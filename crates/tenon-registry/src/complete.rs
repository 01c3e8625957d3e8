//! Complete Models: found, held, deleted.

use std::fs::File;

use rustix::fs::{FlockOperation, flock};
use tenon_checkpoint::{fault, lock_dir};

use crate::catalogue::{self, Changing, Record, Which};
use crate::deploying::deployment_of;
use crate::job::remove_dir;
use crate::registry::get;
use crate::saving::{rename_new, sync_dir};
use crate::{CompleteModel, Error, Manifest, ModelName, Registry, Saving};

/// Keeps a Complete Model from being deleted while it is read.
#[derive(Debug)]
pub struct Held {
    _lock: File,
}

impl Registry {
    /// Keeps a Complete Model from being deleted until what is returned is dropped.
    pub fn hold(&self, name: &ModelName) -> Result<Held, Error> {
        let dir = self.home.complete(name);
        let gone =
            || Error::NotFound { what: CompleteModel::KIND.noun(), name: name.to_string(), nearest: None };
        let lock = File::open(&dir).map_err(|_| gone())?;
        flock(&lock, FlockOperation::NonBlockingLockShared).map_err(|_| gone())?;
        Ok(Held { _lock: lock })
    }

    /// As [`hold`](Self::hold), of a Complete Model that nobody else holds and no deployment is under way of:
    /// what was made of it may be removed.
    pub fn hold_alone(&self, name: &ModelName) -> Result<Held, Error> {
        let mut held = None;
        self.catalogue.transaction(&mut |change| {
            let model: CompleteModel = get(change, name.as_str())?;
            not_deployed(change, &model)?;
            held = Some(Held { _lock: self.lock_alone(&model)? });
            Ok(())
        })?;
        Ok(held.expect("set by the transaction"))
    }

    /// Locks the directory of a Complete Model that nobody else holds.
    fn lock_alone(&self, model: &CompleteModel) -> Result<File, Error> {
        let by = "it is being verified, deployed or downloaded";
        lock_dir(&self.home.complete(&model.name))?.ok_or_else(|| in_use(model, by.into()))
    }

    /// The manifest of a Complete Model.
    pub fn manifest(&self, name: &ModelName) -> Result<Manifest, Error> {
        Manifest::read(&self.home.complete(name))
    }

    /// Removes a Complete Model and what was made from it, for good. Its Live Models stay.
    ///
    /// It goes by one rename into the trash; from there it is removed by this process or, after a
    /// crash, by the next. Refused while a Saving has it as its base, a deployment
    /// of it is under way or a process reads it.
    pub fn delete(&self, name: &str) -> Result<CompleteModel, Error> {
        let (mut deleted, mut lock) = (None, None);
        self.catalogue.transaction(&mut |change| {
            let model: CompleteModel = get(change, name)?;
            let dir = self.home.complete(&model.name);
            let savings: Vec<Saving> = catalogue::all(change, Which::Open)?;
            let resolved = dir.canonicalize().unwrap_or_else(|_| dir.clone());
            if let Some(saving) = savings.iter().find(|saving| {
                saving.base_path.starts_with(&dir)
                    || saving.base_path.canonicalize().is_ok_and(|path| path.starts_with(&resolved))
            }) {
                let by = format!("it is the base of Saving {} ({})", saving.id, saving.state.name());
                return Err(in_use(&model, by));
            }
            not_deployed(change, &model)?;
            if dir.exists() {
                // Kept until it is removed: a process that recovers meanwhile leaves it alone.
                lock = Some(self.lock_alone(&model)?);
                let trash = self.home.trash().join(model.saving.to_string());
                fault::point("rename into trash").map_err(Error::io("rename", &dir))?;
                rename_new(&dir, &trash)?;
                sync_dir(&self.home.trash())?;
                sync_dir(&self.home.complete_models())?;
            }
            fault::point("unlist").map_err(Error::io("write", self.home.root()))?;
            change.remove(CompleteModel::KIND, model.name.as_str())?;
            deleted = Some(model);
            Ok(())
        })?;
        let model = deleted.expect("set by the transaction");
        remove_dir(&self.home.artifacts(model.saving))?;
        self.empty_trash(model.saving)?;
        drop(lock);
        Ok(model)
    }

    /// Removes one thing from the trash.
    pub(crate) fn empty_trash(&self, saving: uuid::Uuid) -> Result<(), Error> {
        let dir = self.home.trash().join(saving.to_string());
        if let Ok(entries) = std::fs::read_dir(&dir) {
            for entry in entries.flatten() {
                fault::point("remove file")
                    .map_err(Error::io("remove", entry.path()))
                    .or_else(|e| if crate::error::is_full(&e) { Ok(()) } else { Err(e) })?;
                let _ = std::fs::remove_file(entry.path());
            }
        }
        remove_dir(&dir)
    }
}

fn in_use(model: &CompleteModel, by: String) -> Error {
    Error::InUse { what: "Complete Model", name: model.name.clone(), by }
}

/// Fails while a deployment of a Complete Model is under way.
fn not_deployed(change: &dyn Changing, model: &CompleteModel) -> Result<(), Error> {
    let by = deployment_of(change, |deployment| deployment.complete.as_ref() == Some(&model.name))?;
    by.map_or(Ok(()), |by| Err(in_use(model, by)))
}
