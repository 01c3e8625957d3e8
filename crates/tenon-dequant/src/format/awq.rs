//! AWQ, 4 bit, as AutoAWQ packs it.
//!
//! `value = (q - zero) * scale`. **gemm**: `qweight` is `[in, out / 8]`, eight
//! outputs a word in the order 0 2 4 6 1 3 5 7, so a tile of the model's rows
//! is a band of its columns; `qzeros` `[groups, out / 8]` likewise, `scales`
//! `[groups, out]`. **gemv**: all by output, eight inputs a word in order, the
//! groups padded. (AutoAWQ, `utils/packing_utils.py`, `dequantize_gemm`;
//! `modules/linear/gemv.py`.)
//!
//! The library evaluates this in the type of `scales`, which is `f16`: its
//! values are these rounded to it.

use std::ops::Range;

use serde_json::Value;
use tenon_checkpoint::Dtype;

use super::{Found, Packed, groups};
use crate::Error;
use crate::open::Shelf;
use crate::reader::{Lines, Reader, decode};
use crate::scheme::whole;
use crate::unpack::unpack;

const FORMAT: &str = "AWQ";
const WORDS: [Dtype; 2] = [Dtype::I32, Dtype::U32];
/// Which four bits of a word, from the low end, hold output `k` of its eight.
const PLACE: [usize; 8] = [0, 4, 1, 5, 2, 6, 3, 7];

/// What the configuration says.
#[derive(Debug)]
pub(crate) struct Settings {
    /// Inputs of a group; `None` for all.
    group_size: Option<u64>,
    gemv: bool,
}

impl Settings {
    /// The settings, or why the format is not known.
    pub(crate) fn read(quantization: &Value) -> Result<Result<Self, String>, Error> {
        let bits = whole(quantization, "bits")?.or(whole(quantization, "w_bit")?).unwrap_or(4);
        if bits != 4 {
            return Ok(Err(format!("{bits} bits; AWQ packs 4")));
        }
        let group =
            whole(quantization, "group_size")?.or(whole(quantization, "q_group_size")?).unwrap_or(128);
        let version =
            ["version", "checkpoint_format", "format"].iter().find_map(|f| quantization.get(f)?.as_str());
        let gemv = match version.unwrap_or("gemm").to_lowercase().as_str() {
            "gemv" => true,
            // ExLlama and IPEX read the layout of gemm.
            "gemm" | "exllama" | "ipex" => false,
            version if version.contains("awq") && version != "llm-awq" => false,
            other => return Ok(Err(format!("the version {other:?} is laid out for one kernel"))),
        };
        Ok(Ok(Self { group_size: (group > 0).then_some(group as u64), gemv }))
    }
}

#[derive(Debug)]
struct Awq {
    qweight: usize,
    qzeros: usize,
    scales: usize,
    inputs: u64,
    outputs: u64,
    groups: u64,
    group_size: u64,
}

/// By output; groups padded to whole words.
#[derive(Debug)]
struct Gemv {
    awq: Awq,
    /// Words of zeros of an output.
    zero_words: u64,
}

pub(crate) fn find(shelf: &Shelf<'_>, tensor: usize, settings: &Settings) -> Result<Option<Found>, Error> {
    let info = shelf.info(tensor);
    let Some(module) = info.name.strip_suffix(".qweight") else { return Ok(None) };
    shelf.expect_dtype(tensor, FORMAT, &WORDS, "I32")?;
    shelf.expect_elements(tensor, FORMAT)?;
    let qzeros = shelf.need(tensor, FORMAT, format!("{module}.qzeros"))?;
    let scales = shelf.need(tensor, FORMAT, format!("{module}.scales"))?;
    shelf.expect_dtype(qzeros, FORMAT, &WORDS, "I32")?;
    shelf.expect_floats(scales, FORMAT)?;
    let [lines, words] = info.shape[..] else {
        return Err(shelf.bad_shape(tensor, FORMAT, "two dimensions".into()));
    };
    let (inputs, outputs) = if settings.gemv { (words * 8, lines) } else { (lines, words * 8) };
    let group_size = settings.group_size.unwrap_or(inputs).min(inputs);
    let count = inputs.div_ceil(group_size);
    let awq = Awq { qweight: tensor, qzeros, scales, inputs, outputs, groups: count, group_size };
    let packed: Box<dyn Packed> = if settings.gemv {
        let [rows, zero_words] = shelf.shape(qzeros)[..] else {
            return Err(shelf.bad_shape(qzeros, FORMAT, "two dimensions".into()));
        };
        if rows != outputs || zero_words.saturating_mul(8) < count {
            return Err(shelf.bad_shape(
                qzeros,
                FORMAT,
                format!("[{outputs}, {} or more]", count.div_ceil(8)),
            ));
        }
        shelf.expect_shape(scales, FORMAT, &[outputs, zero_words * 8])?;
        Box::new(Gemv { awq, zero_words })
    } else {
        shelf.expect_shape(qzeros, FORMAT, &[count, outputs / 8])?;
        shelf.expect_shape(scales, FORMAT, &[count, outputs])?;
        Box::new(awq)
    };
    let order = if settings.gemv { "gemv" } else { "gemm" };
    Ok(Some(Found {
        name: format!("{module}.weight"),
        shape: vec![outputs, inputs],
        label: format!("AWQ 4 bit ({order}), {}", groups(group_size, inputs)),
        parts: vec![tensor, qzeros, scales],
        packed,
    }))
}

