//! The product's verbs over a home: register, save, find, trust, remove.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::Value;
use tenon_card::Card;
use tenon_checkpoint::{
    Checkpoint, Digest, Error as CheckpointError, Observer, SafetensorsFile, Stamp, hash_files, read_json,
};
use tenon_registry::{
    BaseModel, CheckReport, CompleteModel, CustomizedModel, Error as RegistryError, KnownFile, LiveModel,
    Manifest, ModelName, NewCustomized, Recovered, Registry, Timestamp, Uuid, VerifyReport,
};

use crate::base::Base;
use crate::rebuild::Rebuild;
use crate::{Error, Merge, adapter, facts, hub, quality};

/// A home and what can be done with it. Clones of the handle are not needed: all verbs take `&self`
/// and may run from many threads and processes at once.
pub struct Tenon {
    pub(crate) registry: Registry,
    pub(crate) max_shard_size: u64,
    recovered: Vec<Recovered>,
    pub(crate) suspended: AtomicBool,
}

impl Tenon {
    /// Where homes are unless said otherwise: `tenon` in the platform's data directory.
    pub fn default_home() -> Option<PathBuf> {
        Some(dirs::data_dir()?.join("tenon"))
    }

    /// Opens a home, made where it is missing. What a crash left is finished, queued again or swept;
    /// [`recovered`](Self::recovered) tells.
    pub fn open(home: &Path) -> Result<Self, Error> {
        let (registry, recovered) = Registry::open(home)?;
        let tenon = Self {
            registry,
            max_shard_size: Merge::DEFAULT_SHARD_SIZE,
            recovered,
            suspended: AtomicBool::new(false),
        };
        tenon.note_recovered(&tenon.recovered);
        Ok(tenon)
    }

    /// Tensor bytes in a shard at most, for file systems that ask for less than the usual 5 GB.
    pub fn max_shard_size(mut self, bytes: u64) -> Self {
        self.max_shard_size = bytes.max(1);
        self
    }

    /// Stops the Savings and deployments that this process works on as soon as they notice, for good: they
    /// go back into the queue, from where another process goes on with what is finished of them.
    pub fn suspend(&self) {
        self.suspended.store(true, Ordering::Release);
    }

    /// What opening found left over.
    pub fn recovered(&self) -> &[Recovered] {
        &self.recovered
    }

    /// The records: what is registered, saved, in progress.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Registers a Base Model where it lies, hashing its files. Without a name it gets that of its
    /// repository or directory.
    pub fn add_base(
        &self,
        dir: &Path,
        name: Option<ModelName>,
        observer: &dyn Observer,
    ) -> Result<BaseModel, Error> {
        let drawn = name.is_none();
        let mut base = self.examine_base(dir, name)?;
        hash_known(dir, &mut base.files, observer)?;
        self.insert_base(base, drawn)
    }

    /// Registers a Base Model where it lies, without reading it: its files are hashed when they are
    /// first read. Without a name it gets that of its repository or directory.
    pub fn register_base(&self, dir: &Path, name: Option<ModelName>) -> Result<BaseModel, Error> {
        let drawn = name.is_none();
        let base = self.examine_base(dir, name)?;
        self.insert_base(base, drawn)
    }

    fn insert_base(&self, mut base: BaseModel, drawn: bool) -> Result<BaseModel, Error> {
        while let Err(error) = self.registry.add_base(&base) {
            // Another process was faster with the same name.
            if !(drawn && matches!(error, RegistryError::Taken { .. })) {
                return Err(error.into());
            }
            base.name = self.free_base_name(base.name)?;
        }
        Ok(base)
    }

    /// Bytes that [`add_base`](Self::add_base) will hash.
    pub fn base_bytes(dir: &Path) -> Result<u64, Error> {
        Ok(Checkpoint::open(dir)?.files().iter().map(SafetensorsFile::len).sum())
    }

