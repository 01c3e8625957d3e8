//! Several adapters merged one after the other: each changes what those before it made.
//!
//! A plan is a [`TensorSource`], so the plan of one adapter is the base of
//! the next. All but the last yield `f64` where they changed something, so
//! that the result is rounded once, to the type that the base's tensor has.

use std::sync::Arc;

use serde_json::Value;
use tenon_checkpoint::{Error as SourceError, FileRange, Rows, TensorInfo, TensorSource};

use crate::plan::{Fate, Stage};
use crate::planner::{Origin, Slot};
use crate::{Adapter, Error, MergeOptions, MergePlan};

impl MergePlan {
    /// Plans the merge of several adapters, each with its weight, one after the other into `base`. Reads no
    /// tensor.
    ///
    /// A weight scales what its adapter adds, as PEFT's `set_scale` does; with one other than 1, an adapter
    /// that does more than add is refused.
    pub fn stack(
        base: Arc<dyn TensorSource>,
        config: &Value,
        adapters: Vec<(Arc<Adapter>, f64)>,
        options: MergeOptions,
    ) -> Result<Self, Error> {
        let several = adapters.len() > 1;
        let mut adapters = adapters.into_iter().peekable();
        let mut below: Option<Arc<MergePlan>> = None;
        while let Some((adapter, weight)) = adapters.next() {
            let is_last = adapters.peek().is_none();
            let source = below.clone().map(|plan| Arc::new(AnyRows::new(plan)) as Arc<dyn TensorSource>);
            let source = source.unwrap_or_else(|| base.clone());
            let stage = Stage { weight, below: below.clone(), is_last };
            let config = below.as_ref().map_or(config, |plan| plan.config());
            let dir = adapter.dir().to_path_buf();
            let plan = Self::stage(source, config, adapter, options.clone(), stage);
            let plan = plan.map_err(|error| match several {
                true => Error::OfAdapter { dir, error: Box::new(error) },
                false => error,
            })?;
            if is_last {
                return Ok(plan);
            }
            below = Some(Arc::new(plan));
        }
        Err(Error::Combination("no adapter was given".into()))
    }

    /// The plans of the adapters merged before, in order, and this one.
    pub fn stages(&self) -> Vec<&MergePlan> {
        let mut stages: Vec<&MergePlan> =
            std::iter::successors(Some(self), |plan| plan.below.as_deref()).collect();
        stages.reverse();
        stages
    }

    /// What happens to a tensor, through all stages.
    pub(crate) fn fate(&self, slot: &Slot) -> Fate {
        let before = match (slot.origin, &self.below) {
            (Origin::Base(tensor) | Origin::Sum { base: tensor, .. }, Some(below)) => {
                Some(below.fate(&below.slots[tensor]))
            }
            _ => None,
        };
        match (slot.origin, before) {
            _ if slot.new => Fate::Added,
            (Origin::Adapter(_), _) => Fate::Replaced,
            (_, Some(Fate::Added)) => Fate::Added,
            (Origin::Sum { .. }, _) => Fate::Edited,
            _ if !slot.edits.is_empty() => Fate::Edited,
            (_, Some(before @ (Fate::Edited | Fate::Replaced))) => before,
            _ if slot.stored != slot.info.dtype => Fate::Converted,
            _ => Fate::Copied,
        }
    }

    /// The methods that make a tensor, in order.
    pub(crate) fn methods(&self, slot: &Slot) -> Vec<&'static str> {
        let mut methods = match (slot.origin, &self.below) {
            (Origin::Base(tensor) | Origin::Sum { base: tensor, .. }, Some(below)) => {
                below.methods(&below.slots[tensor])
            }
            _ => vec![],
        };
        methods.extend(slot.method);
        methods
    }
}

/// A plan that can be read from any row on. What an edit takes together means nothing to whatever makes
/// something else of the result, such as the edits of the next adapter.
pub struct AnyRows {
    plan: Arc<MergePlan>,
    infos: Vec<TensorInfo>,
}

impl AnyRows {
    /// The tensors of `plan`.
    pub fn new(plan: Arc<MergePlan>) -> Self {
        let infos = plan.tensors().iter().map(|info| TensorInfo { row_block: 1, ..info.clone() }).collect();
        Self { plan, infos }
    }
}

impl TensorSource for AnyRows {
    fn tensors(&self) -> &[TensorInfo] {
        &self.infos
    }

    fn read_rows(&self, tensor: usize, rows: Rows, out: &mut [u8]) -> Result<(), SourceError> {
        let info = &self.plan.tensors()[tensor];
        let block = info.row_block.max(1);
        let whole = rows.start / block * block..rows.end.next_multiple_of(block).min(info.rows());
        if whole == rows {
            return self.plan.read_rows(tensor, rows, out);
        }
        let mut bytes = vec![0; ((whole.end - whole.start) * info.row_bytes()) as usize];
        self.plan.read_rows(tensor, whole.clone(), &mut bytes)?;
        let start = ((rows.start - whole.start) * info.row_bytes()) as usize;
        out.copy_from_slice(&bytes[start..start + out.len()]);
        Ok(())
    }

    fn lies_at(&self, tensor: usize) -> Option<FileRange<'_>> {
        self.plan.lies_at(tensor)
    }
}
