//! What was made for clients of the server that named no other place: removed again.

use std::fs;
use std::path::Path;

use serde_json::Value;
use tenon_checkpoint::{fault, lock_dir};
use uuid::Uuid;

use crate::catalogue::{self, Which};
use crate::saving::{rename_new, sync_dir};
use crate::{BaseModel, CustomizedModel, Error, ModelName, Registry, Task};

impl Registry {
    /// Removes something from the home's results, for good. Refused while a model is registered there
    /// or a job reads or makes it.
    ///
    /// It goes by one rename into the trash, as Complete Models do.
    pub fn remove_result(&self, name: &ModelName) -> Result<(), Error> {
        let place = self.home.results().join(name.as_str());
        let id = Uuid::new_v4();
        let trash = self.home.trash().join(id.to_string());
        let mut lock = None;
        self.catalogue.transaction(&mut |change| {
            if place.symlink_metadata().is_err() {
                return Err(Error::NotFound { what: "result", name: name.to_string(), nearest: None });
            }
            let resolved = place.canonicalize().unwrap_or_else(|_| place.clone());
            let is_here = |path: &Path| path.starts_with(&place) || path.starts_with(&resolved);
            let in_use = |by: String| Err(Error::InUse { what: "result", name: name.clone(), by });
            let bases: Vec<BaseModel> = catalogue::all(change, Which::All)?;
            if let Some(base) = bases.iter().find(|base| is_here(&base.path)) {
                return in_use(format!("Base Model {} is registered there; forget that first", base.name));
            }
            let customized: Vec<CustomizedModel> = catalogue::all(change, Which::All)?;
            if let Some(one) = customized.iter().find(|one| is_here(&one.path)) {
                return in_use(format!(
                    "Customized Model {} is registered there; forget that first",
                    one.name
                ));
            }
            let tasks: Vec<Task> = catalogue::all(change, Which::Open)?;
            if let Some(task) = tasks.iter().find(|task| names(&task.request, &is_here)) {
                return in_use(format!("job {} is {}", task.id, task.state.name()));
            }
            fs::create_dir_all(&trash).map_err(Error::io("create directory", &trash))?;
            // Kept until it is removed: a process that recovers meanwhile leaves it alone.
            lock = lock_dir(&trash)?;
            fault::point("rename into trash").map_err(Error::io("rename", &place))?;
            rename_new(&place, &trash.join(name.as_str()))?;
            sync_dir(&trash)?;
            sync_dir(&self.home.results())
        })?;
        self.empty_trash(id)?;
        drop(lock);
        Ok(())
    }
}

/// Whether a path in a task's request is one of those.
fn names(request: &Value, is_one: &impl Fn(&Path) -> bool) -> bool {
    match request {
        Value::String(text) => is_one(Path::new(text)),
        Value::Array(items) => items.iter().any(|item| names(item, is_one)),
        Value::Object(fields) => fields.values().any(|value| names(value, is_one)),
        _ => false,
    }
}
