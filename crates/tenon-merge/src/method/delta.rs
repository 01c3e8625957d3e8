//! Full-weight deltas: `W' = W + D`, with a `D` of the base's shape for every tensor that was trained.
//!
//! As FastChat's and LLaVA's `apply_delta` have it: a checkpoint with the base's names that holds differences. An
//! embedding or head with more rows than the base's has the new rows whole, since the base was trained with
//! zeros there. No PEFT method, and nothing in the files says what they are; whoever opens them does, and names
//! each tensor `X` of the checkpoint `X.delta`.

use super::{Method, Module};
use crate::planner::{Origin, Planner};
use crate::{Error, saved};

/// What stands for the `peft_type` of a full-weight delta, which PEFT has none for.
pub const FULL_DELTA: &str = "FULL_DELTA";

#[derive(Debug)]
pub(super) struct Delta;

/// Buffers that old checkpoints hold beside their weights: no weights, and computed anew by who loads them.
const BUFFERS: [&str; 3] = [".rotary_emb.inv_freq", ".masked_bias", ".attention.bias"];

impl Method for Delta {
    fn parameters(&self) -> &'static [&'static str] {
        &["delta"]
    }

    fn plan(&self, modules: &[Module], planner: &mut Planner<'_>) -> Result<(), Error> {
        for module in modules {
            let delta = module.need("delta", planner)?;
            let slot = match planner.resolve(delta, &module.path) {
                Err(Error::NoHome { .. }) if BUFFERS.iter().any(|end| module.path.ends_with(end)) => continue,
                other => other?,
            };
            planner.check_editable(slot)?;
            let info = planner.adapter.tensors()[delta].clone();
            if !info.dtype.is_editable() {
                return Err(Error::AdapterDtype { tensor: info.name, dtype: info.dtype.name() });
            }
            let Origin::Base(base) = planner.slots[slot].origin else {
                let first = planner.slots[slot].info.name.clone();
                return Err(Error::Twice { first, second: info.name });
            };
            if planner.slots[slot].info.shape != info.shape {
                let from = planner.slots[slot].info.shape.first().copied().unwrap_or(0);
                if info.shape.first().is_none_or(|rows| *rows < from) {
                    let expected = format!("{:?}", planner.slots[slot].info.shape);
                    return Err(planner.shape_error(delta, slot, expected));
                }
                saved::grow(planner, delta, slot, &info, |name, to| {
                    format!(
                        "{name}: the vocabulary has {to} rows in the delta, {from} in the base; the new ones are taken"
                    )
                })?;
                planner.slots[slot].info.shape = info.shape;
            }
            let slot = &mut planner.slots[slot];
            slot.origin = Origin::Sum { base, delta, scale: 1.0 };
            slot.method = Some("full-weight delta");
        }
        let left = planner.slots.iter().filter(|slot| matches!(slot.origin, Origin::Base(_))).count();
        if left > 0 {
            planner
                .notes
                .push(format!("{left} tensors of the base are not in the delta and stay as they are"));
        }
        Ok(())
    }
}
