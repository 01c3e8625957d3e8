//! GGUF files that are kept in the home: made once of what is registered, found again by what they were made from.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tenon_checkpoint::{
    Checkpoint, Digest, Error as CheckpointError, Observer, StagingDir, Stamp, hash_file, read_json,
};
use tenon_gguf::Conversion;
use tenon_registry::{
    BaseModel, CompleteModel, CustomizedModel, Held, Manifest, ModelName, Quantization, QuantizationQuality,
    TensorQuality,
};

use crate::companions::{self, Content};
use crate::gguf::{Inputs, STAGED, in_gguf, of_directory, write};
use crate::gguf_lora::GgufLora;
use crate::{Error, GgufOptions, Tenon, quality};

/// A GGUF file made of a registered model, kept in the home until the model is deleted or forgotten.
///
/// While it lives a Complete Model cannot be deleted, nor the file.
#[derive(Debug)]
pub struct Artifact {
    /// The file.
    pub path: PathBuf,
    /// SHA-256 of its bytes.
    pub digest: Digest,
    /// Its size.
    pub bytes: u64,
    /// What it is quantized to.
    pub quantization: Quantization,
    /// The model that it was made of.
    pub model: ModelName,
    /// Whether it was there already.
    pub reused: bool,
    /// What quantizing cost; none where nothing was quantized.
    pub quality: Option<QuantizationQuality>,
    /// The same of each tensor that was quantized, in the order of the file.
    pub tensors: Vec<TensorQuality>,
    _held: Option<Held>,
}

/// An artifact that is there, or that can be made: every check passed, nothing written yet.
pub struct PlannedArtifact {
    place: Place,
    model: ModelName,
    quantization: Quantization,
    threads: Option<usize>,
    what: Planned,
    held: Option<Held>,
}

enum Planned {
    There(Box<ArtifactRecord>),
    New(Box<(Conversion, Inputs)>),
}

impl PlannedArtifact {
    /// Bytes that the observer of [`make`](Self::make) will be told of where a new file has to be made; none
    /// where there is one.
    pub fn work_bytes(&self) -> u64 {
        match &self.what {
            Planned::There(_) => 0,
            Planned::New(new) => new.0.layout("").total_size,
        }
    }

    /// The file: found, or made.
    pub fn make(self, observer: &dyn Observer) -> Result<Artifact, Error> {
        let Self { place, model, quantization, threads, what, held } = self;
        let (record, reused) = match what {
            Planned::There(record) => (*record, true),
            // One that somebody touched may still be it.
            Planned::New(new) => match place.find(observer)? {
                Some(record) => (record, true),
                None => {
                    let (conversion, inputs) = *new;
                    let record = place.keep(quantization, conversion.len(), |staging| {
                        let (sha256, bytes) = write(&conversion, staging, threads, observer)?;
                        inputs.check_unchanged()?;
                        Ok(Written { sha256, bytes, quality: quality::of(&conversion, bytes) })
                    })?;
                    (record, false)
                }
            },
        };
        Ok(place.artifact(record, reused, model, held))
    }
}

/// What is kept beside an artifact, in a file named after the digest of what it was made from.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ArtifactRecord {
    pub(crate) file: String,
    pub(crate) sha256: Digest,
    pub(crate) bytes: u64,
    pub(crate) quantization: Quantization,
    stamp: Stamp,
    /// What quantizing cost; always there where something was quantized.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) quality: Option<QuantizationQuality>,
    /// The same, tensor by tensor.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    tensors: Vec<TensorQuality>,
}

impl ArtifactRecord {
    /// One that cannot be read, or that names a file elsewhere, is as good as none.
    pub(crate) fn read(path: &Path) -> Option<Self> {
        read_json::<Self>(path).ok().filter(|record| record.file == file_name(record.sha256))
    }
}

/// Name of the file with this content.
fn file_name(sha256: Digest) -> String {
    format!("{sha256}.gguf")
}

impl Tenon {
    /// The GGUF file of a Complete Model: the one that was made before, if there is one of the same
    /// contents, or a new one. What quantizing cost is always measured, and kept beside it.
    pub fn plan_gguf_artifact(
        &self,
        complete: &str,
        quantization: Quantization,
        options: &GgufOptions,
    ) -> Result<PlannedArtifact, Error> {
        let (model, manifest) = self.show(complete)?;
        let held = self.registry.hold(&model.name)?;
        let place = self.place_of_complete(&model, &manifest, quantization, options)?;
        let dir = self.registry.home().complete(&model.name);
        place.plan(model.name, &dir, quantization, options, Some(held))
    }

