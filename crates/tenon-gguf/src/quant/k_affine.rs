//! Q2_K, Q4_K, Q5_K: super-blocks of 256, their blocks with a scale and a minimum each,
//! `x = d * scale * q - dmin * min`.

use super::f16;
use super::lanes::{
    Twice, Vector, blocks, lanes_kernel, nearest, of_supers, repeated_blocks, store_some, strided,
    sums_of_squares,
};
use super::search::{Affine, Steps, affine, positive, weigh};

pub(super) const SUPER: usize = 256;
/// Super-blocks that are worked on together: whole registers, and in the first-level cache.
const BATCH: usize = 16;
/// Most blocks of a batch.
const BLOCKS: usize = BATCH * 16;

lanes_kernel!(
    /// Rows of whole super-blocks, weighted with the importance of each column if given.
    pub(super) fn q2_k = q2_k_body(x: &[f32], importance: Option<&[f32]>, out: &mut [u8])
);
lanes_kernel!(
    /// Rows of whole super-blocks, weighted with the importance of each column if given.
    pub(super) fn q4_k = q4_k_body(x: &[f32], importance: Option<&[f32]>, out: &mut [u8])
);
lanes_kernel!(
    /// Rows of whole super-blocks, weighted with the importance of each column if given.
    pub(super) fn q5_k = q5_k_body(x: &[f32], importance: Option<&[f32]>, out: &mut [u8])
);

#[inline(always)]
pub(super) fn q2_k_body<V: Vector>(x: &[f32], importance: Option<&[f32]>, out: &mut [u8]) {
    rows::<V, Q2K, 16>(x, importance, out);
}

#[inline(always)]
pub(super) fn q4_k_body<V: Vector>(x: &[f32], importance: Option<&[f32]>, out: &mut [u8]) {
    rows::<V, Q4K, 32>(x, importance, out);
}

#[inline(always)]
pub(super) fn q5_k_body<V: Vector>(x: &[f32], importance: Option<&[f32]>, out: &mut [u8]) {
    rows::<V, Q5K, 32>(x, importance, out);
}

/// What distinguishes these types.
pub(super) trait Format {
    /// Bytes of a super-block.
    const BYTES: usize;
    /// What is tried without importance.
    const STEPS: Steps;
    /// The largest scale and minimum of a block in the super-block's units.
    const LARGEST: i32;
    /// The largest byte kept of such a scale: without importance, with.
    const CAPS: [u8; 2];
    /// With importance: the weight of the mean square.
    const SIGMA: f32;
    /// The scale and minimum of each block.
    fn pack_scales(scales: &[u8], mins: &[u8], out: &mut [u8]);
    /// Those of block `j`.
    fn scale_and_min(block: &[u8], j: usize) -> (u8, u8);
    /// Where `d` and `dmin` are.
    const D: usize;
    /// The quants.
    fn pack(quants: &[u8; SUPER], out: &mut [u8]);
}

/// `scales` 16, quants 64, `d`, `dmin`.
pub(super) struct Q2K;
/// `d`, `dmin`, `scales` 12, quants 128.
pub(super) struct Q4K;
/// `d`, `dmin`, `scales` 12, fifth bits 32, quants 128.
pub(super) struct Q5K;

impl Format for Q2K {
    const BYTES: usize = 84;
    const STEPS: Steps = Steps { nmax: 3, rmin: -0.5, rdelta: 0.1, nstep: 15, absolute: true };
    const LARGEST: i32 = 15;
    const CAPS: [u8; 2] = [u8::MAX; 2];
    const SIGMA: f32 = 1.0;
    const D: usize = 80;

    #[inline(always)]
    fn pack_scales(scales: &[u8], mins: &[u8], out: &mut [u8]) {
        for (out, (scale, min)) in out.iter_mut().zip(scales.iter().zip(mins)) {
            *out = scale | min << 4;
        }
    }
    #[inline(always)]
    fn scale_and_min(block: &[u8], j: usize) -> (u8, u8) {
        (block[j] & 15, block[j] >> 4)
    }
    #[inline(always)]
    fn pack(quants: &[u8; SUPER], out: &mut [u8]) {
        pack_two_bits(quants, &mut out[16..80]);
    }
}

