//! Bytes of a tile to `f64` and back, rounding once.
//!
//! `f64` to bf16 or f16 goes through an `f32` rounded *to odd* (truncated,
//! lowest bit set when anything was lost). The final rounding to nearest even
//! then sees everything it needs, so the two steps equal one rounding; see
//! Boldo and Melquiond, "Emulation of a FMA and correctly rounded sums: proved
//! algorithms using rounding to odd", 2008.

use tenon_checkpoint::Dtype;

use super::kernel;

/// Decodes little-endian elements of an editable dtype. `bytes` has `out.len()` elements.
///
/// # Panics
/// When the dtype is not editable or the lengths disagree.
pub fn decode(level: super::Level, dtype: Dtype, bytes: &[u8], out: &mut [f64]) {
    assert_eq!(bytes.len() as u64 * 8, out.len() as u64 * dtype.bits());
    match dtype {
        Dtype::BF16 => decode_bf16(level, bytes, out),
        Dtype::F16 => decode_f16(level, bytes, out),
        Dtype::F32 => decode_f32(level, bytes, out),
        Dtype::F64 => decode_f64(level, bytes, out),
        other => panic!("{other} is not editable"),
    }
}

/// Encodes with one rounding to nearest even. Returns whether all results are finite.
///
/// # Panics
/// When the dtype is not editable or the lengths disagree.
pub fn encode(level: super::Level, dtype: Dtype, values: &[f64], out: &mut [u8]) -> bool {
    assert_eq!(out.len() as u64 * 8, values.len() as u64 * dtype.bits());
    match dtype {
        Dtype::BF16 => encode_bf16(level, values, out),
        Dtype::F16 => encode_f16(level, values, out),
        Dtype::F32 => encode_f32(level, values, out),
        Dtype::F64 => encode_f64(level, values, out),
        other => panic!("{other} is not editable"),
    }
}

kernel!(fn decode_bf16 = decode_bf16_body(bytes: &[u8], out: &mut [f64]));
kernel!(fn decode_f16 = decode_f16_body(bytes: &[u8], out: &mut [f64]));
kernel!(fn decode_f32 = decode_f32_body(bytes: &[u8], out: &mut [f64]));
kernel!(fn decode_f64 = decode_f64_body(bytes: &[u8], out: &mut [f64]));
kernel!(fn encode_bf16 = encode_bf16_body(values: &[f64], out: &mut [u8]) -> bool);
kernel!(fn encode_f16 = encode_f16_body(values: &[f64], out: &mut [u8]) -> bool);
kernel!(fn encode_f32 = encode_f32_body(values: &[f64], out: &mut [u8]) -> bool);
kernel!(fn encode_f64 = encode_f64_body(values: &[f64], out: &mut [u8]) -> bool);

#[inline(always)]
fn decode_bf16_body<const FUSED: bool>(bytes: &[u8], out: &mut [f64]) {
    for (value, &bytes) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
        *value = f32::from_bits(u32::from(u16::from_le_bytes(bytes)) << 16).into();
    }
}

#[inline(always)]
fn decode_f16_body<const FUSED: bool>(bytes: &[u8], out: &mut [f64]) {
    for (value, &bytes) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
        *value = f16_to_f32(u16::from_le_bytes(bytes)).into();
    }
}

#[inline(always)]
fn decode_f32_body<const FUSED: bool>(bytes: &[u8], out: &mut [f64]) {
    for (value, &bytes) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
        *value = f32::from_le_bytes(bytes).into();
    }
}

#[inline(always)]
fn decode_f64_body<const FUSED: bool>(bytes: &[u8], out: &mut [f64]) {
    for (value, &bytes) in out.iter_mut().zip(bytes.as_chunks::<8>().0) {
        *value = f64::from_le_bytes(bytes);
    }
}

#[inline(always)]
fn encode_bf16_body<const FUSED: bool>(values: &[f64], out: &mut [u8]) -> bool {
    let mut broken = 0u16;
    for (&value, bytes) in values.iter().zip(out.as_chunks_mut::<2>().0) {
        let bits = to_f32_odd(value);
        let rounded = (bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16) as u16;
        let nan = (bits >> 16) as u16 | 0x40;
        let result = if bits & 0x7fff_ffff > 0x7f80_0000 { nan } else { rounded };
        broken |= u16::from(result & 0x7f80 == 0x7f80);
        *bytes = result.to_le_bytes();
    }
    broken == 0
}

