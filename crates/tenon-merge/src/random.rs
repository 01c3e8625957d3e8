//! PyTorch's CPU random numbers, bit for bit: some adapters save a seed in
//! place of what it draws.
//!
//! The generator is the Mersenne Twister of 32 bits (Matsumoto and Nishimura
//! 1998). How numbers are made of its words is PyTorch 2.15's, on a CPU with
//! fused multiply-add, as every x86-64 has since 2013 and every AArch64; where
//! PyTorch runs without, its `uniform_` may differ in the last bit.

use std::collections::HashMap;

use tenon_checkpoint::Dtype;

use crate::planner::Planner;
use crate::{AdapterConfig, Error, kernel};

const N: usize = 624;
const M: usize = 397;

impl AdapterConfig {
    /// A seed. Negative ones count back from 2^64, as PyTorch takes them.
    pub(crate) fn seed(&self, field: &str) -> Result<Option<u64>, Error> {
        let parse = |v: &serde_json::Value| v.as_u64().or_else(|| Some(v.as_i64()? as u64));
        self.value(field).map(|v| parse(v).ok_or_else(|| self.wrong(field, "a whole number"))).transpose()
    }
}

impl Planner<'_> {
    /// Says that something the adapter leaves out is drawn anew.
    pub(crate) fn note_drawn(&mut self, what: &str, field: &str) {
        self.notes.push(format!(
            "the adapter was saved without its random {what}: they are drawn anew from {field}, number for number as \
             PyTorch 2.15 draws them on the CPU"
        ));
    }
}

/// `torch.Generator(device="cpu")`.
pub(crate) struct Generator {
    state: Box<[u32; N]>,
    next: usize,
}

impl Generator {
    /// `manual_seed(seed)`, which takes the seed's lower 32 bits.
    pub(crate) fn seeded(seed: u64) -> Self {
        let mut state = Box::new([0u32; N]);
        state[0] = seed as u32;
        for i in 1..N {
            let before = state[i - 1];
            state[i] = 1_812_433_253u32.wrapping_mul(before ^ (before >> 30)).wrapping_add(i as u32);
        }
        Self { state, next: N }
    }