impl Format for Q4K {
    const BYTES: usize = 144;
    const STEPS: Steps = Steps { nmax: 15, rmin: -1.0, rdelta: 0.1, nstep: 20, absolute: false };
    const LARGEST: i32 = 63;
    const CAPS: [u8; 2] = [63, u8::MAX];
    const SIGMA: f32 = 2.0;
    const D: usize = 0;

    #[inline(always)]
    fn pack_scales(scales: &[u8], mins: &[u8], out: &mut [u8]) {
        pack_six_bits(scales, mins, &mut out[4..16]);
    }
    #[inline(always)]
    fn scale_and_min(block: &[u8], j: usize) -> (u8, u8) {
        six_bits(&block[4..16], j)
    }
    /// Two blocks share 32 bytes.
    #[inline(always)]
    fn pack(quants: &[u8; SUPER], out: &mut [u8]) {
        for (pair, out) in quants.as_chunks::<64>().0.iter().zip(out[16..].as_chunks_mut::<32>().0) {
            for l in 0..32 {
                out[l] = pair[l] | pair[l + 32] << 4;
            }
        }
    }
}

impl Format for Q5K {
    const BYTES: usize = 176;
    const STEPS: Steps = Steps { nmax: 31, rmin: -0.5, rdelta: 0.1, nstep: 15, absolute: false };
    const LARGEST: i32 = 63;
    const CAPS: [u8; 2] = [63; 2];
    const SIGMA: f32 = 2.0;
    const D: usize = 0;

    #[inline(always)]
    fn pack_scales(scales: &[u8], mins: &[u8], out: &mut [u8]) {
        pack_six_bits(scales, mins, &mut out[4..16]);
    }
    #[inline(always)]
    fn scale_and_min(block: &[u8], j: usize) -> (u8, u8) {
        six_bits(&block[4..16], j)
    }
    /// The fifth bits first, one of each block in a byte.
    #[inline(always)]
    fn pack(quants: &[u8; SUPER], out: &mut [u8]) {
        let (high, low) = out[16..].split_first_chunk_mut::<32>().expect("the bytes of a super-block");
        high.fill(0);
        for (n, (pair, low)) in quants.as_chunks::<64>().0.iter().zip(low.as_chunks_mut::<32>().0).enumerate()
        {
            for l in 0..32 {
                let (a, b) = (pair[l], pair[l + 32]);
                high[l] |= (a >> 4) << (2 * n) | (b >> 4) << (2 * n + 1);
                low[l] = a & 15 | b << 4;
            }
        }
    }
}

/// Four times two bits a byte, in halves of 128.
#[inline(always)]
pub(super) fn pack_two_bits(quants: &[u8; SUPER], out: &mut [u8]) {
    for (half, out) in quants.as_chunks::<128>().0.iter().zip(out.as_chunks_mut::<32>().0) {
        for l in 0..32 {
            out[l] = half[l] | half[l + 32] << 2 | half[l + 64] << 4 | half[l + 96] << 6;
        }
    }
}

/// Eight scales and eight minima of six bits: four of each whole, then the low bits of the others,
/// whose high ones are above those.
#[inline(always)]
fn pack_six_bits(scales: &[u8], mins: &[u8], out: &mut [u8]) {
    for j in 0..8 {
        let (scale, min) = (scales[j], mins[j]);
        if j < 4 {
            out[j] = scale;
            out[j + 4] = min;
        } else {
            out[j + 4] = scale & 15 | (min & 15) << 4;
            out[j - 4] |= scale >> 4 << 6;
            out[j] |= min >> 4 << 6;
        }
    }
}

#[inline(always)]
fn six_bits(packed: &[u8], j: usize) -> (u8, u8) {
    if j < 4 {
        return (packed[j] & 63, packed[j + 4] & 63);
    }
    (packed[j + 4] & 15 | packed[j - 4] >> 6 << 4, packed[j + 4] >> 4 | packed[j] >> 6 << 4)
}

/// What was found for the blocks of a batch.
struct Found {
    scales: [f32; BLOCKS],
    mins: [f32; BLOCKS],
    iscales: [f32; BLOCKS],
    origins: [f32; BLOCKS],
    weights: [f32; BLOCKS],
}

