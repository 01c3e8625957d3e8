//! Adapters, the methods they were trained with, and the merge plan.
//!
//! [`Adapter::open`] reads an adapter directory's headers. [`MergePlan::new`]
//! joins it with a base, finding every mistake before a tensor byte is read.
//! The plan is a [`TensorSource`](tenon_checkpoint::TensorSource): base plus
//! edits, evaluated tile by tile, rounded once.
//!
//! A method (LoRA, ...) is one file under `method/`: it takes its own tensors
//! and says which [`Edit`]s they make. The arithmetic is in [`kernel`], in
//! `f64` throughout; `docs/arithmetic.md` tells what is rounded where.

mod adapter;
mod addition;
mod clusters;
mod combine;
mod config;
mod edit;
mod error;
mod experts;
pub mod kernel;
mod measure;
mod method;
mod naming;
#[cfg(test)]
mod numbers;
mod pattern;
mod plan;
mod planner;
mod random;
mod renamed;
mod replicate;
mod saved;
mod stack;
mod stream;
mod svd;
mod symmetric;
mod task;
mod tridiagonal;
mod tying;
mod weight;

pub use adapter::Adapter;
pub use addition::{Addition, Factors};
pub use combine::{Combination, Combined, How, MajoritySign};
pub use config::AdapterConfig;
pub use edit::{Edit, PreparedEdit, Tile, ValueRows};
pub use error::{Error, ShapeMismatch};
pub use measure::TensorMeasure;
pub use method::delta::FULL_DELTA;
pub use method::{KnownMethod, methods};
pub use plan::{Fate, MergeOptions, MergePlan, OutputDtype, PlannedTensor};
pub use stack::AnyRows;
