//! compressed-tensors (llm-compressor, vLLM): whole numbers packed or as they
//! are, FP8, NVFP4 and MXFP4.
//!
//! `value = (q - zero) * scale` with scales (and zeros) for the tensor, for
//! rows, for groups of columns (`weight_g_idx` where columns were reordered),
//! or for blocks. Packed numbers are stored from 0 up, so half their range is
//! taken off; zeros are packed down the rows. NVFP4's scales are divided by
//! `weight_global_scale` first. (compressed-tensors,
//! `quantization/lifecycle/forward.py`, `_dequantize`;
//! `compressors/*/base.py`.)
//!
//! The library evaluates this in the type of the scales: its values are these
//! rounded to it.

use std::ops::Range;

use serde_json::Value;
use tenon_checkpoint::Dtype;

use super::{Found, Packed, fp8};
use crate::Error;
use crate::float8::e2m1_pairs;
use crate::grid::Grid;
use crate::open::Shelf;
use crate::reader::{Reader, whole_numbers};
use crate::unpack::{field, unpack};

const FORMAT: &str = "compressed-tensors";

/// What the configuration says.
#[derive(Debug)]
pub(crate) struct Settings {
    /// Bits of the groups of modules.
    bits: Vec<u64>,
    fp8: fp8::Settings,
}

/// Formats that are one packed tensor and its scales.
const KNOWN: [&str; 9] = [
    "dense",
    "int-quantized",
    "float-quantized",
    "naive-quantized",
    "pack-quantized",
    "nvfp4-pack-quantized",
    "mxfp4-pack-quantized",
    "mxfp8-quantized",
    "mixed-precision",
];

impl Settings {
    /// The settings, or why the format is not known.
    pub(crate) fn read(quantization: &Value) -> Result<Result<Self, String>, Error> {
        // Old models nest what they say of weights once more.
        let quantization = quantization.get("quantization_config").unwrap_or(quantization);
        let format = |of: &Value| of.get("format").and_then(Value::as_str).map(str::to_string);
        let groups = quantization.get("config_groups").and_then(Value::as_object);
        let formats =
            format(quantization).into_iter().chain(groups.iter().flat_map(|g| g.values().filter_map(format)));
        for format in formats {
            if !KNOWN.contains(&format.as_str()) {
                return Ok(Err(format!("its format {format:?} is not known")));
            }
        }
        let sparse = quantization.get("sparsity_config").and_then(format);
        if let Some(sparse) = sparse.filter(|sparse| sparse != "dense") {
            return Ok(Err(format!("its sparsity format {sparse:?} is not known")));
        }
        let (mut bits, mut block) = (vec![], None);
        for weights in
            groups.iter().flat_map(|groups| groups.values().filter_map(|group| group.get("weights")))
        {
            bits.extend(
                weights.get("num_bits").and_then(Value::as_u64).filter(|bits| (1..=8).contains(bits)),
            );
            block = block.or(fp8::block_size(weights, "block_structure")?);
        }
        Ok(Ok(Self { bits, fp8: fp8::Settings { block, bare: false } }))
    }
}

pub(crate) fn find(shelf: &Shelf<'_>, tensor: usize, settings: &Settings) -> Result<Option<Found>, Error> {
    let info = shelf.info(tensor);
    if let Some(module) = info.name.strip_suffix(".weight_packed") {
        shelf.expect_elements(tensor, FORMAT)?;
        let scales = shelf.need(tensor, FORMAT, format!("{module}.weight_scale"))?;
        return match info.dtype {
            Dtype::U8 => {
                let global = shelf.find(&format!("{module}.weight_global_scale"));
                fp4(shelf, module, tensor, scales, global).map(Some)
            }
            _ => pack(shelf, module, tensor, scales, settings).map(Some),
        };
    }
    if info.dtype == Dtype::I8
        && let Some(module) = info.name.strip_suffix(".weight")
        && let Some(scales) = shelf.find(&format!("{module}.weight_scale"))
    {
        return int(shelf, module, tensor, scales, settings).map(Some);
    }
    fp8::find(shelf, tensor, &settings.fp8)
}

