//! Singular value decompositions: the largest directions of a product of two thin matrices, and whole
//! matrices.
//!
//! With `B = Q_b R_b` and `Aᵀ = Q_a R_a`, the singular values of `B A` are those
//! of the small `R_b R_aᵀ`, which one-sided Jacobi rotations give (Hestenes
//! 1958): nothing as large as `B A` is ever made. A whole matrix takes memory three times its own in `f64`,
//! and time that grows with the third power of its smaller side.

use crate::kernel::{self, Level};

/// Of `b [out, rank]` times `a [rank, in]`, the part along the `wanted` largest singular values, as
/// factors of that rank: `a` with rows of length 1, `b` with the singular values in it.
pub(crate) fn truncate(a: &[f64], b: &[f64], rank: usize, wanted: usize) -> (Vec<f64>, Vec<f64>) {
    let (input, out) = (a.len() / rank, b.len() / rank);
    let columns_of_b = (0..rank).map(|k| b.iter().skip(k).step_by(rank).copied().collect()).collect();
    let rows_of_a = a.chunks_exact(input.max(1)).map(<[f64]>::to_vec).collect();
    let (q_b, r_b) = orthogonalise(columns_of_b);
    let (q_a, r_a) = orthogonalise(rows_of_a);
    // Column j of R_b R_aᵀ.
    let column = |j: usize| -> Vec<f64> {
        (0..rank).map(|i| (0..rank).map(|k| r_b[k][i] * r_a[k][j]).sum()).collect()
    };
    let mut left: Vec<Vec<f64>> = (0..rank).map(column).collect();
    let unit = |j: usize| (0..rank).map(|i| if i == j { 1.0 } else { 0.0 }).collect();
    let mut right: Vec<Vec<f64>> = (0..rank).map(unit).collect();
    rotate(&mut left, &mut right);
    let mut order: Vec<usize> = (0..rank).collect();
    let size = |j: usize| kernel::row_norm(Level::detect(), &left[j]);
    order.sort_by(|i, j| size(*j).total_cmp(&size(*i)).then(i.cmp(j)));
    order.truncate(wanted);
    let (mut new_a, mut new_b) = (Vec::with_capacity(wanted * input), vec![0.0; out * wanted]);
    for (place, j) in order.into_iter().enumerate() {
        new_a.extend(combined(&q_a, &right[j], input));
        for (row, value) in combined(&q_b, &left[j], out).into_iter().enumerate() {
            new_b[row * wanted + place] = value;
        }
    }
    (new_a, new_b)
}

/// The sum of vectors of length `len`, each times its factor.
fn combined(vectors: &[Vec<f64>], factors: &[f64], len: usize) -> Vec<f64> {
    let mut sum = vec![0.0; len];
    for (vector, factor) in vectors.iter().zip(factors) {
        kernel::add_scaled(Level::detect(), &mut sum, vector, *factor);
    }
    sum
}

/// Orthonormal vectors, zero where one depends on those before it, and the coefficients that make the
/// given ones of them: `vectors[k] = sum over i of coefficients[k][i] basis[i]`.
fn orthogonalise(mut vectors: Vec<Vec<f64>>) -> (Vec<Vec<f64>>, Vec<Vec<f64>>) {
    let level = Level::detect();
    let count = vectors.len();
    let mut coefficients = vec![vec![0.0; count]; count];
    for (k, coefficients) in coefficients.iter_mut().enumerate() {
        let (before, rest) = vectors.split_at_mut(k);
        let vector = &mut rest[0];
        let length = kernel::row_norm(level, vector);
        // Once leaves rounding errors along the others; twice is enough.
        for _ in 0..2 {
            for (i, basis) in before.iter().enumerate() {
                let along = kernel::dot(level, basis, vector);
                kernel::add_scaled(level, vector, basis, -along);
                coefficients[i] += along;
            }
        }
        let left = kernel::row_norm(level, vector);
        if left > length * 1e-14 {
            coefficients[k] = left;
            vector.iter_mut().for_each(|value| *value /= left);
        } else {
            vector.fill(0.0);
        }
    }
    (vectors, coefficients)
}

/// Columns of a block: two blocks of 2048 rows, and what is turned with them, have 1 MiB.
const BLOCK: usize = 16;

