//! What a method does to one tensor, and the tiles it does it to.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use tenon_checkpoint::Rows;

use crate::kernel::{self, Level, LowRankBlock};
use crate::{Adapter, Error, measure};

/// A rectangle of one tensor, decoded. The tensor is seen as a matrix whose
/// rows are `row_block` of its innermost rows together.
#[derive(Debug)]
pub struct Tile<'a> {
    /// Number of the first row.
    pub first_row: u64,
    /// Number of the first column.
    pub first_col: usize,
    /// Number of columns.
    pub cols: usize,
    /// Rows times columns values, row-major.
    pub values: &'a mut [f64],
    /// Instructions to use.
    pub level: Level,
}

impl Tile<'_> {
    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.values.len() / self.cols.max(1)
    }
}

/// Rows of a tensor as they are before an edit, for edits that must look at the whole tensor first.
pub trait ValueRows {
    /// Number of rows.
    fn rows(&self) -> u64;
    /// Number of columns.
    fn cols(&self) -> usize;
    /// Fills `out` with whole rows.
    fn read(&self, rows: Rows, out: &mut [f64]) -> Result<(), Error>;
    /// The rows of a tensor of the base, for edits that take one tensor's values from another.
    fn of_base(&self, tensor: usize) -> Box<dyn ValueRows + '_>;
}

/// What a method does to one tensor. Holds names and shapes only.
pub trait Edit: Any + Send + Sync + fmt::Debug {
    /// Whether tiles must span all columns.
    fn needs_whole_rows(&self) -> bool {
        false
    }

    /// Bytes that the prepared edit keeps of what it computed in whole beforehand, such as an update
    /// that an FFT makes at one stroke. Decoded factors of the adapter do not count.
    fn held_bytes(&self) -> u64 {
        0
    }

    /// Loads what is needed to apply the edit.
    fn prepare(&self, adapter: &Adapter, before: &dyn ValueRows) -> Result<Box<dyn PreparedEdit>, Error>;
}

/// An edit with its factors at hand.
pub trait PreparedEdit: Send + Sync {
    /// Turns the values before the edit into those after it.
    fn apply(&self, tile: &mut Tile<'_>);

    /// Effective rank of the matrix it adds, where that is cheap to know.
    fn effective_rank(&self) -> Option<f64> {
        None
    }
}

/// Where the elements of a factor lie in an adapter tensor: element `(group, outer, k)` is number
/// `offset + group * group_stride + outer * outer_stride + k * rank_stride`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Factor {
    pub(crate) tensor: usize,
    pub(crate) offset: usize,
    pub(crate) group_stride: usize,
    pub(crate) outer_stride: usize,
    pub(crate) rank_stride: usize,
}

impl Factor {
    /// A factor stored `[outer, rank]`.
    pub(crate) fn by_outer(tensor: usize, rank: u64) -> Self {
        Self { tensor, offset: 0, group_stride: 0, outer_stride: rank as usize, rank_stride: 1 }
    }

    /// A factor stored `[rank, outer]`.
    pub(crate) fn by_rank(tensor: usize, outer: u64) -> Self {
        Self { tensor, offset: 0, group_stride: 0, outer_stride: 1, rank_stride: outer as usize }
    }
}

/// `W += scale * left * right`: LoRA in all its orientations.
///
/// The tensor's rows fall into `groups` of equal size (the experts of a fused
/// tensor), each with factors of its own.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct LowRank {
    /// `(group, row, k)`.
    pub(crate) left: Factor,
    /// `(group, col, k)`.
    pub(crate) right: Factor,
    pub(crate) rank: usize,
    pub(crate) groups: usize,
    pub(crate) rows_per_group: usize,
    pub(crate) cols: usize,
    pub(crate) scale: f64,
    /// Whether both factors are stored as `f32` or narrower, so that their products are exact.
    pub(crate) exact: bool,
}

