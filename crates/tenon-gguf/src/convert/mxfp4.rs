//! Experts that are stored as MXFP4, put into ggml's blocks of it: the same codes in another order.
//!
//! gpt-oss stores 32 codes of 4 bits as 16 bytes, neighbours in a byte, the
//! first in the low half, and their exponents in a tensor of their own. ggml's
//! block is the exponent, then 16 bytes: byte `j` holds code `j` in the low half
//! and code `j + 16` in the high one. (llama.cpp, `conversion/gpt_oss.py`,
//! `transform_nibble_layout`; `ggml-common.h`, `block_mxfp4`.)

use tenon_checkpoint::Error as CheckpointError;

use super::read::Reader;
use super::view::Tensor;
use crate::Error;
use crate::GgmlType;

/// Codes of a block.
const CODES: u64 = GgmlType::MXFP4.block_len();

/// A tensor in codes and exponents, rows of blocks.
#[derive(Debug, Clone)]
pub(crate) struct Packed {
    /// `[.., out, in / 32, 16]`
    codes: Tensor,
    /// `[.., out, in / 32]`
    exponents: Tensor,
}

impl Packed {
    pub(crate) fn new(codes: Tensor, exponents: Tensor) -> Result<Self, Error> {
        let (found, expected) = (codes.shape(), exponents.shape());
        match &found[..] {
            [outer @ .., 16] if outer == expected && outer.len() >= 2 => Ok(Self { codes, exponents }),
            _ => Err(Error::Tensor {
                tensor: String::new(),
                reason: format!(
                    "shape {found:?} of MXFP4 codes with exponents of {expected:?}; expected [.., out, in / 32, 16] and [.., out, in / 32]"
                ),
            }),
        }
    }

    /// Extents of the numbers that it stands for, outermost first.
    pub(crate) fn shape(&self) -> Vec<u64> {
        let mut shape = self.exponents.shape();
        if let Some(last) = shape.last_mut() {
            *last *= CODES;
        }
        shape
    }

    /// Fills `out` with the blocks of elements from number `start` on, which begins a block.
    pub(super) fn read(&self, reader: &Reader, start: u64, out: &mut [u8]) -> Result<(), CheckpointError> {
        let block_bytes = GgmlType::MXFP4.block_bytes() as usize;
        let (first, blocks) = (start / CODES, out.len() / block_bytes);
        // Bytes come as numbers, which hold them exactly.
        let mut codes = vec![0.0; blocks * 16];
        let mut exponents = vec![0.0; blocks];
        reader.read(&self.codes, first * 16, &mut codes)?;
        reader.read(&self.exponents, first, &mut exponents)?;
        for ((block, codes), exponent) in
            out.chunks_exact_mut(block_bytes).zip(codes.as_chunks::<16>().0).zip(exponents)
        {
            block[0] = exponent as u8;
            repack(&codes.map(|byte| byte as u8), &mut block[1..]);
        }
        Ok(())
    }
}

/// Neighbours in a byte to halves of the block in a byte.
fn repack(pairs: &[u8; 16], out: &mut [u8]) {
    let code = |n: usize| pairs[n / 2] >> (n % 2 * 4) & 15;
    for (j, out) in out.iter_mut().enumerate() {
        *out = code(j) | code(j + 16) << 4;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_that_were_neighbours_lie_half_a_block_apart() {
        let pairs = std::array::from_fn(|n| ((2 * n + 1) % 16 * 16 + 2 * n % 16) as u8);
        let mut out = [0; 16];
        repack(&pairs, &mut out);
        assert_eq!(out, std::array::from_fn(|j| (j * 16 + j) as u8));
    }

    #[test]
    fn codes_and_exponents_have_to_fit() {
        let tensor = |shape: &[u64]| Tensor::of(0, shape);
        let packed = Packed::new(tensor(&[2, 6, 3, 16]), tensor(&[2, 6, 3])).unwrap();
        assert_eq!(packed.shape(), [2, 6, 96]);
        for (codes, exponents) in
            [(&[2, 6, 3, 16][..], &[2, 6, 4][..]), (&[2, 6, 3, 8], &[2, 6, 3]), (&[16], &[])]
        {
            assert!(Packed::new(tensor(codes), tensor(exponents)).is_err());
        }
    }
}