/// Turns the columns of `left` until each is orthogonal to each, and those of `right` with them.
fn rotate(left: &mut [Vec<f64>], right: &mut [Vec<f64>]) {
    let level = Level::detect();
    // What an inner product of orthogonal vectors may be off by.
    let noise = f64::EPSILON * (left.first().map_or(1, Vec::len) as f64).sqrt().max(4.0);
    // Converges quadratically; ten sweeps are seldom needed.
    for _ in 0..60 {
        let mut turned = false;
        let mut squares: Vec<f64> = left.iter().map(|column| kernel::dot(level, column, column)).collect();
        // Pairs of one block with another follow each other, so that their columns stay in cache.
        let blocks = || (0..left.len()).step_by(BLOCK);
        let pairs =
            blocks().flat_map(|later| (0..=later).step_by(BLOCK).map(move |earlier| (later, earlier)));
        let pairs: Vec<(usize, usize)> = pairs.collect();
        for (later, earlier) in pairs {
            for (j, i) in (later..left.len().min(later + BLOCK))
                .flat_map(|j| (earlier..j.min(earlier + BLOCK)).map(move |i| (j, i)))
            {
                let along = kernel::dot(level, &left[i], &left[j]);
                let (a, b) = (squares[i], squares[j]);
                if along.abs() <= noise * (a * b).sqrt() {
                    continue;
                }
                turned = true;
                let zeta = (b - a) / (2.0 * along);
                let tangent = 1f64.copysign(zeta) / (zeta.abs() + (1.0 + zeta * zeta).sqrt());
                let cosine = 1.0 / (1.0 + tangent * tangent).sqrt();
                let sine = cosine * tangent;
                for columns in [&mut *left, &mut *right] {
                    let (first, second) = columns.split_at_mut(j);
                    for (x, y) in first[i].iter_mut().zip(&mut second[0]) {
                        (*x, *y) = (cosine * *x - sine * *y, sine * *x + cosine * *y);
                    }
                }
                squares[i] = (a - tangent * along).max(0.0);
                squares[j] = b + tangent * along;
            }
        }
        if !turned {
            return;
        }
    }
}

/// The singular value decomposition of a matrix: as many of each as its smaller side is long, the
/// largest first.
#[derive(Debug)]
pub(crate) struct Svd {
    pub(crate) values: Vec<f64>,
    /// Unit vectors as long as a column; zero where the singular value is.
    pub(crate) left: Vec<Vec<f64>>,
    /// Unit vectors as long as a row; zero where the singular value is.
    pub(crate) right: Vec<Vec<f64>>,
}