/// [`LowRank`] with its factors at hand, for methods that compute them.
pub(crate) struct PreparedLowRank {
    /// `[group, row, rank]`.
    pub(crate) left: Arc<[f64]>,
    /// `[group, rank, col]`.
    pub(crate) right: Arc<[f64]>,
    pub(crate) rank: usize,
    pub(crate) groups: usize,
    pub(crate) rows_per_group: usize,
    pub(crate) cols: usize,
    pub(crate) scale: f64,
    /// Whether all elements of both factors are `f32` values.
    pub(crate) exact: bool,
}

impl Edit for LowRank {
    fn prepare(&self, adapter: &Adapter, _: &dyn ValueRows) -> Result<Box<dyn PreparedEdit>, Error> {
        let LowRank { rank, groups, rows_per_group, cols, scale, exact, .. } = *self;
        let left = pack(adapter, &self.left, groups, rows_per_group, rank, false)?;
        let right = pack(adapter, &self.right, groups, cols, rank, true)?;
        Ok(Box::new(PreparedLowRank { left, right, rank, groups, rows_per_group, cols, scale, exact }))
    }
}

/// Lays a factor out densely, rank innermost or (`rank_first`) outermost within its group.
pub(crate) fn pack(
    adapter: &Adapter,
    factor: &Factor,
    groups: usize,
    outer: usize,
    rank: usize,
    rank_first: bool,
) -> Result<Arc<[f64]>, Error> {
    let values = adapter.values(factor.tensor)?;
    let dense = if rank_first { (1, outer) } else { (rank, 1) };
    let dense_groups = groups == 1 || factor.group_stride == outer * rank;
    if factor.offset == 0
        && (factor.outer_stride, factor.rank_stride) == dense
        && dense_groups
        && values.len() == groups * outer * rank
    {
        return Ok(values);
    }
    let mut packed = Vec::with_capacity(groups * outer * rank);
    for group in 0..groups {
        let start = factor.offset + group * factor.group_stride;
        let at = |o: usize, k: usize| values[start + o * factor.outer_stride + k * factor.rank_stride];
        if rank_first {
            for k in 0..rank {
                packed.extend((0..outer).map(|o| at(o, k)));
            }
        } else {
            for o in 0..outer {
                packed.extend((0..rank).map(|k| at(o, k)));
            }
        }
    }
    Ok(packed.into())
}

impl PreparedEdit for PreparedLowRank {
    fn apply(&self, tile: &mut Tile<'_>) {
        let PreparedLowRank { rank, rows_per_group, cols, scale, exact, .. } = *self;
        let mut row = tile.first_row as usize;
        let mut values = &mut *tile.values;
        while !values.is_empty() {
            let (group, in_group) = (row / rows_per_group, row % rows_per_group);
            let rows = (values.len() / tile.cols).min(rows_per_group - in_group);
            let (now, later) = values.split_at_mut(rows * tile.cols);
            let block = LowRankBlock {
                left: &self.left[row * rank..(row + rows) * rank],
                right: &self.right[group * rank * cols + tile.first_col..],
                right_stride: cols,
                rank,
                scale,
                exact,
            };
            kernel::add_low_rank(tile.level, now, tile.cols, block);
            values = later;
            row += rows;
        }
    }

    fn effective_rank(&self) -> Option<f64> {
        (self.groups == 1).then(|| measure::effective_rank(&self.left, &self.right, self.rank))?
    }
}

/// `W_i := magnitude_i / ||W_i|| * W_i` for each row: DoRA where rows are output channels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RowMagnitude {
    pub(crate) magnitude: usize,
}

struct PreparedRowMagnitude {
    magnitude: Arc<[f64]>,
}

impl Edit for RowMagnitude {
    fn needs_whole_rows(&self) -> bool {
        true
    }

    fn prepare(&self, adapter: &Adapter, _: &dyn ValueRows) -> Result<Box<dyn PreparedEdit>, Error> {
        Ok(Box::new(PreparedRowMagnitude { magnitude: adapter.values(self.magnitude)? }))
    }
}

impl PreparedEdit for PreparedRowMagnitude {
    fn apply(&self, tile: &mut Tile<'_>) {
        let magnitudes = &self.magnitude[tile.first_row as usize..];
        for (row, magnitude) in tile.values.chunks_exact_mut(tile.cols.max(1)).zip(magnitudes) {
            let norm = kernel::row_norm(tile.level, row);
            kernel::scale_row(tile.level, row, magnitude / norm);
        }
    }
}

