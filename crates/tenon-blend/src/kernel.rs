//! The arithmetic over runs of elements, compiled for the CPU's instructions.
//!
//! Each body is its own definition: element by element, nothing fused, sums in
//! an order that lengths alone decide. So every level gives the same bits
//! (tested below).

use tenon_checkpoint::Dtype;
use tenon_merge::kernel::Level;
use tenon_simd::kernel;

/// Numbers of a sum that are kept apart, so that a register of them is added at once.
const LANES: usize = 16;

/// `out := weight * x`, with `x` as stored.
pub(crate) fn set_scaled(level: Level, dtype: Dtype, bytes: &[u8], weight: f64, out: &mut [f64]) {
    match dtype {
        Dtype::BF16 => set_scaled_bf16(level, bytes, weight, out),
        dtype => {
            tenon_merge::kernel::decode(level, dtype, bytes, out);
            scale(level, weight, out);
        }
    }
}

/// `out += weight * x`, with `x` as stored; `scratch` is room to decode it.
pub(crate) fn add_scaled(
    level: Level,
    dtype: Dtype,
    bytes: &[u8],
    weight: f64,
    out: &mut [f64],
    scratch: &mut Vec<f64>,
) {
    match dtype {
        Dtype::BF16 => add_scaled_bf16(level, bytes, weight, out),
        dtype => {
            scratch.resize(out.len(), 0.0);
            tenon_merge::kernel::decode(level, dtype, bytes, scratch);
            add_scaled_values(level, scratch, weight, out);
        }
    }
}

kernel!(fn set_scaled_bf16 = set_scaled_bf16_body(bytes: &[u8], weight: f64, out: &mut [f64]));
kernel!(fn add_scaled_bf16 = add_scaled_bf16_body(bytes: &[u8], weight: f64, out: &mut [f64]));
kernel!(
    /// `out += weight * x`.
    pub(crate) fn add_scaled_values = add_scaled_values_body(x: &[f64], weight: f64, out: &mut [f64])
);
kernel!(
    /// `out += x`, rounded as `f32` is.
    pub(crate) fn add_in_f32 = add_in_f32_body(x: &[f64], out: &mut [f64])
);
kernel!(
    /// `out += weights * x`, each element with its own weight.
    pub(crate) fn add_products = add_products_body(x: &[f64], weights: &[f64], out: &mut [f64])
);
kernel!(
    /// `out *= factor`.
    pub(crate) fn scale = scale_body(factor: f64, out: &mut [f64])
);
kernel!(
    /// `out /= divisor`.
    pub(crate) fn divide = divide_body(divisor: f64, out: &mut [f64])
);
kernel!(
    /// `out := x - base`.
    pub(crate) fn subtract = subtract_body(x: &[f64], base: &[f64], out: &mut [f64])
);
kernel!(
    /// `out := base + factor * out`.
    pub(crate) fn add_to_base = add_to_base_body(base: &[f64], factor: f64, out: &mut [f64])
);
kernel!(
    /// `Σ a b`.
    pub(crate) fn dot = dot_body(a: &[f64], b: &[f64]) -> f64
);
kernel!(
    /// `Σ a a`, `Σ a b` and `Σ b b` of what is stored as `BF16`: the bits that [`dot`] gives.
    pub(crate) fn products = products_body(a: &[u8], b: &[u8]) -> [f64; 3]
);
kernel!(
    /// The same of the differences from `base`.
    pub(crate) fn products_of_differences = products_of_differences_body(
        a: &[u8],
        b: &[u8],
        base: &[u8],
    ) -> [f64; 3]
);
kernel!(
    /// Towards `x` where it is near `base`: `min(1, t / |d|)` of the way.
    pub(crate) fn near_swap = near_swap_body(base: &[f64], x: &[f64], t: f64, out: &mut [f64])
);

kernel!(
    /// `Σ |x|`.
    pub(crate) fn sum_of_magnitudes = sum_of_magnitudes_body(x: &[f64]) -> f64
);
kernel!(
    /// Of what has the sign of its total (positive where that is 0), by `votes`: `out += weight * kept` and
    /// `divisors += weight`.
    pub(crate) fn add_agreeing = add_agreeing_body(
        totals: &[f64],
        votes: &[f64],
        kept: &[f64],
        weight: f64,
        out: &mut [f64],
        divisors: &mut [f64],
    )
);
kernel!(
    /// `out /= divisor`, each element by its own, where that is not 0.
    pub(crate) fn divide_each = divide_each_body(divisors: &[f64], out: &mut [f64])
);
kernel!(
    /// Sets to 0 the elements, from number `first` on, of which [`drawn`] is not below `limit`.
    pub(crate) fn keep_drawn = keep_drawn_body(key: u64, first: u64, limit: u64, values: &mut [f64])
);

