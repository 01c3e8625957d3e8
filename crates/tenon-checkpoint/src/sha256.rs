//! SHA-256, one stream or two at once.
//!
//! The SHA instructions of a CPU wait for their own results: one stream keeps
//! them busy half of the time. A merge has two streams anyway, the file it
//! reads and the file it writes, so hashing them interleaved costs little more
//! than hashing one. Single streams, and CPUs without these instructions, use
//! the `sha2` crate's compression; the two-stream kernel must agree with it
//! (tested below). Padding: FIPS 180-4, 5.1.1.

use sha2::block_api::compress256;

use crate::Digest;

type Block = [u8; 64];

const INITIAL: [u32; 8] =
    [0x6a09_e667, 0xbb67_ae85, 0x3c6e_f372, 0xa54f_f53a, 0x510e_527f, 0x9b05_688c, 0x1f83_d9ab, 0x5be0_cd19];

/// A running SHA-256.
#[derive(Debug, Clone)]
pub struct Sha256 {
    state: [u32; 8],
    len: u64,
    /// Bytes that do not fill a block yet: the first `len % 64` of it.
    rest: Block,
}

impl Default for Sha256 {
    fn default() -> Self {
        Self { state: INITIAL, len: 0, rest: [0; 64] }
    }
}

impl Sha256 {
    /// The hash of nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes in the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        let bytes = self.fill(bytes);
        let (blocks, rest) = bytes.as_chunks::<64>();
        compress256(&mut self.state, blocks);
        self.keep(blocks.len(), rest);
    }

    /// Takes in the next bytes of two streams, interleaved where both have some.
    pub fn update_pair(a: &mut Self, a_bytes: &[u8], b: &mut Self, b_bytes: &[u8]) {
        let (a_blocks, a_rest) = a.fill(a_bytes).as_chunks::<64>();
        let (b_blocks, b_rest) = b.fill(b_bytes).as_chunks::<64>();
        let both = a_blocks.len().min(b_blocks.len());
        compress_pair(&mut a.state, &a_blocks[..both], &mut b.state, &b_blocks[..both]);
        compress256(&mut a.state, &a_blocks[both..]);
        compress256(&mut b.state, &b_blocks[both..]);
        a.keep(a_blocks.len(), a_rest);
        b.keep(b_blocks.len(), b_rest);
    }

    /// The digest of all bytes taken in.
    pub fn finish(mut self) -> Digest {
        crate::fault::hashed(self.len);
        let bits = self.len.wrapping_mul(8).to_be_bytes();
        let used = (self.len % 64) as usize;
        // A one bit, zeros up to 8 bytes before a block's end, the length in bits.
        let mut padding = [0; 128];
        padding[0] = 0x80;
        let zeros_to = if used < 56 { 56 - used } else { 120 - used };
        padding[zeros_to..zeros_to + 8].copy_from_slice(&bits);
        self.update(&padding[..zeros_to + 8]);
        let mut digest = [0; 32];
        for (bytes, word) in digest.as_chunks_mut::<4>().0.iter_mut().zip(self.state) {
            *bytes = word.to_be_bytes();
        }
        Digest::from_bytes(digest)
    }

    /// Completes the block begun earlier, if there is one; gives back the bytes left after that.
    fn fill<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let used = (self.len % 64) as usize;
        if used == 0 {
            return bytes;
        }
        let (now, later) = bytes.split_at(bytes.len().min(64 - used));
        self.rest[used..used + now.len()].copy_from_slice(now);
        self.len += now.len() as u64;
        if self.len.is_multiple_of(64) {
            compress256(&mut self.state, &[self.rest]);
        }
        later
    }

    /// Counts blocks compressed and keeps what did not fill one.
    fn keep(&mut self, blocks: usize, rest: &[u8]) {
        self.len += blocks as u64 * 64;
        if !rest.is_empty() {
            self.rest[..rest.len()].copy_from_slice(rest);
            self.len += rest.len() as u64;
        }
    }
}

