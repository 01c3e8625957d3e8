//! HiRA: `W' = W + W ∘ B A`, a low-rank product that scales the weight element by element.
//!
//! Factors lie as LoRA's do: `A [r, in]`, `B [out, r]`; of an embedding
//! `hira_embedding_A [r, vocabulary]`, `hira_embedding_B [dim, r]` and their transpose; of a convolution
//! `A [r, in, k..]`, `B [out, r, 1..]`. Nothing scales the product. Sources: Huang et al. 2025; PEFT
//! 0.21.2, `tuners/hira/layer.py`.

use super::layer::Features;
use super::{KnownMethod, Merging, Method, Module};
use crate::edit::{Factor, LowRank};
use crate::pattern::Patterns;
use crate::planner::Planner;
use crate::{Adapter, AdapterConfig, Edit, Error, PreparedEdit, Tile, ValueRows};

pub(super) const METHOD: KnownMethod = KnownMethod {
    peft_type: "HIRA",
    name: "HiRA",
    formula: "`W + W ∘ B A`",
    source: "Huang et al. 2025",
    merging: Merging::Reads(read),
};

#[derive(Debug)]
struct Hira {
    rank: u64,
    ranks: Patterns,
}

fn read(config: &AdapterConfig) -> Result<Box<dyn Method>, Error> {
    config.refuse_unknown_fields(&["fan_in_fan_out", "hira_dropout", "init_weights", "r", "rank_pattern"])?;
    Ok(Box::new(Hira {
        rank: config.count("r")?.unwrap_or(32),
        ranks: Patterns::counts(config, "rank_pattern")?,
    }))
}

impl Method for Hira {
    fn parameters(&self) -> &'static [&'static str] {
        &["hira_A", "hira_B", "hira_embedding_A", "hira_embedding_B"]
    }

    fn plan(&self, modules: &[Module], planner: &mut Planner<'_>) -> Result<(), Error> {
        for module in modules {
            let embeds = module.get("hira_embedding_A").or(module.get("hira_embedding_B")).is_some();
            let names = if embeds { ["hira_embedding_A", "hira_embedding_B"] } else { ["hira_A", "hira_B"] };
            let (a, b) = (module.need(names[0], planner)?, module.need(names[1], planner)?);
            let features = |tensor: usize, at: usize| planner.adapter_shape(tensor).get(at).copied();
            // An embedding's inputs are its rows, as stored.
            let features = match embeds {
                true => Features { out: features(a, 1), input: features(b, 0) },
                false if planner.adapter_shape(a).len() > 2 => Features::default(),
                false => Features { out: features(b, 0), input: features(a, 1) },
            };
            let layer = planner.layer(module, a, features)?;
            let stored = planner.adapter_shape(a).first().copied().unwrap_or(0);
            // PEFT 0.21.2 reads the pattern and gives every module the one rank all the same. Either may
            // be; the formula does not need it.
            let rank =
                if stored == self.rank { stored } else { self.ranks.settle(&module.path, self.rank, stored) };
            let (rows, cols) = (layer.rows(), layer.cols());
            let (left, right) = if embeds || layer.transposed {
                planner.expect_shape(a, layer.slot, &[rank, rows])?;
                planner.expect_shape(b, layer.slot, &[cols, rank])?;
                (Factor::by_rank(a, rows), Factor::by_outer(b, rank))
            } else {
                let mut a_shape = layer.shape.clone();
                a_shape[0] = rank;
                planner.expect_shape(a, layer.slot, &a_shape)?;
                let mut b_shape = vec![1; layer.shape.len()];
                (b_shape[0], b_shape[1]) = (layer.out, rank);
                planner.expect_shape(b, layer.slot, &b_shape)?;
                (Factor::by_outer(b, rank), Factor::by_rank(a, cols))
            };
            let product = LowRank {
                left,
                right,
                rank: rank as usize,
                groups: 1,
                rows_per_group: rows as usize,
                cols: cols as usize,
                scale: 1.0,
                exact: planner.is_narrow(a) && planner.is_narrow(b),
            };
            planner.edit(layer.slot, "HiRA", Modulate { product });
        }
        Ok(())
    }
}

/// `W += W ∘ left * right`.
#[derive(Debug)]
struct Modulate {
    product: LowRank,
}

struct PreparedModulate {
    product: Box<dyn PreparedEdit>,
}

impl Edit for Modulate {
    fn prepare(&self, adapter: &Adapter, before: &dyn ValueRows) -> Result<Box<dyn PreparedEdit>, Error> {
        Ok(Box::new(PreparedModulate { product: self.product.prepare(adapter, before)? }))
    }
}

impl PreparedEdit for PreparedModulate {
    fn apply(&self, tile: &mut Tile<'_>) {
        let mut factors = vec![0.0; tile.values.len()];
        self.product.apply(&mut Tile { values: &mut factors, ..*tile });
        tile.values.iter_mut().zip(&factors).for_each(|(value, factor)| *value += *value * factor);
    }
}
