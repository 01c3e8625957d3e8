//! Vectors of `f32`, one block of weights a lane.
//!
//! [`Vector`] is what the searches are written in. `[f32; 1]` is its
//! definition; `[f32; N]` is the same for any CPU, and the registers of AVX2
//! and AVX-512 do each operation as that does it, lane by lane: every
//! operation here is one that IEEE 754 rounds in one way only.

/// Adding this to a number of at most 22 bits leaves its nearest integer in the low bits.
pub(super) const MAGIC: f32 = 12_582_912.0;

/// The nearest integer, ties to even; the reference's bit trick, so that it is the same where it
/// is out of range too.
#[inline(always)]
pub(super) fn nearest(x: f32) -> i32 {
    ((x + MAGIC).to_bits() as i32 & 0x007f_ffff) - 0x0040_0000
}

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
    /// Whether `self > other`; not where either is no number.
    fn gt(self, other: Self) -> Self::Mask;
    /// Whether they are equal; not where either is no number.
    fn eq(self, other: Self) -> Self::Mask;
    fn both(a: Self::Mask, b: Self::Mask) -> Self::Mask;
    fn any(mask: Self::Mask) -> bool;
    /// `yes` where the mask holds, else `no`.
    fn select(mask: Self::Mask, yes: Self, no: Self) -> Self;
}

impl<const N: usize> Vector for [f32; N] {
    const LANES: usize = N;
    type Mask = [bool; N];

    #[inline(always)]
    fn splat(x: f32) -> Self {
        [x; N]
    }
    #[inline(always)]
    fn load(x: &[f32]) -> Self {
        *x.first_chunk().expect("as many numbers as lanes")
    }
    #[inline(always)]
    fn store(self, out: &mut [f32]) {
        out[..N].copy_from_slice(&self);
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
    fn gt(self, other: Self) -> [bool; N] {
        std::array::from_fn(|l| self[l] > other[l])
    }
    #[inline(always)]
    fn eq(self, other: Self) -> [bool; N] {
        std::array::from_fn(|l| self[l] == other[l])
    }
    #[inline(always)]
    fn both(a: [bool; N], b: [bool; N]) -> [bool; N] {
        std::array::from_fn(|l| a[l] & b[l])
    }
    #[inline(always)]
    fn any(mask: [bool; N]) -> bool {
        mask.contains(&true)
    }
    #[inline(always)]
    fn select(mask: [bool; N], yes: Self, no: Self) -> Self {
        std::array::from_fn(|l| if mask[l] { yes[l] } else { no[l] })
    }
}

/// Registers of x86-64.
///
/// Whoever names one of these types promises that the CPU has its instructions: they are named in
/// functions compiled for them only, which [`Level`](super::Level) guards.
#[cfg(target_arch = "x86_64")]
pub(super) mod x86 {
    use std::arch::x86_64::*;

    use super::{MAGIC, Vector};

    /// Eight lanes: AVX2.
    #[derive(Clone, Copy)]
    pub(in super::super) struct Avx2(__m256);

    // SAFETY of all blocks below: the intrinsics need AVX2 (AVX for most), which the promise above
    // gives; loads and stores go through slices that are seen to be long enough.
    #[allow(clippy::undocumented_unsafe_blocks)]
    impl Vector for Avx2 {
        const LANES: usize = 8;
        type Mask = __m256;

