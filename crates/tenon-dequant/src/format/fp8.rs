//! 8-bit floats with scales: per tensor, per row, per block (DeepSeek, Qwen), per expert.
//!
//! `value = f32(q) * scale`. The scale is `X_scale_inv` (which multiplies all
//! the same) or `X_scale` for a weight `X`; `U8` and `F8_E8M0` scales are
//! exponents. (transformers, `integrations/finegrained_fp8.py`,
//! `Fp8Dequantize`; DeepSeek-V3, `inference/kernel.py`, `weight_dequant`.)

use std::ops::Range;

use serde_json::Value;

use super::{Found, Packed};
use crate::grid::Grid;
use crate::open::Shelf;
use crate::reader::Reader;
use crate::{Error, float8};

const FORMAT: &str = "FP8";

/// What the configuration says.
#[derive(Debug, Default)]
pub(crate) struct Settings {
    /// Rows and columns of a block.
    pub(crate) block: Option<(u64, u64)>,
    /// Whether a tensor may be without scales. It is stored as it is then.
    pub(crate) bare: bool,
}

impl Settings {
    pub(crate) fn read(quantization: &Value) -> Result<Self, Error> {
        Ok(Self { block: block_size(quantization, "weight_block_size")?, bare: false })
    }
}

/// Two extents above 0.
pub(crate) fn block_size(settings: &Value, field: &str) -> Result<Option<(u64, u64)>, Error> {
    let Some(value) = settings.get(field).filter(|v| !v.is_null()) else { return Ok(None) };
    let list: Option<Vec<u64>> = value.as_array().and_then(|list| list.iter().map(Value::as_u64).collect());
    match list.as_deref() {
        Some([rows, cols]) if *rows > 0 && *cols > 0 => Ok(Some((*rows, *cols))),
        _ => Err(Error::Field {
            field: field.into(),
            found: value.to_string(),
            expected: "two numbers above 0",
        }),
    }
}

#[derive(Debug)]
struct Fp8 {
    weight: usize,
    table: &'static [f32; 256],
    cols: u64,
    grid: Grid,
}

pub(crate) fn find(shelf: &Shelf<'_>, tensor: usize, settings: &Settings) -> Result<Option<Found>, Error> {
    let info = shelf.info(tensor);
    let is_scale = ["_scale", "_scale_inv", "_scales"].iter().any(|end| info.name.ends_with(end));
    let (Some(table), false) = (float8::table(info.dtype), is_scale) else { return Ok(None) };
    let mut names = ["_scale_inv", "_scale"].iter().map(|end| format!("{}{end}", info.name));
    let Some(scale) = names.find_map(|name| shelf.find(&name)) else {
        if settings.bare {
            return Ok(None);
        }
        return Err(Error::Missing {
            tensor: info.name.clone(),
            format: FORMAT,
            missing: format!("{}_scale_inv", info.name),
        });
    };
    shelf.expect_scale(scale)?;
    let grid = Grid::new(scale, shelf.shape(scale), &info.shape, settings.block).ok_or_else(|| {
        shelf.bad_shape(scale, FORMAT, format!("one scale for each tensor, row or block of {:?}", info.shape))
    })?;
    let label = format!("FP8 {}, {}", info.dtype.name().trim_start_matches("F8_"), grid.describe());
    let cols = info.shape[info.shape.len() - 1];
    Ok(Some(Found {
        name: info.name.clone(),
        shape: info.shape.clone(),
        label,
        parts: vec![tensor, scale],
        packed: Box::new(Fp8 { weight: tensor, table, cols, grid }),
    }))
}

impl Shelf<'_> {
    /// Fails unless the tensor holds floats, or exponents in bytes.
    fn expect_scale(&self, scale: usize) -> Result<(), Error> {
        match self.info(scale).dtype {
            tenon_checkpoint::Dtype::U8 => Ok(()),
            _ => self.expect_floats(scale, FORMAT),
        }
    }
}

impl Packed for Fp8 {
    fn read(&self, reader: &Reader, rows: Range<u64>, out: &mut [f32]) -> Result<(), Error> {
        let mut bytes = vec![];
        reader.bytes(self.weight, rows.start * self.cols..rows.end * self.cols, &mut bytes)?;
        let scales = self.grid.read(reader, rows.clone())?;
        let cols = (self.cols as usize).max(1);
        for ((row, out), bytes) in rows.zip(out.chunks_exact_mut(cols)).zip(bytes.chunks_exact(cols)) {
            for (value, byte) in out.iter_mut().zip(bytes) {
                *value = self.table[usize::from(*byte)];
            }
            scales.scale(row, out);
        }
        Ok(())
    }
}
