//! Checkpoints that are stored quantized, read as floats.
//!
//! [`open`] looks at a checkpoint's headers and configuration. Where weights
//! are packed, it gives a [`Dequantized`]: a [`TensorSource`] whose tensors
//! have the names, shapes and values of the unpacked model. Rows are
//! dequantized as they are read; nothing is held but a few bands of packed
//! bytes.
//!
//! Values are the format's own formula, evaluated in `f32` in the order of its
//! reference library; `docs/quantized-bases.md` has each with its source. One
//! format is one file under `format/`.
//!
//! [`TensorSource`]: tenon_checkpoint::TensorSource

mod error;
mod float8;
mod format;
mod grid;
mod open;
mod reader;
mod scheme;
mod source;
mod unpack;

pub use error::Error;
pub use open::{Opened, open};
pub use source::{Dequantized, DequantizedFormat};
