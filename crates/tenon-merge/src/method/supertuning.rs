//! Super-Tuning: `W' = W + S`, `S` sparse at the weight's largest (or smallest) magnitudes;
//! with a rank, `W' = W + S + s B A`.
//!
//! `supertuning_values [n]` are added at `supertuning_indices [n]`, which number the weight's elements
//! row by row; `s = lora_alpha / r`. Source: PEFT 0.21.2, `tuners/supertuning/layer.py`.
//!
//! An adapter saved without its indices is refused: PEFT then ranks the base's
//! magnitudes anew, and of equal ones, of which 16 bits make many, takes any.

use super::layer::Features;
use super::shira::PreparedSparse;
use super::{KnownMethod, Merging, Method, Module};
use crate::edit::{Factor, LowRank};
use crate::planner::Planner;
use crate::{Adapter, AdapterConfig, Edit, Error, PreparedEdit, ValueRows};

pub(super) const METHOD: KnownMethod = KnownMethod {
    peft_type: "SUPERTUNING",
    name: "Super-Tuning",
    formula: "`W + S`, `S` sparse; with a rank `W + S + s B A`; needs `save_precomputed_indices`",
    source: "PEFT, `tuners/supertuning`",
    merging: Merging::Reads(read),
};

#[derive(Debug)]
struct SuperTuning {
    /// Rank and scale.
    lora: Option<(u64, f64)>,
}

fn read(config: &AdapterConfig) -> Result<Box<dyn Method>, Error> {
    config.refuse_unknown_fields(&[
        "init_weights",
        "lora_alpha",
        "lora_dropout",
        "r",
        "save_precomputed_indices",
        "select_top",
        "sparsity",
    ])?;
    let lora = match config.count("r")? {
        None => None,
        Some(rank) => {
            let alpha = config.number("lora_alpha")?.unwrap_or(2.0 * rank as f64);
            Some((rank, alpha / rank as f64))
        }
    };
    Ok(Box::new(SuperTuning { lora }))
}

impl Method for SuperTuning {
    fn parameters(&self) -> &'static [&'static str] {
        &["supertuning_values", "supertuning_indices", "supertuning_lora_A", "supertuning_lora_B"]
    }

    fn plan(&self, modules: &[Module], planner: &mut Planner<'_>) -> Result<(), Error> {
        for module in modules {
            let values = module.need("supertuning_values", planner)?;
            let indices = module.need("supertuning_indices", planner)?;
            let layer = planner.layer(module, values, Features::default())?;
            let count = planner.adapter_shape(values).first().copied().unwrap_or(0);
            planner.expect_shape(values, layer.slot, &[count])?;
            planner.expect_shape(indices, layer.slot, &[count])?;
            if layer.is_conv() || layer.transposed {
                return Err(planner.shape_error(values, layer.slot, "the weight of a linear layer".into()));
            }
            let edit = Scatter { values, indices, rows: layer.out, cols: layer.input };
            planner.edit(layer.slot, "Super-Tuning", edit);
            let Some((rank, scale)) = self.lora else { continue };
            let (a, b) =
                (module.need("supertuning_lora_A", planner)?, module.need("supertuning_lora_B", planner)?);
            planner.expect_shape(a, layer.slot, &[rank, layer.input])?;
            planner.expect_shape(b, layer.slot, &[layer.out, rank])?;
            let edit = LowRank {
                left: Factor::by_outer(b, rank),
                right: Factor::by_rank(a, layer.input),
                rank: rank as usize,
                groups: 1,
                rows_per_group: layer.out as usize,
                cols: layer.input as usize,
                scale,
                exact: planner.is_narrow(a) && planner.is_narrow(b),
            };
            planner.edit(layer.slot, "Super-Tuning", edit);
        }
        Ok(())
    }
}

/// Adds values at elements that are numbered row by row.
#[derive(Debug)]
struct Scatter {
    values: usize,
    indices: usize,
    rows: u64,
    cols: u64,
}

impl Edit for Scatter {
    fn prepare(&self, adapter: &Adapter, _: &dyn ValueRows) -> Result<Box<dyn PreparedEdit>, Error> {
        let values = adapter.values(self.values)?;
        let mut places = Vec::with_capacity(values.len());
        for (found, value) in adapter.integers(self.indices)?.into_iter().zip(values.iter()) {
            let below = self.rows * self.cols;
            let at = u64::try_from(found).ok().filter(|at| *at < below);
            let at = at.ok_or_else(|| Error::Index {
                tensor: adapter.tensors()[self.indices].name.clone(),
                what: "element".into(),
                found,
                below,
            })?;
            places.push((at / self.cols, at % self.cols, *value));
        }
        Ok(Box::new(PreparedSparse::new(places)))
    }
}
