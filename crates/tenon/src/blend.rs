//! The verb `merge` over whole models: a mergekit configuration in, one model directory out.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::Value;
use tenon_blend::{
    BlendConfig, BlendOptions, BlendPlan, BlendedTensor, ChatTemplate, Model, ModelReference,
    TokenizerChoice, TokenizerSource,
};
use tenon_checkpoint::{
    Digest, Error as CheckpointError, Observer, SafetensorsFile, ShardLayout, StagingDir, Stamp,
    TensorSource, WriteOptions, WrittenFile, read_text, write_shards,
};
use tenon_merge::kernel::Level;
use tenon_merge::{AnyRows, MergeOptions};
use tenon_registry::{Manifest, OutputFile};

use crate::adapter::Adapters;
use crate::base::Base;
use crate::companions::{self, Content};
use crate::merge::{check_apart, input};
use crate::provenance::{BlendInput, BlendInputFile, KnownBy};
use crate::tokenizers::{self, Joined};
use crate::{Error, Merge};

/// Whole models to be merged with one another, as a mergekit configuration says.
///
/// Models are directories; a relative one is looked for from where the program runs, then beside the
/// configuration. `model+adapter` is a model with an adapter merged into it on the way.
#[derive(Debug, Clone)]
pub struct Blend {
    config: Configuration,
    out: PathBuf,
    options: BlendOptions,
    write: WriteOptions,
    max_shard_size: u64,
    overwrite: bool,
    hash_inputs: bool,
    known: Vec<(Stamp, Digest)>,
}

/// Where a configuration comes from, and so where the models lie that it names.
#[derive(Debug, Clone)]
enum Configuration {
    File(PathBuf),
    Text { text: String, places: BTreeMap<String, PathBuf> },
}

impl Configuration {
    fn read(&self) -> Result<BlendConfig, Error> {
        Ok(match self {
            Configuration::File(path) => BlendConfig::parse(&read_text(path)?)?,
            Configuration::Text { text, .. } => BlendConfig::parse(text)?,
        })
    }

    fn find(&self, name: &str) -> PathBuf {
        let given = PathBuf::from(name);
        match self {
            Configuration::File(path) => {
                let beside = path.parent().unwrap_or(Path::new("")).join(name);
                if !given.exists() && beside.exists() { beside } else { given }
            }
            Configuration::Text { places, .. } => places.get(name).cloned().unwrap_or(given),
        }
    }
}

impl Blend {
    /// The configuration at `config`, to be written to `out`.
    pub fn new(config: impl Into<PathBuf>, out: impl Into<PathBuf>) -> Self {
        Self::of(Configuration::File(config.into()), out.into())
    }

    /// A configuration given as text, whose models and adapters lie where `places` says, by the names
    /// that it has for them; to be written to `out`.
    pub fn of_text(
        text: impl Into<String>,
        places: BTreeMap<String, PathBuf>,
        out: impl Into<PathBuf>,
    ) -> Self {
        Self::of(Configuration::Text { text: text.into(), places }, out.into())
    }

    /// The models and the adapters that a configuration names, each once.
    pub fn named(text: &str) -> Result<(BTreeSet<String>, BTreeSet<String>), Error> {
        let config = BlendConfig::parse(text)?;
        let references = config.models();
        let models = references.iter().map(|reference| reference.model.clone()).collect();
        Ok((models, references.iter().filter_map(|reference| reference.adapter.clone()).collect()))
    }

    fn of(config: Configuration, out: PathBuf) -> Self {
        Self {
            config,
            out,
            options: BlendOptions::default(),
            write: WriteOptions::default(),
            max_shard_size: Merge::DEFAULT_SHARD_SIZE,
            overwrite: false,
            hash_inputs: false,
            known: vec![],
        }
    }

    /// Tensor bytes in a shard at most.
    pub fn max_shard_size(mut self, bytes: u64) -> Self {
        self.max_shard_size = bytes;
        self
    }

