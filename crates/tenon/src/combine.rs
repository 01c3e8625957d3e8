//! The verb `combine`: several LoRA adapters made into one adapter directory.

use std::path::{Path, PathBuf};

use tenon_checkpoint::StagingDir;
use tenon_merge::{Adapter, Combination};

use crate::Error;

/// Combines adapters, each with its weight, into a new adapter directory at `out`, which appears whole
/// or not at all. Returns the size of its weights in bytes.
///
/// The result is an adapter in PEFT's layout like any other: it can be merged, saved or registered.
///
/// # Errors
/// When an adapter cannot be read or is not plain LoRA, when the adapters do not go together, or when
/// `out` exists or cannot be written.
pub fn combine(adapters: &[(PathBuf, f64)], what: &Combination, out: &Path) -> Result<u64, Error> {
    StagingDir::check_target(out, false)?;
    let open = |(dir, weight): &(PathBuf, f64)| Ok((Adapter::open(dir)?, *weight));
    let adapters = adapters.iter().map(open).collect::<Result<Vec<_>, Error>>()?;
    let combined = tenon_merge::combine(&adapters, what)?;
    let staging = StagingDir::create(out, false)?;
    staging.write_file("adapter_config.json", combined.config.as_bytes())?;
    staging.write_file("adapter_model.safetensors", &combined.weights)?;
    staging.publish()?;
    Ok(combined.weights.len() as u64)
}