/// NVFP4 as ModelOpt writes it: `weight` in bytes, `weight_scale`, and `weight_scale_2`, which multiplies.
pub(crate) fn find_nvfp4_of_modelopt(shelf: &Shelf<'_>, tensor: usize) -> Result<Option<Found>, Error> {
    let info = shelf.info(tensor);
    let Some(module) = info.name.strip_suffix(".weight").filter(|_| info.dtype == Dtype::U8) else {
        return Ok(None);
    };
    let (Some(scales), Some(second)) =
        (shelf.find(&format!("{module}.weight_scale")), shelf.find(&format!("{module}.weight_scale_2")))
    else {
        return Ok(None);
    };
    let mut found = fp4(shelf, module, tensor, scales, None)?;
    shelf.expect_dtype(second, FORMAT, &[Dtype::F32], "F32")?;
    if shelf.info(second).elements() != 1 {
        return Err(shelf.bad_shape(second, FORMAT, "one element".into()));
    }
    found.parts.push(second);
    let grid = fp4_grid(shelf, tensor, scales, &found.shape)?;
    let global = Some(Global { tensor: second, multiplies: true });
    found.packed = Box::new(Fp4 { weight: tensor, cols: found.shape[1], grid, global });
    Ok(Some(found))
}

/// The part of a module by its name's end, if it is there and not empty.
fn part(shelf: &Shelf<'_>, module: &str, end: &str) -> Option<usize> {
    shelf.find(&format!("{module}.{end}")).filter(|tensor| shelf.info(*tensor).elements() > 0)
}

fn grid_of(shelf: &Shelf<'_>, tensor: usize, weight: &[u64], settings: &Settings) -> Result<Grid, Error> {
    Grid::new(tensor, shelf.shape(tensor), weight, settings.fp8.block).ok_or_else(|| {
        shelf.bad_shape(
            tensor,
            FORMAT,
            format!("one number for each tensor, row, group or block of {weight:?}"),
        )
    })
}

/// The group of each column, where `weight_g_idx` gives it.
fn g_idx(shelf: &Shelf<'_>, module: &str, cols: u64) -> Result<Option<usize>, Error> {
    let Some(g_idx) = part(shelf, module, "weight_g_idx") else { return Ok(None) };
    shelf.expect_dtype(g_idx, FORMAT, &[Dtype::I32, Dtype::I64], "I32")?;
    shelf.expect_shape(g_idx, FORMAT, &[cols])?;
    Ok(Some(g_idx))
}

/// Scales, zeros and the order of columns: what turns numbers into values.
#[derive(Debug)]
struct Affine {
    scales: Grid,
    zeros: Option<Zeros>,
    g_idx: Option<usize>,
}

#[derive(Debug)]
enum Zeros {
    /// Numbers of `I8`, on the grid of the scales.
    Plain { tensor: usize, rows: u64, cols: u64 },
    /// Packed down the rows into words.
    Packed { tensor: usize, words: u64, cols: u64, bits: u32 },
}

impl Affine {
    /// The zeros of each row and group of these rows, `[row, group]`.
    fn zeros(&self, reader: &Reader, rows: &Range<u64>) -> Result<Option<(Vec<f32>, usize)>, Error> {
        let count = (rows.end - rows.start) as usize;
        match &self.zeros {
            None => Ok(None),
            Some(Zeros::Plain { tensor, rows: grid_rows, cols }) => {
                let one = *grid_rows == 1;
                let range = if one { 0..*cols } else { rows.start * cols..rows.end * cols };
                let dtype = reader.info(*tensor).dtype;
                let size = dtype.bits() / 8;
                let mut bytes = vec![];
                reader.bytes(*tensor, range.start * size..range.end * size, &mut bytes)?;
                let numbers = whole_numbers(dtype, &bytes).expect("its type was checked");
                let mut zeros: Vec<f32> = numbers.into_iter().map(|n| n as f32).collect();
                if one {
                    zeros = zeros.repeat(count);
                }
                Ok(Some((zeros, *cols as usize)))
            }
            Some(Zeros::Packed { tensor, words, cols, bits }) => {
                let first = rows.start * u64::from(*bits) / 32;
                let last = (rows.end * u64::from(*bits)).div_ceil(32).min(*words);
                let (cols, width) = (*cols as usize, (last - first) as usize);
                let mut bytes = vec![];
                reader.bytes(*tensor, first * cols as u64 * 4..last * cols as u64 * 4, &mut bytes)?;
                let skip = (rows.start * u64::from(*bits) - first * 32) as usize;
                let half = f32::from(1u16 << (bits - 1));
                let mut zeros = vec![0.0; count * cols];
                let mut column = vec![0; width * 4];
                for col in 0..cols {
                    for word in 0..width {
                        column[word * 4..][..4].copy_from_slice(&bytes[(word * cols + col) * 4..][..4]);
                    }
                    for row in 0..count {
                        let stored = field(*bits, &column, skip + row * *bits as usize);
                        zeros[row * cols + col] = f32::from(stored) - half;
                    }
                }
                Ok(Some((zeros, cols)))
            }
        }
    }

