//! Model Cards: structured facts in, text out.
//!
//! A [`Card`] is what is known of a model: it serializes as `card.json`, whose
//! schema it documents. [`Card::markdown`] is the model's `README.md`, front
//! matter as the Hugging Face Hub reads it included; [`Card::html`] is a page
//! of its own; [`Card::chart`] is the picture of what the merge changed.
//!
//! Much of a card was written by strangers (the cards of base and adapter, the
//! files of training tools). It is data here: escaped where it is rendered,
//! in one place for each format, and never taken for markup. Where facts come
//! from is not known here, except that [`front_matter`] reads the cards of
//! others.

mod card;
mod chart;
mod deployed;
mod document;
mod figures;
mod render;
mod yaml;

pub use card::{
    AdapterFacts, BaseFacts, Card, FileFacts, Group, LossPoint, Measured, Metric, Modality, ModelFacts, Move,
    Provenance, Setting, Training,
};
pub use deployed::{Deployed, Loss, Quantized, TensorLoss};
pub use yaml::{MAX_YAML_BYTES, YamlError, front_matter, parse_yaml};
