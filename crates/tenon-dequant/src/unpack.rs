//! Whole numbers of a few bits, packed without gaps from the low end up.
//!
//! Packers put them into 32-bit words; stored little endian, such words are
//! one stream of bits, and element `i` begins at bit `i * bits` of it.

/// The 32 numbers of `4 * bits` bytes.
#[inline(always)]
pub(crate) fn unpack32(bits: u32, bytes: &[u8]) -> [u8; 32] {
    match bits {
        2 => fields::<2>(bytes),
        3 => fields::<3>(bytes),
        4 => fields::<4>(bytes),
        5 => fields::<5>(bytes),
        6 => fields::<6>(bytes),
        8 => fields::<8>(bytes),
        1 => fields::<1>(bytes),
        _ => fields::<7>(bytes),
    }
}

#[inline(always)]
fn fields<const BITS: usize>(bytes: &[u8]) -> [u8; 32] {
    let bytes = &bytes[..4 * BITS];
    let mask = ((1u16 << BITS) - 1) as u8;
    std::array::from_fn(|i| {
        let (byte, shift) = (i * BITS / 8, i * BITS % 8);
        if shift + BITS <= 8 {
            bytes[byte] >> shift & mask
        } else {
            (u16::from_le_bytes([bytes[byte], bytes[byte + 1]]) >> shift) as u8 & mask
        }
    })
}

/// The number that begins at bit `at` of a stream of any length.
pub(crate) fn field(bits: u32, bytes: &[u8], at: usize) -> u8 {
    let (byte, shift) = (at / 8, at % 8);
    let high = bytes.get(byte + 1).copied().unwrap_or(0);
    (u16::from_le_bytes([bytes[byte], high]) >> shift) as u8 & ((1u16 << bits) - 1) as u8
}

/// The first numbers of a stream; `bytes` has them all.
pub(crate) fn unpack(bits: u32, bytes: &[u8], out: &mut [u8]) {
    let step = 4 * bits as usize;
    let whole = out.len() / 32;
    for (block, out) in out.chunks_exact_mut(32).enumerate() {
        out.copy_from_slice(&unpack32(bits, &bytes[block * step..]));
    }
    for (i, out) in out.iter_mut().enumerate().skip(whole * 32) {
        *out = field(bits, bytes, i * bits as usize);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_packed_comes_out() {
        for bits in 1..=8u32 {
            let values: Vec<u8> = (0..77u32)
                .map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8 & ((1u16 << bits) - 1) as u8)
                .collect();
            let mut bytes = vec![0u8; (values.len() * bits as usize).div_ceil(32) * 4];
            for (i, value) in values.iter().enumerate() {
                for bit in 0..bits as usize {
                    let at = i * bits as usize + bit;
                    bytes[at / 8] |= (value >> bit & 1) << (at % 8);
                }
            }
            let mut out = vec![0; values.len()];
            unpack(bits, &bytes, &mut out);
            assert_eq!(out, values, "{bits} bits");
        }
    }
}