    /// The Base Model registered for a directory, or a new one; whether it is new. Its files are
    /// hashed when they are first read.
    pub fn base_at(&self, dir: &Path) -> Result<(BaseModel, bool), Error> {
        let path = resolve(dir)?;
        loop {
            if let Some(known) =
                self.registry.all::<BaseModel>()?.into_iter().find(|known| known.path == path)
            {
                return Ok((known, false));
            }
            let base = self.examine_base(dir, None)?;
            match self.registry.add_base_once(&base) {
                Ok(None) => return Ok((base, true)),
                // Another process was faster with this very directory.
                Ok(Some(known)) => return Ok((known, false)),
                // Or with this name.
                Err(RegistryError::Taken { .. }) => continue,
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn examine_base(&self, dir: &Path, name: Option<ModelName>) -> Result<BaseModel, Error> {
        let base = Base::open(dir)?;
        let checkpoint = &base.checkpoint;
        let config_path = dir.join("config.json");
        let path = resolve(dir)?;
        let (repository, revision) = hub::repository(&path).or_else(|| hub::repository(dir)).unzip();
        let name = match name {
            Some(name) => name,
            None => {
                let of_repository = repository.as_deref().and_then(|name| name.rsplit('/').next());
                let of_directory = path.file_name().map(|name| name.to_string_lossy().into_owned());
                let text = of_repository.map(str::to_string).or(of_directory).unwrap_or_default();
                let wanted = ModelName::from_text(&text).or_else(|| ModelName::from_text("base"));
                self.free_base_name(wanted.expect("base is a name"))?
            }
        };
        let bytes = checkpoint.files().iter().map(SafetensorsFile::len).sum();
        let weights = checkpoint.files().iter().map(|file| known_file(file.path()));
        let files = weights.chain([known_file(&config_path)]).collect::<Result<_, _>>()?;
        let mut model = facts::summary(base.config(), base.tensors(), bytes);
        if let Some(format) = base.formats().iter().max_by_key(|format| format.tensors) {
            model.dtype = format.name.clone();
        }
        Ok(BaseModel {
            name,
            path,
            created: Timestamp::now(),
            repository,
            revision,
            files,
            model,
            template: None,
        })
    }

    /// The name, or with a number behind it if it is taken.
    fn free_base_name(&self, wanted: ModelName) -> Result<ModelName, Error> {
        let mut name = wanted.clone();
        for n in 2.. {
            if self.registry.find::<BaseModel>(name.as_str())?.is_none() {
                break;
            }
            name = ModelName::new(format!("{wanted}-{n}")).map_err(RegistryError::from)?;
        }
        Ok(name)
    }

    /// Registers an adapter, which must fit its Base Model, under its automatic name. Without a train
    /// name it gets that of its directory.
    pub fn add_customized(
        &self,
        dir: &Path,
        base: &str,
        train_name: Option<&str>,
        training_id: Option<Uuid>,
    ) -> Result<CustomizedModel, Error> {
        self.add_planned(dir, base, false, train_name, training_id)
    }

    /// Registers a full-weight delta, which must fit its Base Model, as [`add_customized`](Self::add_customized)
    /// does an adapter; see [`Merge::delta`].
    pub fn add_customized_delta(
        &self,
        dir: &Path,
        base: &str,
        train_name: Option<&str>,
        training_id: Option<Uuid>,
    ) -> Result<CustomizedModel, Error> {
        self.add_planned(dir, base, true, train_name, training_id)
    }

    fn add_planned(
        &self,
        dir: &Path,
        base: &str,
        delta: bool,
        train_name: Option<&str>,
        training_id: Option<Uuid>,
    ) -> Result<CustomizedModel, Error> {
        let base: BaseModel = self.registry.get(base)?;
        let plan = Merge::new(&base.path, dir, self.registry.home().root()).delta(delta).plan_anywhere()?;
        // A folder of what was named, where that is a training's output.
        let dir = plan.adapter_dir();
        let path = resolve(dir)?;
        let train_name = match train_name {
            Some(name) => ModelName::new(name).map_err(RegistryError::from)?,
            None => train_name_of(&path),
        };
        let weights = plan.adapter_files().map(|file| known_file(file.path()));
        let mut files = weights.collect::<Result<Vec<_>, _>>()?;
        let config = path.join("adapter_config.json");
        if config.exists() {
            files.push(known_file(&config)?);
        }
        hash_known(dir, &mut files, &())?;
        let peft_type = plan.adapter_config().get("peft_type").and_then(Value::as_str).unwrap_or_default();
        let new = NewCustomized {
            base: base.name,
            train_name,
            training_id,
            path,
            peft_type: peft_type.into(),
            files,
        };
        Ok(self.registry.add_customized(new)?)
    }

    /// The Customized Model registered for a directory as it is now and a Base Model, or a new one;
    /// whether it is new.
    pub fn customized_at(&self, dir: &Path, base: &BaseModel) -> Result<(CustomizedModel, bool), Error> {
        let dir = &adapter::place(dir)?;
        let path = resolve(dir)?;
        for known in self.registry.all::<CustomizedModel>()? {
            if known.path == path && known.base == base.name {
                // One that was trained on since is another Customized Model. What nobody touched is as it was.
                let mut touched: Vec<_> =
                    known.files.iter().filter(|file| !is_untouched(dir, file)).cloned().collect();
                touched.iter_mut().for_each(|file| (file.stamp, file.sha256) = (None, None));
                let then = |now: &KnownFile| known.files.iter().find(|file| file.name == now.name);
                if hash_known(dir, &mut touched, &()).is_ok()
                    && touched.iter().all(|now| then(now).is_some_and(|then| then.sha256 == now.sha256))
                {
                    return Ok((known, false));
                }
            }
        }
        Ok((self.add_customized(dir, base.name.as_str(), None, None)?, true))
    }

    /// Directory of a Complete Model.
    pub fn path(&self, complete: &str) -> Result<PathBuf, Error> {
        let model: CompleteModel = self.registry.get(complete)?;
        Ok(self.registry.home().complete(&model.name))
    }

    /// Record and manifest of a Complete Model.
    pub fn show(&self, complete: &str) -> Result<(CompleteModel, Manifest), Error> {
        let model: CompleteModel = self.registry.get(complete)?;
        let manifest = self.registry.manifest(&model.name)?;
        Ok((model, manifest))
    }

    /// The Model Card of a Complete Model: what is in its directory, and where it is live.
    pub fn card(&self, complete: &str) -> Result<Card, Error> {
        let model: CompleteModel = self.registry.get(complete)?;
        let path = self.registry.home().complete(&model.name).join(Card::JSON_FILE);
        let mut card: Card = read_json(&path)?;
        let live: Vec<LiveModel> = self.registry.all()?;
        card.deployed =
            live.iter().filter(|live| live.saving == Some(model.saving)).map(quality::deployed).collect();
        Ok(card)
    }

    /// Compares a Complete Model's files with its manifest, byte for byte.
    pub fn verify(&self, complete: &str, observer: &dyn Observer) -> Result<VerifyReport, Error> {
        let (model, manifest) = self.show(complete)?;
        let _held = self.registry.hold(&model.name)?;
        Ok(manifest.verify(&self.registry.home().complete(&model.name), observer)?)
    }

    /// Merges again from the inputs that the manifest names and compares with what is there. Writes nothing.
    pub fn plan_rebuild(&self, complete: &str) -> Result<Rebuild, Error> {
        let (model, manifest) = self.show(complete)?;
        let dir = self.registry.home().complete(&model.name);
        Rebuild::plan(manifest, dir)
    }

    /// Removes a Complete Model and what was made from it, for good. Its Live Models stay as they are.
    pub fn delete(&self, complete: &str) -> Result<CompleteModel, Error> {
        Ok(self.registry.delete(complete)?)
    }

    /// Compares the catalogue with what is on the disk; with `repair`, makes it follow.
    pub fn check(&self, repair: bool) -> Result<CheckReport, Error> {
        Ok(self.registry.check(repair)?)
    }
}

fn resolve(dir: &Path) -> Result<PathBuf, Error> {
    Ok(dir.canonicalize().map_err(CheckpointError::io("find", dir))?)
}

/// The directory's name; with its parent's for a training checkpoint, which are all called alike.
fn train_name_of(path: &Path) -> ModelName {
    let name = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned());
    let own = name(path).unwrap_or_default();
    let is_checkpoint =
        own.strip_prefix("checkpoint-").is_some_and(|n| n.bytes().all(|c| c.is_ascii_digit()));
    let text = match path.parent().and_then(name) {
        Some(parent) if is_checkpoint => format!("{parent}-{own}"),
        _ => own,
    };
    ModelName::from_text(&text).or_else(|| ModelName::from_text("adapter")).expect("adapter is a name")
}

fn known_file(path: &Path) -> Result<KnownFile, Error> {
    let file = std::fs::File::open(path).map_err(CheckpointError::io("open", path))?;
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Ok(KnownFile { name, stamp: Some(Stamp::of(&file, path)?), sha256: None })
}

/// Whether a file that was hashed is as it was then, by what the file system says.
fn is_untouched(dir: &Path, known: &KnownFile) -> bool {
    let dir = if dir.is_file() { dir.parent().unwrap_or(dir) } else { dir };
    let now = known_file(&dir.join(&known.name));
    known.sha256.is_some() && known.stamp.is_some() && now.is_ok_and(|now| now.stamp == known.stamp)
}

/// Hashes the files, and stamps them as they were when that began.
fn hash_known(dir: &Path, files: &mut [KnownFile], observer: &dyn Observer) -> Result<(), Error> {
    // An adapter may be one file, and that is its path then.
    let dir = if dir.is_file() { dir.parent().unwrap_or(dir) } else { dir };
    let paths: Vec<_> = files.iter().map(|file| dir.join(&file.name)).collect();
    for (file, path) in files.iter_mut().zip(&paths) {
        file.stamp = known_file(path)?.stamp;
    }
    for (file, digest) in files.iter_mut().zip(hash_files(&paths, observer)?) {
        file.sha256 = Some(digest);
    }
    Ok(())
}

/// What is known of an input's files, for [`Merge::known_digests`].
pub(crate) fn known_digests(files: &[KnownFile]) -> impl Iterator<Item = (Stamp, Digest)> {
    files.iter().filter_map(|file| Some((file.stamp?, file.sha256?)))
}
