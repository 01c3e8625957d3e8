//! A checkpoint as a conversion reads it: as it lies, or dequantized where it is stored quantized.
//!
//! llama.cpp's converter dequantizes FP8, GPTQ and compressed-tensors before
//! anything else: a weight whose tensor has its name stays in its place, one
//! that has to be put together from several under other names (`X.qweight`)
//! goes behind all others. What else `tenon_dequant` knows goes by the same
//! rule. (`conversion/base.py`, `dequant_model`.)

use std::sync::Arc;

use tenon_checkpoint::{Checkpoint, TensorSource};
use tenon_dequant::{Dequantized, Opened};

use super::files::ModelFiles;
use super::{ModelInput, arch};
use crate::Error;

/// The file of each tensor.
pub(super) fn files(checkpoint: &Checkpoint) -> Vec<usize> {
    (0..checkpoint.tensors().len()).map(|tensor| checkpoint.file_of(tensor)).collect()
}

pub(super) fn open(
    checkpoint: Arc<Checkpoint>,
    files: &ModelFiles,
    directory: String,
) -> Result<ModelInput<'_>, Error> {
    let config = files.json("config.json")?.unwrap_or_default();
    let input = |source: Arc<dyn TensorSource>, places, stored| ModelInput {
        source,
        places,
        stored,
        files,
        directory,
    };
    let model = match tenon_dequant::open(checkpoint.clone(), &config)? {
        Opened::Quantized(model) if !takes_as_it_is(&config, &model) => Arc::new(model),
        Opened::Unknown { scheme, why } => return Err(Error::Stored { scheme, why }),
        _ => {
            let places = self::files(&checkpoint);
            return Ok(input(checkpoint, places, None));
        }
    };
    let places = places(&model, &checkpoint);
    Ok(input(model.clone(), places, Some(model)))
}

/// Whether all that is packed is packed as a GGUF may have it.
fn takes_as_it_is(config: &serde_json::Value, model: &Dequantized) -> bool {
    let takes = |(_, architecture): (_, &dyn arch::Architecture)| architecture.takes_mxfp4();
    model.formats().iter().all(|format| format.name == "MXFP4")
        && arch::configure(config, model.tensors()).is_ok_and(takes)
}

fn places(model: &Dequantized, checkpoint: &Checkpoint) -> Vec<usize> {
    let stored = checkpoint.tensors();
    let files =
        stored.iter().enumerate().map(|(tensor, _)| checkpoint.file_of(tensor) + 1).max().unwrap_or(0);
    let each = model.tensors().iter().enumerate().map(|(tensor, info)| {
        let at = model.stored_at(tensor);
        let behind = if stored[at].name == info.name { 0 } else { files };
        checkpoint.file_of(at) + behind
    });
    each.collect()
}
