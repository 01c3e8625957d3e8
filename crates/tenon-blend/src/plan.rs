//! A configuration and its models, joined: which tensors make each tensor of the result, and how.

use std::sync::{Arc, Mutex};

use serde_json::Value;
use tenon_checkpoint::{Dtype, TensorInfo, TensorSource};
use tenon_merge::kernel::Level;

use crate::method::Sparsity;
use crate::select::Choice;

use crate::survey::Surveys;
use crate::{BlendConfig, Error, ModelReference, planner};

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
    pub(crate) stored: Dtype,
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
    Linear { weights: Vec<f64>, divisor: f64 },
    /// Along an arc.
    Arc(ArcRecipe),
    /// Sparse differences from a base, summed.
    Differences(Differences),
    /// Between the base and the mean of the others.
    Stock { base: usize },
    /// Towards the other, where it is near.
    NearSwap { base: usize, t: f64 },
}

/// `t` of the way from input `from` to input `to`, or between their differences from `base`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ArcRecipe {
    pub(crate) t: f64,
    pub(crate) from: usize,
    pub(crate) to: usize,
    pub(crate) base: Option<usize>,
    /// slerp's idea of when the arc is a straight line, not nuslerp's.
    pub(crate) is_slerp: bool,
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
    pub(crate) chance: Option<f64>,
}

/// Elements of a piece of a tensor that is surveyed at once.
const PIECE: u64 = 1 << 16;

impl Tensor {
    pub(crate) fn needs_survey(&self) -> usize {
        match &self.recipe {
            Recipe::Arc(_) | Recipe::Stock { .. } => 1,
            Recipe::Differences(what) => {
                let ranked = what.parts.iter().any(|part| matches!(part.choice, Choice::Ranked(_)));
                let drawn = what.rescale && what.parts.iter().any(|part| part.chance.is_some());
                match (ranked, self.work) {
                    (true, Dtype::BF16) => 2,
                    (true, _) => 3,
                    _ => usize::from(drawn),
                }
            }
            _ => 0,
        }
    }

    /// Rows of a piece.
    pub(crate) fn piece_rows(info: &TensorInfo) -> u64 {
        (PIECE / info.row_len().max(1)).max(1)
    }

    pub(crate) fn counts_ties(&self) -> bool {
        let Recipe::Differences(what) = &self.recipe else { return false };
        what.parts.iter().any(|part| matches!(part.choice, Choice::Ranked(_)))
    }
}

impl BlendPlan {
    /// Joins a configuration with the models it names, given in the order of
    /// [`BlendConfig::models`]. Reads no tensor byte.
    pub fn new(config: &BlendConfig, models: Vec<Model>, options: BlendOptions) -> Result<Self, Error> {
        let (infos, tensors, output) = planner::plan(config, &models)?;
        let mut notes = config.notes().to_vec();
        if config.method.sparsity() == Sparsity::Random {
            notes.push(format!(
                "what {} keeps is drawn from seed {}, by Tenon's own generator; mergekit draws other weights",
                config.method.name(),
                options.seed
            ));
        }
        let surveys = Mutex::default();
        Ok(Self { models, infos, tensors, options, surveys, config: output, notes })
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