    /// Worker threads; all cores by default. Does not change a byte.
    pub fn threads(mut self, threads: usize) -> Self {
        (self.write.threads, self.options.threads) = (threads.max(1), threads.max(1));
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

    /// Seed of what DARE draws; 0 by default.
    pub fn seed(mut self, seed: u64) -> Self {
        self.options.seed = seed;
        self
    }

    /// Replace an existing model at the target once the new one is whole.
    pub fn overwrite(mut self, overwrite: bool) -> Self {
        self.overwrite = overwrite;
        self
    }

    /// Hash all input files whole, which takes longer than most blends. Otherwise those whose digest
    /// nobody knows are recorded by a sample; see [`KnownBy`].
    pub fn hash_inputs(mut self, hash: bool) -> Self {
        self.hash_inputs = hash;
        self
    }

    /// Digests of input files that were read through before. One whose stamp is among them is known.
    pub fn known_digests(mut self, known: Vec<(Stamp, Digest)>) -> Self {
        self.known = known;
        self
    }

    /// Let values through that are not finite.
    pub fn allow_non_finite(mut self, allow: bool) -> Self {
        self.options.allow_non_finite = allow;
        self
    }

    /// Reads the configuration and all headers, checks everything that can be checked, writes nothing.
    pub fn plan(self) -> Result<PlannedBlend, Error> {
        let config = self.config.read()?;
        let (mut models, mut inputs) = (vec![], vec![]);
        for reference in config.models() {
            let opened = OpenModel::open(reference, &self.config)?;
            for dir in opened.dirs() {
                check_apart(&self.out, dir)?;
            }
            models.push(Model {
                reference: reference.clone(),
                source: opened.source.clone(),
                config: opened.config.clone(),
            });
            inputs.push(opened);
        }
        StagingDir::check_target(&self.out, self.overwrite)?;
        let joined =
            config.tokenizer().map(|choice| self.join_tokenizers(choice, &models, &inputs)).transpose()?;
        let vocabularies = joined.as_ref().map(|joined| &joined.vocabularies);
        let blend = BlendPlan::new(&config, models, vocabularies, self.options.clone())?;
        let mut companions = companions::gather(&inputs[0].dir, inputs[0].adapters.dirs())?;
        if let Some(joined) = joined {
            companions::set_tokenizer(&mut companions, joined.files);
        }
        if let Some(template) = chat_template(&config, &inputs)? {
            companions::set_template(&mut companions, template)?;
        }
        companions.insert("config.json".into(), Content::Text(format!("{:#}\n", blend.config())));
        companions.insert("mergekit_config.yml".into(), Content::Text(config.text().to_string()));
        let layout = ShardLayout::new(blend.tensors(), self.max_shard_size);
        if let Some(index) = layout.index_json(blend.tensors()) {
            companions.insert("model.safetensors.index.json".into(), Content::Text(index));
        }
        let needed = layout.file_bytes() + companions::bytes(&companions)?;
        let available = StagingDir::need_bytes(&self.out, needed)?;
        let notes = inputs.iter().flat_map(|model| &model.notes).chain(blend.notes()).cloned().collect();
        Ok(PlannedBlend { what: self, config, inputs, blend, notes, layout, companions, needed, available })
    }
}

impl Blend {
    /// The tokenizer that the configuration asks for, and all models' tokens.
    fn join_tokenizers(
        &self,
        choice: &TokenizerChoice,
        models: &[Model],
        inputs: &[OpenModel],
    ) -> Result<Joined, Error> {
        let dirs = models.iter().zip(inputs).map(|(model, input)| (input.dir.as_path(), &model.config));
        let chosen = match &choice.source {
            TokenizerSource::Model(reference) => Some(self.config.find(&reference.model)),
            TokenizerSource::Base | TokenizerSource::Union => None,
        };
        tokenizers::join(choice, chosen.as_deref(), &dirs.collect::<Vec<_>>())
    }
}

/// A model that a configuration names, opened as a merge opens its base and its adapter.
struct OpenModel {
    dir: PathBuf,
    base: Base,
    adapters: Adapters,
    source: Arc<dyn TensorSource>,
    config: Value,
    notes: Vec<String>,
}

impl OpenModel {
    fn open(reference: &ModelReference, configuration: &Configuration) -> Result<Self, Error> {
        let dir = configuration.find(&reference.model);
        let base = Base::open(&dir)?;
        let adapters = reference.adapter.iter();
        let paths: Vec<_> = adapters.map(|adapter| (configuration.find(adapter), 1.0)).collect();
        let adapters = Adapters::open(&paths, &base, false)?;
        let mut notes: Vec<String> = adapters.notes.iter().cloned().chain(base.note()).collect();
        let (source, config): (Arc<dyn TensorSource>, Value) = if paths.is_empty() {
            (base.source(), base.config().clone())
        } else {
            let plan = adapters.plan(&base, None, MergeOptions::default())?;
            notes.extend_from_slice(plan.notes());
            let config = plan.config().clone();
            (Arc::new(AnyRows::new(Arc::new(plan))), config)
        };
        let notes = notes.into_iter().map(|note| format!("{reference}: {note}")).collect();
        Ok(Self { dir, base, adapters, source, config, notes })
    }

