//! bitsandbytes: NF4 and FP4 in blocks, LLM.int8 by rows.
//!
//! **4 bit.** The weight is one run of elements, two a byte, the first in the
//! high half. `value = quant_map[q] * absmax[block]`. With double quantization
//! absmax is itself stored in bytes: `nested_quant_map[q] *
//! nested_absmax[block] + nested_offset`. Shapes and block sizes are JSON in
//! the tensor `X.quant_state.bitsandbytes__nf4` (or `fp4`).
//! (`functional.dequantize_4bit`, `dequantize_blockwise`.)
//!
//! **8 bit.** `value = q * SCB[row] * (1 / 127)`, in this order, `1 / 127`
//! rounded to `f32`. (`functional.int8_vectorwise_dequant`.)

use std::ops::Range;

use serde_json::Value;
use tenon_checkpoint::Dtype;

use super::{Found, Packed};
use crate::Error;
use crate::open::Shelf;
use crate::reader::Reader;

const FOUR: &str = "bitsandbytes 4 bit";
const EIGHT: &str = "LLM.int8";
/// What a `quant_state` may have at most; they have some 200 bytes.
const STATE_BYTES: u64 = 64 << 10;

/// `said` where the configuration says that the weights are so stored.
pub(crate) fn find(shelf: &Shelf<'_>, tensor: usize, said: bool) -> Result<Option<Found>, Error> {
    let name = &shelf.info(tensor).name;
    for kind in ["nf4", "fp4"] {
        if let Some(state) = shelf.find(&format!("{name}.quant_state.bitsandbytes__{kind}")) {
            return four(shelf, tensor, state, kind).map(Some);
        }
    }
    if let Some(module) = name.strip_suffix(".weight")
        && let Some(scb) = shelf.find(&format!("{module}.SCB"))
    {
        return eight(shelf, tensor, scb, module).map(Some);
    }
    if said && name.ends_with(".weight") {
        let (format, missing) = match shelf.info(tensor).dtype {
            Dtype::U8 => (FOUR, format!("{name}.quant_state.bitsandbytes__nf4")),
            Dtype::I8 => (EIGHT, format!("{}.SCB", name.trim_end_matches(".weight"))),
            _ => return Ok(None),
        };
        return Err(Error::Missing { tensor: name.clone(), format, missing });
    }
    Ok(None)
}

#[derive(Debug)]
struct FourBit {
    weight: usize,
    absmax: usize,
    block: u64,
    elements: u64,
    row_len: u64,
    map: [f32; 16],
    nested: Option<Nested>,
}

#[derive(Debug)]
struct Nested {
    absmax: usize,
    block: u64,
    map: Vec<f32>,
    offset: f32,
}