kernel!(
    /// Magnitudes as [`key`](crate::select::key)s.
    pub(crate) fn keys = keys_body(values: &[f64], keys: &mut [u32])
);
kernel!(
    /// How many keys are `wanted`.
    pub(crate) fn count_equal = count_equal_body(keys: &[u32], wanted: u32) -> u64
);
kernel!(
    /// Sets to 0 the values whose keys do not lie in `low..=high`.
    pub(crate) fn keep_between = keep_between_body(keys: &[u32], low: u32, high: u32, values: &mut [f64])
);
kernel!(
    /// `out += (x - mean)²`.
    pub(crate) fn add_squares_from = add_squares_from_body(x: &[f64], mean: &[f64], out: &mut [f64])
);

kernel!(
    /// What is [`drawn`] for the elements from number `first` on.
    pub(crate) fn draw = draw_body(key: u64, first: u64, out: &mut [u64])
);

/// The number of 53 bits that is drawn for an element.
#[inline(always)]
fn drawn(key: u64, element: u64) -> u64 {
    mix(key.wrapping_add(element.wrapping_mul(0x9e37_79b9_7f4a_7c15))) >> 11
}

/// The finalizer of SplitMix64 (Steele, Lea and Flood 2014).
#[inline(always)]
pub(crate) fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[inline(always)]
fn bf16(bytes: [u8; 2]) -> f64 {
    f32::from_bits(u32::from(u16::from_le_bytes(bytes)) << 16).into()
}

#[inline(always)]
fn set_scaled_bf16_body<const FUSED: bool>(bytes: &[u8], weight: f64, out: &mut [f64]) {
    for (out, bytes) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
        *out = weight * bf16(*bytes);
    }
}

#[inline(always)]
fn add_scaled_bf16_body<const FUSED: bool>(bytes: &[u8], weight: f64, out: &mut [f64]) {
    for (out, bytes) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
        *out += weight * bf16(*bytes);
    }
}

#[inline(always)]
fn add_scaled_values_body<const FUSED: bool>(x: &[f64], weight: f64, out: &mut [f64]) {
    for (out, x) in out.iter_mut().zip(x) {
        *out += weight * x;
    }
}

#[inline(always)]
fn add_in_f32_body<const FUSED: bool>(x: &[f64], out: &mut [f64]) {
    for (out, x) in out.iter_mut().zip(x) {
        *out = f64::from((*out + x) as f32);
    }
}

#[inline(always)]
fn add_products_body<const FUSED: bool>(x: &[f64], weights: &[f64], out: &mut [f64]) {
    for ((out, x), weight) in out.iter_mut().zip(x).zip(weights) {
        *out += weight * x;
    }
}

#[inline(always)]
fn scale_body<const FUSED: bool>(factor: f64, out: &mut [f64]) {
    for out in out {
        *out *= factor;
    }
}

#[inline(always)]
fn divide_body<const FUSED: bool>(divisor: f64, out: &mut [f64]) {
    for out in out {
        *out /= divisor;
    }
}

#[inline(always)]
fn subtract_body<const FUSED: bool>(x: &[f64], base: &[f64], out: &mut [f64]) {
    for ((out, x), base) in out.iter_mut().zip(x).zip(base) {
        *out = x - base;
    }
}

#[inline(always)]
fn add_to_base_body<const FUSED: bool>(base: &[f64], factor: f64, out: &mut [f64]) {
    for (out, base) in out.iter_mut().zip(base) {
        *out = base + factor * *out;
    }
}

#[inline(always)]
fn dot_body<const FUSED: bool>(a: &[f64], b: &[f64]) -> f64 {
    let mut sums = [0.0; LANES];
    let (a, a_rest) = a.as_chunks::<LANES>();
    let (b, b_rest) = b.as_chunks::<LANES>();
    for (a, b) in a.iter().zip(b) {
        for lane in 0..LANES {
            sums[lane] += a[lane] * b[lane];
        }
    }
    let rest: f64 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f64>() + rest
}