    /// Turns numbers into values, in place.
    fn apply(&self, reader: &Reader, rows: Range<u64>, cols: usize, out: &mut [f32]) -> Result<(), Error> {
        let scales = self.scales.read(reader, rows.clone())?;
        let zeros = self.zeros(reader, &rows)?;
        let order = self.g_idx.map(|g_idx| read_g_idx(reader, g_idx, self.scales.cols())).transpose()?;
        for ((row, out), number) in rows.zip(out.chunks_exact_mut(cols)).zip(0..) {
            let zeros = zeros.as_ref().map(|(zeros, cols)| &zeros[number * cols..][..*cols]);
            if let Some(order) = &order {
                let scales = scales.row(row);
                for (value, group) in out.iter_mut().zip(order) {
                    let zero = zeros.map_or(0.0, |zeros| zeros[(*group).min(zeros.len() - 1)]);
                    *value = (*value - zero) * scales[*group];
                }
                continue;
            }
            if let Some(zeros) = zeros {
                let size = if zeros.len() == 1 { cols } else { self.scales.col_block as usize };
                for (out, zero) in out.chunks_mut(size).zip(zeros) {
                    out.iter_mut().for_each(|value| *value -= zero);
                }
            }
            scales.scale(row, out);
        }
        Ok(())
    }
}

fn read_g_idx(reader: &Reader, g_idx: usize, groups: usize) -> Result<Vec<usize>, Error> {
    let info = reader.info(g_idx);
    let mut bytes = vec![];
    reader.bytes(g_idx, 0..info.bytes(), &mut bytes)?;
    let numbers = whole_numbers(info.dtype, &bytes).expect("its type was checked");
    let check = |(at, group): (usize, i64)| match usize::try_from(group) {
        Ok(number) if number < groups => Ok(number),
        _ => Err(Error::Value {
            tensor: info.name.clone(),
            what: format!("the group of column {at}"),
            found: group.to_string(),
            expected: format!("0 to {}", groups - 1),
        }),
    };
    numbers.into_iter().enumerate().map(check).collect()
}

#[derive(Debug)]
struct Pack {
    weight: usize,
    bits: u32,
    /// Bytes of a row.
    line: u64,
    cols: u64,
    affine: Affine,
}

fn pack(
    shelf: &Shelf<'_>,
    module: &str,
    tensor: usize,
    scales: usize,
    settings: &Settings,
) -> Result<Found, Error> {
    shelf.expect_dtype(tensor, FORMAT, &[Dtype::I32, Dtype::U32], "I32")?;
    shelf.expect_floats(scales, FORMAT)?;
    let [rows, words] = shelf.shape(tensor)[..] else {
        return Err(shelf.bad_shape(tensor, FORMAT, "two dimensions".into()));
    };
    let shape_of = shelf.need(tensor, FORMAT, format!("{module}.weight_shape"))?;
    let shape = read_shape(shelf, shape_of)?;
    let wrong = || shelf.bad_shape(tensor, FORMAT, format!("the packed rows of {shape:?}"));
    let [out, cols] = shape[..] else { return Err(wrong()) };
    let fits = |bits: u64| cols.checked_mul(bits).is_some_and(|n| n.div_ceil(32) == words);
    // Groups of modules may have bits of their own; the width tells.
    let bits = settings.bits.iter().copied().find(|bits| fits(*bits)).or((1..=8).find(|bits| fits(*bits)));
    let bits = bits.filter(|_| out == rows && out > 0 && cols > 0).ok_or_else(wrong)?;
    let grid = grid_of(shelf, scales, &shape, settings)?;
    let mut parts = vec![tensor, scales, shape_of];
    let zeros = match part(shelf, module, "weight_zero_point") {
        None => None,
        Some(zeros) if matches!(shelf.info(zeros).dtype, Dtype::I32 | Dtype::U32) => {
            let words = (rows * bits).div_ceil(32);
            shelf.expect_shape(zeros, FORMAT, &[words, grid.cols() as u64])?;
            Some(Zeros::Packed { tensor: zeros, words, cols: grid.cols() as u64, bits: bits as u32 })
        }
        Some(zeros) => Some(plain_zeros(shelf, zeros, scales, rows)?),
    };
    parts.extend(shelf.find(&format!("{module}.weight_zero_point")));
    parts.extend(shelf.find(&format!("{module}.weight_g_idx")));
    let label = format!("compressed-tensors {bits} bit, packed, {}", grid.describe());
    let affine = Affine { scales: grid, zeros, g_idx: g_idx(shelf, module, cols)? };
    let name = format!("{module}.weight");
    let packed = Box::new(Pack { weight: tensor, bits: bits as u32, line: words * 4, cols, affine });
    Ok(Found { name, shape, label, parts, packed })
}

