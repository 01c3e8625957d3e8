//! The verb `merge`: two directories in, one whole model directory out.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;
use tenon_checkpoint::{
    Digest, Error as CheckpointError, Observer, SafetensorsFile, ShardLayout, StagingDir, Stamp,
    TensorSource, WriteOptions, WrittenFile, hash_file, write_shards,
};
use tenon_merge::kernel::Level;
use tenon_merge::{Combination, Fate, MergeOptions, MergePlan, OutputDtype, PlannedTensor, TensorMeasure};
use tenon_registry::{
    CombinationParameters, DequantizedTensors, InputFile, Manifest, MergeParameters, ModelInput, OutputFile,
    TensorCounts,
};

use crate::adapter::Adapters;
use crate::base::Base;
use crate::companions::{self, Content};
use crate::{Error, hub};

/// What to merge and how. Everything but the paths has a default that fits.
#[derive(Debug, Clone)]
pub struct Merge {
    base: PathBuf,
    /// Each with its weight.
    adapters: Vec<(PathBuf, f64)>,
    combination: Option<Combination>,
    /// Whether they are full-weight deltas.
    deltas: bool,
    out: PathBuf,
    options: MergeOptions,
    write: WriteOptions,
    max_shard_size: u64,
    overwrite: bool,
    known: Vec<(Stamp, Digest)>,
}

impl Merge {
    /// Tensor bytes in a shard at most, unless said otherwise: 5 GB, as transformers has it.
    pub const DEFAULT_SHARD_SIZE: u64 = 5_000_000_000;

    /// A merge of `adapter` into `base`, to be written to `out`.
    pub fn new(base: impl Into<PathBuf>, adapter: impl Into<PathBuf>, out: impl Into<PathBuf>) -> Self {
        Self::several(base, vec![(adapter.into(), 1.0)], out)
    }

    /// A merge of several adapters, each with its weight: one after the other, each into what those before
    /// it made; or first combined into one, with [`combine`](Self::combine).
    ///
    /// A weight scales what its adapter adds. One other than 1 is refused for an adapter that multiplies or
    /// replaces the base's weights.
    pub fn several(base: impl Into<PathBuf>, adapters: Vec<(PathBuf, f64)>, out: impl Into<PathBuf>) -> Self {
        Self {
            base: base.into(),
            adapters,
            combination: None,
            deltas: false,
            out: out.into(),
            options: MergeOptions::default(),
            write: WriteOptions::default(),
            max_shard_size: Self::DEFAULT_SHARD_SIZE,
            overwrite: false,
            known: vec![],
        }
    }

    /// Digests of input files that were read through before. One whose stamp is among them is not
    /// read again to be hashed.
    pub fn known_digests(mut self, known: Vec<(Stamp, Digest)>) -> Self {
        self.known = known;
        self
    }

    /// Combine the adapters into one, as PEFT's `add_weighted_adapter` does, and merge that: the bytes of
    /// [`combine`](crate::combine) and a merge of its result, with nothing in between on disk.
    pub fn combine(mut self, how: Combination) -> Self {
        self.combination = Some(how);
        self
    }

    /// What is merged are full-weight deltas: model directories whose tensors are what a training added to the
    /// base's, as FastChat and LLaVA publish models. They look like models, so only who knows can say.
    pub fn delta(mut self, deltas: bool) -> Self {
        self.deltas = deltas;
        self
    }

    /// Measure what is done to each tensor; see [`Plan::measures`].
    pub fn measure(mut self, measure: bool) -> Self {
        self.options.measure = measure;
        self
    }

    /// Element type of the output; the base's, tensor by tensor, by default.
    pub fn dtype(mut self, dtype: OutputDtype) -> Self {
        self.options.dtype = dtype;
        self
    }

    /// Tensor bytes in a shard at most.
    pub fn max_shard_size(mut self, bytes: u64) -> Self {
        self.max_shard_size = bytes;
        self
    }

    /// Worker threads; all cores by default. Does not change a byte.
    pub fn threads(mut self, threads: usize) -> Self {
        self.write.threads = threads.max(1);
        self
    }

