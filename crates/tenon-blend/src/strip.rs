//! A run of elements of all inputs of a tensor, decoded.

use std::ops::Range;

use tenon_checkpoint::Dtype;
use tenon_merge::kernel::{self, Level};

use crate::kernel as sums;
use crate::plan::Tensor;

/// A run of elements of all inputs.
pub(crate) struct Strip {
    /// Of each input, rounded to the working type.
    pub(crate) inputs: Vec<Vec<f64>>,
    /// Number of the first element within the tensor.
    pub(crate) first: u64,
    pub(crate) work: Dtype,
    pub(crate) level: Level,
}

impl Default for Strip {
    fn default() -> Self {
        Self { inputs: vec![], first: 0, work: Dtype::F64, level: Level::Scalar }
    }
}

impl Strip {
    pub(crate) fn len(&self) -> usize {
        self.inputs.first().map_or(0, Vec::len)
    }

    /// Decodes a run of elements of what was read of the inputs.
    pub(crate) fn decode(
        &mut self,
        what: &Tensor,
        level: Level,
        first: u64,
        bytes: &[Vec<u8>],
        run: Range<usize>,
    ) {
        (self.first, self.work, self.level) = (first, what.work, level);
        self.inputs.resize_with(what.inputs.len(), Vec::new);
        for ((input, bytes), values) in what.inputs.iter().zip(bytes).zip(&mut self.inputs) {
            let width = input.stored.bits() as usize / 8;
            values.resize(run.len(), 0.0);
            kernel::decode(level, input.stored, &bytes[run.start * width..run.end * width], values);
            if input.stored != what.work {
                round(level, what.work, values);
            }
        }
    }

    /// What an input differs by from the base.
    pub(crate) fn differences(&self, base: usize, input: usize) -> Vec<f64> {
        let mut differences = vec![0.0; self.len()];
        sums::subtract(self.level, &self.inputs[input], &self.inputs[base], &mut differences);
        differences
    }

    /// What an input differs by from the base, rounded to the working type.
    pub(crate) fn rounded_differences(&self, base: usize, input: usize) -> Vec<f64> {
        let mut differences = self.differences(base, input);
        self.round(&mut differences);
        differences
    }

    pub(crate) fn round(&self, values: &mut [f64]) {
        round(self.level, self.work, values);
    }
}

/// Rounds to what a narrower type can hold.
pub(crate) fn round(level: Level, dtype: Dtype, values: &mut [f64]) {
    if dtype == Dtype::F64 {
        return;
    }
    let mut bytes = [0; 4 * 256];
    for values in values.chunks_mut(256) {
        let bytes = &mut bytes[..values.len() * dtype.bits() as usize / 8];
        kernel::encode(level, dtype, values, bytes);
        kernel::decode(level, dtype, bytes, values);
    }
}