/// The numbers of `weight_shape`.
fn read_shape(shelf: &Shelf<'_>, tensor: usize) -> Result<Vec<u64>, Error> {
    let info = shelf.info(tensor);
    let wrong = |found: String| Error::Value {
        tensor: info.name.clone(),
        what: "the weight's shape".into(),
        found,
        expected: "a few numbers above 0".into(),
    };
    if info.elements() > 8 {
        return Err(wrong(format!("of {} numbers", info.elements())));
    }
    let mut bytes = vec![0; info.bytes() as usize];
    shelf.base.read_bytes(tensor, 0, &mut bytes)?;
    let numbers = whole_numbers(info.dtype, &bytes).ok_or_else(|| wrong(format!("of {}", info.dtype)))?;
    let shape = numbers.iter().map(|n| u64::try_from(*n).ok().filter(|n| (1..1 << 40).contains(n)));
    shape.collect::<Option<Vec<u64>>>().ok_or_else(|| wrong(format!("{numbers:?}")))
}

/// Zeros of `I8` beside scales of the same shape.
fn plain_zeros(shelf: &Shelf<'_>, zeros: usize, scales: usize, rows: u64) -> Result<Zeros, Error> {
    shelf.expect_dtype(zeros, FORMAT, &[Dtype::I8, Dtype::I32, Dtype::I64], "I8")?;
    shelf.expect_shape(zeros, FORMAT, shelf.shape(scales))?;
    match shelf.shape(zeros)[..] {
        [] | [1] | [1, 1] => Ok(Zeros::Plain { tensor: zeros, rows: 1, cols: 1 }),
        [r] if r == rows => Ok(Zeros::Plain { tensor: zeros, rows, cols: 1 }),
        [r, cols] if r == rows && cols > 0 => Ok(Zeros::Plain { tensor: zeros, rows, cols }),
        _ => Err(shelf.bad_shape(zeros, FORMAT, format!("one zero a tensor, or [{rows}, groups]"))),
    }
}

impl Packed for Pack {
    fn read(&self, reader: &Reader, rows: Range<u64>, out: &mut [f32]) -> Result<(), Error> {
        let (line, cols) = (self.line as usize, self.cols as usize);
        let mut bytes = vec![];
        reader.bytes(self.weight, rows.start * self.line..rows.end * self.line, &mut bytes)?;
        let half = f32::from(1u16 << (self.bits - 1));
        let mut q = vec![0; cols];
        for (out, bytes) in out.chunks_exact_mut(cols).zip(bytes.chunks_exact(line)) {
            unpack(self.bits, bytes, &mut q);
            for (value, q) in out.iter_mut().zip(&q) {
                *value = f32::from(*q) - half;
            }
        }
        self.affine.apply(reader, rows, cols, out)
    }
}

#[derive(Debug)]
struct Int {
    weight: usize,
    cols: u64,
    affine: Affine,
}

