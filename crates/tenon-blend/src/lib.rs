//! Whole checkpoints of one shape merged with one another: linear, SLERP and other
//! means on the sphere, task arithmetic, TIES, DARE, DELLA, model breadcrumbs, SCE,
//! RAM, model stock, layers stacked anew.
//!
//! [`BlendConfig::parse`] reads mergekit's YAML. [`BlendPlan::new`] joins it
//! with the models it names, finding every mistake from headers alone. The
//! plan is a [`TensorSource`](tenon_checkpoint::TensorSource): nothing is
//! computed before a tile is asked for. A model may itself be any source, such
//! as a base with an adapter merged into it.
//!
//! The standard is mergekit 0.1.5. Which weights a method keeps is decided on
//! the numbers that mergekit decides on (rounded to the configured `dtype`);
//! what becomes of them is computed in `f64` and rounded once. Of equal
//! magnitudes those that come first in the tensor are kept, where mergekit
//! leaves that to a sort that is not stable.
//!
//! Memory is tiles. Methods that must know a whole tensor first (an angle, a
//! threshold, a norm) read it once or twice more, also by tiles.

mod alignment;
mod config;
mod differences;
mod error;
mod kernel;
mod layers;
mod method;
mod node;
mod plan;
mod planner;
mod recipe;
mod select;
mod setting;
mod source;
mod span;
mod strip;
mod survey;
mod tokenizer;

pub use config::{BlendConfig, ChatTemplate, ModelReference};
pub use error::{ConfigFault, Error, ShapeMismatch};
pub use method::Method;
pub use plan::{BlendOptions, BlendPlan, BlendedTensor, Model};
pub use tokenizer::{TokenizerChoice, TokenizerSource, Vocabularies, Vocabulary};
