//! LoRA: `W' = W + s B A`, and what grew from it: rank-stabilised scaling, DoRA, bias.
//!
//! With `in` and `out` features and rank `r`, `A` is `[r, in]`, `B` is
//! `[out, r]`, `s = alpha / r` (rsLoRA: `alpha / sqrt(r)`). Sources: Hu et al.
//! 2021 (LoRA); Kalajdzievski 2023 (rsLoRA); Liu et al. 2024 (DoRA); PEFT
//! 0.21.2, `tuners/lora/layer.py`, `dora.py`.
//!
//! * A weight stored `[in, out]` (GPT-2's Conv1D) takes the transpose.
//! * An embedding `[vocabulary, dim]` has `lora_embedding_A [r, vocabulary]` and
//!   `lora_embedding_B [dim, r]`, and takes `s (B A)^T`.
//! * A convolution `[out, in, k..]` has `A [r, in, k..]` and `B [out, r, 1..]`: a matrix
//!   product once the weight is seen as `[out, in * k..]`.
//! * A fused expert tensor is in [`crate::experts`].
//! * BD-LoRA has one of its factors in blocks along the diagonal, QALoRA an `A`
//!   of sums of inputs: see [`super::factors`].
//! * KaSA has a diagonal between its factors and a base that lost a part: see [`super::kasa`].
//! * PiSSA and OLoRA take out of the base what they began with: see [`super::initial`].
//! * DoRA then scales each output channel to its trained magnitude:
//!   `W'' = m / ||W'|| W'`.

use std::collections::BTreeMap;

use serde_json::Value;

use super::factors::{Composed, Storage};
use super::initial::{Initial, TakenOut};
use super::kasa::Kasa;
use super::layer::{Features, Layer};
use super::product::{Product, decomposition_bytes};
use super::scaling::Scaling;
use super::{KnownMethod, Merging, Method, Module};
use crate::edit::{AddScaled, ColumnMagnitude, Factor, LowRank, RowMagnitude};
use crate::plan::sort_tensors;
use crate::planner::{Origin, Planner};
use crate::{Adapter, AdapterConfig, Error, experts, saved};

/// LoRA and its variants.
pub(super) const METHOD: KnownMethod = KnownMethod {
    peft_type: "LORA",
    name: "LoRA",
    formula: "`W + s B A`; variants below",
    source: "Hu et al. 2021",
    merging: Merging::Reads(read),
};

const KNOWN: &[&str] = &[
    "alpha_pattern",
    "bias",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "fan_in_fan_out",
    "init_lora_weights",
    "kasa_config",
    "layer_replication",
    "loftq_config",
    "lora_alpha",
    "lora_bias",
    "lora_dropout",
    "lora_ga_config",
    "megatron_core",
    // Adds noise while training; what is merged is the mean, as PEFT infers with.
    "monteclora_config",
    "qalora_group_size",
    "r",
    "rank_pattern",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_dora",
    "use_qalora",
    "use_rslora",
    // Compresses activations while training; the weights mean what LoRA's do.
    "velora_config",
];

const REFUSED: &[(&str, &str)] = &[
    (
        "alora_invocation_tokens",
        "an activated LoRA (aLoRA) acts only after certain tokens, so no fixed weights equal it",
    ),
    ("arrow_config", "Arrow routes every token among several LoRAs, so no fixed weights equal it"),
    ("megatron_config", "the layers of Megatron are split over devices"),
];

/// A LoRA configuration.
#[derive(Debug)]
pub(crate) struct Lora {
    scaling: Scaling,
    rank_stabilised: bool,
    dora: bool,
    /// Whether a diagonal stands between the factors, and the base lost its smallest singular directions.
    kasa: bool,
    block_diagonal: Option<BlockDiagonal>,
    /// How many inputs QALoRA takes together.
    pool: Option<u64>,
    /// Initialised from the base's own weights, which were changed in return.
    mutates_base: Option<String>,
    /// What it takes out of the base.
    initial: Option<Initial>,
    target_parameters: Vec<String>,
}

fn read(config: &AdapterConfig) -> Result<Box<dyn Method>, Error> {
    Ok(Box::new(Lora::read(config)?))
}

