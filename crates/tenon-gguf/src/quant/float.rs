//! `f16` and `bf16`, as ggml rounds them: to nearest even, what is no number to one of them.

use tenon_simd::kernel;

kernel!(
    /// To little-endian `f16`.
    pub(super) fn encode_f16 = encode_f16_body(x: &[f32], out: &mut [u8])
);
kernel!(
    /// To little-endian `bf16`.
    pub(super) fn encode_bf16 = encode_bf16_body(x: &[f32], out: &mut [u8])
);

#[inline(always)]
fn encode_f16_body<const FUSED: bool>(x: &[f32], out: &mut [u8]) {
    for (out, x) in out.as_chunks_mut::<2>().0.iter_mut().zip(x) {
        *out = to_f16(*x).to_le_bytes();
    }
}

#[inline(always)]
fn encode_bf16_body<const FUSED: bool>(x: &[f32], out: &mut [u8]) {
    for (out, x) in out.as_chunks_mut::<2>().0.iter_mut().zip(x) {
        *out = to_bf16(*x).to_le_bytes();
    }
}

kernel!(
    /// Each number to the nearest `f16`.
    pub(super) fn round_f16 = round_f16_body(x: &mut [f32])
);
kernel!(
    /// Each number to the nearest `bf16`.
    pub(super) fn round_bf16 = round_bf16_body(x: &mut [f32])
);

#[inline(always)]
fn round_f16_body<const FUSED: bool>(x: &mut [f32]) {
    for x in x {
        *x = from_f16(to_f16(*x));
    }
}

#[inline(always)]
fn round_bf16_body<const FUSED: bool>(x: &mut [f32]) {
    for x in x {
        *x = f32::from_bits(u32::from(to_bf16(*x)) << 16);
    }
}

/// bfloat16, rounded to nearest even; a NaN stays one.
#[inline(always)]
fn to_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    let nan = bits & 0x7fff_ffff > 0x7f80_0000;
    (if nan { bits >> 16 | 64 } else { rounded }) as u16
}

/// The nearest `f16`, without a branch. All NaN become one.
#[inline(always)]
pub(super) fn to_f16(x: f32) -> u16 {
    /// The least magnitude that rounds to infinity, and the least that is normal.
    const OVERFLOW: u32 = 0x477f_f000;
    const NORMAL: u32 = 0x3880_0000;
    let bits = x.to_bits();
    let (sign, size) = (bits >> 16 & 0x8000, bits & 0x7fff_ffff);
    // Exponent bias 127 becomes 15; the 13 bits that go round the rest.
    let normal = size.wrapping_add(0xfff + (size >> 13 & 1)).wrapping_sub(112 << 23) >> 13;
    // Multiples of 2^-24 are the last bits of numbers from 0.5 on.
    let small = (f32::from_bits(size) + 0.5).to_bits().wrapping_sub(0.5f32.to_bits());
    let finite = if size < NORMAL { small } else { normal };
    let infinite = if size > 0x7f80_0000 { 0x7e00 } else { 0x7c00 };
    (sign | if size < OVERFLOW { finite } else { infinite }) as u16
}

/// The value of an `f16`.
#[inline(always)]
pub(super) fn from_f16(bits: u16) -> f32 {
    let (sign, size) = (u32::from(bits & 0x8000) << 16, u32::from(bits & 0x7fff));
    // Exponent bias 15 becomes 127, also of numbers below the least normal one.
    let finite = (f32::from_bits(size << 13) * f32::from_bits((127 + 112) << 23)).to_bits();
    let quiet = if size > 0x7c00 { 0x0040_0000 } else { 0 };
    let infinite = size << 13 | 0x7f80_0000 | quiet;
    f32::from_bits(sign | if size < 0x7c00 { finite } else { infinite })
}

/// The `f16` nearest to `x`, and the value it stands for.
#[inline(always)]
pub(super) fn f16(x: f32) -> ([u8; 2], f32) {
    let bits = to_f16(x);
    (bits.to_le_bytes(), from_f16(bits))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_f16_come_back_and_their_middles_are_rounded_to_even() {
        for bits in 0..=u16::MAX {
            let value = from_f16(bits);
            assert_eq!(value.to_bits(), half::f16::from_bits(bits).to_f32().to_bits(), "{bits:#x}");
            if value.is_nan() {
                assert_eq!(to_f16(value), bits & 0x8000 | 0x7e00);
                continue;
            }
            assert_eq!(to_f16(value), bits);
            for nudge in -2..=2i32 {
                for spread in [0x1000u32, 0x800, 1] {
                    let near = f32::from_bits(
                        value.to_bits().wrapping_add(spread).wrapping_add_signed(nudge) & 0x7fff_ffff,
                    );
                    if !near.is_nan() {
                        assert_eq!(to_f16(near), half::f16::from_f32(near).to_bits(), "{near:e}");
                        assert_eq!(to_f16(-near), half::f16::from_f32(-near).to_bits(), "{near:e}");
                    }
                }
            }
        }
    }
}