fn four(shelf: &Shelf<'_>, tensor: usize, state: usize, kind: &str) -> Result<Found, Error> {
    let name = shelf.info(tensor).name.clone();
    let json = read_state(shelf, state)?;
    let wrong = |what: &str, expected: &str| Error::Value {
        tensor: shelf.info(state).name.clone(),
        what: what.into(),
        found: json.get(what).map_or("absent".into(), Value::to_string),
        expected: expected.into(),
    };
    let dims = json.get("shape").and_then(Value::as_array);
    let shape: Option<Vec<u64>> = dims.and_then(|dims| dims.iter().map(Value::as_u64).collect());
    let shape = shape.ok_or_else(|| wrong("shape", "the weight's shape"))?;
    let elements = shape.iter().try_fold(1u64, |n, d| n.checked_mul(*d)).filter(|n| *n > 0 && *n < 1 << 60);
    let elements = elements.ok_or_else(|| wrong("shape", "extents above 0"))?;
    let size = |field: &str| {
        let number = json.get(field).and_then(Value::as_u64).filter(|n| *n > 0);
        number.ok_or_else(|| wrong(field, "a number above 0"))
    };
    let block = size("blocksize")?;
    // Packed bytes may be stored as elements of a wider type (quant_storage); the bytes are the same.
    if shelf.info(tensor).bytes() != elements.div_ceil(2) {
        return Err(shelf.bad_shape(tensor, FOUR, format!("{} bytes for {shape:?}", elements.div_ceil(2))));
    }
    let blocks = elements.div_ceil(block);
    let absmax = shelf.need(tensor, FOUR, format!("{name}.absmax"))?;
    let quant_map = shelf.need(tensor, FOUR, format!("{name}.quant_map"))?;
    shelf.expect_dtype(quant_map, FOUR, &[Dtype::F32], "F32")?;
    shelf.expect_shape(quant_map, FOUR, &[16])?;
    shelf.expect_shape(absmax, FOUR, &[blocks])?;
    let mut parts = vec![tensor, state, absmax, quant_map];
    let nested = if json.get("nested_blocksize").is_some_and(|v| !v.is_null()) {
        shelf.expect_dtype(absmax, FOUR, &[Dtype::U8], "U8")?;
        let nested_absmax = shelf.need(tensor, FOUR, format!("{name}.nested_absmax"))?;
        let nested_map = shelf.need(tensor, FOUR, format!("{name}.nested_quant_map"))?;
        let nested_block = size("nested_blocksize")?;
        shelf.expect_floats(nested_absmax, FOUR)?;
        shelf.expect_shape(nested_absmax, FOUR, &[blocks.div_ceil(nested_block)])?;
        shelf.expect_dtype(nested_map, FOUR, &[Dtype::F32], "F32")?;
        shelf.expect_shape(nested_map, FOUR, &[256])?;
        parts.extend([nested_absmax, nested_map]);
        let offset = json.get("nested_offset").and_then(Value::as_f64);
        Some(Nested {
            absmax: nested_absmax,
            block: nested_block,
            map: table(shelf, nested_map)?,
            offset: offset.ok_or_else(|| wrong("nested_offset", "a number"))? as f32,
        })
    } else {
        shelf.expect_floats(absmax, FOUR)?;
        None
    };
    let label = format!(
        "bitsandbytes {}, blocks of {block}{}",
        kind.to_uppercase(),
        if nested.is_some() { ", double quantization" } else { "" }
    );
    let map = table(shelf, quant_map)?.try_into().expect("its shape was checked");
    let row_len = if shape.len() >= 2 { shape[shape.len() - 1] } else { 1 };
    let packed = Box::new(FourBit { weight: tensor, absmax, block, elements, row_len, map, nested });
    Ok(Found { name, shape, label, parts, packed })
}

fn read_state(shelf: &Shelf<'_>, state: usize) -> Result<Value, Error> {
    let info = shelf.info(state);
    let bytes = info.bytes();
    let wrong = |found: String| Error::Value {
        tensor: info.name.clone(),
        what: "its content".into(),
        found,
        expected: "a JSON object of bytes, as bitsandbytes writes it".into(),
    };
    if info.dtype != Dtype::U8 || bytes > STATE_BYTES {
        return Err(wrong(format!("{bytes} bytes of {}", info.dtype)));
    }
    let mut text = vec![0; bytes as usize];
    shelf.base.read_bytes(state, 0, &mut text)?;
    let value: Value = serde_json::from_slice(&text).map_err(|e| wrong(format!("not JSON ({e})")))?;
    if value.is_object() { Ok(value) } else { Err(wrong(value.to_string())) }
}

/// All values of a small tensor of `F32`.
fn table(shelf: &Shelf<'_>, tensor: usize) -> Result<Vec<f32>, Error> {
    let mut bytes = vec![0; shelf.info(tensor).bytes() as usize];
    shelf.base.read_bytes(tensor, 0, &mut bytes)?;
    Ok(crate::reader::decode(Dtype::F32, &bytes))
}

impl FourBit {
    /// The scales of a run of blocks.
    fn scales(&self, reader: &Reader, blocks: Range<u64>) -> Result<Vec<f32>, Error> {
        let Some(nested) = &self.nested else { return reader.floats(self.absmax, blocks) };
        let mut quantized = vec![];
        reader.bytes(self.absmax, blocks.clone(), &mut quantized)?;
        let first = blocks.start / nested.block;
        let outer = reader.floats(nested.absmax, first..blocks.end.div_ceil(nested.block))?;
        let scale = |(block, q): (u64, &u8)| {
            nested.map[usize::from(*q)] * outer[(block / nested.block - first) as usize] + nested.offset
        };
        Ok(blocks.zip(&quantized).map(scale).collect())
    }
}

