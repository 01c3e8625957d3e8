//! GPTQ, as AutoGPTQ and GPTQModel pack it.
//!
//! `qweight` is `[in * bits / 32, out]`: words that hold the inputs of one
//! output, so a tile of the model's rows is a band of its columns. `value =
//! scales[g, out] * (q - zeros[g, out])` with `g = g_idx[in]` (act-order), else
//! `in / group_size`. Format v1 stores zeros less 1. (GPTQModel,
//! `qlinear/__init__.py`, `_dequantize_from_codes`; packing in `pack_block`.)
//!
//! The library evaluates this in the type of `scales`, which is `f16`: its
//! values are these rounded to it.

use std::ops::Range;

use serde_json::Value;
use tenon_checkpoint::Dtype;

use super::{Found, Packed, groups};
use crate::Error;
use crate::open::Shelf;
use crate::reader::{Lines, Reader, decode, whole_numbers};
use crate::scheme::whole;
use crate::unpack::{field, unpack32};

const FORMAT: &str = "GPTQ";
const WORDS: [Dtype; 2] = [Dtype::I32, Dtype::U32];

/// What the configuration says.
#[derive(Debug)]
pub(crate) struct Settings {
    bits: u64,
    /// Inputs of a group; `None` for all.
    group_size: Option<u64>,
    /// What is added to stored zeros.
    zero_offset: u8,
}

impl Settings {
    /// The settings, or why the format is not known.
    pub(crate) fn read(quantization: &Value) -> Result<Result<Self, String>, Error> {
        let bits = whole(quantization, "bits")?.unwrap_or(4);
        if ![2, 3, 4, 8].contains(&bits) {
            return Ok(Err(format!("{bits} bits are not among 2, 3, 4 and 8")));
        }
        let pack_dtype = quantization.get("pack_dtype").and_then(Value::as_str).unwrap_or("int32");
        if !pack_dtype.ends_with("int32") {
            return Ok(Err(format!("it is packed into {pack_dtype}, not int32")));
        }
        let format = ["checkpoint_format", "format"].iter().find_map(|f| quantization.get(f)?.as_str());
        let zero_offset = match format.unwrap_or("gptq") {
            "gptq" => 1,
            "gptq_v2" => 0,
            other => return Ok(Err(format!("the checkpoint_format {other:?} is laid out for one kernel"))),
        };
        let group_size = whole(quantization, "group_size")?.filter(|size| *size > 0).map(|size| size as u64);
        Ok(Ok(Self { bits: bits as u64, group_size, zero_offset }))
    }
}

#[derive(Debug)]
struct Gptq {
    qweight: usize,
    qzeros: usize,
    scales: usize,
    g_idx: Option<usize>,
    bits: u64,
    inputs: u64,
    outputs: u64,
    groups: u64,
    group_size: u64,
    zero_offset: u8,
}

pub(crate) fn find(shelf: &Shelf<'_>, tensor: usize, settings: &Settings) -> Result<Option<Found>, Error> {
    let info = shelf.info(tensor);
    let Some(module) = info.name.strip_suffix(".qweight") else { return Ok(None) };
    shelf.expect_dtype(tensor, FORMAT, &WORDS, "I32")?;
    shelf.expect_elements(tensor, FORMAT)?;
    let [words, outputs] = info.shape[..] else {
        return Err(shelf.bad_shape(tensor, FORMAT, "two dimensions".into()));
    };
    let scales = shelf.need(tensor, FORMAT, format!("{module}.scales"))?;
    shelf.expect_floats(scales, FORMAT)?;
    let g_idx = shelf.find(&format!("{module}.g_idx")).filter(|g_idx| shelf.info(*g_idx).elements() > 0);
    // Modules may have bits of their own (GPTQModel's `dynamic`); the shapes tell.
    let (bits, inputs) = match g_idx.map(|g_idx| shelf.info(g_idx).elements()) {
        Some(inputs) => (words * 32 / inputs, inputs),
        None => (settings.bits, words * 32 / settings.bits),
    };
    if ![2, 3, 4, 8].contains(&bits) || (inputs * bits).div_ceil(32) != words || inputs == 0 || outputs == 0 {
        return Err(shelf.bad_shape(tensor, FORMAT, format!("[{inputs} * bits / 32, out]")));
    }
    let [groups_found, width] = shelf.shape(scales)[..] else {
        return Err(shelf.bad_shape(scales, FORMAT, "two dimensions".into()));
    };
    if width != outputs || groups_found == 0 {
        return Err(shelf.bad_shape(scales, FORMAT, format!("[groups, {outputs}]")));
    }
    let group_size = settings.group_size.unwrap_or(inputs).min(inputs);
    let group_size =
        if inputs.div_ceil(group_size) == groups_found { group_size } else { inputs.div_ceil(groups_found) };
    if let Some(g_idx) = g_idx {
        shelf.expect_dtype(g_idx, FORMAT, &[Dtype::I32, Dtype::I64, Dtype::U32], "I32")?;
    } else if inputs.div_ceil(group_size) != groups_found {
        return Err(shelf.bad_shape(scales, FORMAT, format!("[{}, {outputs}]", inputs.div_ceil(group_size))));
    }
    let qzeros = shelf.need(tensor, FORMAT, format!("{module}.qzeros"))?;
    shelf.expect_dtype(qzeros, FORMAT, &WORDS, "I32")?;
    shelf.expect_shape(qzeros, FORMAT, &[groups_found, (outputs * bits).div_ceil(32)])?;
    let mut parts = vec![tensor, scales, qzeros];
    parts.extend(shelf.find(&format!("{module}.g_idx")));
    Ok(Some(Found {
        name: format!("{module}.weight"),
        shape: vec![outputs, inputs],
        label: format!(
            "GPTQ {bits} bit, {}{}",
            groups(group_size, inputs),
            if settings.zero_offset == 0 { ", format v2" } else { "" }
        ),
        parts,
        packed: Box::new(Gptq {
            qweight: tensor,
            qzeros,
            scales,
            g_idx,
            bits,
            inputs,
            outputs,
            groups: groups_found,
            group_size,
            zero_offset: settings.zero_offset,
        }),
    }))
}

