//! A Hugging Face model on its way into a GGUF: planned from headers alone, written tile by tile.
//!
//! What the converter does is split by subject: [`config`] is `config.json`
//! with what transformers fills in, [`general`] the keys about where the model
//! comes from, [`parameters`] the keys that most architectures have, [`arch`]
//! the architectures, [`tokenizer`] their vocabularies, [`view`] what is done
//! to tensors and [`read`] how that is evaluated. [`crate::select`] then
//! chooses types as `llama-quantize` does.

mod arch;
mod config;
mod files;
mod general;
mod mxfp4;
mod parameters;
mod provenance;
mod read;
mod stored;
mod tokenizer;
mod view;

use std::cell::RefCell;
use std::sync::{Arc, Mutex, PoisonError};

use tenon_checkpoint::{
    Checkpoint, Dtype, Error as CheckpointError, Rows, ShardLayout, TensorInfo, TensorSource,
};
use tenon_dequant::{Dequantized, DequantizedFormat};

use self::arch::{Architecture, Incoming, Model, Outputs};
use self::config::Config;
use self::mxfp4::Packed;
use self::read::{Reader, is_decodable};
use self::view::Tensor;
use crate::imatrix::{Columns, Importance};
use crate::layout::{self, GgufTensor};
use crate::quant::{self, Level, Quality, QualitySums};
use crate::select::{self, ModelFacts, Quantization};
use crate::{Error, GgmlType, Metadata, Rules, TensorType, Value};

pub(crate) use arch::architecture;
pub use files::{FileContent, ModelFiles};
pub use provenance::{Origins, Provenance};

/// Element type of the tensors that are not kept in `f32`, before they are quantized.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FileType {
    /// That of the first matrix in 16 bits; `f16` where there is none.
    #[default]
    Auto,
    /// 32 bits.
    F32,
    /// IEEE half precision.
    F16,
    /// bfloat16.
    Bf16,
}

/// A model to be converted.
pub struct ModelInput<'a> {
    /// Its weights.
    source: Arc<dyn TensorSource>,
    /// A number for each tensor: a conversion goes by it, tensors of one number by name. That of the file
    /// which it is or would be in, for most.
    places: Vec<usize>,
    /// The checkpoint as it lies, where the source dequantizes it.
    stored: Option<Arc<Dequantized>>,
    /// Its other files.
    files: &'a ModelFiles,
    /// Name of its directory: the converter takes it apart for `general.name` and others.
    directory: String,
}

impl<'a> ModelInput<'a> {
    /// A checkpoint on disk. What it stores quantized is read as the numbers that it stands for, but for
    /// blocks that a GGUF has as they are (gpt-oss's experts).
    pub fn checkpoint(
        checkpoint: Arc<Checkpoint>,
        files: &'a ModelFiles,
        directory: String,
    ) -> Result<Self, Error> {
        stored::open(checkpoint, files, directory)
    }

    /// The formats that its tensors are dequantized from.
    pub fn dequantized(&self) -> &[DequantizedFormat] {
        self.stored.as_ref().map_or(&[], |model| model.formats())
    }

    /// Weights that are not written yet, and the files that they would be written to.
    pub fn planned(
        source: Arc<dyn TensorSource>,
        layout: &ShardLayout,
        files: &'a ModelFiles,
        directory: String,
    ) -> Self {
        let mut shards = vec![0; source.tensors().len()];
        for (number, shard) in layout.shards.iter().enumerate() {
            shard.tensors.iter().for_each(|(tensor, _)| shards[*tensor] = number);
        }
        Self { source, places: shards, stored: None, files, directory }
    }
}

