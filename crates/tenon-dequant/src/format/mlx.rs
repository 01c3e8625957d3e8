//! MLX's quantizations, as mlx-lm converts models.
//!
//! `weight` is `[.., in * bits / 32]` words, `scales` `[.., in / group_size]`. Affine numbers have
//! `biases` beside that, and `value = scale * q + bias`. The modes mxfp4, mxfp8 and nvfp4 have none:
//! `value = scale * float(q)`, with E2M1 or E4M3 numbers and a byte for a scale, an exponent in the mx
//! modes and E4M3 in nvfp4. (MLX, `mlx.core.dequantize`.)
//!
//! MLX evaluates affine numbers in the type of `scales` where that is narrower than `f32`.

use std::ops::Range;

use serde_json::Value;
use tenon_checkpoint::Dtype;

use super::{Found, Packed, groups};
use crate::Error;
use crate::float8::{e2m1_pairs, table};
use crate::grid::Grid;
use crate::open::Shelf;
use crate::reader::Reader;
use crate::scheme::whole;
use crate::unpack::unpack;

const FORMAT: &str = "MLX";

/// What the configuration says; modules may have settings of their own by their names.
#[derive(Debug)]
pub(crate) struct Settings {
    quantization: Value,
    group_size: u64,
}

impl Settings {
    /// The settings, or why the format is not known.
    pub(crate) fn read(quantization: Value) -> Result<Result<Self, String>, Error> {
        let mode = quantization.get("mode").and_then(Value::as_str).unwrap_or("affine");
        if !["affine", "mxfp4", "mxfp8", "nvfp4"].contains(&mode) {
            return Ok(Err(format!("its mode {mode:?} is not known")));
        }
        let group_size = whole(&quantization, "group_size")?.filter(|size| *size > 0).unwrap_or(64) as u64;
        Ok(Ok(Self { quantization, group_size }))
    }

    fn group_size(&self, module: &str) -> u64 {
        let own = self.quantization.get(module).and_then(|own| own.get("group_size")?.as_u64());
        own.filter(|size| *size > 0).unwrap_or(self.group_size)
    }
}

#[derive(Debug)]
struct Affine {
    weight: usize,
    bits: u32,
    cols: u64,
    scales: Grid,
    biases: Grid,
}

pub(crate) fn find(shelf: &Shelf<'_>, tensor: usize, settings: &Settings) -> Result<Option<Found>, Error> {
    let info = shelf.info(tensor);
    let Some(module) = info.name.strip_suffix(".weight") else { return Ok(None) };
    if info.dtype != Dtype::U32 {
        return Ok(None);
    }
    shelf.expect_elements(tensor, FORMAT)?;
    let scales = shelf.need(tensor, FORMAT, format!("{module}.scales"))?;
    // As mlx-lm itself tells them apart, whatever mode the configuration names for the whole model.
    if shelf.info(scales).dtype == Dtype::U8 {
        return floats(shelf, tensor, module, scales).map(Some);
    }
    let biases = shelf.need(tensor, FORMAT, format!("{module}.biases"))?;
    shelf.expect_floats(scales, FORMAT)?;
    shelf.expect_floats(biases, FORMAT)?;
    shelf.expect_shape(biases, FORMAT, shelf.shape(scales))?;
    let group_size = settings.group_size(module);
    let wrong = || shelf.bad_shape(tensor, FORMAT, "[.., in * bits / 32], as its scales have it".into());
    let ([lead @ .., words], [.., count]) = (&info.shape[..], shelf.shape(scales)) else {
        return Err(wrong());
    };
    let cols = count.checked_mul(group_size).filter(|cols| *cols > 0).ok_or_else(wrong)?;
    let bits = words.checked_mul(32).filter(|bits| bits.is_multiple_of(cols)).ok_or_else(wrong)? / cols;
    if ![1, 2, 3, 4, 5, 6, 8].contains(&bits) || lead.is_empty() {
        return Err(wrong());
    }
    let mut shape = lead.to_vec();
    shape.push(cols);
    let grid =
        |grid: usize| Grid::new(grid, shelf.shape(grid), &shape, Some((1, group_size))).ok_or_else(wrong);
    let (scale_grid, bias_grid) = (grid(scales)?, grid(biases)?);
    Ok(Some(Found {
        name: info.name.clone(),
        label: format!("MLX {bits} bit, {}", groups(group_size, cols)),
        parts: vec![tensor, scales, biases],
        packed: Box::new(Affine {
            weight: tensor,
            bits: bits as u32,
            cols,
            scales: scale_grid,
            biases: bias_grid,
        }),
        shape,
    }))
}