impl Gptq {
    /// The group of each input.
    fn group_of_inputs(&self, reader: &Reader) -> Result<Vec<u32>, Error> {
        let Some(g_idx) = self.g_idx else {
            return Ok((0..self.inputs).map(|input| (input / self.group_size) as u32).collect());
        };
        let info = reader.info(g_idx);
        let mut bytes = vec![];
        reader.bytes(g_idx, 0..info.bytes(), &mut bytes)?;
        let numbers = whole_numbers(info.dtype, &bytes).expect("its type was checked");
        match numbers.iter().position(|group| !(0..self.groups as i64).contains(group)) {
            None => Ok(numbers.into_iter().map(|group| group as u32).collect()),
            Some(at) => Err(Error::Value {
                tensor: info.name.clone(),
                what: format!("the group of input {at}"),
                found: numbers[at].to_string(),
                expected: format!("0 to {}", self.groups - 1),
            }),
        }
    }

    /// Scales and zeros of these outputs: `[output, group]` each.
    fn scales_and_zeros(&self, reader: &Reader, rows: &Range<u64>) -> Result<(Vec<f32>, Vec<f32>), Error> {
        let count = (rows.end - rows.start) as usize;
        let groups = self.groups as usize;
        let dtype = reader.info(self.scales).dtype;
        let size = dtype.bits() / 8;
        let lines = Lines { tensor: self.scales, offset: 0, count: self.groups, len: self.outputs * size };
        let mut bytes = vec![];
        reader.columns(lines, rows.start * size..rows.end * size, &mut bytes)?;
        let by_group = decode(dtype, &bytes);
        let mut scales = vec![0.0; count * groups];
        for group in 0..groups {
            for row in 0..count {
                scales[row * groups + group] = by_group[group * count + row];
            }
        }
        let mut zeros = vec![0.0; count * groups];
        let len = (self.outputs * self.bits).div_ceil(32) * 4;
        let first = rows.start * self.bits / 32;
        let columns = first * 4..(rows.end * self.bits).div_ceil(32) * 4;
        let width = (columns.end - columns.start) as usize;
        let lines = Lines { tensor: self.qzeros, offset: 0, count: self.groups, len };
        reader.columns(lines, columns, &mut bytes)?;
        let (bits, skip) = (self.bits as usize, (rows.start * self.bits - first * 32) as usize);
        let mask = ((1u16 << bits) - 1) as u8;
        for (group, line) in bytes.chunks_exact(width).enumerate() {
            for row in 0..count {
                let stored = field(self.bits as u32, line, skip + row * bits);
                // A zero of 0 wraps to all ones in format v1.
                zeros[row * groups + group] = f32::from(stored.wrapping_add(self.zero_offset) & mask);
            }
        }
        Ok((scales, zeros))
    }
}

/// Inputs unpacked together: a block of all word sizes.
const BLOCK: usize = 32;

impl Packed for Gptq {
    fn read(&self, reader: &Reader, rows: Range<u64>, out: &mut [f32]) -> Result<(), Error> {
        let groups_of = self.group_of_inputs(reader)?;
        let (scales, zeros) = self.scales_and_zeros(reader, &rows)?;
        let (count, inputs, groups) =
            ((rows.end - rows.start) as usize, self.inputs as usize, self.groups as usize);
        let words = (self.inputs * self.bits).div_ceil(32);
        let lines = Lines { tensor: self.qweight, offset: 0, count: words, len: self.outputs * 4 };
        let mut bytes = vec![];
        reader.columns(lines, rows.start * 4..rows.end * 4, &mut bytes)?;
        let bits = self.bits as usize;
        let line = count * 4;
        for (block, group_of) in groups_of.chunks(BLOCK).enumerate() {
            let same = group_of.iter().all(|group| *group == group_of[0]).then(|| group_of[0] as usize);
            for row in 0..count {
                // The words of this output, one from each line.
                let mut packed = [0u8; 4 * 8];
                for (word, packed) in packed.as_chunks_mut::<4>().0.iter_mut().take(bits).enumerate() {
                    let at = (block * bits + word) * line + row * 4;
                    // A last block of fewer than 32 inputs has fewer words.
                    if let Some(bytes) = bytes.get(at..at + 4) {
                        packed.copy_from_slice(bytes);
                    }
                }
                let q = unpack32(self.bits as u32, &packed);
                let out = &mut out[row * inputs + block * BLOCK..][..group_of.len()];
                let (scales, zeros) = (&scales[row * groups..][..groups], &zeros[row * groups..][..groups]);
                if let Some(group) = same {
                    let (scale, zero) = (scales[group], zeros[group]);
                    for (value, q) in out.iter_mut().zip(q) {
                        *value = scale * (f32::from(q) - zero);
                    }
                } else {
                    for ((value, q), group) in out.iter_mut().zip(q).zip(group_of) {
                        *value = scales[*group as usize] * (f32::from(q) - zeros[*group as usize]);
                    }
                }
            }
        }
        Ok(())
    }
}