/// How to convert.
#[derive(Debug, Clone)]
pub struct ConversionOptions {
    /// Element type before quantization.
    pub file_type: FileType,
    /// What to quantize to.
    pub quantization: Quantization,
    /// Whose rules choose the types of tensors.
    pub rules: Rules,
    /// Types of tensors that go before the rules, the first that fits first.
    pub tensor_types: Vec<TensorType>,
    /// `general.name`, instead of what the converter would guess.
    pub name: Option<String>,
    /// `tokenizer.ggml.pre`, where it cannot be recognised.
    pub pre_tokenizer: Option<String>,
    /// How much an error in each column counts, for those tensors that are quantized.
    pub importance: Option<Arc<Importance>>,
    /// Measure what quantization does to each tensor; see [`Conversion::quality`].
    pub measure: bool,
    /// Instructions to use; does not change a byte.
    pub level: Level,
}

impl Default for ConversionOptions {
    fn default() -> Self {
        Self {
            file_type: FileType::Auto,
            quantization: Quantization::NoQuantization,
            rules: Rules::default(),
            tensor_types: vec![],
            name: None,
            pre_tokenizer: None,
            importance: None,
            measure: false,
            level: Level::detect(),
        }
    }
}

/// A tensor of the file and how it comes about.
struct Output {
    tensor: GgufTensor,
    recipe: Recipe,
    /// The type that it has in the unquantized file, through which it goes.
    through: GgmlType,
}

enum Recipe {
    /// Numbers, to be encoded.
    Numbers(Tensor),
    /// Blocks that the model has.
    Mxfp4(Packed),
}

impl Output {
    fn is_quantized(&self) -> bool {
        self.tensor.ggml_type.is_quantized()
    }
}

/// A conversion that can be written: every check passed, no tensor byte read.
///
/// It is a [`TensorSource`] of raw bytes: each tensor of the file, followed by
/// its padding; [`layout`](Self::layout) says where they go.
pub struct Conversion {
    metadata: Metadata,
    tensors: Vec<GgufTensor>,
    outputs: Vec<Output>,
    infos: Vec<TensorInfo>,
    reader: Reader,
    /// Of each tensor what was measured, if that was asked for.
    importance: Option<Arc<Importance>>,
    measured: Option<Vec<Mutex<QualitySums>>>,
    /// Whether it quantizes, which numbers that are none do not survive.
    quantizes: bool,
    level: Level,
}

