//! Hugging Face checkpoints: safetensors headers and shards, read as a
//! [`TensorSource`] and written from one.

mod dtype;
mod error;
mod source;

pub use dtype::{Dtype, UnknownDtype};
pub use error::Error;
pub use source::{FileRange, Rows, TensorInfo, TensorSource};
