//! Q6_K: super-blocks of 256, sixteen blocks of 16 with an 8-bit scale each, `x = d * scale * (q - 32)`.
//!
//! The search (ggml's `make_qx_quants`) tries scales around `-32 / max`, each
//! refitted by least squares weighted with `x²`.

use tenon_simd::kernel;

use super::f16;
use super::lanes::{Lanes, each, nearest, transpose};

const SUPER: usize = 256;
const BLOCK: usize = 16;
const BYTES: usize = 210;
const NMAX: i32 = 32;
/// Blocks below this are zero (ggml's `GROUP_MAX_EPS`).
const EPS: f32 = 1e-15;

kernel!(
    /// Rows of whole super-blocks.
    pub(super) fn quantize = body(x: &[f32], out: &mut [u8])
);

#[inline(always)]
fn body<const FUSED: bool>(x: &[f32], out: &mut [u8]) {
    for (x, out) in x.chunks_exact(SUPER).zip(out.chunks_exact_mut(BYTES)) {
        super_block::<16>(x, out);
    }
}

#[inline(always)]
fn super_block<const L: usize>(x: &[f32], out: &mut [u8]) {
    let mut scales = [0.0f32; BLOCK];
    let mut quants = [0u8; SUPER];
    for (group, blocks) in x.chunks_exact(L * BLOCK).enumerate() {
        let (found, q) = find::<L>(&transpose(blocks));
        for lane in 0..L {
            let block = group * L + lane;
            scales[block] = found[lane];
            for (i, q) in q.iter().enumerate() {
                quants[block * BLOCK + i] = q[lane];
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
fn find<const L: usize>(x: &[Lanes<L>; BLOCK]) -> (Lanes<L>, [[u8; L]; BLOCK]) {
    let (mut max, mut amax) = ([0.0; L], [0.0; L]);
    for v in x {
        max = each(|l| if v[l].abs() > amax[l] { v[l] } else { max[l] });
        amax = each(|l| if v[l].abs() > amax[l] { v[l].abs() } else { amax[l] });
    }
    let quant = |iscale: &Lanes<L>, v: &Lanes<L>| -> Lanes<L> {
        each(|l| nearest(iscale[l] * v[l]).clamp(-NMAX, NMAX - 1) as f32)
    };
    // Sums of w x q and w q² with w = x².
    let sums = |iscale: &Lanes<L>, tried: &mut [Lanes<L>; BLOCK]| -> (Lanes<L>, Lanes<L>) {
        let (mut sumlx, mut suml2) = ([0.0; L], [0.0; L]);
        for (q, v) in tried.iter_mut().zip(x) {
            *q = quant(iscale, v);
            sumlx = each(|l| {
                let w = v[l] * v[l];
                sumlx[l] + w * v[l] * q[l]
            });
            suml2 = each(|l| {
                let w = v[l] * v[l];
                suml2[l] + w * q[l] * q[l]
            });
        }
        (sumlx, suml2)
    };
    let mut tried = [[0.0f32; L]; BLOCK];
    let (sumlx, suml2) = sums(&each(|l| -(NMAX as f32) / max[l]), &mut tried);
    let mut best_quants = tried;
    let mut scale: Lanes<L> = each(|l| if suml2[l] != 0.0 { sumlx[l] / suml2[l] } else { 0.0 });
    let mut best: Lanes<L> = each(|l| scale[l] * sumlx[l]);
    for step in (-9..=9).filter(|step| *step != 0) {
        let wanted = -(NMAX as f32 + 0.1 * step as f32);
        let (sumlx, suml2) = sums(&each(|l| wanted / max[l]), &mut tried);
        let better: [bool; L] =
            std::array::from_fn(|l| suml2[l] > 0.0 && sumlx[l] * sumlx[l] > best[l] * suml2[l]);
        if better.iter().any(|better| *better) {
            scale = each(|l| if better[l] { sumlx[l] / suml2[l] } else { scale[l] });
            best = each(|l| if better[l] { scale[l] * sumlx[l] } else { best[l] });
            for (best, q) in best_quants.iter_mut().zip(&tried) {
                *best = each(|l| if better[l] { q[l] } else { best[l] });
            }
        }
    }
    let zero: [bool; L] = std::array::from_fn(|l| amax[l] < EPS);
    let quants =
        best_quants.map(|q| std::array::from_fn(|l| if zero[l] { 0 } else { (q[l] as i32 + NMAX) as u8 }));
    (each(|l| if zero[l] { 0.0 } else { scale[l] }), quants)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_number_of_lanes_gives_the_same_bits(
            x in proptest::collection::vec(prop_oneof![-2.0f32..2.0, Just(0.0f32), -1e-30f32..1e-30, -1e4f32..1e4], SUPER),
        ) {
            let (mut one, mut many) = ([0u8; BYTES], [0u8; BYTES]);
            super_block::<1>(&x, &mut one);
            super_block::<16>(&x, &mut many);
            prop_assert_eq!(&one[..], &many[..]);
            for level in tenon_simd::Level::available() {
                quantize(level, &x, &mut many);
                prop_assert_eq!(&one[..], &many[..]);
            }
        }
    }
}
