//! The verb `combine`: several LoRA adapters made into one adapter directory.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tenon_checkpoint::{
    Error as CheckpointError, Observer, ShardLayout, StagingDir, TensorSource, WriteOptions, write_shards,
};
use tenon_merge::{Adapter, Combination, Combined};

use crate::Error;

/// Combines adapters, each with its weight, into a new adapter directory at `out`, which appears whole
/// or not at all. Returns the size of its weights in bytes.
///
/// The result is an adapter in PEFT's layout like any other: it can be merged, saved or registered.
///
/// # Errors
/// When an adapter cannot be read or is not plain LoRA, when the adapters do not go together, or when
/// `out` exists or cannot be written.
pub fn combine(
    adapters: &[(PathBuf, f64)],
    what: &Combination,
    out: &Path,
    observer: &dyn Observer,
) -> Result<u64, Error> {
    PlannedCombination::plan(adapters, what, out)?.run(observer)
}

/// A combination that can be written: every check passed, no tensor byte read.
pub(crate) struct PlannedCombination {
    combined: Combined,
    out: PathBuf,
}

impl PlannedCombination {
    pub(crate) fn plan(adapters: &[(PathBuf, f64)], what: &Combination, out: &Path) -> Result<Self, Error> {
        StagingDir::check_target(out, false).map_err(taken)?;
        let open = |(dir, weight): &(PathBuf, f64)| Ok((Arc::new(Adapter::open(dir)?), *weight));
        let combined = Combined::new(adapters.iter().map(open).collect::<Result<_, Error>>()?, what)?;
        Ok(Self { combined, out: out.into() })
    }

    /// Where it is written to.
    pub(crate) fn out(&self) -> &Path {
        &self.out
    }

    /// Writes the adapter; gives the size of its weights in bytes.
    pub(crate) fn run(&self, observer: &dyn Observer) -> Result<u64, Error> {
        let Self { combined, out } = self;
        let mut layout = ShardLayout::new(combined.tensors(), u64::MAX);
        for shard in &mut layout.shards {
            shard.name = "adapter_model.safetensors".into();
        }
        let staging = StagingDir::create(out, false).map_err(taken)?;
        let config = serde_json::Value::from(combined.config().clone());
        staging.write_file("adapter_config.json", format!("{config:#}\n").as_bytes())?;
        let options = WriteOptions::default();
        let (written, _) = write_shards(combined, &layout, staging.path(), &options, &[], &[], observer)?;
        for (adapter, _) in combined.adapters() {
            adapter.weights().check_unchanged()?;
        }
        staging.publish().map_err(taken)?;
        Ok(written.iter().map(|file| file.len).sum())
    }
}

/// An adapter is not replaced, so nothing is said of how.
fn taken(error: CheckpointError) -> Error {
    match error {
        CheckpointError::TargetExists { path } => Error::OutExists { out: path },
        other => other.into(),
    }
}
