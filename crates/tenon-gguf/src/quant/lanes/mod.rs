//! Vectors of `f32`, one block of weights a lane.
//!
//! [`Vector`] is what the searches are written in. `[f32; 1]` is its
//! definition; `[f32; N]` is the same for any CPU, and the registers of AVX2,
//! AVX-512 and NEON do each operation as that does it, lane by lane: every
//! operation here is one that IEEE 754 rounds in one way only. [`Twice`] is
//! two of them side by side.

#[cfg(target_arch = "aarch64")]
pub(super) mod neon;
#[cfg(target_arch = "x86_64")]
pub(super) mod x86;

/// Adding this to a number of at most 22 bits leaves its nearest integer in the low bits.
pub(super) const MAGIC: f32 = 12_582_912.0;

/// The most lanes of a [`Vector`].
pub(super) const MAX_LANES: usize = 32;

/// Entries of a table that [`Vector::look_up`] reads: a power of two.
pub(super) const TABLE: usize = 512;

/// The nearest integer, ties to even; the reference's bit trick, so that it is the same where it
/// is out of range too.
#[inline(always)]
pub(super) fn nearest(x: f32) -> i32 {
    ((x + MAGIC).to_bits() as i32 & 0x007f_ffff) - 0x0040_0000
}

/// The least and the greatest result of [`nearest`]: as bounds none at all.
pub(super) const LEAST: i32 = -0x0040_0000;
pub(super) const GREATEST: i32 = 0x003f_ffff;

/// One number of each lane.
pub(super) trait Vector: Copy {
    /// Lanes.
    const LANES: usize;
    /// One truth of each lane.
    type Mask: Copy;

    fn splat(x: f32) -> Self;
    /// The first `LANES` numbers.
    fn load(x: &[f32]) -> Self;
    fn store(self, out: &mut [f32]);
    fn add(self, other: Self) -> Self;
    fn sub(self, other: Self) -> Self;
    fn mul(self, other: Self) -> Self;
    fn div(self, other: Self) -> Self;
    fn sqrt(self) -> Self;
    fn abs(self) -> Self;
    /// [`nearest`], not below `low` nor above `high`, as a float.
    fn nearest_within(self, low: i32, high: i32) -> Self;
    /// A whole number of at most 24 bits modulo 256: what C keeps of it in a `uint8_t`.
    fn low_byte(self) -> Self;
    /// The entry with this number, which is whole and below [`TABLE`].
    fn look_up(self, table: &[f32; TABLE]) -> Self;
    /// Whether `self > other`; not where either is no number.
    fn gt(self, other: Self) -> Self::Mask;
    /// Whether they are equal; not where either is no number.
    fn eq(self, other: Self) -> Self::Mask;
    fn both(a: Self::Mask, b: Self::Mask) -> Self::Mask;
    fn any(mask: Self::Mask) -> bool;
    /// `yes` where the mask holds, else `no`.
    fn select(mask: Self::Mask, yes: Self, no: Self) -> Self;
    /// Of `LANES` consecutive blocks of `N` (a multiple of 16) the elements `i`, block `l` in lane `l`.
    fn transpose<const N: usize>(x: &[f32]) -> [Self; N];
}

impl<const L: usize> Vector for [f32; L] {
    const LANES: usize = L;
    type Mask = [bool; L];

    #[inline(always)]
    fn splat(x: f32) -> Self {
        [x; L]
    }
    #[inline(always)]
    fn load(x: &[f32]) -> Self {
        *x.first_chunk().expect("as many numbers as lanes")
    }
    #[inline(always)]
    fn store(self, out: &mut [f32]) {
        out[..L].copy_from_slice(&self);
    }
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        std::array::from_fn(|l| self[l] + other[l])
    }
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        std::array::from_fn(|l| self[l] - other[l])
    }
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        std::array::from_fn(|l| self[l] * other[l])
    }
    #[inline(always)]
    fn div(self, other: Self) -> Self {
        std::array::from_fn(|l| self[l] / other[l])
    }
    #[inline(always)]
    fn sqrt(self) -> Self {
        std::array::from_fn(|l| self[l].sqrt())
    }
    #[inline(always)]
    fn abs(self) -> Self {
        std::array::from_fn(|l| self[l].abs())
    }
    #[inline(always)]
    fn nearest_within(self, low: i32, high: i32) -> Self {
        std::array::from_fn(|l| nearest(self[l]).clamp(low, high) as f32)
    }
    #[inline(always)]
    fn low_byte(self) -> Self {
        std::array::from_fn(|l| (self[l] as i32 & 255) as f32)
    }
    #[inline(always)]
    fn look_up(self, table: &[f32; TABLE]) -> Self {
        std::array::from_fn(|l| table[self[l] as usize % TABLE])
    }
    #[inline(always)]
    fn gt(self, other: Self) -> [bool; L] {
        std::array::from_fn(|l| self[l] > other[l])
    }
    #[inline(always)]
    fn eq(self, other: Self) -> [bool; L] {
        std::array::from_fn(|l| self[l] == other[l])
    }
    #[inline(always)]
    fn both(a: [bool; L], b: [bool; L]) -> [bool; L] {
        std::array::from_fn(|l| a[l] & b[l])
    }
    #[inline(always)]
    fn any(mask: [bool; L]) -> bool {
        mask.contains(&true)
    }
    #[inline(always)]
    fn select(mask: [bool; L], yes: Self, no: Self) -> Self {
        std::array::from_fn(|l| if mask[l] { yes[l] } else { no[l] })
    }
    #[inline(always)]
    fn transpose<const N: usize>(x: &[f32]) -> [Self; N] {
        let x = &x[..N * L];
        std::array::from_fn(|i| std::array::from_fn(|l| x[l * N + i]))
    }
}

