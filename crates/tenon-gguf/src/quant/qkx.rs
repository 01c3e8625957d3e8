//! Q4_K and Q5_K: super-blocks of 256, eight blocks of 32 with a scale and a minimum each,
//! `x = d * scale * q - dmin * min`.
//!
//! The search (ggml's `make_qkx2_quants`) tries steps of the scale around
//! `(max - min) / nmax`, fits scale and minimum to the quants that each gives
//! by weighted least squares, and keeps what has the least weighted error.

use tenon_simd::kernel;

use super::f16;
use super::lanes::{Lanes, each, nearest, transpose};

const SUPER: usize = 256;
const BLOCK: usize = 32;
/// Blocks in a super-block.
const BLOCKS: usize = SUPER / BLOCK;

kernel!(
    /// Rows of whole super-blocks.
    pub(super) fn q4_k = q4_k_body(x: &[f32], out: &mut [u8])
);
kernel!(
    /// Rows of whole super-blocks.
    pub(super) fn q5_k = q5_k_body(x: &[f32], out: &mut [u8])
);

#[inline(always)]
fn q4_k_body<const FUSED: bool>(x: &[f32], out: &mut [u8]) {
    let search = Search { nmax: 15, rmin: -1.0, rdelta: 0.1, nstep: 20 };
    side_by_side::<144>(search, x, out, pack_q4);
}

#[inline(always)]
fn q5_k_body<const FUSED: bool>(x: &[f32], out: &mut [u8]) {
    let search = Search { nmax: 31, rmin: -0.5, rdelta: 0.1, nstep: 15 };
    side_by_side::<176>(search, x, out, pack_q5);
}

/// Two super-blocks at a time, sixteen blocks; the last alone where their number is odd.
#[inline(always)]
fn side_by_side<const BYTES: usize>(
    search: Search,
    x: &[f32],
    out: &mut [u8],
    pack: fn(&[u8; SUPER], &mut [u8]),
) {
    let pairs = x.len() / (2 * SUPER);
    let (x_pairs, x_last) = x.split_at(pairs * 2 * SUPER);
    let (out_pairs, out_last) = out.split_at_mut(pairs * 2 * BYTES);
    for (x, out) in x_pairs.chunks_exact(2 * SUPER).zip(out_pairs.chunks_exact_mut(2 * BYTES)) {
        super_blocks::<16, BYTES>(search, x, out, pack);
    }
    if !x_last.is_empty() {
        super_blocks::<8, BYTES>(search, x_last, out_last, pack);
    }
}

/// What the search tries.
#[derive(Clone, Copy)]
struct Search {
    nmax: i32,
    rmin: f32,
    rdelta: f32,
    nstep: i32,
}

/// What the search found for each lane's block.
struct Found<const L: usize> {
    scale: Lanes<L>,
    min: Lanes<L>,
    quants: [[u8; L]; BLOCK],
}

#[inline(always)]
fn super_blocks<const L: usize, const BYTES: usize>(
    search: Search,
    x: &[f32],
    out: &mut [u8],
    pack: fn(&[u8; SUPER], &mut [u8]),
) {
    let (mut scales, mut mins) = ([0.0f32; 16], [0.0f32; 16]);
    let mut quants = [0u8; 2 * SUPER];
    for (group, blocks) in x.chunks_exact(L * BLOCK).enumerate() {
        let found = find::<L>(search, &transpose(blocks));
        for lane in 0..L {
            let block = group * L + lane;
            scales[block] = found.scale[lane];
            mins[block] = found.min[lane];
            for (i, q) in found.quants.iter().enumerate() {
                quants[block * BLOCK + i] = q[lane];
            }
        }
    }
    for (at, (x, out)) in x.chunks_exact(SUPER).zip(out.chunks_exact_mut(BYTES)).enumerate() {
        let blocks = at * BLOCKS..(at + 1) * BLOCKS;
        let quants: &mut [u8; SUPER] =
            (&mut quants[at * SUPER..(at + 1) * SUPER]).try_into().expect("a super-block");
        finish(search.nmax, x, &scales[blocks.clone()], &mins[blocks], quants, out);
        pack(quants, &mut out[16..]);
    }
}

