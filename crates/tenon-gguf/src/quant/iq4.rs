//! IQ4_NL and IQ4_XS: blocks of 32 whose quants stand for sixteen values that are denser around
//! zero, `x = d * value` and, in super-blocks of 256, `x = d * scale * value`.

use super::f16;
use super::k_affine::SUPER;
use super::lanes::{
    GREATEST, LEAST, MAX_LANES, TABLE, Twice, Vector, blocks, lanes_kernel, nearest, of_supers,
    repeated_blocks, store_quants, store_some, sums_of_squares,
};
use super::legacy::pack4;
use super::search::{EPS, largest, weigh};

const BLOCK: usize = 32;
/// Blocks of a super-block.
const PER: usize = SUPER / BLOCK;
/// Super-blocks that are worked on together.
const BATCH: usize = 16;
const BLOCKS: usize = BATCH * PER;
const NL_BYTES: usize = 18;
const XS_BYTES: usize = 136;

/// What the quants stand for.
pub(super) const VALUES: [i8; 16] =
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// What is tried on either side of the first scale.
const TRIES: i32 = 7;

lanes_kernel!(
    /// Rows of whole blocks, weighted with the importance of each column if given.
    pub(super) fn iq4_nl = nl_body(x: &[f32], importance: Option<&[f32]>, out: &mut [u8])
);
lanes_kernel!(
    /// Rows of whole super-blocks, weighted with the importance of each column if given.
    pub(super) fn iq4_xs = xs_body(x: &[f32], importance: Option<&[f32]>, out: &mut [u8])
);

/// The least and the greatest half step.
const LOW: i32 = 2 * VALUES[0] as i32;
const HIGH: i32 = 2 * VALUES[15] as i32;

/// The quant nearest to each half step. The middle between two values is a multiple of a half, so
/// all numbers from one half step to the next have the same nearest value.
const QUANTS: [f32; TABLE] = {
    let mut table = [0.0; TABLE];
    let mut i = 0;
    while i < TABLE {
        let step = LOW + i as i32;
        let mut q = 0;
        while q < 15 && step >= VALUES[q] as i32 + VALUES[q + 1] as i32 {
            q += 1;
        }
        table[i] = q as f32;
        i += 1;
    }
    table
};

/// Their values.
const NEAREST: [f32; TABLE] = {
    let mut table = QUANTS;
    let mut i = 0;
    while i < TABLE {
        table[i] = VALUES[QUANTS[i] as usize] as f32;
        i += 1;
    }
    table
};

/// The number of the half step at or below `x` in those tables; the last one for what is no number.
#[inline(always)]
fn half_step<V: Vector>(x: V) -> V {
    let (low, high) = (V::splat(LOW as f32), V::splat(HIGH as f32));
    let twice = x.add(x);
    let twice = V::select(high.gt(twice), twice, high);
    let twice = V::select(twice.gt(low), twice, low);
    let whole = twice.nearest_within(LEAST, GREATEST);
    let floor = whole.sub(V::select(whole.gt(twice), V::splat(1.0), V::splat(0.0)));
    floor.sub(low)
}

/// The scale of each block, zero where the block is: of several around the first value over the
/// largest element, each refitted by weighted least squares.
#[inline(always)]
fn find<V: Vector>(x: &[V; BLOCK], weights: &[V; BLOCK]) -> V {
    let zero = V::splat(0.0);
    let (max, amax) = largest(x);
    let first = f32::from(VALUES[0]);
    let d = max.mul(V::splat(-1.0)).div(V::splat(first));
    let (sumqx, sumq2) = fit(V::splat(1.0).div(d), x, weights);
    let mut d = V::select(sumq2.gt(zero), sumqx.div(sumq2), zero);
    let mut best = d.mul(sumqx);
    for step in -TRIES..=TRIES {
        let (sumqx, sumq2) = fit(V::splat(step as f32 + first).div(max), x, weights);
        let better = V::both(sumq2.gt(zero), sumqx.mul(sumqx).gt(best.mul(sumq2)));
        d = V::select(better, sumqx.div(sumq2), d);
        best = V::select(better, d.mul(sumqx), best);
    }
    V::select(V::splat(EPS).gt(amax), zero, d)
}

/// The sums of `w x q` and `w q²` over the values that a scale gives.
#[inline(always)]
fn fit<V: Vector>(iscale: V, x: &[V; BLOCK], weights: &[V; BLOCK]) -> (V, V) {
    let (mut sumqx, mut sumq2) = (V::splat(0.0), V::splat(0.0));
    for i in 0..BLOCK {
        let q = half_step(iscale.mul(x[i])).look_up(&NEAREST);
        let wq = weights[i].mul(q);
        sumqx = sumqx.add(wq.mul(x[i]));
        sumq2 = sumq2.add(wq.mul(q));
    }
    (sumqx, sumq2)
}

#[inline(always)]
fn quants_of<V: Vector>(iscale: V, x: &[V; BLOCK]) -> [V; BLOCK] {
    let mut quants = *x;
    for q in &mut quants {
        *q = half_step(iscale.mul(*q)).look_up(&QUANTS);
    }
    quants
}

#[inline(always)]
fn inverse<V: Vector>(d: V) -> V {
    let zero = V::splat(0.0);
    V::select(d.eq(zero), zero, V::splat(1.0).div(d))
}

/// Weights of the elements: their squares, or from their importance and `sigma2`.
#[inline(always)]
fn weights_of<V: Vector>(x: &[V; BLOCK], importance: Option<(&[f32], usize)>, sigma2: V) -> [V; BLOCK] {
    match importance {
        Some((row, first)) => {
            let mut weights = repeated_blocks(row, first);
            weigh(&mut weights, sigma2, x);
            weights
        }
        None => {
            let mut weights = *x;
            for w in &mut weights {
                *w = w.mul(*w);
            }
            weights
        }
    }
}