impl Packed for FourBit {
    fn read(&self, reader: &Reader, rows: Range<u64>, out: &mut [f32]) -> Result<(), Error> {
        let (start, end) = (rows.start * self.row_len, (rows.end * self.row_len).min(self.elements));
        if start >= end {
            return Ok(());
        }
        let mut bytes = vec![];
        reader.bytes(self.weight, start / 2..end.div_ceil(2), &mut bytes)?;
        let first_block = start / self.block;
        let scales = self.scales(reader, first_block..end.div_ceil(self.block))?;
        let mut at = start;
        while at < end {
            let block = at / self.block;
            let upto = ((block + 1) * self.block).min(end);
            let scale = scales[(block - first_block) as usize];
            let scaled = self.map.map(|value| value * scale);
            let run = &mut out[(at - start) as usize..(upto - start) as usize];
            let first = at - start / 2 * 2;
            if first.is_multiple_of(2) && run.len().is_multiple_of(2) {
                let bytes = &bytes[(first / 2) as usize..];
                for (pair, byte) in run.as_chunks_mut::<2>().0.iter_mut().zip(bytes) {
                    *pair = [scaled[usize::from(byte >> 4)], scaled[usize::from(byte & 15)]];
                }
            } else {
                for (element, value) in (first as usize..).zip(run) {
                    let byte = bytes[element / 2];
                    *value =
                        scaled[usize::from(if element.is_multiple_of(2) { byte >> 4 } else { byte & 15 })];
                }
            }
            at = upto;
        }
        Ok(())
    }
}

#[derive(Debug)]
struct EightBit {
    weight: usize,
    scb: usize,
    cols: u64,
}

fn eight(shelf: &Shelf<'_>, tensor: usize, scb: usize, module: &str) -> Result<Found, Error> {
    shelf.expect_dtype(tensor, EIGHT, &[Dtype::I8], "I8")?;
    shelf.expect_dtype(scb, EIGHT, &[Dtype::F32, Dtype::F16, Dtype::BF16], "F32")?;
    let [rows, cols] = shelf.shape(tensor)[..] else {
        return Err(shelf.bad_shape(tensor, EIGHT, "two dimensions".into()));
    };
    shelf.expect_shape(scb, EIGHT, &[rows])?;
    let mut parts = vec![tensor, scb];
    if let Some(format) = shelf.find(&format!("{module}.weight_format")) {
        parts.push(format);
        let mut bytes = vec![0; shelf.info(format).bytes().min(8) as usize];
        shelf.base.read_bytes(format, 0, &mut bytes)?;
        if bytes.first().is_some_and(|format| *format != 0) {
            return Err(Error::Value {
                tensor: shelf.info(format).name.clone(),
                what: "the order of the weight".into(),
                found: format!("{} (tiled for one kind of GPU)", bytes[0]),
                expected: "0 (by rows); save the model with bitsandbytes 0.45 or newer".into(),
            });
        }
    }
    let name = format!("{module}.weight");
    let packed = Box::new(EightBit { weight: tensor, scb, cols });
    Ok(Found { name, shape: vec![rows, cols], label: "LLM.int8 (bitsandbytes 8 bit)".into(), parts, packed })
}

impl Packed for EightBit {
    fn read(&self, reader: &Reader, rows: Range<u64>, out: &mut [f32]) -> Result<(), Error> {
        const RECIPROCAL: f32 = (1.0f64 / 127.0) as f32;
        let mut bytes = vec![];
        reader.bytes(self.weight, rows.start * self.cols..rows.end * self.cols, &mut bytes)?;
        let scales = reader.floats(self.scb, rows)?;
        let cols = (self.cols as usize).max(1);
        for ((out, bytes), scale) in out.chunks_exact_mut(cols).zip(bytes.chunks_exact(cols)).zip(scales) {
            for (value, byte) in out.iter_mut().zip(bytes) {
                *value = f32::from(*byte as i8) * scale * RECIPROCAL;
            }
        }
        Ok(())
    }
}
