//! Q3_K and Q6_K: super-blocks of 256, sixteen blocks of 16 with a signed scale each,
//! `x = d * scale * (q - 4)` and `x = d * scale * (q - 32)`.

use super::f16;
use super::k_affine::{SUPER, pack_two_bits};
use super::lanes::{
    MAX_LANES, Twice, Vector, blocks, lanes_kernel, nearest, of_supers, repeated_blocks, store_quants,
    store_some, strided, sums_of_squares,
};
use super::search::{EPS, descent, symmetric, weigh};

const BLOCK: usize = 16;
/// Blocks of a super-block.
const PER: usize = SUPER / BLOCK;
/// Super-blocks that are worked on together.
const BATCH: usize = 16;
const BLOCKS: usize = BATCH * PER;
const Q3_BYTES: usize = 110;
const Q6_BYTES: usize = 210;

lanes_kernel!(
    /// Rows of whole super-blocks, weighted with the importance of each column if given.
    pub(super) fn q3_k = q3_k_body(x: &[f32], importance: Option<&[f32]>, out: &mut [u8])
);
lanes_kernel!(
    /// Rows of whole super-blocks, weighted with the importance of each column if given.
    pub(super) fn q6_k = q6_k_body(x: &[f32], importance: Option<&[f32]>, out: &mut [u8])
);

#[inline(always)]
pub(super) fn q3_k_body<V: Vector>(x: &[f32], importance: Option<&[f32]>, out: &mut [u8]) {
    for (batch, (x, out)) in x.chunks(BATCH * SUPER).zip(out.chunks_mut(BATCH * Q3_BYTES)).enumerate() {
        let supers = x.len() / SUPER;
        let mut quants = [0u8; BATCH * SUPER];
        // Scales as they are stored, 0 to 63 for -32 to 31, and what they are multiples of.
        let mut scales = [0u8; BLOCKS];
        let mut d = [0.0f32; BATCH];
        match importance {
            None => q3_plain::<V>(x, &mut quants, &mut scales, &mut d),
            Some(row) => {
                q3_weighted::<V>(x, row, batch * BATCH * PER, &mut quants, &mut scales, &mut d[..supers])
            }
        }
        for (at, (x, out)) in
            x.as_chunks::<SUPER>().0.iter().zip(out.as_chunks_mut::<Q3_BYTES>().0).enumerate()
        {
            let quants = quants[at * SUPER..].first_chunk_mut::<SUPER>().expect("a super-block");
            q3_finish(x, &scales[at * PER..(at + 1) * PER], d[at], quants, out);
        }
    }
}

#[inline(always)]
fn q3_plain<V: Vector>(
    x: &[f32],
    quants: &mut [u8; BATCH * SUPER],
    scales: &mut [u8; BLOCKS],
    d: &mut [f32; BATCH],
) {
    let count = x.len() / BLOCK;
    let mut found = [0.0f32; BLOCKS];
    for first in (0..count).step_by(2 * V::LANES) {
        let lanes = first..count.min(first + 2 * V::LANES);
        let (scale, q) = descent::<Twice<V>, BLOCK>(4, &blocks(x, first));
        store_some(scale, &mut found[lanes.clone()]);
        store_quants(&q, &mut quants[lanes.start * BLOCK..lanes.end * BLOCK]);
    }
    let supers = found.as_chunks::<PER>().0.iter().zip(scales.as_chunks_mut::<PER>().0);
    for ((found, scales), d) in supers.zip(d) {
        let (max, _) = largest_of(found);
        let iscale = if max != 0.0 { -32.0 / max } else { 0.0 };
        for (scale, found) in scales.iter_mut().zip(found) {
            // The reference keeps the low byte and bounds that.
            *scale = ((nearest(iscale * found) as i8).clamp(-32, 31) + 32) as u8;
        }
        *d = 1.0 / iscale;
        if max == 0.0 {
            (*scales, *d) = ([0; PER], 0.0);
        }
    }
}

