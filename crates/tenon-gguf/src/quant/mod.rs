//! Quantization kernels: rows of `f32` in, blocks out, the bytes of ggml's reference.
//!
//! ggml fixes its bytes by the order in which it adds. So a block is never
//! split over lanes: each lane takes a block of its own and goes through it in
//! the reference's order, and sixteen blocks go side by side. The bodies are
//! generic in the number of lanes; one lane is the definition, and a test sees
//! that all numbers of lanes and all CPU levels agree with it bit for bit.

mod lanes;
mod legacy;
mod q6_k;
mod q8_0;
mod qkx;

pub use tenon_simd::Level;

use crate::GgmlType;

/// Encodes whole rows as one type: `x` becomes `row_bytes(x.len())` bytes.
///
/// # Panics
///
/// Where `x` is not whole blocks or `out` has another length, or for a type that is not written
/// (integers and `f64`).
pub fn encode(level: Level, ggml_type: GgmlType, x: &[f32], out: &mut [u8]) {
    assert_eq!(x.len() as u64 % ggml_type.block_len(), 0, "whole blocks");
    assert_eq!(out.len() as u64, ggml_type.row_bytes(x.len() as u64));
    match ggml_type {
        GgmlType::F32 => {
            for (out, x) in out.as_chunks_mut::<4>().0.iter_mut().zip(x) {
                *out = x.to_le_bytes();
            }
        }
        GgmlType::F16 => {
            for (out, x) in out.as_chunks_mut::<2>().0.iter_mut().zip(x) {
                *out = half::f16::from_f32(*x).to_le_bytes();
            }
        }
        GgmlType::BF16 => {
            for (out, x) in out.as_chunks_mut::<2>().0.iter_mut().zip(x) {
                *out = bf16(*x).to_le_bytes();
            }
        }
        GgmlType::Q8_0 => q8_0::quantize(level, x, out),
        GgmlType::Q4_0 => legacy::q4_0(x, out),
        GgmlType::Q4_1 => legacy::q4_1(x, out),
        GgmlType::Q5_0 => legacy::q5_0(x, out),
        GgmlType::Q5_1 => legacy::q5_1(x, out),
        GgmlType::Q4_K => qkx::q4_k(level, x, out),
        GgmlType::Q5_K => qkx::q5_k(level, x, out),
        GgmlType::Q6_K => q6_k::quantize(level, x, out),
        GgmlType::I8 | GgmlType::I16 | GgmlType::I32 | GgmlType::I64 | GgmlType::F64 => {
            panic!("{ggml_type} is not written from floats")
        }
    }
}

/// bfloat16, rounded to nearest even; a NaN stays one.
fn bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    if bits & 0x7fff_ffff > 0x7f80_0000 {
        return (bits >> 16) as u16 | 64;
    }
    ((bits.wrapping_add(0x7fff + ((bits >> 16) & 1))) >> 16) as u16
}

/// The `f16` nearest to `x`, and the value it stands for.
fn f16(x: f32) -> ([u8; 2], f32) {
    let x = half::f16::from_f32(x);
    (x.to_le_bytes(), x.to_f32())
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUANTIZED: [GgmlType; 8] = [
        GgmlType::Q8_0,
        GgmlType::Q4_0,
        GgmlType::Q4_1,
        GgmlType::Q5_0,
        GgmlType::Q5_1,
        GgmlType::Q4_K,
        GgmlType::Q5_K,
        GgmlType::Q6_K,
    ];

    /// The bytes that ggml made of the same numbers.
    #[test]
    fn the_bytes_are_those_of_ggml() {
        let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/gguf-golden/kernels");
        for data in ["bf16", "edges", "heavy", "normal", "outliers", "positive"] {
            let bytes = std::fs::read(dir.join(format!("{data}.f32"))).unwrap();
            let x: Vec<f32> = bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
            for ggml_type in QUANTIZED {
                let expected = std::fs::read(dir.join(format!("{data}.{ggml_type}.bin"))).unwrap();
                for level in Level::available() {
                    let mut out = vec![0xee; expected.len()];
                    encode(level, ggml_type, &x, &mut out);
                    let block = ggml_type.block_bytes() as usize;
                    let wrong = out.chunks(block).zip(expected.chunks(block)).position(|(a, b)| a != b);
                    assert_eq!(wrong, None, "{data} {ggml_type} {level:?}: first wrong block");
                }
            }
        }
    }
}