thread_local! {
    static ROWS: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
    static BLOCKS: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl Conversion {
    /// Reads headers, configuration and tokenizer; finds every mistake.
    pub fn plan(input: ModelInput<'_>, options: &ConversionOptions) -> Result<Self, Error> {
        let files = input.files;
        let config_json =
            files.json("config.json")?.ok_or_else(|| files.wrong("config.json", "not there"))?;
        let (config, architecture) = arch::configure(&config_json, input.source.tensors())?;
        let order = order(architecture, &config, &*input.source, &input.places);
        let converted = converted_type(options.file_type, || match &input.stored {
            None => first_half(&order, &*input.source),
            // As it is stored, not as it is read.
            Some(model) => {
                let stored = model.checkpoint();
                first_half(&self::order(architecture, &config, stored, &stored::files(stored)), stored)
            }
        });
        let model = Model {
            file_type: architecture.file_type(&config).unwrap_or(match converted {
                GgmlType::F32 => 0,
                GgmlType::F16 => 1,
                _ => 32,
            }),
            pre_tokenizer: options.pre_tokenizer.as_deref(),
            ..Model::new(&config, files, architecture)?
        };
        let (mut outputs, keys) = outputs(architecture, &model, &order, &*input.source, converted)?;
        let mut metadata = Metadata::default();
        metadata.set("general.architecture", Value::String(architecture.name().into()));
        keys.iter().for_each(|(key, value)| metadata.set(key, value.clone()));
        metadata.set("general.type", Value::String("model".into()));
        general::write(
            &general::Known {
                card: &general::card(files)?,
                config: &config_json,
                // One that is no JSON counts for nothing.
                generation: &files.object("generation_config.json").ok().flatten().unwrap_or_default(),
                directory: &input.directory,
                name: options.name.as_deref(),
                parameters: parameter_counts(&outputs),
            },
            &mut metadata,
        );
        let mut keys = parameters::Keys { out: &mut metadata, architecture: architecture.name() };
        architecture.parameters(&model, &mut keys)?;
        metadata.set("general.quantization_version", Value::U32(2));
        architecture.tokenizer(&model, &mut metadata)?;
        quantize(options, architecture.name(), &mut metadata, &mut outputs)?;
        if let (Some(importance), true) = (&options.importance, options.quantization.file_type().is_some()) {
            importance.metadata().into_iter().for_each(|(key, value)| metadata.set_last(key, value));
            for output in outputs.iter().filter(|output| output.is_quantized()) {
                importance.of(&output.tensor)?;
            }
        }
        Ok(Self::new(metadata, outputs, Reader::new(input.source), options))
    }

    fn new(metadata: Metadata, outputs: Vec<Output>, reader: Reader, options: &ConversionOptions) -> Self {
        let mut infos = vec![];
        for output in &outputs {
            let tensor = &output.tensor;
            let row_bytes = tensor.ggml_type.row_bytes(tensor.row_len());
            let rows = tensor.elements() / tensor.row_len().max(1);
            infos.push(TensorInfo {
                row_block: match &output.recipe {
                    Recipe::Numbers(recipe) => {
                        reader.rows_together(recipe, tensor.row_len()).min(rows.max(1))
                    }
                    Recipe::Mxfp4(_) => 1,
                },
                ..TensorInfo::new(tensor.name.clone(), Dtype::U8, vec![rows, row_bytes])
            });
            infos.push(TensorInfo::new("", Dtype::U8, vec![tensor.padding()]));
        }
        let tensors = outputs.iter().map(|output| output.tensor.clone()).collect();
        let measured = options.measure.then(|| outputs.iter().map(|_| Mutex::default()).collect());
        let importance = options.importance.clone();
        let quantizes = options.quantization.file_type().is_some();
        let level = options.level;
        Self { metadata, tensors, outputs, infos, reader, importance, measured, quantizes, level }
    }

    /// The importance of a tensor's columns, where it is quantized and they are known.
    fn importance_of(&self, output: &Output) -> Option<Columns<'_>> {
        let importance = self.importance.as_ref().filter(|_| output.is_quantized())?;
        // One that does not fit was found when this was planned.
        importance.of(&output.tensor).ok().flatten()
    }

    /// The error of a tensor whose numbers are no use.
    fn unfit(output: &Output, reason: String) -> CheckpointError {
        CheckpointError::Source(Box::new(Error::Tensor { tensor: output.tensor.name.clone(), reason }))
    }

    /// The keys.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// The tensors, in the order of the file.
    pub fn gguf_tensors(&self) -> &[GgufTensor] {
        &self.tensors
    }

    /// What quantization did to a tensor of the file, once it was written; none for one that is not
    /// quantized, or where it was not asked for.
    pub fn quality(&self, tensor: usize) -> Option<Quality> {
        if !self.outputs[tensor].is_quantized() {
            return None;
        }
        let sums = &self.measured.as_ref()?[tensor];
        Some(sums.lock().unwrap_or_else(PoisonError::into_inner).quality())
    }

    /// The file as [`tenon_checkpoint::write_shards`] writes it.
    pub fn layout(&self, name: &str) -> ShardLayout {
        layout::file(name, layout::header(&self.metadata, &self.tensors).0, &self.tensors)
    }

    /// Size of the file.
    pub fn len(&self) -> u64 {
        layout::header(&self.metadata, &self.tensors).1
    }

    /// Whether it has no tensor.
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }
}

impl TensorSource for Conversion {
    fn tensors(&self) -> &[TensorInfo] {
        &self.infos
    }