impl Lora {
    fn read(config: &AdapterConfig) -> Result<Self, Error> {
        for (field, why) in REFUSED {
            if config.value(field).is_some_and(|v| v != &Value::Bool(false)) {
                return Err(config.not_understood(field, *why));
            }
        }
        let mut known = KNOWN.to_vec();
        known.extend(REFUSED.iter().map(|(field, _)| *field));
        config.refuse_unknown_fields(&known)?;
        let init = config.value("init_lora_weights").and_then(Value::as_str).unwrap_or_default();
        if init.starts_with("pissa_niter_") {
            let why = "it began with a part of the base that random projections found, other ones each time; convert it \
                       with PEFT where it was trained (save_pretrained with path_initial_model_for_weight_conversion), \
                       or merge it into the base that lost that part, with init_lora_weights set to true";
            return Err(config.not_understood("init_lora_weights", why));
        }
        let mutating = ["corda", "lora_ga", "loftq"];
        Ok(Self {
            scaling: Scaling::read(config, "lora_alpha", config.flag("use_rslora")?)?,
            rank_stabilised: config.flag("use_rslora")?,
            dora: config.flag("use_dora")?,
            kasa: config.value("kasa_config").is_some_and(|v| v != &Value::Bool(false)),
            block_diagonal: BlockDiagonal::read(config)?,
            pool: match config.flag("use_qalora")? {
                true => Some(config.count("qalora_group_size")?.unwrap_or(16)),
                false => None,
            },
            mutates_base: mutating.iter().any(|m| init.starts_with(m)).then(|| init.to_string()),
            initial: Initial::of(init),
            target_parameters: config.texts("target_parameters")?.into_iter().map(str::to_string).collect(),
        })
    }
}

impl Method for Lora {
    fn parameters(&self) -> &'static [&'static str] {
        &["lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector", "lora_diag"]
    }

    fn plan(&self, modules: &[Module], planner: &mut Planner<'_>) -> Result<(), Error> {
        if let Some(init) = &self.mutates_base {
            planner.notes.push(format!(
                "the adapter was initialised from the base's own weights (init_lora_weights = {init:?}), which changed \
                 them: the base given here must be that changed one, unless the adapter was converted when it was saved"
            ));
        }
        if self.initial.is_some() {
            planner.notes.push(
                "the adapter began with a part of the base (init_lora_weights), which is taken out of each weight that it \
                 adapts, as PEFT does when it loads the adapter; for a base that was saved without that part, set \
                 init_lora_weights to true"
                    .into(),
            );
        }
        // Modules of one path come one after the other.
        for layers in modules.chunk_by(|a, b| a.path == b.path) {
            let (path, mut layers) = (&layers[0].path, Vec::from_iter(layers));
            // Innermost first.
            layers.sort_by_key(|layer| std::cmp::Reverse(layer.depth));
            let parameters = self.parameters_of(path, planner);
            if !parameters.is_empty() {
                experts::plan(self, path, &parameters, &layers, planner)?;
            } else {
                for layer in layers {
                    self.plan_layer(layer, planner)?;
                }
            }
        }
        Ok(())
    }
}

impl Lora {
    /// Rank and scale of a module (or parameter) by its path, where the stored rank is one of those
    /// that the configuration allows; else the rank it asks for.
    pub(crate) fn rank_and_scale(&self, path: &str, stored: u64) -> Result<(u64, f64), u64> {
        self.scaling.of(path, stored)
    }

    /// Those of `target_parameters` that are parameters of this module. One without a module before it is of
    /// every module that has such a parameter; a module of another kind, such as a linear layer, has a weight alone.
    fn parameters_of(&self, path: &str, planner: &Planner<'_>) -> Vec<&str> {
        let belongs = |target: &&str| match target.rsplit_once('.') {
            Some((module, _)) => path == module || path.ends_with(&format!(".{module}")),
            None => *target == "weight" || !planner.has_weight(path),
        };
        let targets = self.target_parameters.iter().map(String::as_str).filter(belongs);
        targets.map(|target| target.rsplit('.').next().unwrap_or(target)).collect()
    }

