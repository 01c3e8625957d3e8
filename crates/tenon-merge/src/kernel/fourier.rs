//! Discrete Fourier transforms of any length, with the same bits on every CPU.
//!
//! A mixed-radix Stockham transform: each stage splits off one prime factor
//! (fours first) and writes its results in order, so nothing is permuted. The
//! loops run over contiguous values and are never fused; the roots of unity
//! come from `libm` and not from the system's library, which may compute sines
//! differently from one CPU to the next.

use std::f64::consts::{FRAC_1_SQRT_2, TAU};

use super::kernel;

/// `cos` and `sin` of `2 pi k / n`.
///
/// The angle is brought into the first octant by exact steps first.
///
/// # Panics
/// When `n` is 0 or `k` not below it.
pub fn unit_root(k: usize, n: usize) -> (f64, f64) {
    assert!(k < n);
    // In eighths of a turn: k / n = (octant + rest / n) / 8.
    let (k, n) = (k as u128, n as u128);
    let (octant, rest) = (8 * k / n, 8 * k % n);
    let angle = |eighths: u128| TAU / 8.0 * (eighths as f64 / n as f64);
    // Odd octants run backwards, from the next quarter.
    let near = if octant % 2 == 0 { angle(rest) } else { angle(n - rest) };
    let (sin, cos) = (libm::sin(near), libm::cos(near));
    let (cos, sin) = match (octant % 2, rest) {
        (0, _) => (cos, sin),
        (_, 0) => (FRAC_1_SQRT_2, FRAC_1_SQRT_2),
        _ => (sin, cos),
    };
    match octant / 2 {
        0 => (cos, sin),
        1 => (-sin, cos),
        2 => (-cos, -sin),
        _ => (sin, -cos),
    }
}

/// A transform of one length: its factors and roots of unity.
#[derive(Debug, Clone)]
pub struct Fourier {
    factors: Vec<usize>,
    cos: Vec<f64>,
    sin: Vec<f64>,
}

impl Fourier {
    /// Prepares transforms of `len` values.
    pub fn new(len: usize) -> Self {
        let (mut factors, mut rest) = (vec![], len.max(1));
        for radix in [4, 2, 3, 5] {
            while rest.is_multiple_of(radix) {
                factors.push(radix);
                rest /= radix;
            }
        }
        let mut radix = 7;
        while rest > 1 {
            if radix * radix > rest {
                radix = rest;
            }
            while rest.is_multiple_of(radix) {
                factors.push(radix);
                rest /= radix;
            }
            radix += 2;
        }
        let (cos, sin) = (0..len).map(|k| unit_root(k, len)).unzip();
        Self { factors, cos, sin }
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        self.cos.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.cos.is_empty()
    }

    /// `cos` and `sin` of `2 pi k / len` for every `k` below `len`.
    pub fn roots(&self) -> (&[f64], &[f64]) {
        (&self.cos, &self.sin)
    }

    /// Multiplications that one value costs, roughly: the sum of its length's factors.
    pub fn cost(&self) -> usize {
        self.factors.iter().sum()
    }

    /// Replaces `x` by `y_n = sum_k x_k exp(2 pi i k n / len)`, not scaled. The scratch is overwritten.
    ///
    /// # Panics
    /// When a slice has another length.
    pub fn inverse(&self, level: super::Level, x: &mut Complex<'_>, scratch: &mut Complex<'_>) {
        for part in [&*x.re, &*x.im, &*scratch.re, &*scratch.im] {
            assert_eq!(part.len(), self.len());
        }
        stages(level, self, x, scratch);
    }
}

/// Complex values, real and imaginary parts apart.
#[derive(Debug)]
pub struct Complex<'a> {
    /// Real parts.
    pub re: &'a mut [f64],
    /// Imaginary parts.
    pub im: &'a mut [f64],
}

impl Complex<'_> {
    #[inline(always)]
    fn reborrow(&mut self) -> Complex<'_> {
        Complex { re: self.re, im: self.im }
    }
}

