//! Q4_0, Q4_1, Q5_0, Q5_1: what llama.cpp falls back to for rows that are no whole super-blocks.
//!
//! Without importance a block's largest element, or its least and largest, give
//! the scale; with importance it is searched.

use tenon_simd::kernel;

use super::f16;
use super::lanes::{
    MAGIC, MAX_LANES, Twice, Vector, blocks, lanes_kernel, of_supers, repeated_blocks, store_quants,
    sums_of_squares,
};
use super::search::{Steps, affine, symmetric, weigh};

pub(super) const BLOCK: usize = 32;

kernel!(
    /// `x = d * (q - 8)`.
    pub(super) fn q4_0 = symmetric_body4(x: &[f32], out: &mut [u8])
);
kernel!(
    /// `x = d * (q - 16)`.
    pub(super) fn q5_0 = symmetric_body5(x: &[f32], out: &mut [u8])
);
kernel!(
    /// `x = d * q + m`.
    pub(super) fn q4_1 = affine_body4(x: &[f32], out: &mut [u8])
);
kernel!(
    /// `x = d * q + m`.
    pub(super) fn q5_1 = affine_body5(x: &[f32], out: &mut [u8])
);

#[inline(always)]
pub(super) fn symmetric_body4<const FUSED: bool>(x: &[f32], out: &mut [u8]) {
    plain_symmetric::<18>(8, x, out);
}

#[inline(always)]
pub(super) fn symmetric_body5<const FUSED: bool>(x: &[f32], out: &mut [u8]) {
    plain_symmetric::<22>(16, x, out);
}

#[inline(always)]
pub(super) fn affine_body4<const FUSED: bool>(x: &[f32], out: &mut [u8]) {
    plain_affine::<20>(15, 15, x, out);
}

#[inline(always)]
pub(super) fn affine_body5<const FUSED: bool>(x: &[f32], out: &mut [u8]) {
    plain_affine::<24>(31, u8::MAX, x, out);
}

#[inline(always)]
fn plain_symmetric<const BYTES: usize>(half: u8, x: &[f32], out: &mut [u8]) {
    for (x, out) in x.as_chunks::<BLOCK>().0.iter().zip(out.as_chunks_mut::<BYTES>().0) {
        let d = signed_max(x) / -f32::from(half);
        let id = inverse(d);
        let mut q = [0u8; BLOCK];
        for (q, v) in q.iter_mut().zip(x) {
            *q = whole(v * id + (f32::from(half) + 0.5)).min(2 * half - 1);
        }
        out[..2].copy_from_slice(&f16(d).0);
        pack(&q, &mut out[2..]);
    }
}

#[inline(always)]
fn plain_affine<const BYTES: usize>(nmax: u8, cap: u8, x: &[f32], out: &mut [u8]) {
    for (x, out) in x.as_chunks::<BLOCK>().0.iter().zip(out.as_chunks_mut::<BYTES>().0) {
        let (min, max) = min_max(x);
        let d = (max - min) / f32::from(nmax);
        let id = inverse(d);
        let mut q = [0u8; BLOCK];
        for (q, v) in q.iter_mut().zip(x) {
            *q = whole((v - min) * id + 0.5).min(cap);
        }
        out[..2].copy_from_slice(&f16(d).0);
        out[2..4].copy_from_slice(&f16(min).0);
        pack(&q, &mut out[4..]);
    }
}

lanes_kernel!(
    /// [`q4_0`] with the importance of each column.
    pub(super) fn q4_0_weighted = weighted_symmetric4(x: &[f32], importance: &[f32], out: &mut [u8])
);
lanes_kernel!(
    /// [`q5_0`] with the importance of each column.
    pub(super) fn q5_0_weighted = weighted_symmetric5(x: &[f32], importance: &[f32], out: &mut [u8])
);
lanes_kernel!(
    /// [`q4_1`] with the importance of each column.
    pub(super) fn q4_1_weighted = weighted_affine4(x: &[f32], importance: &[f32], out: &mut [u8])
);
lanes_kernel!(
    /// [`q5_1`] with the importance of each column.
    pub(super) fn q5_1_weighted = weighted_affine5(x: &[f32], importance: &[f32], out: &mut [u8])
);

#[inline(always)]
pub(super) fn weighted_symmetric4<V: Vector>(x: &[f32], importance: &[f32], out: &mut [u8]) {
    weighted::<V, 18>(8, None, x, importance, out);
}

#[inline(always)]
pub(super) fn weighted_symmetric5<V: Vector>(x: &[f32], importance: &[f32], out: &mut [u8]) {
    weighted::<V, 22>(16, None, x, importance, out);
}

#[inline(always)]
pub(super) fn weighted_affine4<V: Vector>(x: &[f32], importance: &[f32], out: &mut [u8]) {
    weighted::<V, 20>(0, Some(15), x, importance, out);
}

#[inline(always)]
pub(super) fn weighted_affine5<V: Vector>(x: &[f32], importance: &[f32], out: &mut [u8]) {
    weighted::<V, 24>(0, Some(31), x, importance, out);
}