    fn dirs(&self) -> impl Iterator<Item = &Path> {
        std::iter::once(self.dir.as_path()).chain(self.adapters.dirs())
    }

    fn files(&self) -> impl Iterator<Item = &SafetensorsFile> {
        self.base.checkpoint.files().iter().chain(self.adapters.files())
    }
}

/// The chat template that the configuration asks for: its text, or the one that most of the models have,
/// the earliest where several are as frequent.
fn chat_template(config: &BlendConfig, models: &[OpenModel]) -> Result<Option<String>, Error> {
    match config.chat_template() {
        None => Ok(None),
        Some(ChatTemplate::Text(text)) => Ok(Some(text.clone())),
        Some(ChatTemplate::Auto) => {
            let mut found: Vec<(String, usize)> = vec![];
            for model in models {
                let Some(template) = companions::template_of(&model.dir)? else { continue };
                match found.iter_mut().find(|(known, _)| known.trim() == template.trim()) {
                    Some((_, count)) => *count += 1,
                    None => found.push((template, 1)),
                }
            }
            let most = found.iter().map(|(_, count)| *count).max();
            Ok(found.into_iter().find(|(_, count)| Some(*count) == most).map(|(template, _)| template))
        }
    }
}

/// A blend that can be run: every check passed, nothing written yet.
pub struct PlannedBlend {
    what: Blend,
    config: BlendConfig,
    inputs: Vec<OpenModel>,
    blend: BlendPlan,
    notes: Vec<String>,
    layout: ShardLayout,
    companions: BTreeMap<String, Content>,
    needed: u64,
    available: u64,
}

/// `tenon.json` of a blend: what it was made from, and what each file must be.
#[derive(Debug, Clone, Serialize)]
pub struct BlendManifest {
    /// Version of this schema.
    pub schema: u32,
    /// Version of Tenon that wrote it.
    pub tenon: String,
    /// The method's name.
    pub method: String,
    /// The models, the one that gave configuration and tokenizer first; adapters follow their models.
    pub models: Vec<BlendInput>,
    /// The configuration.
    pub configuration: String,
    /// Seed of what was drawn.
    pub seed: u64,
    /// What a person should know about the result.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// Every file of the directory but this one, by name.
    pub outputs: Vec<OutputFile>,
}

/// What a blend left.
#[derive(Debug, Clone)]
pub struct Blended {
    /// The directory, as it was asked for.
    pub out: PathBuf,
    /// What is in it: also written there as `tenon.json`.
    pub manifest: BlendManifest,
    /// How long it took.
    pub elapsed: Duration,
}

impl PlannedBlend {
    /// All output tensors and what each is made from.
    pub fn tensors(&self) -> impl Iterator<Item = BlendedTensor<'_>> {
        self.blend.blended()
    }

