//! A home, opened: Base Models and Customized Models.

use std::path::{Path, PathBuf};

use jiff::Timestamp;
use uuid::Uuid;

use crate::catalogue::{self, Catalogue, Reading, Record, SqliteCatalogue, Which};
use crate::deploying::deployment_of;
use crate::job::remove_dir;
use crate::{BaseModel, CustomizedModel, Error, Home, KnownFile, ModelName, Recovered, Saving, Template};

/// One home, opened by this process; others may have it open too.
pub struct Registry {
    pub(crate) home: Home,
    pub(crate) catalogue: Box<dyn Catalogue>,
}

/// An adapter about to be registered.
#[derive(Debug, Clone)]
pub struct NewCustomized {
    /// Name of its Base Model.
    pub base: ModelName,
    /// Name of the training.
    pub train_name: ModelName,
    /// UUID of the training; drawn where there is none.
    pub training_id: Option<Uuid>,
    /// Directory of the adapter.
    pub path: PathBuf,
    /// The adapter's `peft_type`.
    pub peft_type: String,
    /// Its weights and configuration.
    pub files: Vec<KnownFile>,
}

impl Registry {
    /// Opens the home at a directory, made where it is missing; repairs what a crash left (see
    /// [`recover`](Self::recover)) and rebuilds a catalogue that is gone.
    pub fn open(root: &Path) -> Result<(Self, Vec<Recovered>), Error> {
        let home = Home::create(root)?;
        let (catalogue, made) = SqliteCatalogue::open(&home.catalogue())?;
        let registry = Self { home, catalogue: Box::new(catalogue) };
        if made {
            registry.check(true)?;
        }
        let recovered = registry.recover()?;
        Ok((registry, recovered))
    }

    /// A home with a catalogue of one's own.
    pub fn with_catalogue(home: Home, catalogue: Box<dyn Catalogue>) -> Self {
        Self { home, catalogue }
    }

    /// Where things lie.
    pub fn home(&self) -> &Home {
        &self.home
    }

    /// All records of a type, oldest first: Base Models, Customized Models, Complete Models, Savings.
    pub fn all<R: Record>(&self) -> Result<Vec<R>, Error> {
        catalogue::all(&*self.catalogue, Which::All)
    }

    /// A number that is another after every change of a record of the type, by whatever process.
    pub fn revision<R: Record>(&self) -> Result<u64, Error> {
        self.catalogue.revision(R::KIND)
    }

    /// The record with a name, if it is there.
    pub fn find<R: Record>(&self, name: &str) -> Result<Option<R>, Error> {
        catalogue::find(&*self.catalogue, name)
    }

    /// The record with a name; if it is not there, the error names the nearest that is.
    pub fn get<R: Record>(&self, name: &str) -> Result<R, Error> {
        get(&*self.catalogue, name)
    }

    /// Registers a Base Model.
    pub fn add_base(&self, base: &BaseModel) -> Result<(), Error> {
        self.catalogue.transaction(&mut |change| catalogue::insert(change, base))
    }

    /// Registers a Base Model unless one is registered for its directory, which is given then.
    pub fn add_base_once(&self, base: &BaseModel) -> Result<Option<BaseModel>, Error> {
        let mut known = None;
        self.catalogue.transaction(&mut |change| {
            let bases: Vec<BaseModel> = catalogue::all(change, Which::All)?;
            known = bases.into_iter().find(|known| known.path == base.path);
            if known.is_none() { catalogue::insert(change, base) } else { Ok(()) }
        })?;
        Ok(known)
    }

    /// Changes a Base Model's record.
    pub fn update_base(&self, name: &ModelName, edit: &mut dyn FnMut(&mut BaseModel)) -> Result<(), Error> {
        self.update(name.as_str(), edit)
    }

    /// Changes a Customized Model's record.
    pub fn update_customized(
        &self,
        name: &ModelName,
        edit: &mut dyn FnMut(&mut CustomizedModel),
    ) -> Result<(), Error> {
        self.update(name.as_str(), edit)
    }

    /// Adds a record.
    pub fn insert<R: Record>(&self, record: &R) -> Result<(), Error> {
        self.catalogue.transaction(&mut |change| catalogue::insert(change, record))
    }

    /// Removes the record with a name. Whether there was one.
    pub fn remove<R: Record>(&self, name: &str) -> Result<bool, Error> {
        let mut removed = false;
        self.catalogue.transaction(&mut |change| {
            removed = change.remove(R::KIND, name)?;
            Ok(())
        })?;
        Ok(removed)
    }

