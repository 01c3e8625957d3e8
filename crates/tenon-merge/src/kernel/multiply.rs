//! Products of two matrices on all cores, for what decomposes whole weights.
//!
//! A tile of the product is summed from blocks of [`INNER`] products each, cut by the shape alone, so that the bits do
//! not depend on the number of threads.

use std::sync::{Mutex, PoisonError};

use super::{Level, LowRankBlock, add_low_rank};

/// Rows and columns of a tile of the product: 32 KiB.
const TILE: usize = 64;
/// Inner products a block: two packed blocks have 256 KiB together.
const INNER: usize = 256;
/// Multiplications that are worth a thread.
const THREAD_WORK: usize = 1 << 22;

/// A row-major matrix whose rows begin `stride` elements apart.
#[derive(Debug, Clone, Copy)]
pub struct Matrix<'a> {
    /// From its first element to its last.
    pub values: &'a [f64],
    /// Elements between the beginnings of two rows.
    pub stride: usize,
}

/// `sum[rows, cols] += scale * left[rows, inner] * right[inner, cols]`, the rows of `sum` `stride` elements apart.
///
/// With `lower`, only tiles that reach the diagonal or lie below it are computed.
///
/// # Panics
/// When a slice is shorter than the shapes say.
#[derive(Debug, Clone, Copy)]
pub struct Multiply<'a> {
    /// The left factor.
    pub left: Matrix<'a>,
    /// The right factor.
    pub right: Matrix<'a>,
    /// Rows, inner dimension and columns.
    pub shape: (usize, usize, usize),
    /// Multiplies the product before it is added.
    pub scale: f64,
    /// Whether the tiles above the diagonal are left out.
    pub lower: bool,
}

impl Multiply<'_> {
    /// Adds the product to `sum`.
    ///
    /// # Panics
    /// When a slice is shorter than the shapes say.
    pub fn add_to(&self, sum: &mut [f64], stride: usize) {
        let (rows, inner, cols) = self.shape;
        if rows == 0 || inner == 0 || cols == 0 {
            return;
        }
        let work = rows.saturating_mul(inner).saturating_mul(cols);
        on_all_cores(
            sum.chunks_mut(TILE * stride).take(rows.div_ceil(TILE)),
            work / THREAD_WORK,
            |band, sum| {
                let mut packed = Packed::default();
                let top = band * TILE;
                let height = TILE.min(rows - top);
                for first in (0..cols).step_by(TILE) {
                    if self.lower && first >= top + height {
                        break;
                    }
                    let width = TILE.min(cols - first);
                    packed.product(self, top..top + height, first..first + width);
                    for (row, tile) in packed.tile.chunks_exact(width).enumerate() {
                        let sum = &mut sum[row * stride + first..][..width];
                        sum.iter_mut().zip(tile).for_each(|(sum, value)| *sum += self.scale * value);
                    }
                }
            },
        );
    }
}

#[derive(Default)]
struct Packed {
    left: Vec<f64>,
    right: Vec<f64>,
    tile: Vec<f64>,
}

impl Packed {
    /// Sums one tile of the product.
    fn product(&mut self, of: &Multiply<'_>, rows: std::ops::Range<usize>, cols: std::ops::Range<usize>) {
        let width = cols.len();
        self.tile.clear();
        self.tile.resize(rows.len() * width, 0.0);
        for first in (0..of.shape.1).step_by(INNER) {
            let inner = INNER.min(of.shape.1 - first);
            self.left.clear();
            for row in rows.clone() {
                self.left.extend_from_slice(&of.left.values[row * of.left.stride + first..][..inner]);
            }
            self.right.clear();
            for k in first..first + inner {
                self.right.extend_from_slice(&of.right.values[k * of.right.stride + cols.start..][..width]);
            }
            let block = LowRankBlock {
                left: &self.left,
                right: &self.right,
                right_stride: width,
                rank: inner,
                scale: 1.0,
                exact: false,
            };
            add_low_rank(Level::detect(), &mut self.tile, width, block);
        }
    }
}

/// Calls `work` with each part and its number, on as many threads as there are cores, or as are worth it.
pub fn on_all_cores<T: Send>(
    parts: impl Iterator<Item = T> + Send,
    worth: usize,
    work: impl Fn(usize, T) + Send + Sync,
) {
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(worth);
    let parts = Mutex::new(parts.enumerate());
    let next = || parts.lock().unwrap_or_else(PoisonError::into_inner).next();
    let run = || {
        while let Some((at, part)) = next() {
            work(at, part);
        }
    };
    if threads < 2 {
        return run();
    }
    std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(run))));
}

/// The transpose of a row-major matrix `[rows, cols]`, block by block so that both stay in cache.
pub fn transposed(values: &[f64], rows: usize, cols: usize) -> Vec<f64> {
    const BLOCK: usize = 32;
    let mut transposed = vec![0.0; values.len()];
    for first in (0..rows).step_by(BLOCK) {
        for left in (0..cols).step_by(BLOCK) {
            for col in left..cols.min(left + BLOCK) {
                for row in first..rows.min(first + BLOCK) {
                    transposed[col * rows + row] = values[row * cols + col];
                }
            }
        }
    }
    transposed
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_product_is_the_sum_of_its_products(
            rows in 1usize..140, inner in 1usize..300, cols in 1usize..140, extra in 0usize..3, lower: bool, seed: u64,
        ) {
            let mut number = crate::numbers::numbers(seed);
            let left: Vec<f64> = (0..rows * (inner + extra)).map(|_| number()).collect();
            let right: Vec<f64> = (0..inner * (cols + extra)).map(|_| number()).collect();
            let mut sum = vec![1.0; rows * (cols + extra)];
            let factors = Multiply {
                left: Matrix { values: &left, stride: inner + extra },
                right: Matrix { values: &right, stride: cols + extra },
                shape: (rows, inner, cols),
                scale: -2.0,
                lower,
            };
            factors.add_to(&mut sum, cols + extra);
            for row in 0..rows {
                for col in 0..cols + extra {
                    let product: f64 = (0..inner)
                        .map(|k| left[row * (inner + extra) + k] * right[k * (cols + extra) + col]).sum();
                    let found = sum[row * (cols + extra) + col];
                    if col >= cols {
                        prop_assert_eq!(found, 1.0);
                    } else if !lower || col <= row {
                        prop_assert!((found - (1.0 - 2.0 * product)).abs() < 1e-12);
                    }
                }
            }
        }

        #[test]
        fn a_transpose_has_rows_for_columns(rows in 1usize..70, cols in 1usize..70) {
            let values: Vec<f64> = (0..rows * cols).map(|at| at as f64).collect();
            let turned = transposed(&values, rows, cols);
            for (at, value) in turned.iter().enumerate() {
                prop_assert_eq!(*value, values[at % rows * cols + at / rows]);
            }
        }
    }
}