    /// The method's name.
    pub fn method(&self) -> &'static str {
        self.config.method().name()
    }

    /// The models, as the configuration names them, the one that gives configuration and tokenizer first.
    pub fn models(&self) -> Vec<&ModelReference> {
        self.config.models()
    }

    /// What a person should know before relying on the result.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Name and size of each shard.
    pub fn shards(&self) -> impl Iterator<Item = (&str, u64)> {
        self.layout.shards.iter().map(|shard| (shard.name.as_str(), shard.len))
    }

    /// Names of the files beside the weights.
    pub fn companions(&self) -> impl Iterator<Item = &str> {
        self.companions.keys().map(String::as_str)
    }

    /// Elements of all output tensors.
    pub fn parameters(&self) -> u64 {
        self.layout.total_parameters
    }

    /// Size of the files to be written.
    pub fn output_bytes(&self) -> u64 {
        self.needed
    }

    /// Free bytes at the target.
    pub fn available_bytes(&self) -> u64 {
        self.available
    }

    /// Bytes that the observer of [`run`](Self::run) will be told of: those written, and those of the
    /// inputs that are hashed.
    pub fn work_bytes(&self) -> u64 {
        self.layout.total_size + self.files_to_hash().iter().map(|file| file.len()).sum::<u64>()
    }

    fn files(&self) -> impl Iterator<Item = &SafetensorsFile> {
        self.inputs.iter().flat_map(OpenModel::files)
    }

    /// The inputs that are read through beside the merge.
    fn files_to_hash(&self) -> Vec<&SafetensorsFile> {
        let is_read = |file: &&SafetensorsFile| match KnownBy::at_once(file, &self.what.known) {
            Some(KnownBy::Sha256(_)) => false,
            Some(_) => self.what.hash_inputs,
            None => self.what.hash_inputs || KnownBy::is_hashed(file),
        };
        self.files().filter(is_read).collect()
    }

    /// Merges: streams into a staging directory beside the target, syncs, renames.
    pub fn run(&self, observer: &dyn Observer) -> Result<Blended, Error> {
        let start = Instant::now();
        let staging = StagingDir::create(&self.what.out, self.what.overwrite)?;
        let mut outputs = vec![];
        for (name, content) in &self.companions {
            let bytes = content.bytes()?;
            staging.write_file(name, &bytes)?;
            let (bytes, sha256) = (bytes.len() as u64, Digest::of(&bytes));
            outputs.push(OutputFile { name: name.clone(), bytes, sha256 });
        }
        let to_hash = self.files_to_hash();
        let options = &self.what.write;
        let (written, hashes) =
            write_shards(&self.blend, &self.layout, staging.path(), options, &to_hash, &[], observer)?;
        let to_output = |f: WrittenFile| OutputFile { name: f.name, bytes: f.len, sha256: f.digest };
        outputs.extend(written.into_iter().map(to_output));
        outputs.sort_by(|a, b| a.name.cmp(&b.name));
        let manifest = BlendManifest {
            schema: Manifest::SCHEMA,
            tenon: crate::VERSION.into(),
            method: self.method().into(),
            models: self.model_inputs(&to_hash, hashes)?,
            configuration: self.config.text().into(),
            seed: self.what.options.seed,
            notes: self.notes().to_vec(),
            outputs,
        };
        let mut text =
            serde_json::to_string_pretty(&manifest).expect("texts, numbers and lists always serialize");
        text.push('\n');
        staging.write_file(Manifest::FILE, text.as_bytes())?;
        if observer.cancelled() {
            return Err(CheckpointError::Cancelled.into());
        }
        staging.publish()?;
        Ok(Blended { out: self.what.out.clone(), manifest, elapsed: start.elapsed() })
    }

    /// What each model was, by the digests of those files that were read through.
    fn model_inputs(
        &self,
        hashed: &[&SafetensorsFile],
        digests: Vec<Digest>,
    ) -> Result<Vec<BlendInput>, Error> {
        let mut digests = hashed.iter().zip(digests).peekable();
        let mut of = |file: &SafetensorsFile| -> Result<BlendInputFile, Error> {
            let known_by = match digests.next_if(|(hashed, _)| std::ptr::eq(**hashed, file)) {
                Some((_, digest)) => KnownBy::Sha256(digest),
                None => match KnownBy::at_once(file, &self.what.known) {
                    Some(known) => known,
                    None => KnownBy::sample(file)?,
                },
            };
            let name = file.path().file_name().unwrap_or_default().to_string_lossy().into_owned();
            Ok(BlendInputFile { name, bytes: file.len(), known_by })
        };
        let mut models = vec![];
        for model in &self.inputs {
            let files = model.base.checkpoint.files().iter().map(&mut of).collect::<Result<_, _>>()?;
            models.push(BlendInput::new(input(&model.dir, vec![])?, files));
            for (dir, file) in model.adapters.dirs().zip(model.adapters.files()) {
                models.push(BlendInput::new(input(dir, vec![])?, vec![of(file)?]));
            }
        }
        self.files().try_for_each(SafetensorsFile::check_unchanged)?;
        Ok(models)
    }
}
