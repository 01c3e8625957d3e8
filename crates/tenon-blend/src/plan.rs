//! A configuration and its models, joined: which tensors make each tensor of the result, and how.

use std::sync::{Arc, Mutex};

use serde_json::Value;
use tenon_checkpoint::{Dtype, TensorInfo, TensorSource};
use tenon_merge::kernel::Level;

use crate::alignment::Alignment;
use crate::method::Sparsity;
use crate::planner::Planned;
use crate::select::Choice;
use crate::span::{Scope, Span};
use crate::survey::Surveys;
use crate::{BlendConfig, Error, ModelReference, Vocabularies, planner};

/// A model to be merged: its tensors and its `config.json`.
pub struct Model {
    /// As the configuration names it.
    pub reference: ModelReference,
    /// Its tensors.
    pub source: Arc<dyn TensorSource>,
    /// Its `config.json`.
    pub config: Value,
}

/// How to compute. Only `seed` decides about bytes.
#[derive(Debug, Clone)]
pub struct BlendOptions {
    /// Instructions to use.
    pub level: Level,
    /// Threads that read a tensor through where a method must know all of it first.
    pub threads: usize,
    /// Seed of what DARE draws.
    pub seed: u64,
    /// Let values through that are not finite.
    pub allow_non_finite: bool,
}

impl Default for BlendOptions {
    fn default() -> Self {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        Self { level: Level::detect(), threads, seed: 0, allow_non_finite: false }
    }
}

/// A blend that can be run: every check passed, no tensor byte read yet. A [`TensorSource`].
pub struct BlendPlan {
    pub(crate) models: Vec<Model>,
    pub(crate) infos: Vec<TensorInfo>,
    pub(crate) tensors: Vec<Tensor>,
    pub(crate) options: BlendOptions,
    pub(crate) surveys: Mutex<Surveys>,
    pub(crate) alignments: Vec<Alignment>,
    config: Value,
    notes: Vec<String>,
}

/// A tensor of the result, as [`BlendPlan::blended`] tells of it.
#[derive(Debug, Clone, PartialEq)]
pub struct BlendedTensor<'a> {
    /// Name, type and shape.
    pub info: &'a TensorInfo,
    /// The models it is made from.
    pub models: Vec<&'a ModelReference>,
    /// How often its inputs are read before the pass that writes it.
    pub surveys: usize,
}

/// A tensor that goes into another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Input {
    pub(crate) model: usize,
    pub(crate) tensor: usize,
    /// What it is read as.
    pub(crate) stored: Dtype,
    /// Number of the [`Alignment`] through which it is read, where its tokens are not the result's.
    pub(crate) aligned: Option<usize>,
}

/// How a tensor of the result is made.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Tensor {
    pub(crate) inputs: Vec<Input>,
    /// Inputs are rounded to this type first, as the configuration's `dtype` has it.
    pub(crate) work: Dtype,
    pub(crate) recipe: Recipe,
}

/// The arithmetic; numbers of inputs where it does not treat all alike.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Recipe {
    /// All inputs hold the same bytes, and so does the result.
    Same,
    /// `Σ w x / divisor`.
    Sum { weights: Vec<f64>, divisor: f64 },
    /// `Σ w x`, by weights that follow from angles.
    Span(Span),
    /// Sparse differences from a base, summed.
    Differences(Differences),
    /// Differences by how many models have one at a place.
    Reinforced(Reinforced),
    /// Differences where they vary most, by their squares.
    Sce(Sce),
    /// Towards the other, where it is near.
    NearSwap { base: usize, t: f64 },
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Differences {
    pub(crate) base: usize,
    pub(crate) parts: Vec<Part>,
    pub(crate) consensus: bool,
    pub(crate) normalize: bool,
    pub(crate) rescale: bool,
    pub(crate) lambda: f64,
}

/// One difference of several.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Part {
    pub(crate) input: usize,
    pub(crate) weight: f64,
    pub(crate) choice: Choice,
    /// Chance of being kept, where that is drawn.
    pub(crate) chance: Option<Chance>,
}

