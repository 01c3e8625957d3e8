//! Importance matrices: how much an error in each column of a tensor counts, as `llama-imatrix`
//! measured it on a text.
//!
//! Both of its formats are read: GGUF (sums of squared activations and how
//! many, for each expert) and the older `.dat`. What is kept is what
//! `llama-quantize` makes of them: the mean of each column, one where an
//! expert was never asked.
//!
//! ```no_run
//! # use tenon_gguf::{Importance, GgufTensor, quant::{Level, QualitySums}, Error};
//! # fn quantize(tensor: &GgufTensor, rows: &[f32], out: &mut [u8]) -> Result<(), Error> {
//! let importance = Importance::open("imatrix.gguf".as_ref())?;
//! let mut sums = QualitySums::default();
//! // None where the matrix has nothing about this tensor, which is then quantized without.
//! if let Some(columns) = importance.of(tensor)? {
//!     columns.encode(Level::detect(), tensor.ggml_type, 0, rows, out, &mut sums);
//! }
//! # Ok(())
//! # }
//! ```
//!
//! Source: `common/imatrix-loader.cpp` and `tools/quantize/quantize.cpp` of llama.cpp build 10488.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use tenon_checkpoint::Error as CheckpointError;

use crate::quant::{Level, QualitySums, encode_measured};
use crate::{Error, GgmlType, GgufFile, GgufTensor, Value};

/// The importance of the columns of a model's tensors.
#[derive(Debug, Clone, PartialEq)]
pub struct Importance {
    path: PathBuf,
    /// By the tensor's name: a number for each column, of each expert in turn.
    entries: BTreeMap<String, Vec<f32>>,
    /// The texts that it was measured on.
    datasets: Vec<String>,
    /// Pieces of text that went through the model; zero where that is not known.
    chunks: u32,
}

/// The ways in which an importance matrix can lie.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // the sentence of each variant says what its fields are
pub enum ImportanceFault {
    #[error("it has no entries")]
    Empty,
    #[error("it ends at byte {len}, within {what}")]
    Truncated { what: &'static str, len: u64 },
    #[error("entry {entry}: {what} is {found}")]
    Size { entry: u64, what: &'static str, found: i64 },
    #[error("key {key} is not there or of another type; this is no importance matrix")]
    Key { key: &'static str },
    #[error("tensor {tensor:?} is not there, but its counterpart is")]
    Unpaired { tensor: String },
    #[error("tensor {tensor:?} is {found}, expected F32")]
    Type { tensor: String, found: GgmlType },
    #[error("{tensor:?} has {sums} sums for {counts} experts")]
    Counts { tensor: String, sums: u64, counts: u64 },
    #[error("{tensor:?} has the value {found}, which is not finite")]
    NotFinite { tensor: String, found: f32 },
    #[error(
        "{tensor:?} has {found} columns here and {expected} in the model; the importance matrix is another model's"
    )]
    Columns { tensor: String, found: u64, expected: u64 },
}

/// Largest file read: the importance matrix of the largest models has some 100 MB.
const MAX_BYTES: u64 = 1 << 32;

impl Importance {
    /// Reads a file of either format.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let file = std::fs::File::open(path).map_err(CheckpointError::io("open", path))?;
        let mut magic = [0; 4];
        let gguf = std::io::Read::read_exact(&mut &file, &mut magic).is_ok() && magic == *b"GGUF";
        let read = if gguf {
            read_gguf(&GgufFile::open(path)?)?
        } else {
            let len = file.metadata().map_err(CheckpointError::io("examine", path))?.len();
            if len > MAX_BYTES {
                Err(ImportanceFault::Truncated { what: "what is read of a file", len: MAX_BYTES })
            } else {
                read_legacy(&std::fs::read(path).map_err(CheckpointError::io("read", path))?)
            }
        };
        let checked = read.and_then(|read| read.checked());
        let Contents { entries, datasets, chunks } = checked.map_err(|fault| wrong(path, fault))?;
        Ok(Self { path: path.into(), entries, datasets, chunks })
    }