    /// 32 random bits.
    pub(crate) fn word(&mut self) -> u32 {
        if self.next == N {
            self.twist();
        }
        let mut y = self.state[self.next];
        self.next += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    /// 64 random bits.
    fn long(&mut self) -> u64 {
        let high = u64::from(self.word());
        high << 32 | u64::from(self.word())
    }

    fn twist(&mut self) {
        for i in 0..N {
            let y = self.state[i] & 0x8000_0000 | self.state[(i + 1) % N] & 0x7fff_ffff;
            let magic = if y & 1 == 1 { 0x9908_b0df } else { 0 };
            self.state[i] = self.state[(i + M) % N] ^ (y >> 1) ^ magic;
        }
        self.next = 0;
    }

    /// An element of `torch.rand` in `float32`: 24 bits.
    pub(crate) fn unit(&mut self) -> f32 {
        (self.word() & 0xff_ffff) as f32 * (1.0 / 16_777_216.0)
    }

    /// An element of `empty.uniform_(-bound, bound)` in `float32`.
    pub(crate) fn symmetric(&mut self, bound: f64) -> f32 {
        let bound = bound as f32;
        self.unit().mul_add(bound - -bound, -bound)
    }

    /// `empty(len).uniform_(-bound, bound)` in a type narrower than `f32`: drawn as `f32`, then rounded, and a
    /// value that rounding took to the upper bound is put at the lower.
    pub(crate) fn symmetric_narrow(&mut self, len: usize, bound: f64, dtype: Dtype) -> Vec<f64> {
        let ends = rounded(dtype, vec![-f64::from(bound as f32), f64::from(bound as f32)]);
        let mut values = rounded(dtype, (0..len).map(|_| self.symmetric(bound).into()).collect());
        values.iter_mut().filter(|v| **v >= ends[1]).for_each(|v| *v = ends[0]);
        values
    }

    /// `torch.randn(len)` in `float32`, as far as the logarithms and cosines of two libraries agree.
    pub(crate) fn normals(&mut self, len: usize) -> Vec<f64> {
        if len < 16 {
            return self.first_normals(len, 1.0);
        }
        let mut values: Vec<f64> = (0..len).map(|_| self.unit().into()).collect();
        let (whole, rest) = values.as_chunks_mut::<16>();
        whole.iter_mut().for_each(|units| *units = sixteen_normals(units, 1.0));
        if !rest.is_empty() {
            // The last sixteen are drawn once more.
            let mut units = [0.0; 16];
            units.fill_with(|| self.unit().into());
            values[len - 16..].copy_from_slice(&sixteen_normals(&units, 1.0));
        }
        values
    }

    /// An element of NumPy's `RandomState.random_sample`: 53 bits.
    pub(crate) fn numpy_unit(&mut self) -> f64 {
        let (high, low) = (self.word() >> 5, self.word() >> 6);
        (f64::from(high) * 67_108_864.0 + f64::from(low)) / 9_007_199_254_740_992.0
    }

    /// The first elements of `torch.normal(0, deviation, (len,))` in `float32`, 16 where there are so many, as far as
    /// the logarithms and cosines of two libraries agree.
    pub(crate) fn first_normals(&mut self, len: usize, deviation: f64) -> Vec<f64> {
        if len < 16 {
            // One pair after another, of 53 bits each, the angle first.
            let mut unit = || (self.long() & ((1 << 53) - 1)) as f64 / (1u64 << 53) as f64;
            let pairs = std::iter::repeat_with(|| {
                let (angle, length) = (unit(), unit());
                let (cos, sin) = polar(1.0 - length, angle, deviation);
                [cos, sin]
            });
            return pairs.flatten().take(len).collect();
        }
        let mut units = [0.0; 16];
        units.fill_with(|| self.unit().into());
        // The last sixteen of a length that 16 does not divide are drawn once more.
        let certain = if len.is_multiple_of(16) { 16 } else { (len - 16).min(16) };
        sixteen_normals(&units, deviation).into_iter().take(certain).collect()
    }

    /// The first `count` elements of `torch.randperm(n)`, in memory that `count` bounds.
    pub(crate) fn permutation(&mut self, n: u64, count: usize) -> Vec<u64> {
        let count = count.min(usize::try_from(n).unwrap_or(usize::MAX));
        if n < u64::from(u32::MAX) / 20 {
            // Fisher and Yates from the front; only places that were swapped are kept.
            let mut moved: HashMap<u64, u64> = HashMap::new();
            let mut first = Vec::with_capacity(count);
            for i in 0..count as u64 {
                // The last place has nothing left to choose from, and draws nothing.
                let other = if i + 1 < n { i + u64::from(self.word()) % (n - i) } else { i };
                let here = moved.remove(&i).unwrap_or(i);
                if other == i {
                    first.push(here);
                } else {
                    first.push(moved.insert(other, here).unwrap_or(other));
                }
            }
            first
        } else {
            // From the inside out, which touches the first places until the end.
            let mut first = Vec::with_capacity(count);
            for i in 0..n {
                let other = self.long() % (i + 1);
                if i < count as u64 {
                    first.push(first.get(other as usize).copied().unwrap_or(i));
                }
                if let Some(place) = first.get_mut(other as usize) {
                    *place = i;
                }
            }
            first
        }
    }
}

/// Two normal numbers of two uniform ones (Box and Muller 1958).
fn polar(u1: f64, u2: f64, deviation: f64) -> (f64, f64) {
    let (radius, angle) = (deviation * (-2.0 * libm::log(u1)).sqrt(), std::f64::consts::TAU * u2);
    (radius * libm::cos(angle), radius * libm::sin(angle))
}

/// Sixteen normal numbers of sixteen uniform ones, the first eight with the last eight.
fn sixteen_normals(units: &[f64; 16], deviation: f64) -> [f64; 16] {
    let mut normals = [0.0; 16];
    for i in 0..8 {
        (normals[i], normals[i + 8]) = polar(1.0 - units[i], units[i + 8], deviation);
    }
    normals
}

/// Values as an element type keeps them.
pub(crate) fn rounded(dtype: Dtype, mut values: Vec<f64>) -> Vec<f64> {
    let mut bytes = vec![0; values.len() * dtype.bits() as usize / 8];
    kernel::encode(kernel::Level::detect(), dtype, &values, &mut bytes);
    kernel::decode(kernel::Level::detect(), dtype, &bytes, &mut values);
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    // All figures are PyTorch 2.15's.

    #[test]
    fn numbers_as_torch_draws_them() {
        // Bits of `torch.rand(4)`, `torch.empty(4).uniform_(-0.37, 0.37)`, then `torch.randperm(10)`. The last seed
        // is how `manual_seed` takes -7.
        let cases = [
            (
                0,
                [0x3efe1558, 0x3f44aa2f, 0x3db533a8, 0x3e073300],
                [0xbe11ed63, 0x3dcb32ed, 0xbbf037da, 0x3e96347a],
                [7, 1, 0, 3, 4, 9, 8, 5, 6, 2],
            ),
            (
                5489,
                [0x3f11bb5c, 0x3f2e9ef6, 0x3f61faee, 0x3f431f79],
                [0x3bd11d15, 0xbeb2045a, 0x3e75ae23, 0x3d806320],
                [8, 0, 5, 6, 4, 3, 9, 7, 2, 1],
            ),
            (
                u64::MAX - 6,
                [0x3e81b578, 0x3f2d677d, 0x3e81c3a8, 0x3f1b3e33],
                [0xbd8d94a5, 0x3eadb7f9, 0xbe704376, 0x3dc5293a],
                [2, 3, 7, 4, 6, 5, 8, 1, 0, 9],
            ),
        ];
        for (seed, unit, symmetric, permutation) in cases {
            let mut generator = Generator::seeded(seed);
            assert_eq!([(); 4].map(|()| generator.unit().to_bits()), unit, "seed {seed}");
            assert_eq!([(); 4].map(|()| generator.symmetric(0.37).to_bits()), symmetric, "seed {seed}");
            assert_eq!(generator.permutation(10, 10), permutation, "seed {seed}");
        }
    }

    #[test]
    fn normal_numbers_as_torch_draws_them() {
        let agree = |len: usize, expected: &[f64]| {
            let drawn = Generator::seeded(42).first_normals(len, 0.7);
            assert!(drawn.len() >= expected.len().min(len));
            drawn.iter().zip(expected).for_each(|(d, e)| assert!((d - e).abs() < 1e-6, "{len}: {d} {e}"));
        };
        agree(1, &[0.235_683_25]);
        agree(9, &[0.235_683_25, 0.090_166_58, 0.164_123_65, 0.161_233_11, -0.785_999_48]);
        agree(16, &NORMALS);
        agree(80, &NORMALS);
        assert_eq!(Generator::seeded(42).first_normals(17, 0.7).len(), 1);
    }

    #[test]
    fn all_normal_numbers_as_torch_draws_them() {
        // torch.randn(37) and torch.randn(9) from 7.
        let whole = [
            -0.8201345, 0.3956312, 0.8989085, -1.3884039, -0.1669960, 0.2851500, -0.6410915, -0.8936554,
            0.9265430, -0.5355122, -1.1597203, -0.4601572, 0.7085391, 1.0127554, 0.2303969, 1.0901651,
            -1.5826646, -0.3245666, 1.9263681, -0.3300117, 0.1984451, -0.6618676, -0.8284521, -0.6056803,
            -0.1354369, 0.7471182, 0.6118158, 1.8677835, 2.5116029, -0.2501326, 0.5011215, 0.2600362,
            -1.6370213, 0.1577119, 0.3957409, -1.3677397, -0.1007343,
        ];
        let few = [
            -0.1467951, 0.7861413, 0.9468216, -1.1143440, 1.6907902, -0.8948279, -0.3556250, 1.2323858,
            0.1381727,
        ];
        for expected in [&whole[..], &few[..]] {
            let drawn = Generator::seeded(7).normals(expected.len());
            assert_eq!(drawn.len(), expected.len());
            drawn.iter().zip(expected).for_each(|(d, e)| assert!((d - e).abs() < 1e-6, "{d} {e}"));
        }
    }

    /// `torch.normal(0, 0.7, (16,))` from 42.
    const NORMALS: [f64; 16] = [
        1.3488407, 1.0410988, 0.6305020, -1.4738647, 0.4748929, -0.8641814, -0.0301472, -1.1232668,
        -0.5264947, 1.1541061, -0.2747350, -0.9825250, -0.5095169, -0.3916011, -0.5381872, 0.5337118,
    ];

    #[test]
    fn the_front_of_a_long_permutation() {
        // The last length that is shuffled from the front.
        assert_eq!(
            Generator::seeded(5).permutation(214_748_363, 8),
            [94459959, 22248453, 89044632, 134552128, 28858574, 58999569, 79933372, 126465476]
        );
        assert_eq!(Generator::seeded(1).permutation(1, 5), [0]);
        assert!(Generator::seeded(1).permutation(0, 5).is_empty());
        let mut all = Generator::seeded(9).permutation(1000, 1000);
        let few = Generator::seeded(9).permutation(1000, 30);
        assert_eq!(few, all[..30]);
        all.sort_unstable();
        assert!(all.into_iter().eq(0..1000));
    }

    #[test]
    #[ignore = "draws 400 million words"]
    fn the_front_of_a_very_long_permutation() {
        assert_eq!(
            Generator::seeded(777).permutation(214_749_364, 8),
            [150358698, 199533091, 83306822, 145970095, 40813261, 111338416, 71047571, 163718730]
        );
        assert_eq!(
            Generator::seeded(5).permutation(214_748_364, 8),
            [91252029, 200188117, 89143689, 193777243, 63032797, 86211230, 118982567, 77878345]
        );
    }
}
