//! After a crash: what is half done is finished, queued again, or swept.

use std::path::PathBuf;

use serde::Serialize;
use tenon_checkpoint::{Abandoned, lock_dir};
use uuid::Uuid;

use crate::catalogue::{self, Record, Which};
use crate::job::remove_dir;
use crate::{
    BaseModel, CompleteModel, CustomizedModel, Deployment, Error, Home, KnownFile, Manifest, ModelInput,
    ModelName, Registry, Saving, SavingFacts, Task,
};

/// What was found left over, and what became of it.
#[derive(Debug, Clone, PartialEq)]
pub enum Recovered {
    /// The model was in place and only its record was missing.
    Published(Saving),
    /// Its process died; it is queued again and goes on from its finished shards.
    Requeued(Saving),
    /// Its process died as often as is tolerated, or its directory is gone.
    Failed(Saving),
    /// A delete was cut short; now it is through.
    Deleted(Uuid),
    /// The process of a deployment died; it is queued again and sends only what is not there yet.
    DeploymentRequeued(Deployment),
    /// The process of a deployment died as often as is tolerated, or its directory is gone.
    DeploymentFailed(Deployment),
    /// The process of a task died; it is queued again.
    TaskRequeued(Task),
    /// The process of a task died as often as is tolerated, or its directory is gone.
    TaskFailed(Task),
    /// Something in `staging/` or `artifacts/` that belonged to nothing.
    Swept(PathBuf),
}

/// How catalogue and directories compare.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct CheckReport {
    /// Complete Models that are as they should be.
    pub agree: usize,
    /// Directories whose manifest says they are Complete Models, and which are not listed.
    pub unlisted: Vec<ModelName>,
    /// Listed models without a directory.
    pub missing: Vec<ModelName>,
    /// Listed models whose manifest tells something else than the catalogue.
    pub differ: Vec<ModelName>,
    /// Entries of `complete/` that are no Complete Models, with the reason.
    pub foreign: Vec<(String, String)>,
    /// Base Models and Customized Models whose directory is gone.
    pub inputs_gone: Vec<ModelName>,
    /// Whether what can be repaired was.
    pub repaired: bool,
}

impl CheckReport {
    /// Whether catalogue and directories agree.
    pub fn is_clean(&self) -> bool {
        self.unlisted.is_empty()
            && self.missing.is_empty()
            && self.differ.is_empty()
            && self.foreign.is_empty()
    }
}

impl Registry {
    /// Finishes, queues again or sweeps what processes left that are no more. Quick when there is nothing.
    pub fn recover(&self) -> Result<Vec<Recovered>, Error> {
        let mut recovered = vec![];
        for entry in Home::entries(&self.home.trash())? {
            let Ok(id) = entry.parse::<Uuid>() else { continue };
            let Some(_lock) = lock_dir(&self.home.trash().join(&entry))? else { continue };
            self.catalogue.transaction(&mut |change| {
                let models: Vec<CompleteModel> = catalogue::all(change, Which::All)?;
                for model in models.iter().filter(|model| model.saving == id) {
                    change.remove(CompleteModel::KIND, model.name.as_str())?;
                }
                Ok(())
            })?;
            remove_dir(&self.home.artifacts(id))?;
            self.empty_trash(id)?;
            recovered.push(Recovered::Deleted(id));
        }
        self.recover_jobs::<Deployment>(&mut recovered)?;
        self.recover_jobs::<Task>(&mut recovered)?;
        self.sweep_artifacts(&mut recovered)?;
        self.recover_jobs::<Saving>(&mut recovered)?;
        Ok(recovered)
    }

    /// Compares the catalogue with the manifests in `complete/`, which are the truth; with `repair`,
    /// makes the catalogue follow. Base and Customized Models that only manifests know come back too.
    pub fn check(&self, repair: bool) -> Result<CheckReport, Error> {
        let mut report = CheckReport::default();
        self.catalogue.transaction(&mut |change| {
            report = CheckReport { repaired: repair, ..CheckReport::default() };
            let listed: Vec<CompleteModel> = catalogue::all(change, Which::All)?;
            let savings: Vec<Saving> = catalogue::all(change, Which::Open)?;
            for entry in Home::entries(&self.home.complete_models())? {
                let dir = self.home.complete_models().join(&entry);
                let (manifest, facts) = match Manifest::read(&dir).map(|m| (m.saving.clone(), m)) {
                    Ok((Some(facts), manifest)) if facts.name.as_str() == entry => (manifest, facts),
                    Ok((Some(facts), _)) => {
                        report.foreign.push((entry, format!("its manifest says it is {}", facts.name)));
                        continue;
                    }
                    Ok((None, _)) => {
                        report.foreign.push((entry, "its manifest is not that of a Complete Model".into()));
                        continue;
                    }
                    Err(error) => {
                        report.foreign.push((entry, error.to_string()));
                        continue;
                    }
                };
                if savings.iter().any(|saving| saving.id == facts.id) {
                    // Being published at this moment, or `recover` has it.
                    continue;
                }
                let model = complete_model(&manifest, &facts);
                match listed.iter().find(|known| known.name == model.name) {
                    Some(known) if *known == model => report.agree += 1,
                    Some(_) => {
                        if repair {
                            catalogue::replace(change, &model)?;
                        }
                        report.differ.push(model.name);
                    }
                    None => {
                        if repair {
                            catalogue::insert(change, &model)?;
                            self.restore_inputs(change, &manifest, &facts)?;
                        }
                        report.unlisted.push(model.name);
                    }
                }
            }
            for model in &listed {
                if !self.home.complete(&model.name).is_dir() {
                    if repair {
                        change.remove(CompleteModel::KIND, model.name.as_str())?;
                    }
                    report.missing.push(model.name.clone());
                }
            }
            let bases: Vec<BaseModel> = catalogue::all(change, Which::All)?;
            let customized: Vec<CustomizedModel> = catalogue::all(change, Which::All)?;
            let inputs = bases.iter().map(|base| (&base.name, &base.path));
            let inputs =
                inputs.chain(customized.iter().map(|customized| (&customized.name, &customized.path)));
            let gone = inputs.filter(|(_, path)| !path.is_dir()).map(|(name, _)| name.clone());
            report.inputs_gone = gone.collect();
            Ok(())
        })?;
        Ok(report)
    }

