//! The searches: scales for the elements of blocks, a block a lane.
//!
//! Each follows one of ggml's `make_*_quants` and does its operations in its
//! order. What the reference keeps of a trial are its quants; here it is the
//! two or three numbers that give them again.

use super::lanes::{GREATEST, LEAST, Vector};

/// Blocks below this are zero (ggml's `GROUP_MAX_EPS`).
pub(super) const EPS: f32 = 1e-15;

/// What the search for a scale and a minimum tries: `nstep + 1` steps from `rmin` by `rdelta`
/// around `nmax`, `nmax` the largest quant.
#[derive(Clone, Copy)]
pub(super) struct Steps {
    pub(super) nmax: i32,
    pub(super) rmin: f32,
    pub(super) rdelta: f32,
    pub(super) nstep: i32,
    /// Whether errors count as they are, or squared.
    pub(super) absolute: bool,
}

impl Steps {
    /// What ggml tries wherever weights are given.
    pub(super) const fn weighted(nmax: i32) -> Self {
        Steps { nmax, rmin: -0.9, rdelta: 0.05, nstep: 36, absolute: false }
    }
}

/// `x ≈ scale * q - min`, where `q` is the nearest to `iscale * (x - origin)` within 0 and `nmax`.
#[derive(Clone, Copy)]
pub(super) struct Affine<V> {
    pub(super) scale: V,
    pub(super) min: V,
    pub(super) iscale: V,
    pub(super) origin: V,
    /// Sum of the weights.
    pub(super) weight: V,
}

impl<V: Vector> Affine<V> {
    /// The quants.
    #[inline(always)]
    pub(super) fn quants<const N: usize>(&self, nmax: i32, x: &[V; N]) -> [V; N] {
        let mut quants = *x;
        for q in &mut quants {
            *q = self.iscale.mul(q.sub(self.origin)).nearest_within(0, nmax);
        }
        quants
    }
}

