//! Numbers that are none, which `llama-quantize` refuses too: NaN and infinities among the weights, and
//! scales of blocks beyond what `f16` holds.

use tenon_simd::kernel;

use super::Level;
use crate::GgmlType;

/// The exponent of an `f32` that is no finite number.
const EXPONENT: u32 = 0x7f80_0000;

/// Place of the first NaN or infinity.
pub fn first_infinite(level: Level, x: &[f32]) -> Option<usize> {
    if all_finite(level, x) { None } else { x.iter().position(|x| !x.is_finite()) }
}

kernel!(
    fn all_finite = all_finite_body(x: &[f32]) -> bool
);

#[inline(always)]
fn all_finite_body<const FUSED: bool>(x: &[f32]) -> bool {
    // Without a branch for each number, so that it becomes vector code.
    x.chunks(1024).all(|chunk| {
        chunk.iter().fold(0, |found, x| found | u32::from(x.to_bits() & EXPONENT == EXPONENT)) == 0
    })
}

/// Whether the scales of blocks, or the numbers of a float type, are finite.
///
/// # Panics
///
/// Where `bytes` is not whole blocks.
pub fn scales_are_finite(ggml_type: GgmlType, bytes: &[u8]) -> bool {
    // Where the `f16` of each block lie (`ggml-common.h`).
    let scales: &[usize] = match ggml_type {
        GgmlType::Q4_0 | GgmlType::Q5_0 | GgmlType::Q8_0 | GgmlType::IQ4_NL | GgmlType::IQ4_XS => &[0],
        GgmlType::Q4_1 | GgmlType::Q5_1 | GgmlType::Q4_K | GgmlType::Q5_K => &[0, 2],
        GgmlType::Q2_K => &[80, 82],
        GgmlType::Q3_K => &[108],
        GgmlType::Q6_K => &[208],
        GgmlType::F16 => &[0],
        GgmlType::BF16 => return halves(bytes).all(|bits| bits & 0x7f80 != 0x7f80),
        GgmlType::F32 => {
            let words = bytes.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word));
            return words.fold(true, |finite, bits| finite & (bits & EXPONENT != EXPONENT));
        }
        // Its exponent is a byte, of which one value is none.
        GgmlType::MXFP4 => return bytes.chunks_exact(17).all(|block| block[0] != 0xff),
        GgmlType::I8 | GgmlType::I16 | GgmlType::I32 | GgmlType::I64 | GgmlType::F64 => return true,
    };
    let block = ggml_type.row_bytes(ggml_type.block_len()) as usize;
    assert_eq!(bytes.len() % block, 0, "whole blocks");
    let of = |block: &[u8], at: usize| u16::from_le_bytes([block[at], block[at + 1]]);
    bytes.chunks_exact(block).all(|block| scales.iter().all(|at| of(block, *at) & 0x7c00 != 0x7c00))
}

fn halves(bytes: &[u8]) -> impl Iterator<Item = u16> {
    bytes.as_chunks::<2>().0.iter().map(|half| u16::from_le_bytes(*half))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant;

    #[test]
    fn one_number_that_is_none_is_found_at_its_place_on_every_level() {
        for level in [Level::Scalar, Level::Avx2, Level::Avx512] {
            let mut x = vec![f32::MAX; 3000];
            assert_eq!(first_infinite(level, &x), None);
            for (at, bad) in
                [(0, f32::NAN), (1023, f32::INFINITY), (1024, f32::NEG_INFINITY), (2999, -f32::NAN)]
            {
                let good = std::mem::replace(&mut x[at], bad);
                assert_eq!(first_infinite(level, &x), Some(at));
                x[at] = good;
            }
        }
    }

    #[test]
    fn a_scale_beyond_f16_is_found_in_any_block() {
        let floats = [GgmlType::F32, GgmlType::F16, GgmlType::BF16];
        for ggml_type in floats.into_iter().chain(quant::tests::QUANTIZED) {
            let mut x: Vec<f32> = (0..1024).map(|n| (n % 37) as f32 - 18.0).collect();
            let mut out = vec![0; ggml_type.row_bytes(1024) as usize];
            quant::encode(Level::detect(), ggml_type, &x, &mut out);
            assert!(scales_are_finite(ggml_type, &out), "{ggml_type}");
            for at in [3, 700, 1023] {
                // bf16 rounds the largest up; searches square numbers.
                let large = if ggml_type == GgmlType::BF16 { f32::MAX } else { 1e12 };
                let good = std::mem::replace(&mut x[at], large);
                quant::encode(Level::detect(), ggml_type, &x, &mut out);
                assert_eq!(
                    scales_are_finite(ggml_type, &out),
                    ggml_type == GgmlType::F32,
                    "{ggml_type} at {at}"
                );
                x[at] = good;
            }
        }
    }
}
