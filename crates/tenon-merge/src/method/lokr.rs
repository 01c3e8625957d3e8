//! LoKr: `W' = W + s w1 ⊗ w2`, a Kronecker product.
//!
//! With `out = a c` and `in = b d`, `w1` is `[a, b]` and `w2` `[c, d]`
//! (`[c, d, k..]` for a convolution); each may be given by two factors, `w2`
//! of a convolution also with a core `t2` ([`super::lycoris`]). Row `o = (a, c)`
//! and column `(b, d, k)` get `w1[a, b] w2[c, d, k]`.
//!
//! A `w2` that a one-dimensional convolution has whole is `[c, d, k]`, and PEFT
//! pads `w1` in front, to `[1, a, b]`: what it adds to the weight, in training
//! and when it merges, is `[c, a d, b k]` in that order of elements. Tenon does
//! the same. Sources: Yeh et al. 2023 (LyCORIS); PEFT 0.21.2, `tuners/lokr/layer.py`.

use std::sync::Arc;

use super::layer::{Features, Layer};
use super::lycoris::{self, Product};
use super::scaling::Scaling;
use super::{KnownMethod, Merging, Method, Module};
use crate::edit::{Edit, PreparedEdit, Tile, ValueRows};
use crate::kernel::{self, Level, LowRankBlock};
use crate::planner::Planner;
use crate::{Adapter, AdapterConfig, Error};

pub(super) const METHOD: KnownMethod = KnownMethod {
    peft_type: "LOKR",
    name: "LoKr",
    formula: "`W + s w1 ⊗ w2`, each whole or `a b`",
    source: "Yeh et al. 2023",
    merging: Merging::Reads(read),
};

#[derive(Debug)]
struct LoKr {
    scaling: Scaling,
}

fn read(config: &AdapterConfig) -> Result<Box<dyn Method>, Error> {
    // How w1 and w2 share the extents; the tensors tell.
    let known = ["decompose_both", "decompose_factor", "rank_dropout_scale"];
    Ok(Box::new(LoKr { scaling: lycoris::read(config, &known)? }))
}

impl Method for LoKr {
    fn parameters(&self) -> &'static [&'static str] {
        &["lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"]
    }

    fn plan(&self, modules: &[Module], planner: &mut Planner<'_>) -> Result<(), Error> {
        modules.iter().try_for_each(|module| self.plan_layer(module, planner))
    }
}

impl LoKr {
    fn plan_layer(&self, module: &Module, planner: &mut Planner<'_>) -> Result<(), Error> {
        let any = module.tensors.values().next().copied().unwrap_or_default();
        let layer = planner.layer(module, any, Features::default())?;
        planner.expect_plain(any, &layer)?;
        // The rank is in the factors, if there are any.
        let factor = ["lokr_w1_b", "lokr_w2_b"].into_iter().find_map(|parameter| module.get(parameter));
        let (rank, scale) = match factor {
            None => self.scaling.by_path(&module.path),
            Some(factor) => {
                let stored = planner.adapter_shape(factor).first().copied().unwrap_or(0);
                self.scaling
                    .of(&module.path, stored)
                    .map_err(|expected| planner.rank_error(module, factor, stored, expected))?
            }
        };
        let (first, [a, b]) = first(module, rank, &layer, planner)?;
        let (second, irregular) = second(module, rank, [a, b], &layer, planner)?;
        let edit = Kronecker {
            first,
            second,
            irregular,
            cols_of_first: b as usize,
            rows_of_second: (layer.out / a) as usize,
            cols_of_second: (layer.input / b) as usize,
            cols: layer.input as usize,
            kernel: layer.kernel() as usize,
            scale,
        };
        planner.edit(layer.slot, "LoKr", edit);
        Ok(())
    }
}

/// A factor of the Kronecker product.
#[derive(Debug, Clone, Copy)]
enum Matrix {
    Whole(usize),
    Product(Product),
}

/// `w1` and its extents, which must divide the layer's.
fn first(
    module: &Module,
    rank: u64,
    layer: &Layer,
    planner: &Planner<'_>,
) -> Result<(Matrix, [u64; 2]), Error> {
    let divides = |tensor: usize, extents: [u64; 2]| {
        let [a, b] = extents;
        if a > 0 && b > 0 && layer.out.is_multiple_of(a) && layer.shape[1].is_multiple_of(b) {
            return Ok(extents);
        }
        let expected = format!("extents that divide {} and {}", layer.out, layer.shape[1]);
        Err(planner.shape_error(tensor, layer.slot, expected))
    };
    if let Some(whole) = module.get("lokr_w1") {
        let &[a, b] = planner.adapter_shape(whole) else {
            return Err(planner.shape_error(whole, layer.slot, "two dimensions".into()));
        };
        return Ok((Matrix::Whole(whole), divides(whole, [a, b])?));
    }
    let factors = [module.need("lokr_w1_a", planner)?, module.need("lokr_w1_b", planner)?];
    let extent = |tensor: usize, at: usize| planner.adapter_shape(tensor).get(at).copied().unwrap_or(0);
    let extents = divides(factors[0], [extent(factors[0], 0), extent(factors[1], 1)])?;
    // A matrix of its own, whatever the layer's kernel.
    let plain = Layer { shape: vec![layer.out, layer.input], ..layer.clone() };
    Ok((Matrix::Product(Product::new(factors, None, extents, rank, &plain, planner)?), extents))
}

