//! Eigenvectors of symmetric matrices, on all cores and with the same bits whatever their number.
//!
//! The matrix becomes tridiagonal by reflections (Householder 1958), whose changes are collected and made some columns
//! at a time (Dongarra et al. 1989); what they did is undone to the eigenvectors of the [tridiagonal](crate::tridiagonal)
//! matrix, many reflections at a time (Schreiber and Van Loan 1989).

use std::ops::Range;

use crate::kernel::{self, Level, Matrix, Multiply};
use crate::tridiagonal::{self, Eigen};

/// Reflections whose changes are made at a time.
const PANEL: usize = 32;
/// Rows a thread takes of a product with a vector.
const BAND: usize = 64;
/// Elements of a product with a vector that are worth a thread.
const THREAD_WORK: usize = 1 << 17;

/// The eigenvalues of a symmetric matrix `[n, n]`, of which the lower half is read, ascending, and the eigenvectors
/// of those in the places `wanted`.
pub(crate) fn largest_last(mut matrix: Vec<f64>, n: usize, wanted: Range<usize>) -> Eigen {
    mirror(&mut matrix, n);
    let (diagonal, beside, scales) = reduce(&mut matrix, n);
    let mut eigen = tridiagonal::solve(&diagonal, &beside, wanted);
    turn_back(&matrix, &scales, n, &mut eigen.vectors);
    eigen
}

/// Fills the half above the diagonal.
fn mirror(matrix: &mut [f64], n: usize) {
    for first in (0..n).step_by(BAND) {
        for left in (0..=first).step_by(BAND) {
            for row in first..n.min(first + BAND) {
                for col in left..row.min(left + BAND) {
                    matrix[col * n + row] = matrix[row * n + col];
                }
            }
        }
    }
}

/// Makes the matrix tridiagonal: its diagonal, what is beside it, and the factors of the reflections, whose vectors
/// are left in its rows, right of the diagonal.
fn reduce(matrix: &mut [f64], n: usize) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
    let level = Level::detect();
    let (mut diagonal, mut beside, mut scales) = (vec![0.0; n], vec![0.0; n], vec![0.0; n]);
    for first in (0..n).step_by(PANEL) {
        let end = n.min(first + PANEL);
        // The change that is still to be made: - Σ v wᵀ + w vᵀ, vectors in full length.
        let mut changes: Vec<[Vec<f64>; 2]> = vec![];
        for i in first..end {
            let mut column = matrix[i * n + i..][..n - i].to_vec();
            for [v, w] in &changes {
                kernel::add_scaled(level, &mut column, &v[i..], -w[i]);
                kernel::add_scaled(level, &mut column, &w[i..], -v[i]);
            }
            diagonal[i] = column[0];
            if i + 1 == n {
                break;
            }
            let mut v = vec![0.0; n];
            let (scale, left) = reflection(&column[1..], &mut v[i + 1..]);
            (beside[i], scales[i]) = (left, scale);
            matrix[i * n + i + 1..][..n - i - 1].copy_from_slice(&v[i + 1..]);
            let mut w = vec![0.0; n];
            if scale != 0.0 {
                let (part, rows) = (&v[i + 1..], &matrix[(i + 1) * n..]);
                let bands = w[i + 1..].chunks_mut(BAND).zip(rows.chunks(BAND * n));
                kernel::on_all_cores(bands, (n - i) * (n - i) / THREAD_WORK, |_, (w, rows)| {
                    for (w, row) in w.iter_mut().zip(rows.chunks_exact(n)) {
                        *w = kernel::dot(level, &row[i + 1..], part);
                    }
                });
                for [x, y] in &changes {
                    let along = kernel::dot(level, &y[i + 1..], part);
                    kernel::add_scaled(level, &mut w[i + 1..], &x[i + 1..], -along);
                    let along = kernel::dot(level, &x[i + 1..], part);
                    kernel::add_scaled(level, &mut w[i + 1..], &y[i + 1..], -along);
                }
                kernel::scale_row(level, &mut w[i + 1..], scale);
                let along = kernel::dot(level, &w[i + 1..], part);
                kernel::add_scaled(level, &mut w[i + 1..], part, -scale * along / 2.0);
            }
            changes.push([v, w]);
        }
        if end < n {
            // [v, w] times [w, v]ᵀ, on what is left.
            let (mut left, mut right) = (vec![], vec![]);
            for row in end..n {
                left.extend(changes.iter().map(|[v, _]| v[row]).chain(changes.iter().map(|[_, w]| w[row])));
            }
            changes.iter().for_each(|[_, w]| right.extend_from_slice(&w[end..]));
            changes.iter().for_each(|[v, _]| right.extend_from_slice(&v[end..]));
            Multiply {
                left: Matrix { values: &left, stride: 2 * changes.len() },
                right: Matrix { values: &right, stride: n - end },
                shape: (n - end, 2 * changes.len(), n - end),
                scale: -1.0,
                lower: false,
            }
            .add_to(&mut matrix[end * n + end..], n);
        }
    }
    beside.pop();
    (diagonal, beside, scales)
}