#[inline(always)]
fn q3_weighted<V: Vector>(
    x: &[f32],
    row: &[f32],
    offset: usize,
    quants: &mut [u8; BATCH * SUPER],
    scales: &mut [u8; BLOCKS],
    d: &mut [f32],
) {
    let count = x.len() / BLOCK;
    let mut sigma2 = [0.0f32; BATCH];
    sums_of_squares::<V>(x, SUPER, &mut sigma2[..d.len()]);
    for sum in &mut sigma2 {
        *sum = 2.0 * *sum / SUPER as f32;
    }
    let (mut found, mut sums) = ([0.0f32; BLOCKS], [0.0f32; BLOCKS]);
    for first in (0..count).step_by(2 * V::LANES) {
        let lanes = first..count.min(first + 2 * V::LANES);
        let x: [Twice<V>; BLOCK] = blocks(x, first);
        let mut weights = repeated_blocks(row, offset + first);
        weigh(&mut weights, of_supers(&sigma2, first, PER), &x);
        let mut sum = Twice::splat(0.0);
        for w in weights {
            sum = sum.add(w);
        }
        let fit = symmetric(4, &x, &weights);
        store_some(sum, &mut sums[lanes.clone()]);
        store_some(fit.scale, &mut found[lanes.clone()]);
        store_quants(&fit.quants(4, &x), &mut quants[lanes.start * BLOCK..lanes.end * BLOCK]);
    }
    for first in (0..d.len()).step_by(V::LANES) {
        let zero = V::splat(0.0);
        let (mut x, mut weights) = ([zero; PER], [zero; PER]);
        for j in 0..PER {
            x[j] = strided(&found[..count], first * PER + j, PER);
            weights[j] = strided(&sums[..count], first * PER + j, PER);
        }
        let fit = symmetric(32, &x, &weights);
        let mut lanes = [0.0f32; MAX_LANES];
        fit.scale.store(&mut lanes);
        let d = &mut d[first..];
        d.iter_mut().zip(&lanes[..V::LANES]).for_each(|(d, scale)| *d = *scale);
        for (j, q) in fit.quants(32, &x).iter().enumerate() {
            q.store(&mut lanes);
            for (at, q) in lanes[..V::LANES].iter().enumerate().take(d.len()) {
                scales[(first + at) * PER + j] = *q as u8;
            }
        }
    }
}

#[inline(always)]
fn q3_finish(x: &[f32; SUPER], scales: &[u8], d: f32, quants: &mut [u8; SUPER], out: &mut [u8; Q3_BYTES]) {
    let (d_bytes, d) = f16(d);
    let (high, rest) = out.split_at_mut(32);
    let (low, rest) = rest.split_at_mut(64);
    let (packed, d_out) = rest.split_at_mut(12);
    d_out.copy_from_slice(&d_bytes);
    packed.fill(0);
    for (j, (&scale, x)) in scales.iter().zip(x.as_chunks::<BLOCK>().0).enumerate() {
        packed[j % 8] |= (scale & 15) << (4 * (j / 8));
        packed[8 + j % 4] |= scale >> 4 << (2 * (j / 4));
        let step = d * f32::from(scale as i8 - 32);
        if step == 0.0 {
            continue;
        }
        for (q, v) in quants[j * BLOCK..(j + 1) * BLOCK].iter_mut().zip(x) {
            *q = (nearest(v / step).clamp(-4, 3) + 4) as u8;
        }
    }
    high.fill(0);
    for (bit, part) in quants.as_chunks::<32>().0.iter().enumerate() {
        for (high, q) in high.iter_mut().zip(part) {
            *high |= (q >> 2) << bit;
        }
    }
    for q in quants.iter_mut() {
        *q &= 3;
    }
    pack_two_bits(quants, low);
}

