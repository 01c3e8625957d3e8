//! GraLoRA: LoRA in `k × k` blocks, each of rank `r / k`.
//!
//! `A` is `[k, in / k, r]`, `B` is `[k, r, out / k]`. With `t = r / k`, the block of outputs `j` and
//! inputs `n` gets `s * sum_u A[n, i, j t + u] B[j, n t + u, o]`. A hybrid adds `s * G A`, `gralora_A_general
//! [h, in]` and `gralora_B_general [out, h]`; `s = alpha / (r + h)`. Sources: Jung et al. 2025;
//! PEFT 0.21.2, `tuners/gralora/layer.py`.

use super::layer::{Features, Layer};
use super::product::in_proportion;
use super::{KnownMethod, Merging, Method, Module};
use crate::edit::{Factor, LowRank, PreparedLowRank};
use crate::planner::Planner;
use crate::{Adapter, AdapterConfig, Edit, Error, PreparedEdit, ValueRows};

pub(super) const METHOD: KnownMethod = KnownMethod {
    peft_type: "GRALORA",
    name: "GraLoRA",
    formula: "`W + s B A` in `k × k` blocks, each of its own; hybrid: and `s B' A'` of the whole",
    source: "Jung et al. 2025",
    merging: Merging::Reads(read),
};

#[derive(Debug)]
struct GraLora {
    rank: u64,
    blocks: u64,
    hybrid: u64,
    scale: f64,
}

fn read(config: &AdapterConfig) -> Result<Box<dyn Method>, Error> {
    config.refuse_unknown_fields(&[
        "alpha",
        "bias",
        "fan_in_fan_out",
        "gralora_dropout",
        "gralora_k",
        "hybrid_r",
        "init_weights",
        "r",
    ])?;
    let rank = config.count("r")?.unwrap_or(32);
    let blocks = config.count("gralora_k")?.unwrap_or(2);
    let hybrid = match config.value("hybrid_r") {
        None => 0,
        Some(value) => {
            value.as_u64().ok_or_else(|| config.wrong("hybrid_r", "a whole number, 0 or above"))?
        }
    };
    if !rank.is_multiple_of(blocks) {
        return Err(config.wrong("r", &format!("a multiple of gralora_k, {blocks}")));
    }
    let scale = config.number("alpha")?.unwrap_or(64.0) / (rank as f64 + hybrid as f64);
    Ok(Box::new(GraLora { rank, blocks, hybrid, scale }))
}

impl Method for GraLora {
    fn parameters(&self) -> &'static [&'static str] {
        &["gralora_A", "gralora_B", "gralora_A_general", "gralora_B_general"]
    }

    fn plan(&self, modules: &[Module], planner: &mut Planner<'_>) -> Result<(), Error> {
        for module in modules {
            self.plan_layer(module, planner)?;
        }
        Ok(())
    }
}

impl GraLora {
    fn plan_layer(&self, module: &Module, planner: &mut Planner<'_>) -> Result<(), Error> {
        let (a, b) = (module.need("gralora_A", planner)?, module.need("gralora_B", planner)?);
        let features = |tensor: usize, at: usize| {
            let per_block = planner.adapter_shape(tensor).get(at).copied();
            per_block.and_then(|n| n.checked_mul(self.blocks))
        };
        let layer = planner.layer(module, a, Features { out: features(b, 2), input: features(a, 1) })?;
        let (k, rank) = (self.blocks, self.rank);
        let divides = layer.out.is_multiple_of(k) && layer.input.is_multiple_of(k);
        if layer.is_conv() || !divides {
            let expected = format!("a linear layer whose sizes {k} divides");
            return Err(planner.shape_error(a, layer.slot, expected));
        }
        planner.expect_shape(a, layer.slot, &[k, layer.input / k, rank])?;
        planner.expect_shape(b, layer.slot, &[k, rank, layer.out / k])?;
        // Every row of blocks has a factor of its own along all columns.
        if !in_proportion(k.saturating_mul(rank), layer.out, layer.input) {
            let expected = format!("fewer blocks, or a rank far below {rank}");
            return Err(planner.shape_error(a, layer.slot, expected));
        }
        let blocks = Blocks {
            a,
            b,
            count: k as usize,
            rank: rank as usize,
            out: layer.out as usize,
            input: layer.input as usize,
            transposed: layer.transposed,
            scale: self.scale,
            exact: planner.is_narrow(a) && planner.is_narrow(b),
        };
        planner.edit(layer.slot, "GraLoRA", blocks);
        if self.hybrid > 0 {
            self.plan_general(module, &layer, planner)?;
        }
        Ok(())
    }