        #[inline(always)]
        fn splat(x: f32) -> Self {
            Self(unsafe { _mm256_set1_ps(x) })
        }
        #[inline(always)]
        fn load(x: &[f32]) -> Self {
            let x = &x[..8];
            Self(unsafe { _mm256_loadu_ps(x.as_ptr()) })
        }
        #[inline(always)]
        fn store(self, out: &mut [f32]) {
            let out = &mut out[..8];
            unsafe { _mm256_storeu_ps(out.as_mut_ptr(), self.0) }
        }
        #[inline(always)]
        fn add(self, other: Self) -> Self {
            Self(unsafe { _mm256_add_ps(self.0, other.0) })
        }
        #[inline(always)]
        fn sub(self, other: Self) -> Self {
            Self(unsafe { _mm256_sub_ps(self.0, other.0) })
        }
        #[inline(always)]
        fn mul(self, other: Self) -> Self {
            Self(unsafe { _mm256_mul_ps(self.0, other.0) })
        }
        #[inline(always)]
        fn div(self, other: Self) -> Self {
            Self(unsafe { _mm256_div_ps(self.0, other.0) })
        }
        #[inline(always)]
        fn sqrt(self) -> Self {
            Self(unsafe { _mm256_sqrt_ps(self.0) })
        }
        #[inline(always)]
        fn abs(self) -> Self {
            Self(unsafe { _mm256_andnot_ps(_mm256_set1_ps(-0.0), self.0) })
        }
        #[inline(always)]
        fn nearest_within(self, low: i32, high: i32) -> Self {
            unsafe {
                let bits = _mm256_castps_si256(_mm256_add_ps(self.0, _mm256_set1_ps(MAGIC)));
                let low_bits = _mm256_and_si256(bits, _mm256_set1_epi32(0x007f_ffff));
                let whole = _mm256_sub_epi32(low_bits, _mm256_set1_epi32(0x0040_0000));
                let above = _mm256_max_epi32(whole, _mm256_set1_epi32(low));
                Self(_mm256_cvtepi32_ps(_mm256_min_epi32(above, _mm256_set1_epi32(high))))
            }
        }
        #[inline(always)]
        fn gt(self, other: Self) -> __m256 {
            unsafe { _mm256_cmp_ps::<_CMP_GT_OQ>(self.0, other.0) }
        }
        #[inline(always)]
        fn eq(self, other: Self) -> __m256 {
            unsafe { _mm256_cmp_ps::<_CMP_EQ_OQ>(self.0, other.0) }
        }
        #[inline(always)]
        fn both(a: __m256, b: __m256) -> __m256 {
            unsafe { _mm256_and_ps(a, b) }
        }
        #[inline(always)]
        fn any(mask: __m256) -> bool {
            unsafe { _mm256_movemask_ps(mask) != 0 }
        }
        #[inline(always)]
        fn select(mask: __m256, yes: Self, no: Self) -> Self {
            Self(unsafe { _mm256_blendv_ps(no.0, yes.0, mask) })
        }
    }

    /// Sixteen lanes: AVX-512.
    #[derive(Clone, Copy)]
    pub(in super::super) struct Avx512(__m512);

    // SAFETY of all blocks below: as above, with AVX-512 F and DQ.
    #[allow(clippy::undocumented_unsafe_blocks)]
    impl Vector for Avx512 {
        const LANES: usize = 16;
        type Mask = __mmask16;

