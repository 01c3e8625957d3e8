//! Rotations in blocks: what OFT and BOFT do to a weight's input side.
//!
//! A skew-symmetric `S` gives the orthogonal `R = (I - S) (I + S)^-1` (the
//! Cayley transform). A row of the weight is cut into blocks, and each is
//! multiplied by a matrix of its own, so tiles must span whole rows and need
//! nothing else.

use std::sync::Arc;

use crate::kernel::{self, Level, LowRankBlock};

/// Square matrices of one size, one a block of a row, or one for all.
#[derive(Debug, Clone)]
pub(super) struct Blocks {
    /// Rows and columns of each.
    pub(super) size: usize,
    /// `[count, size, size]`; of one where all blocks share it.
    pub(super) matrices: Arc<[f64]>,
}

impl Blocks {
    /// Multiplies each block of each row from the right: `row := row M`.
    pub(super) fn turn(&self, level: Level, values: &mut [f64], cols: usize) {
        let (size, area) = (self.size, self.size * self.size);
        if cols == 0 || size == 0 {
            return;
        }
        let rows = values.len() / cols;
        let (mut before, mut after) = (vec![0.0; rows * size], vec![0.0; rows * size]);
        let shared = self.matrices.len() == area;
        for block in 0..cols / size {
            let matrix = if shared { &self.matrices } else { &self.matrices[block * area..][..area] };
            let start = block * size;
            for (before, row) in before.chunks_exact_mut(size).zip(values.chunks_exact(cols)) {
                before.copy_from_slice(&row[start..start + size]);
            }
            after.fill(0.0);
            add_product(level, &mut after, &before, matrix, size);
            for (after, row) in after.chunks_exact(size).zip(values.chunks_exact_mut(cols)) {
                row[start..start + size].copy_from_slice(after);
            }
        }
    }
}

/// `sum += left * right`, `right` being square.
fn add_product(level: Level, sum: &mut [f64], left: &[f64], right: &[f64], size: usize) {
    let block = LowRankBlock { left, right, right_stride: size, rank: size, scale: 1.0, exact: false };
    kernel::add_low_rank(level, sum, size, block);
}

/// `(I - S) (I + S)^-1` for a skew-symmetric `S [size, size]`.
///
/// The two factors commute, so this solves `(I + S) R = I - S`, by elimination with the largest
/// pivot. `I + S` is never singular: its eigenvalues have the real part 1.
pub(super) fn cayley(skew: &[f64], size: usize) -> Vec<f64> {
    let level = Level::detect();
    let with_diagonal = |sign: f64| -> Vec<f64> {
        let diagonal = |at: usize| if at / size == at % size { 1.0 } else { 0.0 };
        skew.iter().enumerate().map(|(at, s)| diagonal(at) + sign * s).collect()
    };
    let (mut left, mut right) = (with_diagonal(1.0), with_diagonal(-1.0));
    for step in 0..size {
        let magnitude = |row: &usize| left[row * size + step].abs();
        let pivot = (step..size).max_by(|a, b| magnitude(a).total_cmp(&magnitude(b)).then(b.cmp(a)));
        swap_rows(&mut left, step, pivot.unwrap_or(step), size);
        swap_rows(&mut right, step, pivot.unwrap_or(step), size);
        for row in step + 1..size {
            let factor = -left[row * size + step] / left[step * size + step];
            eliminate(level, &mut left, row, step, factor, size);
            eliminate(level, &mut right, row, step, factor, size);
        }
    }
    for step in (0..size).rev() {
        let pivot = left[step * size + step];
        right[step * size..][..size].iter_mut().for_each(|value| *value /= pivot);
        for row in 0..step {
            let factor = -left[row * size + step];
            eliminate(level, &mut right, row, step, factor, size);
        }
    }
    right
}

fn swap_rows(matrix: &mut [f64], a: usize, b: usize, size: usize) {
    for col in 0..size {
        matrix.swap(a * size + col, b * size + col);
    }
}

/// `row += factor * by`.
fn eliminate(level: Level, matrix: &mut [f64], row: usize, by: usize, factor: f64, size: usize) {
    let (first, second) = matrix.split_at_mut(row.max(by) * size);
    let (low, high) = (&mut first[row.min(by) * size..][..size], &mut second[..size]);
    let (target, source) = if row < by { (low, high) } else { (high, low) };
    kernel::add_scaled(level, target, source, factor);
}

/// `sum over k of coefficients[k] S^k`.
pub(super) fn polynomial(skew: &[f64], size: usize, coefficients: &[f64]) -> Vec<f64> {
    let level = Level::detect();
    let mut power: Vec<f64> =
        (0..size * size).map(|at| if at / size == at % size { 1.0 } else { 0.0 }).collect();
    let mut sum = vec![0.0; size * size];
    for (k, coefficient) in coefficients.iter().enumerate() {
        if k > 0 {
            let mut next = vec![0.0; size * size];
            add_product(level, &mut next, &power, skew, size);
            power = next;
        }
        kernel::add_scaled(level, &mut sum, &power, *coefficient);
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn multiply(a: &[f64], b: &[f64], n: usize) -> Vec<f64> {
        (0..n * n).map(|at| (0..n).map(|k| a[at / n * n + k] * b[k * n + at % n]).sum()).collect()
    }

    proptest! {
        #[test]
        fn the_cayley_transform_is_orthogonal_and_solves_its_equation(
            n in 1usize..12, seed: u64, size in 0.01f64..100.0,
        ) {
            let mut drawn = crate::numbers::numbers(seed);
            let mut number = || drawn() * size;
            let mut skew = vec![0.0; n * n];
            for i in 0..n {
                for j in i + 1..n {
                    let value = number();
                    (skew[i * n + j], skew[j * n + i]) = (value, -value);
                }
            }
            let rotation = cayley(&skew, n);
            let transpose: Vec<f64> = (0..n * n).map(|at| rotation[at % n * n + at / n]).collect();
            for (at, value) in multiply(&rotation, &transpose, n).iter().enumerate() {
                let expected = if at / n == at % n { 1.0 } else { 0.0 };
                prop_assert!((value - expected).abs() < 1e-11, "{value} at {at}");
            }
            // R + R S = I - S.
            let product = multiply(&rotation, &skew, n);
            for at in 0..n * n {
                let expected = if at / n == at % n { 1.0 } else { 0.0 } - skew[at];
                prop_assert!((rotation[at] + product[at] - expected).abs() < 1e-11 * (1.0 + size));
            }
        }
    }

    #[test]
    fn each_block_of_a_row_is_turned_by_its_matrix() {
        let (quarter, swap) = ([0.0, 1.0, -1.0, 0.0], [0.0, 1.0, 1.0, 0.0]);
        let rows = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0];
        let mut values = rows;
        let blocks = Blocks { size: 2, matrices: [quarter, swap].concat().into() };
        blocks.turn(Level::detect(), &mut values, 4);
        assert_eq!(values, [-2.0, 1.0, 4.0, 3.0, -6.0, 5.0, 8.0, 7.0]);
        let mut values = rows;
        Blocks { size: 2, matrices: quarter.into() }.turn(Level::detect(), &mut values, 4);
        assert_eq!(values, [-2.0, 1.0, -4.0, 3.0, -6.0, 5.0, -8.0, 7.0]);
    }

    #[test]
    fn a_polynomial_sums_powers() {
        // S² = -I.
        let skew = [0.0, 1.0, -1.0, 0.0];
        assert_eq!(polynomial(&skew, 2, &[1.0, 2.0, 2.0, 1.0]), [-1.0, 1.0, -1.0, -1.0]);
    }
}
