//! Full-weight deltas: a checkpoint that holds what a training added to each tensor of its base.
//!
//! It looks like a model, and only who made it knows that it is none; so nothing here recognises one. FastChat
//! (`fastchat/model/apply_delta.py`), LLaVA and others publish models this way.

use std::path::Path;
use std::sync::Arc;

use serde_json::Map;
use tenon_checkpoint::{Checkpoint, TensorSource};

use crate::{Error, Translated, Translation};

/// What stands for the `peft_type` of a delta, which PEFT has none for.
pub const FULL_DELTA: &str = "FULL_DELTA";

/// Reads a directory as a delta: its tensors, named `X.delta` for the base's `X`.
pub fn delta(dir: &Path) -> Result<Translation, Error> {
    let file = Arc::new(Checkpoint::open(dir)?);
    let mut out = Translated::new(file.clone());
    for (tensor, info) in file.tensors().iter().enumerate() {
        out.add(format!("{}.delta", info.name), tensor);
    }
    let mut fields = Map::new();
    fields.insert("peft_type".into(), FULL_DELTA.into());
    let notes = vec![format!("a full-weight delta of {} tensors, added to the base's", file.tensors().len())];
    Ok(Translation { config: fields, tensors: Arc::new(out), file, notes })
}