    fn read_rows(&self, tensor: usize, rows: Rows, out: &mut [u8]) -> Result<(), CheckpointError> {
        if tensor % 2 == 1 {
            out.fill(0);
            return Ok(());
        }
        let output = &self.outputs[tensor / 2];
        let row = output.tensor.row_len();
        if let (Recipe::Mxfp4(packed), GgmlType::MXFP4) = (&output.recipe, output.tensor.ggml_type) {
            return packed.read(&self.reader, rows.start * row, out);
        }
        ROWS.with_borrow_mut(|numbers| {
            numbers.resize(((rows.end - rows.start) * row) as usize, 0.0);
            match &output.recipe {
                Recipe::Numbers(recipe) => self.reader.read(recipe, rows.start * row, numbers)?,
                Recipe::Mxfp4(packed) => BLOCKS.with_borrow_mut(|blocks| {
                    blocks.resize(GgmlType::MXFP4.row_bytes(numbers.len() as u64) as usize, 0);
                    packed.read(&self.reader, rows.start * row, blocks)?;
                    quant::decode(self.level, GgmlType::MXFP4, blocks, numbers);
                    Ok::<_, CheckpointError>(())
                })?,
            }
            if output.through != output.tensor.ggml_type {
                quant::round(self.level, output.through, numbers);
            }
            let ggml_type = output.tensor.ggml_type;
            if self.quantizes
                && let Some(at) = quant::first_infinite(self.level, numbers)
            {
                let row = rows.start + at as u64 / row;
                let reason = format!("row {row} has a {} in it, which cannot be quantized", numbers[at]);
                return Err(Self::unfit(output, reason));
            }
            let mut sums = QualitySums::default();
            if let Some(columns) = self.importance_of(output) {
                columns.encode(self.level, ggml_type, rows.start, numbers, out, &mut sums);
            } else if self.measured.is_some() && output.is_quantized() {
                quant::encode_measured(self.level, ggml_type, numbers, row as usize, None, out, &mut sums);
            } else {
                quant::encode(self.level, ggml_type, numbers, out);
            }
            if self.quantizes && !quant::scales_are_finite(ggml_type, out) {
                let reason = format!("it has numbers too large for {ggml_type}");
                return Err(Self::unfit(output, reason));
            }
            if let Some(measured) = &self.measured {
                measured[tensor / 2].lock().unwrap_or_else(PoisonError::into_inner).merge(&sums);
            }
            Ok(())
        })
    }
}

/// A tensor of the source under the name that it is converted under.
struct Ordered {
    name: String,
    tensor: usize,
}

/// The source's tensors in the converter's order: file by file, by name.
fn order(
    architecture: &dyn Architecture,
    config: &Config,
    source: &dyn TensorSource,
    places: &[usize],
) -> Vec<Ordered> {
    let infos = source.tensors();
    let mut numbers: Vec<usize> = (0..infos.len()).collect();
    numbers.sort_by(|a, b| (places[*a], &infos[*a].name).cmp(&(places[*b], &infos[*b].name)));
    let keep =
        |tensor: usize| Some(Ordered { name: architecture.keep(&infos[tensor].name, config)?, tensor });
    numbers.into_iter().filter_map(keep).collect()
}

fn converted_type(file_type: FileType, first_half: impl FnOnce() -> Option<Dtype>) -> GgmlType {
    match file_type {
        FileType::F32 => GgmlType::F32,
        FileType::F16 => GgmlType::F16,
        FileType::Bf16 => GgmlType::BF16,
        FileType::Auto if first_half() == Some(Dtype::BF16) => GgmlType::BF16,
        FileType::Auto => GgmlType::F16,
    }
}

/// The type of the first matrix of 16 bits.
fn first_half(order: &[Ordered], source: &dyn TensorSource) -> Option<Dtype> {
    let infos = order.iter().map(|it| &source.tensors()[it.tensor]);
    let matrices = infos.filter(|info| info.shape.len() >= 2);
    matrices.map(|info| info.dtype).find(|dtype| matches!(dtype, Dtype::BF16 | Dtype::F16))
}

