//! Blocks back to numbers, as ggml's `dequantize_row_*`: the same products and sums in the same order.

use tenon_simd::kernel;

use super::float::from_f16;
use super::iq4::VALUES;
use super::k_affine::{Format, Q2K, Q4K, Q5K, SUPER};

/// The number at a place of a block.
#[inline(always)]
fn f16_at(block: &[u8], at: usize) -> f32 {
    from_f16(u16::from_le_bytes([block[at], block[at + 1]]))
}

kernel!(
    /// Little-endian `f16`.
    pub(super) fn f16 = f16_body(bytes: &[u8], out: &mut [f32])
);
kernel!(
    /// Little-endian `bf16`.
    pub(super) fn bf16 = bf16_body(bytes: &[u8], out: &mut [f32])
);
kernel!(
    /// Whole blocks.
    pub(super) fn q8_0 = q8_0_body(bytes: &[u8], out: &mut [f32])
);
kernel!(
    /// Whole blocks.
    pub(super) fn q4_0 = q4_0_body(bytes: &[u8], out: &mut [f32])
);
kernel!(
    /// Whole blocks.
    pub(super) fn q4_1 = q4_1_body(bytes: &[u8], out: &mut [f32])
);
kernel!(
    /// Whole blocks.
    pub(super) fn q5_0 = q5_0_body(bytes: &[u8], out: &mut [f32])
);
kernel!(
    /// Whole blocks.
    pub(super) fn q5_1 = q5_1_body(bytes: &[u8], out: &mut [f32])
);
kernel!(
    /// Whole super-blocks.
    pub(super) fn q2_k = q2_k_body(bytes: &[u8], out: &mut [f32])
);
kernel!(
    /// Whole super-blocks.
    pub(super) fn q3_k = q3_k_body(bytes: &[u8], out: &mut [f32])
);
kernel!(
    /// Whole super-blocks.
    pub(super) fn q4_k = q4_k_body(bytes: &[u8], out: &mut [f32])
);
kernel!(
    /// Whole super-blocks.
    pub(super) fn q5_k = q5_k_body(bytes: &[u8], out: &mut [f32])
);
kernel!(
    /// Whole super-blocks.
    pub(super) fn q6_k = q6_k_body(bytes: &[u8], out: &mut [f32])
);
kernel!(
    /// Whole blocks.
    pub(super) fn iq4_nl = iq4_nl_body(bytes: &[u8], out: &mut [f32])
);
kernel!(
    /// Whole super-blocks.
    pub(super) fn iq4_xs = iq4_xs_body(bytes: &[u8], out: &mut [f32])
);
kernel!(
    /// Whole blocks.
    pub(super) fn mxfp4 = mxfp4_body(bytes: &[u8], out: &mut [f32])
);

#[inline(always)]
fn f16_body<const FUSED: bool>(bytes: &[u8], out: &mut [f32]) {
    for (out, bytes) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
        *out = from_f16(u16::from_le_bytes(*bytes));
    }
}

#[inline(always)]
fn bf16_body<const FUSED: bool>(bytes: &[u8], out: &mut [f32]) {
    for (out, bytes) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
        *out = f32::from_bits(u32::from(u16::from_le_bytes(*bytes)) << 16);
    }
}

#[inline(always)]
fn q8_0_body<const FUSED: bool>(bytes: &[u8], out: &mut [f32]) {
    for (block, out) in bytes.as_chunks::<34>().0.iter().zip(out.as_chunks_mut::<32>().0) {
        let d = f16_at(block, 0);
        for (out, q) in out.iter_mut().zip(&block[2..]) {
            *out = f32::from(*q as i8) * d;
        }
    }
}

/// Low nibbles to the first sixteen numbers, high ones to the others.
#[inline(always)]
fn nibbles(packed: &[u8], q: &mut [u8; 32]) {
    for (j, byte) in packed[..16].iter().enumerate() {
        q[j] = byte & 15;
        q[j + 16] = byte >> 4;
    }
}

/// The fifth bit of each, from a word of them.
#[inline(always)]
fn fifths(bits: &[u8], q: &mut [u8; 32]) {
    let bits = u32::from_le_bytes([bits[0], bits[1], bits[2], bits[3]]);
    for (j, q) in q.iter_mut().enumerate() {
        *q |= ((bits >> j & 1) << 4) as u8;
    }
}

#[inline(always)]
fn q4_0_body<const FUSED: bool>(bytes: &[u8], out: &mut [f32]) {
    for (block, out) in bytes.as_chunks::<18>().0.iter().zip(out.as_chunks_mut::<32>().0) {
        let d = f16_at(block, 0);
        let mut q = [0; 32];
        nibbles(&block[2..], &mut q);
        for (out, q) in out.iter_mut().zip(q) {
            *out = f32::from(q as i8 - 8) * d;
        }
    }
}