fn int(
    shelf: &Shelf<'_>,
    module: &str,
    tensor: usize,
    scales: usize,
    settings: &Settings,
) -> Result<Found, Error> {
    shelf.expect_floats(scales, FORMAT)?;
    let shape = shelf.shape(tensor).to_vec();
    let [rows, cols] = shape[..] else {
        return Err(shelf.bad_shape(tensor, FORMAT, "two dimensions".into()));
    };
    let grid = grid_of(shelf, scales, &shape, settings)?;
    let zeros = part(shelf, module, "weight_zero_point");
    let zeros = zeros.map(|zeros| plain_zeros(shelf, zeros, scales, rows)).transpose()?;
    let mut parts = vec![tensor, scales];
    parts.extend(shelf.find(&format!("{module}.weight_zero_point")));
    parts.extend(shelf.find(&format!("{module}.weight_g_idx")));
    let label = format!("compressed-tensors int8, {}", grid.describe());
    let affine = Affine { scales: grid, zeros, g_idx: g_idx(shelf, module, cols)? };
    let packed = Box::new(Int { weight: tensor, cols, affine });
    Ok(Found { name: format!("{module}.weight"), shape, label, parts, packed })
}

impl Packed for Int {
    fn read(&self, reader: &Reader, rows: Range<u64>, out: &mut [f32]) -> Result<(), Error> {
        let mut bytes = vec![];
        reader.bytes(self.weight, rows.start * self.cols..rows.end * self.cols, &mut bytes)?;
        for (value, byte) in out.iter_mut().zip(&bytes) {
            *value = f32::from(*byte as i8);
        }
        self.affine.apply(reader, rows, self.cols as usize, out)
    }
}

/// E2M1 in halves of bytes, the first in the low half; scales for groups of 16 or 32.
#[derive(Debug)]
struct Fp4 {
    weight: usize,
    cols: u64,
    grid: Grid,
    global: Option<Global>,
}

/// A scale of the scales.
#[derive(Debug)]
struct Global {
    tensor: usize,
    multiplies: bool,
}

fn fp4_grid(shelf: &Shelf<'_>, tensor: usize, scales: usize, shape: &[u64]) -> Result<Grid, Error> {
    Grid::new(scales, shelf.shape(scales), shape, None).ok_or_else(|| {
        shelf.bad_shape(scales, FORMAT, format!("one for each group of {:?}", shelf.shape(tensor)))
    })
}

fn fp4(
    shelf: &Shelf<'_>,
    module: &str,
    tensor: usize,
    scales: usize,
    global: Option<usize>,
) -> Result<Found, Error> {
    let [rows, bytes] = shelf.shape(tensor)[..] else {
        return Err(shelf.bad_shape(tensor, FORMAT, "two dimensions".into()));
    };
    let cols = bytes * 2;
    let shape = vec![rows, cols];
    // MXFP4's scales are exponents in bytes.
    if shelf.info(scales).dtype != Dtype::U8 {
        shelf.expect_floats(scales, FORMAT)?;
    }
    let mut parts = vec![tensor, scales];
    if let Some(global) = global {
        shelf.expect_dtype(global, FORMAT, &[Dtype::F32], "F32")?;
        if shelf.info(global).elements() != 1 {
            return Err(shelf.bad_shape(global, FORMAT, "one element".into()));
        }
        parts.push(global);
    }
    let grid = fp4_grid(shelf, tensor, scales, &shape)?;
    let kind = if shelf.info(scales).dtype == Dtype::U8 { "MXFP4" } else { "NVFP4" };
    let label = format!("{kind}, {}", grid.describe());
    let global = global.map(|tensor| Global { tensor, multiplies: false });
    let packed = Box::new(Fp4 { weight: tensor, cols, grid, global });
    Ok(Found { name: format!("{module}.weight"), shape, label, parts, packed })
}

impl Packed for Fp4 {
    fn read(&self, reader: &Reader, rows: Range<u64>, out: &mut [f32]) -> Result<(), Error> {
        let line = self.cols / 2;
        let mut bytes = vec![];
        reader.bytes(self.weight, rows.start * line..rows.end * line, &mut bytes)?;
        e2m1_pairs(&bytes, out);
        let mut scales = self.grid.read(reader, rows.clone())?;
        if let Some(Global { tensor, multiplies }) = self.global {
            let global = reader.floats(tensor, 0..1)?[0];
            let rescale =
                |scale: &mut f32| *scale = if multiplies { *scale * global } else { *scale / global };
            scales.values.iter_mut().for_each(rescale);
        }
        for (row, out) in rows.zip(out.chunks_exact_mut((self.cols as usize).max(1))) {
            scales.scale(row, out);
        }
        Ok(())
    }
}
