//! `values += scale * left * right`, the heart of LoRA.

use super::kernel;

/// Factors of a low-rank product, cut to the tile they are added to.
#[derive(Debug, Clone, Copy)]
pub struct LowRankBlock<'a> {
    /// `[rows, rank]`, row-major: the tile's rows.
    pub left: &'a [f64],
    /// `[rank, ..]` with `right_stride` elements from one rank to the next; the tile's columns come first.
    pub right: &'a [f64],
    /// Elements between the beginnings of two rows of `right`.
    pub right_stride: usize,
    /// Inner dimension. May be 0: then nothing is added.
    pub rank: usize,
    /// Multiplies the product before it is added.
    pub scale: f64,
    /// Whether every product of a left and a right element is exact (both are `f32` values):
    /// only then may multiplication and addition be fused.
    pub exact: bool,
}

/// Adds the scaled product to `values`, `[rows, cols]` row-major.
///
/// For each element, the products are summed from rank 0 upwards, the sum is
/// multiplied by `scale`, and the result is added to the value: three
/// roundings to `f64` after the sum's own.
///
/// # Panics
/// When the slices are shorter than `cols`, the block's rank and stride say.
pub fn add_low_rank(level: super::Level, values: &mut [f64], cols: usize, block: LowRankBlock<'_>) {
    if values.is_empty() || block.rank == 0 {
        return;
    }
    let rows = values.len() / cols;
    assert_eq!(rows * cols, values.len());
    assert!(block.left.len() >= rows * block.rank);
    assert!(block.right_stride >= cols && block.right.len() >= (block.rank - 1) * block.right_stride + cols);
    add(level, values, cols, block);
}

kernel!(fn add = add_body(values: &mut [f64], cols: usize, block: LowRankBlock<'_>));

/// Columns a step: four vectors of 8 `f64`.
const COLS: usize = 32;
/// Rows a step: with [`COLS`], 16 vectors of sums stay in registers.
const ROWS: usize = 4;

#[inline(always)]
fn add_body<const FUSED: bool>(values: &mut [f64], cols: usize, block: LowRankBlock<'_>) {
    if FUSED && block.exact {
        add_blocks::<true>(values, cols, block);
    } else {
        add_blocks::<false>(values, cols, block);
    }
}

#[inline(always)]
fn add_blocks<const FUSE: bool>(values: &mut [f64], cols: usize, block: LowRankBlock<'_>) {
    let rows = values.len() / cols;
    let mut col = 0;
    while col < cols {
        if cols - col >= COLS {
            let mut row = 0;
            while row + ROWS <= rows {
                step::<ROWS, COLS, FUSE>(values, cols, block, row, col);
                row += ROWS;
            }
            while row < rows {
                step::<1, COLS, FUSE>(values, cols, block, row, col);
                row += 1;
            }
            col += COLS;
        } else if cols - col >= 8 {
            for row in 0..rows {
                step::<1, 8, FUSE>(values, cols, block, row, col);
            }
            col += 8;
        } else {
            for row in 0..rows {
                step::<1, 1, FUSE>(values, cols, block, row, col);
            }
            col += 1;
        }
    }
}

#[inline(always)]
fn step<const R: usize, const C: usize, const FUSE: bool>(
    values: &mut [f64],
    cols: usize,
    block: LowRankBlock<'_>,
    row: usize,
    col: usize,
) {
    let mut sums = [[0.0f64; C]; R];
    for k in 0..block.rank {
        let right: &[f64; C] =
            block.right[k * block.right_stride + col..][..C].try_into().expect("length is C");
        for (r, sums) in sums.iter_mut().enumerate() {
            let left = block.left[(row + r) * block.rank + k];
            for (sum, right) in sums.iter_mut().zip(right) {
                *sum = if FUSE { left.mul_add(*right, *sum) } else { left * *right + *sum };
            }
        }
    }
    for (r, sums) in sums.iter().enumerate() {
        let values: &mut [f64; C] =
            (&mut values[(row + r) * cols + col..][..C]).try_into().expect("length is C");
        for (value, sum) in values.iter_mut().zip(sums) {
            *value += block.scale * sum;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;
    use proptest::prelude::*;

    /// The definition, element by element.
    fn expected(values: &[f64], cols: usize, block: LowRankBlock<'_>) -> Vec<f64> {
        let element = |(at, value): (usize, &f64)| {
            let (row, col) = (at / cols, at % cols);
            let sum = (0..block.rank).fold(0.0, |sum, k| {
                block.left[row * block.rank + k] * block.right[k * block.right_stride + col] + sum
            });
            value + block.scale * sum
        };
        values.iter().enumerate().map(element).collect()
    }

    proptest! {
        #[test]
        fn levels_agree_with_the_definition_bit_for_bit(
            rows in 1usize..11, cols in 1usize..83, rank in 1usize..9, extra in 0usize..5,
            seed: u64, scale in -3f64..3.0, narrow: bool,
        ) {
            let mut drawn = crate::numbers::numbers(seed);
            let mut number = || {
                let value = drawn();
                if narrow { f64::from(value as f32) } else { value }
            };
            let stride = cols + extra;
            let left: Vec<f64> = (0..rows * rank).map(|_| number()).collect();
            let right: Vec<f64> = (0..rank * stride).map(|_| number()).collect();
            let values: Vec<f64> = (0..rows * cols).map(|_| number()).collect();
            let block = LowRankBlock { left: &left, right: &right, right_stride: stride, rank, scale, exact: narrow };
            let expected = expected(&values, cols, block);
            for level in Level::available() {
                let mut found = values.clone();
                add_low_rank(level, &mut found, cols, block);
                let bits = |v: &[f64]| v.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                prop_assert_eq!(bits(&found), bits(&expected), "{:?}", level);
            }
        }
    }
}