/// Small floats in words, a byte for the scale of each group.
#[derive(Debug)]
struct Floats {
    weight: usize,
    bits: u32,
    cols: u64,
    grid: Grid,
    /// What a scale is.
    scale: Dtype,
}

fn floats(shelf: &Shelf<'_>, tensor: usize, module: &str, scales: usize) -> Result<Found, Error> {
    let info = shelf.info(tensor);
    let wrong = || shelf.bad_shape(tensor, FORMAT, "[.., in * bits / 32], as its scales have it".into());
    let ([lead @ .., words], [.., count]) = (&info.shape[..], shelf.shape(scales)) else {
        return Err(wrong());
    };
    // Words of a group tell the mode: 16 of 4 bits, 32 of 4 bits, 32 of 8 bits.
    let (mode, group, bits, scale) = match words.checked_div(*count).filter(|w| w * count == *words) {
        Some(2) => ("nvfp4", 16, 4, Dtype::F8_E4M3),
        Some(4) => ("mxfp4", 32, 4, Dtype::F8_E8M0),
        Some(8) => ("mxfp8", 32, 8, Dtype::F8_E8M0),
        _ => return Err(wrong()),
    };
    if let Some(global) = shelf.find(&format!("{module}.global_scale")) {
        return Err(shelf.bad_shape(
            global,
            FORMAT,
            "no scale of the scales, which is not known here".into(),
        ));
    }
    let cols = count * group;
    let mut shape = lead.to_vec();
    shape.push(cols);
    let grid = Grid::new(scales, shelf.shape(scales), &shape, Some((1, group))).ok_or_else(wrong)?;
    Ok(Found {
        name: info.name.clone(),
        label: format!("MLX {mode}, {}", groups(group, cols)),
        parts: vec![tensor, scales],
        packed: Box::new(Floats { weight: tensor, bits, cols, grid, scale }),
        shape,
    })
}

impl Packed for Floats {
    fn read(&self, reader: &Reader, rows: Range<u64>, out: &mut [f32]) -> Result<(), Error> {
        let line = self.cols * u64::from(self.bits) / 8;
        let mut bytes = vec![];
        reader.bytes(self.weight, rows.start * line..rows.end * line, &mut bytes)?;
        if self.bits == 4 {
            e2m1_pairs(&bytes, out);
        } else {
            let e4m3 = table(Dtype::F8_E4M3).expect("a type of 8 bits");
            for (value, byte) in out.iter_mut().zip(&bytes) {
                *value = e4m3[usize::from(*byte)];
            }
        }
        let scales = self.grid.read_as(reader, rows.clone(), self.scale)?;
        for (row, out) in rows.zip(out.chunks_exact_mut(self.cols as usize)) {
            scales.scale(row, out);
        }
        Ok(())
    }
}

impl Packed for Affine {
    fn read(&self, reader: &Reader, rows: Range<u64>, out: &mut [f32]) -> Result<(), Error> {
        let line = (self.cols * u64::from(self.bits) / 8) as usize;
        let mut bytes = vec![];
        reader.bytes(self.weight, rows.start * line as u64..rows.end * line as u64, &mut bytes)?;
        let scales = self.scales.read(reader, rows.clone())?;
        let biases = self.biases.read(reader, rows.clone())?;
        let mut q = vec![0; self.cols as usize];
        let group = self.scales.col_block as usize;
        for ((row, out), bytes) in rows.zip(out.chunks_exact_mut(q.len())).zip(bytes.chunks_exact(line)) {
            unpack(self.bits, bytes, &mut q);
            let numbers = scales.row(row).iter().zip(biases.row(row));
            for ((out, q), (scale, bias)) in out.chunks_mut(group).zip(q.chunks(group)).zip(numbers) {
                for (value, q) in out.iter_mut().zip(q) {
                    *value = scale * f32::from(*q) + bias;
                }
            }
        }
        Ok(())
    }
}