    /// Bytes of a tile. Does not change a byte of the output.
    pub fn tile_bytes(mut self, bytes: u64) -> Self {
        self.write.tile_bytes = bytes.max(1);
        self
    }

    /// Instructions to use; the CPU's best by default. Does not change a byte.
    pub fn level(mut self, level: Level) -> Self {
        self.options.level = level;
        self
    }

    /// Replace an existing model at the target once the new one is whole.
    pub fn overwrite(mut self, overwrite: bool) -> Self {
        self.overwrite = overwrite;
        self
    }

    /// Let values through that are not finite.
    pub fn allow_non_finite(mut self, allow: bool) -> Self {
        self.options.allow_non_finite = allow;
        self
    }

    /// Reads headers and configurations, checks everything that can be checked, and writes nothing.
    pub fn plan(self) -> Result<Plan, Error> {
        for input in [&self.base].into_iter().chain(self.adapters.iter().map(|(adapter, _)| adapter)) {
            check_apart(&self.out, input)?;
        }
        StagingDir::check_target(&self.out, self.overwrite)?;
        let plan = self.plan_anywhere()?;
        let Plan { needed, available, .. } = plan;
        if available < needed {
            return Err(CheckpointError::DiskFull { path: plan.what.out, needed, available }.into());
        }
        Ok(plan)
    }

    /// As [`plan`](Self::plan), with nothing asked of the target.
    pub(crate) fn plan_anywhere(self) -> Result<Plan, Error> {
        let base = Base::open(&self.base)?;
        let adapters = Adapters::open(&self.adapters, &base, self.deltas)?;
        let merge = adapters.plan(&base, self.combination.as_ref(), self.options.clone())?;
        let config_text = if merge.config() == base.config() && !base.config_changed() {
            base.config_text.clone()
        } else {
            format!("{:#}\n", merge.config())
        };
        let found = adapters.notes.iter().cloned();
        let mut notes: Vec<String> = found.chain(base.note()).chain(merge.notes().iter().cloned()).collect();
        // A combined adapter is its weights alone.
        let (beside, left) = match self.combination {
            None => (Vec::from_iter(adapters.dirs()), vec![]),
            Some(_) => (vec![], Vec::from_iter(adapters.dirs())),
        };
        for dir in left {
            if companions::has_tokenizer(dir)? {
                notes.push(format!(
                    "the tokenizer files in {} are left there: combined adapters give their weights alone, and the base's \
                     tokenizer is kept",
                    dir.display()
                ));
            }
        }
        let mut companions = companions::gather(&self.base, beside.into_iter())?;
        companions.insert("config.json".into(), Content::Text(config_text));
        let layout = ShardLayout::new(merge.tensors(), self.max_shard_size);
        if let Some(index) = layout.index_json(merge.tensors()) {
            companions.insert("model.safetensors.index.json".into(), Content::Text(index));
        }
        let needed = layout.file_bytes() + companions::bytes(&companions)?;
        let available = StagingDir::available_bytes(&self.out)?;
        Ok(Plan { what: self, base, adapters, merge, notes, layout, companions, needed, available })
    }
}

/// A merge that can be run: every check passed, nothing written yet.
pub struct Plan {
    what: Merge,
    base: Base,
    adapters: Adapters,
    merge: MergePlan,
    notes: Vec<String>,
    layout: ShardLayout,
    companions: BTreeMap<String, Content>,
    needed: u64,
    available: u64,
}

/// What a merge left.
#[derive(Debug, Clone)]
pub struct Merged {
    /// The directory, as it was asked for.
    pub out: PathBuf,
    /// What is in it: also written there as `tenon.json`.
    pub manifest: Manifest,
    /// How long it took.
    pub elapsed: Duration,
}

