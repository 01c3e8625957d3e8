//! Where everything lies in a GGUF file to be written.

use tenon_checkpoint::{Shard, ShardLayout};

use crate::value::write_text;
use crate::{GgmlType, Metadata};

/// Alignment of tensors where `general.alignment` does not say otherwise.
pub const ALIGNMENT: u64 = 32;

/// Name, type and shape of a tensor in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GgufTensor {
    /// Name.
    pub name: String,
    /// Element type.
    pub ggml_type: GgmlType,
    /// Extent of each dimension, outermost first (a file has them the other way round).
    pub shape: Vec<u64>,
}

impl GgufTensor {
    /// What it is, as JSON.
    pub fn to_json(&self) -> serde_json::Value {
        let (name, ggml_type) = (&self.name, self.ggml_type.name());
        serde_json::json!({ "name": name, "type": ggml_type, "shape": self.shape, "bytes": self.bytes() })
    }

    /// Elements of a row.
    pub fn row_len(&self) -> u64 {
        self.shape.last().copied().unwrap_or(1)
    }

    /// Elements.
    pub fn elements(&self) -> u64 {
        self.shape.iter().product()
    }

    /// Bytes.
    pub fn bytes(&self) -> u64 {
        self.ggml_type.row_bytes(self.elements())
    }

    /// Bytes up to the next tensor.
    pub fn padding(&self) -> u64 {
        self.bytes().next_multiple_of(ALIGNMENT) - self.bytes()
    }
}

/// Everything before the first tensor's bytes, and the file's size.
pub fn header(metadata: &Metadata, tensors: &[GgufTensor]) -> (Vec<u8>, u64) {
    let mut out = b"GGUF".to_vec();
    out.extend(3u32.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((metadata.len() as u64).to_le_bytes());
    metadata.write(&mut out);
    let mut offset = 0;
    for tensor in tensors {
        write_text(&tensor.name, &mut out);
        out.extend((tensor.shape.len() as u32).to_le_bytes());
        tensor.shape.iter().rev().for_each(|extent| out.extend(extent.to_le_bytes()));
        out.extend(tensor.ggml_type.id().to_le_bytes());
        out.extend(u64::to_le_bytes(offset));
        offset += tensor.bytes() + tensor.padding();
    }
    out.resize(out.len().next_multiple_of(ALIGNMENT as usize), 0);
    let len = out.len() as u64 + offset;
    (out, len)
}

/// The file as [`tenon_checkpoint::write_shards`] writes it: of a source that has the tensors, and
/// after each one that needs it another with its padding.
pub(crate) fn file(name: &str, header: Vec<u8>, tensors: &[GgufTensor]) -> ShardLayout {
    let mut at = header.len() as u64;
    let mut places = vec![];
    let mut number = 0;
    let mut elements = 0;
    for tensor in tensors {
        elements += tensor.elements();
        for bytes in [tensor.bytes(), tensor.padding()] {
            // Padding of no bytes has a place too, so that numbers stay simple.
            places.push((number, at));
            number += 1;
            at += bytes;
        }
    }
    let total_size = at - header.len() as u64;
    let shard = Shard { name: name.to_string(), header, tensors: places, len: at };
    ShardLayout { shards: vec![shard], total_size, total_parameters: elements }
}
