//! Updates that are the product of two factors which a method computes from its tensors.

use std::fmt;

use super::layer::Layer;
use crate::edit::{PreparedLowRank, STRIP_VALUES};
use crate::kernel::{self, LowRankBlock};
use crate::planner::Planner;
use crate::svd::{Along, part};
use crate::{Adapter, Edit, Error, PreparedEdit, ValueRows};

/// Two factors, row-major.
pub(super) struct Pair {
    /// `[out, rank]`.
    pub(super) out: Vec<f64>,
    /// `[rank, in]`.
    pub(super) input: Vec<f64>,
}

/// How a method makes its factors.
pub(super) trait Factors: Send + Sync + fmt::Debug {
    /// Computes them; `before` are the weight's rows as stored.
    fn factors(&self, adapter: &Adapter, before: &dyn ValueRows) -> Result<Pair, Error>;
}

/// `W += scale * out * input`, transposed where the weight is.
#[derive(Debug)]
pub(super) struct Product<F> {
    factors: F,
    out: usize,
    input: usize,
    rank: usize,
    scale: f64,
    transposed: bool,
    held: u64,
}

impl<F: Factors> Product<F> {
    /// The update of a layer. Fails for a rank whose factors were out of all proportion to the weight:
    /// no adapter has one, and a file of a few bytes could ask for any memory by it.
    pub(super) fn new(
        planner: &Planner<'_>,
        layer: &Layer,
        tensor: usize,
        rank: u64,
        scale: f64,
        factors: F,
    ) -> Result<Self, Error> {
        if !in_proportion(rank, layer.out, layer.input) {
            return Err(planner.shape_error(tensor, layer.slot, format!("a rank far below {rank}")));
        }
        let (out, input, rank) = (layer.out as usize, layer.input as usize, rank as usize);
        Ok(Self { factors, out, input, rank, scale, transposed: layer.transposed, held: 0 })
    }

    /// Says what memory computing the factors takes.
    pub(super) fn holding(self, bytes: u64) -> Self {
        Self { held: bytes, ..self }
    }
}

/// What a weight in whole and its singular value decomposition take, in `f64`.
pub(super) fn decomposition_bytes(layer: &Layer) -> u64 {
    // The weight, its transpose and its part; the product of both, and four squares while halves are tied.
    let square = layer.out.min(layer.input).saturating_pow(2);
    layer
        .out
        .saturating_mul(layer.input)
        .saturating_mul(3)
        .saturating_add(square.saturating_mul(5))
        .saturating_mul(8)
}

/// All values of a weight.
pub(super) fn whole(weight: &dyn ValueRows) -> Result<Vec<f64>, Error> {
    let mut values = vec![0.0; weight.rows() as usize * weight.cols()];
    weight.read(0..weight.rows(), &mut values)?;
    Ok(values)
}

/// The factors that put trained directions in the place of a weight's smallest singular ones: `factors`, `[out,
/// rank]`, and `directions`, `[rank, in]`, beside the negative of those.
pub(super) fn instead_of_smallest(
    before: &dyn ValueRows,
    rank: usize,
    factors: impl Iterator<Item = f64>,
    directions: &[f64],
) -> Result<Pair, Error> {
    let (rows, cols) = (before.rows() as usize, before.cols());
    let (less_input, less) = part(&whole(before)?, rows, cols, Along::Smallest(rank));
    let (mut factors, mut out) = (factors, Vec::with_capacity(rows * 2 * rank));
    for less in less.chunks_exact(rank) {
        out.extend(factors.by_ref().take(rank));
        out.extend(less.iter().map(|v| -v));
    }
    Ok(Pair { out, input: [directions, &less_input].concat() })
}

/// Whether factors of this rank stay in proportion to the weight they are for.
pub(super) fn in_proportion(rank: u64, out: u64, input: u64) -> bool {
    // 8 Mi values are 64 MiB; below that, nothing is out of proportion.
    rank.saturating_mul(out.saturating_add(input))
        <= out.saturating_mul(input).saturating_mul(16).max(8 << 20)
}

impl<F: Factors + 'static> Edit for Product<F> {
    fn held_bytes(&self) -> u64 {
        self.held
    }

    fn prepare(&self, adapter: &Adapter, before: &dyn ValueRows) -> Result<Box<dyn PreparedEdit>, Error> {
        let Self { out, input, rank, .. } = *self;
        let pair = self.factors.factors(adapter, before)?;
        let (left, right, rows, cols) = if self.transposed {
            (transpose(&pair.input, rank, input), transpose(&pair.out, out, rank), input, out)
        } else {
            (pair.out, pair.input, out, input)
        };
        Ok(Box::new(PreparedLowRank {
            left: left.into(),
            right: right.into(),
            rank,
            groups: 1,
            rows_per_group: rows,
            cols,
            scale: self.scale,
            // Computed factors have more digits than an f32.
            exact: false,
        }))
    }
}

/// The transpose of a row-major matrix.
pub(super) fn transpose(values: &[f64], rows: usize, cols: usize) -> Vec<f64> {
    let mut transposed = Vec::with_capacity(values.len());
    for col in 0..cols {
        transposed.extend((0..rows).map(|row| values[row * cols + col]));
    }
    transposed
}

/// `factorᵀ W`, `[rank, cols]`, for a factor `[rows, rank]`, the rows of `W` read once.
pub(super) fn rows_times(weight: &dyn ValueRows, factor: &[f64], rank: usize) -> Result<Vec<f64>, Error> {
    let cols = weight.cols();
    let mut product = vec![0.0; rank * cols];
    in_strips(weight, |first, rows, values| {
        let block = LowRankBlock {
            left: &transpose(&factor[first * rank..][..rows * rank], rows, rank),
            right: values,
            right_stride: cols,
            rank: rows,
            scale: 1.0,
            exact: false,
        };
        kernel::add_low_rank(kernel::Level::detect(), &mut product, cols, block);
    })?;
    Ok(product)
}

/// `W factor`, `[rows, rank]`, for a factor `[cols, rank]`, the rows of `W` read once.
pub(super) fn cols_times(weight: &dyn ValueRows, factor: &[f64], rank: usize) -> Result<Vec<f64>, Error> {
    let cols = weight.cols();
    let mut product = vec![0.0; weight.rows() as usize * rank];
    in_strips(weight, |first, rows, values| {
        let block = LowRankBlock {
            left: values,
            right: factor,
            right_stride: rank,
            rank: cols,
            scale: 1.0,
            exact: false,
        };
        let level = kernel::Level::detect();
        kernel::add_low_rank(level, &mut product[first * rank..][..rows * rank], rank, block);
    })?;
    Ok(product)
}

/// Reads a weight a strip of rows after the other: number of the first, how many, and their values. Strips
/// depend on its shape alone.
fn in_strips(weight: &dyn ValueRows, mut take: impl FnMut(usize, usize, &[f64])) -> Result<(), Error> {
    let step = (STRIP_VALUES / weight.cols().max(1)).max(1) as u64;
    let mut values = vec![];
    let mut first = 0;
    while first < weight.rows() {
        let end = weight.rows().min(first + step);
        let rows = (end - first) as usize;
        values.resize(rows * weight.cols(), 0.0);
        weight.read(first..end, &mut values)?;
        take(first as usize, rows, &values);
        first = end;
    }
    Ok(())
}
