//! Registers of x86-64.
//!
//! Whoever names one of these types promises that the CPU has its instructions: they are named in
//! functions compiled for them only, which [`Level`](tenon_simd::Level) guards.

use std::arch::x86_64::*;

use super::{LEAST, MAGIC, TABLE, Vector};

/// The bits of 2^23, above which a float's low bits count ones.
const ONES: i32 = 0x4b00_0000;

/// `a & b | c` as a truth table.
const AND_OR: i32 = 0xea;

/// Eight lanes: AVX2.
#[derive(Clone, Copy)]
pub(in crate::quant) struct Avx2(__m256);

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
        // The low bits of the sum, but never its exponent, which is another where it is out of range.
        unsafe {
            let bits = _mm256_castps_si256(_mm256_add_ps(self.0, _mm256_set1_ps(MAGIC)));
            let whole = _mm256_castsi256_ps(_mm256_or_si256(
                _mm256_and_si256(bits, _mm256_set1_epi32(0x007f_ffff)),
                _mm256_set1_epi32(ONES),
            ));
            let above =
                if low > LEAST { _mm256_max_ps(whole, _mm256_set1_ps(MAGIC + low as f32)) } else { whole };
            let within = _mm256_min_ps(above, _mm256_set1_ps(MAGIC + high as f32));
            Self(_mm256_sub_ps(within, _mm256_set1_ps(MAGIC)))
        }
    }
    #[inline(always)]
    fn low_byte(self) -> Self {
        unsafe {
            let byte = _mm256_and_si256(_mm256_cvtps_epi32(self.0), _mm256_set1_epi32(255));
            Self(_mm256_cvtepi32_ps(byte))
        }
    }
    #[inline(always)]
    fn look_up(self, table: &[f32; TABLE]) -> Self {
        unsafe {
            let index = _mm256_and_si256(_mm256_cvtps_epi32(self.0), _mm256_set1_epi32(TABLE as i32 - 1));
            Self(_mm256_i32gather_ps::<4>(table.as_ptr(), index))
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
    #[inline(always)]
    fn transpose<const N: usize>(x: &[f32]) -> [Self; N] {
        let x = &x[..8 * N];
        let mut out = [Self::splat(0.0); N];
        for (at, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            let mut rows = [Self::splat(0.0).0; 8];
            for (l, row) in rows.iter_mut().enumerate() {
                *row = Self::load(&x[l * N + 8 * at..]).0;
            }
            *out = transpose8(rows).map(Self);
        }
        out
    }
}

/// Sixteen lanes: AVX-512.
#[derive(Clone, Copy)]
pub(in crate::quant) struct Avx512(__m512);

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
        // The low bits of the sum, but never its exponent, which is another where it is out of range.
        unsafe {
            let bits = _mm512_castps_si512(_mm512_add_ps(self.0, _mm512_set1_ps(MAGIC)));
            let whole = _mm512_castsi512_ps(_mm512_ternarylogic_epi32::<AND_OR>(
                bits,
                _mm512_set1_epi32(0x007f_ffff),
                _mm512_set1_epi32(ONES),
            ));
            let above =
                if low > LEAST { _mm512_max_ps(whole, _mm512_set1_ps(MAGIC + low as f32)) } else { whole };
            let within = _mm512_min_ps(above, _mm512_set1_ps(MAGIC + high as f32));
            Self(_mm512_sub_ps(within, _mm512_set1_ps(MAGIC)))
        }
    }
    #[inline(always)]
    fn low_byte(self) -> Self {
        unsafe {
            let byte = _mm512_and_si512(_mm512_cvtps_epi32(self.0), _mm512_set1_epi32(255));
            Self(_mm512_cvtepi32_ps(byte))
        }
    }
    #[inline(always)]
    fn look_up(self, table: &[f32; TABLE]) -> Self {
        unsafe {
            let index = _mm512_and_si512(_mm512_cvtps_epi32(self.0), _mm512_set1_epi32(TABLE as i32 - 1));
            Self(_mm512_i32gather_ps::<4>(index, table.as_ptr()))
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
    #[inline(always)]
    fn transpose<const N: usize>(x: &[f32]) -> [Self; N] {
        let x = &x[..16 * N];
        let mut out = [Self::splat(0.0); N];
        for (at, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
            let mut rows = [Self::splat(0.0).0; 16];
            for (l, row) in rows.iter_mut().enumerate() {
                *row = Self::load(&x[l * N + 16 * at..]).0;
            }
            *out = transpose16(rows).map(Self);
        }
        out
    }
}

/// Eight rows to eight columns: pairs, then fours, then halves of registers change places.
#[inline(always)]
fn transpose8(r: [__m256; 8]) -> [__m256; 8] {
    // SAFETY: as above.
    unsafe {
        // Of each four rows: in each half the four of one column.
        let mut fours = r;
        for (i, four) in fours.iter_mut().enumerate() {
            let (row, column) = (i / 4 * 4, i % 4);
            let (low, high) = if column < 2 {
                (_mm256_unpacklo_ps(r[row], r[row + 1]), _mm256_unpacklo_ps(r[row + 2], r[row + 3]))
            } else {
                (_mm256_unpackhi_ps(r[row], r[row + 1]), _mm256_unpackhi_ps(r[row + 2], r[row + 3]))
            };
            let (low, high) = (_mm256_castps_pd(low), _mm256_castps_pd(high));
            *four = _mm256_castpd_ps(if column % 2 == 0 {
                _mm256_unpacklo_pd(low, high)
            } else {
                _mm256_unpackhi_pd(low, high)
            });
        }
        let mut out = r;
        for (i, out) in out.iter_mut().enumerate() {
            let (a, b) = (fours[i % 4], fours[i % 4 + 4]);
            *out = if i < 4 {
                _mm256_permute2f128_ps::<0x20>(a, b)
            } else {
                _mm256_permute2f128_ps::<0x31>(a, b)
            };
        }
        out
    }
}

/// Sixteen rows to sixteen columns, in the same way.
#[inline(always)]
fn transpose16(r: [__m512; 16]) -> [__m512; 16] {
    // SAFETY: as above.
    unsafe {
        // Of each four rows: in each quarter the four of one column.
        let mut fours = r;
        for (i, four) in fours.iter_mut().enumerate() {
            let (row, column) = (i / 4 * 4, i % 4);
            let (low, high) = if column < 2 {
                (_mm512_unpacklo_ps(r[row], r[row + 1]), _mm512_unpacklo_ps(r[row + 2], r[row + 3]))
            } else {
                (_mm512_unpackhi_ps(r[row], r[row + 1]), _mm512_unpackhi_ps(r[row + 2], r[row + 3]))
            };
            let (low, high) = (_mm512_castps_pd(low), _mm512_castps_pd(high));
            *four = _mm512_castpd_ps(if column % 2 == 0 {
                _mm512_unpacklo_pd(low, high)
            } else {
                _mm512_unpackhi_pd(low, high)
            });
        }
        let mut out = r;
        for (i, out) in out.iter_mut().enumerate() {
            let (a, b, c, d) = (fours[i % 4], fours[i % 4 + 4], fours[i % 4 + 8], fours[i % 4 + 12]);
            // Quarter i / 4 of each.
            let (ab, cd) = if i < 8 {
                (_mm512_shuffle_f32x4::<0x44>(a, b), _mm512_shuffle_f32x4::<0x44>(c, d))
            } else {
                (_mm512_shuffle_f32x4::<0xee>(a, b), _mm512_shuffle_f32x4::<0xee>(c, d))
            };
            *out = if i / 4 % 2 == 0 {
                _mm512_shuffle_f32x4::<0x88>(ab, cd)
            } else {
                _mm512_shuffle_f32x4::<0xdd>(ab, cd)
            };
        }
        out
    }
}