impl Plan {
    /// All output tensors and what happens to each.
    pub fn tensors(&self) -> impl Iterator<Item = PlannedTensor<'_>> {
        self.merge.planned()
    }

    /// Size of the files to be written.
    pub fn output_bytes(&self) -> u64 {
        self.needed
    }

    /// Free bytes at the target.
    pub fn available_bytes(&self) -> u64 {
        self.available
    }

    /// Name and size of each shard.
    pub fn shards(&self) -> impl Iterator<Item = (&str, u64)> {
        self.layout.shards.iter().map(|shard| (shard.name.as_str(), shard.len))
    }

    /// Names of the files beside the weights.
    pub fn companions(&self) -> impl Iterator<Item = &str> {
        self.companions.keys().map(String::as_str)
    }

    /// The files beside the weights.
    pub(crate) fn companion_files(&self) -> impl Iterator<Item = (&str, &Content)> {
        self.companions.iter().map(|(name, content)| (name.as_str(), content))
    }

    /// What a person should know before relying on the result.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The formats that tensors of the base are dequantized from, and how many are from each.
    pub fn dequantized(&self) -> impl Iterator<Item = (&str, usize)> {
        self.base.formats().iter().map(|format| (format.name.as_str(), format.tensors))
    }

    /// The format that a tensor of the base is dequantized from.
    pub fn dequantized_from(&self, tensor: &str) -> Option<&str> {
        self.base.format(tensor)
    }

    /// Directory of the base.
    pub fn base_dir(&self) -> &Path {
        &self.what.base
    }

    /// Directory of the adapter; of several the first.
    pub fn adapter_dir(&self) -> &Path {
        self.adapters.list[0].adapter.dir()
    }

    /// The adapter's `adapter_config.json`; the first's of several.
    pub fn adapter_config(&self) -> &serde_json::Map<String, Value> {
        self.adapters.list[0].adapter.config().fields()
    }

    /// All adapters, in the order in which they are merged.
    pub fn adapters(&self) -> impl Iterator<Item = PlannedAdapter<'_>> {
        let stages = self.merge.stages();
        self.adapters.list.iter().enumerate().map(move |(number, open)| PlannedAdapter {
            dir: open.adapter.dir(),
            weight: open.weight,
            // One stage for all that are combined.
            method: stages.get(number).or(stages.last()).map_or("", |stage| stage.method()),
            config: open.adapter.config().fields(),
        })
    }

    /// How the adapters are combined before they are merged.
    pub fn combination(&self) -> Option<&Combination> {
        self.what.combination.as_ref()
    }

    /// The output's `config.json`.
    pub fn config(&self) -> &Value {
        self.merge.config()
    }

    /// Elements of all output tensors.
    pub fn parameters(&self) -> u64 {
        self.layout.total_parameters
    }

    /// The method as people call it, such as `LoRA`; the adapter's `peft_type` where it edits nothing.
    /// Those of several adapters one after the other.
    pub fn method(&self) -> String {
        joined(self.merge.stages().iter().map(|stage| stage.method()))
    }

    /// What was measured of the edited tensors, once they were written, with [`Merge::measure`].
    pub fn measures(&self) -> Vec<TensorMeasure> {
        (0..self.merge.tensors().len()).filter_map(|tensor| self.merge.measure(tensor)).collect()
    }

    /// What was measured of the tensors of one shard.
    pub(crate) fn measures_of(&self, shard: &str) -> Vec<TensorMeasure> {
        let shard = self.layout.shards.iter().find(|known| known.name == shard);
        let tensors = shard.iter().flat_map(|shard| &shard.tensors);
        tensors.filter_map(|(tensor, _)| self.merge.measure(*tensor)).collect()
    }

    /// Bytes that the observer of [`run`](Self::run) will be told of: those merged, and those
    /// of the inputs as they are hashed.
    pub fn work_bytes(&self) -> u64 {
        self.layout.total_size + self.files_to_hash().iter().map(|file| file.len()).sum::<u64>()
    }

    /// The inputs' weights, the adapters' last.
    pub(crate) fn input_files(&self) -> impl Iterator<Item = &SafetensorsFile> {
        self.base.checkpoint.files().iter().chain(self.adapters.files())
    }

    /// The adapters' weights.
    pub(crate) fn adapter_files(&self) -> impl Iterator<Item = &SafetensorsFile> {
        self.adapters.files()
    }

    fn known_digest(&self, file: &SafetensorsFile) -> Option<Digest> {
        let known = self.what.known.iter().find(|(stamp, _)| *stamp == file.stamp());
        known.map(|(_, digest)| *digest)
    }

    fn files_to_hash(&self) -> Vec<&SafetensorsFile> {
        self.input_files().filter(|file| self.known_digest(file).is_none()).collect()
    }

    /// The shards as they will be.
    pub(crate) fn layout(&self) -> &ShardLayout {
        &self.layout
    }

    /// The merged weights, to be read.
    pub(crate) fn source(&self) -> &MergePlan {
        &self.merge
    }

    /// Merges: streams into a staging directory beside the target, syncs, renames.
    pub fn run(&self, observer: &dyn Observer) -> Result<Merged, Error> {
        let start = Instant::now();
        let staging = StagingDir::create(&self.what.out, self.what.overwrite)?;
        let manifest = self.write_into(staging.path(), &[], observer)?;
        StagingDir::write_file_in(staging.path(), Manifest::FILE, manifest.to_text().as_bytes())?;
        if observer.cancelled() {
            return Err(CheckpointError::Cancelled.into());
        }
        staging.publish()?;
        Ok(Merged { out: self.what.out.clone(), manifest, elapsed: start.elapsed() })
    }

    /// Writes all files but the manifest into a directory, and syncs them. The first shards may be there.
    pub(crate) fn write_into(
        &self,
        dir: &Path,
        finished: &[WrittenFile],
        observer: &dyn Observer,
    ) -> Result<Manifest, Error> {
        let mut outputs = vec![];
        for (name, content) in &self.companions {
            let bytes = content.bytes()?;
            StagingDir::write_file_in(dir, name, &bytes)?;
            let (bytes, sha256) = (bytes.len() as u64, Digest::of(&bytes));
            outputs.push(OutputFile { name: name.clone(), bytes, sha256 });
        }
        let to_hash = self.files_to_hash();
        let (written, hashes) =
            write_shards(&self.merge, &self.layout, dir, &self.what.write, &to_hash, finished, observer)?;
        let to_output = |f: WrittenFile| OutputFile { name: f.name, bytes: f.len, sha256: f.digest };
        outputs.extend(written.into_iter().map(to_output));
        outputs.sort_by(|a, b| a.name.cmp(&b.name));
        for file in self.input_files() {
            file.check_unchanged()?;
        }
        let mut hashes = hashes.into_iter();
        let digests = self
            .input_files()
            .map(|file| {
                self.known_digest(file).or_else(|| hashes.next()).expect("what is not known was hashed")
            })
            .collect();
        self.manifest(outputs, digests)
    }

    /// Names of the companion files and the digest each would have now.
    pub(crate) fn companion_digests(&self) -> Result<Vec<(&str, Digest)>, Error> {
        self.companions
            .iter()
            .map(|(name, content)| Ok((name.as_str(), Digest::of(&content.bytes()?))))
            .collect()
    }

    fn manifest(&self, outputs: Vec<OutputFile>, hashes: Vec<Digest>) -> Result<Manifest, Error> {
        let mut files: Vec<InputFile> = self
            .input_files()
            .zip(hashes)
            .map(|(file, sha256)| {
                let name = file.path().file_name().unwrap_or_default().to_string_lossy().into_owned();
                InputFile { name, bytes: file.len(), sha256 }
            })
            .collect();
        let mut weights = files.split_off(self.base.checkpoint.files().len()).into_iter();
        let mut tensors = TensorCounts::default();
        for tensor in self.tensors() {
            *match tensor.fate {
                Fate::Copied => &mut tensors.copied,
                Fate::Converted => &mut tensors.converted,
                Fate::Edited => &mut tensors.edited,
                Fate::Replaced => &mut tensors.replaced,
                Fate::Added => &mut tensors.added,
            } += 1;
        }
        let what = &self.what;
        files.push(small_input(&what.base, "config.json")?);
        let mut adapters = vec![];
        for open in &self.adapters.list {
            let mut files: Vec<InputFile> = weights.by_ref().take(open.adapter.files().len()).collect();
            let dir = open.adapter.dir();
            if dir.join("adapter_config.json").exists() {
                files.push(small_input(dir, "adapter_config.json")?);
            }
            adapters.push(input(dir, files)?);
        }
        let weights: Vec<f64> = self.adapters.list.iter().map(|open| open.weight).collect();
        let mut adapters = adapters.into_iter();
        let adapter = adapters.next().expect("a merge that was planned has an adapter");
        let peft_types = self.adapters.list.iter().map(|open| open.adapter.config().peft_type());
        let peft_types: Vec<&str> = peft_types.collect::<Result<_, _>>()?;
        Ok(Manifest {
            schema: Manifest::SCHEMA,
            tenon: crate::VERSION.into(),
            saving: None,
            base: input(&what.base, files)?,
            dequantized: self
                .dequantized()
                .map(|(format, tensors)| DequantizedTensors { format: format.into(), tensors })
                .collect(),
            adapter,
            further_adapters: adapters.collect(),
            parameters: MergeParameters {
                peft_type: joined(peft_types.into_iter()),
                weights: if weights == [1.0] { vec![] } else { weights },
                combination: what.combination.as_ref().map(|combination| CombinationParameters {
                    how: combination.how.name().into(),
                    density: combination.density,
                    majority_sign: combination.majority_sign.name().into(),
                    rank: combination.rank,
                    seed: combination.seed,
                }),
                dtype: match what.options.dtype {
                    OutputDtype::Auto => "auto",
                    OutputDtype::F32 => "f32",
                    OutputDtype::F16 => "f16",
                    OutputDtype::Bf16 => "bf16",
                }
                .into(),
                max_shard_size: what.max_shard_size,
                allow_non_finite: what.options.allow_non_finite,
            },
            tensors,
            notes: self.notes().to_vec(),
            outputs,
        })
    }
}

