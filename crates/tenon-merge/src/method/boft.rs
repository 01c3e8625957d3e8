//! BOFT: OFT's rotation as a product of butterfly factors, and a scale of each output:
//! `W' = diag(s) W (F_m .. F_1)ᵀ`.
//!
//! `boft_R [m, n, b, b]` gives each factor `n` blocks, Cayley transforms of
//! `(A - Aᵀ) / 2`; `boft_s [out, 1]` (`[1, out]` for a convolution). With one
//! factor the blocks lie side by side. With more, factor `i` is `P R Pᵀ` for a
//! permutation `P` that takes groups of `b 2^i` inputs, cut in pieces of
//! `b / 2`, and puts the even pieces before the odd ones. The number of
//! factors is the tensor's: PEFT trains one, whatever its configuration says,
//! where its CUDA extension is not at hand. Sources: Liu et al. 2024; PEFT
//! 0.21.2, `tuners/boft/layer.py`.

use std::sync::Arc;

use super::layer::Features;
use super::rotation::{self, Blocks};
use super::{KnownMethod, Merging, Method, Module};
use crate::edit::{Edit, PreparedEdit, Tile, ValueRows};
use crate::planner::Planner;
use crate::{Adapter, AdapterConfig, Error, kernel};

pub(super) const METHOD: KnownMethod = KnownMethod {
    peft_type: "BOFT",
    name: "BOFT",
    formula: "`diag(s) W (F_m .. F_1)ᵀ`, butterfly factors of rotations",
    source: "Liu et al. 2024",
    merging: Merging::Reads(read),
};

#[derive(Debug)]
struct Boft {
    factors: u64,
}

fn read(config: &AdapterConfig) -> Result<Box<dyn Method>, Error> {
    config.refuse_unknown_fields(&[
        "bias",
        // The tensors tell.
        "boft_block_num",
        "boft_block_size",
        "boft_dropout",
        "boft_n_butterfly_factor",
        "fan_in_fan_out",
        "init_weights",
    ])?;
    Ok(Box::new(Boft { factors: config.count("boft_n_butterfly_factor")?.unwrap_or(1) }))
}

impl Method for Boft {
    fn parameters(&self) -> &'static [&'static str] {
        &["boft_R", "boft_s"]
    }

    fn plan(&self, modules: &[Module], planner: &mut Planner<'_>) -> Result<(), Error> {
        for module in modules {
            let (r, s) = (module.need("boft_R", planner)?, module.need("boft_s", planner)?);
            let layer = planner.layer(module, r, Features::default())?;
            planner.expect_plain(r, &layer)?;
            let wrong = |expected: String| planner.shape_error(r, layer.slot, expected);
            let &[factors, blocks, size, _] = planner.adapter_shape(r) else {
                return Err(wrong("[factors, blocks, size, size]".into()));
            };
            planner.expect_shape(r, layer.slot, &[factors, blocks, size, size])?;
            if factors != 1 && factors != self.factors {
                return Err(wrong(format!("{} factors, or one", self.factors)));
            }
            if blocks.checked_mul(size) != Some(layer.input) {
                return Err(wrong(format!("blocks times their size being {}", layer.input)));
            }
            // Each factor but the first joins twice as many blocks as the one before.
            let groups = u32::try_from(factors - 1).ok().and_then(|shift| 1u64.checked_shl(shift));
            let divides = groups.is_some_and(|groups| blocks.is_multiple_of(groups));
            if factors > 1 && (!size.is_multiple_of(2) || !divides) {
                return Err(wrong(format!(
                    "blocks of even size, and 2^{} or a multiple of them",
                    factors - 1
                )));
            }
            let of_scale = if layer.is_conv() { [1, layer.out] } else { [layer.out, 1] };
            planner.expect_shape(s, layer.slot, &of_scale)?;
            let edit =
                Butterfly { r, s, factors: factors as usize, blocks: blocks as usize, size: size as usize };
            planner.edit(layer.slot, "BOFT", edit);
        }
        Ok(())
    }
}

/// `W := diag(s) W F_1ᵀ .. F_mᵀ`.
#[derive(Debug, Clone, Copy)]
struct Butterfly {
    r: usize,
    s: usize,
    factors: usize,
    blocks: usize,
    size: usize,
}

struct PreparedButterfly {
    factors: Vec<Factor>,
    scale: Arc<[f64]>,
}

struct Factor {
    blocks: Blocks,
    /// Where each input goes before the blocks turn; nothing for a single factor.
    places: Option<Vec<usize>>,
}

impl Edit for Butterfly {
    fn needs_whole_rows(&self) -> bool {
        true
    }

    fn held_bytes(&self) -> u64 {
        // As many elements as the tensor, of which the file's length was checked.
        (self.factors * self.blocks * self.size * self.size) as u64 * 8
    }

    fn prepare(&self, adapter: &Adapter, _: &dyn ValueRows) -> Result<Box<dyn PreparedEdit>, Error> {
        let Self { size, blocks, .. } = *self;
        let (values, scale) = (adapter.values(self.r)?, adapter.values(self.s)?);
        let area = size * size;
        let factor = |(i, values): (usize, &[f64])| {
            let mut matrices = Vec::with_capacity(values.len());
            for block in values.chunks_exact(area) {
                // The transpose of `(A - Aᵀ) / 2`, whose rotation is the transpose of A's.
                let skew = |at: usize| 0.5 * (block[at % size * size + at / size] - block[at]);
                let skew: Vec<f64> = (0..area).map(skew).collect();
                matrices.extend(rotation::cayley(&skew, size));
            }
            let places = (self.factors > 1).then(|| permutation(blocks * size, size << i, size / 2));
            Factor { blocks: Blocks { size, matrices: matrices.into() }, places }
        };
        let factors = values.chunks_exact((blocks * area).max(1)).enumerate().map(factor).collect();
        Ok(Box::new(PreparedButterfly { factors, scale }))
    }
}

/// The permutation of `count` inputs in groups: pieces of a group with even numbers first, then the odd.
fn permutation(count: usize, group: usize, piece: usize) -> Vec<usize> {
    let pieces = group / piece;
    let order: Vec<usize> = (0..pieces).step_by(2).chain((1..pieces).step_by(2)).collect();
    (0..count)
        .map(|at| {
            let (start, within) = (at / group * group, at % group);
            start + order[within / piece] * piece + within % piece
        })
        .collect()
}

impl PreparedEdit for PreparedButterfly {
    fn apply(&self, tile: &mut Tile<'_>) {
        let cols = tile.cols.max(1);
        let mut permuted = vec![0.0; cols];
        for factor in &self.factors {
            if let Some(places) = &factor.places {
                for row in tile.values.chunks_exact_mut(cols) {
                    places.iter().zip(&*row).for_each(|(place, value)| permuted[*place] = *value);
                    row.copy_from_slice(&permuted);
                }
            }
            factor.blocks.turn(tile.level, tile.values, tile.cols);
            if let Some(places) = &factor.places {
                for row in tile.values.chunks_exact_mut(cols) {
                    permuted.iter_mut().zip(places).for_each(|(value, place)| *value = row[*place]);
                    row.copy_from_slice(&permuted);
                }
            }
        }
        let scales = &self.scale[tile.first_row as usize..];
        for (row, scale) in tile.values.chunks_exact_mut(cols).zip(scales) {
            kernel::scale_row(tile.level, row, *scale);
        }
    }
}