/// Two vectors side by side: the one is worked on while the other waits for its sums.
#[derive(Clone, Copy)]
pub(super) struct Twice<V>(V, V);

impl<V: Vector> Vector for Twice<V> {
    const LANES: usize = 2 * V::LANES;
    type Mask = (V::Mask, V::Mask);

    #[inline(always)]
    fn splat(x: f32) -> Self {
        Self(V::splat(x), V::splat(x))
    }
    #[inline(always)]
    fn load(x: &[f32]) -> Self {
        Self(V::load(x), V::load(&x[V::LANES..]))
    }
    #[inline(always)]
    fn store(self, out: &mut [f32]) {
        self.0.store(out);
        self.1.store(&mut out[V::LANES..]);
    }
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        Self(self.0.add(other.0), self.1.add(other.1))
    }
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        Self(self.0.sub(other.0), self.1.sub(other.1))
    }
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        Self(self.0.mul(other.0), self.1.mul(other.1))
    }
    #[inline(always)]
    fn div(self, other: Self) -> Self {
        Self(self.0.div(other.0), self.1.div(other.1))
    }
    #[inline(always)]
    fn sqrt(self) -> Self {
        Self(self.0.sqrt(), self.1.sqrt())
    }
    #[inline(always)]
    fn abs(self) -> Self {
        Self(self.0.abs(), self.1.abs())
    }
    #[inline(always)]
    fn nearest_within(self, low: i32, high: i32) -> Self {
        Self(self.0.nearest_within(low, high), self.1.nearest_within(low, high))
    }
    #[inline(always)]
    fn low_byte(self) -> Self {
        Self(self.0.low_byte(), self.1.low_byte())
    }
    #[inline(always)]
    fn look_up(self, table: &[f32; TABLE]) -> Self {
        Self(self.0.look_up(table), self.1.look_up(table))
    }
    #[inline(always)]
    fn gt(self, other: Self) -> Self::Mask {
        (self.0.gt(other.0), self.1.gt(other.1))
    }
    #[inline(always)]
    fn eq(self, other: Self) -> Self::Mask {
        (self.0.eq(other.0), self.1.eq(other.1))
    }
    #[inline(always)]
    fn both(a: Self::Mask, b: Self::Mask) -> Self::Mask {
        (V::both(a.0, b.0), V::both(a.1, b.1))
    }
    #[inline(always)]
    fn any(mask: Self::Mask) -> bool {
        V::any(mask.0) | V::any(mask.1)
    }
    #[inline(always)]
    fn select(mask: Self::Mask, yes: Self, no: Self) -> Self {
        Self(V::select(mask.0, yes.0, no.0), V::select(mask.1, yes.1, no.1))
    }
    #[inline(always)]
    fn transpose<const N: usize>(x: &[f32]) -> [Self; N] {
        let (low, high) = (V::transpose::<N>(x), V::transpose::<N>(&x[N * V::LANES..]));
        let mut out = [Self(low[0], high[0]); N];
        for (i, out) in out.iter_mut().enumerate() {
            *out = Self(low[i], high[i]);
        }
        out
    }
}