/// The scale of the largest magnitude, the first of equals, and that magnitude.
#[inline(always)]
fn largest_of(scales: &[f32]) -> (f32, f32) {
    let (mut max, mut amax) = (0.0f32, 0.0f32);
    for &scale in scales {
        if scale.abs() > amax {
            (max, amax) = (scale, scale.abs());
        }
    }
    (max, amax)
}

#[inline(always)]
pub(super) fn q6_k_body<V: Vector>(x: &[f32], importance: Option<&[f32]>, out: &mut [u8]) {
    for (batch, (x, out)) in x.chunks(BATCH * SUPER).zip(out.chunks_mut(BATCH * Q6_BYTES)).enumerate() {
        let count = x.len() / BLOCK;
        let (mut scales, mut iscales) = ([0.0f32; BLOCKS], [0.0f32; BLOCKS]);
        for first in (0..count).step_by(2 * V::LANES) {
            let lanes = first..count.min(first + 2 * V::LANES);
            let x: [Twice<V>; BLOCK] = blocks(x, first);
            let weights = match importance {
                Some(row) => repeated_blocks(row, batch * BLOCKS + first),
                None => {
                    let mut weights = x;
                    for w in &mut weights {
                        *w = w.mul(*w);
                    }
                    weights
                }
            };
            let fit = symmetric(32, &x, &weights);
            store_some(fit.scale, &mut scales[lanes.clone()]);
            store_some(fit.iscale, &mut iscales[lanes]);
        }
        for (at, (x, out)) in
            x.as_chunks::<SUPER>().0.iter().zip(out.as_chunks_mut::<Q6_BYTES>().0).enumerate()
        {
            let blocks = at * PER..(at + 1) * PER;
            q6_finish(x, &scales[blocks.clone()], &iscales[blocks], out);
        }
    }
}

#[inline(always)]
fn q6_finish(x: &[f32; SUPER], scales: &[f32], iscales: &[f32], out: &mut [u8; Q6_BYTES]) {
    let (max, amax) = largest_of(scales);
    if amax < EPS {
        out.fill(0);
        return;
    }
    let iscale = -128.0 / max;
    let (d_bytes, d) = f16(1.0 / iscale);
    let (low, rest) = out.split_at_mut(128);
    let (high, rest) = rest.split_at_mut(64);
    let (packed, d_out) = rest.split_at_mut(16);
    d_out.copy_from_slice(&d_bytes);
    let mut quants = [0u8; SUPER];
    for (j, x) in x.as_chunks::<BLOCK>().0.iter().enumerate() {
        let rounded = nearest(iscale * scales[j]).min(127) as i8;
        packed[j] = rounded as u8;
        let step = d * f32::from(rounded);
        let quants = quants[j * BLOCK..].first_chunk_mut::<BLOCK>().expect("a block");
        if step != 0.0 {
            for (q, v) in quants.iter_mut().zip(x) {
                *q = (nearest(v / step).clamp(-32, 31) + 32) as u8;
            }
        } else if x.iter().any(|v| v.abs() >= EPS) {
            // The quants of the search stay; of a block that is zero they are zero.
            for (q, v) in quants.iter_mut().zip(x) {
                *q = (nearest(iscales[j] * v).clamp(-32, 31) + 32) as u8;
            }
        }
    }
    for (half, (low, high)) in quants
        .as_chunks::<128>()
        .0
        .iter()
        .zip(low.as_chunks_mut::<64>().0.iter_mut().zip(high.as_chunks_mut::<32>().0))
    {
        for l in 0..32 {
            let [a, b, c, e] = [half[l], half[l + 32], half[l + 64], half[l + 96]];
            low[l] = a & 15 | (c & 15) << 4;
            low[l + 32] = b & 15 | (e & 15) << 4;
            high[l] = a >> 4 | (b >> 4) << 2 | (c >> 4) << 4 | (e >> 4) << 6;
        }
    }
}
