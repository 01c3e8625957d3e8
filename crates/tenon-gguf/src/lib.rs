//! GGUF.
pub mod quant;
mod types;
pub use types::GgmlType;
