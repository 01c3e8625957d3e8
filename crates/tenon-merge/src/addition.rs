//! What a plan adds to one tensor, for whoever hands an adapter on instead of merging it.

use std::any::Any;
use std::sync::Arc;

use crate::edit::{LowRank, pack};
use crate::{Error, Fate, MergePlan};

/// What a plan does to one tensor, as far as a server that applies adapters could do the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Addition {
    /// Nothing, but a change of its element type perhaps.
    Nothing,
    /// It adds the product of two factors of this rank: LoRA. [`MergePlan::factors`] reads them.
    Product(usize),
    /// Something else, or more than that.
    Otherwise,
}

/// `W + scale * left * right`, whatever the orientation that the adapter keeps its factors in.
#[derive(Debug, Clone)]
pub struct Factors {
    /// `[rows, rank]`, row-major.
    pub left: Arc<[f64]>,
    /// `[rank, cols]`, row-major.
    pub right: Arc<[f64]>,
    /// Number of columns of `left`.
    pub rank: usize,
    /// What the product is multiplied by, such as `alpha / rank`.
    pub scale: f64,
}

impl MergePlan {
    /// What the plan does to a tensor. What several adapters do one after the other is
    /// [`Addition::Otherwise`].
    pub fn addition(&self, tensor: usize) -> Addition {
        let slot = &self.slots[tensor];
        match (self.fate(slot), self.low_rank(tensor)) {
            (Fate::Copied | Fate::Converted, _) => Addition::Nothing,
            (_, Some(edit)) => Addition::Product(edit.rank),
            _ => Addition::Otherwise,
        }
    }

    /// The factors of a tensor whose [`addition`](Self::addition) is a product.
    pub fn factors(&self, tensor: usize) -> Result<Option<Factors>, Error> {
        let Some(edit) = self.low_rank(tensor) else { return Ok(None) };
        let LowRank { left, right, rank, rows_per_group, cols, scale, .. } = edit;
        Ok(Some(Factors {
            left: pack(&self.adapter, left, 1, *rows_per_group, *rank, false)?,
            right: pack(&self.adapter, right, 1, *cols, *rank, true)?,
            rank: *rank,
            scale: *scale,
        }))
    }

    fn low_rank(&self, tensor: usize) -> Option<&LowRank> {
        let slot = &self.slots[tensor];
        let [edit] = &slot.edits[..] else { return None };
        if self.fate(slot) != Fate::Edited || self.below.is_some() {
            return None;
        }
        let edit: &dyn Any = &**edit;
        edit.downcast_ref::<LowRank>().filter(|edit| edit.groups == 1)
    }
}