        #[inline(always)]
        fn splat(x: f32) -> Self {
            Self(unsafe { _mm512_set1_ps(x) })
        }
        #[inline(always)]
        fn load(x: &[f32]) -> Self {
            let x = &x[..16];
            Self(unsafe { _mm512_loadu_ps(x.as_ptr()) })
        }
        #[inline(always)]
        fn store(self, out: &mut [f32]) {
            let out = &mut out[..16];
            unsafe { _mm512_storeu_ps(out.as_mut_ptr(), self.0) }
        }
        #[inline(always)]
        fn add(self, other: Self) -> Self {
            Self(unsafe { _mm512_add_ps(self.0, other.0) })
        }
        #[inline(always)]
        fn sub(self, other: Self) -> Self {
            Self(unsafe { _mm512_sub_ps(self.0, other.0) })
        }
        #[inline(always)]
        fn mul(self, other: Self) -> Self {
            Self(unsafe { _mm512_mul_ps(self.0, other.0) })
        }
        #[inline(always)]
        fn div(self, other: Self) -> Self {
            Self(unsafe { _mm512_div_ps(self.0, other.0) })
        }
        #[inline(always)]
        fn sqrt(self) -> Self {
            Self(unsafe { _mm512_sqrt_ps(self.0) })
        }
        #[inline(always)]
        fn abs(self) -> Self {
            Self(unsafe { _mm512_abs_ps(self.0) })
        }
        #[inline(always)]
        fn nearest_within(self, low: i32, high: i32) -> Self {
            unsafe {
                let bits = _mm512_castps_si512(_mm512_add_ps(self.0, _mm512_set1_ps(MAGIC)));
                let low_bits = _mm512_and_si512(bits, _mm512_set1_epi32(0x007f_ffff));
                let whole = _mm512_sub_epi32(low_bits, _mm512_set1_epi32(0x0040_0000));
                let above = _mm512_max_epi32(whole, _mm512_set1_epi32(low));
                Self(_mm512_cvtepi32_ps(_mm512_min_epi32(above, _mm512_set1_epi32(high))))
            }
        }
        #[inline(always)]
        fn gt(self, other: Self) -> __mmask16 {
            unsafe { _mm512_cmp_ps_mask::<_CMP_GT_OQ>(self.0, other.0) }
        }
        #[inline(always)]
        fn eq(self, other: Self) -> __mmask16 {
            unsafe { _mm512_cmp_ps_mask::<_CMP_EQ_OQ>(self.0, other.0) }
        }
        #[inline(always)]
        fn both(a: __mmask16, b: __mmask16) -> __mmask16 {
            a & b
        }
        #[inline(always)]
        fn any(mask: __mmask16) -> bool {
            mask != 0
        }
        #[inline(always)]
        fn select(mask: __mmask16, yes: Self, no: Self) -> Self {
            Self(unsafe { _mm512_mask_blend_ps(mask, no.0, yes.0) })
        }
    }
}

/// Defines a kernel from a body generic in its vector: `fn $name(level, x, out)`.
macro_rules! lanes_kernel {
    ($(#[$doc:meta])* $vis:vis fn $name:ident = $body:ident) => {
        $(#[$doc])*
        $vis fn $name(level: tenon_simd::Level, x: &[f32], out: &mut [u8]) {
            #[cfg(target_arch = "x86_64")]
            mod levels {
                use super::*;
                use crate::quant::lanes::x86::{Avx2, Avx512};

                #[target_feature(enable = "avx2,fma")]
                pub(super) fn avx2(x: &[f32], out: &mut [u8]) {
                    $body::<Avx2>(x, out)
                }

                #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
                pub(super) fn avx512(x: &[f32], out: &mut [u8]) {
                    $body::<Avx512>(x, out)
                }
            }
            #[cfg(target_arch = "x86_64")]
            match level.min(tenon_simd::Level::detect()) {
                tenon_simd::Level::Scalar => {}
                // SAFETY: `min(detect())` leaves only levels whose features this CPU was seen to have.
                tenon_simd::Level::Avx2 => return unsafe { levels::avx2(x, out) },
                // SAFETY: as above.
                tenon_simd::Level::Avx512 => return unsafe { levels::avx512(x, out) },
            }
            let _ = level;
            // What every CPU's compiler makes of four lanes: SSE2, NEON.
            $body::<[f32; 4]>(x, out)
        }
    };
}
pub(super) use lanes_kernel;

/// Element `i` of `V::LANES` consecutive blocks of `N`, in lane `block`.
#[inline(always)]
pub(super) fn transpose<const N: usize, V: Vector>(x: &[f32]) -> [V; N] {
    let mut rows = [[0.0f32; 16]; N];
    for (lane, block) in x.chunks_exact(N).enumerate().take(V::LANES) {
        for (row, value) in rows.iter_mut().zip(block) {
            row[lane] = *value;
        }
    }
    std::array::from_fn(|i| V::load(&rows[i]))
}