    pub(crate) fn label(&self) -> &'static str {
        if self.block_diagonal.is_some() {
            return "BD-LoRA";
        }
        if self.pool.is_some() {
            return "QALoRA";
        }
        if self.kasa {
            return "KaSA";
        }
        match (self.dora, self.rank_stabilised) {
            (false, false) => "LoRA",
            (false, true) => "rsLoRA",
            (true, false) => "DoRA",
            (true, true) => "DoRA+rsLoRA",
        }
    }

    fn plan_layer(&self, module: &Module, planner: &mut Planner<'_>) -> Result<(), Error> {
        if module.get("lora_embedding_A").or(module.get("lora_embedding_B")).is_some() {
            self.plan_embedding(module, planner)
        } else {
            self.plan_matrix(module, planner)
        }
    }

    /// Checks that `a` is `[rank, ..]` with the rank that the configuration gives the module.
    fn check_rank(&self, module: &Module, a: usize, planner: &Planner<'_>) -> Result<(u64, f64), Error> {
        match planner.adapter_shape(a) {
            [found, _, ..] => self
                .rank_and_scale(&module.path, *found)
                .map_err(|expected| planner.rank_error(module, a, *found, expected)),
            _ => Err(Error::Field {
                path: planner.adapter.weights().path().into(),
                field: planner.adapter_name(a).into(),
                found: format!("of shape {:?}", planner.adapter_shape(a)),
                expected: "two dimensions at least; a vector or an empty tensor here is one shard of a DeepSpeed ZeRO-3 \
                           or FSDP run, saved without gathering it first"
                    .into(),
            }),
        }
    }

    fn plan_embedding(&self, module: &Module, planner: &mut Planner<'_>) -> Result<(), Error> {
        let a = module.need("lora_embedding_A", planner)?;
        let b = module.need("lora_embedding_B", planner)?;
        let slot = planner.weight_slot(module, a)?;
        planner.check_editable(slot)?;
        let (rank, scale) = self.check_rank(module, a, planner)?;
        let shape = planner.slots[slot].info.shape.clone();
        let [vocabulary, dim] = shape[..] else {
            return Err(planner.shape_error(a, slot, "an embedding of two dimensions".into()));
        };
        planner.expect_shape(a, slot, &[rank, vocabulary])?;
        planner.expect_shape(b, slot, &[dim, rank])?;
        let edit = LowRank {
            left: Factor::by_rank(a, vocabulary),
            right: Factor::by_outer(b, rank),
            rank: rank as usize,
            groups: 1,
            rows_per_group: vocabulary as usize,
            cols: dim as usize,
            scale,
            exact: planner.is_narrow(a) && planner.is_narrow(b),
        };
        planner.edit(slot, self.label(), edit);
        if let Some(magnitude) = self.magnitude(module, slot, dim, planner)? {
            planner.edit(slot, self.label(), ColumnMagnitude { magnitude });
        }
        Ok(())
    }

    fn plan_matrix(&self, module: &Module, planner: &mut Planner<'_>) -> Result<(), Error> {
        let a = module.need("lora_A", planner)?;
        let b = module.need("lora_B", planner)?;
        let features = |tensor: usize, at: usize| planner.adapter_shape(tensor).get(at).copied();
        let features = Features { out: features(b, 0), input: features(a, 1) };
        let layer = planner.layer(module, a, features)?;
        let (rank, scale) = self.check_rank(module, a, planner)?;
        if self.kasa {
            return self.plan_kasa(module, &layer, (a, b), (rank, scale), planner);
        }
        if let Some(diagonal) = module.get("lora_diag") {
            let name = planner.adapter_name(diagonal);
            return Err(planner.adapter.config().not_understood(
                "kasa_config",
                format!("{name:?} is a diagonal of KaSA, but kasa_config is not set"),
            ));
        }
        if let Some((storage, scale)) = self.storage(module, a, &layer, scale, planner) {
            if self.dora {
                return Err(planner.adapter.config().not_understood(
                    "use_dora",
                    "with factors that are block-diagonal or pooled, PEFT does not have it",
                ));
            }
            let [a, b] = [(a, storage[0]), (b, storage[1])];
            return Composed { a, b, diagonal: None, rank, scale }.plan(&layer, self.label(), planner);
        }
        let Layer { slot, shape, out, transposed, .. } = layer.clone();
        let (rows, cols) = (layer.rows(), layer.cols());
        let exact = planner.is_narrow(a) && planner.is_narrow(b);
        let (left, right) = if transposed {
            planner.expect_shape(a, slot, &[rank, shape[0]])?;
            planner.expect_shape(b, slot, &[shape[1], rank])?;
            (Factor::by_rank(a, shape[0]), Factor::by_outer(b, rank))
        } else {
            let mut a_shape = shape.clone();
            a_shape[0] = rank;
            planner.expect_shape(a, slot, &a_shape)?;
            let mut b_shape = vec![1; shape.len()];
            (b_shape[0], b_shape[1]) = (shape[0], rank);
            planner.expect_shape(b, slot, &b_shape)?;
            (Factor::by_outer(b, rank), Factor::by_rank(a, cols))
        };
        // A head that the adapter holds was saved without that part.
        let saved_without = matches!(planner.slots[slot].origin, Origin::Adapter(_));
        if let Some(initial) = self.initial.filter(|_| !layer.is_conv() && !saved_without) {
            self.plan_initial(initial, &layer, a, (rank, scale), planner)?;
        }
        let edit = LowRank {
            left,
            right,
            rank: rank as usize,
            groups: 1,
            rows_per_group: rows as usize,
            cols: cols as usize,
            scale,
            exact,
        };
        planner.edit(slot, self.label(), edit);
        if let Some(magnitude) = self.magnitude(module, slot, out, planner)? {
            if transposed {
                planner.edit(slot, self.label(), ColumnMagnitude { magnitude });
            } else {
                planner.edit(slot, self.label(), RowMagnitude { magnitude });
            }
        }
        if let Some(bias) = module.get("lora_B.bias") {
            let slot = planner.resolve(bias, &format!("{}.bias", module.path))?;
            planner.check_editable(slot)?;
            planner.expect_shape(bias, slot, &[out])?;
            planner.expect_base(bias, slot, &[out])?;
            planner.edit(slot, self.label(), AddScaled { tensor: bias, scale });
        }
        Ok(())
    }

    /// Takes out what the adapter began with.
    fn plan_initial(
        &self,
        initial: Initial,
        layer: &Layer,
        a: usize,
        (rank, scale): (u64, f64),
        planner: &mut Planner<'_>,
    ) -> Result<(), Error> {
        if initial == Initial::Orthonormal {
            planner.expect_plain(a, layer)?;
        }
        if rank > layer.out.min(layer.input) {
            let expected = format!("a rank of at most {}", layer.out.min(layer.input));
            return Err(planner.shape_error(a, layer.slot, expected));
        }
        let taken = TakenOut { initial, rank: rank as usize, transposed: layer.transposed };
        // PiSSA's initial factors are divided by the scale beforehand.
        let scale = if initial == Initial::Orthonormal { scale } else { 1.0 };
        let product = Product::new(planner, layer, a, rank, -scale, taken)?;
        planner.edit(layer.slot, self.label(), product.holding(decomposition_bytes(layer)));
        Ok(())
    }

    fn plan_kasa(
        &self,
        module: &Module,
        layer: &Layer,
        (a, b): (usize, usize),
        (rank, scale): (u64, f64),
        planner: &mut Planner<'_>,
    ) -> Result<(), Error> {
        let diagonal = module.need("lora_diag", planner)?;
        planner.expect_plain(a, layer)?;
        let not_kasas = module.get("lora_B.bias").or(module.get("lora_magnitude_vector"));
        if layer.is_conv() || self.dora || not_kasas.is_some() {
            return Err(planner.adapter.config().not_understood(
                "kasa_config",
                format!("PEFT has KaSA on plain linear layers only, not on {}", module.path),
            ));
        }
        if rank >= layer.out.min(layer.input) {
            let expected = format!("a rank below {}", layer.out.min(layer.input));
            return Err(planner.shape_error(a, layer.slot, expected));
        }
        planner.expect_shape(a, layer.slot, &[rank, layer.input])?;
        planner.expect_shape(b, layer.slot, &[layer.out, rank])?;
        planner.expect_shape(diagonal, layer.slot, &[rank])?;
        let factors = Kasa { a, b, diagonal, rank: rank as usize, scale };
        let product = Product::new(planner, layer, a, 2 * rank, 1.0, factors)?;
        planner.edit(layer.slot, self.label(), product.holding(decomposition_bytes(layer)));
        Ok(())
    }

    /// How both factors of a module are stored, where not densely, and the scale of their product.
    fn storage(
        &self,
        module: &Module,
        a: usize,
        layer: &Layer,
        scale: f64,
        planner: &Planner<'_>,
    ) -> Option<([Storage; 2], f64)> {
        let blocks = self.block_diagonal.as_ref().map(|blocks| blocks.storage(&module.path));
        if let Some(storage) = blocks.filter(|storage| *storage != [Storage::Dense; 2]) {
            return Some((storage, scale));
        }
        // PEFT pools on GPTQ layers only; the tensor tells where it did.
        let pooled = |group: &u64| planner.adapter_shape(a).get(1) == Some(&(layer.input / group));
        let group = self.pool.filter(|group| *group > 1).filter(pooled)?;
        // The means of `in / g` groups, times their number: sums, times `in / g²`.
        let scale = scale * (layer.input / group) as f64 / group as f64;
        Some(([Storage::Pooled(group), Storage::Dense], scale))
    }

    /// DoRA's magnitude vector, of `out` elements however it is shaped.
    fn magnitude(
        &self,
        module: &Module,
        slot: usize,
        out: u64,
        planner: &Planner<'_>,
    ) -> Result<Option<usize>, Error> {
        if !self.dora {
            return match module.get("lora_magnitude_vector") {
                None => Ok(None),
                Some(_) => Err(planner.adapter.config().not_understood(
                    "use_dora",
                    format!("{} has a DoRA magnitude, but use_dora is not set", module.path),
                )),
            };
        }
        let magnitude = module.need("lora_magnitude_vector", planner)?;
        if planner.adapter.tensors()[magnitude].elements() != out {
            return Err(planner.shape_error(magnitude, slot, format!("{out} magnitudes")));
        }
        Ok(Some(magnitude))
    }
}

