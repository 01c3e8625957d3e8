//! Reading a GGUF file's header: hostile until every length and offset in it was checked.

use std::collections::HashSet;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use tenon_checkpoint::Error as CheckpointError;

use crate::error::Fault;
use crate::layout::{ALIGNMENT, GgufTensor};
use crate::{Error, GgmlType, Metadata, Value};

/// A GGUF file with its checked header.
#[derive(Debug)]
pub struct GgufFile {
    path: PathBuf,
    file: File,
    /// Version of the format.
    pub version: u32,
    /// Metadata.
    pub metadata: Metadata,
    /// Tensors, in the order of the header.
    pub tensors: Vec<GgufTensor>,
    /// Where each tensor's bytes begin in the file.
    offsets: Vec<u64>,
    len: u64,
}

/// Largest header read: a vocabulary of a few million tokens fits many times.
const MAX_HEADER: u64 = 1 << 30;
/// Most keys, tensors, and elements of an array.
const MAX_COUNT: u64 = 1 << 24;
/// Longest text.
const MAX_TEXT: u64 = 1 << 26;

impl GgufFile {
    /// Opens a file and checks its header. No tensor byte is read.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let file = File::open(path).map_err(CheckpointError::io("open", path))?;
        let len = file.metadata().map_err(CheckpointError::io("examine", path))?.len();
        let reader = std::io::BufReader::with_capacity(1 << 20, file.take(MAX_HEADER));
        let mut cursor = Cursor { reader, at: 0, len };
        let parsed = cursor.header().map_err(|fault| Error::File { path: path.into(), fault })?;
        let Header { version, metadata, tensors, offsets } = parsed;
        let file = File::open(path).map_err(CheckpointError::io("open", path))?;
        Ok(Self { path: path.into(), file, version, metadata, tensors, offsets, len })
    }

    /// What its header says, as JSON: of each array of the keys at most `most` elements.
    pub fn to_json(&self, most: usize) -> serde_json::Value {
        serde_json::json!({
            "version": self.version,
            "bytes": self.len,
            "metadata": self.metadata.to_json(most),
            "tensors": self.tensors.iter().map(GgufTensor::to_json).collect::<Vec<_>>(),
        })
    }

    /// Its size.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether it has no tensor.
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// Reads bytes of tensor number `tensor`, starting `offset` bytes into it.
    ///
    /// # Panics
    ///
    /// Where the tensor has no such bytes.
    pub fn read_at(&self, tensor: usize, offset: u64, out: &mut [u8]) -> Result<(), Error> {
        assert!(offset + out.len() as u64 <= self.tensors[tensor].bytes(), "read past the tensor's end");
        let read = self.file.read_exact_at(out, self.offsets[tensor] + offset);
        Ok(read.map_err(CheckpointError::io("read", &self.path))?)
    }
}

struct Header {
    version: u32,
    metadata: Metadata,
    tensors: Vec<GgufTensor>,
    offsets: Vec<u64>,
}

struct Cursor<R> {
    reader: R,
    at: u64,
    len: u64,
}

