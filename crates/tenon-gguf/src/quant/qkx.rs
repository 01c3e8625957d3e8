//! Q4_K and Q5_K: super-blocks of 256, eight blocks of 32 with a scale and a minimum each,
//! `x = d * scale * q - dmin * min`.
//!
//! The search (ggml's `make_qkx2_quants`) tries steps of the scale around
//! `(max - min) / nmax`, fits scale and minimum to the quants that each gives
//! by weighted least squares, and keeps what has the least weighted error.

use super::f16;
use super::lanes::{Vector, lanes_kernel, nearest, transpose};

const SUPER: usize = 256;
const BLOCK: usize = 32;
/// Blocks in a super-block.
const BLOCKS: usize = SUPER / BLOCK;
/// Most super-blocks whose blocks are searched together.
const PAIR: usize = 2;

lanes_kernel!(
    /// Rows of whole super-blocks.
    pub(super) fn q4_k = q4_k_body
);
lanes_kernel!(
    /// Rows of whole super-blocks.
    pub(super) fn q5_k = q5_k_body
);

#[inline(always)]
fn q4_k_body<V: Vector>(x: &[f32], out: &mut [u8]) {
    let search = Search { nmax: 15, rmin: -1.0, rdelta: 0.1, nstep: 20 };
    rows::<V, 144>(search, x, out, pack_q4);
}

#[inline(always)]
fn q5_k_body<V: Vector>(x: &[f32], out: &mut [u8]) {
    let search = Search { nmax: 31, rmin: -0.5, rdelta: 0.1, nstep: 15 };
    rows::<V, 176>(search, x, out, pack_q5);
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
struct Found<V> {
    scale: V,
    min: V,
    quants: [V; BLOCK],
}

#[inline(always)]
fn rows<V: Vector, const BYTES: usize>(
    search: Search,
    x: &[f32],
    out: &mut [u8],
    pack: fn(&[u8; SUPER], &mut [u8]),
) {
    let mut padded = [0.0f32; PAIR * SUPER];
    for (x, out) in x.chunks(PAIR * SUPER).zip(out.chunks_mut(PAIR * BYTES)) {
        let (mut scales, mut mins) = ([0.0f32; PAIR * BLOCKS], [0.0f32; PAIR * BLOCKS]);
        let mut quants = [0u8; PAIR * SUPER];
        let blocks = x.len() / BLOCK;
        // A last single super-block leaves half of sixteen lanes idle.
        let x_lanes = if x.len() < padded.len() && V::LANES > BLOCKS {
            padded[..x.len()].copy_from_slice(x);
            &padded[..]
        } else {
            x
        };
        for (group, group_x) in x_lanes.chunks_exact(V::LANES * BLOCK).enumerate() {
            let found = find::<V>(search, &transpose(group_x));
            let first = group * V::LANES;
            found.scale.store(&mut scales[first..]);
            found.min.store(&mut mins[first..]);
            let lanes = V::LANES.min(blocks - first);
            let mut row = [0.0f32; 16];
            for (i, q) in found.quants.iter().enumerate() {
                q.store(&mut row);
                for (lane, q) in row[..lanes].iter().enumerate() {
                    quants[(first + lane) * BLOCK + i] = *q as u8;
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
fn find<V: Vector>(search: Search, x: &[V; BLOCK]) -> Found<V> {
    let zero = V::splat(0.0);
    let mut sum_x2 = zero;
    for v in x {
        sum_x2 = sum_x2.add(v.mul(*v));
    }
    let av_x = sum_x2.div(V::splat(32.0)).sqrt();
    let weights: [V; BLOCK] = std::array::from_fn(|i| av_x.add(x[i].abs()));
    let (mut min, mut max) = (x[0], x[0]);
    let mut sum_w = weights[0];
    let mut sum_x = sum_w.mul(x[0]);
    for i in 1..BLOCK {
        let (v, w) = (x[i], weights[i]);
        min = V::select(min.gt(v), v, min);
        max = V::select(v.gt(max), v, max);
        sum_w = sum_w.add(w);
        sum_x = sum_x.add(w.mul(v));
    }
    min = V::select(min.gt(zero), zero, min);
    let flat = max.eq(min);
    let first_min = min;
    let nmax = search.nmax as f32;
    let mut tried = [zero; BLOCK];
    let mut scale;
    let mut best_error = zero;
    {
        let iscale = V::splat(nmax).div(max.sub(min));
        scale = V::splat(1.0).div(iscale);
        for i in 0..BLOCK {
            let q = iscale.mul(x[i].sub(min)).nearest_within(0, search.nmax);
            tried[i] = q;
            let diff = scale.mul(q).add(min).sub(x[i]);
            best_error = best_error.add(weights[i].mul(diff.mul(diff)));
        }
    }
    let mut best = tried;
    for step in 0..=search.nstep {
        let wanted = search.rmin + search.rdelta * step as f32 + nmax;
        let iscale = V::splat(wanted).div(max.sub(min));
        let (mut sum_l, mut sum_l2, mut sum_xl) = (zero, zero, zero);
        for i in 0..BLOCK {
            let q = iscale.mul(x[i].sub(min)).nearest_within(0, search.nmax);
            tried[i] = q;
            let wl = weights[i].mul(q);
            sum_l = sum_l.add(wl);
            sum_l2 = sum_l2.add(wl.mul(q));
            sum_xl = sum_xl.add(wl.mul(x[i]));
        }
        let det = sum_w.mul(sum_l2).sub(sum_l.mul(sum_l));
        let fit_scale = sum_w.mul(sum_xl).sub(sum_x.mul(sum_l)).div(det);
        let fit_min = sum_l2.mul(sum_x).sub(sum_l.mul(sum_xl)).div(det);
        let above = fit_min.gt(zero);
        let this_scale = V::select(above, sum_xl.div(sum_l2), fit_scale);
        let this_min = V::select(above, zero, fit_min);
        let mut error = zero;
        for i in 0..BLOCK {
            let diff = this_scale.mul(tried[i]).add(this_min).sub(x[i]);
            error = error.add(weights[i].mul(diff.mul(diff)));
        }
        let better = V::both(det.gt(zero), best_error.gt(error));
        if V::any(better) {
            best_error = V::select(better, error, best_error);
            scale = V::select(better, this_scale, scale);
            min = V::select(better, this_min, min);
            for i in 0..BLOCK {
                best[i] = V::select(better, tried[i], best[i]);
            }
        }
    }
    let negative = |v: V| v.mul(V::splat(-1.0));
    Found {
        scale: V::select(flat, zero, scale),
        min: negative(V::select(flat, first_min, min)),
        quants: best.map(|q| V::select(flat, zero, q)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_number_of_lanes_gives_the_same_bits(
            x in proptest::collection::vec(
                prop_oneof![-2.0f32..2.0, Just(0.0f32), -1e-30f32..1e-30, -1e4f32..1e4],
                3 * SUPER,
            ),
            flat in -1.0f32..1.0,
        ) {
            let mut x = x;
            x[SUPER..SUPER + 64].fill(flat);
            let run = |f: fn(&[f32], &mut [u8])| {
                let mut out = vec![0u8; 3 * 144];
                f(&x, &mut out);
                out
            };
            let one = run(q4_k_body::<[f32; 1]>);
            prop_assert_eq!(&one, &run(q4_k_body::<[f32; 8]>));
            prop_assert_eq!(&one, &run(q4_k_body::<[f32; 16]>));
            for level in tenon_simd::Level::available() {
                let mut out = vec![0u8; 3 * 144];
                q4_k(level, &x, &mut out);
                prop_assert_eq!(&one, &out);
            }
        }
    }
}