/// Scales and minima as six bits each and, with these, the quants anew.
#[inline(always)]
fn finish(nmax: i32, x: &[f32], scales: &[f32], mins: &[f32], quants: &mut [u8; SUPER], out: &mut [u8]) {
    let max = |values: &[f32]| values.iter().fold(0.0f32, |max, &v| if v > max { v } else { max });
    let (max_scale, max_min) = (max(scales), max(mins));
    let inverse = |max: f32| if max > 0.0 { 63.0 / max } else { 0.0 };
    let (inv_scale, inv_min) = (inverse(max_scale), inverse(max_min));
    let (d_bytes, d) = f16(max_scale / 63.0);
    let (dmin_bytes, dmin) = f16(max_min / 63.0);
    out[..2].copy_from_slice(&d_bytes);
    out[2..4].copy_from_slice(&dmin_bytes);
    let packed = &mut out[4..16];
    for j in 0..BLOCKS {
        let ls = (nearest(inv_scale * scales[j]) as u8).min(63);
        let lm = (nearest(inv_min * mins[j]) as u8).min(63);
        if j < 4 {
            packed[j] = ls;
            packed[j + 4] = lm;
        } else {
            packed[j + 4] = ls & 15 | (lm & 15) << 4;
            packed[j - 4] |= ls >> 4 << 6;
            packed[j] |= lm >> 4 << 6;
        }
        let (scale, min) = (d * f32::from(ls), dmin * f32::from(lm));
        if scale == 0.0 {
            continue;
        }
        let block = j * BLOCK..(j + 1) * BLOCK;
        for (q, v) in quants[block.clone()].iter_mut().zip(&x[block]) {
            *q = nearest((v + min) / scale).clamp(0, nmax) as u8;
        }
    }
}

/// Four bits: two blocks share 32 bytes.
fn pack_q4(quants: &[u8; SUPER], out: &mut [u8]) {
    for (pair, out) in quants.chunks_exact(2 * BLOCK).zip(out.chunks_exact_mut(BLOCK)) {
        for (l, out) in out.iter_mut().enumerate() {
            *out = pair[l] | pair[l + BLOCK] << 4;
        }
    }
}

/// Five bits: the fifth ones first, one bit of each block in a byte.
fn pack_q5(quants: &[u8; SUPER], out: &mut [u8]) {
    let (high, low) = out.split_at_mut(BLOCK);
    high.fill(0);
    for (n, (pair, low)) in quants.chunks_exact(2 * BLOCK).zip(low.chunks_exact_mut(BLOCK)).enumerate() {
        for l in 0..BLOCK {
            let (a, b) = (pair[l], pair[l + BLOCK]);
            high[l] |= (a >> 4) << (2 * n) | (b >> 4) << (2 * n + 1);
            low[l] = a & 15 | b << 4;
        }
    }
}