    /// The GGUF file of a Base Model, as [`plan_gguf_artifact`](Self::plan_gguf_artifact) has that of a
    /// Complete Model.
    pub(crate) fn plan_base_artifact(
        &self,
        base: &BaseModel,
        quantization: Quantization,
        options: &GgufOptions,
    ) -> Result<PlannedArtifact, Error> {
        let place = self.place_of_base(base, quantization, options)?;
        place.plan(base.name.clone(), &base.path, quantization, options, None)
    }

    /// The GGUF file of a Customized Model's adapter: of the factors alone.
    pub(crate) fn adapter_artifact(
        &self,
        customized: &CustomizedModel,
        base: &BaseModel,
        observer: &dyn Observer,
    ) -> Result<Artifact, Error> {
        let dir = self.registry.home().adapter_artifacts(&customized.name);
        let (own, of_base) = (stamps_of_adapter(&customized.path)?, stamps_of_base(&base.path)?);
        let place = Place::new(dir, &json!([crate::VERSION, "adapter", own, of_base]));
        let quantization = Quantization::None;
        let (record, reused) = match place.find(observer)? {
            Some(record) => (record, true),
            None => {
                let adapter = GgufLora::plan(&base.path, &customized.path)?;
                place.forget()?;
                (place.keep(quantization, adapter.len(), |staging| adapter.write(staging, observer))?, false)
            }
        };
        Ok(place.artifact(record, reused, customized.name.clone(), None))
    }

    fn place_of_complete(
        &self,
        model: &CompleteModel,
        manifest: &Manifest,
        quantization: Quantization,
        options: &GgufOptions,
    ) -> Result<Place, Error> {
        let outputs: Vec<_> = manifest.outputs.iter().map(|file| (&file.name, file.sha256)).collect();
        let dir = self.registry.home().artifacts(model.saving);
        let model_dir = self.registry.home().complete(&model.name);
        Place::of_model(dir, &model_dir, model.name.as_str(), &json!(outputs), quantization, options)
    }

    /// Its files are told apart by what the file system says of them: whoever deploys an adapter need not
    /// read a large base through to find what was made of it before.
    fn place_of_base(
        &self,
        base: &BaseModel,
        quantization: Quantization,
        options: &GgufOptions,
    ) -> Result<Place, Error> {
        let dir = self.registry.home().base_artifacts(&base.name);
        let files = json!(stamps_of_base(&base.path)?);
        Place::of_model(dir, &base.path, base.name.as_str(), &files, quantization, options)
    }
}

/// What the file system says of the files that make a base.
fn stamps_of_base(dir: &Path) -> Result<Vec<(String, Stamp)>, Error> {
    let checkpoint = Checkpoint::open(dir)?;
    let companions = companions::of_model(dir)?.into_values().filter_map(|content| match content {
        Content::File(path) => Some(path),
        Content::Text(_) => None,
    });
    let weights = checkpoint.files().iter().map(|file| file.path().to_path_buf());
    weights.chain(companions).chain([dir.join("config.json")]).map(stamped).collect()
}

/// The same of the files of an adapter, which may be a file itself.
fn stamps_of_adapter(path: &Path) -> Result<Vec<(String, Stamp)>, Error> {
    if path.is_file() {
        return Ok(vec![stamped(path.into())?]);
    }
    let mut stamps = vec![];
    for entry in std::fs::read_dir(path).map_err(CheckpointError::io("list", path))? {
        let path = entry.map_err(CheckpointError::io("list", path))?.path();
        if path.is_file() {
            stamps.push(stamped(path)?);
        }
    }
    stamps.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(stamps)
}

fn stamped(path: PathBuf) -> Result<(String, Stamp), Error> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Ok((name, stamp(&path)?))
}

/// What a file that was just written is.
pub(crate) struct Written {
    pub(crate) sha256: Digest,
    pub(crate) bytes: u64,
    pub(crate) quality: Option<(QuantizationQuality, Vec<TensorQuality>)>,
}

/// Where an artifact is, or will be.
struct Place {
    dir: PathBuf,
    record: PathBuf,
}

impl Place {
    /// The place of what is made by a recipe: of all that its bytes depend on.
    fn new(dir: PathBuf, recipe: &Value) -> Self {
        let record = dir.join(format!("{}.json", Digest::of(recipe.to_string().as_bytes())));
        Self { dir, record }
    }