#[inline(always)]
fn products_body<const FUSED: bool>(a: &[u8], b: &[u8]) -> [f64; 3] {
    sums_of_products(a, b, a, |a, b, _| (bf16(a), bf16(b)))
}

#[inline(always)]
fn products_of_differences_body<const FUSED: bool>(a: &[u8], b: &[u8], base: &[u8]) -> [f64; 3] {
    sums_of_products(a, b, base, |a, b, base| {
        let base = bf16(base);
        (bf16(a) - base, bf16(b) - base)
    })
}

/// Sums in the order of [`dot`] over what `pair` makes of elements of two bytes.
#[inline(always)]
fn sums_of_products(
    a: &[u8],
    b: &[u8],
    c: &[u8],
    pair: impl Fn([u8; 2], [u8; 2], [u8; 2]) -> (f64, f64),
) -> [f64; 3] {
    let [a, b, c] = [a, b, c].map(|bytes| bytes.as_chunks::<2>().0);
    let [(a, a_rest), (b, b_rest), (c, c_rest)] = [a, b, c].map(|x| x.as_chunks::<LANES>());
    let mut sums = [[0.0; LANES]; 3];
    for ((a, b), c) in a.iter().zip(b).zip(c) {
        for lane in 0..LANES {
            let (x, y) = pair(a[lane], b[lane], c[lane]);
            sums[0][lane] += x * x;
            sums[1][lane] += x * y;
            sums[2][lane] += y * y;
        }
    }
    let mut rest = [0.0; 3];
    for ((a, b), c) in a_rest.iter().zip(b_rest).zip(c_rest) {
        let (x, y) = pair(*a, *b, *c);
        rest = [rest[0] + x * x, rest[1] + x * y, rest[2] + y * y];
    }
    std::array::from_fn(|i| sums[i].iter().sum::<f64>() + rest[i])
}

#[inline(always)]
fn sum_of_magnitudes_body<const FUSED: bool>(x: &[f64]) -> f64 {
    let mut sums = [0.0; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for lane in 0..LANES {
            sums[lane] += chunk[lane].abs();
        }
    }
    sums.iter().sum::<f64>() + rest.iter().map(|x| x.abs()).sum::<f64>()
}

#[inline(always)]
fn add_agreeing_body<const FUSED: bool>(
    totals: &[f64],
    votes: &[f64],
    kept: &[f64],
    weight: f64,
    out: &mut [f64],
    divisors: &mut [f64],
) {
    let inputs = totals.iter().zip(votes).zip(kept);
    for (((total, vote), kept), (out, divisor)) in inputs.zip(out.iter_mut().zip(divisors)) {
        let agrees = ((*total >= 0.0) & (*vote > 0.0)) | ((*total < 0.0) & (*vote < 0.0));
        *out += if agrees { weight * kept } else { 0.0 };
        *divisor += if agrees { weight } else { 0.0 };
    }
}

#[inline(always)]
fn divide_each_body<const FUSED: bool>(divisors: &[f64], out: &mut [f64]) {
    for (out, divisor) in out.iter_mut().zip(divisors) {
        *out /= if *divisor == 0.0 { 1.0 } else { *divisor };
    }
}

#[inline(always)]
fn keep_drawn_body<const FUSED: bool>(key: u64, first: u64, limit: u64, values: &mut [f64]) {
    for (i, value) in values.iter_mut().enumerate() {
        *value = if drawn(key, first + i as u64) < limit { *value } else { 0.0 };
    }
}

#[inline(always)]
fn keys_body<const FUSED: bool>(values: &[f64], keys: &mut [u32]) {
    for (key, value) in keys.iter_mut().zip(values) {
        *key = crate::select::key(*value);
    }
}

#[inline(always)]
fn count_equal_body<const FUSED: bool>(keys: &[u32], wanted: u32) -> u64 {
    let mut total = 0;
    for keys in keys.chunks(1 << 16) {
        let mut count = 0u32;
        for key in keys {
            count += u32::from(*key == wanted);
        }
        total += u64::from(count);
    }
    total
}