/// Defines a kernel from a body generic in its vector: `fn $name(level, args..)`.
macro_rules! lanes_kernel {
    ($(#[$doc:meta])* $vis:vis fn $name:ident = $body:ident($($arg:ident: $ty:ty),* $(,)?)) => {
        $(#[$doc])*
        $vis fn $name(level: tenon_simd::Level, $($arg: $ty),*) {
            #[cfg(target_arch = "x86_64")]
            mod levels {
                use super::*;
                use crate::quant::lanes::x86::{Avx2, Avx512};

                #[target_feature(enable = "avx2,fma")]
                pub(super) fn avx2($($arg: $ty),*) {
                    $body::<Avx2>($($arg),*)
                }

                #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
                pub(super) fn avx512($($arg: $ty),*) {
                    $body::<Avx512>($($arg),*)
                }
            }
            #[cfg(target_arch = "x86_64")]
            match level.min(tenon_simd::Level::detect()) {
                tenon_simd::Level::Scalar => {}
                // SAFETY: `min(detect())` leaves only levels whose features this CPU was seen to have.
                tenon_simd::Level::Avx2 => return unsafe { levels::avx2($($arg),*) },
                // SAFETY: as above.
                tenon_simd::Level::Avx512 => return unsafe { levels::avx512($($arg),*) },
            }
            let _ = level;
            // Every AArch64 CPU has NEON.
            #[cfg(target_arch = "aarch64")]
            $body::<$crate::quant::lanes::neon::Neon>($($arg),*);
            // Elsewhere what the compiler makes of four lanes, SSE2 for one.
            #[cfg(not(target_arch = "aarch64"))]
            $body::<[f32; 4]>($($arg),*);
        }
    };
}
pub(super) use lanes_kernel;

/// The blocks of `N` from number `first` on, one a lane; zeros where there are no more.
#[inline(always)]
pub(super) fn blocks<V: Vector, const N: usize>(x: &[f32], first: usize) -> [V; N] {
    let (start, len) = (first * N, V::LANES * N);
    if let Some(whole) = x.get(start..start + len) {
        return V::transpose(whole);
    }
    let mut padded = [[0.0f32; N]; MAX_LANES];
    let rest = &x[start.min(x.len())..];
    padded.as_flattened_mut()[..rest.len()].copy_from_slice(rest);
    V::transpose(padded.as_flattened())
}

/// The same of `row` again and again, as the importance of a row is of all rows.
#[inline(always)]
pub(super) fn repeated_blocks<V: Vector, const N: usize>(row: &[f32], first: usize) -> [V; N] {
    let start = first * N % row.len();
    if let Some(whole) = row.get(start..start + V::LANES * N) {
        return V::transpose(whole);
    }
    let mut padded = [[0.0f32; N]; MAX_LANES];
    for (lane, block) in padded[..V::LANES].iter_mut().enumerate() {
        let start = (first + lane) * N % row.len();
        block.copy_from_slice(&row[start..start + N]);
    }
    V::transpose(padded.as_flattened())
}

/// Values that lie `stride` apart, one a lane, zeros where there are no more.
#[inline(always)]
pub(super) fn strided<V: Vector>(x: &[f32], first: usize, stride: usize) -> V {
    let mut lanes = [0.0f32; MAX_LANES];
    for (lane, value) in lanes[..V::LANES].iter_mut().zip(x.iter().skip(first).step_by(stride)) {
        *lane = *value;
    }
    V::load(&lanes)
}

/// Of each lane's block the entry of its super-block, which is `per` blocks.
#[inline(always)]
pub(super) fn of_supers<V: Vector>(supers: &[f32], first: usize, per: usize) -> V {
    let mut lanes = [0.0f32; MAX_LANES];
    for (lane, value) in lanes[..V::LANES].iter_mut().enumerate() {
        *value = supers.get((first + lane) / per).copied().unwrap_or(0.0);
    }
    V::load(&lanes)
}

/// Writes the lanes as far as `out` reaches.
#[inline(always)]
pub(super) fn store_some<V: Vector>(v: V, out: &mut [f32]) {
    if out.len() >= V::LANES {
        return v.store(out);
    }
    let mut lanes = [0.0f32; MAX_LANES];
    v.store(&mut lanes);
    out.copy_from_slice(&lanes[..out.len()]);
}

/// The quants of one block a lane, as bytes, block after block, as far as `out` reaches.
#[inline(always)]
pub(super) fn store_quants<V: Vector, const N: usize>(quants: &[V; N], out: &mut [u8]) {
    let mut row = [0.0f32; MAX_LANES];
    for (i, q) in quants.iter().enumerate() {
        q.store(&mut row);
        for (block, q) in out.as_chunks_mut::<N>().0.iter_mut().zip(&row[..V::LANES]) {
            block[i] = *q as u8;
        }
    }
}

/// The sum of squares, in order, of each run of `len` elements.
///
/// A sum waits for the one before it, so as many runs as there are lanes are summed together.
#[inline(always)]
pub(super) fn sums_of_squares<V: Vector>(x: &[f32], len: usize, out: &mut [f32]) {
    for (runs, out) in x.chunks(len * V::LANES).zip(out.chunks_mut(V::LANES)) {
        if out.len() < V::LANES || !len.is_multiple_of(16) {
            for (run, out) in runs.chunks_exact(len).zip(out) {
                *out = run.iter().fold(0.0, |sum, v| sum + v * v);
            }
            continue;
        }
        let mut sum = V::splat(0.0);
        let mut square = [[0.0f32; 16]; MAX_LANES];
        for start in (0..len).step_by(16) {
            for (lane, part) in square[..V::LANES].iter_mut().enumerate() {
                part.copy_from_slice(&runs[lane * len + start..][..16]);
            }
            for v in V::transpose::<16>(square.as_flattened()) {
                sum = sum.add(v.mul(v));
            }
        }
        sum.store(out);
    }
}
