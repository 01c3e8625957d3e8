//! How far the numbers in blocks are from those that they were made of.
//!
//! [`encode_measured`] decodes what it has just encoded while both are in the
//! cache, and adds to [`QualitySums`]. A row is summed in one order, rows are
//! added exactly: so the figures of a tensor do not depend on threads, tiles
//! or CPUs.

use std::cell::RefCell;

use tenon_simd::kernel;

use super::{Level, decode, encode, encode_weighted};
use crate::GgmlType;

/// Numbers that are encoded and then decoded again: a few batches of a kernel, well within a
/// second-level cache.
const GROUP: usize = 16 * 1024;

/// Interleaved sums of a row.
const LANES: usize = 8;

/// What is summed of a tensor, in any number of parts.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct QualitySums {
    elements: u64,
    signal: ExactSum,
    error: ExactSum,
    largest: f64,
    infinite_rows: u64,
}

/// How well a tensor's numbers survived.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Quality {
    /// Elements.
    pub elements: u64,
    /// `‖decoded - x‖ / ‖x‖`, Euclidean (Frobenius) norms. Zero for a tensor of zeros.
    pub relative_error: f64,
    /// `10 log10(‖x‖² / ‖decoded - x‖²)` in decibels; none where nothing was lost.
    pub signal_to_noise: Option<f64>,
    /// Root of the mean square of `x`.
    pub rms: f64,
    /// Root of the mean square of `decoded - x`.
    pub rms_error: f64,
    /// The largest `|decoded - x|`.
    pub largest_error: f64,
    /// Rows with what is no finite number, before or after. The other figures leave them out.
    pub infinite_rows: u64,
}

impl QualitySums {
    /// Takes in the sums of other rows of the tensor.
    pub fn merge(&mut self, other: &Self) {
        self.elements += other.elements;
        self.signal.merge(&other.signal);
        self.error.merge(&other.error);
        self.largest = self.largest.max(other.largest);
        self.infinite_rows += other.infinite_rows;
    }

    /// The figures.
    pub fn quality(&self) -> Quality {
        let (signal, error) = (self.signal.value(), self.error.value());
        Quality {
            elements: self.elements,
            relative_error: if error > 0.0 { (error / signal).sqrt() } else { 0.0 },
            signal_to_noise: (error > 0.0).then(|| 10.0 * (signal / error).log10()),
            rms: (signal / self.elements.max(1) as f64).sqrt(),
            rms_error: (error / self.elements.max(1) as f64).sqrt(),
            largest_error: self.largest,
            infinite_rows: self.infinite_rows,
        }
    }

    /// Adds a row as it was and as it comes out of its blocks.
    pub fn add_row(&mut self, level: Level, x: &[f32], decoded: &[f32]) {
        let row = compare(level, x, decoded);
        self.elements += x.len() as u64;
        if row.signal.is_finite() && row.error.is_finite() {
            self.signal.add(row.signal);
            self.error.add(row.error);
            self.largest = self.largest.max(row.largest);
        } else {
            self.infinite_rows += 1;
        }
    }
}