/// BD-LoRA's configuration: which modules have a block-diagonal factor.
#[derive(Debug)]
struct BlockDiagonal {
    /// Parts of the names of modules.
    a: Vec<String>,
    b: Vec<String>,
    blocks: u64,
}

impl BlockDiagonal {
    fn read(config: &AdapterConfig) -> Result<Option<Self>, Error> {
        let Some(value) = config.value("use_bdlora").filter(|v| *v != &Value::Bool(false)) else {
            return Ok(None);
        };
        let wrong = || config.wrong("use_bdlora", "target_modules_bd_a, target_modules_bd_b and nblocks");
        let names = |field: &str| match value.get(field) {
            None | Some(Value::Null) => Ok(vec![]),
            Some(names) => serde_json::from_value::<Vec<String>>(names.clone()).map_err(|_| wrong()),
        };
        // PEFT's own default.
        let blocks = value.get("nblocks").map_or(Some(1), Value::as_u64).filter(|n| *n > 0);
        Ok(Some(Self {
            a: names("target_modules_bd_a")?,
            b: names("target_modules_bd_b")?,
            blocks: blocks.ok_or_else(wrong)?,
        }))
    }

    fn storage(&self, path: &str) -> [Storage; 2] {
        let last = path.rsplit('.').next().unwrap_or_default();
        [&self.a, &self.b].map(|parts| {
            let named = parts.iter().any(|part| last.contains(part.as_str()));
            if named { Storage::Blocks(self.blocks) } else { Storage::Dense }
        })
    }
}