#[inline(always)]
fn q4_1_body<const FUSED: bool>(bytes: &[u8], out: &mut [f32]) {
    for (block, out) in bytes.as_chunks::<20>().0.iter().zip(out.as_chunks_mut::<32>().0) {
        let (d, m) = (f16_at(block, 0), f16_at(block, 2));
        let mut q = [0; 32];
        nibbles(&block[4..], &mut q);
        for (out, q) in out.iter_mut().zip(q) {
            *out = f32::from(q) * d + m;
        }
    }
}

#[inline(always)]
fn q5_0_body<const FUSED: bool>(bytes: &[u8], out: &mut [f32]) {
    for (block, out) in bytes.as_chunks::<22>().0.iter().zip(out.as_chunks_mut::<32>().0) {
        let d = f16_at(block, 0);
        let mut q = [0; 32];
        nibbles(&block[6..], &mut q);
        fifths(&block[2..6], &mut q);
        for (out, q) in out.iter_mut().zip(q) {
            *out = f32::from(q as i8 - 16) * d;
        }
    }
}

#[inline(always)]
fn q5_1_body<const FUSED: bool>(bytes: &[u8], out: &mut [f32]) {
    for (block, out) in bytes.as_chunks::<24>().0.iter().zip(out.as_chunks_mut::<32>().0) {
        let (d, m) = (f16_at(block, 0), f16_at(block, 2));
        let mut q = [0; 32];
        nibbles(&block[8..], &mut q);
        fifths(&block[4..8], &mut q);
        for (out, q) in out.iter_mut().zip(q) {
            *out = f32::from(q) * d + m;
        }
    }
}

/// Blocks of `N` quants with a scale and a minimum each.
#[inline(always)]
fn affine<F: Format, const N: usize>(block: &[u8], q: &[u8; SUPER], out: &mut [f32; SUPER]) {
    let (d, d_min) = (f16_at(block, F::D), f16_at(block, F::D + 2));
    for (j, (out, q)) in out.as_chunks_mut::<N>().0.iter_mut().zip(q.as_chunks::<N>().0).enumerate() {
        let (scale, min) = F::scale_and_min(block, j);
        let (scale, min) = (d * f32::from(scale), d_min * f32::from(min));
        for (out, q) in out.iter_mut().zip(q) {
            *out = scale * f32::from(*q) - min;
        }
    }
}

/// Four times two bits a byte, in halves of 128.
#[inline(always)]
fn two_bits(packed: &[u8], q: &mut [u8; SUPER]) {
    for (packed, q) in packed.as_chunks::<32>().0.iter().zip(q.as_chunks_mut::<128>().0) {
        for (n, q) in q.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            for (q, byte) in q.iter_mut().zip(packed) {
                *q = byte >> (2 * n) & 3;
            }
        }
    }
}

/// Four bits, two blocks of 32 in 32 bytes.
#[inline(always)]
fn four_bits(packed: &[u8], q: &mut [u8; SUPER]) {
    for (packed, q) in packed.as_chunks::<32>().0.iter().zip(q.as_chunks_mut::<64>().0) {
        for (l, byte) in packed.iter().enumerate() {
            q[l] = byte & 15;
            q[l + 32] = byte >> 4;
        }
    }
}

#[inline(always)]
fn q2_k_body<const FUSED: bool>(bytes: &[u8], out: &mut [f32]) {
    for (block, out) in bytes.as_chunks::<84>().0.iter().zip(out.as_chunks_mut::<SUPER>().0) {
        let mut q = [0; SUPER];
        two_bits(&block[16..80], &mut q);
        affine::<Q2K, 16>(block, &q, out);
    }
}

#[inline(always)]
fn q4_k_body<const FUSED: bool>(bytes: &[u8], out: &mut [f32]) {
    for (block, out) in bytes.as_chunks::<144>().0.iter().zip(out.as_chunks_mut::<SUPER>().0) {
        let mut q = [0; SUPER];
        four_bits(&block[16..], &mut q);
        affine::<Q4K, 32>(block, &q, out);
    }
}

#[inline(always)]
fn q5_k_body<const FUSED: bool>(bytes: &[u8], out: &mut [f32]) {
    for (block, out) in bytes.as_chunks::<176>().0.iter().zip(out.as_chunks_mut::<SUPER>().0) {
        let mut q = [0; SUPER];
        four_bits(&block[48..], &mut q);
        for (j, q) in q.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            for (q, high) in q.iter_mut().zip(&block[16..48]) {
                *q |= (high >> j & 1) << 4;
            }
        }
        affine::<Q5K, 32>(block, &q, out);
    }
}