/// The same for columns: DoRA where the weight is stored transposed, and on embeddings.
///
/// The norms need all rows, so preparing it reads the tensor once more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ColumnMagnitude {
    pub(crate) magnitude: usize,
}

struct PreparedColumnMagnitude {
    factors: Vec<f64>,
}

impl Edit for ColumnMagnitude {
    fn prepare(&self, adapter: &Adapter, before: &dyn ValueRows) -> Result<Box<dyn PreparedEdit>, Error> {
        let magnitude = adapter.values(self.magnitude)?;
        let cols = before.cols();
        let mut sums = vec![0.0; cols];
        let step = (STRIP_VALUES / cols.max(1)).max(1) as u64;
        let mut values = Vec::new();
        let mut row = 0;
        while row < before.rows() {
            let end = before.rows().min(row + step);
            values.resize((end - row) as usize * cols, 0.0);
            before.read(row..end, &mut values)?;
            for row in values.chunks_exact(cols.max(1)) {
                kernel::add_column_squares(Level::detect(), row, &mut sums);
            }
            row = end;
        }
        let factors = magnitude.iter().zip(&sums).map(|(m, sum)| m / sum.sqrt()).collect();
        Ok(Box::new(PreparedColumnMagnitude { factors }))
    }
}

impl PreparedEdit for PreparedColumnMagnitude {
    fn apply(&self, tile: &mut Tile<'_>) {
        let factors = &self.factors[tile.first_col..tile.first_col + tile.cols];
        for row in tile.values.chunks_exact_mut(tile.cols.max(1)) {
            kernel::scale_columns(tile.level, row, factors);
        }
    }
}

/// Values decoded at a time: 256 KiB of `f64`, a quarter of a common L2 cache.
pub(crate) const STRIP_VALUES: usize = 32 << 10;

/// Rows put in place of those with given numbers: trained tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ReplaceRows {
    /// Row numbers and where each stands in the adapter tensor, in the order of the row numbers.
    pub(crate) rows: Vec<(u64, usize)>,
    pub(crate) tensor: usize,
}

struct PreparedReplaceRows {
    rows: Vec<(u64, usize)>,
    cols: usize,
    values: Arc<[f64]>,
}

impl Edit for ReplaceRows {
    fn prepare(&self, adapter: &Adapter, before: &dyn ValueRows) -> Result<Box<dyn PreparedEdit>, Error> {
        let values = adapter.values(self.tensor)?;
        Ok(Box::new(PreparedReplaceRows { rows: self.rows.clone(), cols: before.cols(), values }))
    }
}

impl PreparedEdit for PreparedReplaceRows {
    fn apply(&self, tile: &mut Tile<'_>) {
        let end = tile.first_row + tile.rows() as u64;
        let first = self.rows.partition_point(|(row, _)| *row < tile.first_row);
        for &(row, place) in self.rows[first..].iter().take_while(|(row, _)| *row < end) {
            let target = (row - tile.first_row) as usize * tile.cols;
            let from = place * self.cols + tile.first_col;
            tile.values[target..target + tile.cols].copy_from_slice(&self.values[from..from + tile.cols]);
        }
    }
}

/// `b += scale * v` for a vector seen as one row: the bias that `lora_bias` trains.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct AddScaled {
    pub(crate) tensor: usize,
    pub(crate) scale: f64,
}

struct PreparedAddScaled {
    values: Arc<[f64]>,
    scale: f64,
}

impl Edit for AddScaled {
    fn prepare(&self, adapter: &Adapter, _: &dyn ValueRows) -> Result<Box<dyn PreparedEdit>, Error> {
        Ok(Box::new(PreparedAddScaled { values: adapter.values(self.tensor)?, scale: self.scale }))
    }
}

impl PreparedEdit for PreparedAddScaled {
    fn apply(&self, tile: &mut Tile<'_>) {
        let start = tile.first_row as usize * tile.cols + tile.first_col;
        for (value, add) in tile.values.iter_mut().zip(&self.values[start..]) {
            *value += self.scale * add;
        }
    }
}
