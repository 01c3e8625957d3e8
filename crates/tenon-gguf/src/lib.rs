//! GGUF: reading, writing, converting from Hugging Face models, quantizing, with llama.cpp's bytes.
//!
//! * [`GgufFile`] is a file, its header believed only after everything in it was checked.
//! * [`Conversion`] is a model on its way into a file: any [`TensorSource`](tenon_checkpoint::TensorSource)
//!   with its `config.json` and tokenizer, under GGUF's names, in GGUF's
//!   shapes, and quantized where that is asked for. It is planned from headers
//!   alone and is a `TensorSource` itself, so that it is written tile by tile.
//! * [`Provenance`] is the way back: which rows of a model become which tensor of its file.
//! * [`quant`] has the kernels.
//! * [`Importance`] is what an importance matrix says about the columns of tensors.
//!
//! The standard is llama.cpp build 10488: `convert_hf_to_gguf.py` and
//! `llama-quantize` of it make the same bytes. Nothing here knows what an
//! adapter is; a merge plan is a source like any other.

mod convert;
mod error;
mod imatrix;
mod layout;
pub mod quant;
mod reader;
mod select;
mod tensor_types;
mod types;
mod value;

pub use convert::{
    Conversion, ConversionOptions, FileContent, FileType, ModelFiles, ModelInput, Origins, Provenance,
};
pub use error::{Error, Fault};
pub use imatrix::{Columns, Importance, ImportanceFault};
pub use layout::{ALIGNMENT, GgufTensor, header};
pub use reader::GgufFile;
pub use select::Quantization;
pub use tensor_types::{Rules, TensorType};
pub use types::GgmlType;
pub use value::{Metadata, Value};