    /// Tensors in it.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none; never of one that was opened.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The columns of a tensor, if the matrix has them. That of another width is refused, but not of
    /// the token embedding, whose columns are never measured right.
    pub fn of(&self, tensor: &GgufTensor) -> Result<Option<Columns<'_>>, Error> {
        let Some(values) = self.entries.get(&tensor.name) else { return Ok(None) };
        let (width, experts) = match tensor.shape.as_slice() {
            [.., experts, _, width] => (*width, *experts),
            shape => (shape.last().copied().unwrap_or(1), 1),
        };
        let expected = width.saturating_mul(experts);
        if values.len() as u64 == expected {
            let rows = tensor.shape.iter().rev().nth(1).copied().unwrap_or(1);
            return Ok(Some(Columns { values, width: width as usize, rows }));
        }
        if tensor.name == "token_embd.weight" || tensor.name == "per_layer_token_embd.weight" {
            return Ok(None);
        }
        let (tensor, found) = (tensor.name.clone(), values.len() as u64);
        Err(wrong(&self.path, ImportanceFault::Columns { tensor, found, expected }))
    }

    /// The keys that `llama-quantize` writes of it, in its order, at the end of the metadata.
    ///
    /// The name of the file is the path as it was given; like the text's, its first 127 bytes (or
    /// fewer, where a character would be cut).
    pub fn metadata(&self) -> Vec<(&'static str, Value)> {
        let short = |text: &str| {
            let end = (0..=text.len().min(127)).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
            Value::String(text[..end].to_string())
        };
        let mut keys = vec![("quantize.imatrix.file", short(&self.path.to_string_lossy()))];
        if let Some(dataset) = self.datasets.first() {
            keys.push(("quantize.imatrix.dataset", short(dataset)));
        }
        keys.push(("quantize.imatrix.entries_count", Value::U32(self.entries.len() as u32)));
        if self.chunks > 0 {
            keys.push(("quantize.imatrix.chunks_count", Value::U32(self.chunks)));
        }
        keys
    }
}

/// The importance of a tensor's columns, for each expert.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Columns<'a> {
    values: &'a [f32],
    width: usize,
    /// Rows of each expert.
    rows: u64,
}

impl<'a> Columns<'a> {
    /// Those of an expert; of expert 0 for a tensor without experts.
    pub fn expert(&self, expert: usize) -> &'a [f32] {
        &self.values[expert * self.width..(expert + 1) * self.width]
    }

    /// Encodes rows of the tensor, counted through all experts, from `first_row` on.
    ///
    /// # Panics
    ///
    /// Where `x` is not whole rows, the tensor has no such rows, or `out` is not their size.
    pub fn encode(
        &self,
        level: Level,
        ggml_type: GgmlType,
        first_row: u64,
        x: &[f32],
        out: &mut [u8],
        sums: &mut QualitySums,
    ) {
        let (mut row, mut x, mut out) = (first_row, x, out);
        while !x.is_empty() {
            let (expert, within) = ((row / self.rows) as usize, row % self.rows);
            let rows = (self.rows - within).min((x.len() / self.width) as u64);
            assert!(rows > 0, "whole rows");
            let elements = rows as usize * self.width;
            let (these, rest) = x.split_at(elements);
            let (blocks, blocks_rest) =
                std::mem::take(&mut out).split_at_mut(ggml_type.row_bytes(elements as u64) as usize);
            encode_measured(level, ggml_type, these, self.width, Some(self.expert(expert)), blocks, sums);
            (x, out, row) = (rest, blocks_rest, row + rows);
        }
    }
}

fn wrong(path: &Path, fault: ImportanceFault) -> Error {
    Error::Importance { path: path.into(), fault }
}

/// What a file says.
#[derive(Debug, Default)]
struct Contents {
    entries: BTreeMap<String, Vec<f32>>,
    datasets: Vec<String>,
    chunks: u32,
}

impl Contents {
    fn checked(self) -> Result<Self, ImportanceFault> {
        if self.entries.is_empty() {
            return Err(ImportanceFault::Empty);
        }
        for (name, values) in &self.entries {
            if let Some(found) = values.iter().find(|v| !v.is_finite()) {
                return Err(ImportanceFault::NotFinite { tensor: name.clone(), found: *found });
            }
        }
        Ok(self)
    }
}

type Read = Result<Contents, ImportanceFault>;