thread_local! {
    static DECODED: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// [`encode`] or, with the importance of each column, [`encode_weighted`] of rows of `row_len`
/// elements, and their sums.
///
/// # Panics
///
/// As those, and where `x` is not whole rows.
pub fn encode_measured(
    level: Level,
    ggml_type: GgmlType,
    x: &[f32],
    row_len: usize,
    importance: Option<&[f32]>,
    out: &mut [u8],
    sums: &mut QualitySums,
) {
    assert!(row_len > 0 && x.len().is_multiple_of(row_len), "whole rows");
    let rows = (GROUP / row_len).max(1);
    let bytes = ggml_type.row_bytes((rows * row_len) as u64) as usize;
    assert_eq!(out.len() as u64, ggml_type.row_bytes(x.len() as u64));
    DECODED.with_borrow_mut(|decoded| {
        for (x, out) in x.chunks(rows * row_len).zip(out.chunks_mut(bytes)) {
            match importance {
                Some(importance) => encode_weighted(level, ggml_type, x, importance, out),
                None => encode(level, ggml_type, x, out),
            }
            decoded.resize(x.len(), 0.0);
            decode(level, ggml_type, out, decoded);
            for (x, decoded) in x.chunks(row_len).zip(decoded.chunks(row_len)) {
                sums.add_row(level, x, decoded);
            }
        }
    });
}

/// The sums of a row.
#[derive(Debug, Clone, Copy, PartialEq)]
struct RowSums {
    signal: f64,
    error: f64,
    largest: f64,
}

kernel!(
    /// Sums of the squares of `x` and of what `decoded` is beside it, in interleaved sums.
    fn compare = compare_body(x: &[f32], decoded: &[f32]) -> RowSums
);

#[inline(always)]
fn compare_body<const FUSED: bool>(x: &[f32], decoded: &[f32]) -> RowSums {
    let (mut signal, mut error, mut largest) = ([0.0f64; LANES], [0.0f64; LANES], [0.0f64; LANES]);
    let ((x, x_rest), (y, y_rest)) = (x.as_chunks::<LANES>(), decoded.as_chunks::<LANES>());
    for (x, y) in x.iter().zip(y) {
        for lane in 0..LANES {
            let (x, y) = (f64::from(x[lane]), f64::from(y[lane]));
            let diff = y - x;
            signal[lane] += x * x;
            error[lane] += diff * diff;
            largest[lane] = if diff.abs() > largest[lane] { diff.abs() } else { largest[lane] };
        }
    }
    for (lane, (x, y)) in x_rest.iter().zip(y_rest).enumerate() {
        let (x, y) = (f64::from(*x), f64::from(*y));
        let diff = y - x;
        signal[lane] += x * x;
        error[lane] += diff * diff;
        largest[lane] = if diff.abs() > largest[lane] { diff.abs() } else { largest[lane] };
    }
    let total = |lanes: [f64; LANES]| lanes.iter().fold(0.0, |sum, lane| sum + lane);
    RowSums {
        signal: total(signal),
        error: total(error),
        largest: largest.iter().fold(0.0, |max, &lane| if lane > max { lane } else { max }),
    }
}

/// A sum of numbers that are not negative, without rounding: in fixed point, so that any order and
/// any grouping give the same.
#[derive(Debug, Clone, PartialEq, Default)]
struct ExactSum {
    /// Least word first; its last bit stands for 2^-LOWEST.
    words: [u64; WORDS],
}

/// Squares of the smallest `f32` are 2^-298, to be kept with some bits more.
const LOWEST: i32 = 320;
/// Squares of the largest `f32` are 2^256, and a tensor has fewer than 2^64 of them.
const WORDS: usize = 11;

impl ExactSum {
    /// Adds a finite number. What is below the last bit is left out.
    fn add(&mut self, value: f64) {
        let bits = value.to_bits();
        let exponent = (bits >> 52 & 0x7ff) as i32;
        let fraction = bits & ((1 << 52) - 1);
        let mantissa = if exponent == 0 { fraction } else { fraction | 1 << 52 };
        let shift = exponent.max(1) - 1075 + LOWEST;
        if shift < 0 {
            let below = shift.unsigned_abs();
            return self.carry(0, if below < 64 { mantissa >> below } else { 0 });
        }
        let (word, shift) = (shift as usize / 64, shift as u32 % 64);
        let wide = u128::from(mantissa) << shift;
        self.carry(word, wide as u64);
        self.carry(word + 1, (wide >> 64) as u64);
    }

    /// Adds to a word, and what overflows to the next ones. Beyond the last there is nothing to carry.
    fn carry(&mut self, word: usize, mut value: u64) {
        for word in self.words.iter_mut().skip(word) {
            let (sum, over) = word.overflowing_add(value);
            *word = sum;
            if !over {
                return;
            }
            value = 1;
        }
    }

    fn merge(&mut self, other: &Self) {
        for (at, word) in other.words.iter().enumerate() {
            self.carry(at, *word);
        }
    }

    /// As a float.
    fn value(&self) -> f64 {
        let weight = |at: usize| (64 * at as i32 - LOWEST).into();
        self.words.iter().enumerate().rev().fold(0.0, |sum, (at, word)| {
            let weight: f64 = weight(at);
            sum + *word as f64 * weight.exp2()
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_sum_is_exact_in_any_order() {
        let values = [1.0, 1e-60, 3.5e70, 0.1, 1e-89, 7.0, 1e77, 0.3];
        let mut forward = ExactSum::default();
        let mut backward = ExactSum::default();
        values.iter().for_each(|v| forward.add(*v));
        let (left, right) = values.split_at(3);
        right.iter().rev().for_each(|v| backward.add(*v));
        let mut other = ExactSum::default();
        left.iter().rev().for_each(|v| other.add(*v));
        backward.merge(&other);
        assert_eq!(forward, backward);
        assert!((forward.value() / 1.000_000_35e77 - 1.0).abs() < 1e-15);
        let mut small = ExactSum::default();
        (0..3).for_each(|_| small.add(0.25));
        assert_eq!(small.value(), 0.75);
    }

    proptest! {
        #[test]
        fn figures_do_not_depend_on_tiles_or_levels(
            x in proptest::collection::vec(-1.0f32..1.0, 7 * 256),
            split in 1usize..6,
        ) {
            let mut whole = QualitySums::default();
            let mut out = vec![0; 7 * 144];
            encode_measured(Level::Scalar, GgmlType::Q4_K, &x, 256, None, &mut out, &mut whole);
            let mut expected = vec![0; 7 * 144];
            encode(Level::Scalar, GgmlType::Q4_K, &x, &mut expected);
            prop_assert_eq!(&out, &expected);
            for level in Level::available() {
                let (left, right) = x.split_at(split * 256);
                let mut sums = QualitySums::default();
                let mut rest = QualitySums::default();
                encode_measured(level, GgmlType::Q4_K, right, 256, None, &mut out[split * 144..], &mut rest);
                encode_measured(level, GgmlType::Q4_K, left, 256, None, &mut out[..split * 144], &mut sums);
                rest.merge(&sums);
                prop_assert_eq!(&rest, &whole);
            }
            let mut decoded = vec![0.0; x.len()];
            decode(Level::Scalar, GgmlType::Q4_K, &out, &mut decoded);
            let signal: f64 = x.iter().map(|x| f64::from(*x).powi(2)).sum();
            let pairs = || x.iter().zip(&decoded).map(|(x, y)| f64::from(*y) - f64::from(*x));
            let error: f64 = pairs().map(|diff| diff * diff).sum();
            let quality = whole.quality();
            prop_assert!((quality.relative_error - (error / signal).sqrt()).abs() < 1e-12);
            prop_assert_eq!(quality.largest_error, pairs().map(f64::abs).fold(0.0, f64::max));
            prop_assert!(quality.signal_to_noise.unwrap() > 15.0);
        }
    }

    #[test]
    fn what_is_lost_in_bf16_is_nothing_and_infinity_is_told() {
        let mut sums = QualitySums::default();
        let mut out = [0; 128];
        encode_measured(Level::detect(), GgmlType::BF16, &[0.5; 64], 32, None, &mut out, &mut sums);
        let quality = sums.quality();
        assert_eq!((quality.relative_error, quality.signal_to_noise, quality.elements), (0.0, None, 64));
        let x = [[1.0f32; 32], [f32::INFINITY; 32]].concat();
        let mut out = [0; 68];
        encode_measured(Level::detect(), GgmlType::Q8_0, &x, 32, None, &mut out, &mut sums);
        assert_eq!(sums.quality().infinite_rows, 1);
    }
}