/// Four bits of a run of bytes.
fn nibble(bytes: &[u8], index: usize) -> u8 {
    bytes[index / 2] >> (index % 2 * 4) & 15
}

/// Inputs turned together, so that each output's values are written in runs.
const BLOCK: usize = 32;

impl Packed for Awq {
    fn read(&self, reader: &Reader, rows: Range<u64>, out: &mut [f32]) -> Result<(), Error> {
        let (count, inputs) = ((rows.end - rows.start) as usize, self.inputs as usize);
        // Words that hold these outputs, and where in them the first one is.
        let columns = rows.start / 8 * 4..rows.end.div_ceil(8) * 4;
        let width = (columns.end - columns.start) as usize;
        let first = (rows.start % 8) as usize;
        let place = |row: usize| (first + row) / 8 * 8 + PLACE[(first + row) % 8];
        let len = self.outputs / 2;
        let (mut weight, mut zeros, mut scales) = (vec![], vec![], vec![]);
        let lines = |tensor, count| Lines { tensor, offset: 0, count, len };
        reader.columns(lines(self.qweight, self.inputs), columns.clone(), &mut weight)?;
        reader.columns(lines(self.qzeros, self.groups), columns, &mut zeros)?;
        let dtype = reader.info(self.scales).dtype;
        let size = dtype.bits() / 8;
        let of_scales =
            Lines { tensor: self.scales, offset: 0, count: self.groups, len: self.outputs * size };
        reader.columns(of_scales, rows.start * size..rows.end * size, &mut scales)?;
        let scales = decode(dtype, &scales);
        let group_size = self.group_size as usize;
        for start in (0..inputs).step_by(BLOCK) {
            let end = inputs.min(start + BLOCK);
            for row in 0..count {
                let at = place(row);
                let mut input = start;
                while input < end {
                    let group = input / group_size;
                    let upto = end.min((group + 1) * group_size);
                    let scale = scales[group * count + row];
                    let zero = f32::from(nibble(&zeros[group * width..], at));
                    let lines = weight[input * width..].chunks_exact(width);
                    for (value, line) in out[row * inputs + input..row * inputs + upto].iter_mut().zip(lines)
                    {
                        *value = (f32::from(nibble(line, at)) - zero) * scale;
                    }
                    input = upto;
                }
            }
        }
        Ok(())
    }
}

impl Packed for Gemv {
    fn read(&self, reader: &Reader, rows: Range<u64>, out: &mut [f32]) -> Result<(), Error> {
        let Awq { inputs, group_size, .. } = self.awq;
        let (inputs, line, zero_line) = (inputs as usize, inputs as usize / 2, self.zero_words as usize * 4);
        let (mut weight, mut zeros) = (vec![], vec![]);
        let run = |len: usize| rows.start * len as u64..rows.end * len as u64;
        reader.bytes(self.awq.qweight, run(line), &mut weight)?;
        reader.bytes(self.awq.qzeros, run(zero_line), &mut zeros)?;
        let groups = self.zero_words as usize * 8;
        let scales = reader.floats(self.awq.scales, run(groups))?;
        let mut q = vec![0; inputs];
        for (row, out) in out.chunks_exact_mut(inputs).enumerate() {
            unpack(4, &weight[row * line..][..line], &mut q);
            let zeros = &zeros[row * zero_line..][..zero_line];
            let each = out.chunks_mut(group_size as usize).zip(q.chunks(group_size as usize));
            for (group, (out, q)) in each.enumerate() {
                let (scale, zero) = (scales[row * groups + group], f32::from(nibble(zeros, group)));
                for (value, q) in out.iter_mut().zip(q) {
                    *value = (f32::from(*q) - zero) * scale;
                }
            }
        }
        Ok(())
    }
}
