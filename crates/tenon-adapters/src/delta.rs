//! Full-weight deltas: a checkpoint that holds what a training added to each tensor of its base.
//!
//! It looks like a model, and only who made it knows that it is none; so nothing here recognises one. FastChat
//! (`fastchat/model/apply_delta.py`), LLaVA and others publish models this way.

use std::path::Path;
use std::sync::Arc;

use serde_json::Map;
use tenon_checkpoint::{Checkpoint, TensorSource};

use crate::{Error, Translated, Translation};

/// Reads a directory as a delta: its tensors, named `X.delta` for the base's `X`. Who merges has a `peft_type` for
/// it, PEFT has none.
pub fn delta(dir: &Path) -> Result<Translation, Error> {
    let file = Arc::new(Checkpoint::open(dir)?);
    let mut out = Translated::new(file.clone());
    for (tensor, info) in file.tensors().iter().enumerate() {
        out.add(format!("{}.delta", info.name), tensor);
    }
    let notes = vec![format!("a full-weight delta of {} tensors, added to the base's", file.tensors().len())];
    Ok(Translation { config: Map::new(), tensors: Arc::new(out), file, notes })
}