/// `w2`, and whether it is the whole one of a one-dimensional convolution.
fn second(
    module: &Module,
    rank: u64,
    [a, b]: [u64; 2],
    layer: &Layer,
    planner: &Planner<'_>,
) -> Result<(Matrix, bool), Error> {
    let extents = [layer.out / a, layer.shape[1] / b];
    if let Some(whole) = module.get("lokr_w2") {
        planner.expect_shape(whole, layer.slot, &[&extents[..], &layer.shape[2..]].concat())?;
        return Ok((Matrix::Whole(whole), layer.shape.len() == 3));
    }
    let factors = [module.need("lokr_w2_a", planner)?, module.need("lokr_w2_b", planner)?];
    let product = Product::new(factors, module.get("lokr_t2"), extents, rank, layer, planner)?;
    Ok((Matrix::Product(product), false))
}

/// `W += scale * first ⊗ second`.
#[derive(Debug, Clone, Copy)]
struct Kronecker {
    first: Matrix,
    second: Matrix,
    irregular: bool,
    cols_of_first: usize,
    rows_of_second: usize,
    /// Kernel included.
    cols_of_second: usize,
    cols: usize,
    kernel: usize,
    scale: f64,
}

/// `w2`, whole or a row at a time.
enum Rows {
    Whole(Arc<[f64]>),
    Product { left: Arc<[f64]>, right: Arc<[f64]>, rank: usize, exact: bool },
}

struct PreparedKronecker {
    first: Arc<[f64]>,
    second: Rows,
    edit: Kronecker,
}

impl Edit for Kronecker {
    // A row of `w2` that is a product is computed once for all columns.
    fn needs_whole_rows(&self) -> bool {
        matches!(self.second, Matrix::Product(_))
    }

    fn held_bytes(&self) -> u64 {
        match self.first {
            Matrix::Whole(_) => 0,
            Matrix::Product(product) => product.rows as u64 * product.cols() as u64 * 8,
        }
    }

    fn prepare(&self, adapter: &Adapter, _: &dyn ValueRows) -> Result<Box<dyn PreparedEdit>, Error> {
        let first = match self.first {
            Matrix::Whole(tensor) => adapter.values(tensor)?,
            Matrix::Product(product) => {
                let factors = product.factors(adapter)?;
                let mut values = vec![0.0; product.rows * product.cols()];
                let block = LowRankBlock {
                    left: &factors.left,
                    right: &factors.right,
                    right_stride: product.cols(),
                    rank: product.rank,
                    scale: 1.0,
                    exact: product.exact,
                };
                kernel::add_low_rank(Level::detect(), &mut values, product.cols(), block);
                values.into()
            }
        };
        let second = match self.second {
            Matrix::Whole(tensor) => Rows::Whole(adapter.values(tensor)?),
            Matrix::Product(product) => {
                let factors = product.factors(adapter)?;
                let (rank, exact) = (product.rank, product.exact);
                Rows::Product { left: factors.left, right: factors.right, rank, exact }
            }
        };
        Ok(Box::new(PreparedKronecker { first, second, edit: *self }))
    }
}

impl PreparedEdit for PreparedKronecker {
    fn apply(&self, tile: &mut Tile<'_>) {
        if self.edit.irregular {
            self.apply_irregular(tile);
            return;
        }
        let Kronecker { cols_of_first, rows_of_second, cols_of_second, scale, .. } = self.edit;
        let (first_col, cols, level) = (tile.first_col, tile.cols, tile.level);
        let mut computed = Vec::new();
        for (row, values) in (tile.first_row as usize..).zip(tile.values.chunks_exact_mut(cols.max(1))) {
            let (a, c) = (row / rows_of_second, row % rows_of_second);
            let second = match &self.second {
                Rows::Whole(values) => &values[c * cols_of_second..][..cols_of_second],
                Rows::Product { left, right, rank, exact } => {
                    computed.clear();
                    computed.resize(cols_of_second, 0.0);
                    let block = LowRankBlock {
                        left: &left[c * rank..],
                        right,
                        right_stride: cols_of_second,
                        rank: *rank,
                        scale: 1.0,
                        exact: *exact,
                    };
                    kernel::add_low_rank(level, &mut computed, cols_of_second, block);
                    &computed
                }
            };
            // Blocks of columns that the tile has part in.
            let mut col = first_col;
            while col < first_col + cols {
                let (b, start) = (col / cols_of_second, col % cols_of_second);
                let count = (cols_of_second - start).min(first_col + cols - col);
                let factor = scale * self.first[a * cols_of_first + b];
                let block = &mut values[col - first_col..][..count];
                kernel::add_scaled(level, block, &second[start..start + count], factor);
                col += count;
            }
        }
    }
}

impl PreparedKronecker {
    /// `w1 [a, b]` and `w2 [c, d, k]` as a tensor `[c, a d, b k]`.
    fn apply_irregular(&self, tile: &mut Tile<'_>) {
        let Kronecker { cols_of_first, rows_of_second, cols_of_second, cols, kernel, scale, .. } = self.edit;
        let Rows::Whole(second) = &self.second else { return };
        let (rows_of_first, depth) = (self.first.len() / cols_of_first, cols_of_second / kernel);
        let width = tile.cols;
        for (row, values) in (tile.first_row as usize..).zip(tile.values.chunks_exact_mut(width.max(1))) {
            for (col, value) in (tile.first_col..).zip(values) {
                let (rest, k) = ((row * cols + col) / kernel, (row * cols + col) % kernel);
                let (rest, b) = (rest / cols_of_first, rest % cols_of_first);
                let (rest, d) = (rest / depth, rest % depth);
                let (c, a) = (rest / rows_of_first, rest % rows_of_first);
                debug_assert!(c < rows_of_second);
                let factor = scale * self.first[a * cols_of_first + b];
                *value += factor * second[(c * depth + d) * kernel + k];
            }
        }
    }
}