    /// Runs a change of records: all of it or nothing.
    pub fn transaction(&self, change: catalogue::Change<'_>) -> Result<(), Error> {
        self.catalogue.transaction(change)
    }

    /// Changes the record with a name.
    pub fn update<R: Record>(&self, key: &str, edit: &mut dyn FnMut(&mut R)) -> Result<(), Error> {
        self.catalogue.transaction(&mut |change| {
            let mut record: R = get(change, key)?;
            edit(&mut record);
            catalogue::replace(change, &record).map(drop)
        })
    }

    /// Attaches a Deployment Template File to a Base Model.
    pub fn set_template(&self, name: &ModelName, template: Template) -> Result<(), Error> {
        self.update_base(name, &mut |base| base.template = Some(template.clone()))
    }

    /// Forgets a Base Model; its directory stays. Refused while a Customized Model is linked to it.
    pub fn remove_base(&self, name: &str) -> Result<BaseModel, Error> {
        let mut removed = None;
        self.catalogue.transaction(&mut |change| {
            let base: BaseModel = get(change, name)?;
            let linked: Vec<CustomizedModel> = catalogue::all(change, Which::All)?;
            if let Some(customized) = linked.iter().find(|customized| customized.base == base.name) {
                let by = format!("Customized Model {} is linked to it; remove that first", customized.name);
                return Err(Error::InUse { what: "Base Model", name: base.name, by });
            }
            change.remove(BaseModel::KIND, name)?;
            removed = Some(base);
            Ok(())
        })?;
        let base = removed.expect("set by the transaction");
        remove_dir(&self.home.base_artifacts(&base.name))?;
        Ok(base)
    }

    /// Registers an adapter under its automatic name. A training UUID that is not given is drawn
    /// until the name is free.
    pub fn add_customized(&self, new: NewCustomized) -> Result<CustomizedModel, Error> {
        let created = Timestamp::now();
        loop {
            let training_id = new.training_id.unwrap_or_else(Uuid::new_v4);
            let customized = CustomizedModel {
                name: ModelName::customized(&new.base, &new.train_name, created, training_id),
                base: new.base.clone(),
                train_name: new.train_name.clone(),
                training_id,
                path: new.path.clone(),
                created,
                peft_type: new.peft_type.clone(),
                files: new.files.clone(),
            };
            let result = self.catalogue.transaction(&mut |change| {
                get::<BaseModel>(change, new.base.as_str())?;
                catalogue::insert(change, &customized)
            });
            match result {
                Err(Error::Taken { .. }) if new.training_id.is_none() => continue,
                other => return other.map(|()| customized),
            }
        }
    }

    /// Forgets a Customized Model; its directory stays. Refused while it is being saved.
    pub fn remove_customized(&self, name: &str) -> Result<CustomizedModel, Error> {
        let mut removed = None;
        self.catalogue.transaction(&mut |change| {
            let customized: CustomizedModel = get(change, name)?;
            let savings: Vec<Saving> = catalogue::all(change, Which::Open)?;
            if let Some(by) =
                deployment_of(change, |deployment| deployment.adapter.as_ref() == Some(&customized.name))?
            {
                return Err(Error::InUse { what: "Customized Model", name: customized.name, by });
            }
            if let Some(saving) = savings.iter().find(|saving| saving.customized == customized.name) {
                let by = format!("Saving {} is {}", saving.id, saving.state.name());
                return Err(Error::InUse { what: "Customized Model", name: customized.name, by });
            }
            change.remove(CustomizedModel::KIND, name)?;
            removed = Some(customized);
            Ok(())
        })?;
        let customized = removed.expect("set by the transaction");
        remove_dir(&self.home.adapter_artifacts(&customized.name))?;
        Ok(customized)
    }
}

pub(crate) fn get<R: Record>(catalogue: &(impl Reading + ?Sized), name: &str) -> Result<R, Error> {
    if let Some(record) = catalogue::find(catalogue, name)? {
        return Ok(record);
    }
    let all: Vec<R> = catalogue::all(catalogue, Which::All)?;
    let lower = name.to_lowercase();
    // The name that begins as this one does, if that leaves no doubt; for typos people look at the list.
    let mut near = all.iter().map(Record::key).filter(|key| key.to_lowercase().starts_with(&lower));
    let nearest = near.next().filter(|_| near.next().is_none() && !lower.is_empty());
    Err(Error::NotFound { what: R::KIND.noun(), name: name.to_string(), nearest })
}
