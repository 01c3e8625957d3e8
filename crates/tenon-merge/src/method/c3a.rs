//! C3A: `W' = W + C / in`, `C` of circulant blocks.
//!
//! With block size `b`, `c3a_kernel` is `[out / b, in / b, b]`, and block `(m, n)` of `C` has
//! `C[q, p] = kernel[m, n, (p - q) mod b]`. PEFT makes it with FFTs, which a
//! circulant does not need: every row is there as it stands. Sources: Chen et al.
//! 2024; PEFT 0.21.2, `tuners/c3a/layer.py`, `utils.py`.

use std::sync::Arc;

use super::layer::Features;
use super::{KnownMethod, Merging, Method, Module};
use crate::pattern::Patterns;
use crate::planner::Planner;
use crate::{Adapter, AdapterConfig, Edit, Error, PreparedEdit, Tile, ValueRows};

pub(super) const METHOD: KnownMethod = KnownMethod {
    peft_type: "C3A",
    name: "C³A",
    formula: "`W + C / in`, `C` of circulant blocks",
    source: "Chen et al. 2024",
    merging: Merging::Reads(read),
};

#[derive(Debug)]
struct C3a {
    block: u64,
    blocks: Patterns,
}

fn read(config: &AdapterConfig) -> Result<Box<dyn Method>, Error> {
    config.refuse_unknown_fields(&["bias", "block_size", "block_size_pattern", "init_weights"])?;
    Ok(Box::new(C3a {
        block: config.count("block_size")?.unwrap_or(256),
        blocks: Patterns::counts(config, "block_size_pattern")?,
    }))
}

impl Method for C3a {
    fn parameters(&self) -> &'static [&'static str] {
        &["c3a_kernel"]
    }

    fn plan(&self, modules: &[Module], planner: &mut Planner<'_>) -> Result<(), Error> {
        for module in modules {
            let kernel = module.need("c3a_kernel", planner)?;
            let features = match *planner.adapter_shape(kernel) {
                [m, n, b] => Features { out: m.checked_mul(b), input: n.checked_mul(b) },
                _ => Features::default(),
            };
            let layer = planner.layer(module, kernel, features)?;
            let stored = planner.adapter_shape(kernel).last().copied().unwrap_or(0);
            let block = self.blocks.settle(&module.path, self.block, stored);
            if layer.is_conv()
                || layer.transposed
                || !layer.out.is_multiple_of(block)
                || !layer.input.is_multiple_of(block)
            {
                let expected = format!("a linear layer whose sizes {block} divides");
                return Err(planner.shape_error(kernel, layer.slot, expected));
            }
            planner.expect_shape(kernel, layer.slot, &[layer.out / block, layer.input / block, block])?;
            let edit = Circulant { kernel, block: block as usize, input: layer.input as usize };
            planner.edit(layer.slot, "C³A", edit);
        }
        Ok(())
    }
}

#[derive(Debug)]
struct Circulant {
    kernel: usize,
    block: usize,
    input: usize,
}

struct PreparedCirculant {
    /// `[out / block, in / block, block]`.
    kernel: Arc<[f64]>,
    block: usize,
    input: usize,
}

impl Edit for Circulant {
    fn prepare(&self, adapter: &Adapter, _: &dyn ValueRows) -> Result<Box<dyn PreparedEdit>, Error> {
        let kernel = adapter.values(self.kernel)?;
        Ok(Box::new(PreparedCirculant { kernel, block: self.block, input: self.input }))
    }
}

impl PreparedEdit for PreparedCirculant {
    fn apply(&self, tile: &mut Tile<'_>) {
        let (first_row, first_col, cols) = (tile.first_row as usize, tile.first_col, tile.cols);
        for (row, values) in (first_row..).zip(tile.values.chunks_exact_mut(cols.max(1))) {
            let (m, q) = (row / self.block, row % self.block);
            // The row of blocks, of which each is read from its element `-q` on and around.
            let blocks = &self.kernel[m * self.input..][..self.input];
            for (col, value) in (first_col..).zip(values) {
                let (start, p) = (col / self.block * self.block, col % self.block);
                let at = if p >= q { p - q } else { p + self.block - q };
                *value += blocks[start + at] / self.input as f64;
            }
        }
    }
}
