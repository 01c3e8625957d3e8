//! A quantized checkpoint as the model it stands for.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

use serde_json::Value;
use tenon_checkpoint::{Checkpoint, Error as SourceError, FileRange, Rows, TensorInfo, TensorSource};

use crate::format::Packed;
use crate::reader::Reader;

/// A checkpoint whose packed tensors are dequantized as they are read.
///
/// Dequantized tensors are of `F32` and ask to be stored as `BF16`
/// ([`TensorInfo::narrow`]); so do those that the checkpoint stores as `F16`
/// (or as `F32`, if that is the model's type), that the model be of one type.
/// All others are as they lie.
#[derive(Debug)]
pub struct Dequantized {
    pub(crate) reader: Reader,
    pub(crate) infos: Vec<TensorInfo>,
    pub(crate) weights: Vec<Weight>,
    pub(crate) by_name: HashMap<String, usize>,
    pub(crate) formats: Vec<DequantizedFormat>,
    pub(crate) config: Value,
}

/// Tensors of one format.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DequantizedFormat {
    /// What it is, such as `GPTQ, 4 bit, groups of 128`.
    pub name: String,
    /// How many there are.
    pub tensors: usize,
}

/// Where a tensor's values come from.
#[derive(Debug)]
pub(crate) enum Weight {
    /// Tensor of the checkpoint.
    Stored(usize),
    /// Packed tensors, the number of their format, and the first of them in the checkpoint.
    Packed(Box<dyn Packed>, usize, usize),
}

thread_local! {
    /// Kept from tile to tile.
    static VALUES: RefCell<Vec<f32>> = RefCell::default();
}

impl Dequantized {
    /// The packed checkpoint.
    pub fn checkpoint(&self) -> &Checkpoint {
        self.reader.base()
    }

    /// `config.json` of the model it stands for: without `quantization_config`, of `bfloat16`.
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// The formats that were found.
    pub fn formats(&self) -> &[DequantizedFormat] {
        &self.formats
    }

    /// Number of the tensor with this name.
    pub fn find(&self, name: &str) -> Option<usize> {
        self.by_name.get(name).copied()
    }

    /// The format that a tensor is stored in, unless it is stored as it is.
    pub fn format(&self, tensor: usize) -> Option<&str> {
        match &self.weights[tensor] {
            Weight::Stored(_) => None,
            Weight::Packed(_, format, _) => Some(&self.formats[*format].name),
        }
    }

    /// Number of the checkpoint's tensor that a tensor is, or that its packed ones begin with: the one
    /// that stands for it in the order of the files.
    pub fn stored_at(&self, tensor: usize) -> usize {
        match &self.weights[tensor] {
            Weight::Stored(stored) => *stored,
            Weight::Packed(_, _, first) => *first,
        }
    }
}

impl TensorSource for Dequantized {
    fn tensors(&self) -> &[TensorInfo] {
        &self.infos
    }

    fn read_rows(&self, tensor: usize, rows: Rows, out: &mut [u8]) -> Result<(), SourceError> {
        match &self.weights[tensor] {
            Weight::Stored(stored) => self.reader.base().read_rows(*stored, rows, out),
            Weight::Packed(packed, ..) => {
                let mut values = VALUES.take();
                values.resize(out.len() / 4, 0.0);
                let result = packed.read(&self.reader, rows, &mut values);
                for (out, value) in out.as_chunks_mut::<4>().0.iter_mut().zip(&values) {
                    *out = value.to_le_bytes();
                }
                VALUES.replace(values);
                Ok(result?)
            }
        }
    }

    fn lies_at(&self, tensor: usize) -> Option<FileRange<'_>> {
        match &self.weights[tensor] {
            Weight::Stored(stored) => self.reader.base().lies_at(*stored),
            Weight::Packed(..) => None,
        }
    }
}

impl Dequantized {
    pub(crate) fn new(base: Arc<Checkpoint>, config: Value) -> Self {
        Self {
            reader: Reader::new(base),
            infos: vec![],
            weights: vec![],
            by_name: HashMap::new(),
            formats: vec![],
            config,
        }
    }
}
