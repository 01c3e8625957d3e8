//! Rounding an `f64` once to a 16-bit type, by search.

use half::{bf16, f16};

/// The nearest of a value's neighbours, ties to even. The half crate's own conversion drops half of
/// the mantissa before it rounds, which is wrong next to ties.
fn nearest(value: f64, near: u16, decode: impl Fn(&u16) -> f64) -> u16 {
    let off = |bits: &u16| ((decode(bits) - value).abs(), bits & 1);
    let neighbours = [near.saturating_sub(1), near, near + 1];
    let of_same_sign = neighbours.into_iter().filter(|bits| bits >> 15 == near >> 15);
    of_same_sign.min_by(|a, b| off(a).partial_cmp(&off(b)).unwrap()).unwrap()
}

pub(crate) fn to_bf16(value: f64) -> u16 {
    nearest(value, bf16::from_f64(value).to_bits(), |bits| bf16::from_bits(*bits).to_f64())
}

pub(crate) fn to_f16(value: f64) -> u16 {
    nearest(value, f16::from_f64(value).to_bits(), |bits| f16::from_bits(*bits).to_f64())
}