fn compress_pair(a: &mut [u32; 8], a_blocks: &[Block], b: &mut [u32; 8], b_blocks: &[Block]) {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("sha") && is_x86_feature_detected!("avx") {
        // SAFETY: the CPU was just seen to have what the function is compiled for.
        unsafe { x86::compress_pair([a, b], [a_blocks, b_blocks]) };
        return;
    }
    compress256(a, a_blocks);
    compress256(b, b_blocks);
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::Block;

    /// The round constants, FIPS 180-4, 4.2.2, four rounds a row.
    static K: [[u32; 4]; 16] = [
        [0x428a_2f98, 0x7137_4491, 0xb5c0_fbcf, 0xe9b5_dba5],
        [0x3956_c25b, 0x59f1_11f1, 0x923f_82a4, 0xab1c_5ed5],
        [0xd807_aa98, 0x1283_5b01, 0x2431_85be, 0x550c_7dc3],
        [0x72be_5d74, 0x80de_b1fe, 0x9bdc_06a7, 0xc19b_f174],
        [0xe49b_69c1, 0xefbe_4786, 0x0fc1_9dc6, 0x240c_a1cc],
        [0x2de9_2c6f, 0x4a74_84aa, 0x5cb0_a9dc, 0x76f9_88da],
        [0x983e_5152, 0xa831_c66d, 0xb003_27c8, 0xbf59_7fc7],
        [0xc6e0_0bf3, 0xd5a7_9147, 0x06ca_6351, 0x1429_2967],
        [0x27b7_0a85, 0x2e1b_2138, 0x4d2c_6dfc, 0x5338_0d13],
        [0x650a_7354, 0x766a_0abb, 0x81c2_c92e, 0x9272_2c85],
        [0xa2bf_e8a1, 0xa81a_664b, 0xc24b_8b70, 0xc76c_51a3],
        [0xd192_e819, 0xd699_0624, 0xf40e_3585, 0x106a_a070],
        [0x19a4_c116, 0x1e37_6c08, 0x2748_774c, 0x34b0_bcb5],
        [0x391c_0cb3, 0x4ed8_aa4a, 0x5b9c_ca4f, 0x682e_6ff3],
        [0x748f_82ee, 0x78a5_636f, 0x84c8_7814, 0x8cc7_0208],
        [0x90be_fffa, 0xa450_6ceb, 0xbef9_a3f7, 0xc671_78f2],
    ];

    #[inline]
    #[target_feature(enable = "avx")]
    fn load(words: &[u32; 4]) -> __m128i {
        // SAFETY: an unaligned load of the 16 bytes that the reference covers.
        unsafe { _mm_loadu_si128(words.as_ptr().cast()) }
    }

    #[inline]
    #[target_feature(enable = "avx")]
    fn store(words: &mut [u32; 4], value: __m128i) {
        // SAFETY: an unaligned store to the 16 bytes that the reference covers.
        unsafe { _mm_storeu_si128(words.as_mut_ptr().cast(), value) }
    }

    /// Compresses block by block, the two streams' instructions side by side.
    ///
    /// The state is held as the instructions want it, ABEF and CDGH.
    #[target_feature(enable = "sha,avx")]
    pub(super) fn compress_pair(states: [&mut [u32; 8]; 2], blocks: [&[Block]; 2]) {
        let big_endian = _mm_set_epi64x(0x0c0d_0e0f_0809_0a0b, 0x0405_0607_0001_0203);
        let mut abef = [_mm_setzero_si128(); 2];
        let mut cdgh = abef;
        for lane in 0..2 {
            let (halves, _) = states[lane].as_chunks::<4>();
            let cdab = _mm_shuffle_epi32::<0xb1>(load(&halves[0]));
            let efgh = _mm_shuffle_epi32::<0x1b>(load(&halves[1]));
            abef[lane] = _mm_alignr_epi8::<8>(cdab, efgh);
            cdgh[lane] = _mm_blend_epi16::<0xf0>(efgh, cdab);
        }
        for pair in blocks[0].iter().zip(blocks[1]) {
            let pair = [pair.0, pair.1];
            let (abef_before, cdgh_before) = (abef, cdgh);
            // The last 16 words of the message schedule, four to a register.
            let mut words = [[_mm_setzero_si128(); 4]; 2];
            for (group, k) in K.iter().enumerate() {
                let k = load(k);
                for lane in 0..2 {
                    let words = &mut words[lane];
                    let now = group % 4;
                    if group < 4 {
                        // SAFETY: `group` is below 4, so the 16 bytes lie within the block of 64.
                        let bytes =
                            unsafe { _mm_loadu_si128(pair[lane].as_ptr().cast::<__m128i>().add(group)) };
                        words[now] = _mm_shuffle_epi8(bytes, big_endian);
                    } else {
                        let (w16, w12, w8, w4) =
                            (words[now], words[(now + 1) % 4], words[(now + 2) % 4], words[(now + 3) % 4]);
                        let sum = _mm_add_epi32(_mm_sha256msg1_epu32(w16, w12), _mm_alignr_epi8::<4>(w4, w8));
                        words[now] = _mm_sha256msg2_epu32(sum, w4);
                    }
                    let input = _mm_add_epi32(words[now], k);
                    cdgh[lane] = _mm_sha256rnds2_epu32(cdgh[lane], abef[lane], input);
                    abef[lane] =
                        _mm_sha256rnds2_epu32(abef[lane], cdgh[lane], _mm_shuffle_epi32::<0x0e>(input));
                }
            }
            for lane in 0..2 {
                abef[lane] = _mm_add_epi32(abef[lane], abef_before[lane]);
                cdgh[lane] = _mm_add_epi32(cdgh[lane], cdgh_before[lane]);
            }
        }
        for (lane, state) in states.into_iter().enumerate() {
            let feba = _mm_shuffle_epi32::<0x1b>(abef[lane]);
            let dchg = _mm_shuffle_epi32::<0xb1>(cdgh[lane]);
            let (halves, _) = state.as_chunks_mut::<4>();
            store(&mut halves[0], _mm_blend_epi16::<0xf0>(feba, dchg));
            store(&mut halves[1], _mm_alignr_epi8::<8>(dchg, feba));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use sha2::Digest as _;

    fn reference(bytes: &[u8]) -> [u8; 32] {
        sha2::Sha256::digest(bytes).into()
    }

    #[test]
    fn every_length_around_a_block() {
        let bytes: Vec<u8> = (0..300u32).map(|i| (i * 7 + 1) as u8).collect();
        for len in 0..bytes.len() {
            let mut hasher = Sha256::new();
            hasher.update(&bytes[..len]);
            assert_eq!(*hasher.finish().as_bytes(), reference(&bytes[..len]), "{len}");
        }
    }

    proptest! {
        #[test]
        fn two_streams_in_any_pieces(
            a in proptest::collection::vec(any::<u8>(), 0..2000),
            b in proptest::collection::vec(any::<u8>(), 0..2000),
            cuts in proptest::collection::vec((0usize..700, 0usize..700), 0..6),
        ) {
            let (mut x, mut y) = (Sha256::new(), Sha256::new());
            let (mut a_left, mut b_left) = (&a[..], &b[..]);
            for (i, j) in cuts {
                let (a_now, b_now) = (i.min(a_left.len()), j.min(b_left.len()));
                Sha256::update_pair(&mut x, &a_left[..a_now], &mut y, &b_left[..b_now]);
                (a_left, b_left) = (&a_left[a_now..], &b_left[b_now..]);
            }
            Sha256::update_pair(&mut x, a_left, &mut y, b_left);
            prop_assert_eq!(*x.finish().as_bytes(), reference(&a));
            prop_assert_eq!(*y.finish().as_bytes(), reference(&b));
        }
    }
}
