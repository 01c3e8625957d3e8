//! The one idea of Tenon: everything that has tensors is a [`TensorSource`].
//!
//! A checkpoint on disk is one; a merge plan is one too, evaluated lazily,
//! tile by tile. Writers take any source, so conversions compose with nothing
//! in between on disk and nothing larger than a tile in memory.

use std::fs::File;
use std::ops::Range;

use crate::{Dtype, Error};

/// Name, element type and shape of one tensor, and how it may be cut into rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Full name, such as `model.layers.0.self_attn.q_proj.weight`.
    pub name: String,
    /// Element type of the bytes that [`TensorSource::read_rows`] yields.
    pub dtype: Dtype,
    /// Extent of each dimension, outermost first. Empty for a scalar.
    pub shape: Vec<u64>,
    /// Rows can only be read in multiples of this many (the last read of a tensor ends with it).
    /// 1 for nearly all tensors; an edit that needs a whole output channel of a
    /// convolution at once asks for more.
    pub row_block: u64,
    /// What to store it as where nobody asks for a type, if that is narrower than `dtype`: values
    /// that were dequantized are computed in `F32`, which is more than they are worth.
    pub narrow: Option<Dtype>,
}

impl TensorInfo {
    /// A tensor that may be cut between any two rows.
    ///
    /// The product of `shape` and dtype size must fit in 64 bits; whoever reads
    /// a shape from a file checks that first.
    pub fn new(name: impl Into<String>, dtype: Dtype, shape: Vec<u64>) -> Self {
        Self { name: name.into(), dtype, shape, row_block: 1, narrow: None }
    }

    /// Number of elements.
    pub fn elements(&self) -> u64 {
        self.shape.iter().product()
    }

    /// Number of bytes.
    pub fn bytes(&self) -> u64 {
        self.rows() * self.row_bytes()
    }

    /// Elements in one row: the innermost extent, or 1 for vectors and scalars
    /// (so that a long vector can be cut too).
    pub fn row_len(&self) -> u64 {
        if self.shape.len() >= 2 { self.shape[self.shape.len() - 1] } else { 1 }
    }

    /// Bytes in one row. Types packed below a byte are rows of single bytes.
    pub fn row_bytes(&self) -> u64 {
        if self.dtype.bits() < 8 { 1 } else { self.row_len() * self.dtype.bits() / 8 }
    }

    /// Number of rows: the product of all extents but the innermost; all elements for a vector.
    pub fn rows(&self) -> u64 {
        if self.dtype.bits() < 8 {
            self.elements() * self.dtype.bits() / 8
        } else if self.shape.len() >= 2 {
            self.shape[..self.shape.len() - 1].iter().product()
        } else {
            self.elements()
        }
    }
}

/// A run of rows of one tensor.
pub type Rows = Range<u64>;

/// Bytes of a file that hold a tensor exactly as the source would yield it.
#[derive(Debug)]
pub struct FileRange<'a> {
    /// The open file.
    pub file: &'a File,
    /// Where the tensor starts in it.
    pub offset: u64,
    /// How many bytes it has.
    pub len: u64,
}

/// Anything that has tensors.
///
/// Guarantees that writers rely on: [`tensors`](Self::tensors) never changes;
/// `read_rows` yields the same bytes for the same rows however they are cut
/// and from whatever thread; it may be called from many threads at once.
pub trait TensorSource: Send + Sync {
    /// All tensors, in the order in which reading them is cheapest.
    fn tensors(&self) -> &[TensorInfo];

    /// Fills `out` with the bytes of `rows` of tensor number `tensor`, little endian, row-major.
    ///
    /// `out` has exactly `rows.len() * row_bytes` bytes, and `rows` begins at a
    /// multiple of `row_block` and ends at one or at the end.
    fn read_rows(&self, tensor: usize, rows: Rows, out: &mut [u8]) -> Result<(), Error>;

    /// Where the tensor's bytes lie in a file unchanged, if they do.
    fn lies_at(&self, tensor: usize) -> Option<FileRange<'_>> {
        let _ = tensor;
        None
    }
}

impl<S: TensorSource + ?Sized> TensorSource for &S {
    fn tensors(&self) -> &[TensorInfo] {
        (**self).tensors()
    }
    fn read_rows(&self, tensor: usize, rows: Rows, out: &mut [u8]) -> Result<(), Error> {
        (**self).read_rows(tensor, rows, out)
    }
    fn lies_at(&self, tensor: usize) -> Option<FileRange<'_>> {
        (**self).lies_at(tensor)
    }
}
