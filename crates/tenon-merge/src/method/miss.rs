//! MiSS, which was Bone before: blocks shared along the weight's input side.
//!
//! By `init_weights`:
//!
//! * as a rule `B` is `[r, out]`, and every block of `r` inputs gets its
//!   transpose: `W'[o, i] = W[o, i] + B[i mod r, o]`; the last block may be cut off;
//! * `mini`: `B` is `[r, mini_r]` and serves outputs in turn, `B[i mod r, o mod mini_r]`;
//! * `bat`: `B` is `[out / r, r, r]`, and each block `w [r, r]` of the weight
//!   becomes `w + w B_o + B_o`, `o` being its row of blocks.
//!
//! Sources: Kang and Yin 2024; PEFT 0.21.2, `tuners/miss/layer.py`, and
//! 0.17.1, `tuners/bone/layer.py`, which differ in names alone.

use std::sync::Arc;

use super::layer::Features;
use super::{KnownMethod, Merging, Method, Module};
use crate::edit::{Edit, PreparedEdit, Tile, ValueRows};
use crate::kernel::{self, LowRankBlock};
use crate::planner::Planner;
use crate::{Adapter, AdapterConfig, Error};

pub(super) const METHOD: KnownMethod = KnownMethod {
    peft_type: "MISS",
    name: "MiSS",
    formula: "`W + [Bᵀ .. Bᵀ]`; `bat`: blocks `w + w B + B`",
    source: "Kang and Yin 2024",
    merging: Merging::Reads(read),
};

/// As PEFT called it up to 0.17.
pub(super) const BONE: KnownMethod = KnownMethod {
    peft_type: "BONE",
    name: "Bone",
    formula: "as MiSS",
    source: "Kang and Yin 2024",
    merging: Merging::Reads(read),
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Variant {
    Plain,
    Mini,
    Bat,
}

#[derive(Debug)]
struct Miss {
    rank: u64,
    mini_rank: u64,
    variant: Variant,
}

fn read(config: &AdapterConfig) -> Result<Box<dyn Method>, Error> {
    config.refuse_unknown_fields(&["bias", "init_weights", "mini_r", "miss_dropout", "r"])?;
    let variant = match config.value("init_weights") {
        Some(value) if value == "bat" => Variant::Bat,
        Some(value) if value == "mini" => Variant::Mini,
        Some(value) if value.is_string() => {
            return Err(config.wrong("init_weights", "true, false, \"bat\" or \"mini\""));
        }
        _ => Variant::Plain,
    };
    Ok(Box::new(Miss {
        rank: config.count("r")?.unwrap_or(64),
        mini_rank: config.count("mini_r")?.unwrap_or(1),
        variant,
    }))
}

impl Method for Miss {
    fn parameters(&self) -> &'static [&'static str] {
        &["miss_block", "bone_block"]
    }

    fn plan(&self, modules: &[Module], planner: &mut Planner<'_>) -> Result<(), Error> {
        modules.iter().try_for_each(|module| self.plan_layer(module, planner))
    }
}

impl Miss {
    fn plan_layer(&self, module: &Module, planner: &mut Planner<'_>) -> Result<(), Error> {
        let block = match module.get("bone_block") {
            Some(block) => block,
            None => module.need("miss_block", planner)?,
        };
        let layer = planner.layer(module, block, Features::default())?;
        if layer.is_conv() || layer.transposed {
            return Err(planner.shape_error(block, layer.slot, "the weight of a linear layer".into()));
        }
        let (rank, mini_rank) = (self.rank, self.mini_rank);
        let divide = |rank: u64, features: &[u64]| {
            if features.iter().all(|features| features.is_multiple_of(rank)) {
                return Ok(());
            }
            Err(planner.shape_error(block, layer.slot, format!("blocks of {rank} that divide {features:?}")))
        };
        let expect = |shape: &[u64]| planner.expect_shape(block, layer.slot, shape);
        match self.variant {
            Variant::Plain => expect(&[rank, layer.out])?,
            Variant::Mini => {
                expect(&[rank, mini_rank])?;
                divide(mini_rank, &[layer.out])?;
            }
            Variant::Bat => {
                expect(&[layer.out / rank, rank, rank])?;
                divide(rank, &[layer.out, layer.input])?;
            }
        }
        let label = if module.get("bone_block").is_some() { "Bone" } else { "MiSS" };
        let rank = rank as usize;
        match self.variant {
            Variant::Bat => planner.edit(layer.slot, label, Bat { block, rank }),
            Variant::Mini => {
                planner.edit(layer.slot, label, Shared { block, rank, outputs: mini_rank as usize });
            }
            Variant::Plain => {
                planner.edit(layer.slot, label, Shared { block, rank, outputs: layer.out as usize });
            }
        }
        Ok(())
    }
}

