//! Q6_K: super-blocks of 256, sixteen blocks of 16 with an 8-bit scale each, `x = d * scale * (q - 32)`.
//!
//! The search (ggml's `make_qx_quants`) tries scales around `-32 / max`, each
//! refitted by least squares weighted with `x²`.

use super::f16;
use super::lanes::{Vector, lanes_kernel, nearest, transpose};

const SUPER: usize = 256;
const BLOCK: usize = 16;
const BYTES: usize = 210;
const NMAX: i32 = 32;
/// Blocks below this are zero (ggml's `GROUP_MAX_EPS`).
const EPS: f32 = 1e-15;

lanes_kernel!(
    /// Rows of whole super-blocks.
    pub(super) fn quantize = rows
);

#[inline(always)]
fn rows<V: Vector>(x: &[f32], out: &mut [u8]) {
    for (x, out) in x.chunks_exact(SUPER).zip(out.chunks_exact_mut(BYTES)) {
        super_block::<V>(x, out);
    }
}

#[inline(always)]
fn super_block<V: Vector>(x: &[f32], out: &mut [u8]) {
    let mut scales = [0.0f32; BLOCK];
    let mut quants = [0u8; SUPER];
    for (group, blocks) in x.chunks_exact(V::LANES * BLOCK).enumerate() {
        let (found, q) = find::<V>(&transpose(blocks));
        let first = group * V::LANES;
        found.store(&mut scales[first..]);
        let mut row = [0.0f32; 16];
        for (i, q) in q.iter().enumerate() {
            q.store(&mut row);
            for (lane, q) in row[..V::LANES].iter().enumerate() {
                quants[(first + lane) * BLOCK + i] = *q as u8;
            }
        }
    }
    let (mut max_scale, mut max_abs) = (0.0f32, 0.0f32);
    for &scale in &scales {
        if scale.abs() > max_abs {
            (max_abs, max_scale) = (scale.abs(), scale);
        }
    }
    if max_abs < EPS {
        out.fill(0);
        return;
    }
    let iscale = -128.0 / max_scale;
    let (d_bytes, d) = f16(1.0 / iscale);
    let (ql, rest) = out.split_at_mut(128);
    let (qh, rest) = rest.split_at_mut(64);
    let (packed, d_out) = rest.split_at_mut(16);
    d_out.copy_from_slice(&d_bytes);
    for (j, (packed, scale)) in packed.iter_mut().zip(scales).enumerate() {
        let rounded = nearest(iscale * scale).min(127) as i8;
        *packed = rounded as u8;
        let step = d * f32::from(rounded);
        if step == 0.0 {
            continue;
        }
        let block = j * BLOCK..(j + 1) * BLOCK;
        for (q, v) in quants[block.clone()].iter_mut().zip(&x[block]) {
            *q = (nearest(v / step).clamp(-NMAX, NMAX - 1) + NMAX) as u8;
        }
    }
    for (half, (ql, qh)) in quants.chunks_exact(128).zip(ql.chunks_exact_mut(64).zip(qh.chunks_exact_mut(32)))
    {
        for l in 0..32 {
            let [a, b, c, e] = [half[l], half[l + 32], half[l + 64], half[l + 96]];
            ql[l] = a & 15 | (c & 15) << 4;
            ql[l + 32] = b & 15 | (e & 15) << 4;
            qh[l] = a >> 4 | (b >> 4) << 2 | (c >> 4) << 4 | (e >> 4) << 6;
        }
    }
}

/// Scale and quants of one block a lane.
#[inline(always)]
fn find<V: Vector>(x: &[V; BLOCK]) -> (V, [V; BLOCK]) {
    let zero = V::splat(0.0);
    let (mut max, mut amax) = (zero, zero);
    for v in x {
        let larger = v.abs().gt(amax);
        max = V::select(larger, *v, max);
        amax = V::select(larger, v.abs(), amax);
    }
    // Of each element: x², its weight, and its weight times itself.
    let weights: [V; BLOCK] = std::array::from_fn(|i| x[i].mul(x[i]));
    let weighted: [V; BLOCK] = std::array::from_fn(|i| weights[i].mul(x[i]));
    let mut tried = [zero; BLOCK];
    let (sumlx, suml2) = fit(-(NMAX as f32), max, x, &weights, &weighted, &mut tried);
    let mut best_quants = tried;
    let mut scale = V::select(suml2.eq(zero), zero, sumlx.div(suml2));
    let mut best = scale.mul(sumlx);
    for step in (-9..=9).filter(|step| *step != 0) {
        let wanted = -(NMAX as f32 + 0.1 * step as f32);
        let (sumlx, suml2) = fit(wanted, max, x, &weights, &weighted, &mut tried);
        let better = V::both(suml2.gt(zero), sumlx.mul(sumlx).gt(best.mul(suml2)));
        if V::any(better) {
            scale = V::select(better, sumlx.div(suml2), scale);
            best = V::select(better, scale.mul(sumlx), best);
            for i in 0..BLOCK {
                best_quants[i] = V::select(better, tried[i], best_quants[i]);
            }
        }
    }
    let flat = V::splat(EPS).gt(amax);
    let shift = V::splat(NMAX as f32);
    (V::select(flat, zero, scale), best_quants.map(|q| V::select(flat, zero, q.add(shift))))
}

/// The quants that the scale `max / wanted` gives, with the sums of `w x q` and `w q²`.
///
/// A function and no closure: a closure is compiled without the vector's instructions.
#[inline(always)]
fn fit<V: Vector>(
    wanted: f32,
    max: V,
    x: &[V; BLOCK],
    weights: &[V; BLOCK],
    weighted: &[V; BLOCK],
    tried: &mut [V; BLOCK],
) -> (V, V) {
    let iscale = V::splat(wanted).div(max);
    let (mut sumlx, mut suml2) = (V::splat(0.0), V::splat(0.0));
    for i in 0..BLOCK {
        let q = iscale.mul(x[i]).nearest_within(-NMAX, NMAX - 1);
        tried[i] = q;
        sumlx = sumlx.add(weighted[i].mul(q));
        suml2 = suml2.add(weights[i].mul(q).mul(q));
    }
    (sumlx, suml2)
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
                SUPER,
            ),
        ) {
            let (mut one, mut many) = ([0u8; BYTES], [0u8; BYTES]);
            super_block::<[f32; 1]>(&x, &mut one);
            super_block::<[f32; 16]>(&x, &mut many);
            prop_assert_eq!(&one[..], &many[..]);
            for level in tenon_simd::Level::available() {
                quantize(level, &x, &mut many);
                prop_assert_eq!(&one[..], &many[..]);
            }
        }
    }
}
