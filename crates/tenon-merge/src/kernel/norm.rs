//! Euclidean norms of rows and columns, and scaling by them.
//!
//! Squares are not exact in `f64`, so nothing here is fused; a row is summed
//! in [`LANES`] interleaved sums that are added pairwise.

use super::kernel;

/// Interleaved sums of a row's squares: two AVX-512 vectors, four AVX2 ones.
const LANES: usize = 16;

kernel!(
    /// Euclidean norm of a row.
    pub fn row_norm = row_norm_body(row: &[f64]) -> f64
);
kernel!(
    /// Multiplies a row by a number.
    pub fn scale_row = scale_row_body(row: &mut [f64], factor: f64)
);
kernel!(
    /// Adds the square of each element of `row` to the sum of its column.
    pub fn add_column_squares = add_column_squares_body(row: &[f64], sums: &mut [f64])
);
kernel!(
    /// Multiplies each element of `row` by the factor of its column.
    pub fn scale_columns = scale_columns_body(row: &mut [f64], factors: &[f64])
);

#[inline(always)]
fn row_norm_body<const FUSED: bool>(row: &[f64]) -> f64 {
    let mut sums = [0.0; LANES];
    let (chunks, rest) = row.as_chunks::<LANES>();
    for chunk in chunks {
        for (sum, value) in sums.iter_mut().zip(chunk) {
            *sum += value * value;
        }
    }
    for (sum, value) in sums.iter_mut().zip(rest) {
        *sum += value * value;
    }
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            sums[i] += sums[i + width];
        }
        width /= 2;
    }
    sums[0].sqrt()
}

#[inline(always)]
fn scale_row_body<const FUSED: bool>(row: &mut [f64], factor: f64) {
    for value in row {
        *value *= factor;
    }
}

#[inline(always)]
fn add_column_squares_body<const FUSED: bool>(row: &[f64], sums: &mut [f64]) {
    for (value, sum) in row.iter().zip(sums) {
        *sum += value * value;
    }
}

#[inline(always)]
fn scale_columns_body<const FUSED: bool>(row: &mut [f64], factors: &[f64]) {
    for (value, factor) in row.iter_mut().zip(factors) {
        *value *= factor;
    }
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn levels_agree_bit_for_bit_and_the_norm_is_one(row in proptest::collection::vec(-1e3f64..1e3, 0..200), factor in -2f64..2.0) {
            let norm = row_norm(Level::Scalar, &row);
            let plain = row.iter().map(|v| v * v).sum::<f64>().sqrt();
            prop_assert!((norm - plain).abs() <= 1e-13 * plain);
            let mut columns = vec![1.5; row.len()];
            add_column_squares(Level::Scalar, &row, &mut columns);
            for level in Level::available() {
                prop_assert_eq!(row_norm(level, &row).to_bits(), norm.to_bits());
                let mut sums = vec![1.5; row.len()];
                add_column_squares(level, &row, &mut sums);
                prop_assert_eq!(&sums, &columns);
                let mut scaled = row.clone();
                scale_row(level, &mut scaled, factor);
                prop_assert!(scaled.iter().zip(&row).all(|(s, v)| *s == v * factor));
                let mut by_column = row.clone();
                scale_columns(level, &mut by_column, &columns);
                prop_assert!(by_column.iter().zip(&row).zip(&columns).all(|((s, v), c)| *s == v * c));
            }
        }
    }
}
