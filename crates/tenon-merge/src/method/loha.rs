//! LoHa: `W' = W + s (w1_a w1_b) ∘ (w2_a w2_b)`, the product of two low-rank
//! matrices element by element; rank up to `r²` for twice LoRA's parameters.
//!
//! For linear layers and convolutions, the latter also with cores `t1`, `t2`
//! ([`super::lycoris`]). Sources: Hyeon-Woo et al. 2022 (FedPara); Yeh et al.
//! 2023 (LyCORIS); PEFT 0.21.2, `tuners/loha/layer.py`.

use super::layer::Features;
use super::lycoris::{self, Factors, Product};
use super::scaling::Scaling;
use super::{KnownMethod, Merging, Method, Module};
use crate::edit::{Edit, PreparedEdit, Tile, ValueRows};
use crate::kernel::{self, LowRankBlock};
use crate::planner::Planner;
use crate::{Adapter, AdapterConfig, Error};

pub(super) const METHOD: KnownMethod = KnownMethod {
    peft_type: "LOHA",
    name: "LoHa",
    formula: "`W + s (w1_a w1_b) ∘ (w2_a w2_b)`",
    source: "Hyeon-Woo et al. 2022",
    merging: Merging::Reads(read),
};

#[derive(Debug)]
struct LoHa {
    scaling: Scaling,
}

fn read(config: &AdapterConfig) -> Result<Box<dyn Method>, Error> {
    Ok(Box::new(LoHa { scaling: lycoris::read(config, &[])? }))
}

impl Method for LoHa {
    fn parameters(&self) -> &'static [&'static str] {
        &["hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"]
    }

    fn plan(&self, modules: &[Module], planner: &mut Planner<'_>) -> Result<(), Error> {
        modules.iter().try_for_each(|module| self.plan_layer(module, planner))
    }
}

impl LoHa {
    fn plan_layer(&self, module: &Module, planner: &mut Planner<'_>) -> Result<(), Error> {
        let first = [module.need("hada_w1_a", planner)?, module.need("hada_w1_b", planner)?];
        let second = [module.need("hada_w2_a", planner)?, module.need("hada_w2_b", planner)?];
        let cores = match (module.get("hada_t1"), module.get("hada_t2")) {
            (None, None) => [None, None],
            _ => [Some(module.need("hada_t1", planner)?), Some(module.need("hada_t2", planner)?)],
        };
        let layer = planner.layer(module, first[0], Features::default())?;
        planner.expect_plain(first[0], &layer)?;
        let stored = planner.adapter_shape(first[1]).first().copied().unwrap_or(0);
        let (rank, scale) = self
            .scaling
            .of(&module.path, stored)
            .map_err(|expected| planner.rank_error(module, first[1], stored, expected))?;
        let extents = [layer.out, layer.shape[1]];
        let edit = Hadamard {
            first: Product::new(first, cores[0], extents, rank, &layer, planner)?,
            second: Product::new(second, cores[1], extents, rank, &layer, planner)?,
            scale,
        };
        planner.edit(layer.slot, "LoHa", edit);
        Ok(())
    }
}

/// `W += scale * first ∘ second`.
#[derive(Debug, Clone, Copy)]
struct Hadamard {
    first: Product,
    second: Product,
    scale: f64,
}

struct PreparedHadamard {
    first: Factors,
    second: Factors,
    edit: Hadamard,
}

impl Edit for Hadamard {
    fn prepare(&self, adapter: &Adapter, _: &dyn ValueRows) -> Result<Box<dyn PreparedEdit>, Error> {
        let (first, second) = (self.first.factors(adapter)?, self.second.factors(adapter)?);
        Ok(Box::new(PreparedHadamard { first, second, edit: *self }))
    }
}

impl PreparedEdit for PreparedHadamard {
    fn apply(&self, tile: &mut Tile<'_>) {
        let Hadamard { first, second, scale } = self.edit;
        let product = |factors: &Factors, of: Product| {
            let mut values = vec![0.0; tile.values.len()];
            let block = LowRankBlock {
                left: &factors.left[tile.first_row as usize * of.rank..],
                right: &factors.right[tile.first_col..],
                right_stride: of.cols(),
                rank: of.rank,
                scale: 1.0,
                exact: of.exact,
            };
            kernel::add_low_rank(tile.level, &mut values, tile.cols, block);
            values
        };
        let (first, second) = (product(&self.first, first), product(&self.second, second));
        kernel::add_product(tile.level, tile.values, &first, &second, scale);
    }
}