/// `W[o, i] += B[i mod rank, o mod outputs]`.
#[derive(Debug, Clone, Copy)]
struct Shared {
    block: usize,
    rank: usize,
    outputs: usize,
}

struct PreparedShared {
    /// `[outputs, rank]`.
    block: Vec<f64>,
    edit: Shared,
}

impl Edit for Shared {
    fn prepare(&self, adapter: &Adapter, _: &dyn ValueRows) -> Result<Box<dyn PreparedEdit>, Error> {
        let values = adapter.values(self.block)?;
        let (rank, outputs) = (self.rank, self.outputs);
        let block = (0..rank * outputs).map(|at| values[at % rank * outputs + at / rank]).collect();
        Ok(Box::new(PreparedShared { block, edit: *self }))
    }
}

impl PreparedEdit for PreparedShared {
    fn apply(&self, tile: &mut Tile<'_>) {
        let Shared { rank, outputs, .. } = self.edit;
        let (first_col, cols) = (tile.first_col, tile.cols);
        for (row, values) in (tile.first_row as usize..).zip(tile.values.chunks_exact_mut(cols.max(1))) {
            let block = &self.block[row % outputs * rank..][..rank];
            let mut done = 0;
            while done < cols {
                let start = (first_col + done) % rank;
                let count = (rank - start).min(cols - done);
                kernel::add_scaled(
                    tile.level,
                    &mut values[done..done + count],
                    &block[start..start + count],
                    1.0,
                );
                done += count;
            }
        }
    }
}

/// `w += w B_o + B_o` for each block of the weight.
#[derive(Debug, Clone, Copy)]
struct Bat {
    block: usize,
    rank: usize,
}

struct PreparedBat {
    block: Arc<[f64]>,
    rank: usize,
}

impl Edit for Bat {
    fn needs_whole_rows(&self) -> bool {
        true
    }

    fn prepare(&self, adapter: &Adapter, _: &dyn ValueRows) -> Result<Box<dyn PreparedEdit>, Error> {
        Ok(Box::new(PreparedBat { block: adapter.values(self.block)?, rank: self.rank }))
    }
}

impl PreparedEdit for PreparedBat {
    fn apply(&self, tile: &mut Tile<'_>) {
        let rank = self.rank;
        let mut before = Vec::with_capacity(tile.cols);
        for (row, values) in (tile.first_row as usize..).zip(tile.values.chunks_exact_mut(tile.cols.max(1))) {
            let block = &self.block[row / rank * rank * rank..][..rank * rank];
            // A row is a matrix [in / rank, rank] as it lies.
            before.clear();
            before.extend_from_slice(values);
            let product = LowRankBlock {
                left: &before,
                right: block,
                right_stride: rank,
                rank,
                scale: 1.0,
                exact: false,
            };
            kernel::add_low_rank(tile.level, values, rank, product);
            let added = &block[row % rank * rank..][..rank];
            for values in values.chunks_exact_mut(rank) {
                kernel::add_scaled(tile.level, values, added, 1.0);
            }
        }
    }
}
