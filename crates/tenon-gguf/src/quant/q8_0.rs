//! Q8_0: 32 elements share a scale, `x = d * q`, `q` in -127..=127.

use tenon_simd::kernel;

use super::f16;

const BLOCK: usize = 32;
const BYTES: usize = 34;

kernel!(
    /// Rows of whole blocks.
    pub(super) fn quantize = body(x: &[f32], out: &mut [u8])
);

#[inline(always)]
fn body<const FUSED: bool>(x: &[f32], out: &mut [u8]) {
    for (x, out) in x.as_chunks::<BLOCK>().0.iter().zip(out.as_chunks_mut::<BYTES>().0) {
        // A maximum is the same in any order.
        let mut lanes = [0.0f32; 8];
        for part in x.as_chunks::<8>().0 {
            for (max, v) in lanes.iter_mut().zip(part) {
                let size = v.abs();
                *max = if *max > size { *max } else { size };
            }
        }
        let amax = lanes.iter().fold(0.0f32, |max, &v| if max > v { max } else { v });
        let d = amax / 127.0;
        let id = if d != 0.0 { 1.0 / d } else { 0.0 };
        let (head, quants) = out.split_at_mut(2);
        head.copy_from_slice(&f16(d).0);
        for (q, v) in quants.iter_mut().zip(x) {
            *q = round(v * id) as i32 as i8 as u8;
        }
    }
}

/// To the nearest integer, halves away from zero, in instructions that every level has.
///
/// Below 2^22 (a quant is at most 127), `x - trunc(x)` is exact.
#[inline(always)]
fn round(x: f32) -> f32 {
    let whole = x as i32 as f32;
    let rest = x - whole;
    whole
        + if rest >= 0.5 {
            1.0
        } else if rest <= -0.5 {
            -1.0
        } else {
            0.0
        }
}