#[inline(always)]
fn keep_between_body<const FUSED: bool>(keys: &[u32], low: u32, high: u32, values: &mut [f64]) {
    for (value, key) in values.iter_mut().zip(keys) {
        *value = if (*key >= low) & (*key <= high) { *value } else { 0.0 };
    }
}

#[inline(always)]
fn add_squares_from_body<const FUSED: bool>(x: &[f64], mean: &[f64], out: &mut [f64]) {
    for ((out, x), mean) in out.iter_mut().zip(x).zip(mean) {
        *out += (x - mean) * (x - mean);
    }
}

#[inline(always)]
fn draw_body<const FUSED: bool>(key: u64, first: u64, out: &mut [u64]) {
    for (i, out) in out.iter_mut().enumerate() {
        *out = drawn(key, first + i as u64);
    }
}

#[inline(always)]
fn near_swap_body<const FUSED: bool>(base: &[f64], x: &[f64], t: f64, out: &mut [f64]) {
    for ((out, b), x) in out.iter_mut().zip(base).zip(x) {
        let part = (t / (b - x).abs().max(1e-6)).clamp(0.0, 1.0);
        *out = part * x + (1.0 - part) * b;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn levels_agree(
            values in proptest::collection::vec((-1e3f32..1e3, -1e3f32..1e3), 0..100),
            weight in -2.0f64..2.0,
        ) {
            let a: Vec<f64> = values.iter().map(|v| v.0.into()).collect();
            let b: Vec<f64> = values.iter().map(|v| f64::from(v.1) / 3.0).collect();
            let bytes: Vec<u8> = values.iter().flat_map(|v| v.0.to_le_bytes()[2..].to_vec()).collect();
            let all = |level| {
                let mut results = vec![vec![dot(level, &a, &b), sum_of_magnitudes(level, &a)]];
                let other: Vec<u8> = b.iter().flat_map(|v| (*v as f32).to_le_bytes()[2..].to_vec()).collect();
                let [x, y] = [&bytes, &other].map(|bytes| {
                    let mut values = vec![0.0; bytes.len() / 2];
                    tenon_merge::kernel::decode(level, Dtype::BF16, bytes, &mut values);
                    values
                });
                let mut d = vec![0.0; x.len()];
                subtract(level, &x, &y, &mut d);
                let expected = [dot(level, &x, &x), dot(level, &x, &y), dot(level, &y, &y)];
                assert_eq!(products(level, &bytes, &other), expected);
                let [dd, _, zero] = products_of_differences(level, &bytes, &other, &other);
                assert_eq!([dd, zero], [dot(level, &d, &d), 0.0]);
                let mut run = |change: &dyn Fn(&mut [f64])| {
                    let mut out = b.clone();
                    change(&mut out);
                    results.push(out);
                };
                run(&|out| set_scaled(level, Dtype::BF16, &bytes, weight, out));
                run(&|out| add_scaled(level, Dtype::BF16, &bytes, weight, out, &mut vec![]));
                run(&|out| add_scaled_values(level, &a, weight, out));
                run(&|out| add_in_f32(level, &a, out));
                run(&|out| add_products(level, &a, &b, out));
                run(&|out| scale(level, weight, out));
                run(&|out| divide(level, weight, out));
                run(&|out| subtract(level, &a, &b, out));
                run(&|out| add_to_base(level, &a, weight, out));
                run(&|out| divide_each(level, &a, out));
                run(&|out| keep_drawn(level, 17, 1 << 40, 1 << 52, out));
                run(&|out| add_agreeing(level, &a, &b, &a, weight, out, &mut b.clone()));
                run(&|out| add_agreeing(level, &a, &b, &b, weight, &mut a.clone(), out));
                let mut magnitudes = vec![0; b.len()];
                keys(level, &b, &mut magnitudes);
                run(&|out| keep_between(level, &magnitudes, 1f32.to_bits(), 99f32.to_bits(), out));
                run(&|out| out.fill(count_equal(level, &magnitudes, 0) as f64));
                run(&|out| add_squares_from(level, &a, &b.clone(), out));
                run(&|out| near_swap(level, &a, &b, weight, out));
                results.iter().flatten().map(|value| value.to_bits()).collect::<Vec<_>>()
            };
            let expected = all(Level::Scalar);
            for level in Level::available() {
                prop_assert_eq!(&all(level), &expected);
            }
        }
    }
}