#[inline(always)]
fn encode_f16_body<const FUSED: bool>(values: &[f64], out: &mut [u8]) -> bool {
    let mut broken = 0u16;
    for (&value, bytes) in values.iter().zip(out.as_chunks_mut::<2>().0) {
        let result = f32_bits_to_f16(to_f32_odd(value));
        broken |= u16::from(result & 0x7c00 == 0x7c00);
        *bytes = result.to_le_bytes();
    }
    broken == 0
}

#[inline(always)]
fn encode_f32_body<const FUSED: bool>(values: &[f64], out: &mut [u8]) -> bool {
    let mut broken = 0u32;
    for (&value, bytes) in values.iter().zip(out.as_chunks_mut::<4>().0) {
        let result = value as f32;
        broken |= u32::from(result.to_bits() & 0x7f80_0000 == 0x7f80_0000);
        *bytes = result.to_le_bytes();
    }
    broken == 0
}

#[inline(always)]
fn encode_f64_body<const FUSED: bool>(values: &[f64], out: &mut [u8]) -> bool {
    let mut broken = 0u32;
    for (&value, bytes) in values.iter().zip(out.as_chunks_mut::<8>().0) {
        broken |= u32::from(!value.is_finite());
        *bytes = value.to_le_bytes();
    }
    broken == 0
}

/// Bits of the `f32` nearest to zero of the two around `value`, made odd unless it is `value` itself.
#[inline(always)]
fn to_f32_odd(value: f64) -> u32 {
    let nearest = value as f32;
    let back = f64::from(nearest);
    let beyond = u32::from(back.abs() > value.abs());
    let inexact = u32::from(back != value);
    (nearest.to_bits() - beyond) | inexact
}

#[inline(always)]
fn f16_to_f32(half: u16) -> f32 {
    let bits = u32::from(half & 0x7fff) << 13;
    // The exponent biases differ by 112; scaling by 2^112 also makes subnormals normal.
    let scaled = (f32::from_bits(bits) * f32::from_bits(0x7780_0000)).to_bits();
    let special = if bits >= 0x0f80_0000 { 0x7f80_0000 } else { 0 };
    f32::from_bits(scaled | special | u32::from(half & 0x8000) << 16)
}