/// The reflection `I - scale v vᵀ`, `v[0] = 1`, that leaves of a vector its first element alone: the scale, and what
/// is left.
fn reflection(vector: &[f64], v: &mut [f64]) -> (f64, f64) {
    let first = vector[0];
    let rest = kernel::row_norm(Level::detect(), &vector[1..]);
    v[0] = 1.0;
    if rest == 0.0 {
        return (0.0, first);
    }
    let left = -first.hypot(rest).copysign(first);
    v[1..].iter_mut().zip(&vector[1..]).for_each(|(v, x)| *v = x / (first - left));
    ((left - first) / left, left)
}

/// Applies the reflections, the last first, to vectors that are rows.
fn turn_back(reflections: &[f64], scales: &[f64], n: usize, vectors: &mut [f64]) {
    if vectors.is_empty() {
        return;
    }
    let level = Level::detect();
    let count = vectors.len() / n;
    for first in (0..n.saturating_sub(1)).step_by(PANEL).rev() {
        let end = (n - 1).min(first + PANEL);
        let (size, from) = (end - first, first + 1);
        let width = n - from;
        // v of each, and 0 before it.
        let mut v = vec![0.0; size * width];
        for (k, row) in v.chunks_exact_mut(width).enumerate() {
            row[k..].copy_from_slice(&reflections[(first + k) * n + from + k..][..width - k]);
        }
        // The product of all is I - Vᵀ T V, T upper triangular.
        let mut t = vec![0.0; size * size];
        for k in 0..size {
            let scale = scales[first + k];
            let row = |i: usize| &v[i * width..][..width];
            let along: Vec<f64> = (0..k).map(|i| kernel::dot(level, row(i), row(k))).collect();
            for i in 0..k {
                t[i * size + k] = -scale * (i..k).map(|j| t[i * size + j] * along[j]).sum::<f64>();
            }
            t[k * size + k] = scale;
        }
        let right = kernel::transposed(&v, size, width);
        let mut along = vec![0.0; count * size];
        Multiply {
            left: Matrix { values: &vectors[from..], stride: n },
            right: Matrix { values: &right, stride: size },
            shape: (count, width, size),
            scale: 1.0,
            lower: false,
        }
        .add_to(&mut along, size);
        let mut turned = vec![0.0; count * size];
        for (turned, along) in turned.chunks_exact_mut(size).zip(along.chunks_exact(size)) {
            for (i, value) in turned.iter_mut().enumerate() {
                *value = kernel::dot(level, &t[i * size..][..size], along);
            }
        }
        Multiply {
            left: Matrix { values: &turned, stride: size },
            right: Matrix { values: &v, stride: width },
            shape: (count, size, width),
            scale: -1.0,
            lower: false,
        }
        .add_to(&mut vectors[from..], n);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(60))]
        #[test]
        fn eigenvectors_are_orthonormal_and_only_stretched(
            n in 1usize..150, kind in 0usize..5, seed: u64, from in 0usize..150, to in 0usize..150,
        ) {
            let mut number = crate::numbers::numbers(seed);
            let mut matrix = vec![0.0; n * n];
            for row in 0..n {
                for col in 0..=row {
                    let value = match kind {
                        0 => number(),
                        // Diagonal, with many equal; blocks that nothing ties; graded; all equal.
                        1 => if row == col { (row % 3) as f64 } else { 0.0 },
                        2 => if row / 7 == col / 7 { number() } else { 0.0 },
                        3 => number() * 0.5f64.powi((row + col) as i32 / 4),
                        _ => 1.0,
                    };
                    (matrix[row * n + col], matrix[col * n + row]) = (value, value);
                }
            }
            let range = from.min(to).min(n)..from.max(to).min(n);
            let eigen = largest_last(matrix.clone(), n, range.clone());
            prop_assert_eq!(eigen.values.len(), n);
            prop_assert!(eigen.values.is_sorted());
            let trace: f64 = (0..n).map(|i| matrix[i * n + i]).sum();
            prop_assert!((eigen.values.iter().sum::<f64>() - trace).abs() < 1e-11);
            prop_assert_eq!(eigen.vectors.len(), range.len() * n);
            for (k, vector) in eigen.vectors.chunks(n).enumerate() {
                for (i, row) in matrix.chunks(n).enumerate() {
                    let along: f64 = row.iter().zip(vector).map(|(m, v)| m * v).sum();
                    let wanted = eigen.values[range.start + k] * vector[i];
                    prop_assert!((along - wanted).abs() < 1e-12 * n as f64, "{along} {wanted}");
                }
                for (other, vector_of_other) in eigen.vectors.chunks(n).enumerate() {
                    let dot: f64 = vector.iter().zip(vector_of_other).map(|(x, y)| x * y).sum();
                    prop_assert!((dot - f64::from(u8::from(k == other))).abs() < 1e-12, "{k} {other}: {dot}");
                }
            }
        }
    }
}