    /// Removes half-made artifacts of processes that are no more, files without a record, and what was made
    /// of a base or an adapter that is registered no more.
    fn sweep_artifacts(&self, recovered: &mut Vec<Recovered>) -> Result<(), Error> {
        for name in Home::entries(&self.home.all_artifacts())? {
            let dir = self.home.all_artifacts().join(&name);
            let is_known = match (name.strip_prefix("base-"), name.strip_prefix("adapter-")) {
                (Some(base), _) => self.find::<BaseModel>(base)?.is_some(),
                (_, Some(customized)) => self.find::<CustomizedModel>(customized)?.is_some(),
                _ => true,
            };
            if !is_known {
                remove_dir(&dir)?;
                recovered.push(Recovered::Swept(dir));
                continue;
            }
            let abandoned = Abandoned::all_in(&dir);
            if abandoned.is_empty() {
                continue;
            }
            let entries = Home::entries(&dir)?;
            let in_work = entries.iter().filter(|name| name.contains(".tenon-")).count() > abandoned.len();
            // The process may have died between a file and its record; one that lives is between the two.
            let (files, others): (Vec<_>, Vec<_>) =
                entries.into_iter().partition(|name| name.ends_with(".gguf"));
            let records: Vec<String> =
                others.iter().filter_map(|name| std::fs::read_to_string(dir.join(name)).ok()).collect();
            let is_recorded = |file: &String| records.iter().any(|record| record.contains(file));
            for file in files.iter().filter(|file| !in_work && !is_recorded(file)) {
                let path = dir.join(file);
                std::fs::remove_file(&path).map_err(Error::io("remove", &path))?;
                recovered.push(Recovered::Swept(path));
            }
            for left in abandoned {
                recovered.push(Recovered::Swept(left.path().into()));
                left.remove();
            }
        }
        Ok(())
    }

    /// Registers the Base Model and the Customized Model that a manifest tells of, where unknown.
    fn restore_inputs(
        &self,
        change: &dyn catalogue::Changing,
        manifest: &Manifest,
        facts: &SavingFacts,
    ) -> Result<(), Error> {
        let files = |input: &ModelInput| {
            let known = |file: &crate::InputFile| KnownFile {
                name: file.name.clone(),
                stamp: None,
                sha256: Some(file.sha256),
            };
            input.files.iter().map(known).collect()
        };
        if catalogue::find::<BaseModel>(change, facts.base.as_str())?.is_none() {
            let base = BaseModel {
                name: facts.base.clone(),
                path: manifest.base.path.clone().into(),
                created: facts.customized.created,
                repository: manifest.base.repository.clone(),
                revision: manifest.base.revision.clone(),
                files: files(&manifest.base),
                model: facts.model.clone(),
                template: None,
            };
            catalogue::insert(change, &base)?;
        }
        if catalogue::find::<CustomizedModel>(change, facts.customized.name.as_str())?.is_none() {
            let customized = CustomizedModel {
                name: facts.customized.name.clone(),
                base: facts.base.clone(),
                train_name: facts.customized.train_name.clone(),
                training_id: facts.customized.training_id,
                path: manifest.adapter.path.clone().into(),
                created: facts.customized.created,
                peft_type: manifest.parameters.peft_type.clone(),
                files: files(&manifest.adapter),
            };
            catalogue::insert(change, &customized)?;
        }
        Ok(())
    }
}

/// The record of a Complete Model, from its manifest.
pub(crate) fn complete_model(manifest: &Manifest, facts: &SavingFacts) -> CompleteModel {
    CompleteModel {
        name: facts.name.clone(),
        saving: facts.id,
        customized: facts.customized.name.clone(),
        base: facts.base.clone(),
        created: facts.finished,
        model: facts.model.clone(),
        bytes: manifest.output_bytes(),
    }
}

impl CompleteModel {
    /// The record of the Complete Model that a manifest tells of; nothing if it tells of none.
    pub fn of(manifest: &Manifest) -> Option<Self> {
        Some(complete_model(manifest, manifest.saving.as_ref()?))
    }
}