/// The search of one block a lane.
#[inline(always)]
fn find<const L: usize>(search: Search, x: &[Lanes<L>; BLOCK]) -> Found<L> {
    let mut sum_x2 = [0.0; L];
    for v in x {
        sum_x2 = each(|l| sum_x2[l] + v[l] * v[l]);
    }
    let av_x: Lanes<L> = each(|l| (sum_x2[l] / 32.0).sqrt());
    let mut weights = [[0.0; L]; BLOCK];
    for (w, v) in weights.iter_mut().zip(x) {
        *w = each(|l| av_x[l] + v[l].abs());
    }
    let (mut min, mut max) = (x[0], x[0]);
    let mut sum_w = weights[0];
    let mut sum_x: Lanes<L> = each(|l| sum_w[l] * x[0][l]);
    for (v, w) in x.iter().zip(&weights).skip(1) {
        min = each(|l| if v[l] < min[l] { v[l] } else { min[l] });
        max = each(|l| if v[l] > max[l] { v[l] } else { max[l] });
        sum_w = each(|l| sum_w[l] + w[l]);
        sum_x = each(|l| sum_x[l] + w[l] * v[l]);
    }
    min = each(|l| if min[l] > 0.0 { 0.0 } else { min[l] });
    let nmax = search.nmax as f32;
    let flat: [bool; L] = std::array::from_fn(|l| max[l] == min[l]);
    let first_min = min;
    let mut iscale: Lanes<L> = each(|l| nmax / (max[l] - min[l]));
    let mut scale: Lanes<L> = each(|l| 1.0 / iscale[l]);
    let mut best_error = [0.0; L];
    let mut tried = [[0.0f32; L]; BLOCK];
    for ((q, v), w) in tried.iter_mut().zip(x).zip(&weights) {
        *q = each(|l| nearest(iscale[l] * (v[l] - min[l])).clamp(0, search.nmax) as f32);
        best_error = each(|l| {
            let diff = scale[l] * q[l] + min[l] - v[l];
            best_error[l] + w[l] * (diff * diff)
        });
    }
    let mut best = tried;
    for step in 0..=search.nstep {
        let wanted = search.rmin + search.rdelta * step as f32 + nmax;
        iscale = each(|l| wanted / (max[l] - min[l]));
        let (mut sum_l, mut sum_l2, mut sum_xl) = ([0.0; L], [0.0; L], [0.0; L]);
        for ((q, v), w) in tried.iter_mut().zip(x).zip(&weights) {
            *q = each(|l| nearest(iscale[l] * (v[l] - min[l])).clamp(0, search.nmax) as f32);
            let wl: Lanes<L> = each(|l| w[l] * q[l]);
            sum_l = each(|l| sum_l[l] + wl[l]);
            sum_l2 = each(|l| sum_l2[l] + wl[l] * q[l]);
            sum_xl = each(|l| sum_xl[l] + wl[l] * v[l]);
        }
        let det: Lanes<L> = each(|l| sum_w[l] * sum_l2[l] - sum_l[l] * sum_l[l]);
        let mut this_scale: Lanes<L> = each(|l| (sum_w[l] * sum_xl[l] - sum_x[l] * sum_l[l]) / det[l]);
        let mut this_min: Lanes<L> = each(|l| (sum_l2[l] * sum_x[l] - sum_l[l] * sum_xl[l]) / det[l]);
        this_scale = each(|l| if this_min[l] > 0.0 { sum_xl[l] / sum_l2[l] } else { this_scale[l] });
        this_min = each(|l| if this_min[l] > 0.0 { 0.0 } else { this_min[l] });
        let mut error = [0.0; L];
        for ((q, v), w) in tried.iter().zip(x).zip(&weights) {
            error = each(|l| {
                let diff = this_scale[l] * q[l] + this_min[l] - v[l];
                error[l] + w[l] * (diff * diff)
            });
        }
        let better: [bool; L] = std::array::from_fn(|l| det[l] > 0.0 && error[l] < best_error[l]);
        if better.iter().any(|better| *better) {
            best_error = each(|l| if better[l] { error[l] } else { best_error[l] });
            scale = each(|l| if better[l] { this_scale[l] } else { scale[l] });
            min = each(|l| if better[l] { this_min[l] } else { min[l] });
            for (best, q) in best.iter_mut().zip(&tried) {
                *best = each(|l| if better[l] { q[l] } else { best[l] });
            }
        }
    }
    Found {
        scale: each(|l| if flat[l] { 0.0 } else { scale[l] }),
        min: each(|l| if flat[l] { -first_min[l] } else { -min[l] }),
        quants: best.map(|q| std::array::from_fn(|l| if flat[l] { 0 } else { q[l] as u8 })),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_number_of_lanes_gives_the_same_bits(
            x in proptest::collection::vec(prop_oneof![-2.0f32..2.0, Just(0.0f32), -1e-30f32..1e-30, -1e4f32..1e4], 2 * SUPER),
        ) {
            let search = Search { nmax: 15, rmin: -1.0, rdelta: 0.1, nstep: 20 };
            let run = |f: fn(Search, &[f32], &mut [u8], fn(&[u8; SUPER], &mut [u8]))| {
                let mut out = vec![0u8; 288];
                f(search, &x, &mut out, pack_q4);
                out
            };
            let one = run(super_blocks::<1, 144>);
            prop_assert_eq!(&one, &run(super_blocks::<16, 144>));
            prop_assert_eq!(&one, &run(super_blocks::<8, 144>));
            for level in tenon_simd::Level::available() {
                let mut out = vec![0u8; 288];
                q4_k(level, &x, &mut out);
                prop_assert_eq!(&one, &out);
            }
        }
    }
}