#[inline(always)]
pub(super) fn nl_body<V: Vector>(x: &[f32], importance: Option<&[f32]>, out: &mut [u8]) {
    let out = out.as_chunks_mut::<NL_BYTES>().0;
    for (group, out) in out.chunks_mut(2 * V::LANES).enumerate() {
        let first = group * 2 * V::LANES;
        let x: [Twice<V>; BLOCK] = blocks(x, first);
        let mut sigma2 = Twice::<V>::splat(0.0);
        for v in x {
            sigma2 = sigma2.add(v.mul(v));
        }
        let sigma2 = sigma2.mul(Twice::splat(2.0 / BLOCK as f32));
        let d = find(&x, &weights_of(&x, importance.map(|row| (row, first)), sigma2));
        let mut scales = [0.0f32; MAX_LANES];
        d.store(&mut scales);
        let mut quants = [[0u8; BLOCK]; MAX_LANES];
        store_quants(&quants_of(inverse(d), &x), quants.as_flattened_mut());
        for (out, (d, q)) in out.iter_mut().zip(scales.iter().zip(&quants)) {
            out[..2].copy_from_slice(&f16(*d).0);
            pack4(q, &mut out[2..]);
        }
    }
}

#[inline(always)]
pub(super) fn xs_body<V: Vector>(x: &[f32], importance: Option<&[f32]>, out: &mut [u8]) {
    let lanes = 2 * V::LANES;
    for (batch, (x, out)) in x.chunks(BATCH * SUPER).zip(out.chunks_mut(BATCH * XS_BYTES)).enumerate() {
        let (supers, count) = (x.len() / SUPER, x.len() / BLOCK);
        let mut sigma2 = [0.0f32; BATCH];
        if importance.is_some() {
            sums_of_squares::<V>(x, SUPER, &mut sigma2[..supers]);
            for sum in &mut sigma2 {
                *sum *= 2.0 / SUPER as f32;
            }
        }
        let mut scales = [0.0f32; BLOCKS];
        for first in (0..count).step_by(lanes) {
            let x: [Twice<V>; BLOCK] = blocks(x, first);
            let importance = importance.map(|row| (row, batch * BLOCKS + first));
            let d = find(&x, &weights_of(&x, importance, of_supers(&sigma2, first, PER)));
            store_some(d, &mut scales[first..count.min(first + lanes)]);
        }
        let mut iscales = [0.0f32; BLOCKS];
        for (at, out) in out.as_chunks_mut::<XS_BYTES>().0.iter_mut().enumerate() {
            let blocks = at * PER..(at + 1) * PER;
            divide(&scales[blocks.clone()], &mut iscales[blocks], out);
        }
        for first in (0..count).step_by(lanes) {
            let mut quants = [[0u8; BLOCK]; MAX_LANES];
            let iscale = Twice::<V>::load(&iscales[first..]);
            store_quants(&quants_of(iscale, &blocks(x, first)), quants.as_flattened_mut());
            for (block, q) in (first..count).zip(&quants[..lanes]) {
                let start = block / PER * XS_BYTES + 8 + block % PER * 16;
                pack4(q, &mut out[start..start + 16]);
            }
        }
    }
}

/// Scales in units of the largest over -32: all but the quants of a super-block; and their inverses.
#[inline(always)]
fn divide(scales: &[f32], iscales: &mut [f32], out: &mut [u8; XS_BYTES]) {
    let (mut max, mut amax) = (0.0f32, 0.0f32);
    for &scale in scales {
        if scale.abs() > amax {
            (max, amax) = (scale, scale.abs());
        }
    }
    let d = -max / 32.0;
    let id = if d != 0.0 { 1.0 / d } else { 0.0 };
    let (mut high, mut low) = (0u16, [0u8; 4]);
    for (j, (scale, iscale)) in scales.iter().zip(iscales).enumerate() {
        let whole = nearest(id * scale).clamp(-32, 31);
        let step = d * whole as f32;
        *iscale = if step != 0.0 { 1.0 / step } else { 0.0 };
        let stored = (whole + 32) as u8;
        low[j / 2] |= (stored & 15) << (4 * (j % 2));
        high |= u16::from(stored >> 4) << (2 * j);
    }
    out[..2].copy_from_slice(&f16(d).0);
    out[2..4].copy_from_slice(&high.to_le_bytes());
    out[4..8].copy_from_slice(&low);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition: the first of the values on either side that is not farther.
    fn nearest_value(x: f32) -> usize {
        let values = VALUES.map(f32::from);
        let above = values.iter().position(|v| x < *v).unwrap_or(15).max(1);
        if x <= values[0] {
            0
        } else if x - values[above - 1] < values[above] - x {
            above - 1
        } else {
            above
        }
    }

    #[test]
    fn half_steps_have_one_nearest_value_each() {
        let around = |x: f32| (-3i32..=3).map(move |n| f32::from_bits(x.to_bits().wrapping_add_signed(n)));
        let steps = (-600..600).flat_map(|i| around(i as f32 / 4.0));
        for x in steps.chain([0.0, -0.0, 1e-45, -1e-45, f32::MAX, f32::INFINITY, -f32::INFINITY]) {
            let q = half_step([x]).look_up(&QUANTS)[0];
            assert_eq!(q as usize, nearest_value(x), "{x}");
        }
        assert_eq!(half_step([f32::NAN]).look_up(&QUANTS)[0], 15.0);
    }
}
