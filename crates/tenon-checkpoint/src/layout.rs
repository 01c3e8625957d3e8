//! Which tensor goes into which shard, and the bytes of each shard's header.
//!
//! As transformers does it: tensors in order, a new shard when the next one
//! would pass the limit, `model.safetensors` when one is enough, else
//! `model-00001-of-0000N.safetensors` and an index. Within a shard wider
//! element types come first, so that every tensor lies aligned for readers
//! that map the file.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::TensorInfo;

/// One safetensors file to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shard {
    /// File name.
    pub name: String,
    /// Length prefix and JSON, padded with spaces to a multiple of 8.
    pub header: Vec<u8>,
    /// Tensor numbers of the source in the order of their bytes, each with its offset in the file.
    pub tensors: Vec<(usize, u64)>,
    /// Size of the whole file.
    pub len: u64,
}

/// All files of a checkpoint to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardLayout {
    /// The files, in order.
    pub shards: Vec<Shard>,
    /// Bytes of all tensors, without headers: the index's `total_size`.
    pub total_size: u64,
    /// Elements of all tensors: the index's `total_parameters`.
    pub total_parameters: u64,
}

impl ShardLayout {
    /// Lays out tensors into shards whose tensor bytes do not exceed `max_shard_size`
    /// (a single larger tensor gets a shard of its own).
    pub fn new(tensors: &[TensorInfo], max_shard_size: u64) -> Self {
        let mut groups: Vec<Vec<usize>> = vec![vec![]];
        let mut size = 0u64;
        for (index, tensor) in tensors.iter().enumerate() {
            let bytes = tensor.bytes();
            let current = groups.last_mut().expect("never empty");
            if size.saturating_add(bytes) > max_shard_size && !current.is_empty() {
                groups.push(vec![index]);
                size = bytes;
            } else {
                current.push(index);
                size += bytes;
            }
        }
        let count = groups.len();
        let shards = groups
            .into_iter()
            .enumerate()
            .map(|(i, group)| {
                let name = if count == 1 {
                    "model.safetensors".into()
                } else {
                    format!("model-{:05}-of-{count:05}.safetensors", i + 1)
                };
                shard(name, group, tensors)
            })
            .collect();
        Self {
            shards,
            total_size: tensors.iter().map(TensorInfo::bytes).sum(),
            total_parameters: tensors.iter().map(TensorInfo::elements).sum(),
        }
    }

    /// Size of all files together.
    pub fn file_bytes(&self) -> u64 {
        self.shards.iter().map(|shard| shard.len).sum()
    }

    /// The text of `model.safetensors.index.json`; `None` where a single file needs none.
    pub fn index_json(&self, tensors: &[TensorInfo]) -> Option<String> {
        if self.shards.len() == 1 {
            return None;
        }
        let weight_map: BTreeMap<&str, &str> = self
            .shards
            .iter()
            .flat_map(|shard| {
                shard.tensors.iter().map(|(i, _)| (tensors[*i].name.as_str(), shard.name.as_str()))
            })
            .collect();
        let index = json!({
            "metadata": { "total_parameters": self.total_parameters, "total_size": self.total_size },
            "weight_map": weight_map,
        });
        Some(format!("{index:#}\n"))
    }
}

fn shard(name: String, mut group: Vec<usize>, tensors: &[TensorInfo]) -> Shard {
    // Stable, so that within a width the source's order (its reading order) stays.
    group.sort_by_key(|&i| std::cmp::Reverse(tensors[i].dtype.bits()));
    let mut header = Map::new();
    header.insert("__metadata__".into(), json!({ "format": "pt" }));
    let mut offset = 0;
    let mut places = Vec::with_capacity(group.len());
    for &i in &group {
        let tensor = &tensors[i];
        let end = offset + tensor.bytes();
        header.insert(
            tensor.name.clone(),
            json!({ "dtype": tensor.dtype.name(), "shape": tensor.shape, "data_offsets": [offset, end] }),
        );
        places.push((i, offset));
        offset = end;
    }
    let mut bytes = vec![0; 8];
    bytes.extend_from_slice(Value::Object(header).to_string().as_bytes());
    bytes.resize(bytes.len().next_multiple_of(8), b' ');
    let json_len = (bytes.len() - 8) as u64;
    bytes[..8].copy_from_slice(&json_len.to_le_bytes());
    let data = bytes.len() as u64;
    places.iter_mut().for_each(|(_, place)| *place += data);
    Shard { name, header: bytes, tensors: places, len: data + offset }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Dtype, Header};

    fn tensors() -> Vec<TensorInfo> {
        vec![
            TensorInfo::new("a", Dtype::U8, vec![3]),
            TensorInfo::new("b", Dtype::F32, vec![2, 2]),
            TensorInfo::new("c", Dtype::BF16, vec![100]),
            TensorInfo::new("d", Dtype::BF16, vec![]),
        ]
    }

    #[test]
    fn one_file_when_it_fits() {
        let layout = ShardLayout::new(&tensors(), 1000);
        assert_eq!(layout.shards.len(), 1);
        assert_eq!(layout.shards[0].name, "model.safetensors");
        assert_eq!(layout.index_json(&tensors()), None);
        // Wide types first: every tensor is aligned to its element.
        let order: Vec<_> = layout.shards[0].tensors.iter().map(|(i, _)| *i).collect();
        assert_eq!(order, [1, 2, 3, 0]);
        assert_eq!((layout.total_size, layout.total_parameters), (221, 108));
    }

    #[test]
    fn shards_keep_below_the_limit_and_their_headers_parse() {
        let tensors = tensors();
        let layout = ShardLayout::new(&tensors, 20);
        let names: Vec<_> = layout.shards.iter().map(|s| (s.name.as_str(), s.tensors.len())).collect();
        assert_eq!(
            names,
            [
                ("model-00001-of-00003.safetensors", 2),
                ("model-00002-of-00003.safetensors", 1),
                ("model-00003-of-00003.safetensors", 1)
            ]
        );
        for shard in &layout.shards {
            assert_eq!(shard.header.len() % 8, 0);
            let header = Header::parse(&shard.header[8..], shard.len - shard.header.len() as u64).unwrap();
            assert_eq!(header.entries.len(), shard.tensors.len());
        }
        let index: Value = serde_json::from_str(&layout.index_json(&tensors).unwrap()).unwrap();
        assert_eq!(index["weight_map"]["c"], "model-00002-of-00003.safetensors");
        assert_eq!(index["metadata"]["total_size"], 221);
    }
}
