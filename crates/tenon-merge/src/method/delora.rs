//! DeLoRA: `W' = W + B D A diag(w)`, a low-rank update of bounded norm.
//!
//! `D = diag(l / r / (|A_k| |B_k|))`: each rank's row of `A` and column of `B` are brought to
//! norm 1 (norms below 10⁻⁴ count as 10⁻⁴), and `l`, a trained number, bounds the
//! sum. `w [in]` are the norms of the base's columns when training began. Sources:
//! Bini et al. 2025; PEFT 0.21.2, `tuners/delora/layer.py`.

use super::layer::Features;
use super::product::{Factors, Pair, Product};
use super::{KnownMethod, Merging, Method, Module};
use crate::pattern::Patterns;
use crate::planner::Planner;
use crate::{Adapter, AdapterConfig, Error, ValueRows};

pub(super) const METHOD: KnownMethod = KnownMethod {
    peft_type: "DELORA",
    name: "DeLoRA",
    formula: "`W + B diag(l / (r ‖A_k‖ ‖B_k‖)) A diag(w)`, `w` the norms of the base's columns",
    source: "Bini et al. 2025",
    merging: Merging::Reads(read),
};

#[derive(Debug)]
struct DeLora {
    rank: u64,
    ranks: Patterns,
}

fn read(config: &AdapterConfig) -> Result<Box<dyn Method>, Error> {
    config.refuse_unknown_fields(&[
        "bias",
        // The bounds that training began with; the trained one is a tensor.
        "delora_lambda",
        "init_weights",
        "lambda_pattern",
        "module_dropout",
        "r",
        "rank_pattern",
    ])?;
    Ok(Box::new(DeLora {
        rank: config.count("r")?.unwrap_or(8),
        ranks: Patterns::counts(config, "rank_pattern")?,
    }))
}

impl Method for DeLora {
    fn parameters(&self) -> &'static [&'static str] {
        &["delora_A", "delora_B", "delora_lambda", "delora_w_norm"]
    }

    fn plan(&self, modules: &[Module], planner: &mut Planner<'_>) -> Result<(), Error> {
        for module in modules {
            let [a, b, bound, norms] = ["delora_A", "delora_B", "delora_lambda", "delora_w_norm"]
                .map(|name| module.need(name, planner));
            let (a, b, bound, norms) = (a?, b?, bound?, norms?);
            let features = |tensor: usize, at: usize| planner.adapter_shape(tensor).get(at).copied();
            let features = Features { out: features(b, 0), input: features(a, 1) };
            let layer = planner.layer(module, a, features)?;
            if layer.is_conv() || layer.transposed {
                return Err(planner.shape_error(a, layer.slot, "the weight of a linear layer".into()));
            }
            let stored = planner.adapter_shape(a).first().copied().unwrap_or(0);
            let rank = self.ranks.settle(&module.path, self.rank, stored);
            planner.expect_shape(a, layer.slot, &[rank, layer.input])?;
            planner.expect_shape(b, layer.slot, &[layer.out, rank])?;
            planner.expect_shape(bound, layer.slot, &[1])?;
            planner.expect_shape(norms, layer.slot, &[layer.input])?;
            let factors =
                DeLoraFactors { a, b, bound, norms, rank: rank as usize, input: layer.input as usize };
            let product = Product::new(planner, &layer, a, rank, 1.0, factors)?;
            planner.edit(layer.slot, "DeLoRA", product);
        }
        Ok(())
    }
}

#[derive(Debug)]
struct DeLoraFactors {
    a: usize,
    b: usize,
    bound: usize,
    norms: usize,
    rank: usize,
    input: usize,
}

impl Factors for DeLoraFactors {
    fn factors(&self, adapter: &Adapter, _: &dyn ValueRows) -> Result<Pair, Error> {
        let (a, b) = (adapter.values(self.a)?, adapter.values(self.b)?);
        let (bound, norms) = (adapter.values(self.bound)?[0], adapter.values(self.norms)?);
        let mut b_squares = vec![0.0; self.rank];
        for row in b.chunks_exact(self.rank) {
            row.iter().zip(&mut b_squares).for_each(|(v, sum)| *sum += v * v);
        }
        let mut input = Vec::with_capacity(a.len());
        for (row, b_squares) in a.chunks_exact(self.input).zip(b_squares) {
            let a_norm = row.iter().map(|v| v * v).sum::<f64>().sqrt().max(1e-4);
            let scale = bound / self.rank as f64 / (a_norm * b_squares.sqrt().max(1e-4));
            input.extend(row.iter().zip(norms.iter()).map(|(v, norm)| scale * v * norm));
        }
        Ok(Pair { out: b.to_vec(), input })
    }
}