/// Scale and minimum (`make_qkx2_quants`, `make_qkx3_quants`): each step gives quants, to these
/// both are fitted by weighted least squares, and what has the least weighted error is kept.
#[inline(always)]
pub(super) fn affine<V: Vector, const N: usize>(steps: Steps, x: &[V; N], weights: &[V; N]) -> Affine<V> {
    let zero = V::splat(0.0);
    let (mut min, mut max) = (x[0], x[0]);
    let mut sum_w = weights[0];
    let mut sum_x = sum_w.mul(x[0]);
    for i in 1..N {
        let (v, w) = (x[i], weights[i]);
        min = V::select(min.gt(v), v, min);
        max = V::select(v.gt(max), v, max);
        sum_w = sum_w.add(w);
        sum_x = sum_x.add(w.mul(v));
    }
    min = V::select(min.gt(zero), zero, min);
    let flat = max.eq(min);
    let first_min = min;
    let nmax = steps.nmax as f32;
    let mut tried = [zero; N];
    let mut best_error = zero;
    let mut iscale = V::splat(nmax).div(max.sub(min));
    let mut origin = min;
    let mut scale = V::splat(1.0).div(iscale);
    for i in 0..N {
        let q = iscale.mul(x[i].sub(min)).nearest_within(0, steps.nmax);
        best_error = best_error.add(weights[i].mul(deviation(steps, scale, q, min, x[i])));
    }
    for step in 0..=steps.nstep {
        let this_iscale = V::splat(steps.rmin + steps.rdelta * step as f32 + nmax).div(max.sub(min));
        let (mut sum_l, mut sum_l2, mut sum_xl) = (zero, zero, zero);
        for i in 0..N {
            let q = this_iscale.mul(x[i].sub(min)).nearest_within(0, steps.nmax);
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
        for i in 0..N {
            error = error.add(weights[i].mul(deviation(steps, this_scale, tried[i], this_min, x[i])));
        }
        let better = V::both(det.gt(zero), best_error.gt(error));
        best_error = V::select(better, error, best_error);
        scale = V::select(better, this_scale, scale);
        iscale = V::select(better, this_iscale, iscale);
        origin = V::select(better, min, origin);
        min = V::select(better, this_min, min);
    }
    Affine {
        scale: V::select(flat, zero, scale),
        min: V::select(flat, first_min, min).mul(V::splat(-1.0)),
        iscale: V::select(flat, zero, iscale),
        origin,
        weight: sum_w,
    }
}

/// How far `scale * q + min` is from `x`.
#[inline(always)]
fn deviation<V: Vector>(steps: Steps, scale: V, q: V, min: V, x: V) -> V {
    let diff = scale.mul(q).add(min).sub(x);
    if steps.absolute { diff.abs() } else { diff.mul(diff) }
}

/// `x ≈ scale * (q - nmax)`, where `q - nmax` is the nearest to `iscale * x` within `-nmax` and
/// `nmax - 1`, and `q` is zero where the block is.
#[derive(Clone, Copy)]
pub(super) struct Symmetric<V: Vector> {
    pub(super) scale: V,
    pub(super) iscale: V,
    zero: V::Mask,
}

impl<V: Vector> Symmetric<V> {
    /// The quants `q`, from 0 to `2 * nmax - 1`.
    #[inline(always)]
    pub(super) fn quants<const N: usize>(&self, nmax: i32, x: &[V; N]) -> [V; N] {
        let mut quants = *x;
        for q in &mut quants {
            let nearest = self.iscale.mul(*q).nearest_within(-nmax, nmax - 1);
            *q = V::select(self.zero, V::splat(0.0), nearest.add(V::splat(nmax as f32)));
        }
        quants
    }
}

/// The element of the largest magnitude, the first of equals, and that magnitude.
#[inline(always)]
pub(super) fn largest<V: Vector, const N: usize>(x: &[V; N]) -> (V, V) {
    let (mut max, mut amax) = (V::splat(0.0), V::splat(0.0));
    for v in x {
        let larger = v.abs().gt(amax);
        max = V::select(larger, *v, max);
        amax = V::select(larger, v.abs(), amax);
    }
    (max, amax)
}

/// A scale alone (`make_qx_quants`): scales around `-nmax / max`, each refitted by weighted least
/// squares to the quants that it gives.
#[inline(always)]
pub(super) fn symmetric<V: Vector, const N: usize>(nmax: i32, x: &[V; N], weights: &[V; N]) -> Symmetric<V> {
    let zero = V::splat(0.0);
    let (max, amax) = largest(x);
    let mut weighted = *weights;
    for (w, v) in weighted.iter_mut().zip(x) {
        *w = w.mul(*v);
    }
    let mut iscale = V::splat(-(nmax as f32)).div(max);
    let (sumlx, suml2) = fit(nmax, iscale, x, weights, &weighted);
    let mut scale = V::select(suml2.eq(zero), zero, sumlx.div(suml2));
    let mut best = scale.mul(sumlx);
    for step in (-9..=9).filter(|step| *step != 0) {
        let this_iscale = V::splat(-(nmax as f32 + 0.1 * step as f32)).div(max);
        let (sumlx, suml2) = fit(nmax, this_iscale, x, weights, &weighted);
        let better = V::both(suml2.gt(zero), sumlx.mul(sumlx).gt(best.mul(suml2)));
        scale = V::select(better, sumlx.div(suml2), scale);
        best = V::select(better, scale.mul(sumlx), best);
        iscale = V::select(better, this_iscale, iscale);
    }
    let flat = V::splat(EPS).gt(amax);
    Symmetric { scale: V::select(flat, zero, scale), iscale, zero: flat }
}

/// The sums of `w x q` and `w q²` over the quants that `iscale` gives.
///
/// A function and no closure: a closure is compiled without the vector's instructions.
#[inline(always)]
fn fit<V: Vector, const N: usize>(
    nmax: i32,
    iscale: V,
    x: &[V; N],
    weights: &[V; N],
    weighted: &[V; N],
) -> (V, V) {
    let (mut sumlx, mut suml2) = (V::splat(0.0), V::splat(0.0));
    for i in 0..N {
        let q = iscale.mul(x[i]).nearest_within(-nmax, nmax - 1);
        sumlx = sumlx.add(weighted[i].mul(q));
        suml2 = suml2.add(weights[i].mul(q).mul(q));
    }
    (sumlx, suml2)
}

/// Scale and quants, 0 to `2 * nmax - 1`, zero where the block is (`make_q3_quants`): from the
/// scale `-nmax / max`, then element by element a quant that fits better, weighted with `x²`.
#[inline(always)]
pub(super) fn descent<V: Vector, const N: usize>(nmax: i32, x: &[V; N]) -> (V, [V; N]) {
    let zero = V::splat(0.0);
    let (max, amax) = largest(x);
    let iscale = V::splat(-(nmax as f32)).div(max);
    let mut quants = [zero; N];
    let (mut sumlx, mut suml2) = (zero, zero);
    for i in 0..N {
        let q = iscale.mul(x[i]).nearest_within(-nmax, nmax - 1);
        quants[i] = q;
        let w = x[i].mul(x[i]);
        sumlx = sumlx.add(w.mul(x[i]).mul(q));
        suml2 = suml2.add(w.mul(q).mul(q));
    }
    // A block in which nothing changes stays as it is in further rounds, too.
    for _ in 0..5 {
        let mut changed = false;
        for i in 0..N {
            let (v, w, q) = (x[i], x[i].mul(x[i]), quants[i]);
            let slx = sumlx.sub(w.mul(v).mul(q));
            let sl2 = suml2.sub(w.mul(q).mul(q));
            let new = v.mul(sl2).div(slx).nearest_within(-nmax, nmax - 1);
            let new_slx = slx.add(w.mul(v).mul(new));
            let new_sl2 = sl2.add(w.mul(new).mul(new));
            let fits = new_slx.mul(new_slx).mul(suml2).gt(sumlx.mul(sumlx).mul(new_sl2));
            let better = V::both(V::both(slx.gt(zero), new_sl2.gt(zero)), V::both(fits, differ(new, q)));
            quants[i] = V::select(better, new, q);
            sumlx = V::select(better, new_slx, sumlx);
            suml2 = V::select(better, new_sl2, suml2);
            changed |= V::any(better);
        }
        if !changed {
            break;
        }
    }
    let flat = V::splat(EPS).gt(amax);
    for q in &mut quants {
        *q = V::select(flat, zero, q.add(V::splat(nmax as f32)));
    }
    let scale = V::select(suml2.gt(zero), sumlx.div(suml2), zero);
    (V::select(flat, zero, scale), quants)
}

/// Weights of the elements from the importance of their columns: `importance * sqrt(sigma2 + x²)`.
#[inline(always)]
pub(super) fn weigh<V: Vector, const N: usize>(importance: &mut [V; N], sigma2: V, x: &[V; N]) {
    for (w, v) in importance.iter_mut().zip(x) {
        *w = w.mul(sigma2.add(v.mul(*v)).sqrt());
    }
}

/// Whether two whole numbers differ.
#[inline(always)]
fn differ<V: Vector>(a: V, b: V) -> V::Mask {
    a.sub(b).abs().gt(V::splat(0.0))
}

/// Scale and quants, 0 to `nmax`, of numbers that are not negative (`make_qp_quants`): the scales
/// and minima of a super-block. Like the reference it keeps the low byte of a quant that is negative.
#[inline(always)]
pub(super) fn positive<V: Vector, const N: usize>(nmax: i32, x: &[V; N], weights: &[V; N]) -> (V, [V; N]) {
    let zero = V::splat(0.0);
    let one = V::splat(1.0);
    let mut max = zero;
    for v in x {
        max = V::select(max.gt(*v), max, *v);
    }
    let mut iscale = V::splat(nmax as f32).div(max);
    let scale = one.div(iscale);
    let mut best = zero;
    for i in 0..N {
        let q = iscale.mul(x[i]).nearest_within(LEAST, GREATEST).low_byte();
        let diff = x[i].sub(scale.mul(q));
        best = best.add(weights[i].mul(diff).mul(diff));
    }
    for step in (-4..=4).filter(|step| *step != 0) {
        let this_iscale = V::splat(0.1 * step as f32 + nmax as f32).div(max);
        let this_scale = one.div(this_iscale);
        let mut error = zero;
        for i in 0..N {
            let q = this_iscale.mul(x[i]).nearest_within(LEAST, nmax);
            let diff = x[i].sub(this_scale.mul(q));
            error = error.add(weights[i].mul(diff).mul(diff));
        }
        let better = best.gt(error);
        best = V::select(better, error, best);
        iscale = V::select(better, this_iscale, iscale);
    }
    let mut quants = [zero; N];
    let (mut sumlx, mut suml2) = (zero, zero);
    for i in 0..N {
        let q = iscale.mul(x[i]).nearest_within(LEAST, nmax);
        quants[i] = q.low_byte();
        sumlx = sumlx.add(weights[i].mul(x[i]).mul(q));
        suml2 = suml2.add(weights[i].mul(q).mul(q));
    }
    for _ in 0..5 {
        let mut changed = false;
        for i in 0..N {
            let (v, w, q) = (x[i], weights[i], quants[i]);
            let slx = sumlx.sub(w.mul(v).mul(q));
            let sl2 = suml2.sub(w.mul(q).mul(q));
            let new = v.mul(sl2).div(slx).nearest_within(LEAST, nmax);
            let new_slx = slx.add(w.mul(v).mul(new));
            let new_sl2 = sl2.add(w.mul(new).mul(new));
            let fits = new_slx.mul(new_slx).mul(suml2).gt(sumlx.mul(sumlx).mul(new_sl2));
            let better = V::both(V::both(slx.gt(zero), sl2.gt(zero)), V::both(fits, differ(new, q)));
            quants[i] = V::select(better, new.low_byte(), q);
            sumlx = V::select(better, new_slx, sumlx);
            suml2 = V::select(better, new_sl2, suml2);
            changed |= V::any(better);
        }
        if !changed {
            break;
        }
    }
    let flat = V::splat(EPS).gt(max);
    for q in &mut quants {
        *q = V::select(flat, zero, *q);
    }
    let scale = V::select(suml2.gt(zero), sumlx.div(suml2), zero);
    (V::select(flat, zero, scale), quants)
}
