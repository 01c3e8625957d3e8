//! The verb `gguf`: a model directory, or a base and an adapter, in; one GGUF file out.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tenon_checkpoint::{
    Checkpoint, Digest, Error as CheckpointError, Observer, Rows, StagingDir, TensorInfo, TensorSource,
    WriteOptions, write_shards,
};
use tenon_gguf::quant::Quality;
use tenon_gguf::{
    Conversion, ConversionOptions, FileContent, FileType, GgufTensor, Importance, Metadata, ModelFiles,
    ModelInput, Rules, TensorType,
};
use tenon_registry::Quantization;

use crate::base::listed;
use crate::companions::Content;
use crate::{Error, Merge, Plan};

/// What a GGUF file begins with.
pub(crate) const MAGIC: &[u8] = b"GGUF";

/// How to convert. The default has nothing chosen by hand.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct GgufOptions {
    /// Element type of what is not quantized.
    pub file_type: FileType,
    /// `general.name`, instead of one made from the directory's.
    pub name: Option<String>,
    /// Name of the pre-tokenizer, where it cannot be recognised.
    pub pre_tokenizer: Option<String>,
    /// An importance matrix, as `llama-imatrix` writes them, for what is quantized.
    pub imatrix: Option<PathBuf>,
    /// Worker threads; all cores by default. Does not change a byte.
    pub threads: Option<usize>,
    /// Whose rules choose the types of tensors, where something is quantized.
    pub rules: Rules,
    /// Types of tensors that go before the rules.
    pub tensor_types: Vec<TensorType>,
    /// Measure what quantization does to each tensor; see [`GgufPlan::quality`].
    pub measure: bool,
}

/// What to convert, and to what.
#[derive(Debug, Clone)]
pub struct Gguf {
    model: Model,
    out: PathBuf,
    quantization: Quantization,
    options: GgufOptions,
    overwrite: bool,
}

#[derive(Debug, Clone)]
enum Model {
    Directory(PathBuf),
    Merged(Box<Merge>),
}

impl Gguf {
    /// A conversion of the model in a directory, to be written to the file `out`.
    pub fn of(dir: impl Into<PathBuf>, out: impl Into<PathBuf>) -> Self {
        Self::new(Model::Directory(dir.into()), out.into())
    }

    /// A conversion of what a merge would give, without writing the merged model.
    ///
    /// The file has the bytes that merging into a directory named as the file is and converting that
    /// would give; `my-model-Q4_K_M.gguf` is the model `my-model`.
    pub fn merged(base: impl Into<PathBuf>, adapter: impl Into<PathBuf>, out: impl Into<PathBuf>) -> Self {
        let out = out.into();
        Self::of_merge(Merge::new(base, adapter, &out), out)
    }

    /// As [`merged`](Self::merged), of any merge; where that would be written does not matter.
    pub fn of_merge(merge: Merge, out: impl Into<PathBuf>) -> Self {
        Self::new(Model::Merged(Box::new(merge)), out.into())
    }

    fn new(model: Model, out: PathBuf) -> Self {
        Self {
            model,
            out,
            quantization: Quantization::None,
            options: GgufOptions::default(),
            overwrite: false,
        }
    }

    /// What to quantize to.
    pub fn quantization(mut self, quantization: Quantization) -> Self {
        self.quantization = quantization;
        self
    }

    /// How to convert.
    pub fn options(mut self, options: GgufOptions) -> Self {
        self.options = options;
        self
    }

    /// Replace a GGUF file at the target once the new one is whole.
    pub fn overwrite(mut self, overwrite: bool) -> Self {
        self.overwrite = overwrite;
        self
    }

    /// Reads headers, configuration and tokenizer, checks everything that can be checked, writes nothing.
    pub fn plan(self) -> Result<GgufPlan, Error> {
        StagingDir::check_file_target(&self.out, MAGIC, self.overwrite)?;
        let (conversion, inputs) = match &self.model {
            Model::Directory(dir) => of_directory(dir, self.quantization, &self.options)?,
            Model::Merged(merge) => {
                let stem = self.out.file_stem().unwrap_or_default().to_string_lossy();
                let plan = merge.as_ref().clone().plan_anywhere()?;
                of_merge(plan, model_name(&stem), self.quantization, &self.options)?
            }
        };
        let available = StagingDir::need_bytes(&self.out, conversion.len())?;
        Ok(GgufPlan { what: self, conversion, inputs, available })
    }
}