#[inline(always)]
fn f32_bits_to_f16(bits: u32) -> u16 {
    let sign = (bits >> 16) as u16 & 0x8000;
    let abs = bits & 0x7fff_ffff;
    let normal = abs.wrapping_add(0xc800_0fff).wrapping_add((abs >> 13) & 1) >> 13;
    // Adding 0.5 shifts a subnormal result into the low mantissa bits, rounding to nearest even.
    let subnormal = (f32::from_bits(abs) + 0.5).to_bits().wrapping_sub(0x3f00_0000);
    let special = if abs > 0x7f80_0000 { 0x7e00 } else { 0x7c00 };
    let result = if abs < 0x3880_0000 { subnormal } else { normal };
    let result = if abs >= 0x4780_0000 { special } else { result };
    result as u16 | sign
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;
    use half::{bf16, f16};
    use proptest::prelude::*;

    #[test]
    fn every_half_is_decoded_as_the_half_crate_does() {
        let all: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
        for level in Level::available() {
            let mut out = vec![0.0; 1 << 16];
            decode(level, Dtype::F16, &all, &mut out);
            for (bits, value) in (0..=u16::MAX).zip(&out) {
                let expected = f16::from_bits(bits).to_f64();
                assert!(
                    value.to_bits() == expected.to_bits() || value.is_nan() && expected.is_nan(),
                    "{bits:04x}"
                );
            }
            decode(level, Dtype::BF16, &all, &mut out);
            for (bits, value) in (0..=u16::MAX).zip(&out) {
                let expected = bf16::from_bits(bits).to_f64();
                assert!(
                    value.to_bits() == expected.to_bits() || value.is_nan() && expected.is_nan(),
                    "{bits:04x}"
                );
            }
        }
    }

    /// The nearest of all finite values and infinity by search, ties to even: the definition of rounding.
    fn nearest(value: f64, decode: impl Fn(u16) -> f64, infinity: u16) -> u16 {
        let abs = value.abs();
        let (mut low, mut high) = (0, infinity);
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            if decode(middle) <= abs { low = middle } else { high = middle }
        }
        // As IEEE 754 has it, infinity stands where the next finite value would.
        let step = decode(infinity - 1) - decode(infinity - 2);
        let above = if high == infinity { decode(infinity - 1) + step } else { decode(high) };
        let (down, up) = (abs - decode(low), above - abs);
        let bits = if down < up || (down == up && low % 2 == 0) { low } else { high };
        bits | if value.is_sign_negative() { 0x8000 } else { 0 }
    }

    fn check(value: f64) {
        for level in Level::available() {
            for (dtype, expected) in [
                (Dtype::F16, nearest(value, |b| f16::from_bits(b).to_f64(), 0x7c00)),
                (Dtype::BF16, nearest(value, |b| bf16::from_bits(b).to_f64(), 0x7f80)),
            ] {
                let mut out = [0; 2];
                let finite = encode(level, dtype, &[value], &mut out);
                let found = u16::from_le_bytes(out);
                assert_eq!(found, expected, "{value:e} as {dtype} at {level:?}");
                let decoded = if dtype == Dtype::F16 {
                    f16::from_bits(found).to_f64()
                } else {
                    bf16::from_bits(found).to_f64()
                };
                assert_eq!(finite, decoded.is_finite());
            }
        }
    }

    #[test]
    fn the_neighbourhood_of_every_boundary_rounds_once() {
        // Around each midpoint between two halves, closer than an f32 can tell.
        for bits in (0..0x7c00u16).step_by(7).chain(0x7bf0..0x7c00).chain(0..20) {
            for (a, b) in [
                (f16::from_bits(bits).to_f64(), f16::from_bits(bits + 1).to_f64()),
                (bf16::from_bits(bits).to_f64(), bf16::from_bits(bits + 1).to_f64()),
            ] {
                let middle = if b.is_finite() { a + (b - a) / 2.0 } else { 65520.0 };
                for value in
                    [middle, middle.next_down(), middle.next_up(), a.next_up(), -middle, -middle.next_up()]
                {
                    check(value);
                }
            }
        }
        for value in [0.0, -0.0, f64::MAX, f64::from(f32::MAX), 65519.99, 65520.0, 1e-300, f64::MIN_POSITIVE]
        {
            check(value);
        }
    }

    #[test]
    fn what_is_not_finite_is_reported() {
        for level in Level::available() {
            for dtype in [Dtype::F16, Dtype::BF16, Dtype::F32, Dtype::F64] {
                for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
                    let mut values = [1.0; 37];
                    values[31] = bad;
                    let mut out = vec![0; 37 * dtype.bits() as usize / 8];
                    assert!(!encode(level, dtype, &values, &mut out), "{bad} as {dtype}");
                    let mut back = [0.0; 37];
                    decode(level, dtype, &out, &mut back);
                    assert!(back[31] == bad || back[31].is_nan() && bad.is_nan());
                    values[31] = 2.0;
                    assert!(encode(level, dtype, &values, &mut out));
                }
            }
        }
    }

    proptest! {
        #[test]
        fn any_value_rounds_once(bits: u64) {
            let value = f64::from_bits(bits);
            if !value.is_nan() && value.is_finite() {
                check(value);
            }
        }

        #[test]
        fn ordinary_values_round_once(value in -100f64..100.0) {
            check(value);
        }

        #[test]
        fn levels_agree(bits in proptest::collection::vec(any::<u64>(), 0..100)) {
            let values: Vec<f64> = bits.iter().map(|b| f64::from_bits(*b)).collect();
            for dtype in [Dtype::F16, Dtype::BF16, Dtype::F32, Dtype::F64] {
                let mut scalar = vec![0; values.len() * dtype.bits() as usize / 8];
                let finite = encode(Level::Scalar, dtype, &values, &mut scalar);
                for level in Level::available() {
                    let mut out = vec![0; scalar.len()];
                    prop_assert_eq!(encode(level, dtype, &values, &mut out), finite);
                    // Which NaN comes out may differ; a merge refuses them anyway.
                    if values.iter().all(|v| !v.is_nan()) {
                        prop_assert_eq!(&out, &scalar);
                    }
                }
            }
        }
    }
}
