//! Small fixed vectors of `f32`, one block a lane.

/// One number of each lane.
pub(super) type Lanes<const L: usize> = [f32; L];

/// A number made for each lane.
#[inline(always)]
pub(super) fn each<const L: usize>(f: impl Fn(usize) -> f32) -> Lanes<L> {
    std::array::from_fn(f)
}

/// Adding this to a number of at most 22 bits leaves its nearest integer in the low bits.
const MAGIC: f32 = 12_582_912.0;

/// The nearest integer, ties to even; the reference's bit trick, so that it is the same where it
/// is out of range too.
#[inline(always)]
pub(super) fn nearest(x: f32) -> i32 {
    ((x + MAGIC).to_bits() as i32 & 0x007f_ffff) - 0x0040_0000
}

/// Element `i` of `L` consecutive blocks of `N` at `[i][lane]`.
#[inline(always)]
pub(super) fn transpose<const N: usize, const L: usize>(x: &[f32]) -> [Lanes<L>; N] {
    let mut out = [[0.0; L]; N];
    for (lane, block) in x.chunks_exact(N).enumerate().take(L) {
        for (i, value) in block.iter().enumerate() {
            out[i][lane] = *value;
        }
    }
    out
}