/// The factors of one module, for combining adapters.
#[derive(Debug)]
pub(crate) struct Pair {
    pub(crate) rank: u64,
    pub(crate) scale: f64,
    /// Tensors of the adapter.
    pub(crate) a: usize,
    pub(crate) b: usize,
    /// `[rank, in, ..]`.
    pub(crate) a_shape: Vec<u64>,
    /// `[out, rank, ..]`.
    pub(crate) b_shape: Vec<u64>,
    /// As PEFT writes them.
    pub(crate) a_name: String,
    pub(crate) b_name: String,
}

/// An adapter that is plain LoRA and nothing else.
#[derive(Debug)]
pub(crate) struct Plain {
    /// The factors of each module.
    pub(crate) pairs: BTreeMap<String, Pair>,
    /// The largest rank that its configuration names.
    pub(crate) largest_rank: u64,
    /// Tensors that are the base's own: PEFT saves an embedding or head whole beside the factors that it
    /// gets.
    pub(crate) embeddings: Vec<usize>,
}

/// Reads an adapter that is plain LoRA; an error says what it is besides.
pub(crate) fn plain(adapter: &Adapter) -> Result<Plain, Error> {
    let config = adapter.config();
    let cannot = |what: String| Error::Combination(format!("{} {what}", adapter.dir().display()));
    if config.peft_type()? != METHOD.peft_type {
        return Err(cannot(format!("is of {}; only LoRA adapters can be combined", config.peft_type()?)));
    }
    let lora = Lora::read(config)?;
    let more = [
        (lora.dora, "DoRA: magnitudes do not add up"),
        (lora.block_diagonal.is_some(), "BD-LoRA"),
        (lora.pool.is_some(), "QALoRA"),
        (lora.kasa, "KaSA: the base's directions are taken out once, not by each"),
        (lora.initial.is_some(), "PiSSA or OLoRA: what it takes out of the base is not in its factors"),
        (!lora.target_parameters.is_empty(), "LoRA on target_parameters"),
    ];
    if let Some((_, what)) = more.iter().find(|(is, _)| *is) {
        return Err(cannot(format!("is {what}")));
    }
    let sorted = sort_tensors(adapter, lora.parameters())?;
    let (embeddings, other): (Vec<_>, Vec<_>) =
        sorted.whole.into_iter().partition(|(_, name)| saved::is_the_bases(config, name));
    if let Some((_, name)) = other.first().or(sorted.tokens.first()) {
        return Err(cannot(format!("holds {name} whole, beside its factors")));
    }
    let embeddings = embeddings.into_iter().map(|(tensor, _)| tensor).collect();
    let mut pairs = BTreeMap::new();
    for module in sorted.modules {
        let (a, b, stem) = match (module.get("lora_A"), module.get("lora_embedding_A")) {
            (Some(a), None) => (a, module.get("lora_B"), "lora_"),
            (None, Some(a)) => (a, module.get("lora_embedding_B"), "lora_embedding_"),
            _ => return Err(cannot(format!("lacks a factor of {}", module.path))),
        };
        let b = b.ok_or_else(|| cannot(format!("lacks a factor of {}", module.path)))?;
        if module.tensors.len() > 2 {
            return Err(cannot(format!("has a bias or a magnitude beside the factors of {}", module.path)));
        }
        let shape = |tensor: usize| adapter.tensors()[tensor].shape.clone();
        let (a_shape, b_shape) = (shape(a), shape(b));
        let stored = a_shape.first().copied().unwrap_or(0);
        if a_shape.len() < 2 || b_shape.len() < 2 || b_shape[1] != stored {
            return Err(cannot(format!(
                "has factors of shapes {a_shape:?} and {b_shape:?} for {}",
                module.path
            )));
        }
        if a_shape.contains(&0) || b_shape.contains(&0) || b_shape[2..].iter().any(|n| *n != 1) {
            return Err(cannot(format!(
                "has factors of shapes {a_shape:?} and {b_shape:?} for {}",
                module.path
            )));
        }
        let (rank, scale) = lora.scaling.of(&module.path, stored).map_err(|expected| Error::Rank {
            module: module.path.clone(),
            tensor: adapter.tensors()[a].name.clone(),
            found: stored,
            expected,
        })?;
        let weight = if stem == "lora_" { ".weight" } else { "" };
        let name = |factor: &str| format!("base_model.model.{}.{stem}{factor}{weight}", module.path);
        let (a_name, b_name) = (name("A"), name("B"));
        pairs.insert(module.path.clone(), Pair { rank, scale, a, b, a_shape, b_shape, a_name, b_name });
    }
    if pairs.is_empty() {
        return Err(Error::Empty);
    }
    Ok(Plain { pairs, largest_rank: lora.scaling.largest_rank(), embeddings })
}
