//! Q4_0, Q4_1, Q5_0, Q5_1: what llama.cpp falls back to for rows that are no whole super-blocks.

use super::f16;

const BLOCK: usize = 32;

/// The element of the largest magnitude, the first of equals.
fn signed_max(x: &[f32; BLOCK]) -> f32 {
    let (mut amax, mut max) = (0.0f32, 0.0f32);
    for &v in x {
        if amax < v.abs() {
            (amax, max) = (v.abs(), v);
        }
    }
    max
}

fn inverse(d: f32) -> f32 {
    if d != 0.0 { 1.0 / d } else { 0.0 }
}

fn min_max(x: &[f32; BLOCK]) -> (f32, f32) {
    let (mut min, mut max) = (f32::MAX, -f32::MAX);
    for &v in x {
        if v < min {
            min = v;
        }
        if v > max {
            max = v;
        }
    }
    (min, max)
}

/// Low nibbles from the first half of the block, high ones from the second.
fn pack4(q: &[u8; BLOCK], out: &mut [u8]) {
    for (j, out) in out.iter_mut().enumerate() {
        *out = q[j] & 15 | (q[j + BLOCK / 2] & 15) << 4;
    }
}

/// The fifth bit of each element, in its order.
fn fifth_bits(q: &[u8; BLOCK]) -> [u8; 4] {
    let bits = q.iter().enumerate().fold(0u32, |bits, (j, q)| bits | u32::from(q >> 4 & 1) << j);
    bits.to_le_bytes()
}

/// `x = d * (q - 8)`.
pub(super) fn q4_0(x: &[f32], out: &mut [u8]) {
    for (x, out) in x.as_chunks::<BLOCK>().0.iter().zip(out.as_chunks_mut::<18>().0) {
        let d = signed_max(x) / -8.0;
        let id = inverse(d);
        let q = x.map(|v| ((v * id + 8.5) as i8).min(15) as u8);
        out[..2].copy_from_slice(&f16(d).0);
        pack4(&q, &mut out[2..]);
    }
}

/// `x = d * q + m`.
pub(super) fn q4_1(x: &[f32], out: &mut [u8]) {
    for (x, out) in x.as_chunks::<BLOCK>().0.iter().zip(out.as_chunks_mut::<20>().0) {
        let (min, max) = min_max(x);
        let d = (max - min) / 15.0;
        let id = inverse(d);
        let q = x.map(|v| (((v - min) * id + 0.5) as i8).min(15) as u8);
        out[..2].copy_from_slice(&f16(d).0);
        out[2..4].copy_from_slice(&f16(min).0);
        pack4(&q, &mut out[4..]);
    }
}

/// `x = d * (q - 16)`.
pub(super) fn q5_0(x: &[f32], out: &mut [u8]) {
    for (x, out) in x.as_chunks::<BLOCK>().0.iter().zip(out.as_chunks_mut::<22>().0) {
        let d = signed_max(x) / -16.0;
        let id = inverse(d);
        let q = x.map(|v| ((v * id + 16.5) as i8).min(31) as u8);
        out[..2].copy_from_slice(&f16(d).0);
        out[2..6].copy_from_slice(&fifth_bits(&q));
        pack4(&q, &mut out[6..]);
    }
}

/// `x = d * q + m`.
pub(super) fn q5_1(x: &[f32], out: &mut [u8]) {
    for (x, out) in x.as_chunks::<BLOCK>().0.iter().zip(out.as_chunks_mut::<24>().0) {
        let (min, max) = min_max(x);
        let d = (max - min) / 31.0;
        let id = inverse(d);
        let q = x.map(|v| ((v - min) * id + 0.5) as u8);
        out[..2].copy_from_slice(&f16(d).0);
        out[2..4].copy_from_slice(&f16(min).0);
        out[4..8].copy_from_slice(&fifth_bits(&q));
        pack4(&q, &mut out[8..]);
    }
}