/// Rows as wide as `importance`: `x = d * (q - half)` or, with the largest quant, `x = d * q + m`.
#[inline(always)]
fn weighted<V: Vector, const BYTES: usize>(
    half: i32,
    nmax: Option<i32>,
    x: &[f32],
    importance: &[f32],
    out: &mut [u8],
) {
    // The mean square is a whole row's.
    let width = importance.len();
    let mut sigma2 = vec![0.0f32; x.len() / width];
    sums_of_squares::<V>(x, width, &mut sigma2);
    for sum in &mut sigma2 {
        *sum /= width as f32;
    }
    for (group, out) in out.as_chunks_mut::<BYTES>().0.chunks_mut(2 * V::LANES).enumerate() {
        let first = group * 2 * V::LANES;
        let x: [Twice<V>; BLOCK] = blocks(x, first);
        let mut weights = repeated_blocks(importance, first);
        weigh(&mut weights, of_supers(&sigma2, first, width / BLOCK), &x);
        let (mut scales, mut mins) = ([0.0f32; MAX_LANES], [0.0f32; MAX_LANES]);
        let mut quants = [[0u8; BLOCK]; MAX_LANES];
        let found = match nmax {
            None => {
                let fit = symmetric(half, &x, &weights);
                fit.scale.store(&mut scales);
                fit.quants(half, &x)
            }
            Some(nmax) => {
                let fit = affine(Steps::weighted(nmax), &x, &weights);
                fit.scale.store(&mut scales);
                fit.min.store(&mut mins);
                fit.quants(nmax, &x)
            }
        };
        store_quants(&found, quants.as_flattened_mut());
        for (lane, out) in out.iter_mut().enumerate() {
            out[..2].copy_from_slice(&f16(scales[lane]).0);
            let mut rest = &mut out[2..];
            if nmax.is_some() {
                rest[..2].copy_from_slice(&f16(-mins[lane]).0);
                rest = &mut rest[2..];
            }
            pack(&quants[lane], rest);
        }
    }
}

/// The element of the largest magnitude, the first of equals.
#[inline(always)]
fn signed_max(x: &[f32; BLOCK]) -> f32 {
    // The largest of either sign is the same in any order; what is no number is never larger.
    let (mut above, mut below) = ([0.0f32; 8], [0.0f32; 8]);
    for part in x.as_chunks::<8>().0 {
        for ((above, below), v) in above.iter_mut().zip(&mut below).zip(part) {
            *above = if *v > *above { *v } else { *above };
            *below = if *v < *below { *v } else { *below };
        }
    }
    let above = above.iter().fold(0.0f32, |max, &v| if v > max { v } else { max });
    let below = below.iter().fold(0.0f32, |min, &v| if v < min { v } else { min });
    if above > -below {
        above
    } else if above < -below {
        below
    } else {
        x.iter().copied().find(|v| v.abs() == above).unwrap_or(0.0)
    }
}

#[inline(always)]
fn inverse(d: f32) -> f32 {
    if d != 0.0 { 1.0 / d } else { 0.0 }
}

#[inline(always)]
fn min_max(x: &[f32; BLOCK]) -> (f32, f32) {
    let (mut mins, mut maxs) = ([f32::MAX; 8], [-f32::MAX; 8]);
    for part in x.as_chunks::<8>().0 {
        for ((min, max), v) in mins.iter_mut().zip(&mut maxs).zip(part) {
            *min = if *v < *min { *v } else { *min };
            *max = if *v > *max { *v } else { *max };
        }
    }
    let min = mins.iter().fold(f32::MAX, |min, &v| if v < min { v } else { min });
    let max = maxs.iter().fold(-f32::MAX, |max, &v| if v > max { v } else { max });
    // Of two zeros the first one's sign stays.
    let zero = x.iter().find(|v| **v == 0.0);
    let signed = |m: f32| if m == 0.0 { *zero.unwrap_or(&m) } else { m };
    (signed(min), signed(max))
}

/// A number from 0 to 63 towards zero; zero where it is none, as it comes out of a conversion to
/// `int` on x86-64.
#[inline(always)]
fn whole(x: f32) -> u8 {
    let x = if x < 64.0 { x } else { 0.0 };
    let nearest = x + MAGIC - MAGIC;
    let whole = if nearest > x { nearest - 1.0 } else { nearest };
    (whole + MAGIC).to_bits() as u8
}

/// Low nibbles from the first half of the block, high ones from the second; before them, if there
/// is room, the fifth bit of each element.
#[inline(always)]
fn pack(q: &[u8; BLOCK], out: &mut [u8]) {
    if out.len() == BLOCK / 2 {
        return pack4(q, out);
    }
    let bits = q.iter().enumerate().fold(0u32, |bits, (j, q)| bits | u32::from(q >> 4 & 1) << j);
    out[..4].copy_from_slice(&bits.to_le_bytes());
    pack4(q, &mut out[4..]);
}

/// Low nibbles from the first half of the block, high ones from the second.
#[inline(always)]
pub(super) fn pack4(q: &[u8; BLOCK], out: &mut [u8]) {
    let out = out.first_chunk_mut::<16>().expect("sixteen bytes");
    for (j, out) in out.iter_mut().enumerate() {
        *out = q[j] & 15 | (q[j + BLOCK / 2] & 15) << 4;
    }
}