/// An adapter of a merge that is planned.
#[derive(Debug, Clone, Copy)]
pub struct PlannedAdapter<'a> {
    /// Where it was found.
    pub dir: &'a Path,
    /// How much of what it adds is added.
    pub weight: f64,
    /// Its method as people call it, such as `LoRA`.
    pub method: &'a str,
    /// Its `adapter_config.json`.
    pub config: &'a serde_json::Map<String, Value>,
}

/// Names, each once: `LoRA, (IA)³`.
fn joined<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let mut list: Vec<&str> = vec![];
    for name in names {
        if !list.contains(&name) {
            list.push(name);
        }
    }
    list.join(", ")
}

pub(crate) fn input(dir: &Path, mut files: Vec<InputFile>) -> Result<ModelInput, Error> {
    files.sort_by(|a, b| a.name.cmp(&b.name));
    let path = std::path::absolute(dir).map_err(CheckpointError::io("examine", dir))?;
    let (repository, revision) = hub::repository(dir).unzip();
    Ok(ModelInput { path: path.to_string_lossy().into_owned(), repository, revision, files })
}

fn small_input(dir: &Path, name: &str) -> Result<InputFile, Error> {
    let path = dir.join(name);
    let file = File::open(&path).map_err(CheckpointError::io("open", &path))?;
    let bytes = file.metadata().map_err(CheckpointError::io("examine", &path))?.len();
    Ok(InputFile { name: name.into(), bytes, sha256: hash_file(&file, &path, &())? })
}

/// Fails when the target is an input, lies in one, or one lies in it.
pub(crate) fn check_apart(out: &Path, input: &Path) -> Result<(), Error> {
    let resolve = |path: &Path| -> Option<PathBuf> {
        // The target need not exist: its nearest ancestor that does is resolved, the rest kept.
        let absolute = std::path::absolute(path).ok()?;
        let existing = absolute.ancestors().find_map(|a| Some((a, a.canonicalize().ok()?)))?;
        Some(existing.1.join(absolute.strip_prefix(existing.0).ok()?))
    };
    if let (Some(out_path), Some(input_path)) = (resolve(out), resolve(input))
        && (out_path.starts_with(&input_path) || input_path.starts_with(&out_path))
    {
        return Err(Error::OutTouchesInput { out: out.into(), input: input.into() });
    }
    Ok(())
}
