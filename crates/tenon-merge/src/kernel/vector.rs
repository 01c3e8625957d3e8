//! Inner products and multiples of vectors, which reflections, rotations and
//! Kronecker products are made of.
//!
//! Products of `f64` are not exact, so nothing is fused; an inner product is
//! summed in [`LANES`] interleaved sums that are added pairwise.

use super::kernel;

/// Interleaved sums: two AVX-512 vectors, four AVX2 ones.
const LANES: usize = 16;

kernel!(
    /// Inner product of two vectors of one length.
    pub fn dot = dot_body(a: &[f64], b: &[f64]) -> f64
);
kernel!(
    /// `values += factor * vector`, two roundings an element.
    pub fn add_scaled = add_scaled_body(values: &mut [f64], vector: &[f64], factor: f64)
);
kernel!(
    /// `values += scale * (a ∘ b)`, element by element.
    pub fn add_product = add_product_body(values: &mut [f64], a: &[f64], b: &[f64], scale: f64)
);

#[inline(always)]
fn dot_body<const FUSED: bool>(a: &[f64], b: &[f64]) -> f64 {
    let mut sums = [0.0; LANES];
    let ((a_chunks, a_rest), (b_chunks, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    for (a, b) in a_chunks.iter().zip(b_chunks) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a * b;
        }
    }
    for ((sum, a), b) in sums.iter_mut().zip(a_rest).zip(b_rest) {
        *sum += a * b;
    }
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            sums[i] += sums[i + width];
        }
        width /= 2;
    }
    sums[0]
}

#[inline(always)]
fn add_scaled_body<const FUSED: bool>(values: &mut [f64], vector: &[f64], factor: f64) {
    for (value, element) in values.iter_mut().zip(vector) {
        *value += factor * element;
    }
}

#[inline(always)]
fn add_product_body<const FUSED: bool>(values: &mut [f64], a: &[f64], b: &[f64], scale: f64) {
    for ((value, a), b) in values.iter_mut().zip(a).zip(b) {
        *value += scale * (a * b);
    }
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn levels_agree_bit_for_bit_and_are_right(
            pairs in proptest::collection::vec((-1e3f64..1e3, -1e3f64..1e3), 0..200), factor in -2f64..2.0,
        ) {
            let (a, b): (Vec<f64>, Vec<f64>) = pairs.into_iter().unzip();
            let plain: f64 = a.iter().zip(&b).map(|(a, b)| a * b).sum();
            let size: f64 = a.iter().zip(&b).map(|(a, b)| (a * b).abs()).sum();
            let scalar = dot(Level::Scalar, &a, &b);
            prop_assert!((scalar - plain).abs() <= 1e-13 * size);
            for level in Level::available() {
                prop_assert_eq!(dot(level, &a, &b).to_bits(), scalar.to_bits());
                let mut sum = a.clone();
                add_scaled(level, &mut sum, &b, factor);
                prop_assert!(sum.iter().zip(&a).zip(&b).all(|((s, a), b)| *s == a + factor * b));
                let mut sum = a.clone();
                add_product(level, &mut sum, &a, &b, factor);
                prop_assert!(sum.iter().zip(&a).zip(&b).all(|((s, a), b)| *s == a + factor * (a * b)));
            }
        }
    }
}