/// Decomposes a whole matrix `[rows, cols]`: `M = Q R` first, then the rows of the small `R` are rotated.
///
/// One core takes 15 s for 1024 rows and columns, minutes for 2048. A library's would be tens of times as fast
/// there, and take its sums in another order on each kind of CPU; this gives the same bits on all.
pub(crate) fn decompose(matrix: &[f64], rows: usize, cols: usize) -> Svd {
    let column = |k: usize| -> Vec<f64> { matrix.iter().skip(k).step_by(cols).copied().collect() };
    let wide = rows < cols;
    let (vectors, long): (Vec<_>, _) = match wide {
        true => (matrix.chunks_exact(cols).map(<[f64]>::to_vec).collect(), cols),
        false => ((0..cols).map(column).collect(), rows),
    };
    let small = vectors.len();
    let (basis, coefficients) = orthogonalise(vectors);
    // Row i of R.
    let mut other: Vec<Vec<f64>> = (0..small).map(|i| coefficients.iter().map(|c| c[i]).collect()).collect();
    drop(coefficients);
    let unit = |j: usize| (0..small).map(|i| if i == j { 1.0 } else { 0.0 }).collect();
    let mut turns: Vec<Vec<f64>> = (0..small).map(unit).collect();
    rotate(&mut other, &mut turns);
    let sizes: Vec<f64> = other.iter().map(|vector| kernel::row_norm(Level::detect(), vector)).collect();
    let mut order: Vec<usize> = (0..small).collect();
    order.sort_by(|i, j| sizes[*j].total_cmp(&sizes[*i]).then(i.cmp(j)));
    let largest = order.first().map_or(0.0, |j| sizes[*j]);
    let (mut values, mut in_basis, mut in_other) = (vec![], vec![], vec![]);
    for j in order {
        // Directions below rounding are none.
        let size = if sizes[j] > largest * f64::EPSILON * long as f64 { sizes[j] } else { 0.0 };
        let turn = if size > 0.0 { combined(&basis, &turns[j], long) } else { vec![0.0; long] };
        in_basis.push(turn);
        let vector = std::mem::take(&mut other[j]);
        in_other.push(vector.into_iter().map(|v| if size > 0.0 { v / size } else { 0.0 }).collect());
        values.push(size);
    }
    let (left, right) = if wide { (in_other, in_basis) } else { (in_basis, in_other) };
    Svd { values, left, right }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn product(a: &[f64], b: &[f64], rank: usize) -> Vec<f64> {
        let (input, out) = (a.len() / rank, b.len() / rank);
        (0..out * input)
            .map(|at| (0..rank).map(|k| b[at / input * rank + k] * a[k * input + at % input]).sum())
            .collect()
    }

    /// Numbers that a seed gives.
    fn numbers(seed: u64) -> impl FnMut() -> f64 {
        let mut state = seed;
        move || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 11) as f64 / (1u64 << 53) as f64 - 0.5
        }
    }

    proptest! {
        #[test]
        fn a_decomposition_is_of_unit_vectors_and_makes_the_matrix(
            rows in 1usize..12, cols in 1usize..12, rank in 1usize..12, seed: u64,
        ) {
            let rank = rank.min(rows).min(cols);
            let mut number = numbers(seed);
            let a: Vec<f64> = (0..rank * cols).map(|_| number()).collect();
            let b: Vec<f64> = (0..rows * rank).map(|_| number()).collect();
            let matrix = product(&a, &b, rank);
            let svd = decompose(&matrix, rows, cols);
            prop_assert_eq!(svd.values.len(), rows.min(cols));
            prop_assert!(svd.values.is_sorted_by(|x, y| x >= y));
            prop_assert!(svd.values[rank..].iter().all(|v| *v == 0.0));
            let mut again = vec![0.0; rows * cols];
            for k in 0..rows.min(cols) {
                for (at, value) in again.iter_mut().enumerate() {
                    *value += svd.values[k] * svd.left[k][at / cols] * svd.right[k][at % cols];
                }
                for other in 0..=k {
                    for vectors in [&svd.left, &svd.right] {
                        let dot: f64 = vectors[k].iter().zip(&vectors[other]).map(|(x, y)| x * y).sum();
                        let wanted = if k == other && svd.values[k] > 0.0 { 1.0 } else { 0.0 };
                        // A direction is as sure as its singular value is large.
                        let sure = svd.values[0] / svd.values[k.max(other)].max(1e-300);
                        prop_assert!(svd.values[k] == 0.0 || (dot - wanted).abs() < 1e-13 * sure.max(1.0));
                    }
                }
            }
            for (x, y) in again.iter().zip(&matrix) {
                prop_assert!((x - y).abs() < 1e-13);
            }
        }

        #[test]
        fn at_full_rank_it_is_the_product_and_below_no_part_of_what_is_left(
            out in 1usize..9, input in 1usize..9, rank in 1usize..7, seed: u64,
        ) {
            let mut number = numbers(seed);
            let a: Vec<f64> = (0..rank * input).map(|_| number()).collect();
            let b: Vec<f64> = (0..out * rank).map(|_| number()).collect();
            let whole = product(&a, &b, rank);
            let (new_a, new_b) = truncate(&a, &b, rank, rank);
            for (x, y) in product(&new_a, &new_b, rank).iter().zip(&whole) {
                prop_assert!((x - y).abs() < 1e-13);
            }
            for wanted in 1..rank {
                let (new_a, new_b) = truncate(&a, &b, rank, wanted);
                let part = product(&new_a, &new_b, wanted);
                // Eckart and Young: part and rest are orthogonal, on both sides.
                let rest: Vec<f64> = whole.iter().zip(&part).map(|(w, p)| w - p).collect();
                for row in part.chunks(input) {
                    for other in rest.chunks(input) {
                        let dot: f64 = row.iter().zip(other).map(|(x, y)| x * y).sum();
                        prop_assert!(dot.abs() < 1e-12);
                    }
                }
            }
        }
    }
}