    fn of_model(
        dir: PathBuf,
        model: &Path,
        name: &str,
        files: &Value,
        quantization: Quantization,
        options: &GgufOptions,
    ) -> Result<Self, Error> {
        let file_type = format!("{:?}", options.file_type);
        // The matrix's path is in the file, besides what it says.
        let digest = |path: &PathBuf| {
            let bytes = std::fs::read(path).map_err(CheckpointError::io("read", path))?;
            Ok::<_, Error>((path.clone(), Digest::of(&bytes)))
        };
        let imatrix = options.imatrix.as_ref().map(digest).transpose()?;
        let (general_name, pre_tokenizer) = (&options.name, &options.pre_tokenizer);
        // Not whose rules: most models get the same types by all of them.
        let config = read_json(&model.join("config.json"))?;
        let by_rules = options.rules.chosen(&config, in_gguf(quantization))?;
        let tensor_types: Vec<_> =
            options.tensor_types.iter().chain(&by_rules).map(ToString::to_string).collect();
        let recipe = json!([
            crate::VERSION,
            name,
            files,
            quantization,
            file_type,
            general_name,
            pre_tokenizer,
            imatrix,
            tensor_types,
        ]);
        Ok(Self::new(dir, &recipe))
    }

    /// The GGUF of the model in a directory: there already, or to be made.
    fn plan(
        self,
        model: ModelName,
        dir: &Path,
        quantization: Quantization,
        options: &GgufOptions,
        held: Option<Held>,
    ) -> Result<PlannedArtifact, Error> {
        let options = &GgufOptions { measure: true, ..options.clone() };
        let what = match self.find_unchanged()? {
            Some(record) => Planned::There(Box::new(record)),
            None => Planned::New(Box::new(of_directory(dir, quantization, options)?)),
        };
        Ok(PlannedArtifact { place: self, model, quantization, threads: options.threads, what, held })
    }

    /// Has a file of so many bytes written, and keeps it with its record.
    fn keep(
        &self,
        quantization: Quantization,
        needed: u64,
        write: impl FnOnce(&StagingDir) -> Result<Written, Error>,
    ) -> Result<ArtifactRecord, Error> {
        StagingDir::need_bytes(&self.dir, needed)?;
        let staging = StagingDir::create_for_file(&self.record, b"", true)?;
        let Written { sha256, bytes, quality } = write(&staging)?;
        let file = file_name(sha256);
        let path = self.dir.join(&file);
        staging.publish_file(STAGED, &path, true)?;
        let (quality, tensors) = quality.unzip();
        let (stamp, tensors) = (stamp(&path)?, tensors.unwrap_or_default());
        let record = ArtifactRecord { file, sha256, bytes, quantization, stamp, quality, tensors };
        let text = serde_json::to_string_pretty(&record).expect("a record is plain data");
        staging.write_file("record.json", text.as_bytes())?;
        staging.publish_file("record.json", &self.record, true)?;
        Ok(record)
    }

    /// Removes what was made of an adapter as it was before.
    fn forget(&self) -> Result<(), Error> {
        let Ok(entries) = std::fs::read_dir(&self.dir) else { return Ok(()) };
        for path in entries.flatten().map(|entry| entry.path()).filter(|path| path.is_file()) {
            std::fs::remove_file(&path).map_err(CheckpointError::io("remove", &path))?;
        }
        Ok(())
    }

    fn artifact(
        &self,
        record: ArtifactRecord,
        reused: bool,
        model: ModelName,
        held: Option<Held>,
    ) -> Artifact {
        Artifact {
            path: self.dir.join(record.file),
            digest: record.sha256,
            bytes: record.bytes,
            quantization: record.quantization,
            model,
            reused,
            quality: record.quality,
            tensors: record.tensors,
            _held: held,
        }
    }

    /// The artifact if it is there and nobody touched it.
    fn find_unchanged(&self) -> Result<Option<ArtifactRecord>, Error> {
        let Some(record) = ArtifactRecord::read(&self.record) else { return Ok(None) };
        let path = self.dir.join(&record.file);
        let is_it = path.is_file() && stamp(&path)? == record.stamp;
        Ok(is_it.then_some(record))
    }

    /// The artifact if it is there, read through if somebody touched it.
    fn find(&self, observer: &dyn Observer) -> Result<Option<ArtifactRecord>, Error> {
        if let Some(record) = self.find_unchanged()? {
            return Ok(Some(record));
        }
        let Some(record) = ArtifactRecord::read(&self.record) else { return Ok(None) };
        let path = self.dir.join(&record.file);
        let Ok(file) = std::fs::File::open(&path) else { return Ok(None) };
        /// Asks whether to stop; progress is for the work that may follow.
        struct Quiet<'a>(&'a dyn Observer);
        impl Observer for Quiet<'_> {
            fn cancelled(&self) -> bool {
                self.0.cancelled()
            }
        }
        let same = hash_file(&file, &path, &Quiet(observer))? == record.sha256;
        Ok(same.then_some(record))
    }
}

fn stamp(path: &Path) -> Result<Stamp, Error> {
    let file = std::fs::File::open(path).map_err(CheckpointError::io("open", path))?;
    Ok(Stamp::of(&file, path)?)
}