kernel!(fn stages = stages_body(plan: &Fourier, x: &mut Complex<'_>, scratch: &mut Complex<'_>));

#[inline(always)]
fn stages_body<const FUSED: bool>(plan: &Fourier, x: &mut Complex<'_>, scratch: &mut Complex<'_>) {
    let (mut len, mut stride) = (plan.len(), 1);
    let mut in_scratch = false;
    for &radix in &plan.factors {
        let (x, scratch) = (x.reborrow(), scratch.reborrow());
        let (from, mut to) = if in_scratch { (scratch, x) } else { (x, scratch) };
        match radix {
            2 => stage_2(plan, len, stride, &from, &mut to),
            4 => stage_4(plan, len, stride, &from, &mut to),
            _ => stage_any(plan, radix, len, stride, &from, &mut to),
        }
        in_scratch = !in_scratch;
        len /= radix;
        stride *= radix;
    }
    if in_scratch {
        x.re.copy_from_slice(scratch.re);
        x.im.copy_from_slice(scratch.im);
    }
}

// In a stage, `stride` sequences of `len` values lie interleaved: value `n` of sequence `k` is number
// `k + stride * n`. Radix `p` takes values `q + m t` (`m = len / p`, `t` below `p`) to values `p q + u`.

#[inline(always)]
fn stage_2(plan: &Fourier, len: usize, stride: usize, from: &Complex<'_>, to: &mut Complex<'_>) {
    let m = len / 2;
    for q in 0..m {
        let (wr, wi) = (plan.cos[q * stride], plan.sin[q * stride]);
        let (a, b) = (stride * q, stride * (q + m));
        let (ar, ai) = (&from.re[a..a + stride], &from.im[a..a + stride]);
        let (br, bi) = (&from.re[b..b + stride], &from.im[b..b + stride]);
        let (re0, re1) = to.re[2 * stride * q..2 * stride * (q + 1)].split_at_mut(stride);
        let (im0, im1) = to.im[2 * stride * q..2 * stride * (q + 1)].split_at_mut(stride);
        for k in 0..stride {
            let (dr, di) = (ar[k] - br[k], ai[k] - bi[k]);
            re0[k] = ar[k] + br[k];
            im0[k] = ai[k] + bi[k];
            re1[k] = dr * wr - di * wi;
            im1[k] = dr * wi + di * wr;
        }
    }
}

#[inline(always)]
fn stage_4(plan: &Fourier, len: usize, stride: usize, from: &Complex<'_>, to: &mut Complex<'_>) {
    let m = len / 4;
    for q in 0..m {
        let w = [1, 2, 3].map(|u| (plan.cos[u * q * stride], plan.sin[u * q * stride]));
        let re = [0, 1, 2, 3].map(|t| &from.re[stride * (q + m * t)..][..stride]);
        let im = [0, 1, 2, 3].map(|t| &from.im[stride * (q + m * t)..][..stride]);
        let out_re = &mut to.re[4 * stride * q..4 * stride * (q + 1)];
        let out_im = &mut to.im[4 * stride * q..4 * stride * (q + 1)];
        let (re0, rest) = out_re.split_at_mut(stride);
        let (re1, rest) = rest.split_at_mut(stride);
        let (re2, re3) = rest.split_at_mut(stride);
        let (im0, rest) = out_im.split_at_mut(stride);
        let (im1, rest) = rest.split_at_mut(stride);
        let (im2, im3) = rest.split_at_mut(stride);
        for k in 0..stride {
            let (sr, si) = (re[0][k] + re[2][k], im[0][k] + im[2][k]);
            let (dr, di) = (re[0][k] - re[2][k], im[0][k] - im[2][k]);
            let (tr, ti) = (re[1][k] + re[3][k], im[1][k] + im[3][k]);
            // i times the difference.
            let (er, ei) = (im[3][k] - im[1][k], re[1][k] - re[3][k]);
            let times = |(r, i): (f64, f64), (wr, wi): (f64, f64)| (r * wr - i * wi, r * wi + i * wr);
            (re0[k], im0[k]) = (sr + tr, si + ti);
            (re1[k], im1[k]) = times((dr + er, di + ei), w[0]);
            (re2[k], im2[k]) = times((sr - tr, si - ti), w[1]);
            (re3[k], im3[k]) = times((dr - er, di - ei), w[2]);
        }
    }
}