/// `my-model` of `my-model-Q4_K_M`.
fn model_name(stem: &str) -> &str {
    let types = ["q8_0", "q4_k_m", "q4_k_s", "bf16", "f16", "f32"];
    let cut =
        stem.rsplit_once(['-', '.']).filter(|(_, end)| types.contains(&end.to_ascii_lowercase().as_str()));
    cut.map_or(stem, |(name, _)| name)
}

/// What a conversion reads.
pub(crate) enum Inputs {
    /// And what a person should know of it.
    Checkpoint(Arc<Checkpoint>, Vec<String>),
    Merge(Arc<Plan>),
}

impl Inputs {
    pub(crate) fn check_unchanged(&self) -> Result<(), CheckpointError> {
        match self {
            Inputs::Checkpoint(checkpoint, _) => checkpoint.check_unchanged(),
            Inputs::Merge(plan) => plan.input_files().try_for_each(|file| file.check_unchanged()),
        }
    }
}

/// The weights of a merge that is planned.
struct PlannedWeights(Arc<Plan>);

impl TensorSource for PlannedWeights {
    fn tensors(&self) -> &[TensorInfo] {
        self.0.source().tensors()
    }
    fn read_rows(&self, tensor: usize, rows: Rows, out: &mut [u8]) -> Result<(), CheckpointError> {
        self.0.source().read_rows(tensor, rows, out)
    }
}

/// A quantization as the crate that does it calls it.
pub(crate) fn in_gguf(quantization: Quantization) -> tenon_gguf::Quantization {
    match quantization {
        Quantization::None => tenon_gguf::Quantization::NoQuantization,
        Quantization::Q8_0 => tenon_gguf::Quantization::Q8_0,
        Quantization::Q4KM => tenon_gguf::Quantization::Q4_K_M,
        Quantization::Q4KS => tenon_gguf::Quantization::Q4_K_S,
    }
}

fn conversion_options(quantization: Quantization, options: &GgufOptions) -> Result<ConversionOptions, Error> {
    let is_quantized = quantization != Quantization::None;
    if options.imatrix.is_some() && !is_quantized {
        return Err(Error::OnlyQuantized { what: "an importance matrix is" });
    }
    if !options.tensor_types.is_empty() && !is_quantized {
        return Err(Error::OnlyQuantized { what: "types of tensors are" });
    }
    let importance = options.imatrix.as_deref().map(Importance::open).transpose()?.map(Arc::new);
    Ok(ConversionOptions {
        file_type: options.file_type,
        quantization: in_gguf(quantization),
        name: options.name.clone(),
        pre_tokenizer: options.pre_tokenizer.clone(),
        importance,
        rules: options.rules,
        tensor_types: options.tensor_types.clone(),
        measure: options.measure,
        ..ConversionOptions::default()
    })
}

pub(crate) fn of_directory(
    dir: &Path,
    quantization: Quantization,
    options: &GgufOptions,
) -> Result<(Conversion, Inputs), Error> {
    let checkpoint = Arc::new(Checkpoint::open(dir)?);
    if !dir.join("config.json").exists() {
        return Err(Error::NoConfig { dir: dir.into() });
    }
    let files = ModelFiles::directory(dir);
    // `.` and links have the name of where they lead when they have none of their own.
    let own = dir.file_name().map(|name| name.to_string_lossy().into_owned());
    let name = own.or_else(|| Some(dir.canonicalize().ok()?.file_name()?.to_string_lossy().into_owned()));
    let input = ModelInput::checkpoint(checkpoint.clone(), &files, name.unwrap_or_default())?;
    let notes = match input.dequantized() {
        [] => vec![],
        formats => {
            vec![format!("the model is stored quantized and is dequantized first: {}", listed(formats))]
        }
    };
    let conversion = Conversion::plan(input, &conversion_options(quantization, options)?)?;
    Ok((conversion, Inputs::Checkpoint(checkpoint, notes)))
}

fn of_merge(
    plan: Plan,
    directory: &str,
    quantization: Quantization,
    options: &GgufOptions,
) -> Result<(Conversion, Inputs), Error> {
    let content = |content: &Content| match content {
        Content::File(path) => FileContent::Path(path.clone()),
        Content::Text(text) => FileContent::Text(text.clone()),
    };
    let listed: BTreeMap<_, _> =
        plan.companion_files().map(|(name, file)| (name.to_string(), content(file))).collect();
    let files = ModelFiles::listed(plan.base_dir(), listed);
    let plan = Arc::new(plan);
    let weights = Arc::new(PlannedWeights(plan.clone()));
    let input = ModelInput::planned(weights, plan.layout(), &files, directory.to_string());
    let conversion = Conversion::plan(input, &conversion_options(quantization, options)?)?;
    Ok((conversion, Inputs::Merge(plan)))
}