#[inline(always)]
fn q3_k_body<const FUSED: bool>(bytes: &[u8], out: &mut [f32]) {
    for (block, out) in bytes.as_chunks::<110>().0.iter().zip(out.as_chunks_mut::<SUPER>().0) {
        let (high, packed) = (&block[..32], &block[96..108]);
        let d = f16_at(block, 108);
        let mut q = [0; SUPER];
        two_bits(&block[32..96], &mut q);
        for (j, q) in q.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            for (q, high) in q.iter_mut().zip(high) {
                *q |= (high >> j & 1) << 2;
            }
        }
        for (j, (out, q)) in out.as_chunks_mut::<16>().0.iter_mut().zip(q.as_chunks::<16>().0).enumerate() {
            let low = packed[j % 8] >> (4 * (j / 8)) & 15;
            let scale = (low | (packed[8 + j % 4] >> (2 * (j / 4)) & 3) << 4) as i8 - 32;
            let scale = d * f32::from(scale);
            for (out, q) in out.iter_mut().zip(q) {
                *out = scale * f32::from(*q as i8 - 4);
            }
        }
    }
}

#[inline(always)]
fn q6_k_body<const FUSED: bool>(bytes: &[u8], out: &mut [f32]) {
    for (block, out) in bytes.as_chunks::<210>().0.iter().zip(out.as_chunks_mut::<SUPER>().0) {
        let (low, high, scales) = (&block[..128], &block[128..192], &block[192..208]);
        let d = f16_at(block, 208);
        let mut q = [0u8; SUPER];
        for (half, q) in q.as_chunks_mut::<128>().0.iter_mut().enumerate() {
            let (low, high) = (&low[half * 64..half * 64 + 64], &high[half * 32..half * 32 + 32]);
            for l in 0..32 {
                q[l] = low[l] & 15 | (high[l] & 3) << 4;
                q[l + 32] = low[l + 32] & 15 | (high[l] >> 2 & 3) << 4;
                q[l + 64] = low[l] >> 4 | (high[l] >> 4 & 3) << 4;
                q[l + 96] = low[l + 32] >> 4 | (high[l] >> 6) << 4;
            }
        }
        for ((out, q), scale) in out.as_chunks_mut::<16>().0.iter_mut().zip(q.as_chunks::<16>().0).zip(scales)
        {
            let scale = d * f32::from(*scale as i8);
            for (out, q) in out.iter_mut().zip(q) {
                *out = scale * f32::from(*q as i8 - 32);
            }
        }
    }
}

#[inline(always)]
fn iq4(packed: &[u8], d: f32, out: &mut [f32; 32]) {
    let mut q = [0; 32];
    nibbles(packed, &mut q);
    for (out, q) in out.iter_mut().zip(q) {
        *out = d * f32::from(VALUES[usize::from(q & 15)]);
    }
}

#[inline(always)]
fn iq4_nl_body<const FUSED: bool>(bytes: &[u8], out: &mut [f32]) {
    for (block, out) in bytes.as_chunks::<18>().0.iter().zip(out.as_chunks_mut::<32>().0) {
        iq4(&block[2..], f16_at(block, 0), out);
    }
}

/// Twice the values of E2M1, by code.
const E2M1: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

#[inline(always)]
fn mxfp4_body<const FUSED: bool>(bytes: &[u8], out: &mut [f32]) {
    for (block, out) in bytes.as_chunks::<17>().0.iter().zip(out.as_chunks_mut::<32>().0) {
        // Half of 2^(e - 127); the two smallest are subnormal.
        let bits = if block[0] < 2 { 0x0020_0000 << block[0] } else { u32::from(block[0] - 1) << 23 };
        let d = f32::from_bits(bits);
        let mut q = [0; 32];
        nibbles(&block[1..], &mut q);
        for (out, q) in out.iter_mut().zip(q) {
            *out = f32::from(E2M1[usize::from(q)]) * d;
        }
    }
}

#[inline(always)]
fn iq4_xs_body<const FUSED: bool>(bytes: &[u8], out: &mut [f32]) {
    for (block, out) in bytes.as_chunks::<136>().0.iter().zip(out.as_chunks_mut::<SUPER>().0) {
        let d = f16_at(block, 0);
        let high = u16::from_le_bytes([block[2], block[3]]);
        for (j, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            let low = block[4 + j / 2] >> (4 * (j % 2)) & 15;
            let scale = (low | ((high >> (2 * j) & 3) as u8) << 4) as i8 - 32;
            iq4(&block[8 + 16 * j..24 + 16 * j], d * f32::from(scale), out);
        }
    }
}