    /// The LoRA of a hybrid.
    fn plan_general(&self, module: &Module, layer: &Layer, planner: &mut Planner<'_>) -> Result<(), Error> {
        let a = module.need("gralora_A_general", planner)?;
        let b = module.need("gralora_B_general", planner)?;
        planner.expect_shape(a, layer.slot, &[self.hybrid, layer.input])?;
        planner.expect_shape(b, layer.slot, &[layer.out, self.hybrid])?;
        let (by_out, by_input) = (Factor::by_outer(b, self.hybrid), Factor::by_rank(a, layer.input));
        let (left, right) = if layer.transposed { (by_input, by_out) } else { (by_out, by_input) };
        let edit = LowRank {
            left,
            right,
            rank: self.hybrid as usize,
            groups: 1,
            rows_per_group: layer.rows() as usize,
            cols: layer.cols() as usize,
            scale: self.scale,
            exact: planner.is_narrow(a) && planner.is_narrow(b),
        };
        planner.edit(layer.slot, "GraLoRA", edit);
        Ok(())
    }
}

#[derive(Debug)]
struct Blocks {
    a: usize,
    b: usize,
    count: usize,
    rank: usize,
    out: usize,
    input: usize,
    transposed: bool,
    scale: f64,
    exact: bool,
}

impl Edit for Blocks {
    /// A row of blocks is one product of rank `r`: of the factor along columns, each rank reaches the
    /// columns of one block only and is 0 elsewhere.
    fn prepare(&self, adapter: &Adapter, _: &dyn ValueRows) -> Result<Box<dyn PreparedEdit>, Error> {
        let (a, b) = (adapter.values(self.a)?, adapter.values(self.b)?);
        let (k, rank, part) = (self.count, self.rank, self.rank / self.count);
        let (outs, inputs) = (self.out / k, self.input / k);
        // Element of `A` for input `i` of block `n` and of `B` for output `o` of block `j`, term `u`.
        let a_at = |n: usize, i: usize, j: usize, u: usize| a[(n * inputs + i) * rank + j * part + u];
        let b_at = |j: usize, o: usize, n: usize, u: usize| b[(j * rank + n * part + u) * outs + o];
        let (rows, cols) = if self.transposed { (inputs, outs) } else { (outs, inputs) };
        let mut left = Vec::with_capacity(k * rows * rank);
        let mut right = vec![0.0; k * rank * k * cols];
        for group in 0..k {
            for row in 0..rows {
                for term in 0..rank {
                    let (block, u) = (term / part, term % part);
                    left.push(match self.transposed {
                        false => b_at(group, row, block, u),
                        true => a_at(group, row, block, u),
                    });
                }
            }
            for term in 0..rank {
                let (block, u) = (term / part, term % part);
                let start = (group * rank + term) * k * cols + block * cols;
                for (col, value) in right[start..start + cols].iter_mut().enumerate() {
                    *value = match self.transposed {
                        false => a_at(block, col, group, u),
                        true => b_at(block, col, group, u),
                    };
                }
            }
        }
        Ok(Box::new(PreparedLowRank {
            left: left.into(),
            right: right.into(),
            rank,
            groups: k,
            rows_per_group: rows,
            cols: k * cols,
            scale: self.scale,
            exact: self.exact,
        }))
    }
}