#[inline(always)]
fn rows<V: Vector, F: Format, const N: usize>(x: &[f32], importance: Option<&[f32]>, out: &mut [u8]) {
    let per = SUPER / N;
    let zero = [0.0; BLOCKS];
    let mut found = Found { scales: zero, mins: zero, iscales: zero, origins: zero, weights: zero };
    for (batch, (x, out)) in x.chunks(BATCH * SUPER).zip(out.chunks_mut(BATCH * F::BYTES)).enumerate() {
        let supers = x.len() / SUPER;
        let count = supers * per;
        let (mut scales, mut mins) = ([0u8; BLOCKS], [0u8; BLOCKS]);
        let mut d = [(0.0, 0.0); BATCH];
        match importance {
            None => {
                search::<V, F, N>(x, None, &mut found);
                for (at, d) in d[..supers].iter_mut().enumerate() {
                    let blocks = at * per..(at + 1) * per;
                    let scales = (&found.scales[blocks.clone()], &mut scales[blocks.clone()]);
                    let mins = (&found.mins[blocks.clone()], &mut mins[blocks]);
                    *d = (divide::<F>(scales.0, scales.1), divide::<F>(mins.0, mins.1));
                }
            }
            Some(row) => {
                search::<V, F, N>(x, Some((row, batch * BATCH * per)), &mut found);
                for first in (0..supers).step_by(V::LANES) {
                    let d = &mut d[first..supers.min(first + V::LANES)];
                    divide_weighted::<V, F>(&found, first, per, count, d, &mut scales, &mut mins);
                }
            }
        }
        for (at, (x, out)) in x.as_chunks::<SUPER>().0.iter().zip(out.chunks_exact_mut(F::BYTES)).enumerate()
        {
            let blocks = at * per..(at + 1) * per;
            let (d, d_min) = (f16(d[at].0), f16(d[at].1));
            out[F::D..F::D + 2].copy_from_slice(&d.0);
            out[F::D + 2..F::D + 4].copy_from_slice(&d_min.0);
            F::pack_scales(&scales[blocks.clone()], &mins[blocks.clone()], out);
            let mut quants = [0u8; SUPER];
            for (j, block) in blocks.enumerate() {
                let (scale, min) = F::scale_and_min(out, j);
                let (scale, min) = (d.1 * f32::from(scale), d_min.1 * f32::from(min));
                let x = x[j * N..].first_chunk::<N>().expect("a block");
                let quants = quants[j * N..].first_chunk_mut::<N>().expect("a block");
                if scale == 0.0 {
                    found.quants(block, F::STEPS.nmax, x, quants);
                    continue;
                }
                for (q, v) in quants.iter_mut().zip(x) {
                    *q = nearest((v + min) / scale).clamp(0, F::STEPS.nmax) as u8;
                }
            }
            F::pack(&quants, out);
        }
    }
}

impl Found {
    /// The quants of the search, which stay where a block's scale came out as nothing.
    #[inline(always)]
    fn quants<const N: usize>(&self, block: usize, nmax: i32, x: &[f32; N], out: &mut [u8; N]) {
        let unused = [0.0];
        let (iscale, origin) = ([self.iscales[block]], [self.origins[block]]);
        let fit = Affine { scale: unused, min: unused, iscale, origin, weight: unused };
        for (out, q) in out.iter_mut().zip(fit.quants(nmax, &x.map(|v| [v]))) {
            *out = q[0] as u8;
        }
    }
}

/// Searches all blocks; with the importance of the columns, a row of which the blocks of `x` are
/// those from a number on.
#[inline(always)]
fn search<V: Vector, F: Format, const N: usize>(
    x: &[f32],
    importance: Option<(&[f32], usize)>,
    found: &mut Found,
) {
    let count = x.len() / N;
    let mut sigma2 = [0.0f32; BATCH];
    if importance.is_some() {
        let sums = &mut sigma2[..x.len() / SUPER];
        sums_of_squares::<V>(x, SUPER, sums);
        for sum in sums {
            *sum = F::SIGMA * *sum / SUPER as f32;
        }
    }
    for first in (0..count).step_by(2 * V::LANES) {
        let x: [Twice<V>; N] = blocks(x, first);
        let fit = match importance {
            None => affine(F::STEPS, &x, &plain_weights::<_, F, N>(&x)),
            Some((row, offset)) => {
                let mut weights = repeated_blocks(row, offset + first);
                weigh(&mut weights, of_supers(&sigma2, first, SUPER / N), &x);
                affine(Steps::weighted(F::STEPS.nmax), &x, &weights)
            }
        };
        let lanes = first..count.min(first + 2 * V::LANES);
        store_some(fit.scale, &mut found.scales[lanes.clone()]);
        store_some(fit.min, &mut found.mins[lanes.clone()]);
        store_some(fit.iscale, &mut found.iscales[lanes.clone()]);
        store_some(fit.origin, &mut found.origins[lanes.clone()]);
        store_some(fit.weight, &mut found.weights[lanes]);
    }
}