/// `NAME.in_sum2` and `NAME.counts`: sums of squares by expert and column, and how many by expert.
fn read_gguf(file: &GgufFile) -> Result<Read, Error> {
    let number = |key: &'static str| match file.metadata.get(key) {
        Some(Value::U32(n)) => Ok(*n),
        _ => Err(ImportanceFault::Key { key }),
    };
    let datasets = match file.metadata.get("imatrix.datasets") {
        Some(Value::Strings(texts)) => texts.clone(),
        Some(_) => vec![],
        None => return Ok(Err(ImportanceFault::Key { key: "imatrix.datasets" })),
    };
    let chunks = match (number("imatrix.chunk_count"), number("imatrix.chunk_size")) {
        (Ok(chunks), Ok(_)) => chunks,
        (Err(fault), _) | (_, Err(fault)) => return Ok(Err(fault)),
    };
    let mut pairs: BTreeMap<&str, [Option<usize>; 2]> = BTreeMap::new();
    for (at, tensor) in file.tensors.iter().enumerate() {
        for (half, suffix) in [".in_sum2", ".counts"].into_iter().enumerate() {
            if let Some(name) = tensor.name.strip_suffix(suffix) {
                pairs.entry(name).or_default()[half] = Some(at);
            }
        }
    }
    let mut contents = Contents { datasets, chunks, ..Contents::default() };
    for (name, pair) in pairs {
        let [Some(sums), Some(counts)] = pair else {
            let missing = if pair[0].is_none() { "in_sum2" } else { "counts" };
            return Ok(Err(ImportanceFault::Unpaired { tensor: format!("{name}.{missing}") }));
        };
        for at in [sums, counts] {
            let tensor = &file.tensors[at];
            if tensor.ggml_type != GgmlType::F32 {
                let (tensor, found) = (tensor.name.clone(), tensor.ggml_type);
                return Ok(Err(ImportanceFault::Type { tensor, found }));
            }
        }
        let (sums, counts) = (floats(file, sums)?, floats(file, counts)?);
        match means(name, sums, &counts) {
            Ok(values) => contents.entries.insert(name.to_string(), values),
            Err(fault) => return Ok(Err(fault)),
        };
    }
    Ok(Ok(contents))
}

fn floats(file: &GgufFile, tensor: usize) -> Result<Vec<f32>, Error> {
    let mut bytes = vec![0; file.tensors[tensor].bytes() as usize];
    file.read_at(tensor, 0, &mut bytes)?;
    Ok(bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
}

/// The mean of each column for each expert; one where it was never asked.
fn means(name: &str, mut sums: Vec<f32>, counts: &[f32]) -> Result<Vec<f32>, ImportanceFault> {
    let mismatch = sums.is_empty() || counts.is_empty() || !sums.len().is_multiple_of(counts.len());
    if mismatch {
        let (tensor, sums, counts) = (name.to_string(), sums.len() as u64, counts.len() as u64);
        return Err(ImportanceFault::Counts { tensor, sums, counts });
    }
    let width = sums.len() / counts.len();
    for (sums, count) in sums.chunks_exact_mut(width).zip(counts) {
        if !count.is_finite() {
            return Err(ImportanceFault::NotFinite { tensor: name.to_string(), found: *count });
        }
        let count = count.round();
        for sum in sums {
            *sum = if count > 0.0 { *sum / count } else { 1.0 };
        }
    }
    Ok(sums)
}

/// Entries, each a name, how often it was measured and the sums; then, perhaps, the number of pieces
/// of text and its name.
fn read_legacy(bytes: &[u8]) -> Read {
    let mut cursor = Cursor { bytes, len: bytes.len() as u64 };
    let count = cursor.size(0, "the number of entries", 1)?;
    let mut contents = Contents::default();
    for entry in 1..=count {
        let len = cursor.size(entry, "the length of its name", 0)?;
        let name = text(cursor.take(len, "a name")?);
        let calls = cursor.i32("a count")?;
        let values = cursor.size(entry, "the number of its values", 1)?;
        let values = cursor.take(values.saturating_mul(4), "values")?.as_chunks().0;
        // Dividing by a float, as the reference's integer becomes one.
        let divisor = if calls > 0 { calls as f32 } else { 1.0 };
        let values = values.iter().map(|b| f32::from_le_bytes(*b) / divisor).collect();
        contents.entries.insert(name, values);
    }
    // Older files end here.
    contents.chunks = cursor.i32("the number of chunks").unwrap_or(0).try_into().unwrap_or(0);
    let dataset = cursor.size(0, "the length of a name", 1).and_then(|len| cursor.take(len, "a name"));
    contents.datasets.extend(dataset.ok().map(text));
    Ok(contents)
}

/// The text up to the first zero.
fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

struct Cursor<'a> {
    bytes: &'a [u8],
    len: u64,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, n: u64, what: &'static str) -> Result<&'a [u8], ImportanceFault> {
        let taken = usize::try_from(n).ok().and_then(|n| self.bytes.split_at_checked(n));
        let (taken, rest) = taken.ok_or(ImportanceFault::Truncated { what, len: self.len })?;
        self.bytes = rest;
        Ok(taken)
    }

    fn i32(&mut self, what: &'static str) -> Result<i32, ImportanceFault> {
        let bytes = self.take(4, what)?;
        Ok(i32::from_le_bytes(bytes.try_into().expect("four bytes")))
    }

    fn size(&mut self, entry: u64, what: &'static str, least: i32) -> Result<u64, ImportanceFault> {
        let found = self.i32(what)?;
        if found < least {
            return Err(ImportanceFault::Size { entry, what, found: found.into() });
        }
        Ok(found as u64)
    }
}

#[cfg(test)]
mod tests;
