//! Q8_0: 32 elements share a scale, `x = d * q`, `q` in -127..=127.

use tenon_simd::kernel;

use super::f16;
use super::lanes::MAGIC;

const BLOCK: usize = 32;
const BYTES: usize = 34;

kernel!(
    /// Rows of whole blocks.
    pub(super) fn quantize = body(x: &[f32], out: &mut [u8])
);

#[inline(always)]
pub(super) fn body<const FUSED: bool>(x: &[f32], out: &mut [u8]) {
    for (x, out) in x.as_chunks::<BLOCK>().0.iter().zip(out.as_chunks_mut::<BYTES>().0) {
        // Magnitudes are ordered as their bits are; a maximum is the same in any order.
        let mut bits = 0u32;
        for v in x {
            bits = bits.max(v.to_bits() & 0x7fff_ffff);
        }
        let amax = f32::from_bits(bits);
        if !amax.is_finite() {
            not_finite(x, out);
            continue;
        }
        let d = amax / 127.0;
        let id = if d != 0.0 { 1.0 / d } else { 0.0 };
        let (head, quants) = out.split_at_mut(2);
        head.copy_from_slice(&f16(d).0);
        for (q, v) in quants.iter_mut().zip(x) {
            *q = round(v * id);
        }
    }
}

/// A block with infinities or what is no number: the reference's maximum forgets what came before
/// that, and its conversion to a byte gives zero.
#[cold]
fn not_finite(x: &[f32; BLOCK], out: &mut [u8; BYTES]) {
    let amax = x.iter().fold(0.0f32, |max, v| if max > v.abs() { max } else { v.abs() });
    let d = amax / 127.0;
    let id = if d != 0.0 { 1.0 / d } else { 0.0 };
    out[..2].copy_from_slice(&f16(d).0);
    for (q, v) in out[2..].iter_mut().zip(x) {
        let rounded = (v * id).round();
        *q = if rounded.abs() < 2_147_483_648.0 { rounded as i32 as u8 } else { 0 };
    }
}

/// To the nearest integer, halves away from zero (C's `roundf`), for magnitudes below 2^22.
///
/// The bit trick takes halves to the even neighbour; the remainder, which is exact, tells when that
/// was the one nearer to zero.
#[inline(always)]
fn round(x: f32) -> u8 {
    let even = (x + MAGIC) - MAGIC;
    let rest = x - even;
    let up = if (rest == 0.5) & (x > 0.0) { 1.0 } else { 0.0 };
    let down = if (rest == -0.5) & (x < 0.0) { 1.0 } else { 0.0 };
    (even + up - down + MAGIC).to_bits() as u8
}

#[cfg(test)]
mod tests {
    #[test]
    fn rounds_as_c_does() {
        for i in -1270..=1270i32 {
            for nudge in [-1i32, 0, 1] {
                let x = f32::from_bits((i as f32 / 10.0).to_bits().wrapping_add_signed(nudge));
                if x.abs() < 128.0 {
                    assert_eq!(super::round(x) as i8, x.round() as i8, "{x}");
                }
            }
            let half = i as f32 / 20.0;
            assert_eq!(super::round(half) as i8, half.round() as i8, "{half}");
        }
    }
}