/// What no GGUF needs of a checkpoint.
const LEFT_OUT: [&str; 3] = [".attention.masked_bias", ".attention.bias", ".rotary_emb.inv_freq"];

/// What becomes of each tensor of the source, whose shapes are `infos`. `failed` says what to do about one
/// that cannot be converted.
fn recipes(
    architecture: &dyn Architecture,
    model: &Model<'_>,
    order: &[Ordered],
    infos: &[TensorInfo],
    failed: impl Fn(Error) -> Result<(), Error>,
) -> Result<Outputs, Error> {
    let mut found = Outputs::default();
    architecture.extra(model, &mut found)?;
    for Ordered { name, tensor } in order {
        if LEFT_OUT.iter().any(|end| name.ends_with(end)) {
            continue;
        }
        let info = &infos[*tensor];
        if !is_decodable(info.dtype) {
            let reason = format!("{} cannot be converted; only floats and integers can", info.dtype);
            return Err(Error::Tensor { tensor: name.clone(), reason });
        }
        let layer = name.split('.').find(|part| !part.is_empty() && part.bytes().all(|c| c.is_ascii_digit()));
        let incoming = Incoming {
            name,
            tensor: Tensor::of(*tensor, &info.shape),
            layer: layer.and_then(|layer| layer.parse().ok()),
        };
        architecture.tensor(model, incoming, &mut found).or_else(|error| {
            failed(match error {
                // A step that could not be done knows shapes, not names.
                Error::Tensor { tensor, reason } if tensor.is_empty() => {
                    Error::Tensor { tensor: name.clone(), reason }
                }
                other => other,
            })
        })?;
    }
    if let Some((missing, _)) = found.waiting.first_key_value() {
        let reason = "it is not there, but what belongs to it is".into();
        failed(Error::Tensor { tensor: missing.clone(), reason })?;
    }
    let experts = ["num_local_experts", "num_experts", "n_routed_experts"];
    found.experts.finish(model.config.maybe_integer(&experts)?.unwrap_or(0))?;
    Ok(found)
}

fn outputs(
    architecture: &dyn Architecture,
    model: &Model<'_>,
    order: &[Ordered],
    source: &dyn TensorSource,
    converted: GgmlType,
) -> Result<(Vec<Output>, Metadata), Error> {
    let found = recipes(architecture, model, order, source.tensors(), Err)?;
    let mut names = std::collections::HashSet::new();
    let mut outputs = vec![];
    let packed = found.packed.into_iter().map(|(name, packed)| (name, Recipe::Mxfp4(packed)));
    let numbers = found.tensors.into_iter().map(|(name, tensor)| (name, Recipe::Numbers(tensor)));
    for (name, recipe) in packed.chain(numbers) {
        if !names.insert(name.clone()) {
            return Err(Error::Tensor { tensor: name, reason: "two tensors of the model become it".into() });
        }
        let (shape, ggml_type) = match &recipe {
            Recipe::Numbers(tensor) => {
                let shape = tensor.shape();
                let ggml_type = kept_in_f32(&name, shape.len()).unwrap_or(converted);
                (shape, ggml_type)
            }
            Recipe::Mxfp4(packed) => (packed.shape(), GgmlType::MXFP4),
        };
        if shape.len() > 4 {
            let reason = format!("it has {} dimensions; a GGUF has four at most", shape.len());
            return Err(Error::Tensor { tensor: name, reason });
        }
        outputs.push(Output { tensor: GgufTensor { name, ggml_type, shape }, recipe, through: ggml_type });
    }
    Ok((outputs, found.keys))
}

/// Names of matrices that are kept in `f32`: whole, or behind `blk.N.`.
const F32_MATRICES: [&str; 14] = [
    "position_embd",
    "token_types",
    "ffn_gate_inp",
    "ffn_gate_inp_shexp",
    "ssm_conv1d",
    "shortconv.conv",
    "time_mix_first",
    "altup_correct_coef",
    "altup_predict_coef",
    "ssm_conv1d_q",
    "ssm_conv1d_k",
    "ssm_conv1d_v",
    "indexer.proj",
    "posnet.norm1",
];

