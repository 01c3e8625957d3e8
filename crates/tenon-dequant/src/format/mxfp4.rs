//! MXFP4, as gpt-oss ships its experts.
//!
//! `X_blocks` is `[experts, out, in / 32, 16]`: 32 values of E2M1 in 16 bytes,
//! the first in the low half; `X_scales` `[experts, out, in / 32]` their
//! exponents. `value = e2m1(q) * 2^(scale - 127)`. The model's tensor is turned
//! over: `[experts, in, out]`. (transformers, `integrations/mxfp4.py`,
//! `convert_moe_packed_tensors`.)

use std::ops::Range;

use tenon_checkpoint::Dtype;

use super::{Found, Packed};
use crate::Error;
use crate::float8::{E2M1, power_of_two};
use crate::open::Shelf;
use crate::reader::{Lines, Reader};

const FORMAT: &str = "MXFP4";

#[derive(Debug)]
struct Mxfp4 {
    blocks: usize,
    scales: usize,
    outputs: u64,
    /// Blocks of 32 inputs.
    groups: u64,
}

pub(crate) fn find(shelf: &Shelf<'_>, tensor: usize) -> Result<Option<Found>, Error> {
    let info = shelf.info(tensor);
    let Some(name) = info.name.strip_suffix("_blocks") else { return Ok(None) };
    if info.dtype != Dtype::U8 {
        return Ok(None);
    }
    shelf.expect_elements(tensor, FORMAT)?;
    let scales = shelf.need(tensor, FORMAT, format!("{name}_scales"))?;
    shelf.expect_dtype(scales, FORMAT, &[Dtype::U8, Dtype::F8_E8M0], "U8")?;
    let [lead @ .., outputs, groups, 16] = &info.shape[..] else {
        return Err(shelf.bad_shape(tensor, FORMAT, "[.., out, in / 32, 16]".into()));
    };
    let (outputs, groups) = (*outputs, *groups);
    shelf.expect_shape(scales, FORMAT, &info.shape[..info.shape.len() - 1])?;
    let mut shape = lead.to_vec();
    shape.extend([groups * 32, outputs]);
    Ok(Some(Found {
        name: name.into(),
        shape,
        label: "MXFP4".into(),
        parts: vec![tensor, scales],
        packed: Box::new(Mxfp4 { blocks: tensor, scales, outputs, groups }),
    }))
}

/// Outputs turned together: their bytes for a tile stay in the L1 cache.
const BLOCK: usize = 64;

impl Packed for Mxfp4 {
    fn read(&self, reader: &Reader, rows: Range<u64>, out: &mut [f32]) -> Result<(), Error> {
        let (inputs, outputs) = (self.groups * 32, self.outputs as usize);
        let (mut bytes, mut scales) = (vec![], vec![]);
        let mut at = rows.start;
        while at < rows.end {
            let expert = at / inputs;
            let upto = rows.end.min((expert + 1) * inputs);
            let (first, last) = (at % inputs, upto - 1 - expert * inputs);
            let lines =
                |tensor, len| Lines { tensor, offset: expert * self.outputs * len, count: self.outputs, len };
            let (columns, blocks) = (first / 2..last / 2 + 1, first / 32..last / 32 + 1);
            let (width, scale_width) =
                ((columns.end - columns.start) as usize, (blocks.end - blocks.start) as usize);
            reader.columns(lines(self.blocks, self.groups * 16), columns.clone(), &mut bytes)?;
            reader.columns(lines(self.scales, self.groups), blocks.clone(), &mut scales)?;
            let place = (at - rows.start) as usize * outputs;
            let out = &mut out[place..place + (upto - at) as usize * outputs];
            for start in (0..outputs).step_by(BLOCK) {
                let end = outputs.min(start + BLOCK);
                for (input, row) in (first..=last).zip(out.chunks_exact_mut(outputs)) {
                    let (byte, block) =
                        ((input / 2 - columns.start) as usize, (input / 32 - blocks.start) as usize);
                    let shift = input % 2 * 4;
                    for (output, value) in (start..end).zip(&mut row[start..end]) {
                        let q = bytes[output * width + byte] >> shift & 15;
                        let scale = power_of_two(scales[output * scale_width + block]);
                        *value = E2M1[usize::from(q)] * scale;
                    }
                }
            }
            at = upto;
        }
        Ok(())
    }
}