/// Weights without importance: the magnitude, for squared errors plus the root of the mean square.
#[inline(always)]
fn plain_weights<V: Vector, F: Format, const N: usize>(x: &[V; N]) -> [V; N] {
    let mut weights = *x;
    if F::STEPS.absolute {
        for w in &mut weights {
            *w = w.abs();
        }
        return weights;
    }
    let mut sum_x2 = V::splat(0.0);
    for v in x {
        sum_x2 = sum_x2.add(v.mul(*v));
    }
    let av_x = sum_x2.div(V::splat(N as f32)).sqrt();
    for w in &mut weights {
        *w = av_x.add(w.abs());
    }
    weights
}

/// Writes the scales (or minima) of a super-block in units of the largest over [`Format::LARGEST`],
/// which it returns.
#[inline(always)]
fn divide<F: Format>(values: &[f32], out: &mut [u8]) -> f32 {
    let max = values.iter().fold(0.0f32, |max, &v| if v > max { v } else { max });
    let largest = F::LARGEST as f32;
    let inverse = if max > 0.0 { largest / max } else { 0.0 };
    for (out, v) in out.iter_mut().zip(values) {
        *out = (nearest(inverse * v) as u8).min(F::CAPS[0]);
    }
    max / largest
}

/// The same of the super-blocks from `first` on by weighted search, one a lane.
#[inline(always)]
fn divide_weighted<V: Vector, F: Format>(
    found: &Found,
    first: usize,
    per: usize,
    count: usize,
    d: &mut [(f32, f32)],
    scales: &mut [u8; BLOCKS],
    mins: &mut [u8; BLOCKS],
) {
    let zero = V::splat(0.0);
    let (mut weights, mut found_scales, mut found_mins) = ([zero; 16], [zero; 16], [zero; 16]);
    for j in 0..per {
        let at = first * per + j;
        weights[j] = strided(&found.weights[..count], at, per);
        found_scales[j] = strided(&found.scales[..count], at, per);
        found_mins[j] = strided(&found.mins[..count], at, per);
    }
    // Two sizes of super-block, each known to the compiler.
    let ((scale, scale_quants), (min, min_quants)) = if per == 8 {
        let eight = |v: &[V; 16]| *v.first_chunk::<8>().expect("eight of sixteen");
        let weights = eight(&weights);
        let (scale, quants) = positive::<V, 8>(F::LARGEST, &eight(&found_scales), &weights);
        let (min, min_quants) = positive::<V, 8>(F::LARGEST, &eight(&found_mins), &weights);
        let mut all = ([zero; 16], [zero; 16]);
        all.0[..8].copy_from_slice(&quants);
        all.1[..8].copy_from_slice(&min_quants);
        ((scale, all.0), (min, all.1))
    } else {
        (positive(F::LARGEST, &found_scales, &weights), positive(F::LARGEST, &found_mins, &weights))
    };
    let mut lanes = [0.0f32; super::lanes::MAX_LANES];
    scale.store(&mut lanes);
    d.iter_mut().zip(lanes).for_each(|(d, scale)| d.0 = scale);
    min.store(&mut lanes);
    d.iter_mut().zip(lanes).for_each(|(d, min)| d.1 = min);
    for (quants, out) in [(&scale_quants, scales), (&min_quants, mins)] {
        for (j, quants) in quants[..per].iter().enumerate() {
            quants.store(&mut lanes);
            for (at, q) in lanes[..d.len()].iter().enumerate() {
                out[(first + at) * per + j] = (*q as u8).min(F::CAPS[1]);
            }
        }
    }
}