/// How likely an element of a difference is to be kept.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Chance {
    /// All alike.
    Even(f64),
    /// From the smallest magnitude of a row to its largest.
    ByRank { low: f64, high: f64 },
}

/// Of each difference what is larger than `epsilon`: their mean where several have it, the one alone
/// where one has.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Reinforced {
    pub(crate) base: usize,
    pub(crate) epsilon: f64,
    /// How much more counts what one has alone, by how much it shares: `r` and `alpha`.
    pub(crate) more: Option<(f64, f64)>,
}

/// Of the differences the `share` of places where they vary most; where their sign is the majority's,
/// weighted by their squares.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Sce {
    pub(crate) base: usize,
    pub(crate) share: f64,
}

impl Sce {
    pub(crate) fn selects(&self) -> bool {
        self.share > 0.0 && self.share < 1.0
    }
}

/// Elements of a piece of a tensor that is surveyed at once.
const PIECE: u64 = 1 << 16;

impl Tensor {
    /// How often a tensor is read before the pass that writes it.
    pub(crate) fn needs_survey(&self) -> usize {
        let ranking = if self.work == Dtype::BF16 { 1 } else { 2 };
        match &self.recipe {
            Recipe::Span(span) => usize::from(span.scope != Scope::Rows),
            Recipe::Differences(what) => {
                let ranked = what.parts.iter().any(|part| matches!(part.choice, Choice::Ranked(_)));
                let drawn = what.rescale && what.parts.iter().any(|part| part.chance.is_some());
                if ranked { ranking + 1 } else { usize::from(drawn) }
            }
            Recipe::Reinforced(what) => usize::from(what.more.is_some()),
            Recipe::Sce(what) => 1 + if what.selects() { ranking + 1 } else { 0 },
            _ => 0,
        }
    }

    /// Rows of a piece.
    pub(crate) fn piece_rows(info: &TensorInfo) -> u64 {
        (PIECE / info.row_len().max(1)).max(1).next_multiple_of(info.row_block.max(1))
    }

    /// Whether it matters which of the elements equal to a threshold come first.
    pub(crate) fn counts_ties(&self) -> bool {
        match &self.recipe {
            Recipe::Differences(what) => {
                what.parts.iter().any(|part| matches!(part.choice, Choice::Ranked(_)))
            }
            Recipe::Sce(what) => what.selects(),
            _ => false,
        }
    }

    /// Whether rows are looked at as wholes.
    pub(crate) fn by_rows(&self) -> bool {
        match &self.recipe {
            Recipe::Span(span) => span.scope == Scope::Rows,
            Recipe::Differences(what) => {
                what.parts.iter().any(|part| matches!(part.chance, Some(Chance::ByRank { .. })))
            }
            _ => false,
        }
    }
}

impl BlendPlan {
    /// Joins a configuration with the models it names, given in the order of
    /// [`BlendConfig::models`]. Reads no tensor byte. `vocabularies` must be there where the configuration
    /// asks for a tokenizer; without, embeddings are merged row by row as they are.
    pub fn new(
        config: &BlendConfig,
        models: Vec<Model>,
        vocabularies: Option<&Vocabularies>,
        options: BlendOptions,
    ) -> Result<Self, Error> {
        let Planned { infos, tensors, alignments, config: output } =
            planner::plan(config, &models, vocabularies)?;
        let mut notes = config.notes().to_vec();
        if config.method.sparsity() == Sparsity::Random {
            notes.push(format!(
                "what {} keeps is drawn from seed {}, by Tenon's own generator; mergekit draws other weights",
                config.method.name(),
                options.seed
            ));
        }
        let surveys = Mutex::default();
        Ok(Self { models, infos, tensors, options, surveys, alignments, config: output, notes })
    }

    /// The result's `config.json`.
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// What a person should know before relying on the result.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// All tensors of the result.
    pub fn blended(&self) -> impl Iterator<Item = BlendedTensor<'_>> {
        self.infos.iter().zip(&self.tensors).map(|(info, tensor)| BlendedTensor {
            info,
            models: tensor.inputs.iter().map(|input| &self.models[input.model].reference).collect(),
            surveys: tensor.needs_survey(),
        })
    }
}
