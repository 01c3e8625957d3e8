//! Singular value decompositions: the largest directions of a product of two thin matrices, and whole
//! matrices.
//!
//! With `B = Q_b R_b` and `Aᵀ = Q_a R_a`, the singular values of `B A` are those
//! of the small `R_b R_aᵀ`, which one-sided Jacobi rotations give (Hestenes
//! 1958): nothing as large as `B A` is ever made. A whole matrix takes memory three times its own in `f64` and five
//! times the square of its smaller side, and time that grows with the third power of that.

use crate::kernel::{self, Level, Matrix, Multiply};
use crate::symmetric;

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
pub(crate) fn orthogonalise(mut vectors: Vec<Vec<f64>>) -> (Vec<Vec<f64>>, Vec<Vec<f64>>) {
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

/// Turns the columns of `left` until each is orthogonal to each, and those of `right` with them.
fn rotate(left: &mut [Vec<f64>], right: &mut [Vec<f64>]) {
    let level = Level::detect();
    // What an inner product of orthogonal vectors may be off by.
    let noise = f64::EPSILON * (left.first().map_or(1, Vec::len) as f64).sqrt().max(4.0);
    // Converges quadratically; ten sweeps are seldom needed.
    for _ in 0..60 {
        let mut turned = false;
        let mut squares: Vec<f64> = left.iter().map(|column| kernel::dot(level, column, column)).collect();
        for (j, i) in (0..left.len()).flat_map(|j| (0..j).map(move |i| (j, i))) {
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
        if !turned {
            return;
        }
    }
}

/// Which singular values of a matrix.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Along {
    /// So many of the largest.
    Largest(usize),
    /// So many of the smallest.
    Smallest(usize),
}

/// Of a whole matrix `[rows, cols]`, the part along some singular values, as `a` and `b` like [`truncate`]'s; zero
/// along those that are below rounding.
///
/// The directions are the eigenvectors of `M Mᵀ` or `Mᵀ M`, whichever is smaller, and the other side's are what the
/// matrix makes of them. So the part is a projection of the matrix itself, and singular values that are small are as
/// exact as large ones; squaring costs digits only in telling close directions apart.
pub(crate) fn part(matrix: &[f64], rows: usize, cols: usize, along: Along) -> (Vec<f64>, Vec<f64>) {
    let level = Level::detect();
    let (small, long) = (rows.min(cols), rows.max(cols));
    let wanted = match along {
        Along::Largest(count) => small - count.min(small)..small,
        Along::Smallest(count) => 0..count.min(small),
    };
    if wanted.is_empty() {
        return (vec![], vec![]);
    }
    let turned = kernel::transposed(matrix, rows, cols);
    let (wide, tall) = if rows < cols { (matrix, &turned[..]) } else { (&turned[..], matrix) };
    let multiply = |left, right, shape, lower, out: &mut [f64], stride| {
        Multiply { left, right, shape, scale: 1.0, lower }.add_to(out, stride);
    };
    let (wide, tall) = (Matrix { values: wide, stride: long }, Matrix { values: tall, stride: small });
    let mut gram = vec![0.0; small * small];
    multiply(wide, tall, (small, long, small), true, &mut gram, small);
    let eigen = symmetric::largest_last(gram, small, wanted);
    let count = eigen.vectors.len() / small;
    // What the matrix makes of each direction: as long as its singular value.
    let mut made = vec![0.0; count * long];
    let directions = Matrix { values: &eigen.vectors, stride: small };
    multiply(directions, wide, (count, small, long), false, &mut made, long);
    let largest = eigen.values.last().map_or(0.0, |square| square.max(0.0).sqrt());
    let (mut a, mut b) = (vec![0.0; count * cols], vec![0.0; rows * count]);
    for (place, k) in (0..count).rev().enumerate() {
        let (unit, made) = (&eigen.vectors[k * small..][..small], &made[k * long..][..long]);
        let size = kernel::row_norm(level, made);
        // Directions below rounding are none: of the products, of the squares' directions, and of the matrix itself.
        if size <= largest * f64::EPSILON * 8.0 * long as f64 {
            continue;
        }
        let (of_a, of_b, shrink) = if rows < cols { (made, unit, size) } else { (unit, made, 1.0) };
        a[place * cols..][..cols].iter_mut().zip(of_a).for_each(|(a, v)| *a = v / shrink);
        (0..rows).zip(of_b).for_each(|(row, v)| b[row * count + place] = v * shrink);
    }
    (a, b)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::numbers::numbers;

    fn product(a: &[f64], b: &[f64], rank: usize) -> Vec<f64> {
        let (input, out) = (a.len() / rank, b.len() / rank);
        (0..out * input)
            .map(|at| (0..rank).map(|k| b[at / input * rank + k] * a[k * input + at % input]).sum())
            .collect()
    }

    proptest! {
        #[test]
        fn parts_are_those_along_the_largest_and_the_smallest_values(
            rows in 1usize..90, cols in 1usize..90, rank in 1usize..90, cut in 0usize..90, seed: u64,
        ) {
            let small = rows.min(cols);
            let (rank, cut) = (rank.min(small), cut.min(small));
            let mut number = numbers(seed);
            let a: Vec<f64> = (0..rank * cols).map(|_| number()).collect();
            let b: Vec<f64> = (0..rows * rank).map(|_| number()).collect();
            let matrix = product(&a, &b, rank);
            let (a, b) = part(&matrix, rows, cols, Along::Largest(cut));
            let (rest_a, rest_b) = part(&matrix, rows, cols, Along::Smallest(small - cut));
            let large = if cut == 0 { vec![0.0; rows * cols] } else { product(&a, &b, cut) };
            let rest = if cut == small { vec![0.0; rows * cols] } else { product(&rest_a, &rest_b, small - cut) };
            for ((x, y), z) in large.iter().zip(&rest).zip(&matrix) {
                prop_assert!((x + y - z).abs() < 1e-11, "{x} + {y} is not {z}");
            }
            let sizes: Vec<f64> = (0..cut)
                .map(|k| b.iter().skip(k).step_by(cut).map(|v| v * v).sum::<f64>().sqrt()).collect();
            prop_assert!(sizes.is_sorted_by(|x, y| *x >= *y - 1e-12));
            // What is beyond the rank is nothing, but for what a small direction beside it lets through: squares
            // tell the two apart by the square of its value.
            let nothing = 1e-13 * sizes.first().map_or(0.0, |first| first * first) / sizes.get(rank - 1).unwrap_or(&1.0);
            prop_assert!(sizes.iter().skip(rank).all(|size| *size <= nothing), "{sizes:?}, {nothing}");
            for k in 0..cut {
                for other in 0..=k {
                    let dot: f64 = a[k * cols..][..cols].iter().zip(&a[other * cols..][..cols])
                        .map(|(x, y)| x * y).sum();
                    let unit = if k == other && sizes[k] > 0.0 { 1.0 } else { 0.0 };
                    // A direction is as sure as its singular value is large.
                    let sure = sizes[0] / sizes[k.max(other)].max(1e-300);
                    prop_assert!(sizes[k] == 0.0 || (dot - unit).abs() < 1e-12 * sure.max(1.0));
                }
            }
            // Eckart and Young: part and rest are orthogonal.
            for row in large.chunks(cols).take(7) {
                for other in rest.chunks(cols) {
                    let dot: f64 = row.iter().zip(other).map(|(x, y)| x * y).sum();
                    prop_assert!(dot.abs() < 1e-9, "{dot}");
                }
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
