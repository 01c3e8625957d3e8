//! Registers of AArch64, every CPU of which has NEON.

use std::arch::aarch64::*;

use super::{LEAST, MAGIC, TABLE, Vector};

/// The bits of 2^23, above which a float's low bits count ones.
const ONES: u32 = 0x4b00_0000;

/// Four lanes.
#[derive(Clone, Copy)]
pub(in crate::quant) struct Neon(float32x4_t);

// SAFETY of all blocks below: the intrinsics need NEON, which is part of the target; loads and stores
// go through slices that are seen to be long enough.
#[allow(clippy::undocumented_unsafe_blocks, unused_unsafe)]
impl Vector for Neon {
    const LANES: usize = 4;
    type Mask = uint32x4_t;

    #[inline(always)]
    fn splat(x: f32) -> Self {
        Self(unsafe { vdupq_n_f32(x) })
    }
    #[inline(always)]
    fn load(x: &[f32]) -> Self {
        let x = &x[..4];
        Self(unsafe { vld1q_f32(x.as_ptr()) })
    }
    #[inline(always)]
    fn store(self, out: &mut [f32]) {
        let out = &mut out[..4];
        unsafe { vst1q_f32(out.as_mut_ptr(), self.0) }
    }
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        Self(unsafe { vaddq_f32(self.0, other.0) })
    }
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        Self(unsafe { vsubq_f32(self.0, other.0) })
    }
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        Self(unsafe { vmulq_f32(self.0, other.0) })
    }
    #[inline(always)]
    fn div(self, other: Self) -> Self {
        Self(unsafe { vdivq_f32(self.0, other.0) })
    }
    #[inline(always)]
    fn sqrt(self) -> Self {
        Self(unsafe { vsqrtq_f32(self.0) })
    }
    #[inline(always)]
    fn abs(self) -> Self {
        Self(unsafe { vabsq_f32(self.0) })
    }
    #[inline(always)]
    fn nearest_within(self, low: i32, high: i32) -> Self {
        // The low bits of the sum, but never its exponent, which is another where it is out of range.
        unsafe {
            let bits = vreinterpretq_u32_f32(vaddq_f32(self.0, vdupq_n_f32(MAGIC)));
            let low_bits = vandq_u32(bits, vdupq_n_u32(0x007f_ffff));
            let whole = vreinterpretq_f32_u32(vorrq_u32(low_bits, vdupq_n_u32(ONES)));
            let above = if low > LEAST { vmaxq_f32(whole, vdupq_n_f32(MAGIC + low as f32)) } else { whole };
            let within = vminq_f32(above, vdupq_n_f32(MAGIC + high as f32));
            Self(vsubq_f32(within, vdupq_n_f32(MAGIC)))
        }
    }
    #[inline(always)]
    fn low_byte(self) -> Self {
        unsafe {
            let byte = vandq_s32(vcvtnq_s32_f32(self.0), vdupq_n_s32(255));
            Self(vcvtq_f32_s32(byte))
        }
    }
    #[inline(always)]
    fn look_up(self, table: &[f32; TABLE]) -> Self {
        let mut lanes = [0.0f32; 4];
        self.store(&mut lanes);
        for lane in &mut lanes {
            *lane = table[*lane as usize % TABLE];
        }
        Self::load(&lanes)
    }
    #[inline(always)]
    fn gt(self, other: Self) -> uint32x4_t {
        unsafe { vcgtq_f32(self.0, other.0) }
    }
    #[inline(always)]
    fn eq(self, other: Self) -> uint32x4_t {
        unsafe { vceqq_f32(self.0, other.0) }
    }
    #[inline(always)]
    fn both(a: uint32x4_t, b: uint32x4_t) -> uint32x4_t {
        unsafe { vandq_u32(a, b) }
    }
    #[inline(always)]
    fn any(mask: uint32x4_t) -> bool {
        unsafe { vmaxvq_u32(mask) != 0 }
    }
    #[inline(always)]
    fn select(mask: uint32x4_t, yes: Self, no: Self) -> Self {
        Self(unsafe { vbslq_f32(mask, yes.0, no.0) })
    }
    #[inline(always)]
    fn transpose<const N: usize>(x: &[f32]) -> [Self; N] {
        let x = &x[..4 * N];
        let mut out = [Self::splat(0.0); N];
        for (at, out) in out.as_chunks_mut::<4>().0.iter_mut().enumerate() {
            let row = |l: usize| Self::load(&x[l * N + 4 * at..]).0;
            let (a, b, c, d) = (row(0), row(1), row(2), row(3));
            unsafe {
                let even = (vtrn1q_f32(a, b), vtrn1q_f32(c, d));
                let odd = (vtrn2q_f32(a, b), vtrn2q_f32(c, d));
                *out = [
                    Self(first_halves(even.0, even.1)),
                    Self(first_halves(odd.0, odd.1)),
                    Self(second_halves(even.0, even.1)),
                    Self(second_halves(odd.0, odd.1)),
                ];
            }
        }
        out
    }
}

#[inline(always)]
fn first_halves(a: float32x4_t, b: float32x4_t) -> float32x4_t {
    // SAFETY: as above.
    unsafe { vreinterpretq_f32_f64(vtrn1q_f64(vreinterpretq_f64_f32(a), vreinterpretq_f64_f32(b))) }
}

#[inline(always)]
fn second_halves(a: float32x4_t, b: float32x4_t) -> float32x4_t {
    // SAFETY: as above.
    unsafe { vreinterpretq_f32_f64(vtrn2q_f64(vreinterpretq_f64_f32(a), vreinterpretq_f64_f32(b))) }
}
