//! Quantization kernels: rows of `f32` in, blocks out, the bytes of ggml's reference; and back.
//!
//! ggml fixes its bytes by the order in which it adds. So a block is never
//! split over lanes: each lane takes a block of its own and goes through it in
//! the reference's order, and sixteen or more blocks go side by side. The
//! bodies are generic in the vector; one lane is the definition, and a test
//! sees that all vectors and all CPU levels agree with it bit for bit.
//!
//! [`encode`] is `ggml_quantize_chunk` without an importance matrix,
//! [`encode_weighted`] with one: another search for most types, not the same
//! with all weights equal. [`decode`] is `dequantize_row_*`. [`encode_measured`]
//! does both and tells how far they are apart.

mod decode;
mod finite;
mod float;
mod iq4;
mod k_affine;
mod k_symmetric;
mod lanes;
mod legacy;
mod measure;
mod q8_0;
mod search;

pub use finite::{first_infinite, scales_are_finite};
pub use measure::{Quality, QualitySums, encode_measured};
pub use tenon_simd::Level;

use self::float::f16;
use crate::GgmlType;

/// Encodes whole rows as one type: `x` becomes `row_bytes(x.len())` bytes.
///
/// # Panics
///
/// Where `x` is not whole blocks or `out` has another length, or for a type that is not written
/// (integers, `f64` and `MXFP4`).
pub fn encode(level: Level, ggml_type: GgmlType, x: &[f32], out: &mut [u8]) {
    check(ggml_type, x.len(), out.len());
    match ggml_type {
        GgmlType::F32 => {
            for (out, x) in out.as_chunks_mut::<4>().0.iter_mut().zip(x) {
                *out = x.to_le_bytes();
            }
        }
        GgmlType::F16 => float::encode_f16(level, x, out),
        GgmlType::BF16 => float::encode_bf16(level, x, out),
        GgmlType::Q8_0 => q8_0::quantize(level, x, out),
        GgmlType::Q4_0 => legacy::q4_0(level, x, out),
        GgmlType::Q4_1 => legacy::q4_1(level, x, out),
        GgmlType::Q5_0 => legacy::q5_0(level, x, out),
        GgmlType::Q5_1 => legacy::q5_1(level, x, out),
        GgmlType::Q2_K => k_affine::q2_k(level, x, None, out),
        GgmlType::Q3_K => k_symmetric::q3_k(level, x, None, out),
        GgmlType::Q4_K => k_affine::q4_k(level, x, None, out),
        GgmlType::Q5_K => k_affine::q5_k(level, x, None, out),
        GgmlType::Q6_K => k_symmetric::q6_k(level, x, None, out),
        GgmlType::IQ4_NL => iq4::iq4_nl(level, x, None, out),
        GgmlType::IQ4_XS => iq4::iq4_xs(level, x, None, out),
        GgmlType::I8 | GgmlType::I16 | GgmlType::I32 | GgmlType::I64 | GgmlType::F64 | GgmlType::MXFP4 => {
            panic!("{ggml_type} is not written from floats")
        }
    }
}

/// Encodes whole rows with the importance of each column, as many numbers as a row has: how much an
/// error in that column counts. Types that are not searched (floats, Q8_0) do not look at it.
///
/// # Panics
///
/// As [`encode`], and where `x` is not whole rows.
pub fn encode_weighted(level: Level, ggml_type: GgmlType, x: &[f32], importance: &[f32], out: &mut [u8]) {
    check(ggml_type, x.len(), out.len());
    check(ggml_type, importance.len(), ggml_type.row_bytes(importance.len() as u64) as usize);
    if x.is_empty() {
        return;
    }
    assert_eq!(x.len() % importance.len(), 0, "whole rows");
    match ggml_type {
        GgmlType::Q4_0 => legacy::q4_0_weighted(level, x, importance, out),
        GgmlType::Q4_1 => legacy::q4_1_weighted(level, x, importance, out),
        GgmlType::Q5_0 => legacy::q5_0_weighted(level, x, importance, out),
        GgmlType::Q5_1 => legacy::q5_1_weighted(level, x, importance, out),
        GgmlType::Q2_K => k_affine::q2_k(level, x, Some(importance), out),
        GgmlType::Q3_K => k_symmetric::q3_k(level, x, Some(importance), out),
        GgmlType::Q4_K => k_affine::q4_k(level, x, Some(importance), out),
        GgmlType::Q5_K => k_affine::q5_k(level, x, Some(importance), out),
        GgmlType::Q6_K => k_symmetric::q6_k(level, x, Some(importance), out),
        GgmlType::IQ4_NL => iq4::iq4_nl(level, x, Some(importance), out),
        GgmlType::IQ4_XS => iq4::iq4_xs(level, x, Some(importance), out),
        _ => encode(level, ggml_type, x, out),
    }
}

/// Decodes whole rows: `row_bytes(out.len())` bytes become numbers, those of ggml's
/// `dequantize_row_*` bit for bit.
///
/// # Panics
///
/// Where `out` is not whole blocks or `bytes` has another length, or for integers and `f64`.
pub fn decode(level: Level, ggml_type: GgmlType, bytes: &[u8], out: &mut [f32]) {
    check(ggml_type, out.len(), bytes.len());
    // Blocks of sixteen do not fill larger registers, which cost more than they gain.
    let narrow = level.min(Level::Avx2);
    match ggml_type {
        GgmlType::F32 => {
            for (out, bytes) in out.iter_mut().zip(bytes.as_chunks().0) {
                *out = f32::from_le_bytes(*bytes);
            }
        }
        GgmlType::F16 => decode::f16(level, bytes, out),
        GgmlType::BF16 => decode::bf16(level, bytes, out),
        GgmlType::Q8_0 => decode::q8_0(level, bytes, out),
        GgmlType::Q4_0 => decode::q4_0(narrow, bytes, out),
        GgmlType::Q4_1 => decode::q4_1(narrow, bytes, out),
        GgmlType::Q5_0 => decode::q5_0(narrow, bytes, out),
        GgmlType::Q5_1 => decode::q5_1(narrow, bytes, out),
        GgmlType::Q2_K => decode::q2_k(narrow, bytes, out),
        GgmlType::Q3_K => decode::q3_k(narrow, bytes, out),
        GgmlType::Q4_K => decode::q4_k(narrow, bytes, out),
        GgmlType::Q5_K => decode::q5_k(narrow, bytes, out),
        GgmlType::Q6_K => decode::q6_k(narrow, bytes, out),
        GgmlType::IQ4_NL => decode::iq4_nl(narrow, bytes, out),
        GgmlType::IQ4_XS => decode::iq4_xs(narrow, bytes, out),
        GgmlType::MXFP4 => decode::mxfp4(narrow, bytes, out),
        GgmlType::I8 | GgmlType::I16 | GgmlType::I32 | GgmlType::I64 | GgmlType::F64 => {
            panic!("{ggml_type} is not read as floats")
        }
    }
}

/// Rounds each number to the nearest `f16` or `bf16`, ties to even; any other type leaves them.
pub fn round(level: Level, ggml_type: GgmlType, x: &mut [f32]) {
    match ggml_type {
        GgmlType::F16 => float::round_f16(level, x),
        GgmlType::BF16 => float::round_bf16(level, x),
        _ => {}
    }
}

fn check(ggml_type: GgmlType, elements: usize, bytes: usize) {
    assert_eq!(elements as u64 % ggml_type.block_len(), 0, "whole blocks");
    assert_eq!(bytes as u64, ggml_type.row_bytes(elements as u64));
}

#[cfg(test)]
mod tests;