#[inline(always)]
fn stage_any(
    plan: &Fourier,
    radix: usize,
    len: usize,
    stride: usize,
    from: &Complex<'_>,
    to: &mut Complex<'_>,
) {
    let (m, n) = (len / radix, plan.len());
    for q in 0..m {
        for u in 0..radix {
            let start = stride * (radix * q + u);
            let (out_re, out_im) = (&mut to.re[start..start + stride], &mut to.im[start..start + stride]);
            out_re.fill(0.0);
            out_im.fill(0.0);
            for t in 0..radix {
                // exp(2 pi i (t u / radix + q u / len)), both angles in steps of the whole length.
                let step = (u * t % radix * (n / radix) + q * u * stride) % n;
                let (wr, wi) = (plan.cos[step], plan.sin[step]);
                let at = stride * (q + m * t);
                let (re, im) = (&from.re[at..at + stride], &from.im[at..at + stride]);
                for k in 0..stride {
                    out_re[k] += re[k] * wr - im[k] * wi;
                    out_im[k] += re[k] * wi + im[k] * wr;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;

    fn values(len: usize, seed: u64) -> Vec<f64> {
        std::iter::repeat_with(crate::numbers::numbers(seed)).take(len).collect()
    }

    #[test]
    fn roots_are_exact_at_the_eighths_and_symmetric() {
        assert_eq!(unit_root(0, 5), (1.0, 0.0));
        assert_eq!(unit_root(3, 12), (0.0, 1.0));
        assert_eq!(unit_root(6, 12), (-1.0, 0.0));
        assert_eq!(unit_root(9, 12), (0.0, -1.0));
        for n in [3usize, 7, 12, 43, 1000] {
            for k in 1..n {
                let ((cos, sin), (cos_back, sin_back)) = (unit_root(k, n), unit_root(n - k, n));
                assert_eq!((cos, sin), (cos_back, -sin_back), "{k} of {n}");
                let angle = TAU * k as f64 / n as f64;
                assert!((cos - angle.cos()).abs() < 1e-15 && (sin - angle.sin()).abs() < 1e-15, "{k} of {n}");
                assert!((cos * cos + sin * sin - 1.0).abs() < 3e-16);
            }
        }
    }

    #[test]
    fn every_length_agrees_with_the_definition_and_levels_bit_for_bit() {
        for len in (1..=40).chain([48, 64, 81, 100, 121, 128, 172, 210, 243, 256, 344, 509]) {
            let plan = Fourier::new(len);
            let (re, im) = (values(len, 1), values(len, 2));
            let mut first: Option<(Vec<u64>, Vec<u64>)> = None;
            for level in Level::available() {
                let (mut x_re, mut x_im) = (re.clone(), im.clone());
                let (mut s_re, mut s_im) = (vec![0.0; len], vec![0.0; len]);
                plan.inverse(
                    level,
                    &mut Complex { re: &mut x_re, im: &mut x_im },
                    &mut Complex { re: &mut s_re, im: &mut s_im },
                );
                for n in 0..len {
                    let (mut want_re, mut want_im) = (0.0, 0.0);
                    for k in 0..len {
                        let (wr, wi) = unit_root(k * n % len, len);
                        want_re += re[k] * wr - im[k] * wi;
                        want_im += re[k] * wi + im[k] * wr;
                    }
                    let off = (x_re[n] - want_re).abs().max((x_im[n] - want_im).abs());
                    assert!(off < 1e-13, "{len}: {off:e}");
                }
                let bits = |v: &[f64]| v.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                let found = (bits(&x_re), bits(&x_im));
                assert_eq!(first.get_or_insert_with(|| found.clone()), &found, "{len} at {level:?}");
            }
        }
    }
}
