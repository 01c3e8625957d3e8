//! The formats, one file each.
//!
//! A format's `find` is asked for every tensor whether a packed weight begins
//! with it, and gives a [`Packed`] that can read rows of it. What it gives is
//! checked: every tensor it will read is there, of the type and shape that
//! reading relies on.

pub(crate) mod awq;
pub(crate) mod bitsandbytes;
pub(crate) mod compressed;
pub(crate) mod fp8;
pub(crate) mod gptq;
pub(crate) mod mlx;
pub(crate) mod mxfp4;

use std::fmt;
use std::ops::Range;

use crate::Error;
use crate::reader::Reader;

/// A weight in packed tensors.
pub(crate) trait Packed: Send + Sync + fmt::Debug {
    /// Fills `out` with the values of whole rows.
    fn read(&self, reader: &Reader, rows: Range<u64>, out: &mut [f32]) -> Result<(), Error>;
}

/// A packed weight that was found.
#[derive(Debug)]
pub(crate) struct Found {
    /// Name of the weight.
    pub(crate) name: String,
    /// Its shape.
    pub(crate) shape: Vec<u64>,
    /// The format, for people.
    pub(crate) label: String,
    /// The packed tensors that make it, which the model does not have.
    pub(crate) parts: Vec<usize>,
    pub(crate) packed: Box<dyn Packed>,
}

/// `groups of 128`, or `one group` where it spans the row.
fn groups(size: u64, columns: u64) -> String {
    if size >= columns { "one group a row".into() } else { format!("groups of {size}") }
}