fn kept_in_f32(name: &str, dimensions: usize) -> Option<GgmlType> {
    if dimensions <= 1 || name.ends_with("_norm.weight") {
        return Some(GgmlType::F32);
    }
    let Some(stem) = name.strip_suffix(".weight") else { return Some(GgmlType::F32) };
    let in_layer = stem.strip_prefix("blk.").and_then(|rest| rest.split_once('.')).map(|(_, rest)| rest);
    F32_MATRICES.contains(&in_layer.unwrap_or(stem)).then_some(GgmlType::F32)
}

/// Elements as the size label counts them.
fn parameter_counts(outputs: &[Output]) -> general::Parameters {
    let (mut counts, mut experts, mut expert_tensors) = (general::Parameters::default(), 0, 0);
    for Output { tensor, .. } in outputs {
        let (elements, shape) = (tensor.elements(), &tensor.shape);
        if tensor.name.contains("_exps.") && shape.len() >= 3 {
            let axis = if tensor.name.contains(".bias") { shape.len() - 2 } else { shape.len() - 3 };
            counts.one_expert += elements.checked_div(shape[axis]).unwrap_or(0);
            experts += shape[axis];
            expert_tensors += 1;
        } else {
            counts.shared += elements;
        }
        counts.total += elements;
    }
    counts.experts = u64::checked_div(experts, expert_tensors).unwrap_or(0);
    counts
}

/// Chooses types and order as `llama-quantize` does, and changes the keys that it changes.
fn quantize(
    options: &ConversionOptions,
    architecture: &'static str,
    metadata: &mut Metadata,
    outputs: &mut [Output],
) -> Result<(), Error> {
    let Some(file_type) = options.quantization.file_type() else { return Ok(()) };
    outputs.sort_by(|a, b| select::order(&a.tensor.name).cmp(&select::order(&b.tensor.name)));
    let number = |key: &str| match metadata.get(&format!("{architecture}.{key}")) {
        Some(Value::U32(n)) => Some(u64::from(*n)),
        _ => None,
    };
    // No program loads such a model; llama-quantize does not either.
    let (used, experts) = (number("expert_used_count").unwrap_or(0), number("expert_count").unwrap_or(0));
    if used > experts {
        return Err(config::wrong("num_experts_per_tok", &used.into(), "no more than there are experts"));
    }
    let layers = number("block_count").unwrap_or(0);
    let grouped = number("attention.head_count") != number("attention.head_count_kv");
    let facts = ModelFacts {
        architecture,
        layers,
        experts,
        is_70b: match architecture {
            "llama" => layers == 80 && grouped,
            "qwen2" | "olmo" | "deci" => layers == 80,
            "jais2" => layers == 68,
            _ => false,
        },
    };
    let mut chosen = options.tensor_types.clone();
    chosen.extend(options.rules.tensor_types(architecture, options.quantization));
    let tensors: Vec<GgufTensor> = outputs.iter().map(|output| output.tensor.clone()).collect();
    let types = select::types(options.quantization, facts, &chosen, &tensors)?;
    for (Output { tensor, .. }, ggml_type) in outputs.iter_mut().zip(types) {
        tensor.ggml_type = ggml_type;
        // To ggml, extents of 1 outside are none.
        let ones = tensor.shape.iter().take_while(|extent| **extent == 1).count();
        tensor.shape.drain(..ones.min(tensor.shape.len().saturating_sub(1)));
        if tensor.shape.is_empty() {
            tensor.shape.push(1);
        }
    }
    metadata.set_last("general.quantization_version", Value::U32(2));
    metadata.set_last("general.file_type", Value::U32(file_type));
    Ok(())
}