/// A conversion that can be run: every check passed, nothing written yet.
pub struct GgufPlan {
    what: Gguf,
    conversion: Conversion,
    inputs: Inputs,
    available: u64,
}

/// What a conversion left.
#[derive(Debug, Clone)]
pub struct GgufWritten {
    /// The file, as it was asked for.
    pub path: PathBuf,
    /// SHA-256 of its bytes.
    pub digest: Digest,
    /// Its size.
    pub bytes: u64,
    /// How long it took.
    pub elapsed: Duration,
}

impl GgufPlan {
    /// The keys that the file will have.
    pub fn metadata(&self) -> &Metadata {
        self.conversion.metadata()
    }

    /// The tensors that it will have, in order.
    pub fn tensors(&self) -> &[GgufTensor] {
        self.conversion.gguf_tensors()
    }

    /// What quantization did to tensor number `tensor`, once the file was written; none for one that is
    /// not quantized, or without [`GgufOptions::measure`].
    pub fn quality(&self, tensor: usize) -> Option<Quality> {
        self.conversion.quality(tensor)
    }

    /// What quantization did to all of them, once a file of `bytes` was written.
    pub(crate) fn summed_quality(&self, bytes: u64) -> Option<tenon_registry::QuantizationQuality> {
        crate::quality::of(&self.conversion, bytes).map(|(quality, _)| quality)
    }

    /// What it will be quantized to.
    pub fn quantization(&self) -> Quantization {
        self.what.quantization
    }

    /// Size that the file will have.
    pub fn output_bytes(&self) -> u64 {
        self.conversion.len()
    }

    /// Free bytes at the target.
    pub fn available_bytes(&self) -> u64 {
        self.available
    }

    /// Bytes that the observer of [`run`](Self::run) will be told of.
    pub fn work_bytes(&self) -> u64 {
        self.conversion.layout("").total_size
    }

    /// What a person should know before relying on the result.
    pub fn notes(&self) -> Vec<String> {
        match &self.inputs {
            Inputs::Checkpoint(_, notes) => notes.clone(),
            Inputs::Merge(plan) => plan.notes().to_vec(),
        }
    }

    /// Converts: streams into a file beside the target, syncs, renames.
    pub fn run(&self, observer: &dyn Observer) -> Result<GgufWritten, Error> {
        let start = Instant::now();
        let staging = StagingDir::create_for_file(&self.what.out, MAGIC, self.what.overwrite)?;
        let threads = self.what.options.threads;
        let (digest, bytes) = write(&self.conversion, &staging, threads, observer)?;
        self.inputs.check_unchanged()?;
        staging.publish_file(STAGED, &self.what.out, self.what.overwrite)?;
        Ok(GgufWritten { path: self.what.out.clone(), digest, bytes, elapsed: start.elapsed() })
    }
}

/// Name of the file while it is written.
pub(crate) const STAGED: &str = "model.gguf";

pub(crate) fn write(
    conversion: &Conversion,
    staging: &StagingDir,
    threads: Option<usize>,
    observer: &dyn Observer,
) -> Result<(Digest, u64), Error> {
    let mut options = WriteOptions::default();
    options.threads = threads.unwrap_or(options.threads).max(1);
    let layout = conversion.layout(STAGED);
    let (written, _) = write_shards(conversion, &layout, staging.path(), &options, &[], &[], observer)?;
    if observer.cancelled() {
        return Err(CheckpointError::Cancelled.into());
    }
    let file = written.first().expect("one file was laid out");
    Ok((file.digest, file.len))
}

#[cfg(test)]
mod tests {
    use super::model_name;

    #[test]
    fn a_files_name_is_its_models_without_the_type() {
        for (stem, name) in [
            ("kjv-lora-Q4_K_M", "kjv-lora"),
            ("kjv-lora.bf16", "kjv-lora"),
            ("kjv-lora", "kjv-lora"),
            ("Q8_0", "Q8_0"),
            ("a-f16-b", "a-f16-b"),
        ] {
            assert_eq!(model_name(stem), name);
        }
    }
}