impl<R: Read> Cursor<R> {
    fn bytes(&mut self, n: u64, what: &'static str) -> Result<Vec<u8>, Fault> {
        // Before memory is taken for it: the file must have that many left.
        if n > self.len.saturating_sub(self.at) {
            return Err(Fault::Truncated { what, len: self.len });
        }
        let mut out = vec![0; n as usize];
        self.reader.read_exact(&mut out).map_err(|_| Fault::Truncated { what, len: self.len })?;
        self.at += n;
        Ok(out)
    }

    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], Fault> {
        let bytes = self.bytes(N as u64, what)?;
        Ok(bytes.try_into().expect("as many bytes as asked for"))
    }

    fn u32(&mut self, what: &'static str) -> Result<u32, Fault> {
        self.array(what).map(u32::from_le_bytes)
    }

    fn u64(&mut self, what: &'static str) -> Result<u64, Fault> {
        self.array(what).map(u64::from_le_bytes)
    }

    fn count(&mut self, what: &'static str, limit: u64) -> Result<u64, Fault> {
        let found = self.u64(what)?;
        if found > limit {
            return Err(Fault::TooMany { what, found, limit });
        }
        Ok(found)
    }

    fn text(&mut self, what: &'static str) -> Result<String, Fault> {
        let len = self.count(what, MAX_TEXT)?;
        String::from_utf8(self.bytes(len, what)?).map_err(|_| Fault::NotText { what })
    }

    fn header(&mut self) -> Result<Header, Fault> {
        if self.array("the magic number")? != *b"GGUF" {
            return Err(Fault::Magic);
        }
        let version = self.u32("the version")?;
        if !(2..=3).contains(&version) {
            return Err(Fault::Version { found: version });
        }
        let tensor_count = self.count("a tensor count", MAX_COUNT)?;
        let key_count = self.count("a key count", MAX_COUNT)?;
        let mut metadata = Metadata::default();
        let mut seen = HashSet::new();
        for _ in 0..key_count {
            let key = self.text("a key")?;
            if !seen.insert(key.clone()) {
                return Err(Fault::DuplicateKey { key });
            }
            let type_id = self.u32("a value's type")?;
            let value = self.value(&key, type_id)?;
            metadata.push(key, value);
        }
        let alignment = match metadata.get("general.alignment") {
            None => ALIGNMENT,
            Some(Value::U32(n)) if n.is_power_of_two() && *n <= 65536 => u64::from(*n),
            Some(Value::U32(n)) => return Err(Fault::Alignment { found: u64::from(*n) }),
            Some(_) => return Err(Fault::Alignment { found: 0 }),
        };
        let mut tensors = vec![];
        let mut offsets = vec![];
        let mut names = HashSet::new();
        for _ in 0..tensor_count {
            let name = self.text("a tensor's name")?;
            if !names.insert(name.clone()) {
                return Err(Fault::DuplicateTensor { tensor: name });
            }
            let dimensions = self.u32("a tensor's dimensions")?;
            if dimensions > 4 {
                return Err(Fault::Dimensions { tensor: name, found: dimensions });
            }
            let mut shape = vec![];
            for _ in 0..dimensions {
                shape.push(self.u64("a tensor's shape")?);
            }
            shape.reverse();
            let type_id = self.u32("a tensor's type")?;
            let Some(ggml_type) = GgmlType::from_id(type_id) else {
                return Err(Fault::TensorType { tensor: name, found: type_id });
            };
            let elements = shape.iter().try_fold(1u64, |product, n| product.checked_mul(*n));
            let bytes =
                elements.and_then(|n| (n / ggml_type.block_len()).checked_mul(ggml_type.block_bytes()));
            let whole = shape.last().copied().unwrap_or(1).is_multiple_of(ggml_type.block_len());
            if bytes.is_none() || !whole {
                return Err(Fault::Shape { tensor: name, shape, ggml_type: ggml_type.name() });
            }
            let offset = self.u64("a tensor's offset")?;
            if !offset.is_multiple_of(alignment) {
                return Err(Fault::Unaligned { tensor: name, offset, alignment });
            }
            offsets.push(offset);
            tensors.push(GgufTensor { name, ggml_type, shape });
        }
        let data = self.at.next_multiple_of(alignment);
        for (tensor, offset) in tensors.iter().zip(&mut offsets) {
            let end = offset.checked_add(data).and_then(|begin| begin.checked_add(tensor.bytes()));
            match end {
                Some(end) if end <= self.len => *offset += data,
                _ => {
                    let end = end.unwrap_or(u64::MAX);
                    return Err(Fault::PastEnd { tensor: tensor.name.clone(), end, len: self.len });
                }
            }
        }
        let mut order: Vec<usize> = (0..tensors.len()).filter(|n| tensors[*n].bytes() > 0).collect();
        order.sort_by_key(|n| offsets[*n]);
        if let Some(pair) =
            order.windows(2).find(|pair| offsets[pair[0]] + tensors[pair[0]].bytes() > offsets[pair[1]])
        {
            let name = |n: usize| tensors[n].name.clone();
            return Err(Fault::Overlap { tensor: name(pair[0]), other: name(pair[1]) });
        }
        Ok(Header { version, metadata, tensors, offsets })
    }

    fn value(&mut self, key: &str, type_id: u32) -> Result<Value, Fault> {
        const WHAT: &str = "a value";
        Ok(match type_id {
            0 => Value::U8(self.array::<1>(WHAT)?[0]),
            1 => Value::I8(i8::from_le_bytes(self.array(WHAT)?)),
            2 => Value::U16(u16::from_le_bytes(self.array(WHAT)?)),
            3 => Value::I16(i16::from_le_bytes(self.array(WHAT)?)),
            4 => Value::U32(self.u32(WHAT)?),
            5 => Value::I32(i32::from_le_bytes(self.array(WHAT)?)),
            6 => Value::F32(f32::from_le_bytes(self.array(WHAT)?)),
            7 => Value::Bool(self.array::<1>(WHAT)?[0] != 0),
            8 => Value::String(self.text(WHAT)?),
            9 => self.values(key)?,
            10 => Value::U64(self.u64(WHAT)?),
            11 => Value::I64(i64::from_le_bytes(self.array(WHAT)?)),
            12 => Value::F64(f64::from_le_bytes(self.array(WHAT)?)),
            found => return Err(Fault::ValueType { key: key.into(), found }),
        })
    }

    fn values(&mut self, key: &str) -> Result<Value, Fault> {
        const WHAT: &str = "an array";
        let type_id = self.u32(WHAT)?;
        let len = self.count(WHAT, MAX_COUNT)?;
        let width = match type_id {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            8 => 0,
            10..=12 => 8,
            // Arrays of arrays are in the format, and in no file that is known.
            found => return Err(Fault::ValueType { key: key.into(), found }),
        };
        if type_id == 8 {
            let mut texts = vec![];
            for _ in 0..len {
                texts.push(self.text(WHAT)?);
            }
            return Ok(Value::Strings(texts));
        }
        let bytes = self.bytes(len * width, WHAT)?;
        let words = || bytes.as_chunks::<4>().0.iter();
        Ok(match type_id {
            4 => Value::U32s(words().map(|b| u32::from_le_bytes(*b)).collect()),
            5 => Value::I32s(words().map(|b| i32::from_le_bytes(*b)).collect()),
            6 => Value::F32s(words().map(|b| f32::from_le_bytes(*b)).collect()),
            7 => Value::Bools(bytes.iter().map(|b| *b != 0).collect()),
            _ => Value::Other(type_id, len, bytes),
        })
    }
}
